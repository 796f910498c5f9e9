//! What the machine writes down: one record a workload, replaced whole, and the identities in it.
//!
//! A record is enough to decide, together with what is found on the host, where a workload stands
//! after any crash (`adoption.rs`). It says what is true of the past, never what is hoped for: a
//! record announces an act before the act, or closes it after.

use dormouse_model::{Bytes, Digest, FailReason, Generation, Lost};

/// One boot of the host: the bits of `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId(pub u128);

/// A process beyond doubt. A pid alone comes back to another process; with the start time (field 22
/// of `/proc/PID/stat`, see proc_pid_stat(5)) and the boot it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessIdentity {
    /// The pid in the host's root namespace.
    pub pid: u32,
    /// The start time, in clock ticks after boot.
    pub start_ticks: u64,
    /// The boot that it started in.
    pub boot: BootId,
}

/// Whether a guest has said that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Readiness {
    /// It boots.
    Booting,
    /// Its agent said so.
    Ready,
}

/// Where the memory of a sleeper is the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// In the RAM file on tmpfs with this inode; gone when the host reboots.
    Resident {
        /// The file's inode, which tells it from a later file of the same name.
        inode: u64,
    },
    /// In the RAM file on disk with this inode, which counts in the boot that the image names.
    Spilled {
        /// The file's inode.
        inode: u64,
    },
}

/// Whether what the RAM file on disk holds is known to be there after a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settled {
    /// Nobody flushed it, or nobody knows what it should be: it is good for this boot only.
    Open,
    /// It was flushed, and this was its digest (`trust/digest.rs`).
    At(Digest),
}

/// What the files of an image are compared with before a look into the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Expected {
    /// SHA-256 of the manifest.
    pub manifest: Digest,
    /// Length of the device state.
    pub state: Bytes,
    /// Length of the RAM file.
    pub memory: Bytes,
}

/// A memory image that a wake may load, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemoryImage {
    /// Which sleep made it; the files of device state and manifest carry the same number.
    pub generation: Generation,
    /// The boot in which its memory was last known to be whole: that of the sleep, or of a check since.
    pub boot: BootId,
    /// Where its memory is.
    pub kept: Kept,
    /// What its files are compared with.
    pub expected: Expected,
    /// Whether its memory outlives this boot.
    pub settled: Settled,
}

/// What a record says of a workload's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No process, no memory. Also what a workload without a record is.
    Stopped,
    /// A start was begun: anything of it may exist, under the workload's mark.
    Starting,
    /// This process is the workload. Any older memory image is consumed.
    Running {
        /// The process.
        process: ProcessIdentity,
        /// Whether the guest was ready.
        readiness: Readiness,
    },
    /// This image is the workload. A process of it, if one is found, is a leftover that must end.
    Standby {
        /// The image.
        image: MemoryImage,
    },
    /// It sleeps and its image is lost: the next wake boots it.
    Cold {
        /// Why.
        lost: Lost,
    },
    /// A stop was begun.
    Stopping,
    /// It ended badly.
    Failed {
        /// Why.
        reason: FailReason,
    },
    /// A removal was begun. There is no way back.
    Deleting,
}

impl Phase {
    /// The image that is the workload, of one that is asleep with one.
    #[must_use]
    pub const fn image(&self) -> Option<MemoryImage> {
        match self {
            Self::Standby { image } => Some(*image),
            Self::Stopped
            | Self::Starting
            | Self::Running { .. }
            | Self::Cold { .. }
            | Self::Stopping
            | Self::Failed { .. }
            | Self::Deleting => None,
        }
    }

    /// The process that is the workload, of one that has one.
    #[must_use]
    pub const fn process(&self) -> Option<ProcessIdentity> {
        match self {
            Self::Running { process, .. } => Some(*process),
            Self::Stopped
            | Self::Starting
            | Self::Standby { .. }
            | Self::Cold { .. }
            | Self::Stopping
            | Self::Failed { .. }
            | Self::Deleting => None,
        }
    }
}

/// The lifecycle part of a workload's durable record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The life's last known phase.
    pub phase: Phase,
    /// The number of the newest memory image ever begun; never goes back, so that a file of an
    /// abandoned sleep is not taken for a later one.
    pub generation: Generation,
}

impl Record {
    /// The record of a workload that has never run.
    pub const NEW: Self = Self {
        phase: Phase::Stopped,
        generation: Generation(0),
    };
}
