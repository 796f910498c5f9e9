//! The observer's shell: socket, listing, the bounded queue to the engine's task, barriers.

use std::ops::Bound;
use std::time::Duration;

use dormouse_conntrack::{SyncEffect, SyncInput};
use dormouse_model::{Attempt, Epoch, FlowKey, Observation, WorkloadId};
use dormouse_standby::{ConfirmAnswer, Input as EngineInput};

use super::{BarrierFor, Daemon, Item, Work};
use crate::event::DaemonEvent;
use crate::ground::Ground;
use crate::kernel::{EventSocket, Message};

/// Events read at one time.
const BATCH: usize = 16;

/// Entries of one part of a listing.
const LISTING_PART: usize = 6;

impl Daemon {
    pub(super) fn sync_input(&mut self, ground: &mut Ground, input: SyncInput) {
        let mut effects = Vec::new();
        self.sync.handle(ground.now, input, &mut effects);
        for effect in effects {
            match effect {
                SyncEffect::Connect { attempt } => {
                    ground.kernel.socket = None;
                    let wait = ground.random.millis(1, 10);
                    ground.tell_after(wait, DaemonEvent::Connected(attempt));
                }
                SyncEffect::Disconnect => ground.kernel.socket = None,
                SyncEffect::StartDump { epoch } => {
                    let wait = ground.random.millis(1, 10);
                    ground.tell_after(wait, DaemonEvent::Listing(epoch, None));
                }
                SyncEffect::StopDump { .. } => {}
                SyncEffect::Emit(observation) => self.emit(ground, observation),
            }
        }
    }

    fn emit(&mut self, ground: &mut Ground, observation: Observation) {
        if self.channel.len() >= self.channel_capacity {
            ground.tally.queue_full += 1;
            ground.note(format_args!("queue full at {observation:?}"));
            self.work.push_back(Work::Sync(SyncInput::QueueFull));
            return;
        }
        self.push_item(ground, Item::Observed(observation));
    }

    fn push_item(&mut self, ground: &mut Ground, item: Item) {
        self.channel.push_back(item);
        if !self.channel_scheduled {
            self.channel_scheduled = true;
            // The engine's task is busy, sometimes for long.
            let late = ground.fault(ground.profile.tasks_late);
            let wait = if late {
                ground.random.millis(50, 2_000)
            } else {
                ground.random.millis(0, 2)
            };
            ground.tell_after(wait, DaemonEvent::ChannelReadable);
        }
    }

    pub(super) fn connected(&mut self, ground: &mut Ground, attempt: Attempt) {
        if !self.sync.awaits_connection(attempt) {
            return;
        }
        if ground.fault(ground.profile.connect_fails) {
            ground.note(format_args!("no socket"));
            return self.sync_input(ground, SyncInput::ConnectFailed { attempt });
        }
        ground.note(format_args!("socket open"));
        ground.kernel.socket = Some(EventSocket {
            capacity: self.socket_capacity,
            ..EventSocket::default()
        });
        self.sync_input(ground, SyncInput::Connected { attempt });
    }

    /// Schedules a read when there is something to read. The world calls this after every event.
    pub fn poll_socket(&mut self, ground: &mut Ground) {
        let readable = ground
            .kernel
            .socket
            .as_ref()
            .is_some_and(|socket| socket.overrun || !socket.queue.is_empty());
        if readable && !self.reader_scheduled {
            self.reader_scheduled = true;
            let late = ground.fault(ground.profile.tasks_late);
            let wait = if late {
                ground.random.millis(20, 500)
            } else {
                ground.random.millis(0, 2)
            };
            ground.tell_after(wait, DaemonEvent::SocketReadable);
        }
    }

    pub(super) fn read_socket(&mut self, ground: &mut Ground) {
        self.reader_scheduled = false;
        let Some(socket) = &mut ground.kernel.socket else {
            return;
        };
        if socket.overrun {
            socket.overrun = false;
            ground.tally.overruns += 1;
            ground.note(format_args!("overrun"));
            return self.sync_input(ground, SyncInput::Overrun);
        }
        let count = socket.queue.len().min(BATCH);
        let messages: Vec<Message> = socket.queue.drain(..count).collect();
        for message in messages {
            match message {
                Message::Delta(delta) => self.sync_input(ground, SyncInput::Event(delta)),
                Message::Barrier(token) => self.push_item(ground, Item::Barrier(token)),
            }
        }
    }

