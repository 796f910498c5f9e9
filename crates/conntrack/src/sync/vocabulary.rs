//! What the sync machine is told, what it says, and its settings.

use std::time::Duration;

use dormouse_model::{Attempt, Epoch, Flow, FlowKey, MonoTime, Observation, SightLoss};

/// What one kernel event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta {
    /// An entry was made.
    Opened(Flow),
    /// An entry changed; also the first that is heard of an entry made before the subscription. When the
    /// change was of something else (a mark, say), the kernel does not repeat the TCP state and
    /// `tcp_state` is `None`: the state is what it was.
    Changed(Flow),
    /// An entry was dropped.
    Closed(FlowKey),
}

impl Delta {
    /// The key of the entry spoken of.
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        match self {
            Self::Opened(flow) | Self::Changed(flow) => flow.key,
            Self::Closed(key) => *key,
        }
    }

    /// The observation that tells a consumer.
    #[must_use]
    pub const fn observation(self) -> Observation {
        match self {
            Self::Opened(flow) => Observation::FlowOpened(flow),
            Self::Changed(flow) => Observation::FlowChanged(flow),
            Self::Closed(key) => Observation::FlowClosed(key),
        }
    }
}

/// What can happen to the observer.
///
/// `Event`, `Overrun`, `Undecodable` and `SocketFailed` speak of the socket of the last `Connected`; the
/// shell drops that socket when it gets `Connect` or `Disconnect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncInput {
    /// A socket was opened and subscribed.
    Connected {
        /// The attempt of the `Connect`.
        attempt: Attempt,
    },
    /// No socket could be opened.
    ConnectFailed {
        /// The attempt of the `Connect`.
        attempt: Attempt,
    },
    /// The kernel sent a delta.
    Event(Delta),
    /// The listing brought an entry.
    DumpItem {
        /// The epoch of the `StartDump`.
        epoch: Epoch,
        /// The entry.
        flow: Flow,
    },
    /// The listing ended.
    DumpDone {
        /// The epoch of the `StartDump`.
        epoch: Epoch,
        /// Whether the kernel marked it as interrupted (`NLM_F_DUMP_INTR`).
        interrupted: bool,
    },
    /// The listing could not be had, or an entry of it could not be read.
    DumpFailed {
        /// The epoch of the `StartDump`.
        epoch: Epoch,
    },
    /// The kernel dropped events (`ENOBUFS`).
    Overrun,
    /// The event socket failed.
    SocketFailed,
    /// A message on the event socket could not be decoded.
    Undecodable,
    /// The queue to the consumer was full and observations were dropped.
    QueueFull,
    /// After `QueueFull`: the queue has room for at least one observation again.
    QueueRoom,
    /// Somebody wants a fresh listing.
    ResyncAsked,
    /// The time of [`SyncMachine::next_deadline`](super::SyncMachine::next_deadline) may have come.
    DeadlineReached,
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncEffect {
    /// Drop the present event socket if there is one, then open and subscribe another.
    Connect {
        /// To be named in the answer.
        attempt: Attempt,
    },
    /// Drop the event socket.
    Disconnect,
    /// List all entries on another socket than the events'.
    StartDump {
        /// To be named in every input of this listing.
        epoch: Epoch,
    },
    /// The listing is of no more use.
    StopDump {
        /// Which.
        epoch: Epoch,
    },
    /// Hand this to the consumer.
    Emit(Observation),
}

impl SyncEffect {
    /// The name on logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Disconnect => "disconnect",
            Self::StartDump { .. } => "start_dump",
            Self::StopDump { .. } => "stop_dump",
            Self::Emit(_) => "emit",
        }
    }
}

/// The pace of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncConfig {
    /// Least time between the end of one listing and the start of the next. A listing that took longer
    /// stretches the gap to its own length, so that no more than half of all time goes to listings.
    pub listing_gap_min: Duration,
    /// How long a listing may take.
    pub listing_deadline: Duration,
    /// How long opening a socket may take.
    pub connect_deadline: Duration,
    /// Delay after the second failure in a row; the first is retried at once, each further one after
    /// twice the delay.
    pub retry_delay_first: Duration,
    /// The longest delay.
    pub retry_delay_max: Duration,
    /// Most keys remembered while a listing runs; when more change, the listing counts as failed.
    pub changed_while_listing_max: usize,
}

impl SyncConfig {
    /// The pace that the daemon uses unless told otherwise.
    pub const STANDARD: Self = Self {
        listing_gap_min: Duration::from_millis(250),
        listing_deadline: Duration::from_secs(60),
        connect_deadline: Duration::from_secs(5),
        retry_delay_first: Duration::from_millis(100),
        retry_delay_max: Duration::from_secs(10),
        changed_while_listing_max: 1 << 20,
    };
}

/// What the observer knows of the kernel's table now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Something may have been missed.
    Blind {
        /// Why; `None` before the first listing when nothing failed.
        reason: Option<SightLoss>,
        /// Since when.
        since: MonoTime,
    },
    /// A listing runs and nothing was missed since it began.
    Listing {
        /// Its epoch.
        epoch: Epoch,
        /// Since when.
        since: MonoTime,
    },
    /// Everything is known.
    Synced {
        /// Of which epoch.
        epoch: Epoch,
        /// Since when.
        since: MonoTime,
    },
}

impl Sight {
    /// The epoch in which everything is known; `None` while it is not.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Synced { epoch, .. } => Some(*epoch),
            Self::Blind { .. } | Self::Listing { .. } => None,
        }
    }
}
