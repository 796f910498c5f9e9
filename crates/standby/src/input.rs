//! Everything that can change a decision of the engine.

use dormouse_model::workload::IdleRecord;
use dormouse_model::{Attempt, Flow, Observation, SleepEnd, WakeEnd, WorkloadId, WorkloadView};

/// One thing that happened. Closed: what is not listed here cannot put a workload to sleep.
///
/// Inputs about one workload must arrive in the order in which they happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The next item of the observer's stream.
    Observed(Observation),
    /// A workload is new, or any part of what the engine sees of it changed.
    WorkloadChanged {
        /// The workload as it is now.
        view: WorkloadView,
        /// The last record written for it, from the store. It is used when the engine meets the
        /// workload for the first time and ignored after that.
        record: Option<IdleRecord>,
    },
    /// A workload is gone; nothing more is known under its id.
    WorkloadGone {
        /// Who.
        id: WorkloadId,
    },
    /// A packet waits for a workload whose link is shut.
    Knocked {
        /// Who is knocked at.
        id: WorkloadId,
        /// What sort of packet it is.
        knock: Knock,
    },
    /// The time that [`Engine::next_deadline`](crate::Engine::next_deadline) named has come. Early
    /// or superfluous ones do nothing.
    DeadlineReached,
    /// The answer to [`Effect::ConfirmIdle`](crate::Effect::ConfirmIdle).
    IdleConfirmed {
        /// Who.
        id: WorkloadId,
        /// The attempt of the effect.
        attempt: Attempt,
        /// What was found.
        answer: ConfirmAnswer,
    },
    /// How [`Effect::RequestSleep`](crate::Effect::RequestSleep) ended: exactly once for each.
    SleepEnded {
        /// Who.
        id: WorkloadId,
        /// The attempt of the effect.
        attempt: Attempt,
        /// How.
        end: SleepEnd,
    },
    /// How [`Effect::RequestWake`](crate::Effect::RequestWake) ended: exactly once for each.
    WakeEnded {
        /// Who.
        id: WorkloadId,
        /// The attempt of the effect.
        attempt: Attempt,
        /// How.
        end: WakeEnd,
    },
    /// A record could not be written. Success is not reported: nothing waits for it.
    RecordFailed {
        /// Who.
        id: WorkloadId,
        /// The attempt of [`Effect::RecordIdle`](crate::Effect::RecordIdle).
        attempt: Attempt,
    },
    /// A caller asks that the workload stay awake for one idle timeout from now. The same as
    /// [`Engine::hold`](crate::Engine::hold) for callers that need no answer, such as a replay.
    Hold {
        /// Who.
        id: WorkloadId,
    },
    /// The daemon stops: nothing new is begun, what runs is awaited.
    Shutdown,
}

impl Input {
    /// The name in logs, spans, traces and metric labels.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Observed(_) => "observed",
            Self::WorkloadChanged { .. } => "workload_changed",
            Self::WorkloadGone { .. } => "workload_gone",
            Self::Knocked { .. } => "knocked",
            Self::DeadlineReached => "deadline_reached",
            Self::IdleConfirmed { .. } => "idle_confirmed",
            Self::SleepEnded { .. } => "sleep_ended",
            Self::WakeEnded { .. } => "wake_ended",
            Self::RecordFailed { .. } => "record_failed",
            Self::Hold { .. } => "hold",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What sort of packet waits. Who cannot tell says `Inbound`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Knock {
    /// Somebody talks to the workload.
    Inbound,
    /// An answer on a conversation that the guest itself began. It wakes like any other packet, but
    /// it is no inbound activity.
    Reply,
}

impl Knock {
    /// The name in traces and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Reply => "reply",
        }
    }
}

/// What a confirm found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfirmAnswer {
    /// The barrier came back, nothing was missed, and nothing passed the workload's link that is not
    /// accounted for.
    Idle,
    /// The kernel's table has live flows of the workload that the engine did not know.
    Live {
        /// Those that were found; the answerer may stop at a few.
        flows: Vec<Flow>,
    },
    /// It could not be established; the workload counts as busy.
    Unsure {
        /// The chain of causes.
        why: String,
    },
}
