//! Which addresses a guest may send from: elements of two packet sets, changed by netlink
//! (include/uapi/linux/netfilter/nf_tables.h). Pure.
//!
//! An element is a pair of a tap's name and an address. It exists as long as the link, asleep or
//! awake, so that a wake has nothing to do here.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use nix::libc::IFNAMSIZ;

use crate::netlink::{Request, tolerate};
use crate::rules::{SOURCES_IPV4, SOURCES_IPV6};

/// `NETLINK_NETFILTER`.
pub(crate) const PROTOCOL: isize = 12;

const SUBSYSTEM: u16 = 10; // NFNL_SUBSYS_NFTABLES
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const REMOVE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
const FAMILY_INET: u8 = 1; // NFPROTO_INET

/// One permission: this tap may send from this address.
pub(crate) type Source<'a> = (&'a str, IpAddr);

/// Elements in one message: their list must fit an attribute, which has 16 bits for its size.
const ELEMENTS_MAX: usize = 500;

/// The transaction that allows `sources`.
pub(crate) fn allow(table: &str, sources: &[Source<'_>]) -> Vec<Request> {
    transaction(additions(table, sources))
}

/// The transaction that takes `source` back.
pub(crate) fn forbid(table: &str, source: Source<'_>) -> Vec<Request> {
    let set = set_of(source.1);
    let about = format!("{} on {}", source.1, source.0);
    let body = element_list(table, set, &[source]);
    let tolerated = tolerate::ABSENT;
    let doing = "forbidding the source";
    transaction(vec![Request {
        kind: REMOVE_ELEMENTS,
        flags: 0,
        body,
        tolerated,
        doing,
        about,
    }])
}

/// The transaction that replaces all sources by `sources`: a guest that is among them can send all
/// the while.
pub(crate) fn replace(table: &str, sources: &[Source<'_>]) -> Vec<Request> {
    let empty = [SOURCES_IPV4, SOURCES_IPV6].map(|set| Request {
        kind: REMOVE_ELEMENTS,
        flags: 0,
        body: element_list(table, set, &[]),
        tolerated: tolerate::NOTHING,
        doing: "emptying the set",
        about: set.to_owned(),
    });
    transaction(empty.into_iter().chain(additions(table, sources)).collect())
}

fn additions(table: &str, sources: &[Source<'_>]) -> Vec<Request> {
    let mut requests = Vec::new();
    for set in [SOURCES_IPV4, SOURCES_IPV6] {
        let members: Vec<_> = sources
            .iter()
            .copied()
            .filter(|source| set_of(source.1) == set)
            .collect();
        for part in members.chunks(ELEMENTS_MAX) {
            let about = part
                .iter()
                .map(|(tap, address)| format!("{address} on {tap}"))
                .next()
                .unwrap_or_default();
            requests.push(Request {
                kind: NEW_ELEMENTS,
                flags: NLM_F_CREATE,
                body: element_list(table, set, part),
                tolerated: tolerate::EXISTS,
                doing: "allowing the source",
                about,
            });
        }
    }
    requests
}

fn transaction(requests: Vec<Request>) -> Vec<Request> {
    let bracket = |kind| Request {
        kind,
        flags: 0,
        // Family, version, and the subsystem in network order.
        body: [&[0, 0][..], &SUBSYSTEM.to_be_bytes()].concat(),
        tolerated: tolerate::NOTHING,
        doing: "changing the packet sets",
        about: String::new(),
    };
    std::iter::once(bracket(BATCH_BEGIN))
        .chain(requests)
        .chain(std::iter::once(bracket(BATCH_END)))
        .collect()
}

const fn set_of(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => SOURCES_IPV4,
        IpAddr::V6(_) => SOURCES_IPV6,
    }
}

/// A concatenation: the name filled up with zeros, then the address; every field on its own four
/// bytes.
fn key((tap, address): Source<'_>) -> Vec<u8> {
    let mut key = tap.as_bytes().to_vec();
    key.resize(IFNAMSIZ, 0);
    match address {
        IpAddr::V4(ipv4) => key.extend(ipv4.octets()),
        IpAddr::V6(ipv6) => key.extend(ipv6.octets()),
    }
    key
}

/// Asks for a table, and not for what is in it: of thousands of elements nothing is read.
pub(crate) fn table(name: &str) -> Request {
    let mut body = vec![FAMILY_INET, 0, 0, 0];
    body.extend(attribute(1, &[name.as_bytes(), &[0]].concat())); // NFTA_TABLE_NAME
    Request {
        kind: GET_TABLE,
        flags: 0,
        body,
        tolerated: tolerate::ABSENT,
        doing: "looking at the packet table",
        about: name.to_owned(),
    }
}

/// Whether the answer to [`table`] bears `comment` in the form that nft gives it: user data of kind 0, its
/// length in one byte, the text with its zero.
pub(crate) fn has_comment(answer: &[u8], comment: &str) -> bool {
    let Ok(length) = u8::try_from(comment.len() + 1) else {
        return false;
    };
    let kept = [&[0, length][..], comment.as_bytes(), &[0]].concat();
    answer.windows(kept.len()).any(|part| part == kept)
}

/// The body of a message about elements of a set; without any, about all of them.
fn element_list(table: &str, set: &str, sources: &[Source<'_>]) -> Vec<u8> {
    let text = |text: &str| [text.as_bytes(), &[0]].concat();
    let mut body = vec![FAMILY_INET, 0, 0, 0];
    body.extend(attribute(1, &text(table))); // NFTA_SET_ELEM_LIST_TABLE
    body.extend(attribute(2, &text(set))); // NFTA_SET_ELEM_LIST_SET
    if !sources.is_empty() {
        // NFTA_LIST_ELEM > NFTA_SET_ELEM_KEY > NFTA_DATA_VALUE
        let element = |&source: &Source<'_>| nested(1, &nested(1, &attribute(1, &key(source))));
        let elements: Vec<u8> = sources.iter().flat_map(element).collect();
        body.extend(nested(3, &elements)); // NFTA_SET_ELEM_LIST_ELEMENTS
    }
    body
}

fn nested(kind: u16, body: &[u8]) -> Vec<u8> {
    attribute(kind | netlink_packet_core::NLA_F_NESTED, body)
}

fn attribute(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), body].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_told_from_what_only_contains_it() {
        // NFTA_TABLE_USERDATA (6), 9 bytes: kind 0, 3 bytes of text.
        let answer = [1, 0, 0, 0, 9, 0, 6, 0, 0, 3, b'd', b'm', 0, 0, 0, 0];
        assert!(has_comment(&answer, "dm"));
        for other in ["d", "m", "dmx", "", &"x".repeat(300)] {
            assert!(!has_comment(&answer, other), "{other}");
        }
        assert_eq!(table("dormouse_dm").body.len(), 4 + 4 + 12);
    }

    #[test]
    fn an_element_is_a_name_and_an_address() {
        let requests = allow("dormouse_dm", &[("dmt0123456789", "10.78.0.2".parse().unwrap())]);
        assert_eq!(
            requests.iter().map(|r| r.kind).collect::<Vec<_>>(),
            [0x10, 0xa0c, 0x11]
        );
        let body = &requests[1].body;
        assert_eq!(&body[body.len() - 20..], b"dmt0123456789\0\0\0\x0a\x4e\x00\x02");
        assert_eq!(body.len() % 4, 0);
        let all = replace("dormouse_dm", &[("dmt0123456789", "fd78::2".parse().unwrap())]);
        assert_eq!(
            all.iter().map(|r| r.kind).collect::<Vec<_>>(),
            [0x10, 0xa0e, 0xa0e, 0xa0c, 0x11]
        );
    }
}
