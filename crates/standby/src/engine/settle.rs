//! From facts to effects: what is no longer justified is taken back, what changed is written and
//! announced, and the next deadline is set. Also what time alone brings about.

use dormouse_model::{Attempt, MonoTime, WorkloadId};

use super::{Engine, Turn};
use crate::deadline::Alarm;
use crate::effect::{CancelWhy, Effect};
use crate::roster::Place;
use crate::status::{Reason, Status};
use crate::workload::{self, Act, Workload, Writing};

impl Engine {
    /// Brings everything about one workload in line with its facts. `why` is what a sleep that is taken
    /// back will be told.
    pub(super) fn settle(&mut self, place: Place, why: CancelWhy, turn: &mut Turn<'_>) {
        self.withdraw(place, why, turn);
        let unwritten = self.write(place, turn);
        let unannounced = self.announce(place, turn);
        self.arm(place, unwritten || unannounced);
    }

    /// Takes back what is under way and should not be. After the commit there is nothing to take back:
    /// the outcome says what happened, and wakes it if it must.
    fn withdraw(&mut self, place: Place, why: CancelWhy, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        if workload.should_sleep(turn.now, &self.sight) {
            return;
        }
        match &mut workload.act {
            Act::SleepQueued { .. } | Act::Confirming { .. } => self.rest(place),
            Act::Sleeping {
                attempt,
                cancelled: cancelled @ None,
                ..
            } if workload::runs(workload.view.state) => {
                *cancelled = Some(why);
                self.counters.sleeps_cancelled += 1;
                turn.out.push(Effect::CancelSleep {
                    id: workload.view.id,
                    attempt: *attempt,
                    why,
                });
            }
            Act::Rest
            | Act::Sleeping { .. }
            | Act::WakeQueued { .. }
            | Act::Waking { .. }
            | Act::WakeBackoff { .. } => {}
        }
    }

    /// Writes the record when it must be written. Whether it must be later.
    fn write(&mut self, place: Place, turn: &mut Turn<'_>) -> bool {
        let Some(workload) = self.roster.get(place) else {
            return false;
        };
        let record = workload.record();
        let settled = self.stopping
            || workload
                .settles_at(&self.config)
                .is_some_and(|settles_at| settles_at <= turn.now);
        let retry = workload.ledger.retry_at.is_some_and(|at| at <= turn.now);
        let writing = workload.writing(record.as_ref());
        match writing {
            // What failed may have left an older claim on disk: whatever is true now is better.
            Writing::Done | Writing::Later | Writing::Now if retry => {}
            Writing::Done => return false,
            // Nobody knows that it is idle: the end of the next listing comes back here.
            Writing::Later if !workload.is_seen(&self.sight) => return false,
            Writing::Later if !settled => return true,
            Writing::Later | Writing::Now => {}
        }
        let attempt = self.next_attempt();
        let Some(workload) = self.roster.get_mut(place) else {
            return false;
        };
        let ledger = &mut workload.ledger;
        ledger.written = record;
        ledger.attempt = attempt;
        ledger.retry_at = None;
        if writing != Writing::Done {
            ledger.failed = 0;
        }
        self.counters.records_requested += 1;
        turn.out.push(Effect::RecordIdle {
            id: workload.view.id,
            attempt,
            record,
        });
        false
    }

    /// Announces the status when it changed. Whether it must be later.
    fn announce(&mut self, place: Place, turn: &mut Turn<'_>) -> bool {
        let Some(workload) = self.roster.get_mut(place) else {
            return false;
        };
        let verdict = workload.verdict(turn.now, &self.sight, self.stopping);
        match verdict.1 {
            // Lost sight concerns all and is announced once for all. That its time has come lasts until
            // the deadline that is armed for it.
            Reason::Blind | Reason::ObserverError | Reason::ReadyForStandby => return false,
            _ if workload.announced == Some(verdict) => return false,
            _ => {}
        }
        let active_before = workload
            .announced
            .is_some_and(|(status, _)| status == Status::Active);
        if active_before
            && verdict.0 == Status::IdleCountdown
            && workload
                .settles_at(&self.config)
                .is_some_and(|settles_at| settles_at > turn.now)
        {
            return true;
        }
        workload.announced = Some(verdict);
        let (status, reason) = verdict;
        turn.out.push(Effect::Announce {
            id: workload.view.id,
            status,
            reason,
        });
        false
    }

