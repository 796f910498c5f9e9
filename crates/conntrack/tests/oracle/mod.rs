//! netlink-packet-netfilter as the oracle of our reader.

use std::net::{IpAddr, Ipv6Addr};

use dormouse_conntrack::wire::{Body, messages};
use dormouse_model::{Flow, FlowKey, Protocol, TcpState};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Tuple,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};

/// Messages of netlink itself have types below this (include/uapi/linux/netlink.h).
const NLMSG_MIN_TYPE: u8 = 0x10;
/// The second byte of a type: connection tracking (include/uapi/linux/netfilter/nfnetlink.h).
const NFNL_SUBSYS_CTNETLINK: u8 = 1;

/// How far the two must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Bytes of the kernel: both read all of it.
    Whole,
    /// Damaged bytes: each may refuse what the other reads, the crate because it reads more attributes
    /// than we need, we because we insist on the size of what we read.
    WhereBothRead,
}

/// Compares both readings message by message.
pub(crate) fn agree(datagram: &[u8], trust: Trust) {
    let mut rest = datagram;
    for ours in messages(datagram) {
        let theirs = read(rest);
        let said = rest
            .first_chunk::<4>()
            .map_or(0, |length| u32::from_ne_bytes(*length) as usize);
        rest = rest.get(said.next_multiple_of(4)..).unwrap_or_default();
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => assert_eq!(comparable(ours.body), theirs, "{datagram:02x?}"),
            (ours, theirs) => {
                assert!(
                    trust == Trust::WhereBothRead,
                    "ours {ours:?}, theirs {theirs:?}: {datagram:02x?}"
                );
            }
        }
    }
}

/// What both say about a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Made(Flow),
    Entry(Flow),
    Gone(FlowKey),
    Answer(i32),
    Done,
    Overrun,
    Other,
}

fn comparable(body: Body) -> Reading {
    match body {
        Body::Made(flow) => Reading::Made(flow),
        Body::Entry(flow) => Reading::Entry(flow),
        Body::Gone(key) => Reading::Gone(key),
        Body::Answer { errno } => Reading::Answer(errno),
        // The crate reads the number of an end only where there is one.
        Body::Done { .. } => Reading::Done,
        Body::Overrun => Reading::Overrun,
        Body::Other => Reading::Other,
    }
}

fn read(bytes: &[u8]) -> Option<Reading> {
    // Of other parts of netfilter the crate reads more than we ask, and panics on some of it: an attribute of
    // nf_tables that is shorter than its header (0.4.0).
    let [kind, part] = *bytes.get(4..)?.first_chunk()?;
    let is_control = part == 0 && kind < NLMSG_MIN_TYPE;
    if !is_control && part != NFNL_SUBSYS_CTNETLINK {
        return Some(Reading::Other);
    }
    let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes).ok()?;
    match message.payload {
        NetlinkPayload::Done(_) => Some(Reading::Done),
        NetlinkPayload::Error(error) => Some(Reading::Answer(error.raw_code().saturating_neg())),
        NetlinkPayload::Noop => Some(Reading::Other),
        NetlinkPayload::Overrun(_) => Some(Reading::Overrun),
        NetlinkPayload::InnerMessage(message_body) => match message_body.inner {
            NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => {
                let flow = flow(&attributes)?;
                if message.header.flags & 0x600 == 0x600 {
                    Some(Reading::Made(flow))
                } else {
                    Some(Reading::Entry(flow))
                }
            }
            NetfilterMessageInner::Conntrack(ConntrackMessage::Delete(attributes)) => {
                Some(Reading::Gone(flow(&attributes)?.key))
            }
            _ => Some(Reading::Other),
        },
        _ => None,
    }
}

#[derive(Default)]
struct Direction {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: u16,
    destination_port: u16,
    request_type: u8,
    request_code: u8,
    zone: Option<u16>,
}

fn flow(attributes: &[ConntrackAttribute]) -> Option<Flow> {
    let (mut original, mut reply) = (Direction::default(), Direction::default());
    let (mut state, mut zone) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => original = direction(tuples)?,
            ConntrackAttribute::CtaTupleReply(tuples) => reply = direction(tuples)?,
            ConntrackAttribute::CtaProtoInfo(infos) => state = tcp_state(infos),
            ConntrackAttribute::Other(other) if other.kind() & 0x3fff == 18 => zone = Some(number16(other)?),
            _ => {}
        }
    }
    let protocol = Protocol::from_number(original.protocol?);
    let destination = original.destination?;
    Some(Flow {
        key: FlowKey {
            protocol,
            zone: zone.or(original.zone).unwrap_or(0),
            source: original.source?,
            source_port: original.source_port,
            destination,
            destination_port: original.destination_port,
        },
        responder: reply.source.unwrap_or(destination),
        responder_port: if reply.source.is_some() {
            reply.source_port
        } else {
            original.destination_port
        },
        tcp_state: if protocol == Protocol::Tcp { state } else { None },
    })
}

fn tcp_state(infos: &[ProtoInfo]) -> Option<TcpState> {
    let mut state = None;
    for info in infos {
        if let ProtoInfo::TCP(parts) = info {
            for part in parts {
                if let ProtoInfoTCP::State(number) = part {
                    state = Some(TcpState(*number));
                }
            }
        }
    }
    state
}

fn direction(tuples: &[Tuple]) -> Option<Direction> {
    let mut read = Direction::default();
    for tuple in tuples {
        match tuple {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(source) => read.source = Some(unmapped(*source)),
                        IPTuple::DestinationAddress(destination) => {
                            read.destination = Some(unmapped(*destination));
                        }
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => protocol(parts, &mut read)?,
            Tuple::Other(other) if other.kind() & 0x3fff == 3 => read.zone = Some(number16(other)?),
            _ => {}
        }
    }
    Some(read)
}

fn protocol(parts: &[ProtoTuple], read: &mut Direction) -> Option<()> {
    for part in parts {
        match part {
            ProtoTuple::Protocol(number) => read.protocol = Some(u8::from(*number)),
            ProtoTuple::SourcePort(port) => read.source_port = *port,
            ProtoTuple::DestinationPort(port) => read.destination_port = *port,
            ProtoTuple::Other(other) => match other.kind() & 0x3fff {
                4 | 7 => read.source_port = number16(other)?,
                5 | 8 => read.request_type = number8(other)?,
                6 | 9 => read.request_code = number8(other)?,
                _ => {}
            },
            _ => {}
        }
    }
    if let Some(1 | 58) = read.protocol {
        read.destination_port = u16::from_be_bytes([read.request_type, read.request_code]);
    }
    // One nest may be followed by another that starts these afresh.
    (read.request_type, read.request_code) = (0, 0);
    Some(())
}

fn value(attribute: &netlink_packet_core::DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

fn number16(attribute: &netlink_packet_core::DefaultNla) -> Option<u16> {
    value(attribute).try_into().ok().map(u16::from_be_bytes)
}

fn number8(attribute: &netlink_packet_core::DefaultNla) -> Option<u8> {
    value(attribute).try_into().ok().map(|[byte]: [u8; 1]| byte)
}

fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => Ipv6Addr::to_canonical(&six),
    }
}
