//! The sync machine: how a stream of kernel deltas and repeated listings become one ordered stream of
//! observations in which every gap is said. Pure: no socket, no clock, no task.
//!
//! ```text
//!                      Connect                 Connected
//!  ┌──────────────┐ deadline ┌────────────┐             ┌─────────┐ gap over: StartDump, SyncBegan
//!  │ Disconnected │─────────▶│ Connecting │────────────▶│ Resting │──────────────┐
//!  └──────────────┘          └────────────┘             └─────────┘              ▼
//!     ▲   ▲   ▲  ConnectFailed, too late │          listing  ▲              ┌─────────┐
//!     │   │   └──────────────────────────┘          failed   └──────────────│ Listing │◀─┐ ResyncAsked:
//!     │   │ Overrun, SocketFailed, Undecodable                              └─────────┘  │ StartDump,
//!     │   └───────────────────────────── (SightLost) ◀──────────────────────────┤        │ SyncBegan
//!     │                                                        DumpDone: SyncDone▼        │
//!     │ QueueRoom: SightLost   ┌─────────┐  QueueFull (any state)           ┌────────┐   │
//!     └────────────────────────│ Stalled │◀─────────────────────────────────│ Synced │───┘
//!                              └─────────┘                                  └────────┘
//! ```
//!
//! Three rules carry the proof that a listing plus the deltas after it is the truth:
//!
//! 1. **Subscribe first, then list.** The listing sees what is older than the subscription, the deltas
//!    see the rest.
//! 2. **A delta beats the listing.** Listing and deltas come over two sockets, so an entry of the
//!    listing may be older than a delta already forwarded. While a listing runs, the keys of all deltas
//!    are remembered and listed entries with those keys are left out. Deltas are forwarded at once; the
//!    consumer treats each as "insert or replace".
//! 3. **One socket is one unbroken stretch.** After an overrun the kernel sends a netlink socket nothing,
//!    and reports no further loss, until the socket has been read empty (`NETLINK_S_CONGESTED` in
//!    net/netlink/af_netlink.c), and what is still queued is older than the loss. So deltas after a loss
//!    can neither be trusted nor ordered against a new listing: the socket is thrown away and the next
//!    one begins a new stretch.

use std::collections::HashSet;
use std::time::Duration;

use dormouse_model::plant::{Plant, planted};
use dormouse_model::{Attempt, Epoch, Flow, FlowKey, MonoTime, Observation, SightLoss};

pub use vocabulary::{Delta, Sight, SyncConfig, SyncEffect, SyncInput};

mod vocabulary;

#[derive(Debug)]
enum Phase {
    Disconnected {
        until: MonoTime,
    },
    Connecting {
        attempt: Attempt,
        until: MonoTime,
    },
    Resting {
        until: MonoTime,
    },
    Listing {
        epoch: Epoch,
        began: MonoTime,
        changed: HashSet<FlowKey>,
        again: bool,
    },
    Synced {
        epoch: Epoch,
        list_at: Option<MonoTime>,
    },
    Stalled,
}

/// The machine. See the module's page for its states.
#[derive(Debug)]
pub struct SyncMachine {
    config: SyncConfig,
    phase: Phase,
    /// When the present [`Sight`] began.
    since: MonoTime,
    attempt: Attempt,
    epoch: Epoch,
    /// Failures since the last complete listing.
    failures: u32,
    /// The earliest time of the next listing.
    list_not_before: MonoTime,
    /// The loss that was told last and is not yet repaired.
    announced: Option<SightLoss>,
}

impl SyncMachine {
    /// A machine that has seen nothing; its first deadline is already past and connects.
    #[must_use]
    pub fn new(config: SyncConfig) -> Self {
        Self {
            config,
            phase: Phase::Disconnected {
                until: MonoTime::default(),
            },
            since: MonoTime::default(),
            attempt: Attempt::default(),
            epoch: Epoch::default(),
            failures: 0,
            list_not_before: MonoTime::default(),
            announced: None,
        }
    }

