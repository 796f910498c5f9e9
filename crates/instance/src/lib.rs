//! Instances: microVMs that start, sleep, wake, stop and go.
//!
//! ```text
//!  requests ──▶ ┌─────────────────┐ ── steps ──▶ ┌──────────┐ ──▶ hypervisor, network, store,
//!               │ machine (pure)  │              │ executor │     image, cgroup, keeper
//!  knocks, ───▶ │ one an instance │ ◀─ outcomes ─│          │ ◀── exits, agent
//!  exits        └─────────────────┘              └──────────┘
//! ```
//!
//! | module | |
//! |---|---|
//! | [`machine`] | the lifecycle machine: state, admission, plans; no I/O, no clock |
//! | [`adoption`] | what a workload is when a daemon starts, from its record and the host; pure |
//! | [`memory`] | where a guest's RAM is, awake and asleep |
//! | [`trust`] | what is written of an image at a sleep, and compared before a wake |
//! | [`record`] | the durable record |
//! | [`view`] | what others see |
//! | [`rooms`] | what the tasks work with; the seams to images and to the proof of idleness |
//! | [`codes`] | the codes of its errors, with meaning and advice |
//! | `manager`, `actor`, `steps`, `agent`, `recovery`, `sweep` | the executor |
//!
//! The machine owns the state. What it asks for comes as numbered steps, one at a time; records are
//! among the steps, so that what is durable before what is visible in its plans.

pub mod adoption;
pub mod codes;
pub mod error;
pub mod ledger;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod record;
pub mod rooms;
pub mod trust;
pub mod view;

mod actor;
mod agent;
mod etag;
mod manager;
mod recovery;
mod steps;
mod sweep;

pub use error::InstanceError;
pub use manager::{CreateRequest, Instances, InstancesTask};
pub use rooms::{Images, Rooms};
pub use view::{InstanceEvent, InstanceView};
