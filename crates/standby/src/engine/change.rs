//! Workloads that come, change, and go.

use dormouse_model::workload::IdleRecord;
use dormouse_model::{Addresses, StandbyPolicy, State, WorkloadId, WorkloadView};

use super::{Engine, Turn};
use crate::deadline::Alarm;
use crate::effect::CancelWhy;
use crate::roster::Place;
use crate::workload::{self, Act, Replies, WakeTries, Workload};

impl Engine {
    pub(super) fn workload_changed(
        &mut self,
        view: WorkloadView,
        record: Option<IdleRecord>,
        turn: &mut Turn<'_>,
    ) {
        let place = match self.roster.find(view.id) {
            Some(place) => {
                self.update(place, view, turn);
                place
            }
            None => {
                let addresses = view.addresses;
                let workload = Workload::new(view, record, turn.now, turn.wall);
                let Some(place) = self.roster.insert(workload) else {
                    return;
                };
                self.claim(place, addresses, turn);
                place
            }
        };
        self.settle(place, CancelWhy::NotDue, turn);
        self.keep_resyncing(place, turn.now);
        let unseen = self
            .roster
            .get(place)
            .is_some_and(|it| it.is_followed() && !self.sight.covers(it.indexed));
        // A listing that runs, or comes by itself because sight is lost, is waited for: its end looks
        // for workloads that it did not cover.
        if unseen && self.sight.is_clear() && !self.sight.is_listing() {
            self.want_resync(turn.now);
        }
    }

    pub(super) fn workload_gone(&mut self, id: WorkloadId) {
        if let Some(place) = self.roster.find(id) {
            self.forget(place);
        }
    }

    /// Drops a workload and everything that points to it. Its outcomes, if any come, are stale.
    pub(super) fn forget(&mut self, place: Place) {
        self.rest(place);
        let Some(mut gone) = self.roster.remove(place) else {
            return;
        };
        self.deadlines
            .rearm(Alarm::Workload(place), &mut gone.armed, None);
        for key in gone.flows.keys() {
            self.index.forget(key);
        }
        for address in gone.view.addresses.iter().flat_map(Addresses::both) {
            self.index.release(address, place);
        }
    }

    /// Takes over what changed of a known workload.
    fn update(&mut self, place: Place, view: WorkloadView, turn: &mut Turn<'_>) {
        let listing = self.sight.listing();
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let could_sleep = workload.can_ever_sleep();
        let before = std::mem::replace(&mut workload.view, view);
        let state = std::mem::replace(&mut workload.view.state, before.state);
        let after = workload.view.addresses;
        let policy = workload.view.policy.enabled();
        if policy.is_none() {
            workload.hold = None;
        }
        // What was passed over by the old filters is not known: a listing must say.
        if !same_filters(before.policy.enabled(), policy) && workload.indexed.is_some() {
            workload.indexed = Some(listing);
        }
        if before.addresses != after || policy.is_none() {
            for key in workload.flows.keys() {
                self.index.forget(key);
            }
            workload.flows.clear();
        }
        // Nobody counted while it could not sleep.
        if workload.idle.is_none() || (!could_sleep && workload.can_ever_sleep()) {
            workload.restart_countdown(turn.now, turn.wall);
        }
        if before.addresses != after {
            for address in before.addresses.iter().flat_map(Addresses::both) {
                self.index.release(address, place);
            }
            self.claim(place, after, turn);
        }
        if before.state != state {
            self.moved(place, state, turn);
        }
    }

    /// Indexes a workload under its addresses. Who had one of them before is never seen again until its
    /// addresses change: two owners of one address are a defect elsewhere, and the old one must not sleep
    /// on the strength of flows that no longer reach it.
    fn claim(&mut self, place: Place, addresses: Option<Addresses>, turn: &mut Turn<'_>) {
        for address in addresses.iter().flat_map(Addresses::both) {
            let Some(before) = self.index.claim(address, place) else {
                continue;
            };
            self.counters.address_conflicts += 1;
            if let Some(loser) = self.roster.get_mut(before) {
                loser.indexed = None;
            }
            self.settle(before, CancelWhy::Blind, turn);
        }
        if let Some(workload) = self.roster.get_mut(place) {
            workload.indexed = Some(self.sight.listing());
        }
    }

    /// The workload is in `state` now, by a change that was reported or by an outcome that says so.
    pub(super) fn moved(&mut self, place: Place, state: State, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        workload.view.state = state;
        if !workload::runs(state) {
            workload.idle = None;
            workload.replies = Replies::default();
        } else if workload.idle.is_none() {
            // It was not running: one whole idle timeout for whoever it runs for now.
            workload.restart_countdown(turn.now, turn.wall);
        }
        // One that is past means nothing more, and one that stands is the reason of a wake to come.
        let stands = workload::runs(state) || workload.hold.is_some_and(|hold| hold.mono > turn.now);
        if !workload::keeps_hold(state) || !stands {
            workload.hold = None;
        }
        match &mut workload.act {
            Act::Sleeping { seen_asleep, .. } => *seen_asleep |= state == State::Standby,
            Act::Waking { seen_awake, .. } => {
                *seen_awake |= workload::is_awake(state);
            }
            Act::WakeQueued { .. } | Act::WakeBackoff { .. } if !workload::sleeps(state) => {
                // Somebody else moves it. If it ends up asleep again the packet still waits.
                workload.kept = Some(workload.wake.cause);
                self.rest(place);
            }
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Confirming { .. }
            | Act::WakeQueued { .. }
            | Act::WakeBackoff { .. } => {}
        }
        self.serve_kept(place, state, turn);
    }

    /// Wakes for what was kept, once that is possible; drops it once it is moot.
    fn serve_kept(&mut self, place: Place, state: State, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        match workload.act {
            // The end of the attempt decides.
            Act::Sleeping { .. } | Act::Waking { .. } => return,
            Act::Rest
            | Act::SleepQueued { .. }
            | Act::Confirming { .. }
            | Act::WakeQueued { .. }
            | Act::WakeBackoff { .. } => {}
        }
        match state {
            State::Standby | State::Dozing => {
                if let Some(cause) = workload.kept.take() {
                    self.want_wake(place, cause, turn);
                }
            }
            // On the way: it may still fall asleep.
            State::Sleeping | State::Waking => {}
            // Up: the network delivers. Or without a guest: nobody to deliver to.
            State::Running
            | State::Initializing
            | State::Stopped
            | State::Starting
            | State::Stopping
            | State::Failed
            | State::Deleting => {
                workload.kept = None;
                workload.wake = WakeTries::NONE;
            }
        }
    }
}

/// Whether both pass over the same flows.
fn same_filters(before: Option<&StandbyPolicy>, after: Option<&StandbyPolicy>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => {
            before.ignore_sources() == after.ignore_sources() && before.ignore_ports() == after.ignore_ports()
        }
        (None, None) => true,
        (None, Some(_)) | (Some(_), None) => false,
    }
}
