//! The attributes of a conntrack entry (`enum ctattr_type` and its nests in
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h) as a [`Flow`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dormouse_model::{Flow, FlowKey, Protocol, TcpState};

use super::WireError;
use super::attribute::Attributes;

/// Kinds at the top of an entry (`enum ctattr_type`).
mod top {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const ZONE: u16 = 18;
}

/// Kinds within a tuple (`enum ctattr_tuple`).
mod tuple {
    pub(super) const IP: u16 = 1;
    pub(super) const PROTO: u16 = 2;
    pub(super) const ZONE: u16 = 3;
}

/// Kinds within a tuple's addresses (`enum ctattr_ip`).
mod ip {
    pub(super) const V4_SRC: u16 = 1;
    pub(super) const V4_DST: u16 = 2;
    pub(super) const V6_SRC: u16 = 3;
    pub(super) const V6_DST: u16 = 4;
}

/// Kinds within a tuple's protocol (`enum ctattr_l4proto`).
mod proto {
    pub(super) const NUM: u16 = 1;
    pub(super) const SRC_PORT: u16 = 2;
    pub(super) const DST_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMP_CODE: u16 = 6;
    pub(super) const ICMPV6_ID: u16 = 7;
    pub(super) const ICMPV6_TYPE: u16 = 8;
    pub(super) const ICMPV6_CODE: u16 = 9;
}

/// `CTA_PROTOINFO_TCP` within `CTA_PROTOINFO`, and `CTA_PROTOINFO_TCP_STATE` within that.
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;

/// One direction of an entry.
#[derive(Debug, Clone, Copy, Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: u16,
    destination_port: u16,
    zone: Option<u16>,
}

/// Reads the attributes of an entry. Kinds that we have no use for are passed over unread; the last of
/// several of one kind counts, as it does in the kernel.
///
/// A missing reply tuple means that the addressed one answers. For ICMP the destination port of the key
/// is the request's type and code, so that two requests of one id are two flows.
///
/// # Errors
/// When an attribute that we read is malformed, or there is no complete original tuple.
pub fn flow(attributes: &[u8]) -> Result<Flow, WireError> {
    let mut original = Tuple::default();
    let mut reply = Tuple::default();
    let mut tcp_state = None;
    let mut zone = None;
    for attribute in Attributes::new(attributes) {
        let attribute = attribute?;
        match attribute.kind {
            top::TUPLE_ORIG => original = read_tuple(attribute.value)?,
            top::TUPLE_REPLY => reply = read_tuple(attribute.value)?,
            top::PROTOINFO => tcp_state = read_tcp_state(attribute.value)?,
            top::ZONE => zone = Some(attribute.port()?),
            _ => {}
        }
    }
    let source = original.source.ok_or(WireError::Missing {
        what: "source address",
    })?;
    let destination = original.destination.ok_or(WireError::Missing {
        what: "destination address",
    })?;
    let protocol = original.protocol.ok_or(WireError::Missing { what: "protocol" })?;
    let protocol = Protocol::from_number(protocol);
    Ok(Flow {
        key: FlowKey {
            protocol,
            // A zone of one direction only stands in that direction's tuple.
            zone: zone.or(original.zone).unwrap_or(0),
            source,
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
        tcp_state: if protocol == Protocol::Tcp {
            tcp_state
        } else {
            None
        },
    })
}

fn read_tuple(bytes: &[u8]) -> Result<Tuple, WireError> {
    let mut read = Tuple::default();
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            tuple::IP => read_addresses(attribute.value, &mut read)?,
            tuple::PROTO => read_protocol(attribute.value, &mut read)?,
            tuple::ZONE => read.zone = Some(attribute.port()?),
            _ => {}
        }
    }
    Ok(read)
}

fn read_addresses(bytes: &[u8], read: &mut Tuple) -> Result<(), WireError> {
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            ip::V4_SRC => read.source = Some(Ipv4Addr::from(attribute.array::<4>()?).into()),
            ip::V4_DST => read.destination = Some(Ipv4Addr::from(attribute.array::<4>()?).into()),
            ip::V6_SRC => read.source = Some(Ipv6Addr::from(attribute.array::<16>()?).to_canonical()),
            ip::V6_DST => read.destination = Some(Ipv6Addr::from(attribute.array::<16>()?).to_canonical()),
            _ => {}
        }
    }
    Ok(())
}

fn read_protocol(bytes: &[u8], read: &mut Tuple) -> Result<(), WireError> {
    let (mut request_type, mut request_code) = (0, 0);
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        match attribute.kind {
            proto::NUM => read.protocol = Some(attribute.byte()?),
            proto::SRC_PORT | proto::ICMP_ID | proto::ICMPV6_ID => read.source_port = attribute.port()?,
            proto::DST_PORT => read.destination_port = attribute.port()?,
            proto::ICMP_TYPE | proto::ICMPV6_TYPE => request_type = attribute.byte()?,
            proto::ICMP_CODE | proto::ICMPV6_CODE => request_code = attribute.byte()?,
            _ => {}
        }
    }
    if let Some(1 | 58) = read.protocol {
        read.destination_port = u16::from_be_bytes([request_type, request_code]);
    }
    Ok(())
}

fn read_tcp_state(bytes: &[u8]) -> Result<Option<TcpState>, WireError> {
    let mut state = None;
    for attribute in Attributes::new(bytes) {
        let attribute = attribute?;
        if attribute.kind == PROTOINFO_TCP {
            for inner in Attributes::new(attribute.value) {
                let inner = inner?;
                if inner.kind == TCP_STATE {
                    state = Some(TcpState(inner.byte()?));
                }
            }
        }
    }
    Ok(state)
}