    /// Takes one input and appends what is to be done to `out`. Total: an input that does not fit the
    /// state is ignored.
    pub fn handle(&mut self, now: MonoTime, input: SyncInput, out: &mut Vec<SyncEffect>) {
        match input {
            SyncInput::Event(delta) => self.event(now, delta, out),
            SyncInput::DumpItem { epoch, flow } => self.dump_item(epoch, flow, out),
            SyncInput::Connected { attempt } => self.connected(now, attempt, out),
            SyncInput::ConnectFailed { attempt } => {
                if self.awaits_connection(attempt) {
                    self.drop_link(now, SightLoss::SocketFailed, out);
                }
            }
            SyncInput::DumpDone { epoch, interrupted } => self.dump_done(now, epoch, interrupted, out),
            SyncInput::DumpFailed { epoch } => {
                if self.listing_epoch() == Some(epoch) {
                    self.listing_failed(now, false, out);
                }
            }
            SyncInput::Overrun => self.link_lost(now, SightLoss::Overrun, out),
            SyncInput::SocketFailed => self.link_lost(now, SightLoss::SocketFailed, out),
            SyncInput::Undecodable => self.link_lost(now, SightLoss::Undecodable, out),
            SyncInput::QueueFull => self.queue_full(now, out),
            SyncInput::QueueRoom => self.queue_room(now, out),
            SyncInput::ResyncAsked => self.resync_asked(now, out),
            SyncInput::DeadlineReached => self.deadline_reached(now, out),
        }
    }

