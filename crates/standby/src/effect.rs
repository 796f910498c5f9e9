//! Everything that the engine wants done.

use std::fmt;

use dormouse_model::workload::IdleRecord;
use dormouse_model::{Attempt, WakeCause, WorkloadId};

use crate::sight::SightStatus;
use crate::status::{Reason, Status};

/// One thing to do. The shell does it and decides nothing.
///
/// What is asynchronous carries an attempt that no other effect of this engine has. An executor
/// reports its outcome with that attempt, exactly once, within a deadline of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Ask the observer for a listing. It answers in its stream, with `SyncBegan` to `SyncDone`;
    /// a request while it lists already may be dropped.
    RequestResync,
    /// Find out whether the workload is idle for certain: barrier, then its own link counters, then
    /// if these moved a filtered dump. Answered by `IdleConfirmed`.
    ConfirmIdle {
        /// Who.
        id: WorkloadId,
        /// Returned with the answer.
        attempt: Attempt,
    },
    /// Put the workload to sleep, yielding to traffic until the commit. Answered by `SleepEnded`.
    RequestSleep {
        /// Who.
        id: WorkloadId,
        /// The attempt of the confirm that allowed it.
        attempt: Attempt,
    },
    /// Bring the workload back if the commit has not been made. Not answered by itself: the attempt
    /// still ends in one `SleepEnded`.
    CancelSleep {
        /// Who.
        id: WorkloadId,
        /// The attempt to cancel.
        attempt: Attempt,
        /// What came up.
        why: CancelWhy,
    },
    /// Wake the workload. Answered by `WakeEnded`.
    RequestWake {
        /// Who.
        id: WorkloadId,
        /// Returned with the outcome.
        attempt: Attempt,
        /// Why.
        cause: WakeCause,
    },
    /// Write the engine's notes on a workload, or erase them. For one workload the newest attempt
    /// wins: an older one that has not been written yet may be left out. Only failure is reported.
    RecordIdle {
        /// Who.
        id: WorkloadId,
        /// Returned with a failure.
        attempt: Attempt,
        /// What to write; `None` erases.
        record: Option<IdleRecord>,
    },
    /// The status of a workload changed. Changes that last less than the settle delay and those that
    /// only sight brings about are left out.
    Announce {
        /// Who.
        id: WorkloadId,
        /// Its status now.
        status: Status,
        /// Why.
        reason: Reason,
    },
    /// Sight was lost or regained, for all workloads at once.
    AnnounceSight {
        /// What it is now.
        sight: SightStatus,
    },
}

impl Effect {
    /// The name in logs, spans, traces and metric labels.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RequestResync => "request_resync",
            Self::ConfirmIdle { .. } => "confirm_idle",
            Self::RequestSleep { .. } => "request_sleep",
            Self::CancelSleep { .. } => "cancel_sleep",
            Self::RequestWake { .. } => "request_wake",
            Self::RecordIdle { .. } => "record_idle",
            Self::Announce { .. } => "announce",
            Self::AnnounceSight { .. } => "announce_sight",
        }
    }

    /// The workload that the effect is about; `None` when it is about all.
    #[must_use]
    pub const fn id(&self) -> Option<WorkloadId> {
        match self {
            Self::RequestResync | Self::AnnounceSight { .. } => None,
            Self::ConfirmIdle { id, .. }
            | Self::RequestSleep { id, .. }
            | Self::CancelSleep { id, .. }
            | Self::RequestWake { id, .. }
            | Self::RecordIdle { id, .. }
            | Self::Announce { id, .. } => Some(*id),
        }
    }
}

/// What came up while a workload was on its way to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CancelWhy {
    /// Somebody connected.
    InboundFlow,
    /// A packet waits at its shut link.
    Knock,
    /// A packet waits that answers the guest. The next try comes after a pause that doubles.
    Reply,
    /// A caller asked that it stay awake.
    Hold,
    /// Sight was lost, so nobody knows whether somebody talks to it.
    Blind,
    /// Its policy, its addresses or its ability to sleep changed so that it may not sleep now.
    NotDue,
    /// The sleep took longer than it may.
    Overdue,
}

impl CancelWhy {
    /// The name in logs, traces and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InboundFlow => "inbound_flow",
            Self::Knock => "knock",
            Self::Reply => "reply",
            Self::Hold => "hold",
            Self::Blind => "blind",
            Self::NotDue => "not_due",
            Self::Overdue => "overdue",
        }
    }
}

impl fmt::Display for CancelWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
