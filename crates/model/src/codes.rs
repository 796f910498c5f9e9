//! The codes of this room, in the order of docs/errors.md, which is written from here.

use crate::Kind;
use crate::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "What was asked",
    intro: "",
    codes: &[
        Code::new(
            "ID_INVALID",
            &[Kind::Invalid],
            "not an id: 26 characters of 0-9 and a-z without i, l, o, u",
            "copy it from `dormouse ps -o wide`",
        ),
        Code::new(
            "NAME_INVALID",
            &[Kind::Invalid],
            "not a name: 1 to 63 of a-z, 0-9 and inner dashes",
            "choose another",
        ),
        Code::new(
            "SIZE_INVALID",
            &[Kind::Invalid],
            "not a size",
            "write a whole number with K, M, G or T, such as 512M",
        ),
        Code::new(
            "DURATION_INVALID",
            &[Kind::Invalid],
            "not a duration",
            "write numbers with units, such as 5m or 1h30m",
        ),
        Code::new(
            "SPEC_INVALID",
            &[Kind::Invalid],
            "a value of an instance is out of its range",
            "read the message; it names value and range",
        ),
        Code::new(
            "POLICY_INVALID",
            &[Kind::Invalid],
            "a standby policy cannot be used",
            "read the message; an enabled policy needs an idle timeout",
        ),
    ],
}];
