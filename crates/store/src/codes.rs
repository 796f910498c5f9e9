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
            "`dormouse store quarantine ls`; see the runbook",
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
            "a write or a flush failed; nothing was changed, reading goes on",
            "look at the disk; the next change writes again what the disk may have dropped",
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
        Code::new(
            "STORE_DAMAGED",
            &[Kind::Corrupt],
            "the database or its log is not what was written; nothing was changed",
            "keep its files, restore a backup; see the runbook",
        ),
        Code::new(
            "STORE_BACKUP_EXISTS",
            &[Kind::Exists],
            "there is something where the backup was to be, or the unfinished copy (`FILE.part`) of a daemon that ended meanwhile",
            "name another file, or remove the unfinished one",
        ),
        Code::new(
            "STORE_BACKUP_FAILED",
            &[Kind::Unavailable],
            "the copy could not be made or is not right; nothing is there",
            "read the cause",
        ),
        Code::new(
            "STORE_NOT_SET_ASIDE",
            &[Kind::NotFound],
            "no damaged record was set aside under that kind and key",
            "`dormouse store quarantine ls`",
        ),
    ],
}];
