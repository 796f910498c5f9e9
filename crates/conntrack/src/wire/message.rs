//! Datagrams from the kernel as messages (`struct nlmsghdr` in include/uapi/linux/netlink.h, `struct
//! nfgenmsg` in include/uapi/linux/netfilter/nfnetlink.h).

use dormouse_model::{Flow, FlowKey};

use super::{WireError, entry};
use crate::sync::Delta;

/// Size of a netlink header: length 4, type 2, flags 2, sequence 4, port 4, in the host's order.
const HEADER_BYTES: usize = 16;

/// Size of `struct nfgenmsg`: family, version, resource id.
const NETFILTER_HEADER_BYTES: usize = 4;

/// Message types below this are netlink's own (`NLMSG_MIN_TYPE`).
const OWN_TYPES_END: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

/// `NFNL_SUBSYS_CTNETLINK`, the high byte of the type.
const SUBSYSTEM_CONNTRACK: u8 = 1;
/// `IPCTNL_MSG_CT_NEW`, the low byte: an entry was made, changed or listed.
const ENTRY: u8 = 0;
/// `IPCTNL_MSG_CT_DELETE`: an entry was dropped.
const ENTRY_GONE: u8 = 2;

/// `NLM_F_DUMP_INTR`.
const FLAG_INTERRUPTED: u16 = 0x10;
/// `NLM_F_EXCL | NLM_F_CREATE`: the kernel sets both on the event of a new entry and neither on the
/// event of a changed one (`ctnetlink_conntrack_event` in net/netfilter/nf_conntrack_netlink.c).
const FLAGS_MADE: u16 = 0x600;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The sequence number; on an answer that of the request, on an event 0.
    pub sequence: u32,
    /// Whether the listing that this belongs to was interrupted by a change of the table's shape.
    pub interrupted: bool,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// An entry was made.
    Made(Flow),
    /// An entry changed, or is listed.
    Entry(Flow),
    /// An entry was dropped.
    Gone(FlowKey),
    /// The answer to a request: an error number of errno(3), or 0 for "done".
    Answer {
        /// The number, positive.
        errno: i32,
    },
    /// The end of a listing.
    Done {
        /// 0, or the positive error number that ended it early.
        errno: i32,
    },
    /// The kernel lost messages.
    Overrun,
    /// Nothing that concerns flows: no-operation, another subsystem, another message of conntrack.
    Other,
}

impl Message {
    /// What the message means as an event.
    #[must_use]
    pub const fn delta(&self) -> Option<Delta> {
        match self.body {
            Body::Made(flow) => Some(Delta::Opened(flow)),
            Body::Entry(flow) => Some(Delta::Changed(flow)),
            Body::Gone(key) => Some(Delta::Closed(key)),
            Body::Answer { .. } | Body::Done { .. } | Body::Overrun | Body::Other => None,
        }
    }
}

/// The messages in one datagram, in order. A message that cannot be read is an error in its place; after
/// an error of framing nothing more comes.
#[must_use]
pub const fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// See [`messages`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl Iterator for Messages<'_> {
    type Item = Result<Message, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match split(self.rest) {
            Ok((header, payload, rest)) => {
                self.rest = rest;
                Some(read(header, payload))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

type Split<'a> = (Header, &'a [u8], &'a [u8]);

fn split(bytes: &[u8]) -> Result<Split<'_>, WireError> {
    let got = bytes.len();
    let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(WireError::Message { got, said: 0 });
    };
    let [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, ..] = *header;
    let said = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let payload = bytes
        .get(HEADER_BYTES..said)
        .ok_or(WireError::Message { got, said })?;
    let rest = bytes.get(said.next_multiple_of(4)..).unwrap_or_default();
    let header = Header {
        kind: u16::from_ne_bytes([t0, t1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
    };
    Ok((header, payload, rest))
}

fn read(header: Header, payload: &[u8]) -> Result<Message, WireError> {
    let body = if header.kind < OWN_TYPES_END {
        read_own(header.kind, payload)?
    } else {
        read_conntrack(header, payload)?
    };
    Ok(Message {
        sequence: header.sequence,
        interrupted: header.flags & FLAG_INTERRUPTED != 0,
        body,
    })
}

fn read_own(kind: u16, payload: &[u8]) -> Result<Body, WireError> {
    match kind {
        NLMSG_ERROR => {
            let (number, _) = payload.split_first_chunk::<4>().ok_or(WireError::Message {
                got: payload.len(),
                said: HEADER_BYTES + 4,
            })?;
            Ok(Body::Answer {
                errno: positive(*number),
            })
        }
        // Old kernels end a listing without a number.
        NLMSG_DONE => Ok(Body::Done {
            errno: payload.split_first_chunk::<4>().map_or(0, |(n, _)| positive(*n)),
        }),
        NLMSG_OVERRUN => Ok(Body::Overrun),
        _ => Ok(Body::Other),
    }
}

/// Error numbers travel negative in the host's order.
const fn positive(number: [u8; 4]) -> i32 {
    i32::from_ne_bytes(number).saturating_neg()
}

fn read_conntrack(header: Header, payload: &[u8]) -> Result<Body, WireError> {
    let [high, low] = header.kind.to_be_bytes();
    if high != SUBSYSTEM_CONNTRACK {
        return Ok(Body::Other);
    }
    let attributes = || {
        payload.get(NETFILTER_HEADER_BYTES..).ok_or(WireError::Message {
            got: payload.len(),
            said: HEADER_BYTES + NETFILTER_HEADER_BYTES,
        })
    };
    match low {
        ENTRY if header.flags & FLAGS_MADE == FLAGS_MADE => entry::flow(attributes()?).map(Body::Made),
        ENTRY => entry::flow(attributes()?).map(Body::Entry),
        ENTRY_GONE => entry::flow(attributes()?).map(|flow| Body::Gone(flow.key)),
        _ => Ok(Body::Other),
    }
}
