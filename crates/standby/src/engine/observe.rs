//! Flows and gaps: the observer's stream.

use dormouse_model::{Epoch, Flow, FlowKey, Observation, SightLoss, WakeCause};

use super::{Engine, Turn};
use crate::effect::{CancelWhy, Effect};
use crate::roster::Place;
use crate::sight::SightStatus;
use crate::workload::Replies;

/// How a flow came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The kernel spoke of it: it is traffic of now.
    Event,
    /// A listing has it: it may be as old as it likes.
    Listing,
}

impl Engine {
    pub(super) fn observed(&mut self, observation: &Observation, turn: &mut Turn<'_>) {
        self.counters.observations += 1;
        match observation {
            Observation::FlowOpened(flow) | Observation::FlowChanged(flow) => {
                self.flow_seen(flow, Origin::Event, turn);
            }
            Observation::FlowClosed(key) => self.flow_ended(key, turn),
            Observation::FlowListed(flow) => self.flow_seen(flow, Origin::Listing, turn),
            Observation::SyncBegan { epoch } => self.sync_began(*epoch, turn),
            Observation::SyncDone { epoch } => self.sync_done(*epoch, turn),
            Observation::SightLost { reason } => self.sight_lost(*reason, turn),
        }
    }

    /// A flow exists, in some state. The path of almost every input: one look-up by address, one in the
    /// workload's own set, and nothing more unless the set was empty.
    pub(super) fn flow_seen(&mut self, flow: &Flow, origin: Origin, turn: &mut Turn<'_>) {
        let Some(place) = self.index.at(flow.responder) else {
            self.counters.unknown_destinations += 1;
            return;
        };
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        let Some(policy) = workload.view.policy.enabled() else {
            return;
        };
        if !flow.holds_awake(flow.responder, policy) {
            return self.flow_ended(&flow.key, turn);
        }
        let covered = self.sight.covers(workload.indexed);
        let was_empty = workload.flows.is_empty();
        let new = workload.flows.see(flow.key, self.sight.listing());
        match origin {
            Origin::Event => workload.last_inbound = Some(turn.wall),
            // A listing that finds what the events should have brought: as good as an event. The first
            // listing finds what was there before us, and the record knows better when that was.
            Origin::Listing if new && covered => workload.last_inbound = Some(turn.wall),
            Origin::Listing => workload.last_inbound = workload.last_inbound.or(Some(turn.wall)),
        }
        if was_empty {
            workload.idle = None;
            workload.replies = Replies::default();
            if workload.is_put_to_sleep() {
                // If the commit is faster than the cancel, whoever connects is waiting for it.
                workload.kept = workload.kept.or(Some(WakeCause::Knock));
            }
        }
        let direct = flow.key.destination == flow.responder;
        if new && !(direct && self.index.translated() == 0) {
            self.rehome(flow, place, turn);
        }
        if was_empty {
            self.settle(place, CancelWhy::InboundFlow, turn);
        }
    }

    /// Keeps the index right for a flow that is translated, or whose key was.
    fn rehome(&mut self, flow: &Flow, place: Place, turn: &mut Turn<'_>) {
        if let Some(before) = self.index.holder(&flow.key).filter(|before| *before != place) {
            self.drop_flow(before, &flow.key, turn);
        }
        self.index.hold(flow, place);
    }

    /// A flow is over, or does not count.
    fn flow_ended(&mut self, key: &FlowKey, turn: &mut Turn<'_>) {
        match self.index.holder(key) {
            Some(place) => self.drop_flow(place, key, turn),
            None => self.counters.unknown_destinations += 1,
        }
    }

    fn drop_flow(&mut self, place: Place, key: &FlowKey, turn: &mut Turn<'_>) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        if !workload.flows.end(key) {
            return;
        }
        self.index.forget(key);
        if workload.flows.is_empty() {
            workload.restart_countdown(turn.now, turn.wall);
            self.settle(place, CancelWhy::NotDue, turn);
        }
    }

    fn sync_began(&mut self, epoch: Epoch, turn: &mut Turn<'_>) {
        let before = self.sight.status();
        self.sight.begin(epoch);
        self.announce_sight(before, turn);
    }

    /// A listing is complete: what it did not bring is over, and countdowns go on from where they stood
    /// when sight was lost. The only input that visits all workloads.
    fn sync_done(&mut self, epoch: Epoch, turn: &mut Turn<'_>) {
        let before = self.sight.status();
        let Some(regained) = self.sight.complete(epoch) else {
            self.counters.stale_syncs += 1;
            return;
        };
        if regained.changed {
            self.announce_sight(before, turn);
        }
        let mut uncovered = false;
        for place in self.roster.places() {
            let Some(workload) = self.roster.get_mut(place) else {
                continue;
            };
            workload.flows.keep_listed(regained.listing);
            match &mut workload.idle {
                Some(idle) => idle.mono = idle.mono.plus(regained.unseen(idle.mono, turn.now)),
                None => workload.restart_countdown(turn.now, turn.wall),
            }
            uncovered |= workload.is_followed() && !self.sight.covers(workload.indexed);
            self.settle(place, CancelWhy::NotDue, turn);
        }
        if self.index.translated() > 0 {
            let roster = &self.roster;
            self.index
                .retain_translated(|key, place| roster.get(place).is_some_and(|held| held.flows.knows(key)));
        }
        self.arm_next_resync(turn.now);
        if uncovered {
            self.want_resync(turn.now);
        }
    }

    /// Something may have been missed: whatever is on its way to sleep stays awake. Those in countdown
    /// need no visit: their deadlines find that nothing can be seen.
    fn sight_lost(&mut self, reason: SightLoss, turn: &mut Turn<'_>) {
        self.counters.sight_losses += 1;
        let before = self.sight.status();
        self.sight.lose(turn.now, reason);
        self.announce_sight(before, turn);
        for place in self.sleeps.members() {
            self.settle(place, CancelWhy::Blind, turn);
        }
    }

    fn announce_sight(&self, before: SightStatus, turn: &mut Turn<'_>) {
        let sight = self.sight.status();
        if sight != before {
            turn.out.push(Effect::AnnounceSight { sight });
        }
    }
}
