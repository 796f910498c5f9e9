//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Virtual machine monitor",
    intro: "",
    codes: &[
        Code::new(
            "DRIVER_PROGRAM_UNUSABLE",
            &[Kind::Unsupported],
            "QEMU is missing or not usable",
            "install qemu-system-x86, or set `hypervisor.qemu`",
        ),
        Code::new(
            "DRIVER_PART_INVALID",
            &[Kind::Invalid],
            "a file or descriptor given to it cannot be used",
            "read the message",
        ),
        Code::new(
            "DRIVER_START_FAILED",
            &[Kind::Unavailable],
            "the process could not be started",
            "read the cause: user ids, control groups",
        ),
        Code::new(
            "DRIVER_PROCESS_ENDED",
            &[Kind::Unavailable],
            "it ended; the message has what it said last",
            "`dormouse logs --source vmm NAME`",
        ),
        Code::new(
            "DRIVER_REFUSED",
            &[Kind::Unavailable],
            "it refused a command",
            "read its words in the message",
        ),
        Code::new(
            "DRIVER_PROTOCOL",
            &[Kind::Unavailable],
            "it broke its own protocol",
            "check its version",
        ),
        Code::new(
            "DRIVER_UNREACHABLE",
            &[Kind::Unavailable],
            "its control socket failed",
            "the process may have ended: `dormouse inspect NAME`",
        ),
        Code::new(
            "DRIVER_IO",
            &[Kind::Unavailable],
            "reading or writing for it failed",
            "read the cause",
        ),
        Code::new(
            "DRIVER_KEEP",
            &[Kind::Exhausted, Kind::NotFound, Kind::Unavailable],
            "the monitor's program cannot be kept under `<data>/vmm`",
            "free space; read the cause",
        ),
        Code::new(
            "DRIVER_KEEP_NOEXEC",
            &[Kind::Unsupported],
            "the data directory is on a file system that is mounted `noexec`; monitors run from `<data>/vmm`",
            "mount it with `exec`, or set `data_directory` elsewhere",
        ),
        Code::new(
            "DRIVER_TIMEOUT",
            &[Kind::Timeout],
            "it did not answer in time",
            "look at the load of the host",
        ),
    ],
}];
