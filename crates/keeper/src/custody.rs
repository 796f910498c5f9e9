//! What should be kept, what is kept, and what to do about the difference. Pure: the shell around it is
//! [`crate::custodian`].
//!
//! ```text
//!            due                        reached
//!   Away ──────────▶ Reaching ─────────────────────▶ Here: puts and removals, one at a time
//!    ▲ pause doubles     │ not reached                 │ keeper ended, connection broke,
//!    ├───────────────────┘                             │ silent SILENCES times
//!    └─────────────────────────────────────────────────┘
//! ```
//!
//! The wish for a name is one entry, however often it changes, so what waits for a keeper is bounded by the
//! names and not by time ([`Shelf::MAX_NAMES`]; a wish beyond is counted and passed over). A keeper that is
//! reached anew has lost what it kept, or may have: it is told everything that it does not list, and again
//! what was wished for since it was last told.
//!
//! Nothing that an instance does waits for this. A guest may run before its tap is kept: its VMM holds the
//! tap too, so the tap is lost only when keeper, daemon and VMM all end, and then nobody is left to be lost
//! to. What a keeper adds is what outlives the VMM: how it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_model::{Attempt, MonoTime};

use crate::shelf::{HeldName, Shelf};

/// The pause before a second try to reach a keeper; it doubles with every further one.
pub const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause between tries.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a keeper must have lived for its end to be no reason to wait before the next one.
pub const LONG_LIFE: Duration = Duration::from_secs(10);

/// Answers that may fail to come in turn before a keeper is replaced.
pub const SILENCES: u32 = 3;

/// How long what was refused is left alone.
pub const REFUSAL_PAUSE: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// There is a descriptor to be kept under this name, or another one than before.
    Want(HeldName),
    /// Nothing needs to be kept under this name any more.
    Forget(HeldName),
    /// Every owner of an earlier daemon's names has said what it wants: the rest may go.
    Settled,
    /// A keeper is reached and keeps these.
    Reached {
        /// Of which effect.
        attempt: Attempt,
        /// What it lists.
        names: Vec<HeldName>,
    },
    /// None is.
    NotReached {
        /// Of which effect.
        attempt: Attempt,
    },
    /// A put or a removal is done.
    Done {
        /// Of which effect.
        attempt: Attempt,
    },
    /// A put or a removal failed.
    Failed {
        /// Of which effect.
        attempt: Attempt,
        /// How.
        trouble: Trouble,
    },
    /// A question that is not ours to number was not answered in time.
    Silent,
    /// The process of the keeper reached by this attempt has ended.
    Ended {
        /// The attempt that had reached it.
        attempt: Attempt,
    },
    /// The time of [`Custody::next_deadline`] has come.
    Deadline,
}

/// How a put or a removal failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no keeper any more, or the connection is of no use.
    Lost,
    /// It did not answer in time.
    Silent,
    /// It answered and will not: no room, or a defect.
    Refused,
}

/// What is to be done. One is under way at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Reach the keeper, or make one.
    Reach {
        /// Comes back with the outcome.
        attempt: Attempt,
        /// The one that is there does not answer: end it first.
        replace: bool,
    },
    /// Have the newest descriptors of the name kept.
    Put {
        /// Comes back with the outcome.
        attempt: Attempt,
        /// Whose.
        name: HeldName,
    },
    /// Have what is kept under the name closed.
    Remove {
        /// Comes back with the outcome.
        attempt: Attempt,
        /// Whose.
        name: HeldName,
    },
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Whether a keeper is there.
    pub here: bool,
    /// Names that are kept as they should be.
    pub kept: usize,
    /// Names that are still to be put or removed.
    pub pending: usize,
    /// Names that the keeper refused.
    pub refused: usize,
    /// Wishes that were passed over for want of room.
    pub passed_over: u64,
    /// Keepers lost since the beginning.
    pub losses: u64,
    /// Outcomes that came for an attempt that was not outstanding.
    pub late: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    /// None; tried again at this time.
    Away { due: MonoTime },
    /// Being reached.
    Reaching { attempt: Attempt },
    /// There.
    Here { since: MonoTime, reached_by: Attempt },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    attempt: Attempt,
    name: HeldName,
    /// The name was wished for again, or forgotten, meanwhile.
    overtaken: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Custody {
    keeper: Keeper,
    /// Tries in turn that did not bring a keeper that lived long.
    tries: u32,
    replace: bool,
    silences: u32,
    last_attempt: Attempt,
    settled: bool,
    wanted: BTreeSet<HeldName>,
    /// What of it the keeper is not known to keep as it should be.
    unkept: BTreeSet<HeldName>,
    /// What the keeper has, or may have, that was not put for the present wish.
    stale: BTreeSet<HeldName>,
    refused: BTreeMap<HeldName, MonoTime>,
    work: Option<Work>,
    passed_over: u64,
    losses: u64,
    late: u64,
}

