//! What a machine is made of. Descriptors are handed over: the driver closes them once the monitor has
//! its own.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use dormouse_model::{Bytes, MacAddress, WorkloadId};
use dormouse_sys::spawn::CgroupEntrance;
pub use dormouse_sys::spawn::Identity;

use crate::kept::ProgramPart;

/// What the machine looks like to its guest. The same at a restore as at the launch, or the device state
/// does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchSpec {
    /// Whose machine it is; its mark names the process.
    pub id: WorkloadId,
    /// Processors, at least 1.
    pub vcpus: u32,
    /// The address of the network card; required when [`Parts::tap`] is given.
    pub mac: Option<MacAddress>,
}

/// The descriptors of one machine.
#[derive(Debug)]
pub struct Parts {
    /// The program to start; `None`: the driver's own.
    pub program: Option<ProgramPart>,
    /// Guest RAM.
    pub ram: RamPart,
    /// The kernel; required to launch, ignored by a restore.
    pub boot: Option<BootPart>,
    /// Disks, in the order in which the guest sees them.
    pub disks: Vec<DiskPart>,
    /// A tap opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` and a header of 12 bytes.
    pub tap: Option<OwnedFd>,
    /// Where the monitor listens for the driver.
    pub control: SocketPart,
    /// Where the monitor listens for whoever talks to the guest's agent; the port is called
    /// `dormouse.agent` in the guest.
    pub agent: SocketPart,
    /// Gets what the guest writes to its serial port. Opened `O_WRONLY | O_APPEND`.
    pub console: OwnedFd,
    /// Gets what the monitor itself says. A regular file: its new end is quoted in errors.
    pub log: OwnedFd,
    /// Whom the monitor runs as; `None`: as this process.
    pub identity: Option<Identity>,
    /// The groups that it starts in; several under cgroup v1.
    pub cgroups: Vec<CgroupEntrance>,
    /// Namespaces that it enters. An empty network namespace, one for all, keeps it off the network: what
    /// it needs it holds by descriptor.
    pub namespaces: Vec<OwnedFd>,
}

/// Guest RAM: a file of at least `size` bytes. The driver gives the inode to [`Parts::identity`].
#[derive(Debug)]
pub struct RamPart {
    /// Opened for reading and writing.
    pub file: OwnedFd,
    /// RAM of the guest.
    pub size: Bytes,
    /// How it is mapped.
    pub sharing: Sharing,
}

/// How guest RAM is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// What the guest writes is in the file at once, and memory that it frees leaves the file.
    Shared,
    /// What the guest writes stays with the process; the file is only read, and the monitor is kept from
    /// punching holes into it.
    Private,
}

/// What is booted.
#[derive(Debug)]
pub struct BootPart {
    /// A Linux bzImage or an ELF with a PVH entry. The inode must be readable by [`Parts::identity`].
    pub kernel: OwnedFd,
    /// The initial RAM disk, readable likewise.
    pub initrd: Option<OwnedFd>,
    /// The kernel's command line; the driver appends what the accelerator needs.
    pub command_line: String,
}

/// One disk: a raw image, or a block device.
#[derive(Debug)]
pub struct DiskPart {
    /// Opened `O_RDONLY` when `readonly`, else `O_RDWR`.
    pub file: OwnedFd,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// What the guest sees as the disk's serial: 1 to 20 letters, digits, dashes.
    pub serial: String,
}

/// A listening Unix stream socket and where it is bound, so that a later daemon can connect again.
#[derive(Debug)]
pub struct SocketPart {
    /// Bound and listening.
    pub listener: OwnedFd,
    /// The path, at most 107 bytes.
    pub path: PathBuf,
}
