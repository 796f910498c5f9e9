//! The shell around the sync machine: sockets, threads, the queue. It decides nothing.
//!
//! One task owns the event socket. It reads bursts (up to 64 messages a system call), decodes them
//! without allocating, and hands each delta to the [`SyncMachine`]; what that emits goes to the queue
//! once a burst. Opening sockets and listing the table block, so they run on threads of the runtime's
//! blocking pool and come back over bounded channels.

use std::sync::Arc;
use std::time::Duration;

use dormouse_model::error::chain;
use dormouse_model::{Attempt, Bytes, Epoch, MonoTime, SightLoss};
use dormouse_sys::netns::Namespace;
use dormouse_sys::socket::{NetlinkReceiver, ReceiveBufferRule};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::barrier::{BarrierBook, BarrierError, Ended};
use crate::handle::{BarrierRequest, ObserverHandle};
use crate::link::{self, Link, LinkError, Subscribed};
use crate::listing::{Chunk, ListError, list_into};
use crate::metrics::{ListingEnd, Metrics};
use crate::queue::{self, Batch, Observations, Outlet, Sent};
use crate::sync::{Sight, SyncConfig, SyncEffect, SyncInput, SyncMachine};
use crate::wire::{Body, messages, request};

/// Room for one event. Events have a few hundred bytes; with labels, helper and security context they
/// stay below 2 KiB.
const EVENT_BYTES_MAX: usize = 4 << 10;

/// Bursts read before commands and listings get their turn.
const BURSTS_A_TURN: usize = 8;

/// Datagrams of a listing that may wait to be taken over; 32 KiB of kernel text or some 150 flows each.
const LISTING_CHUNKS_MAX: usize = 4;

/// What the observer needs to know.
#[derive(Debug, Clone)]
pub struct ObserverConfig {
    /// The network namespace to observe; the daemon's own when `None`.
    pub namespace: Option<Arc<Namespace>>,
    /// The buffer to ask for on the event socket. The kernel accounts twice as much; an event takes
    /// about 1 KiB of it.
    pub receive_buffer: Bytes,
    /// How long to leave the event socket alone between reads once they follow each other faster than
    /// this: an event alone is read at once, a storm in bursts of many. A barrier never waits for it.
    pub coalesce: Duration,
    /// Most batches in the queue to the consumer, at least 2.
    pub queue_batches_max: usize,
    /// How long a full queue is waited for before what waits is dropped and sight is lost.
    pub queue_patience: Duration,
    /// Most barriers waiting for their answers.
    pub barriers_max: usize,
    /// The pace of listings and retries.
    pub sync: SyncConfig,
}

impl ObserverConfig {
    /// What the daemon uses unless told otherwise.
    #[must_use]
    pub const fn standard(namespace: Option<Arc<Namespace>>) -> Self {
        Self {
            namespace,
            receive_buffer: Bytes::mib(40),
            coalesce: Duration::from_millis(1),
            queue_batches_max: 1024,
            queue_patience: Duration::from_secs(1),
            barriers_max: 256,
            sync: SyncConfig::STANDARD,
        }
    }
}

/// The observer; does nothing until [`run`](Self::run).
#[derive(Debug)]
pub struct Observer {
    config: ObserverConfig,
    machine: SyncMachine,
    effects: Vec<SyncEffect>,
    link: Option<Link>,
    listing: Option<RunningListing>,
    threads: JoinSet<ThreadEnd>,
    requests: mpsc::Receiver<BarrierRequest>,
    resync: Arc<Notify>,
    barriers: BarrierBook<oneshot::Sender<Result<Epoch, BarrierError>>>,
    outlet: Outlet,
    batch: Batch,
    /// Since when the queue has had no room for `batch`.
    full_since: Option<MonoTime>,
    last_read: MonoTime,
    /// Until when the event socket is left alone.
    pause_until: Option<MonoTime>,
    sight: watch::Sender<Sight>,
    metrics: Metrics,
}

#[derive(Debug)]
struct RunningListing {
    epoch: Epoch,
    began: MonoTime,
    chunks: mpsc::Receiver<Chunk>,
}

#[derive(Debug)]
enum ThreadEnd {
    Opened {
        attempt: Attempt,
        result: Result<Subscribed, LinkError>,
    },
    Listed,
}

/// Why the task woke up.
enum Wake {
    Readable,
    Barrier(BarrierRequest),
    Resync,
    Chunk(Option<Chunk>),
    Thread(ThreadEnd),
    Room,
    Deadline,
    ConsumerGone,
}

