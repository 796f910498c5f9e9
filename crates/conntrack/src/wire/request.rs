//! What we send: listings, and the question that serves as a barrier.

use std::net::{IpAddr, Ipv4Addr};

use dormouse_model::{FlowKey, Protocol as Transport};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

/// `CTA_FILTER`, since Linux 5.8.
const CTA_FILTER: u16 = 25;
/// `CTA_FILTER_ORIG_FLAGS` and `CTA_FILTER_REPLY_FLAGS` within it: which parts of each tuple must match,
/// 32 bits in the host's order.
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The flag of the source address (`CTA_FILTER_F_CTA_IP_SRC` in net/netfilter/nf_internals.h).
const MATCH_SOURCE: u32 = 1;

/// A request for the whole table, both families.
#[must_use]
pub fn list_all(sequence: u32) -> Vec<u8> {
    request(
        sequence,
        NLM_F_REQUEST | NLM_F_DUMP,
        NetfilterProtoFamily::Unspec,
        Vec::new(),
    )
}

/// A request for the entries that `responder` answers: the source of the reply direction. The kernel
/// filters, but it still walks the whole table.
///
/// Only a help: a kernel before 5.8 answers with everything, and for IPv6 we ask for the whole family,
/// because the kernel compares the wrong way round (`ctnetlink_filter_match_tuple` in
/// net/netfilter/nf_conntrack_netlink.c leaves out what equals the address; seen on 6.18) and would
/// list nothing for a guest that is busy. Whoever reads the answer filters again.
#[must_use]
pub fn list_of_responder(sequence: u32, responder: IpAddr) -> Vec<u8> {
    if responder.is_ipv6() {
        return request(
            sequence,
            NLM_F_REQUEST | NLM_F_DUMP,
            NetfilterProtoFamily::IPv6,
            Vec::new(),
        );
    }
    let tuple = vec![Tuple::Ip(vec![IPTuple::SourceAddress(responder)])];
    let attributes = vec![ConntrackAttribute::CtaTupleReply(tuple)];
    let mut bytes = request(
        sequence,
        NLM_F_REQUEST | NLM_F_DUMP,
        family(responder),
        attributes,
    );
    // The kernel insists on the flag of a nest, which the crate takes off kinds that it has no type for.
    append(&mut bytes, CTA_FILTER | NESTED, 16);
    for (kind, value) in [(CTA_FILTER_ORIG_FLAGS, 0), (CTA_FILTER_REPLY_FLAGS, MATCH_SOURCE)] {
        append(&mut bytes, kind, 4);
        bytes.extend_from_slice(&u32::to_ne_bytes(value));
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if let Some(field) = bytes.first_chunk_mut::<4>() {
        *field = length.to_ne_bytes();
    }
    bytes
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Appends the header of an attribute with a value of `length` bytes.
fn append(bytes: &mut Vec<u8>, kind: u16, length: u16) {
    bytes.extend_from_slice(&(length + 4).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
}

/// The question for one entry that cannot exist: TCP from port 0 of 0.0.0.0 to port 0 of 0.0.0.0. The
/// answer is "no such entry", queued behind every event that was queued before it.
#[must_use]
pub fn barrier(sequence: u32) -> Vec<u8> {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let tuple = vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(nobody),
            IPTuple::DestinationAddress(nobody),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(0),
            ProtoTuple::DestinationPort(0),
        ]),
    ];
    request(
        sequence,
        NLM_F_REQUEST,
        NetfilterProtoFamily::IPv4,
        vec![ConntrackAttribute::CtaTupleOrig(tuple)],
    )
}

/// The question for the entry of a UDP exchange; used to see whether anything is tracked.
#[must_use]
pub fn udp_entry(sequence: u32, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Vec<u8> {
    let tuple = vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(source.0),
            IPTuple::DestinationAddress(destination.0),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Udp),
            ProtoTuple::SourcePort(source.1),
            ProtoTuple::DestinationPort(destination.1),
        ]),
    ];
    request(
        sequence,
        NLM_F_REQUEST,
        family(source.0),
        vec![ConntrackAttribute::CtaTupleOrig(tuple)],
    )
}

/// The request to drop the entry of `key`, to be acknowledged (`IPCTNL_MSG_CT_DELETE`; attributes as in
/// include/uapi/linux/netfilter/nfnetlink_conntrack.h, which `entry` reads).
#[must_use]
pub fn forget(sequence: u32, key: &FlowKey) -> Vec<u8> {
    let (addresses, family) = match (key.source, key.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let pair = [
                attribute(1, &source.octets()),
                attribute(2, &destination.octets()),
            ];
            (pair, AF_INET)
        }
        (source, destination) => {
            let six = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let pair = [attribute(3, &six(source)), attribute(4, &six(destination))];
            (pair, AF_INET6)
        }
    };
    let number = match key.protocol {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Icmp if family == AF_INET => 1,
        Transport::Icmp => 58,
        Transport::Other(number) => number,
    };
    let mut protocol = attribute(1, &[number]);
    let [kind, code] = key.destination_port.to_be_bytes();
    let source_port = key.source_port.to_be_bytes();
    let parts = match number {
        // ICMP: id, type, code; the type and the code are kept as the destination port.
        1 => vec![(4, source_port.to_vec()), (5, vec![kind]), (6, vec![code])],
        58 => vec![(7, source_port.to_vec()), (8, vec![kind]), (9, vec![code])],
        _ => vec![(2, source_port.to_vec()), (3, vec![kind, code])],
    };
    for (part, value) in parts {
        protocol.extend(attribute(part, &value));
    }
    let tuple = [
        attribute(1 | NESTED, &addresses.concat()),
        attribute(2 | NESTED, &protocol),
    ];
    let mut body = vec![family, 0, 0, 0];
    body.extend(attribute(1 | NESTED, &tuple.concat()));
    if key.zone != 0 {
        body.extend(attribute(18, &key.zone.to_be_bytes()));
    }
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(FORGET.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const FORGET: u16 = (1 << 8) | 2;

/// The families of `struct nfgenmsg` (`AF_INET`, `AF_INET6`).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// One attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 8);
    append(&mut bytes, kind, u16::try_from(value.len()).unwrap_or(u16::MAX));
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

const fn family(address: IpAddr) -> NetfilterProtoFamily {
    match address {
        IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
        IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
    }
}

fn request(
    sequence: u32,
    flags: u16,
    family: NetfilterProtoFamily,
    attributes: Vec<ConntrackAttribute>,
) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let body = NetfilterMessage::new(
        NetfilterHeader::new(family, 0, 0),
        ConntrackMessage::Get(attributes),
    );
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(body));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