    /// When `DeadlineReached` is wanted; `None` while only other inputs matter.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        match &self.phase {
            Phase::Disconnected { until } | Phase::Connecting { until, .. } | Phase::Resting { until } => {
                Some(*until)
            }
            Phase::Listing { began, .. } => Some(began.plus(self.config.listing_deadline)),
            Phase::Synced { list_at, .. } => *list_at,
            Phase::Stalled => None,
        }
    }

    /// What is known now.
    #[must_use]
    pub fn sight(&self) -> Sight {
        let since = self.since;
        match &self.phase {
            Phase::Disconnected { .. } | Phase::Connecting { .. } | Phase::Resting { .. } => Sight::Blind {
                reason: self.announced,
                since,
            },
            Phase::Stalled => Sight::Blind {
                reason: Some(SightLoss::ConsumerSlow),
                since,
            },
            Phase::Listing { epoch, .. } => Sight::Listing { epoch: *epoch, since },
            Phase::Synced { epoch, .. } => Sight::Synced { epoch: *epoch, since },
        }
    }

    /// Whether deltas of the present socket are being forwarded.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match self.phase {
            Phase::Resting { .. } | Phase::Listing { .. } | Phase::Synced { .. } => true,
            Phase::Disconnected { .. } | Phase::Connecting { .. } | Phase::Stalled => false,
        }
    }

    /// Whether `Connected` or `ConnectFailed` of this attempt is still wanted.
    #[must_use]
    pub fn awaits_connection(&self, attempt: Attempt) -> bool {
        matches!(self.phase, Phase::Connecting { attempt: current, .. } if current == attempt)
    }

    /// Whether `QueueRoom` is wanted.
    #[must_use]
    pub const fn waits_for_room(&self) -> bool {
        matches!(self.phase, Phase::Stalled)
    }

    fn event(&mut self, now: MonoTime, delta: Delta, out: &mut Vec<SyncEffect>) {
        match &mut self.phase {
            Phase::Disconnected { .. } | Phase::Connecting { .. } | Phase::Stalled => return,
            Phase::Resting { .. } | Phase::Synced { .. } => {}
            Phase::Listing { changed, .. } => {
                changed.insert(delta.key());
                if changed.len() > self.config.changed_while_listing_max {
                    self.listing_failed(now, true, out);
                }
            }
        }
        out.push(SyncEffect::Emit(delta.observation()));
    }

    fn dump_item(&self, epoch: Epoch, flow: Flow, out: &mut Vec<SyncEffect>) {
        match &self.phase {
            Phase::Listing {
                epoch: current,
                changed,
                ..
            } => {
                if *current == epoch && !changed.contains(&flow.key) {
                    out.push(SyncEffect::Emit(Observation::FlowListed(flow)));
                }
            }
            Phase::Disconnected { .. }
            | Phase::Connecting { .. }
            | Phase::Resting { .. }
            | Phase::Synced { .. }
            | Phase::Stalled => {}
        }
    }

    fn connected(&mut self, now: MonoTime, attempt: Attempt, out: &mut Vec<SyncEffect>) {
        if !self.awaits_connection(attempt) {
            return;
        }
        if planted(Plant::NoResyncAfterReconnect) && self.epoch > Epoch::default() {
            let epoch = self.next_epoch();
            out.push(SyncEffect::Emit(Observation::SyncBegan { epoch }));
            self.synced(now, epoch, false, out);
            return;
        }
        self.rest_or_list(now, self.list_not_before, out);
    }

    fn dump_done(&mut self, now: MonoTime, epoch: Epoch, interrupted: bool, out: &mut Vec<SyncEffect>) {
        match &self.phase {
            Phase::Listing {
                epoch: current,
                began,
                again,
                ..
            } => {
                if *current != epoch {
                    return;
                }
                let (began, again) = (*began, *again);
                if interrupted {
                    self.listing_failed(now, false, out);
                    return;
                }
                self.note_listing_end(now, began);
                self.failures = 0;
                self.synced(now, epoch, again, out);
            }
            Phase::Disconnected { .. }
            | Phase::Connecting { .. }
            | Phase::Resting { .. }
            | Phase::Synced { .. }
            | Phase::Stalled => {}
        }
    }

    fn synced(&mut self, now: MonoTime, epoch: Epoch, again: bool, out: &mut Vec<SyncEffect>) {
        let list_at = again.then_some(self.list_not_before);
        self.phase = Phase::Synced { epoch, list_at };
        self.since = now;
        self.announced = None;
        out.push(SyncEffect::Emit(Observation::SyncDone { epoch }));
    }

    fn resync_asked(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        match &mut self.phase {
            // A listing that runs began before the question: it is not the answer.
            Phase::Listing { again, .. } => *again = true,
            Phase::Synced { list_at, .. } => {
                if now < self.list_not_before {
                    *list_at = Some(self.list_not_before);
                } else {
                    self.start_listing(now, out);
                }
            }
            // A listing follows anyway.
            Phase::Disconnected { .. }
            | Phase::Connecting { .. }
            | Phase::Resting { .. }
            | Phase::Stalled => {}
        }
    }

    fn deadline_reached(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &self.phase {
            Phase::Disconnected { .. } => self.connect(now, out),
            Phase::Connecting { .. } => self.drop_link(now, SightLoss::SocketFailed, out),
            Phase::Resting { .. } | Phase::Synced { .. } => self.start_listing(now, out),
            Phase::Listing { .. } => self.listing_failed(now, true, out),
            Phase::Stalled => {}
        }
    }

    fn connect(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        self.attempt = self.attempt.next();
        let until = now.plus(self.config.connect_deadline);
        self.phase = Phase::Connecting {
            attempt: self.attempt,
            until,
        };
        out.push(SyncEffect::Connect {
            attempt: self.attempt,
        });
    }

    fn rest_or_list(&mut self, now: MonoTime, not_before: MonoTime, out: &mut Vec<SyncEffect>) {
        if now < not_before {
            self.phase = Phase::Resting { until: not_before };
        } else {
            self.start_listing(now, out);
        }
    }

    fn start_listing(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        let epoch = self.next_epoch();
        self.phase = Phase::Listing {
            epoch,
            began: now,
            changed: HashSet::new(),
            again: false,
        };
        self.since = now;
        // From here on any loss is news, even of the kind told last.
        self.announced = None;
        out.push(SyncEffect::Emit(Observation::SyncBegan { epoch }));
        out.push(SyncEffect::StartDump { epoch });
    }

    /// The listing is void, the socket is not: its deltas go on and another listing follows.
    fn listing_failed(&mut self, now: MonoTime, stop: bool, out: &mut Vec<SyncEffect>) {
        self.blind(now, SightLoss::ListingFailed, out);
        if let Phase::Listing { epoch, began, .. } = self.phase {
            if stop {
                out.push(SyncEffect::StopDump { epoch });
            }
            self.note_listing_end(now, began);
        }
        let delay = self.next_delay();
        self.phase = Phase::Resting {
            until: self.list_not_before.max(now.plus(delay)),
        };
    }

    /// The present socket's stretch is over.
    fn link_lost(&mut self, now: MonoTime, reason: SightLoss, out: &mut Vec<SyncEffect>) {
        match self.phase {
            Phase::Resting { .. } | Phase::Listing { .. } | Phase::Synced { .. } => {
                self.drop_link(now, reason, out);
            }
            Phase::Disconnected { .. } | Phase::Connecting { .. } | Phase::Stalled => {}
        }
    }

    fn drop_link(&mut self, now: MonoTime, reason: SightLoss, out: &mut Vec<SyncEffect>) {
        self.blind(now, reason, out);
        self.release(now, out);
        let delay = self.next_delay();
        if delay.is_zero() {
            self.connect(now, out);
        } else {
            self.phase = Phase::Disconnected {
                until: now.plus(delay),
            };
        }
    }

    /// Lets go of the listing and the socket.
    fn release(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        if let Phase::Listing { epoch, began, .. } = self.phase {
            out.push(SyncEffect::StopDump { epoch });
            self.note_listing_end(now, began);
        }
        out.push(SyncEffect::Disconnect);
    }

    fn queue_full(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        if planted(Plant::QueueFullDroppedSilently) || matches!(self.phase, Phase::Stalled) {
            return;
        }
        // Nothing can be told now, so nothing is worth hearing: without a listener the kernel builds
        // no events.
        self.release(now, out);
        if matches!(self.sight(), Sight::Listing { .. } | Sight::Synced { .. }) {
            self.since = now;
        }
        self.phase = Phase::Stalled;
    }

    fn queue_room(&mut self, now: MonoTime, out: &mut Vec<SyncEffect>) {
        if !matches!(self.phase, Phase::Stalled) {
            return;
        }
        // Told even if the last words that got through were another loss: this one is newer.
        self.announced = Some(SightLoss::ConsumerSlow);
        out.push(SyncEffect::Emit(Observation::SightLost {
            reason: SightLoss::ConsumerSlow,
        }));
        let delay = self.next_delay();
        self.phase = Phase::Disconnected {
            until: now.plus(delay),
        };
    }

    fn blind(&mut self, now: MonoTime, reason: SightLoss, out: &mut Vec<SyncEffect>) {
        if matches!(self.sight(), Sight::Listing { .. } | Sight::Synced { .. }) {
            self.since = now;
        }
        if self.announced != Some(reason) {
            self.announced = Some(reason);
            out.push(SyncEffect::Emit(Observation::SightLost { reason }));
        }
    }

    fn note_listing_end(&mut self, now: MonoTime, began: MonoTime) {
        self.list_not_before = now.plus(self.config.listing_gap_min.max(now.since(began)));
    }

    /// The delay before the next try: none, then doubling from the first to the longest.
    fn next_delay(&mut self) -> Duration {
        let earlier = self.failures;
        self.failures = self.failures.saturating_add(1);
        if earlier == 0 {
            return Duration::ZERO;
        }
        let factor = 1_u32.checked_shl(earlier - 1).unwrap_or(u32::MAX);
        self.config
            .retry_delay_first
            .saturating_mul(factor)
            .min(self.config.retry_delay_max)
    }

    const fn next_epoch(&mut self) -> Epoch {
        self.epoch = self.epoch.next();
        self.epoch
    }

    const fn listing_epoch(&self) -> Option<Epoch> {
        match &self.phase {
            Phase::Listing { epoch, .. } => Some(*epoch),
            Phase::Disconnected { .. }
            | Phase::Connecting { .. }
            | Phase::Resting { .. }
            | Phase::Synced { .. }
            | Phase::Stalled => None,
        }
    }
}
