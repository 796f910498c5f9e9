//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Daemon and host",
    intro: "",
    codes: &[
        Code::new(
            "CGROUP_READ",
            &[Kind::Unavailable],
            "control groups cannot be read",
            "is a hierarchy mounted?",
        ),
        Code::new(
            "CGROUP_WRITE",
            &[Kind::Unavailable],
            "a control group cannot be changed",
            "run as root, with /sys/fs/cgroup writable",
        ),
        Code::new(
            "CGROUP_MOUNT",
            &[Kind::Unavailable],
            "no hierarchy is mounted, and none could be",
            "mount cgroup2",
        ),
    ],
}];
