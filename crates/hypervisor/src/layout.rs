//! The numbers that a machine's descriptors have in the monitor's process: what every translation starts
//! from.

use dormouse_model::Bytes;

use crate::parts::Sharing;

/// The numbers of the descriptors in the new process, and what goes with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Guest RAM.
    pub ram: i32,
    /// Size of RAM.
    pub ram_size: Bytes,
    /// How RAM is mapped.
    pub sharing: Sharing,
    /// The listening control socket.
    pub control: i32,
    /// The listening socket of the agent's port.
    pub agent: i32,
    /// The serial log.
    pub console: i32,
    /// The tap.
    pub tap: Option<i32>,
    /// The disks.
    pub disks: Vec<DiskLayout>,
    /// What is done with the machine.
    pub purpose: Purpose,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLayout {
    /// Its descriptor.
    pub number: i32,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Checked before: letters, digits and dashes.
    pub serial: String,
}

/// Boot or load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Boot a kernel.
    Boot {
        /// The kernel.
        kernel: i32,
        /// The initial RAM disk.
        initrd: Option<i32>,
        /// The caller's command line.
        command_line: String,
    },
    /// Load device state and stay paused.
    Restore {
        /// The state, opened for reading, at its beginning.
        state: i32,
    },
}

impl Layout {
    /// The path under which the monitor opens one of its own descriptors again, for programs that take
    /// paths alone.
    #[must_use]
    pub fn path(number: i32) -> String {
        format!("/proc/self/fd/{number}")
    }
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;
    use crate::parts::LaunchSpec;
    use dormouse_model::{MacAddress, WorkloadId};

    pub(crate) fn spec() -> LaunchSpec {
        LaunchSpec {
            id: WorkloadId::from_bits(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            vcpus: 2,
            mac: Some(MacAddress([2, 0xd0, 0, 0, 0, 1])),
        }
    }

    pub(crate) fn layout(purpose: Purpose) -> Layout {
        Layout {
            ram: 3,
            ram_size: Bytes::mib(256),
            sharing: Sharing::Shared,
            control: 4,
            agent: 5,
            console: 6,
            tap: Some(7),
            disks: vec![
                DiskLayout {
                    number: 8,
                    readonly: true,
                    serial: "root".into(),
                },
                DiskLayout {
                    number: 9,
                    readonly: false,
                    serial: "data".into(),
                },
            ],
            purpose,
        }
    }

    pub(crate) fn boot() -> Purpose {
        Purpose::Boot {
            kernel: 10,
            initrd: Some(11),
            command_line: "console=ttyS0 quiet".into(),
        }
    }
}
