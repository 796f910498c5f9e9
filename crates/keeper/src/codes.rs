//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Keeper",
    intro: "",
    codes: &[
        Code::new(
            "KEEPER_ABSENT",
            &[Kind::Unavailable],
            "no keeper listens and none could be started",
            "is `dormouse-keeper` beside the daemon? `<run>/keeper.log`",
        ),
        Code::new(
            "KEEPER_BROKEN",
            &[Kind::Unavailable],
            "talking to it failed",
            "`<run>/keeper.log`",
        ),
        Code::new(
            "KEEPER_SLOW",
            &[Kind::Timeout],
            "it did not answer in time",
            "look at the load of the host",
        ),
        Code::new(
            "KEEPER_FULL",
            &[Kind::Exhausted],
            "8192 names are kept",
            "stop instances",
        ),
        Code::new(
            "KEEPER_NAME_INVALID",
            &[Kind::Invalid],
            "a name that cannot be kept",
            "report it",
        ),
        Code::new(
            "KEEPER_COUNT_INVALID",
            &[Kind::Invalid],
            "a number of descriptors that cannot be kept",
            "report it",
        ),
        Code::new(
            "KEEPER_NOT_PROCESS",
            &[Kind::WrongState],
            "what is kept is no process",
            "report it",
        ),
        Code::new(
            "KEEPER_UNREADABLE",
            &[Kind::Unavailable],
            "what is kept cannot be looked at",
            "read the cause",
        ),
        Code::new(
            "KEEPER_GARBLED",
            &[Kind::Bug],
            "its answer makes no sense",
            "report it; are daemon and keeper of one release?",
        ),
        Code::new(
            "KEEPER_REFUSED",
            &[Kind::Bug],
            "it refused a request",
            "report it with the message",
        ),
        Code::new(
            "KEEPER_LISTEN_FAILED",
            &[Kind::Unavailable],
            "it cannot listen on its socket",
            "look at the run directory",
        ),
        Code::new(
            "KEEPER_TAKEN",
            &[Kind::Exists],
            "another keeper listens there",
            "none: that one is used",
        ),
    ],
}];
