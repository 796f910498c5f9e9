//! Virtual machine monitors behind one port.
//!
//! | module | what |
//! |---|---|
//! | [`port`] | the traits [`Driver`] and [`Vm`], and the optional powers |
//! | [`parts`] | what a machine is made of: a small specification, and descriptors |
//! | [`process`] | the identity of a monitor's process, and watching it end |
//! | [`error`] | [`DriverError`] |
//! | [`accelerator`] | whether KVM really executes guests here |
//! | [`payload`] | the tiny guest that the probe and the tests run |
//! | [`kept`] | the programs of monitors, kept for the state that they saved |
//! | [`memory`] | what a monitor has changed of guest RAM that it maps privately |
//! | [`qemu`] | the driver for QEMU |
//! | [`cloud_hypervisor`], [`firecracker`] | translations for the two other monitors |
//! | [`layout`], [`http`] | what translations start from, and requests over HTTP |
//! | [`fake`] | a driver without processes, for tests |
//! | [`conformance`] | what every driver must do, as named checks |
//! | [`metrics`] | names of our metrics |
//! | [`codes`] | the codes of its errors, with meaning and advice |
//!
//! Everything reaches a monitor as a descriptor, so that it can run as its own user without rights. A
//! guest outlives whoever started it: dropping a [`Vm`] detaches from it, and [`Driver::adopt`] takes it up
//! again.

pub mod accelerator;
pub mod cloud_hypervisor;
pub mod codes;
pub mod conformance;
pub mod error;
pub mod fake;
pub mod firecracker;
#[cfg(test)]
mod golden;
pub mod http;
pub mod kept;
pub mod layout;
pub mod memory;
pub mod metrics;
pub mod parts;
pub mod payload;
pub mod port;
pub mod process;
pub mod qemu;

/// Version of the translations from a specification to a monitor's arguments. It grows when the machine
/// that they describe changes, so that device state of before does not load any more.
pub const TRANSLATION: u32 = 1;

pub use accelerator::Accelerator;
pub use error::DriverError;
pub use kept::{KeepError, KeptPrograms, OpenError, ProgramPart, ProgramSource};
pub use parts::{BootPart, DiskPart, LaunchSpec, Parts, RamPart, Sharing, SocketPart};
pub use port::{Abilities, Adopted, Balloon, Deadline, Driver, DriverKind, Probe, Saved, Vm, VmStatus};
pub use process::{ExitReason, Gone, ProcessIdentity, ProcessRecord};
