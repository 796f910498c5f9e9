//! The driver for QEMU's microvm machine.
//!
//! | module | what |
//! |---|---|
//! | [`translate`] | specification and numbers of descriptors to arguments; pure |
//! | [`qmp`] | the control protocol on the wire; pure |
//! | `client` | the control socket |
//! | `start` | the process, from parts to first answer |
//! | `vm` | a live machine |
//! | `probe` | version and accelerator |
//! | [`driver`] | the driver |
//!
//! Tried with QEMU 7.2. Device state is written by `xen-save-devices-state`, which leaves RAM out however
//! it is mapped, and loaded by `-incoming fd:N` before the control socket answers: a restore needs no
//! round trip.

mod client;
pub mod driver;
mod probe;
pub mod qmp;
mod start;
pub mod translate;
mod vm;

pub use driver::{AcceleratorChoice, QemuConfig, QemuDriver};
