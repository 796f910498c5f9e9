//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Agent channel",
    intro: "The daemon logs these and goes on; a damaged frame is sent again.",
    codes: &[
        Code::new(
            "GUEST_GARBAGE",
            &[Kind::Corrupt],
            "bytes that belong to no frame were skipped",
            "none, unless it lasts",
        ),
        Code::new(
            "GUEST_HEADER_DAMAGED",
            &[Kind::Corrupt],
            "a frame's header has a wrong checksum",
            "none, unless it lasts",
        ),
        Code::new(
            "GUEST_BODY_DAMAGED",
            &[Kind::Corrupt],
            "a frame's body has a wrong checksum",
            "none, unless it lasts",
        ),
        Code::new(
            "GUEST_BODY_LARGE",
            &[Kind::Invalid],
            "a frame says that it is larger than a frame may be",
            "do not trust the guest",
        ),
        Code::new(
            "GUEST_BODY_UNREADABLE",
            &[Kind::Corrupt],
            "a message cannot be read",
            "do not trust the guest",
        ),
        Code::new(
            "GUEST_STALLED",
            &[Kind::Corrupt],
            "an incomplete frame was given up",
            "none, unless it lasts",
        ),
        Code::new(
            "GUEST_HOPELESS",
            &[Kind::Corrupt],
            "many damaged frames in a row; what was buffered is dropped",
            "do not trust the guest",
        ),
        Code::new(
            "GUEST_LAYOUT_UNKNOWN",
            &[Kind::Unsupported],
            "a frame of another layout",
            "use a daemon that reads it",
        ),
        Code::new(
            "GUEST_KIND_UNKNOWN",
            &[Kind::Unsupported],
            "a message that this release does not know",
            "",
        ),
        Code::new(
            "GUEST_WRONG_DIRECTION",
            &[Kind::Invalid],
            "a message that only the other side may send",
            "do not trust the guest",
        ),
        Code::new(
            "GUEST_QUEUE_FULL",
            &[Kind::Exhausted],
            "too much waits for the guest's acknowledgement",
            "the guest hangs: stop it",
        ),
        Code::new(
            "GUEST_VERSION_FOREIGN",
            &[Kind::Unsupported],
            "no version of the protocol is spoken by both",
            "use a daemon that speaks the agent's",
        ),
    ],
}];
