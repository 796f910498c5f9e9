//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Store",
    intro: "",
    codes: &[
        Code::new(
            "STORE_LOCKED",
            &[Kind::Unavailable],
            "another daemon uses this data directory; the message names it",
            "end it, or use another `data_directory`",
        ),
        Code::new(
            "STORE_OPEN_FAILED",
            &[Kind::Unavailable],
            "the database cannot be opened",
            "read the cause",
        ),
        Code::new(
            "STORE_LAYOUT_NEWER",
            &[Kind::Unsupported],
            "a newer daemon wrote the database",
            "use that one",
        ),
        Code::new(
            "STORE_RECORD_NEWER",
            &[Kind::Unsupported],
            "a newer daemon wrote the record",
            "use that one",
        ),
        Code::new(
            "STORE_RECORD_DAMAGED",
            &[Kind::Corrupt],
            "a record is not what was written; at the start it is set aside",
            "keep `dormouse.db`; see the runbook",
        ),
        Code::new(
            "STORE_KEY_INVALID",
            &[Kind::Invalid],
            "a key of a record is empty or too long",
            "report it",
        ),
        Code::new(
            "STORE_READ_FAILED",
            &[Kind::Unavailable],
            "records cannot be read",
            "look at the disk",
        ),
        Code::new(
            "STORE_FULL",
            &[Kind::Exhausted],
            "no space is left; nothing was changed",
            "free space",
        ),
        Code::new(
            "STORE_COMMIT_FAILED",
            &[Kind::Unavailable],
            "a write failed",
            "look at the disk",
        ),
        Code::new(
            "STORE_BROKEN",
            &[Kind::Unavailable],
            "a write was lost; nothing more is written",
            "look at the disk, restart the daemon",
        ),
        Code::new(
            "STORE_CHECK_FAILED",
            &[Kind::Unavailable],
            "the check could not be made",
            "look at the disk",
        ),
        Code::new(
            "STORE_SLOW",
            &[Kind::Timeout],
            "the disk did not answer in time; the write may have happened",
            "look at the disk",
        ),
        Code::new(
            "STORE_CLOSED",
            &[Kind::Unavailable],
            "the store is closed: the daemon ends",
            "repeat when it is back",
        ),
    ],
}];