impl Observer {
    /// An observer, the handle to ask it things, and the queue that it fills.
    #[must_use]
    pub fn new(config: ObserverConfig) -> (Self, ObserverHandle, Observations) {
        let machine = SyncMachine::new(config.sync);
        let (outlet, observations) = queue::queue(config.queue_batches_max);
        let (asks, requests) = mpsc::channel(config.barriers_max.max(1));
        let (sight, sight_seen) = watch::channel(machine.sight());
        let resync = Arc::new(Notify::new());
        let handle = ObserverHandle::new(asks, Arc::clone(&resync), sight_seen, config.namespace.clone());
        let observer = Self {
            machine,
            effects: Vec::new(),
            link: None,
            listing: None,
            threads: JoinSet::new(),
            requests,
            resync,
            barriers: BarrierBook::new(config.barriers_max.max(1)),
            outlet,
            batch: Batch::new(),
            full_since: None,
            last_read: MonoTime::default(),
            pause_until: None,
            sight,
            metrics: Metrics::new(),
            config,
        };
        (observer, handle, observations)
    }

    /// Observes until the consumer drops its [`Observations`]. Failures never end it: they are told
    /// in-band and tried again. Dropping the future stops everything; a listing's thread ends with the
    /// next datagram that it gets.
    pub async fn run(mut self) {
        let mut receiver = NetlinkReceiver::new(EVENT_BYTES_MAX);
        loop {
            let wake = self.next_wake().await;
            let now = now();
            match wake {
                Wake::ConsumerGone => return,
                Wake::Readable => self.read(now, &mut receiver),
                Wake::Barrier(asked) => self.ask_barrier(now, asked),
                Wake::Resync => self.handle(now, SyncInput::ResyncAsked),
                Wake::Chunk(chunk) => self.take_chunk(now, chunk),
                Wake::Thread(end) => self.take_thread(now, end),
                Wake::Room => {
                    if self.machine.waits_for_room() && self.outlet.has_room() {
                        self.handle(now, SyncInput::QueueRoom);
                    }
                }
                Wake::Deadline => self.deadlines(now),
            }
            self.flush(now);
        }
    }

    async fn next_wake(&mut self) -> Wake {
        let deadline = self.next_deadline();
        let flows = self.full_since.is_none();
        let reads = flows && (self.pause_until.is_none() || self.barriers.next_deadline().is_some());
        let lists = flows && self.outlet.has_room_for_listing();
        let wants_room = !flows || self.machine.waits_for_room() || (self.listing.is_some() && !lists);
        tokio::select! {
            () = readable(self.link.as_ref()), if reads => Wake::Readable,
            Some(asked) = self.requests.recv() => Wake::Barrier(asked),
            () = self.resync.notified() => Wake::Resync,
            chunk = next_chunk(self.listing.as_mut()), if lists => Wake::Chunk(chunk),
            Some(ended) = self.threads.join_next() => match ended {
                Ok(end) => Wake::Thread(end),
                // A thread that died says nothing: the deadline of what it did speaks for it.
                Err(_) => Wake::Deadline,
            },
            () = self.outlet.taken(), if wants_room => Wake::Room,
            () = sleep_until(deadline) => Wake::Deadline,
            () = self.outlet.closed() => Wake::ConsumerGone,
        }
    }

