//! Knocks and wakes. A wake needs no policy and no sight: a packet for a sleeper is reason enough.

use dormouse_model::plant::{Plant, planted};
use dormouse_model::{Attempt, State, WakeCause, WakeEnd, WorkloadId};

use super::{Engine, Turn};
use crate::effect::{CancelWhy, Effect};
use crate::input::Knock;
use crate::roster::Place;
use crate::workload::{self, Act, Replies, WakeTries};

impl Engine {
    pub(super) fn knocked(&mut self, id: WorkloadId, knock: Knock, turn: &mut Turn<'_>) {
        self.counters.knocks += 1;
        let Some(place) = self.roster.find(id) else {
            self.counters.knocks_unknown += 1;
            return;
        };
        self.note_knock(place, knock, turn);
        self.call(place, WakeCause::Knock, turn);
        let why = match knock {
            Knock::Inbound => CancelWhy::Knock,
            Knock::Reply => CancelWhy::Reply,
        };
        self.settle(place, why, turn);
    }

    /// What a knock says about idle time. Somebody who talks to it ends the countdown; an answer to the
    /// guest does not, but the next try waits, or a guest that asks the world something every second
    /// would be stopped and started every second.
    fn note_knock(&mut self, place: Place, knock: Knock, turn: &mut Turn<'_>) {
        let first = self.config.reply_retry_first;
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let going = match workload.act {
            Act::SleepQueued { .. } | Act::Confirming { .. } | Act::Sleeping { cancelled: None, .. } => true,
            // One that was taken back already has been put off: the kernel repeats its knocks.
            Act::Rest
            | Act::Sleeping {
                cancelled: Some(_), ..
            }
            | Act::WakeQueued { .. }
            | Act::Waking { .. }
            | Act::WakeBackoff { .. } => false,
        };
        match knock {
            Knock::Inbound => {
                workload.last_inbound = Some(turn.wall);
                if going || workload.is_put_to_sleep() || workload.view.state == State::Sleeping {
                    workload.replies = Replies::default();
                    workload.restart_countdown(turn.now, turn.wall);
                }
            }
            Knock::Reply if going => workload.put_off(turn.now, first),
            Knock::Reply => {}
        }
    }

    /// Somebody wants the workload awake, by a packet or by a call: it is woken, or what is wanted is
    /// kept until it can be, or it is on its way already.
    pub(super) fn call(&mut self, place: Place, cause: WakeCause, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        match workload.act {
            Act::Sleeping { .. } => workload.kept = workload.kept.or(Some(cause)),
            // It was woken and fell asleep again before the end of that wake was told: not this wake's.
            Act::Waking { seen_awake: true, .. } if !workload::is_awake(workload.view.state) => {
                workload.kept = workload.kept.or(Some(cause));
            }
            Act::WakeQueued { .. } | Act::Waking { .. } | Act::WakeBackoff { .. } => {
                self.counters.knocks_while_waking += 1;
                if planted(Plant::DoubleWake) {
                    let id = workload.view.id;
                    let attempt = self.next_attempt();
                    turn.out.push(Effect::RequestWake { id, attempt, cause });
                }
            }
            Act::Rest | Act::SleepQueued { .. } | Act::Confirming { .. } => match workload.view.state {
                State::Standby | State::Dozing => self.want_wake(place, cause, turn),
                // A caller's sleep runs to its commit; what waits is served after it. A caller's wake may
                // fail; what waits is then served too.
                State::Sleeping => workload.kept = workload.kept.or(Some(cause)),
                State::Waking => {
                    self.counters.knocks_while_waking += 1;
                    workload.kept = workload.kept.or(Some(cause));
                }
                State::Running
                | State::Stopped
                | State::Starting
                | State::Initializing
                | State::Stopping
                | State::Failed
                | State::Deleting => self.counters.knocks_ignored += 1,
            },
        }
    }

    /// Queues a wake. After giving up, no sooner than the longest pause after the last failure.
    pub(super) fn want_wake(&mut self, place: Place, cause: WakeCause, turn: &mut Turn<'_>) {
        if self.stopping {
            // The next daemon finds the waiting packet in the neighbour table.
            return;
        }
        self.rest(place);
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.wake.cause = cause;
        if let Some(gave_up) = workload.wake.gave_up.take() {
            workload.wake.failed = 0;
            let at = gave_up.plus(self.config.wake_retry.most);
            if at > turn.now {
                workload.act = Act::WakeBackoff { at };
                return self.settle(place, CancelWhy::NotDue, turn);
            }
        }
        let ticket = self.wakes.wait(place);
        workload.act = Act::WakeQueued { ticket };
        self.admit(turn);
        self.settle(place, CancelWhy::NotDue, turn);
    }

