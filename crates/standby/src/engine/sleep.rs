//! The way to sleep: confirm, ask, and what takes either back. Also holds.

use std::fmt;
use std::time::Duration;

use dormouse_model::error::{Fault, Kind};
use dormouse_model::{Attempt, MonoTime, SleepEnd, StandbyPolicy, State, WakeCause, WallTime, WorkloadId};

use super::observe::Origin;
use super::{Engine, Turn};
use crate::effect::{CancelWhy, Effect};
use crate::input::ConfirmAnswer;
use crate::roster::Place;
use crate::workload::{self, Act, LONGEST_HOLD, Replies, Stamp};

impl Engine {
    /// A slot is free for this workload: the kernel is asked first. With the slot in hand, not before,
    /// so that the answer is young when the sleep begins.
    pub(super) fn confirm(&mut self, place: Place, turn: &mut Turn<'_>) {
        let attempt = self.next_attempt();
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let id = workload.view.id;
        workload.act = Act::Confirming {
            attempt,
            until: turn.now.plus(self.config.confirm_timeout),
        };
        self.counters.confirms_requested += 1;
        turn.out.push(Effect::ConfirmIdle { id, attempt });
        self.settle(place, CancelWhy::NotDue, turn);
    }

    pub(super) fn idle_confirmed(
        &mut self,
        id: WorkloadId,
        attempt: Attempt,
        answer: ConfirmAnswer,
        turn: &mut Turn<'_>,
    ) {
        let confirming = |act: &Act| match act {
            Act::Confirming { attempt, .. } => Some(*attempt),
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Sleeping { .. }
            | Act::WakeQueued { .. }
            | Act::Waking { .. }
            | Act::WakeBackoff { .. } => None,
        };
        let Some(place) = self.outcome(id, attempt, confirming) else {
            return;
        };
        match answer {
            // Whatever made it false in between ended the attempt, so this answer would be stale.
            ConfirmAnswer::Idle => self.request_sleep(place, turn),
            ConfirmAnswer::Live { flows } => {
                self.counters.confirms_live += 1;
                // The first that counts ends the confirm. The events did not bring it: what else did they
                // not bring?
                for flow in &flows {
                    self.flow_seen(flow, Origin::Listing, turn);
                }
                self.want_resync(turn.now);
                self.restart(place, turn);
            }
            ConfirmAnswer::Unsure { why } => self.unsure(place, why, turn),
        }
    }

    /// What cannot be told counts as busy: the whole countdown again.
    pub(super) fn unsure(&mut self, place: Place, why: String, turn: &mut Turn<'_>) {
        self.counters.confirms_unsure += 1;
        if let Some(workload) = self.roster.get_mut(place) {
            workload.last_failure = Some(why);
        }
        self.restart(place, turn);
    }

    /// Back to the start of the countdown, or to being awake when somebody came.
    fn restart(&mut self, place: Place, turn: &mut Turn<'_>) {
        self.rest(place);
        if let Some(workload) = self.roster.get_mut(place) {
            workload.restart_countdown(turn.now, turn.wall);
        }
        self.settle(place, CancelWhy::NotDue, turn);
    }

    fn request_sleep(&mut self, place: Place, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let Act::Confirming { attempt, .. } = workload.act else {
            return;
        };
        let id = workload.view.id;
        let until = turn.now.plus(self.config.sleep_timeout);
        workload.act = Act::Sleeping {
            attempt,
            until,
            cancelled: None,
            seen_asleep: false,
        };
        self.counters.sleeps_requested += 1;
        turn.out.push(Effect::RequestSleep { id, attempt });
        self.settle(place, CancelWhy::NotDue, turn);
    }

    pub(super) fn sleep_ended(
        &mut self,
        id: WorkloadId,
        attempt: Attempt,
        end: SleepEnd,
        turn: &mut Turn<'_>,
    ) {
        let sleeping = |act: &Act| match act {
            Act::Sleeping { attempt, .. } => Some(*attempt),
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Confirming { .. }
            | Act::WakeQueued { .. }
            | Act::Waking { .. }
            | Act::WakeBackoff { .. } => None,
        };
        let Some(place) = self.outcome(id, attempt, sleeping) else {
            return;
        };
        let Some(workload) = self.roster.get(place) else {
            return;
        };
        let Act::Sleeping {
            cancelled,
            seen_asleep,
            ..
        } = workload.act
        else {
            return;
        };
        self.rest(place);
        match end {
            SleepEnd::Committed => self.committed(place, seen_asleep, turn),
            SleepEnd::Interrupted => {
                self.counters.sleeps_interrupted += 1;
                self.came_back(place, cancelled, None, turn);
            }
            SleepEnd::Failed { why } => {
                self.counters.sleeps_failed += 1;
                if let Some(workload) = self.roster.get_mut(place) {
                    workload.last_failure = Some(why);
                }
                self.came_back(place, None, None, turn);
            }
            SleepEnd::Refused { state } => {
                self.counters.sleeps_failed += 1;
                self.came_back(place, None, Some(state), turn);
            }
            SleepEnd::Gone => {
                self.counters.sleeps_failed += 1;
                self.forget(place);
            }
        }
    }

