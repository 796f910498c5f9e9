//! What is left to do in the background: begun when nothing else runs, begun again later when it failed,
//! and given up until something else happens to the workload when it failed too often.
//!
//! ```text
//!              due, nothing runs              done
//!   chore ───────────────────────▶ its plan ───────▶ the next one, if there is another
//!     ▲                              │ failed
//!     └── a pause, which doubles ◀───┘ chore_tries times; then not before the next sleep, wake or daemon
//! ```

use dormouse_model::{MonoTime, State, WakeEnd};

use super::plan::{Kind, Plan};
use super::{Effect, Kept, Machine, Outcome, Phase, Rest, Settled, SpillPolicy, Wanted};

impl Machine {
    /// The chore that comes first; `None` when nothing is left to do.
    fn chore(&self) -> Option<Plan> {
        match self.rest {
            Rest::Awake => (self.write_unknown && self.process.is_some()).then_some(Plan::NoteReady),
            // Before all else: nothing is done to an image while a process may have it.
            Rest::Asleep if self.owed => Some(Plan::Leftover),
            Rest::Asleep if self.lost.is_some() => self.write_unknown.then_some(Plan::Amend),
            Rest::Asleep => {
                let image = self.image?;
                // A copy may take the place of one that a record still names: the record first.
                if self.write_unknown || self.record.phase != (Phase::Standby { image }) {
                    return Some(Plan::Amend);
                }
                match image.kept {
                    Kept::Resident { .. } => {
                        (self.settings.spill == SpillPolicy::Spill).then_some(Plan::Spill)
                    }
                    Kept::Spilled { .. } => {
                        let settled = image.settled != Settled::Open && image.boot == self.settings.boot;
                        (!settled).then_some(Plan::Settle)
                    }
                }
            }
            Rest::Deleting => Some(Plan::Delete),
            Rest::Stopped => self.owed.then_some(Plan::Stop),
            Rest::Failed(_) | Rest::Gone => None,
        }
    }

    /// `plan` is about to begin: no chore is due meanwhile, and what is no chore is a new occasion for all.
    pub(super) const fn before_chores(&mut self, plan: Plan) {
        self.chore_at = None;
        match plan {
            Plan::Spill
            | Plan::Settle
            | Plan::Amend
            | Plan::Leftover
            | Plan::Greet
            | Plan::NoteReady
            | Plan::Stop
            | Plan::Delete => {}
            Plan::Start
            | Plan::Sleep
            | Plan::Doubt
            | Plan::Recommit
            | Plan::Unsleep
            | Plan::LetGo
            | Plan::Forget
            | Plan::ColdBoot
            | Plan::Release
            | Plan::Wake
            | Plan::Unwake
            | Plan::Revive
            | Plan::Readopt
            | Plan::Bury => self.chore_failures = 0,
        }
    }

    /// `plan` has ended well: begins the chore that follows. One that asks for itself again has not done what
    /// it is for, and waits.
    pub(super) fn next_chore_after(&mut self, now: MonoTime, plan: Plan, out: &mut Vec<Effect>) {
        match self.chore() {
            Some(next) if next != plan => {
                self.chore_failures = 0;
                self.begin(now, next, out);
            }
            Some(_) => self.put_off(now),
            None => self.chore_failures = 0,
        }
    }

    /// A chore failed, or one was tried often enough in the foreground: it is begun again later.
    pub(super) fn put_off(&mut self, now: MonoTime) {
        let limits = &self.settings.limits;
        if self.chore().is_none() || self.chore_failures >= limits.chore_tries {
            self.chore_failures = 0;
            return;
        }
        let pause = limits
            .chore_pause
            .saturating_mul(1 << self.chore_failures.min(16));
        self.chore_at = Some(now.plus(pause.min(limits.chore_pause_max)));
        self.chore_failures += 1;
    }

    /// Nothing runs and a deadline has come: perhaps that of a chore.
    pub(super) fn chore_due(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        if self.chore_at.is_some_and(|at| at <= now) {
            self.chore_at = None;
            if let Some(plan) = self.chore() {
                // A stop of what has stopped clears: nothing is recorded anew.
                let at = usize::from(plan == Plan::Stop);
                self.begin_at(now, plan, at, out);
            }
        }
    }

    /// Whether what runs is a stop of what has no guest and that can be left as it is: it has not recorded that it
    /// began, or there is nothing to stop and only leftovers to clear.
    pub(super) fn stops_at_rest(&self) -> bool {
        let Some((course, kind)) = self.current() else {
            return false;
        };
        course.plan == Plan::Stop
            && match self.stop_from {
                State::Stopped => true,
                State::Standby | State::Failed => kind == Kind::WriteStopping,
                State::Starting
                | State::Initializing
                | State::Running
                | State::Dozing
                | State::Sleeping
                | State::Waking
                | State::Stopping
                | State::Deleting => false,
            }
    }

    /// Such a stop cannot go on: it is as it was, and what may be left of a process is owed.
    pub(super) fn unstop(&mut self, now: MonoTime, why: String, out: &mut Vec<Effect>) {
        self.course = None;
        // The record may say that a stop was begun, which the next daemon would finish.
        self.write_unknown = self.rest == Rest::Asleep;
        self.owed |= matches!(self.rest, Rest::Asleep | Rest::Stopped);
        self.settle(Wanted::Stop, &Outcome::Failed { why }, out);
        if !self.take_turn(now, out) {
            self.put_off(now);
        }
    }

    /// What may be left of a process could not be ended. What was committed is kept: it is a sleeper, and this
    /// is done later, at the latest before a wake.
    pub(super) fn owe(&mut self, now: MonoTime, plan: Plan, why: String, out: &mut Vec<Effect>) {
        self.owed = true;
        self.process = None;
        self.wake_after = None;
        if plan != Plan::Unwake {
            self.settle(Wanted::Wake, &Outcome::Wake(WakeEnd::StillAsleep { why }), out);
        }
        self.asleep(now, plan, out);
    }
}