    pub(super) fn list(&mut self, ground: &mut Ground, epoch: Epoch, after: Option<FlowKey>) {
        if ground.fault(ground.profile.listing_fails / 4) {
            ground.tally.listings_failed += 1;
            return self.sync_input(ground, SyncInput::DumpFailed { epoch });
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let part: Vec<_> = ground
            .kernel
            .flows
            .range((from, Bound::Unbounded))
            .take(LISTING_PART)
            .map(|(key, entry)| (*key, entry.flow))
            .collect();
        let last = part.last().map(|(key, _)| *key);
        let whole = part.len() < LISTING_PART;
        for (_, flow) in part {
            self.sync_input(ground, SyncInput::DumpItem { epoch, flow });
        }
        if !whole {
            let wait = ground.random.millis(0, 4);
            ground.tell_after(wait, DaemonEvent::Listing(epoch, last));
            return;
        }
        let interrupted = ground.fault(ground.profile.listing_fails);
        let count = if interrupted {
            &mut ground.tally.listings_failed
        } else {
            &mut ground.tally.listings
        };
        *count += 1;
        self.sync_input(ground, SyncInput::DumpDone { epoch, interrupted });
    }

    pub(super) fn read_channel(&mut self, ground: &mut Ground) {
        self.channel_scheduled = false;
        for _ in 0..BATCH {
            let Some(item) = self.channel.pop_front() else {
                break;
            };
            match item {
                Item::Observed(observation) => {
                    self.note_sight(ground, &observation);
                    ground.note(format_args!("observed {observation:?}"));
                    self.engine_input(ground, EngineInput::Observed(observation));
                    self.settle(ground);
                }
                Item::Barrier(token) => self.barrier_returned(ground, token),
            }
        }
        if self.sync.waits_for_room() && self.channel.len() < self.channel_capacity {
            self.work.push_back(Work::Sync(SyncInput::QueueRoom));
            self.settle(ground);
        }
        if !self.channel.is_empty() && !self.channel_scheduled {
            self.channel_scheduled = true;
            let wait = ground.random.millis(0, 2);
            ground.tell_after(wait, DaemonEvent::ChannelReadable);
        }
    }

    /// What the engine is being told about its sight.
    const fn note_sight(&mut self, ground: &Ground, observation: &Observation) {
        match observation {
            Observation::SightLost { .. } => self.told_clear = false,
            // A listing that was only asked for does not make blind.
            Observation::SyncBegan { .. } => self.listing_since = Some(ground.now),
            Observation::SyncDone { .. } => {
                self.told_clear = true;
                self.listed_since = self.listing_since;
            }
            Observation::FlowListed(_)
            | Observation::FlowOpened(_)
            | Observation::FlowChanged(_)
            | Observation::FlowClosed(_) => {}
        }
    }

    /// Sends a barrier for somebody. `false` when there is no socket to send it on.
    pub(super) fn ask_barrier(&mut self, ground: &mut Ground, who: BarrierFor) -> bool {
        self.tokens = self.tokens.next();
        let sent = ground.kernel.barrier(self.tokens);
        if sent {
            self.barriers.insert(self.tokens, who);
        }
        sent
    }

    fn barrier_returned(&mut self, ground: &mut Ground, token: Attempt) {
        let clear = self.told_clear;
        match self.barriers.remove(&token) {
            Some(BarrierFor::Confirm(id, attempt)) => {
                let answer = if clear {
                    self.look(ground, id)
                } else {
                    ConfirmAnswer::Unsure {
                        why: "blind".to_owned(),
                    }
                };
                self.answer_confirm(ground, id, attempt, answer);
            }
            Some(BarrierFor::Prove(id, number)) => self.prove_returned(ground, id, number, clear),
            None => {}
        }
        self.settle(ground);
    }

    /// After the barrier: counters that have moved since idle began ask for a filtered listing.
    fn look(&mut self, ground: &Ground, id: WorkloadId) -> ConfirmAnswer {
        let passed = ground.kernel.links.get(&id).map(|link| link.passed);
        let (Some(instance), Some(truth), Some(passed)) =
            (self.instances.get_mut(&id), ground.truths.get(&id), passed)
        else {
            return ConfirmAnswer::Unsure {
                why: "no link".to_owned(),
            };
        };
        instance.confirmed_passed = passed;
        if instance.idle_passed == Some(passed) {
            return ConfirmAnswer::Idle;
        }
        let flows: Vec<_> = ground
            .kernel
            .flows
            .values()
            .map(|entry| entry.flow)
            .filter(|flow| truth.addresses.both().contains(&flow.responder))
            .collect();
        let known = truth.policy.enabled();
        let live = |flow: &dormouse_model::Flow| {
            known.is_some_and(|policy| flow.holds_awake(flow.responder, policy))
        };
        if flows.iter().any(live) {
            ConfirmAnswer::Live { flows }
        } else {
            ConfirmAnswer::Idle
        }
    }

    pub(super) fn answer_confirm(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        attempt: Attempt,
        answer: ConfirmAnswer,
    ) {
        ground.note(format_args!("confirm {id} attempt {attempt}: {answer:?}"));
        if self.confirming.get(&id) == Some(&attempt) {
            self.confirming.remove(&id);
        }
        if answer == ConfirmAnswer::Idle {
            self.confirmed.insert(attempt);
        }
        self.work
            .push_back(Work::Engine(EngineInput::IdleConfirmed { id, attempt, answer }));
    }

    pub(super) fn confirm(&mut self, ground: &mut Ground, id: WorkloadId, attempt: Attempt) {
        self.confirming.insert(id, attempt);
        let given_up = if ground.fault(30) {
            // Later than the engine waits: its answer must mean nothing.
            super::CONFIRM_TIMEOUT + ground.random.millis(1, 3_000)
        } else {
            Duration::from_millis(500)
        };
        if ground.fault(30) || !self.ask_barrier(ground, BarrierFor::Confirm(id, attempt)) {
            let why = "no barrier".to_owned();
            return self.answer_confirm(ground, id, attempt, ConfirmAnswer::Unsure { why });
        }
        ground.tell_after(given_up, DaemonEvent::ConfirmGivenUp(id, attempt));
    }
}
