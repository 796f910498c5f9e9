//! Statuses and numbers. Nothing here changes anything.

use dormouse_model::{MonoTime, StandbyPolicy, WallTime, WorkloadId, WorkloadView};

use super::Engine;
use crate::counters::{Census, Counters};
use crate::sight::SightStatus;
use crate::status::{self, Reason, Status, StatusSnapshot};
use crate::workload::{Workload, wall_after};

impl Engine {
    /// What there is to say about a workload; `None` when the engine does not know it.
    #[must_use]
    pub fn status(&self, id: WorkloadId, now: MonoTime, wall: WallTime) -> Option<StatusSnapshot> {
        let workload = self.roster.get(self.roster.find(id)?)?;
        Some(self.snapshot(workload, now.max(self.now), wall))
    }

    /// As [`Engine::status`], also for a workload that the engine does not know yet: then from `view`
    /// alone.
    #[must_use]
    pub fn describe(&self, view: &WorkloadView, now: MonoTime, wall: WallTime) -> StatusSnapshot {
        self.status(view.id, now, wall).unwrap_or_else(|| {
            let obstacle = status::obstacle(view);
            let (status, reason) = obstacle.unwrap_or((Status::Blind, Reason::Blind));
            StatusSnapshot {
                eligible: obstacle.is_none(),
                ..StatusSnapshot::of_view(view, status, reason)
            }
        })
    }

    fn snapshot(&self, workload: &Workload, now: MonoTime, wall: WallTime) -> StatusSnapshot {
        let (status, reason) = workload.verdict(now, &self.sight, self.stopping);
        let eligible = workload.is_eligible();
        let due = workload.due().filter(|_| eligible).map(|(due, _)| due);
        // While sight is lost the countdown stands still, so no time can be named.
        let frozen = workload
            .idle
            .map(|idle| self.sight.unseen(idle.mono, now))
            .unwrap_or_default();
        let remaining = due.map(|due| due.plus(frozen).since(now));
        let seen = workload.is_seen(&self.sight);
        StatusSnapshot {
            eligible,
            active_inbound_count: workload.flows.len(),
            idle_timeout: workload.policy().map(StandbyPolicy::idle_timeout),
            idle_since: workload.idle.map(|idle| idle.wall),
            last_inbound_activity_at: workload.last_inbound,
            next_standby_at: remaining
                .filter(|_| seen)
                .map(|remaining| wall_after(wall, remaining)),
            countdown_remaining: remaining,
            hold_until: workload
                .hold
                .filter(|hold| hold.mono > now)
                .map(|hold| wall_after(wall, hold.mono.since(now))),
            last_failure: workload.last_failure.clone(),
            ..StatusSnapshot::of_view(&workload.view, status, reason)
        }
    }

    /// Whether everything can be seen.
    #[must_use]
    pub fn sight(&self) -> SightStatus {
        self.sight.status()
    }

    /// Totals since the engine was made.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether no sleep and no wake runs: after [`Input::Shutdown`](crate::Input::Shutdown) the shell
    /// may end.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.sleeps.busy() == 0 && self.wakes.busy() == 0
    }

    /// Counts the workloads by status at `now`. Visits all: for scrapes, not for every event.
    #[must_use]
    pub fn census(&self, now: MonoTime) -> Census {
        let mut census = Census {
            sleeps_in_flight: self.sleeps.busy(),
            sleeps_waiting: self.sleeps.waiting(),
            wakes_in_flight: self.wakes.busy(),
            wakes_waiting: self.wakes.waiting(),
            ..Census::default()
        };
        for workload in self.roster.iter() {
            census.workloads += 1;
            census.active_flows += workload.flows.len();
            let (status, _) = workload.verdict(now.max(self.now), &self.sight, self.stopping);
            *match status {
                Status::Active => &mut census.active,
                Status::IdleCountdown => &mut census.idle_countdown,
                Status::ReadyForStandby => &mut census.ready_for_standby,
                Status::StandbyRequested => &mut census.standby_requested,
                Status::Asleep => &mut census.asleep,
                Status::Waking => &mut census.waking,
                Status::Unsupported
                | Status::Disabled
                | Status::Ineligible
                | Status::Blind
                | Status::Error => &mut census.ineligible,
            } += 1;
        }
        census
    }
}