    /// Sets the workload's one deadline to the earliest of what it waits for.
    fn arm(&mut self, place: Place, settling: bool) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let acting = match workload.act {
            Act::Rest if !self.stopping && workload.is_eligible() && !workload.is_held_blind(&self.sight) => {
                workload.due().map(|(due, _)| due)
            }
            Act::Confirming { until, .. }
            | Act::Sleeping {
                until,
                cancelled: None,
                ..
            } => Some(until),
            Act::WakeBackoff { at } => Some(at),
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Sleeping {
                cancelled: Some(_), ..
            }
            | Act::WakeQueued { .. }
            | Act::Waking { .. } => None,
        };
        let settles_at = if settling {
            workload.settles_at(&self.config)
        } else {
            None
        };
        let next = [acting, settles_at, workload.ledger.retry_at]
            .into_iter()
            .flatten()
            .min();
        self.deadlines
            .rearm(Alarm::Workload(place), &mut workload.armed, next);
    }

    /// Does what has come due, earliest first.
    pub(super) fn deadline_reached(&mut self, turn: &mut Turn<'_>) {
        while let Some(alarm) = self.deadlines.take_due(turn.now) {
            match alarm {
                Alarm::Resync => self.resync_due(turn),
                Alarm::Workload(place) => self.workload_due(place, turn),
            }
        }
    }

    fn workload_due(&mut self, place: Place, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.armed = None;
        let begin = !self.stopping && workload.should_sleep(turn.now, &self.sight);
        match &mut workload.act {
            Act::Rest if begin => {
                let ticket = self.sleeps.wait(place);
                workload.act = Act::SleepQueued { ticket };
                // Before it is announced as waiting, which it may not have to.
                self.admit(turn);
            }
            Act::Confirming { until, .. } if *until <= turn.now => {
                self.unsure(place, "the confirm was not answered in time".to_owned(), turn);
            }
            Act::Sleeping {
                attempt,
                until,
                cancelled: cancelled @ None,
                ..
            } if *until <= turn.now => {
                *cancelled = Some(CancelWhy::Overdue);
                self.counters.sleeps_cancelled += 1;
                let (id, attempt) = (workload.view.id, *attempt);
                turn.out.push(Effect::CancelSleep {
                    id,
                    attempt,
                    why: CancelWhy::Overdue,
                });
            }
            Act::WakeBackoff { at } if *at <= turn.now => {
                let cause = workload.wake.cause;
                self.want_wake(place, cause, turn);
            }
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Confirming { .. }
            | Act::Sleeping { .. }
            | Act::WakeQueued { .. }
            | Act::Waking { .. }
            | Act::WakeBackoff { .. } => {}
        }
        self.settle(place, CancelWhy::NotDue, turn);
    }

    /// A record was not written: it is tried again, a bounded number of times, unless a newer one is on
    /// its way.
    pub(super) fn record_failed(&mut self, id: WorkloadId, attempt: Attempt, turn: &mut Turn<'_>) {
        self.counters.records_failed += 1;
        let Some(place) = self.roster.find(id) else { return };
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let ledger = &mut workload.ledger;
        if ledger.attempt != attempt {
            self.counters.stale_outcomes += 1;
            return;
        }
        ledger.failed = ledger.failed.saturating_add(1);
        if ledger.failed < self.config.record_tries {
            ledger.retry_at = Some(turn.now.plus(self.config.record_retry.after(ledger.failed)));
        }
        self.settle(place, CancelWhy::NotDue, turn);
    }

    /// Asks for a listing soon: at once, unless one was asked for just now.
    pub(super) fn want_resync(&mut self, now: MonoTime) {
        let at = self
            .resync
            .asked
            .map_or(now, |asked| asked.plus(self.config.resync_gap).max(now));
        if self.resync.armed.is_none_or(|armed| armed > at) {
            self.arm_resync(Some(at));
        }
    }

    pub(super) fn arm_resync(&mut self, at: Option<MonoTime>) {
        self.deadlines.rearm(Alarm::Resync, &mut self.resync.armed, at);
    }

    fn resync_due(&mut self, turn: &mut Turn<'_>) {
        self.resync.armed = None;
        if self.stopping {
            return;
        }
        if !self.sight.is_listing() {
            self.resync.asked = Some(turn.now);
            self.counters.resyncs_requested += 1;
            turn.out.push(Effect::RequestResync);
        }
        self.arm_next_resync(turn.now);
    }

    /// The listing that comes by itself after a while: only while somebody's flows are followed. A host whose
    /// workloads all sleep is left alone.
    pub(super) fn arm_next_resync(&mut self, now: MonoTime) {
        let any = self.roster.iter().any(Workload::is_followed_awake);
        self.arm_resync(any.then(|| now.plus(self.config.resync_interval)));
    }

    /// Sees to that listing when the workload at `place` runs and is the first that does.
    pub(super) fn keep_resyncing(&mut self, place: Place, now: MonoTime) {
        let wanted = self.roster.get(place).is_some_and(Workload::is_followed_awake);
        if wanted && self.resync.armed.is_none() && !self.stopping && self.sight.is_clear() {
            self.arm_resync(Some(now.plus(self.config.resync_interval)));
        }
    }

    /// Begins nothing more. What waits is dropped, what runs is awaited, and what was left unwritten
    /// because it was too young is written.
    pub(super) fn shut_down(&mut self, turn: &mut Turn<'_>) {
        self.stopping = true;
        self.arm_resync(None);
        for place in self.roster.places() {
            let Some(workload) = self.roster.get(place) else {
                continue;
            };
            match workload.act {
                Act::SleepQueued { .. }
                | Act::Confirming { .. }
                | Act::WakeQueued { .. }
                | Act::WakeBackoff { .. } => self.rest(place),
                Act::Rest | Act::Sleeping { .. } | Act::Waking { .. } => {}
            }
            self.settle(place, CancelWhy::NotDue, turn);
        }
    }
}