impl Custody {
    /// Nothing is wanted, and no keeper is known: the first is reached at `now`.
    #[must_use]
    pub const fn new(now: MonoTime) -> Self {
        Self {
            keeper: Keeper::Away { due: now },
            tries: 0,
            replace: false,
            silences: 0,
            last_attempt: Attempt(0),
            settled: false,
            wanted: BTreeSet::new(),
            unkept: BTreeSet::new(),
            stale: BTreeSet::new(),
            refused: BTreeMap::new(),
            work: None,
            passed_over: 0,
            losses: 0,
            late: 0,
        }
    }

    /// Takes one input. Total: an outcome that nobody waits for is counted and ignored.
    pub fn handle(&mut self, now: MonoTime, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Want(name) => self.want(name),
            Input::Forget(name) => self.forget(name),
            Input::Settled => self.settled = true,
            Input::Reached { attempt, names } => self.reached(now, attempt, names),
            Input::NotReached { attempt } => {
                if self.keeper == (Keeper::Reaching { attempt }) {
                    self.away(now);
                } else {
                    self.late += 1;
                }
            }
            Input::Done { attempt } => self.done(attempt),
            Input::Failed { attempt, trouble } => self.failed(now, attempt, trouble),
            Input::Silent => self.silent(now),
            Input::Ended { attempt } => match self.keeper {
                Keeper::Here { reached_by, .. } if reached_by == attempt => self.lost(now),
                Keeper::Here { .. } | Keeper::Away { .. } | Keeper::Reaching { .. } => self.late += 1,
            },
            Input::Deadline => self.refused.retain(|_, until| *until > now),
        }
        self.go_on(now, out);
    }

    /// When [`Input::Deadline`] is due; `None` while nothing is waited for but outcomes.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        let retry = self.refused.values().min().copied();
        match self.keeper {
            Keeper::Away { due } => Some(retry.map_or(due, |retry| retry.min(due))),
            Keeper::Reaching { .. } => None,
            Keeper::Here { .. } => retry,
        }
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            here: matches!(self.keeper, Keeper::Here { .. }),
            kept: self.wanted.len().saturating_sub(self.unkept.len()),
            pending: self.unkept.len() + self.stale.difference(&self.wanted).count(),
            refused: self.refused.len(),
            passed_over: self.passed_over,
            losses: self.losses,
            late: self.late,
        }
    }

    /// Whether the keeper is there and answered the last time.
    #[must_use]
    pub const fn answers(&self) -> bool {
        matches!(self.keeper, Keeper::Here { .. }) && self.silences == 0
    }

    /// Whether `name` is wanted.
    #[must_use]
    pub fn wants(&self, name: &HeldName) -> bool {
        self.wanted.contains(name)
    }

    fn want(&mut self, name: HeldName) {
        if !self.wanted.contains(&name) && self.wanted.len() >= Shelf::MAX_NAMES {
            self.passed_over += 1;
            return;
        }
        self.changed(&name);
        self.unkept.insert(name.clone());
        self.wanted.insert(name);
    }

    fn forget(&mut self, name: HeldName) {
        self.changed(&name);
        let was_unkept = self.unkept.remove(&name);
        // What a keeper may have besides is known from its list, or from the put that is under way.
        if self.wanted.remove(&name) && !was_unkept {
            self.stale.insert(name);
        }
    }

    /// What is under way for `name`, or was refused, was for another wish.
    fn changed(&mut self, name: &HeldName) {
        self.refused.remove(name);
        if let Some(work) = self.work.as_mut().filter(|work| work.name == *name) {
            work.overtaken = true;
        }
    }

    fn reached(&mut self, now: MonoTime, attempt: Attempt, names: Vec<HeldName>) {
        if self.keeper != (Keeper::Reaching { attempt }) {
            self.late += 1;
            return;
        }
        self.keeper = Keeper::Here {
            since: now,
            reached_by: attempt,
        };
        self.replace = false;
        self.silences = 0;
        // A connection that broke may have done what was asked last, or not: nothing is taken as kept.
        self.unkept.clone_from(&self.wanted);
        self.refused.clear();
        self.stale = names.into_iter().collect();
    }

    fn done(&mut self, attempt: Attempt) {
        let Some(work) = self.work.take_if(|work| work.attempt == attempt) else {
            self.late += 1;
            return;
        };
        self.silences = 0;
        if work.overtaken {
            self.stale.insert(work.name);
        } else {
            self.stale.remove(&work.name);
            self.unkept.remove(&work.name);
        }
    }

    fn failed(&mut self, now: MonoTime, attempt: Attempt, trouble: Trouble) {
        let Some(work) = self.work.take_if(|work| work.attempt == attempt) else {
            self.late += 1;
            return;
        };
        match trouble {
            Trouble::Lost => self.lost(now),
            Trouble::Silent => {
                // It may have been done.
                self.stale.insert(work.name);
                self.silent(now);
            }
            Trouble::Refused => {
                self.silences = 0;
                if !work.overtaken {
                    self.refused.insert(work.name, now.plus(REFUSAL_PAUSE));
                }
            }
        }
    }

    fn silent(&mut self, now: MonoTime) {
        if !matches!(self.keeper, Keeper::Here { .. }) {
            return;
        }
        self.silences += 1;
        if self.silences >= SILENCES {
            self.replace = true;
            self.lost(now);
        }
    }

    fn lost(&mut self, now: MonoTime) {
        let lived_long = matches!(self.keeper, Keeper::Here { since, .. } if now.since(since) >= LONG_LIFE);
        if lived_long {
            self.tries = 0;
        }
        self.losses += 1;
        self.work = None;
        self.unkept.clone_from(&self.wanted);
        self.stale.clear();
        self.away(now);
    }

    fn away(&mut self, now: MonoTime) {
        // The first loss of a keeper that lived is made good at once.
        let pause = match self.tries {
            0 => Duration::ZERO,
            tries => FIRST_PAUSE
                .saturating_mul(1 << (tries - 1).min(16))
                .min(LONGEST_PAUSE),
        };
        self.tries = self.tries.saturating_add(1);
        self.keeper = Keeper::Away { due: now.plus(pause) };
    }

    fn go_on(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        match self.keeper {
            Keeper::Away { due } if due <= now => {
                let attempt = self.next_attempt();
                self.keeper = Keeper::Reaching { attempt };
                out.push(Effect::Reach {
                    attempt,
                    replace: self.replace,
                });
            }
            Keeper::Here { .. } if self.work.is_none() => self.begin_work(out),
            Keeper::Away { .. } | Keeper::Reaching { .. } | Keeper::Here { .. } => {}
        }
    }

    /// The next difference. Puts come first: a removal only tidies.
    fn begin_work(&mut self, out: &mut Vec<Effect>) {
        let ready = |name: &&HeldName| !self.refused.contains_key(*name);
        let put = self.unkept.iter().find(ready).cloned();
        let work = match put {
            Some(name) => Some((name, true)),
            None => {
                let may_go = |name: &&HeldName| ready(name) && !self.wanted.contains(*name);
                let first = self.stale.iter().find(may_go).cloned();
                // Until all owners have spoken only what one of them gave up would go; which that is, is not
                // told apart: a removal can wait.
                first.filter(|_| self.settled).map(|name| (name, false))
            }
        };
        let Some((name, is_put)) = work else { return };
        let attempt = self.next_attempt();
        self.work = Some(Work {
            attempt,
            name: name.clone(),
            overtaken: false,
        });
        out.push(if is_put {
            Effect::Put { attempt, name }
        } else {
            Effect::Remove { attempt, name }
        });
    }

    fn next_attempt(&mut self) -> Attempt {
        self.last_attempt = self.last_attempt.next();
        self.last_attempt
    }
}

#[cfg(test)]
mod tests;