    fn next_deadline(&self) -> Option<MonoTime> {
        let full = self
            .full_since
            .map(|since| since.plus(self.config.queue_patience));
        [
            self.machine.next_deadline(),
            self.barriers.next_deadline(),
            full,
            self.pause_until,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn deadlines(&mut self, now: MonoTime) {
        self.pause_until.take_if(|until| *until <= now);
        if self
            .full_since
            .is_some_and(|since| since.plus(self.config.queue_patience) <= now)
        {
            self.full_since = None;
            self.batch.clear();
            self.handle(now, SyncInput::QueueFull);
        }
        let ended = self.barriers.expire(now);
        self.answer(now, ended);
        self.handle(now, SyncInput::DeadlineReached);
    }

    /// Hands one input to the machine and does what it says.
    fn handle(&mut self, now: MonoTime, input: SyncInput) {
        let before = self.machine.sight();
        let mut effects = std::mem::take(&mut self.effects);
        self.machine.handle(now, input, &mut effects);
        for effect in effects.drain(..) {
            self.act(now, effect);
        }
        self.effects = effects;
        let after = self.machine.sight();
        if after != before {
            self.sight_changed(now, before, after);
        }
    }

    fn act(&mut self, now: MonoTime, effect: SyncEffect) {
        match effect {
            SyncEffect::Emit(observation) => self.batch.push(observation),
            SyncEffect::Connect { attempt } => {
                self.link = None;
                let (namespace, buffer) = (self.config.namespace.clone(), self.config.receive_buffer);
                self.threads.spawn_blocking(move || ThreadEnd::Opened {
                    attempt,
                    result: link::subscribe(namespace.as_deref(), buffer),
                });
            }
            SyncEffect::Disconnect => self.link = None,
            SyncEffect::StartDump { epoch } => {
                let (sender, chunks) = mpsc::channel(LISTING_CHUNKS_MAX);
                let (namespace, patience) =
                    (self.config.namespace.clone(), self.config.sync.listing_deadline);
                self.listing = Some(RunningListing {
                    epoch,
                    began: now,
                    chunks,
                });
                self.threads.spawn_blocking(move || {
                    list_into(namespace.as_deref(), patience, &sender);
                    ThreadEnd::Listed
                });
            }
            SyncEffect::StopDump { epoch } => {
                if let Some(listing) = self.listing.take_if(|one| one.epoch == epoch) {
                    self.metrics
                        .listing(ListingEnd::Stopped, now.since(listing.began));
                }
            }
        }
    }

    fn sight_changed(&mut self, now: MonoTime, before: Sight, after: Sight) {
        let mut blind_for = Duration::ZERO;
        if let Sight::Blind { since, .. } | Sight::Listing { since, .. } = before {
            // Boot is when a machine that has seen nothing counts from.
            if since > MonoTime::default() {
                blind_for = now.since(since);
            }
        }
        match after {
            Sight::Synced { epoch, .. } => tracing::info!(%epoch, "observer synced"),
            Sight::Listing { epoch, .. } => tracing::debug!(%epoch, "observer listing"),
            Sight::Blind { reason, .. } => {
                let reason = reason.map_or("not_yet", SightLoss::as_str);
                tracing::warn!(reason, "observer lost sight");
            }
        }
        if let Sight::Blind {
            reason: Some(reason), ..
        } = after
        {
            self.metrics.sight_lost(reason);
        }
        self.metrics
            .sight(matches!(after, Sight::Synced { .. }), blind_for);
        self.sight.send_replace(after);
        let reason = match after {
            Sight::Blind { reason, .. } => reason,
            Sight::Listing { .. } | Sight::Synced { .. } => None,
        };
        let ended = self.barriers.void(reason);
        self.answer(now, ended);
    }

    /// Sends what was emitted to the consumer; once it is there, answered barriers are told.
    fn flush(&mut self, now: MonoTime) {
        match self.outlet.send(&mut self.batch) {
            Sent::Queued => {
                self.full_since = None;
                let ended = self.barriers.settle();
                self.answer(now, ended);
            }
            Sent::Full => {
                if self.full_since.is_none() {
                    self.full_since = Some(now);
                    self.metrics.queue_blocked.increment(1);
                }
            }
        }
    }

    fn read(&mut self, now: MonoTime, receiver: &mut NetlinkReceiver) {
        let storm = now.since(self.last_read) < self.config.coalesce;
        self.pause_until = storm.then(|| now.plus(self.config.coalesce));
        self.last_read = now;
        for _ in 0..BURSTS_A_TURN {
            let Some(link) = &self.link else { return };
            let descriptor = link.descriptor();
            match link
                .socket()
                .try_io(link::INTEREST, |_| receiver.receive(descriptor))
            {
                Ok(_) => self.decode(now, receiver),
                Err(error) => {
                    match error.kind() {
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => {}
                        _ if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {
                            self.handle(now, SyncInput::Overrun);
                        }
                        _ => {
                            tracing::warn!(%error, "event socket failed");
                            self.handle(now, SyncInput::SocketFailed);
                        }
                    }
                    return;
                }
            }
        }
    }

    fn decode(&mut self, now: MonoTime, receiver: &NetlinkReceiver) {
        for datagram in receiver.datagrams() {
            // Whoever may send to a netlink group can forge events; only the kernel has port 0.
            if datagram.sender_port != 0 {
                self.metrics.foreign.increment(1);
                continue;
            }
            if datagram.truncated {
                tracing::warn!(slot = EVENT_BYTES_MAX, "an event was longer than its room");
                self.handle(now, SyncInput::Undecodable);
            }
            for message in messages(datagram.bytes) {
                match message {
                    Ok(message) => {
                        if message.sequence != 0 && self.barriers.answered(message.sequence) {
                            continue;
                        }
                        if message.body == Body::Overrun {
                            self.handle(now, SyncInput::Overrun);
                        }
                        if let Some(delta) = message.delta() {
                            tracing::trace!(?delta, "event");
                            self.metrics.event(&delta);
                            self.handle(now, SyncInput::Event(delta));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot read an event");
                        self.handle(now, SyncInput::Undecodable);
                    }
                }
            }
            if self.link.is_none() {
                // The rest came on the socket that the machine has just given up.
                return;
            }
        }
    }

    fn ask_barrier(&mut self, now: MonoTime, asked: BarrierRequest) {
        let blind = |reason| {
            Ended {
                caller: (),
                asked: now,
                result: Err(BarrierError::Blind { reason }),
            }
            .result
        };
        let (epoch, link) = match (self.machine.sight(), &self.link) {
            (Sight::Synced { epoch, .. }, Some(link)) => (epoch, link),
            (Sight::Blind { reason, .. }, _) => {
                self.answer(
                    now,
                    vec![Ended {
                        caller: asked.answer,
                        asked: now,
                        result: blind(reason),
                    }],
                );
                return;
            }
            (Sight::Synced { .. } | Sight::Listing { .. }, _) => {
                self.answer(
                    now,
                    vec![Ended {
                        caller: asked.answer,
                        asked: now,
                        result: blind(None),
                    }],
                );
                return;
            }
        };
        match self.barriers.ask(now, epoch, asked.patience, asked.answer) {
            Ok(sequence) => {
                if let Err(error) = link.ask(&request::barrier(sequence)) {
                    tracing::warn!(%error, "cannot ask the kernel for a barrier");
                    self.handle(now, SyncInput::SocketFailed);
                }
            }
            Err((caller, error)) => {
                self.answer(
                    now,
                    vec![Ended {
                        caller,
                        asked: now,
                        result: Err(error),
                    }],
                );
            }
        }
    }

    fn answer(&self, now: MonoTime, ended: Vec<Ended<oneshot::Sender<Result<Epoch, BarrierError>>>>) {
        for one in ended {
            self.metrics
                .barrier(one.result.as_ref().err(), now.since(one.asked));
            // A caller that no longer waits is its own affair.
            let _ = one.caller.send(one.result);
        }
    }

    fn take_chunk(&mut self, now: MonoTime, chunk: Option<Chunk>) {
        let Some(RunningListing { epoch, began, .. }) = self.listing else {
            return;
        };
        let took = now.since(began);
        match chunk {
            Some(Chunk::Flows(flows)) => {
                self.metrics.listed(flows.len());
                for flow in flows {
                    self.handle(now, SyncInput::DumpItem { epoch, flow });
                }
                return;
            }
            Some(Chunk::End(Ok(()))) => {
                self.metrics.listing(ListingEnd::Complete, took);
                self.handle(
                    now,
                    SyncInput::DumpDone {
                        epoch,
                        interrupted: false,
                    },
                );
            }
            Some(Chunk::End(Err(ListError::Interrupted))) => {
                self.metrics.listing(ListingEnd::Interrupted, took);
                self.handle(
                    now,
                    SyncInput::DumpDone {
                        epoch,
                        interrupted: true,
                    },
                );
            }
            Some(Chunk::End(Err(error))) => {
                tracing::warn!(error = chain(&error), "cannot list connections");
                self.metrics.listing(ListingEnd::Failed, took);
                self.handle(now, SyncInput::DumpFailed { epoch });
            }
            None => {
                self.metrics.listing(ListingEnd::Failed, took);
                self.handle(now, SyncInput::DumpFailed { epoch });
            }
        }
        // The machine may have started the next one already.
        self.listing.take_if(|one| one.epoch == epoch);
    }

    fn take_thread(&mut self, now: MonoTime, end: ThreadEnd) {
        let ThreadEnd::Opened { attempt, result } = end else {
            return;
        };
        if !self.machine.awaits_connection(attempt) {
            return;
        }
        let watched = result.map_err(|error| chain(&error)).and_then(|subscribed| {
            self.metrics.receive_buffer(subscribed.buffer);
            if subscribed.rule == ReceiveBufferRule::Capped {
                tracing::warn!(
                    bytes = subscribed.buffer,
                    "event buffer is capped by net.core.rmem_max"
                );
            }
            Link::watch(subscribed).map_err(|error| error.to_string())
        });
        match watched {
            Ok(link) => {
                self.link = Some(link);
                self.handle(now, SyncInput::Connected { attempt });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot connect to connection tracking");
                self.handle(now, SyncInput::ConnectFailed { attempt });
            }
        }
    }
}

async fn readable(link: Option<&Link>) {
    match link {
        // The runtime is shutting down when this fails, and the future is about to be dropped.
        Some(link) => match link.socket().ready(link::INTEREST).await {
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn next_chunk(listing: Option<&mut RunningListing>) -> Option<Chunk> {
    match listing {
        Some(listing) => listing.chunks.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<MonoTime>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(now())).await,
        None => std::future::pending().await,
    }
}

fn now() -> MonoTime {
    // The clock exists on every kernel that has what else we need; at zero nothing would ever be due.
    MonoTime::from_boot(dormouse_sys::clock::since_boot().unwrap_or_default())
}
