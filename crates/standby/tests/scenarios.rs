//! The scenarios of the auto-standby specification, section 7, by their numbers, at the level of the
//! engine and of the model. `scenario_NN_…` is the name by which `cargo xtask test scenarios` collects
//! them over the workspace; 6, 7 and 8 speak of netlink bytes and are tests of the conntrack crate.
//!
//! Where the original speaks of a table dump on every event, the translation is the observer's stream: a
//! dump that fails is a `SightLost`, a refresh is a listing, a write is a `RecordIdle`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

#[path = "scenarios/confirm.rs"]
mod confirm;
#[path = "scenarios/controller.rs"]
mod controller;
#[path = "scenarios/end_to_end.rs"]
mod end_to_end;
#[path = "scenarios/hold.rs"]
mod hold;
#[path = "scenarios/policy.rs"]
mod policy;
#[path = "scenarios/workers.rs"]
mod workers;
