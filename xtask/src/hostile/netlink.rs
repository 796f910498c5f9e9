//! Netlink: datagrams that no kernel sends, to the readers of connection tracking and of knocks; and
//! messages that somebody who is not the kernel sends to the daemon's sockets.

#![allow(clippy::too_many_lines, reason = "a function is a table of cases")]

mod forged;

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, ensure};
use dormouse_conntrack::wire::{Body, messages};
use dormouse_network::knock::questions;

use super::bed::Bed;

pub(super) const AREA: &str = "netlink";

/// `IPCTNL_MSG_CT_NEW` of `NFNL_SUBSYS_CTNETLINK` (include/uapi/linux/netfilter/nfnetlink.h).
pub(super) const ENTRY: u16 = 0x100;
/// `RTM_GETNEIGH` and `RTM_NEWNEIGH` (include/uapi/linux/rtnetlink.h).
pub(super) const ASK: u16 = 30;
const TELL: u16 = 28;
/// `NLMSG_ERROR`.
pub(super) const ERROR: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLM_F_CREATE | NLM_F_EXCL`: the entry is new.
pub(super) const MADE: u16 = 0x600;
/// The device that questions are asked on, in the table.
const DEVICE: u32 = 3;

/// A message whose header says `said` bytes.
fn saying(said: u32, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = said.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// A message.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    saying(length, kind, flags, body)
}

/// An attribute (`struct nlattr`).
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

/// An entry: `struct nfgenmsg`, then attributes.
pub(super) fn entry(attributes: &[Vec<u8>]) -> Vec<u8> {
    message(ENTRY, MADE, &[vec![2, 0, 0, 0], attributes.concat()].concat())
}

/// A direction of an entry, from these two addresses.
pub(super) fn tuple(kind: u16, source: &[u8], destination: &[u8]) -> Vec<u8> {
    let addresses = nest(1, &[attribute(1, source), attribute(2, destination)]);
    let protocol = nest(
        2,
        &[attribute(1, &[6]), attribute(2, &[4, 0]), attribute(3, &[0, 80])],
    );
    nest(kind, &[addresses, protocol])
}

/// A neighbour's message (`struct ndmsg`), then attributes.
pub(super) fn neighbour(kind: u16, device: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![2, 0, 0, 0];
    body.extend_from_slice(&device.to_ne_bytes());
    body.extend_from_slice(&[1, 0, 0, 1]);
    body.extend_from_slice(&attributes.concat());
    message(kind, 0, &body)
}

/// `NDA_DST`.
pub(super) fn destination(address: &[u8]) -> Vec<u8> {
    attribute(1, address)
}

/// What the reader of connection tracking makes of a datagram, a word a message.
fn read(datagram: &[u8]) -> String {
    let words: Vec<&str> = messages(datagram)
        .map(|message| match message.map(|message| message.body) {
            Ok(Body::Made(_) | Body::Entry(_)) => "flow",
            Ok(Body::Gone(_)) => "gone",
            Ok(Body::Answer { .. }) => "answer",
            Ok(Body::Done { .. }) => "done",
            Ok(Body::Overrun) => "overrun",
            Ok(Body::Other) => "other",
            Err(_) => "refused",
        })
        .collect();
    if words.is_empty() {
        return "nothing".to_owned();
    }
    words.join(" ")
}

/// What the reader of knocks makes of it.
fn hear(datagram: &[u8]) -> String {
    match questions(datagram, DEVICE).len() {
        0 => "nothing".to_owned(),
        count => format!("{count} asked"),
    }
}

/// A name, what must come of it, the bytes.
type Row = (&'static str, &'static str, Vec<u8>);

/// Framing, for both readers alike.
fn frames() -> Vec<Row> {
    vec![
        ("no byte", "nothing", Vec::new()),
        ("one byte", "refused", vec![16]),
        ("15 of a header's 16 bytes", "refused", vec![0; 15]),
        ("a length of 0", "refused", saying(0, ASK, 0, &[0; 32])),
        ("a length of 15", "refused", saying(15, ASK, 0, &[0; 32])),
        ("a length beyond the end", "refused", saying(49, ASK, 0, &[0; 32])),
        ("a length of 4 GiB", "refused", saying(u32::MAX, ASK, 0, &[0; 32])),
        ("noise", "refused", vec![0xff; 4096]),
    ]
}

/// Entries of connection tracking.
fn entries() -> Vec<Row> {
    let good = || tuple(1, &[10, 0, 0, 1], &[10, 0, 0, 2]);
    let mut deep = attribute(1, &[1]);
    for _ in 0..2000 {
        deep = nest(1, &[deep]);
    }
    let cut = attribute(1 | NESTED, &[200, 0, 1, 0]);
    let second = [message(0x105, 0, &[0; 8]), entry(&[good()])].concat();
    vec![
        ("a good entry", "flow", entry(&[good()])),
        ("one behind a foreign message", "other flow", second),
        (
            "an entry without its own header",
            "refused",
            message(ENTRY, 0, &[]),
        ),
        (
            "an entry with half of its own header",
            "refused",
            message(ENTRY, 0, &[2, 0]),
        ),
        ("an entry without attributes", "refused", entry(&[])),
        (
            "an attribute of length 0",
            "refused",
            entry(&[good(), vec![0; 4]]),
        ),
        (
            "an attribute of length 3",
            "refused",
            entry(&[good(), vec![3, 0, 1, 0]]),
        ),
        (
            "an attribute beyond the end",
            "refused",
            entry(&[good(), vec![0xff, 0xff, 1, 0]]),
        ),
        (
            "a nested attribute beyond its nest",
            "refused",
            entry(&[good(), cut]),
        ),
        ("a nest 2,000 deep", "refused", entry(&[deep])),
        (
            "an address of 3 bytes",
            "refused",
            entry(&[tuple(1, &[10, 0, 0], &[10, 0, 0, 2])]),
        ),
        (
            "an IPv6 address where IPv4 is said",
            "refused",
            entry(&[tuple(1, &[1; 16], &[10, 0, 0, 2])]),
        ),
        (
            "a zone of one byte",
            "refused",
            entry(&[good(), attribute(18, &[1])]),
        ),
        (
            "a tuple that is a number",
            "refused",
            entry(&[attribute(1, &7_u32.to_ne_bytes())]),
        ),
        ("4,000 tuples", "flow", entry(&vec![good(); 4000])),
        (
            "4,000 unknown attributes",
            "flow",
            entry(&[vec![good()], vec![attribute(999, &[1; 8]); 4000]].concat()),
        ),
        ("another subsystem", "other", message(0x0a00, 0, &[0; 64])),
        ("another message of it", "other", message(0x10f, 0, &[0; 64])),
        (
            "an error without its number",
            "refused",
            message(ERROR, 0, &[1, 2]),
        ),
        ("an end without its number", "done", message(3, 0, &[])),
        ("a loss", "overrun", message(4, 0, &[])),
    ]
}

/// Questions for neighbours.
fn knocks() -> Vec<Row> {
    let one = || destination(&[10, 78, 0, 2]);
    vec![
        ("a good question", "1 asked", neighbour(ASK, DEVICE, &[one()])),
        ("on another device", "nothing", neighbour(ASK, 9, &[one()])),
        ("an answer", "nothing", neighbour(TELL, DEVICE, &[one()])),
        ("without an address", "nothing", neighbour(ASK, DEVICE, &[])),
        ("without its own header", "nothing", message(ASK, 0, &[])),
        (
            "with half of its own header",
            "nothing",
            message(ASK, 0, &[2, 0, 0, 0, 3]),
        ),
        (
            "an address of 3 bytes",
            "nothing",
            neighbour(ASK, DEVICE, &[destination(&[10, 78, 0])]),
        ),
        (
            "an address of 17 bytes",
            "nothing",
            neighbour(ASK, DEVICE, &[destination(&[1; 17])]),
        ),
        (
            "an attribute of length 0",
            "nothing",
            neighbour(ASK, DEVICE, &[vec![0; 4]]),
        ),
        (
            "an attribute beyond the end",
            "nothing",
            neighbour(ASK, DEVICE, &[vec![0xff, 0xff, 1, 0]]),
        ),
        (
            "1,000 questions",
            "1000 asked",
            neighbour(ASK, DEVICE, &[one()]).repeat(1000),
        ),
        (
            "a question behind noise",
            "nothing",
            [vec![0xff; 16], neighbour(ASK, DEVICE, &[one()])].concat(),
        ),
    ]
}

/// The tables, then a daemon's sockets.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    for (name, want, bytes) in frames().into_iter().chain(entries()) {
        table(bed, &format!("entry: {name}"), want, &bytes, read);
    }
    for (name, _, bytes) in frames() {
        table(bed, &format!("question: {name}"), "nothing", &bytes, hear);
    }
    for (name, want, bytes) in knocks() {
        table(bed, &format!("question: {name}"), want, &bytes, hear);
    }
    forged::run(bed)
}

/// One datagram, whole and cut at every length.
fn table(bed: &mut Bed, name: &str, want: &str, bytes: &[u8], reader: fn(&[u8]) -> String) {
    let judged = || -> Result<()> {
        let got = reader(bytes);
        ensure!(got == want, "wanted {want:?}, got {got:?}");
        // What is cut off reads as something, or as nothing.
        for length in 0..bytes.len().min(600) {
            reader(bytes.get(..length).unwrap_or_default());
        }
        Ok(())
    };
    let fault = match catch_unwind(AssertUnwindSafe(judged)) {
        Ok(outcome) => outcome.err().map(|error| error.to_string()),
        Err(_) => Some("it panicked".to_owned()),
    };
    bed.tally.note(AREA, name, fault);
}
