//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Standby",
    intro: "",
    codes: &[
        Code::new(
            "STANDBY_HOLD_UNKNOWN",
            &[Kind::NotFound],
            "the engine does not know the workload",
            "repeat once it exists",
        ),
        Code::new(
            "STANDBY_HOLD_STOPPING",
            &[Kind::Unavailable],
            "the daemon ends",
            "repeat when it is back",
        ),
        Code::new(
            "STANDBY_NO_ADDRESSES",
            &[Kind::Unsupported],
            "flows of a workload without a network cannot be counted",
            "",
        ),
    ],
}];
