//! What is left to do in the background: begun when nothing else runs, and begun again later when it failed.
//!
//! ```text
//!              due, nothing runs              done
//!   chore ───────────────────────▶ its plan ───────▶ the next one, if there is another
//!     ▲                              │ failed
//!     └── a pause, which doubles ◀───┘ one of the image: chore_tries times; then not before the next sleep, wake
//!                                      or daemon. One that sets the record right, or ends what a stop or a
//!                                      removal left: for ever
//! ```
//!
//! The pause grows until no chore is left, whichever of them fails: a copy of gigabytes whose record is in doubt
//! each time is not made each second. What a record says wrongly is worth a write each longest pause for as long
//! as it takes: the next daemon believes it, and drops a whole image or ends a guest that runs.

use dormouse_model::{MonoTime, State, WakeEnd};

use super::plan::{Kind, Plan};
use super::{Effect, Kept, Machine, Outcome, Phase, Rest, Settled, SpillPolicy, Wanted};

impl Machine {
    /// The chore that comes first; `None` when nothing is left to do.
    fn chore(&self) -> Option<Plan> {
        match self.rest {
            Rest::Awake => {
                let process = self.process?;
                let readiness = self.readiness;
                let recorded = self.record.phase == Phase::Running { process, readiness };
                (self.write_unknown || !recorded).then_some(Plan::NoteReady)
            }
            // By turns, when the record is wrong too: neither waits for the other to succeed.
            Rest::Asleep
                if self.owed && (!self.is_misrecorded() || self.chore_failures.is_multiple_of(2)) =>
            {
                Some(Plan::Leftover)
            }
            // A copy may take the place of one that a record still names: the record first.
            Rest::Asleep if self.is_misrecorded() => Some(Plan::Amend),
            Rest::Asleep => {
                let image = self.image?;
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

    /// Of a sleeper: whether its record may say something else than what it is.
    fn is_misrecorded(&self) -> bool {
        let recorded = match (&self.record.phase, self.image) {
            (Phase::Cold { .. }, _) => self.lost.is_some(),
            (Phase::Standby { image }, known) => self.lost.is_none() && known == Some(*image),
            (
                Phase::Stopped
                | Phase::Starting
                | Phase::Running { .. }
                | Phase::Stopping
                | Phase::Failed { .. }
                | Phase::Deleting,
                _,
            ) => false,
        };
        self.write_unknown || !recorded
    }

    /// Whether `plan` was begun as often as it may be until something else happens to the workload.
    const fn is_spent(&self, plan: Plan) -> bool {
        is_bounded(plan) && self.chores_begun > self.settings.limits.chore_tries
    }

    /// `plan` is about to begin: no chore is due meanwhile, and what is no chore is a new occasion for all.
    pub(super) const fn before_chores(&mut self, plan: Plan) {
        self.chore_at = None;
        match Chore::of(plan) {
            Some(Chore::Bounded) => self.chores_begun = self.chores_begun.saturating_add(1),
            Some(Chore::Lasting) => {}
            None => self.forget_chores(),
        }
    }

    const fn forget_chores(&mut self) {
        (self.chore_failures, self.chores_begun) = (0, 0);
    }

    /// `plan` has ended well: begins the chore that follows. One that asks for itself again has not done what
    /// it is for, and waits.
    pub(super) fn next_chore_after(&mut self, now: MonoTime, plan: Plan, out: &mut Vec<Effect>) {
        let next = self.chore();
        if is_bounded(plan) && next != Some(plan) {
            // The others have their own tries.
            self.chores_begun = 0;
        }
        match next {
            Some(next) if self.is_spent(next) => self.forget_chores(),
            Some(next) if next != plan => self.begin(now, next, out),
            Some(_) => self.put_off(now),
            None => self.forget_chores(),
        }
    }

    /// A chore failed, or one was tried often enough in the foreground: it is begun again later.
    pub(super) fn put_off(&mut self, now: MonoTime) {
        let limits = &self.settings.limits;
        let spent = self.chore().is_none_or(|chore| self.is_spent(chore));
        // By turns, what is spent is not all that is left.
        let misrecorded = self.rest == Rest::Asleep && self.is_misrecorded();
        if spent && !misrecorded {
            self.forget_chores();
            return;
        }
        let pause = limits
            .chore_pause
            .saturating_mul(1 << self.chore_failures.min(16));
        self.chore_at = Some(now.plus(pause.min(limits.chore_pause_max)));
        self.chore_failures = self.chore_failures.saturating_add(1);
    }

    /// What runs in the background is not waited for any more. Nobody learns then whether a note of readiness
    /// was made: it is made again.
    pub(super) fn leave_background(&mut self, out: &mut Vec<Effect>) {
        let Some(plan) = self
            .course
            .map(|course| course.plan)
            .filter(|plan| plan.is_background())
        else {
            return;
        };
        // What was being written may land or not.
        self.write_unknown |= self.current().is_some_and(|(_, kind)| {
            matches!(kind, Kind::WriteSpilled | Kind::WriteImage | Kind::UnmarkConsumed)
        });
        self.cut_short(out);
        if plan == Plan::NoteReady
            && let Some(before) = self.phase_before.take()
        {
            self.record.phase = before;
        }
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

/// What becomes of a chore that fails again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chore {
    /// It may be left undone: the workload is whole without it.
    Bounded,
    /// It is begun again for as long as it takes.
    Lasting,
}

impl Chore {
    /// `None` for what is no chore.
    const fn of(plan: Plan) -> Option<Self> {
        match plan {
            Plan::Spill | Plan::Settle | Plan::Leftover => Some(Self::Bounded),
            Plan::Amend | Plan::Greet | Plan::NoteReady | Plan::Stop | Plan::Delete => Some(Self::Lasting),
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
            | Plan::Bury => None,
        }
    }
}

const fn is_bounded(plan: Plan) -> bool {
    matches!(Chore::of(plan), Some(Chore::Bounded))
}
