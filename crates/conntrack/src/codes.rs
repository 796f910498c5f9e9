//! The codes of this room, in the order of docs/errors.md, which is written from here.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[Section {
    title: "Observer",
    intro: "",
    codes: &[
        Code::new(
            "OBSERVER_BLIND",
            &[Kind::Unavailable],
            "connections may have been missed; nothing is put to sleep",
            "none: it lists again by itself",
        ),
        Code::new(
            "OBSERVER_BARRIER_TIMEOUT",
            &[Kind::Timeout],
            "the kernel did not answer the barrier; the sleep waits",
            "none: it is tried again",
        ),
        Code::new(
            "OBSERVER_BARRIER_BUSY",
            &[Kind::Exhausted],
            "too many barriers wait",
            "none: it is tried again",
        ),
        Code::new(
            "OBSERVER_NOT_RUNNING",
            &[Kind::Unavailable],
            "the observer has ended",
            "restart the daemon",
        ),
        Code::new(
            "OBSERVER_NAMESPACE",
            &[Kind::Unavailable],
            "its network namespace cannot be entered",
            "make it, or change `network.namespace`",
        ),
        Code::new(
            "OBSERVER_SOCKET",
            &[Kind::Denied, Kind::Unsupported, Kind::Unavailable],
            "no netfilter netlink socket",
            "run as root; load nf_conntrack_netlink",
        ),
        Code::new(
            "OBSERVER_SUBSCRIBE",
            &[Kind::Denied, Kind::Unsupported, Kind::Unavailable],
            "no subscription to connection tracking events",
            "run as root; load nf_conntrack_netlink",
        ),
        Code::new(
            "OBSERVER_LIST_ASK",
            &[Kind::Denied, Kind::Unavailable],
            "a listing could not be asked for",
            "none: it is tried again",
        ),
        Code::new(
            "OBSERVER_LIST_RECEIVE",
            &[Kind::Denied, Kind::Unavailable],
            "a listing could not be received",
            "none: it is tried again",
        ),
        Code::new(
            "OBSERVER_LIST_REFUSED",
            &[Kind::Denied, Kind::Unavailable],
            "the kernel refused a listing",
            "read the cause",
        ),
        Code::new(
            "OBSERVER_LIST_UNDECODABLE",
            &[Kind::Corrupt],
            "a listed connection cannot be read",
            "report it with the kernel's version",
        ),
        Code::new(
            "OBSERVER_LIST_INTERRUPTED",
            &[Kind::Unavailable],
            "the table changed under the listing",
            "none: it is tried again",
        ),
        Code::new(
            "OBSERVER_LIST_TIMEOUT",
            &[Kind::Timeout],
            "a listing took too long",
            "look at the size of the table",
        ),
        Code::new(
            "OBSERVER_LIST_GIVEN_UP",
            &[Kind::Unavailable],
            "a listing was given up",
            "",
        ),
        Code::new(
            "OBSERVER_NO_TRACKING",
            &[Kind::Unsupported],
            "the kernel has no connection tracking",
            "load nf_conntrack",
        ),
        Code::new(
            "OBSERVER_SETTING",
            &[Kind::Denied, Kind::Unavailable],
            "a setting of connection tracking cannot be read or written",
            "run as root, with /proc/sys writable",
        ),
        Code::new(
            "OBSERVER_SETTING_UNKNOWN",
            &[Kind::Unsupported],
            "a setting holds no number",
            "report it with the kernel's version",
        ),
        Code::new(
            "OBSERVER_PROBE",
            &[Kind::Denied, Kind::Unavailable],
            "the doctor could not send its datagram to itself",
            "raise `lo` in the namespace",
        ),
    ],
}];
