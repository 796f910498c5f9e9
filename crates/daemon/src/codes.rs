//! The codes of the daemon itself, and of all rooms that it is made of: docs/errors.md is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// The codes of all rooms that a daemon is made of. Sections of one title belong together.
pub fn all() -> impl Iterator<Item = &'static Section> {
    [
        dormouse_model::codes::SECTIONS,
        dormouse_instance::codes::SECTIONS,
        dormouse_standby::codes::SECTIONS,
        dormouse_image::codes::SECTIONS,
        dormouse_hypervisor::codes::SECTIONS,
        dormouse_network::codes::SECTIONS,
        dormouse_conntrack::codes::SECTIONS,
        dormouse_store::codes::SECTIONS,
        dormouse_keeper::codes::SECTIONS,
        dormouse_guest::codes::SECTIONS,
        SECTIONS,
        dormouse_cgroup::codes::SECTIONS,
    ]
    .into_iter()
    .flatten()
}

/// Every code of this room, with what it means and what to do.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "What was asked",
        intro: "",
        codes: &[
            Code::new(
                "REQUEST_INVALID",
                &[Kind::Invalid],
                "a field of a request cannot be used",
                "read the message; it names the field",
            ),
            Code::new(
                "REQUEST_ID_REUSED",
                &[Kind::Invalid],
                "the request id was used for another request within 24 hours",
                "send a fresh id",
            ),
            Code::new(
                "REQUEST_UNDER_WAY",
                &[Kind::Unavailable],
                "the first request of this id is still served",
                "repeat after a pause",
            ),
            Code::new(
                "REQUEST_TARGET_GONE",
                &[Kind::NotFound],
                "what the first request of this id made has been removed since",
                "send a fresh id to make another",
            ),
            Code::new(
                "RECORD_NEEDED",
                &[Kind::WrongState],
                "the damaged record is of an instance that is still listed, and its process may run",
                "save what you need from the guest, then `dormouse rm -f ID`: the record goes with it",
            ),
            Code::new(
                "REQUEST_LOST",
                &[Kind::Unavailable],
                "the request was not finished: a defect, or the daemon ends",
                "repeat; its log has the details",
            ),
            Code::new(
                "LOG_UNREADABLE",
                &[Kind::Unavailable],
                "a log of an instance cannot be read",
                "read the cause",
            ),
        ],
    },
    Section {
        title: "Daemon and host",
        intro: "",
        codes: &[
            Code::new(
                "CONFIG_INVALID",
                &[Kind::Invalid],
                "the configuration cannot be used; every problem has its key",
                "`dormoused --config FILE --check`",
            ),
            Code::new(
                "HOST_DIRECTORY",
                &[Kind::Unavailable],
                "a directory cannot be made",
                "look at its parent; run as root",
            ),
            Code::new(
                "HOST_BOOT_ID",
                &[Kind::Unavailable],
                "the kernel does not say which boot this is",
                "mount /proc",
            ),
            Code::new(
                "SETUP_NOTE",
                &[Kind::Unavailable],
                "the note of what `setup` changed cannot be kept or read; nothing was changed",
                "look at `host-settings` in the data directory",
            ),
            Code::new(
                "HOST_MOUNT",
                &[Kind::Unavailable],
                "the tmpfs for RAM cannot be mounted",
                "run as root, where mounting is allowed",
            ),
            Code::new(
                "HOST_SOCKET_TAKEN",
                &[Kind::Exists],
                "another process listens on the API's socket; the message names it",
                "end it, or give one of the two another `api.socket`",
            ),
            Code::new(
                "HOST_SOCKET",
                &[Kind::Unavailable],
                "the API's socket cannot be bound",
                "look at `api.socket`",
            ),
            Code::new(
                "HOST_NAMESPACE",
                &[Kind::Unavailable],
                "a network namespace cannot be opened or made",
                "make it, or change `network.namespace`",
            ),
        ],
    },
];
