//! The port: one trait that makes machines and one for a live machine.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_model::Bytes;

use crate::accelerator::Accelerator;
use crate::error::DriverError;
use crate::kept::ProgramSource;
use crate::parts::{LaunchSpec, Parts};
use crate::process::{ExitReason, Gone, ProcessIdentity, ProcessRecord};

/// Until when a call may take. Past it the call fails with [`DriverError::Deadline`].
pub type Deadline = tokio::time::Instant;

/// Which program a driver drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DriverKind {
    /// QEMU's microvm machine.
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// No program at all.
    Fake,
}

impl DriverKind {
    /// The name in records, configuration and on metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Fake => "fake",
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a driver found on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The program's version, `7.2.22`. Device state is loaded by the same version that saved it.
    pub version: String,
    /// The program itself, to be kept; `None` for a driver without one.
    pub program: Option<ProgramSource>,
    /// What executes guests.
    pub accelerator: Accelerator,
    /// What the driver's machines can do.
    pub can: Abilities,
}

/// What machines of a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Abilities {
    /// Saving device state apart from RAM, at a cost that does not depend on the size of RAM.
    pub sleep: bool,
    /// Mapping RAM privately over a file.
    pub private_ram: bool,
    /// Taking memory back from a running guest.
    pub balloon: bool,
}

/// How adoption went.
#[derive(Debug)]
pub enum Adopted {
    /// The process is the recorded one, and answers.
    Live(Box<dyn Vm>),
    /// It does not exist any more.
    Gone(Gone),
}

/// Makes machines. One for each kind of monitor; cheap to clone or share.
#[async_trait]
pub trait Driver: Send + Sync + fmt::Debug {
    /// Which program.
    fn kind(&self) -> DriverKind;

    /// Finds the program and proves that a guest executes. Done once; later calls return the first
    /// answer. Worst case ten seconds.
    ///
    /// # Errors
    /// [`DriverError::Program`] when it is missing or does not start.
    async fn probe(&self) -> Result<Probe, DriverError>;

    /// Makes a machine and boots it. On return the guest's first instruction may have executed.
    ///
    /// Cancel safe: what a dropped call has made is killed.
    ///
    /// # Errors
    /// Any; no process is left.
    async fn launch(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError>;

    /// Makes a machine from `state`, which [`Vm::snapshot`] wrote, and the RAM of that moment. On return
    /// all state is loaded and the guest is paused: no instruction has executed.
    ///
    /// # Errors
    /// Any; no process is left, and a file of [`crate::Sharing::Private`] RAM has not been written.
    async fn restore(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        state: OwnedFd,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError>;

    /// Takes up a machine of an earlier daemon, running or paused. Only a process that has the recorded
    /// pid, start time and boot is ours; one that is ours and does not answer is an error and not gone.
    ///
    /// # Errors
    /// When the process lives and cannot be spoken to.
    async fn adopt(&self, record: &ProcessRecord, deadline: Deadline) -> Result<Adopted, DriverError>;
}

/// A live machine. Dropping it detaches: the guest goes on, and can be adopted.
///
/// Calls may come from several tasks; those that speak to the monitor take turns, [`Vm::kill`] and
/// [`Vm::exited`] do not wait for them. Every call is cancel safe: what was asked may or may not have
/// happened, and the next call works. Every call that speaks to the monitor fails with
/// [`DriverError::Ended`] when the process has ended.
#[async_trait]
pub trait Vm: Send + Sync + fmt::Debug {
    /// Who the process is, to be recorded for adoption.
    fn process(&self) -> &ProcessIdentity;

    /// Stops the processors; disks are drained and flushed on return. Legal always; idempotent. Worst
    /// case five seconds.
    async fn pause(&self) -> Result<(), DriverError>;

    /// Runs the processors. Legal always; idempotent. Worst case five seconds.
    async fn resume(&self) -> Result<(), DriverError>;

    /// Pauses, then writes device state (not RAM) into the file, from its beginning. On return it is
    /// complete and not synced. The machine stays paused and can be resumed. Worst case ten seconds.
    async fn snapshot(&self, into: OwnedFd) -> Result<Saved, DriverError>;

    /// Presses the power button, and after `grace` ends the monitor in order. A paused guest cannot hear
    /// the button and gets no grace. Worst case `grace` and ten seconds.
    async fn stop(&self, grace: Duration) -> Result<ExitReason, DriverError>;

    /// Ends the process at once and returns when it is gone. Idempotent. Worst case ten seconds.
    async fn kill(&self) -> Result<ExitReason, DriverError>;

    /// What the machine does now.
    async fn inspect(&self) -> Result<VmStatus, DriverError>;

    /// Resolves when the process has ended. May be awaited by several tasks and again: all get the same
    /// reason. Has no deadline, being a subscription.
    async fn exited(&self) -> ExitReason;

    /// The power to take memory back, where the machine has it.
    fn balloon(&self) -> Option<&dyn Balloon>;
}

/// A snapshot that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Saved {
    /// Size of the device state.
    pub state: Bytes,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmStatus {
    /// Processors execute.
    Running,
    /// Processors stand; they can be resumed.
    Paused,
    /// The guest has ended and the process is about to.
    Ending,
    /// The process has ended.
    Exited(ExitReason),
}

/// Takes memory back from a running guest and returns it.
#[async_trait]
pub trait Balloon: Send + Sync {
    /// Asks the guest to keep only `target` of its RAM. It obeys over seconds, or not at all.
    async fn set_target(&self, target: Bytes) -> Result<(), DriverError>;

    /// How much RAM the guest has now.
    async fn actual(&self) -> Result<Bytes, DriverError>;
}