    /// A slot is free for this wake.
    pub(super) fn request_wake(&mut self, place: Place, turn: &mut Turn<'_>) {
        let attempt = self.next_attempt();
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.act = Act::Waking {
            attempt,
            seen_awake: false,
        };
        let (id, cause) = (workload.view.id, workload.wake.cause);
        self.counters.wakes_requested += 1;
        turn.out.push(Effect::RequestWake { id, attempt, cause });
        self.settle(place, CancelWhy::NotDue, turn);
    }

    pub(super) fn wake_ended(&mut self, id: WorkloadId, attempt: Attempt, end: WakeEnd, turn: &mut Turn<'_>) {
        let waking = |act: &Act| match act {
            Act::Waking { attempt, .. } => Some(*attempt),
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Confirming { .. }
            | Act::Sleeping { .. }
            | Act::WakeQueued { .. }
            | Act::WakeBackoff { .. } => None,
        };
        let Some(place) = self.outcome(id, attempt, waking) else {
            return;
        };
        let Some(workload) = self.roster.get(place) else {
            return;
        };
        let Act::Waking { seen_awake, .. } = workload.act else {
            return;
        };
        self.rest(place);
        match end {
            WakeEnd::Running => self.woken(place, seen_awake, turn),
            WakeEnd::StillAsleep { why } => self.still_asleep(place, why, turn),
            WakeEnd::Failed { why } => {
                self.counters.wakes_failed += 1;
                if let Some(workload) = self.roster.get_mut(place) {
                    workload.last_failure = Some(why);
                }
                self.moved_from_sleep(place, State::Failed, seen_awake, turn);
            }
            WakeEnd::Refused { state } => self.wake_refused(place, state, turn),
            WakeEnd::Gone => {
                self.counters.wakes_failed += 1;
                self.forget(place);
            }
        }
        self.settle(place, CancelWhy::NotDue, turn);
    }

    /// It runs: one whole idle timeout before it may sleep again.
    fn woken(&mut self, place: Place, seen_awake: bool, turn: &mut Turn<'_>) {
        self.counters.wakes_succeeded += 1;
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.wake = WakeTries::NONE;
        workload.last_failure = None;
        workload.restart_countdown(turn.now, turn.wall);
        self.moved_from_sleep(place, State::Running, seen_awake, turn);
    }

    /// The end of a wake says that the workload is in `state`. A state that is newer than this outcome
    /// stands.
    fn moved_from_sleep(&mut self, place: Place, state: State, seen_awake: bool, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get(place) else {
            return;
        };
        let now = workload.view.state;
        let older = !seen_awake && (workload::sleeps(now) || now == State::Waking);
        self.moved(place, if older { state } else { now }, turn);
    }

    /// It failed and can be tried again. The pause doubles; after enough failures only a new knock
    /// tries again, because by then trying does not help and may harm the host.
    fn still_asleep(&mut self, place: Place, why: String, turn: &mut Turn<'_>) {
        self.counters.wakes_failed += 1;
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.last_failure = Some(why);
        workload.kept = None;
        workload.view.state = match workload.view.state {
            State::Waking => State::Standby,
            state => state,
        };
        if !workload::sleeps(workload.view.state) || self.stopping {
            return;
        }
        workload.wake.failed = workload.wake.failed.saturating_add(1);
        if workload.wake.failed >= self.config.wake_tries {
            workload.wake.gave_up = Some(turn.now);
            self.counters.wakes_given_up += 1;
        } else {
            let at = turn.now.plus(self.config.wake_retry.after(workload.wake.failed));
            workload.act = Act::WakeBackoff { at };
        }
    }

    /// Its state did not allow it. Where it is says what becomes of the packet.
    fn wake_refused(&mut self, place: Place, state: State, turn: &mut Turn<'_>) {
        if workload::sleeps(state) {
            // Asleep and refused makes no sense to us; it is tried again like a failure.
            return self.still_asleep(place, format!("refused in state {state}"), turn);
        }
        self.counters.wakes_failed += 1;
        if let Some(workload) = self.roster.get_mut(place) {
            workload.kept = Some(workload.wake.cause);
        }
        self.moved(place, state, turn);
    }
}
