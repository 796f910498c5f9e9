//! Fault points around the steps of an instance; see `dormouse_sys::fault`. Nothing without the cargo
//! feature `plant`.

use dormouse_model::WorkloadId;
use dormouse_sys::fault::Side;

use crate::machine::{Phase, Step};

/// The name of a step's points: a write bears the phase that it records.
pub(crate) const fn name(step: &Step) -> &'static str {
    match step {
        Step::Write(record) => match record.phase {
            Phase::Stopped => "write_stopped",
            Phase::Starting => "write_starting",
            Phase::Running { .. } => "write_running",
            Phase::Standby { .. } => "write_standby",
            Phase::Stopping => "write_stopping",
            Phase::Failed { .. } => "write_failed",
            Phase::Deleting => "write_deleting",
            Phase::Cold { .. } => "write_cold",
        },
        other => other.name(),
    }
}

/// Waits at a point until whoever listens lets go.
#[cfg(feature = "plant")]
pub(crate) async fn reach(step: &'static str, side: Side, id: WorkloadId) {
    let waiting = tokio::task::spawn_blocking(move || dormouse_sys::fault::reach(step, side, &id));
    // It ends with the process at the latest.
    let _ = waiting.await;
}

/// A fault point: nothing, in this build.
#[cfg(not(feature = "plant"))]
#[allow(clippy::unused_async, reason = "the planted form waits")]
pub(crate) async fn reach(_step: &'static str, _side: Side, _id: WorkloadId) {}