    /// It sleeps. Whatever came too late to stop it wakes it: the end of a sleep is an input like any
    /// other and does not undo what was learned meanwhile.
    fn committed(&mut self, place: Place, seen_asleep: bool, turn: &mut Turn<'_>) {
        self.counters.sleeps_committed += 1;
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.last_failure = None;

        // A state that is newer than this outcome stands.
        let older = !seen_asleep && workload::runs(workload.view.state);
        let state = if older {
            State::Standby
        } else {
            workload.view.state
        };
        self.moved(place, state, turn);
        self.settle(place, CancelWhy::NotDue, turn);
    }

    /// The sleep is over without a commit, and the workload runs, or is in the state `met`.
    fn came_back(
        &mut self,
        place: Place,
        cancelled: Option<CancelWhy>,
        met: Option<State>,
        turn: &mut Turn<'_>,
    ) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        match cancelled {
            // Nobody here took it back, or it did not work: the whole countdown again.
            None | Some(CancelWhy::Overdue) => workload.restart_countdown(turn.now, turn.wall),
            // The facts that took it back have set the countdown.
            Some(
                CancelWhy::InboundFlow
                | CancelWhy::Knock
                | CancelWhy::Reply
                | CancelWhy::Hold
                | CancelWhy::Blind
                | CancelWhy::NotDue,
            ) => {}
        }
        let state = match (met, workload.view.state) {
            (Some(met), _) => met,
            (None, State::Sleeping) => State::Running,
            (None, state) => state,
        };
        self.moved(place, state, turn);
        self.settle(place, CancelWhy::NotDue, turn);
    }

    /// A caller asks that the workload stay awake for one idle timeout from now. The newest hold
    /// replaces the one before, also when it ends earlier; the idle time goes on beside it. Takes effect
    /// with this call: nothing is waited for, least of all the record, which is one of the effects.
    ///
    /// A sleep that has not been committed is taken back; one that has, or that a caller asked for, is
    /// followed by a wake.
    ///
    /// # Errors
    /// When the workload is not known, or the engine stops and could not keep its word.
    pub fn hold(
        &mut self,
        now: MonoTime,
        wall: WallTime,
        id: WorkloadId,
        out: &mut Vec<Effect>,
    ) -> Result<Held, HoldError> {
        let turn = &mut self.turn(now, wall, out);
        let held = self.hold_until_timeout(id, None, turn);
        self.admit(turn);
        held
    }

    /// As [`Engine::hold`], for `duration` instead of one idle timeout; at most [`crate::LONGEST_HOLD`], which a
    /// longer one is cut to. None at all ends a hold.
    ///
    /// # Errors
    /// As [`Engine::hold`].
    pub fn hold_for(
        &mut self,
        now: MonoTime,
        wall: WallTime,
        id: WorkloadId,
        duration: Duration,
        out: &mut Vec<Effect>,
    ) -> Result<Held, HoldError> {
        let turn = &mut self.turn(now, wall, out);
        let held = self.hold_until_timeout(id, Some(duration), turn);
        self.admit(turn);
        held
    }

    pub(super) fn hold_until_timeout(
        &mut self,
        id: WorkloadId,
        duration: Option<Duration>,
        turn: &mut Turn<'_>,
    ) -> Result<Held, HoldError> {
        let place = self.roster.find(id).ok_or(HoldError::Unknown { id })?;
        let workload = self.roster.get_mut(place).ok_or(HoldError::Unknown { id })?;
        if self.stopping {
            return Err(HoldError::Stopping { id });
        }
        let Some(idle_timeout) = workload.policy().map(StandbyPolicy::idle_timeout) else {
            return Ok(Held::NothingToHold);
        };
        if !workload.is_followed() || !workload::keeps_hold(workload.view.state) {
            return Ok(Held::NothingToHold);
        }
        let timeout = duration.map_or(idle_timeout, |asked| asked.min(LONGEST_HOLD));
        let until = workload::wall_after(turn.wall, timeout);
        workload.hold = Some(Stamp {
            mono: turn.now.plus(timeout),
            wall: until,
        });
        workload.replies = Replies::default();
        self.counters.holds += 1;
        let held = if workload.view.state == State::Running && !workload.is_put_to_sleep() {
            Held::Awake { until }
        } else {
            self.call(place, WakeCause::Caller, turn);
            Held::ComesBack { until }
        };
        self.settle(place, CancelWhy::Hold, turn);
        Ok(held)
    }
}

/// What a hold did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It runs and stays awake.
    Awake {
        /// Until when.
        until: WallTime,
    },
    /// It sleeps, or is on its way to sleep or back; it will run as soon as may be, and stay awake.
    ComesBack {
        /// Until when.
        until: WallTime,
    },
    /// It does not sleep by itself as it is now, so there is nothing to hold. No error: whoever holds
    /// wants it awake, not to know its policy.
    NothingToHold,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awake { until } => write!(f, "awake until {until}"),
            Self::ComesBack { until } => write!(f, "coming back, then awake until {until}"),
            Self::NothingToHold => f.write_str("nothing to hold"),
        }
    }
}

/// Why a hold was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// No such workload.
    #[error("holding {id} awake: the engine does not know it")]
    Unknown {
        /// Who.
        id: WorkloadId,
    },
    /// The daemon stops.
    #[error("holding {id} awake: the engine is stopping")]
    Stopping {
        /// Who.
        id: WorkloadId,
    },
}

impl Fault for HoldError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unknown { .. } => Kind::NotFound,
            Self::Stopping { .. } => Kind::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "STANDBY_HOLD_UNKNOWN",
            Self::Stopping { .. } => "STANDBY_HOLD_STOPPING",
        }
    }
}
