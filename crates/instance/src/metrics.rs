//! Names of this room's metrics; docs/metrics.md is their reference.

/// Seconds that a step of a plan took; label `step`.
pub const STEP_SECONDS: &str = "dormouse_instance_step_seconds";
/// Bytes copied from tmpfs to disk for sleepers.
pub const SPILLED_BYTES: &str = "dormouse_instance_spilled_bytes_total";
/// Seconds that reading all of one sleeper's memory took, to settle or to verify it.
pub const SETTLE_SECONDS: &str = "dormouse_instance_settle_seconds";
/// Images that were found to be other than what was saved; labels `part` and `fault`.
pub const IMAGES_LOST: &str = "dormouse_instance_images_lost_total";
/// Bytes of dirtied pages written back before a sleep.
pub const WRITTEN_BACK_BYTES: &str = "dormouse_instance_written_back_bytes_total";
