//! Names of our metrics. Labels come from closed enums only.

use std::time::Duration;

use crate::port::DriverKind;
use crate::process::ExitReason;

/// Seconds that a call took: labels `driver`, `step`, `outcome`.
pub const STEP_SECONDS: &str = "dormouse_hypervisor_step_seconds";
/// Machines whose end was seen: labels `driver`, `reason`.
pub const EXITS_TOTAL: &str = "dormouse_hypervisor_exits_total";
/// Bytes of private memory written back into RAM files.
pub const WRITTEN_BACK_BYTES_TOTAL: &str = "dormouse_hypervisor_written_back_bytes_total";

/// The calls that are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Launch,
    Restore,
    Adopt,
    Pause,
    Resume,
    Snapshot,
    Stop,
    Kill,
}

impl Step {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Launch => "launch",
            Self::Restore => "restore",
            Self::Adopt => "adopt",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Snapshot => "snapshot",
            Self::Stop => "stop",
            Self::Kill => "kill",
        }
    }
}

/// Counts one call.
pub(crate) fn step(driver: DriverKind, step: Step, took: Duration, ok: bool) {
    let outcome = if ok { "ok" } else { "failed" };
    metrics::histogram!(STEP_SECONDS, "driver" => driver.as_str(), "step" => step.as_str(), "outcome" => outcome)
        .record(took.as_secs_f64());
}

/// Counts one end.
pub(crate) fn exit(driver: DriverKind, reason: ExitReason) {
    metrics::counter!(EXITS_TOTAL, "driver" => driver.as_str(), "reason" => reason.as_str()).increment(1);
}

/// Counts bytes written back.
pub(crate) fn written_back(bytes: u64) {
    metrics::counter!(WRITTEN_BACK_BYTES_TOTAL).increment(bytes);
}
