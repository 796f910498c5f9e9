//! Names of this room's metrics; docs/metrics.md is their reference.

/// Seconds that a step of a plan took; label `step`.
pub const STEP_SECONDS: &str = "dormouse_instance_step_seconds";
/// Bytes copied from tmpfs to disk for sleepers.
pub const SPILLED_BYTES: &str = "dormouse_instance_spilled_bytes_total";
/// Bytes of dirtied pages written back before a sleep.
pub const WRITTEN_BACK_BYTES: &str = "dormouse_instance_written_back_bytes_total";
