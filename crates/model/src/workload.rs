//! What the standby engine sees of a workload, and how the acts that it asks for end. The engine
//! knows neither instances nor sandboxes: both speak these words.

use crate::id::WorkloadId;
use crate::policy::PolicySetting;
use crate::spec::Addresses;
use crate::state::State;
use crate::time::WallTime;

/// One workload as the engine sees it. Sent whole whenever any part of it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadView {
    /// Who.
    pub id: WorkloadId,
    /// Where it is in its life.
    pub state: State,
    /// Its addresses; `None` when it has no network.
    pub addresses: Option<Addresses>,
    /// Whether the driver and the devices can sleep at all, and if not why.
    pub sleep_support: SleepSupport,
    /// Its policy.
    pub policy: PolicySetting,
}

/// Whether a workload can sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SleepSupport {
    /// It can.
    Able,
    /// The driver cannot save this guest's devices.
    DriverCannot,
    /// A device that is passed through cannot be saved.
    DevicePassedThrough,
}

/// The engine's durable notes on one workload; they survive a restart of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IdleRecord {
    /// Since when no live inbound flow was known; `None` while there is one.
    pub idle_since: Option<WallTime>,
    /// When inbound traffic was last seen.
    pub last_inbound: Option<WallTime>,
    /// Until when a caller asked that it stay awake.
    pub hold_until: Option<WallTime>,
}

/// Who wants a sleep. It decides whether traffic before the commit takes it back (design 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SleepTrigger {
    /// The engine, by policy: traffic before the commit brings the workload back.
    Engine,
    /// A caller: runs to its commit, then the kept knock wakes it.
    Caller,
    /// A caller who asked to yield to traffic: like the engine's.
    CallerYielding,
}

impl SleepTrigger {
    /// Whether traffic before the commit brings the workload back.
    #[must_use]
    pub const fn yields_to_traffic(self) -> bool {
        match self {
            Self::Engine | Self::CallerYielding => true,
            Self::Caller => false,
        }
    }
}

/// How an attempt to sleep ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SleepEnd {
    /// Committed: the workload is in `Standby`.
    Committed,
    /// Traffic or a cancel came before the commit; the workload runs.
    Interrupted,
    /// It could not be done; the workload runs.
    Failed {
        /// The chain of causes.
        why: String,
    },
    /// There is no such workload any more.
    Gone,
    /// The workload's state did not allow it, for example because a caller stopped it meanwhile.
    Refused {
        /// The state met.
        state: State,
    },
}

/// Why a wake is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WakeCause {
    /// A packet waits for it.
    Knock,
    /// A caller asked.
    Caller,
}

/// How an attempt to wake ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WakeEnd {
    /// It runs and its packets were released.
    Running,
    /// It failed and still sleeps: the attempt may be repeated.
    StillAsleep {
        /// The chain of causes.
        why: String,
    },
    /// It failed for good; the workload is `Failed`.
    Failed {
        /// The chain of causes.
        why: String,
    },
    /// There is no such workload any more.
    Gone,
    /// The workload's state did not allow it.
    Refused {
        /// The state met.
        state: State,
    },
}
