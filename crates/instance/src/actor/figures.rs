//! How long sleeps and wakes took, and how many there were. Pure.

use dormouse_model::{MonoTime, State};

use crate::machine::{Phase, Request, Step};
use crate::view::InstanceView;

/// When the sleep and the wake were asked for that are under way.
#[derive(Debug, Default)]
pub(super) struct Figures {
    sleep: Option<MonoTime>,
    wake: Option<MonoTime>,
}

impl Figures {
    /// A request was accepted that had been made at `at`.
    pub(super) fn asked(&mut self, request: Request, at: MonoTime) {
        match request {
            Request::Sleep { .. } => (self.sleep, self.wake) = (Some(at), None),
            // A packet that knocked before is who waits.
            Request::Wake { .. } => {
                self.wake.get_or_insert(at);
            }
            Request::Start | Request::Stop { .. } | Request::CancelSleep { .. } | Request::Delete { .. } => {}
        }
    }

    /// A packet knocked in `state`. One that comes while a sleep runs to its commit is waited for until
    /// the wake right after.
    pub(super) fn knocked(&mut self, state: State, now: MonoTime) {
        if state == State::Sleeping {
            self.wake.get_or_insert(now);
        }
    }

    /// `step` succeeded in `state`: the state tells which plan it belonged to.
    pub(super) fn step_done(&mut self, step: &Step, state: State, now: MonoTime, view: &mut InstanceView) {
        match (step, state) {
            (Step::Write(record), State::Sleeping) if matches!(record.phase, Phase::Standby { .. }) => {
                view.standbys += 1;
                view.last_commit = self.sleep.map(|asked| now.since(asked));
            }
            (Step::LetGo, State::Sleeping) => {
                if let Some(asked) = self.sleep.take() {
                    view.last_standby = Some(now.since(asked));
                }
            }
            (Step::Open, State::Waking) => {
                view.wakes += 1;
                if let Some(asked) = self.wake.take() {
                    view.last_wake = Some(now.since(asked));
                }
            }
            // A sleep was taken back: nothing slept, so nothing woke.
            (Step::Open, State::Sleeping) => *self = Self::default(),
            (_, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{BootId, Expected, Kept, MemoryImage, Record, Settled};
    use crate::record::tests::remembered;
    use dormouse_model::{Generation, SleepTrigger, WakeCause};
    use std::time::Duration;

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_boot(Duration::from_millis(millis))
    }

    fn standby(kept: Kept) -> Step {
        let image = MemoryImage {
            generation: Generation(1),
            boot: BootId(1),
            kept,
            expected: Expected::default(),
            settled: Settled::Open,
        };
        Step::Write(Record {
            phase: Phase::Standby { image },
            generation: Generation(1),
        })
    }

    const SLEEP: Request = Request::Sleep {
        trigger: SleepTrigger::Caller,
    };
    const WAKE: Request = Request::Wake {
        cause: WakeCause::Caller,
    };

    #[test]
    fn sleeps_and_wakes_are_counted_where_they_end() {
        let (mut figures, mut view) = (Figures::default(), remembered().view);
        let before = (view.standbys, view.wakes);
        figures.asked(SLEEP, at(10));
        figures.step_done(
            &standby(Kept::Resident { inode: 1 }),
            State::Sleeping,
            at(15),
            &mut view,
        );
        figures.knocked(State::Sleeping, at(16));
        figures.step_done(&Step::LetGo, State::Sleeping, at(30), &mut view);
        // The spill's record is no second standby.
        figures.step_done(
            &standby(Kept::Spilled { inode: 2 }),
            State::Standby,
            at(40),
            &mut view,
        );
        figures.asked(WAKE, at(50));
        figures.step_done(&Step::Open, State::Waking, at(70), &mut view);
        assert_eq!((view.standbys, view.wakes), (before.0 + 1, before.1 + 1));
        let millis = |duration: Option<Duration>| duration.map(|duration| duration.as_millis());
        assert_eq!(millis(view.last_commit), Some(5));
        assert_eq!(millis(view.last_standby), Some(20));
        assert_eq!(millis(view.last_wake), Some(54), "since the knock");
    }

    #[test]
    fn a_sleep_that_was_taken_back_is_neither() {
        let (mut figures, mut view) = (Figures::default(), remembered().view);
        let before = view.clone();
        figures.asked(SLEEP, at(10));
        figures.knocked(State::Sleeping, at(11));
        figures.step_done(&Step::Open, State::Sleeping, at(12), &mut view);
        assert_eq!(view, before);
        // Nor does the next one begin with what was left of it.
        figures.asked(SLEEP, at(100));
        figures.step_done(&Step::LetGo, State::Sleeping, at(101), &mut view);
        figures.asked(WAKE, at(200));
        figures.step_done(&Step::Open, State::Waking, at(203), &mut view);
        assert_eq!(view.last_wake, Some(Duration::from_millis(3)));
    }
}
