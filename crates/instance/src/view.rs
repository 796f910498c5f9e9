//! What others see of an instance: one value, published whole whenever any part of it changed.

use std::net::IpAddr;
use std::time::Duration;

use dormouse_model::{Addresses, FailReason, Generation, InstanceSpec, Lost, State, WallTime, WorkloadId};

use crate::machine::{Phase, Settled};
use crate::memory::GuestRam;

/// How the guest's command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitInfo {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The same in words, with what else is known.
    pub message: String,
    /// When.
    pub at: WallTime,
}

/// What is known of a memory image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotView {
    /// A wake may load it.
    Kept {
        /// Whether it outlives a reboot of the host.
        settled: bool,
    },
    /// It must not be loaded.
    Lost(Lost),
}

impl SnapshotView {
    /// What a record in this phase says of the image; `None` when there is none.
    pub(crate) fn of(phase: &Phase) -> Option<Self> {
        match phase {
            Phase::Standby { image } => Some(Self::Kept {
                settled: image.settled != Settled::Open,
            }),
            Phase::Cold { lost }
            | Phase::Failed {
                reason: FailReason::ImageLost(lost),
            } => Some(Self::Lost(lost.clone())),
            Phase::Stopped
            | Phase::Starting
            | Phase::Running { .. }
            | Phase::Stopping
            | Phase::Failed { .. }
            | Phase::Deleting => None,
        }
    }
}

/// An instance as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceView {
    /// Who.
    pub id: WorkloadId,
    /// What the caller asked for.
    pub spec: InstanceSpec,
    /// Digest of the image that the reference meant at creation.
    pub image_digest: String,
    /// Where it is in its life.
    pub state: State,
    /// Why, when there is something to say.
    pub reason: String,
    /// Its addresses.
    pub addresses: Addresses,
    /// Where its memory is.
    pub memory: GuestRam,
    /// The number of the newest memory image; 0 before the first standby.
    pub generation: Generation,
    /// What is known of that image; `None` while there is none.
    pub snapshot: Option<SnapshotView>,
    /// The name under which the program is kept that runs it, or that saved its image; empty for none.
    pub monitor: String,
    /// When it was made.
    pub created_at: WallTime,
    /// When it was last started, not woken.
    pub started_at: Option<WallTime>,
    /// When its state last changed.
    pub state_changed_at: WallTime,
    /// How long the last wake took.
    pub last_wake: Option<Duration>,
    /// From the request of the last standby to the process gone.
    pub last_standby: Option<Duration>,
    /// From the request of the last standby to its durable commit.
    pub last_commit: Option<Duration>,
    /// Process id of the VMM while there is one.
    pub pid: Option<u32>,
    /// How the command ended the last time.
    pub exit: Option<ExitInfo>,
    /// Whether the agent said that it is ready.
    pub agent_ready: bool,
    /// Whether it is removed once it has stopped.
    pub auto_remove: bool,
    /// Standbys since creation.
    pub standbys: u64,
    /// Wakes since creation.
    pub wakes: u64,
    /// Grows with every change that this daemon published; orders views, and is not recorded.
    pub revision: u64,
}

impl InstanceView {
    /// Names this content: changes with every change that a client can see, beside figures, and is the same
    /// after a restart of the daemon. Opaque.
    #[must_use]
    pub fn etag(&self) -> String {
        crate::etag::etag(self)
    }

    /// Whether `address` is one of the instance's.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        self.addresses.both().contains(&address)
    }
}

/// What happened to an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum InstanceEvent {
    /// It was made.
    Created(Box<InstanceView>),
    /// Its state changed.
    StateChanged {
        /// The state before.
        previous: State,
        /// The instance after.
        now: Box<InstanceView>,
    },
    /// Something else of it changed.
    Updated(Box<InstanceView>),
    /// It is gone.
    Deleted(Box<InstanceView>),
}

impl InstanceEvent {
    /// The instance after the event, or as it last was.
    #[must_use]
    pub const fn view(&self) -> &InstanceView {
        match self {
            Self::Created(view) | Self::Updated(view) | Self::Deleted(view) => view,
            Self::StateChanged { now, .. } => now,
        }
    }
}
