//! Route netlink requests as bytes (include/uapi/linux/rtnetlink.h, if_addr.h, neighbour.h).
//!
//! The guest needs five kinds of request, once, at boot; building them here keeps an asynchronous
//! stack and its dependencies out of every guest's memory.

use std::net::IpAddr;

/// `nlmsghdr`: length, type, flags, sequence, port.
const HEADER_LENGTH: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// A request that the kernel acknowledges.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    /// Appends an attribute, padded to four bytes. Payloads here have at most 16 bytes.
    fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// The message, its length filled in.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(slot) = self.bytes.first_chunk_mut::<4>() {
            *slot = length.to_ne_bytes();
        }
        self.bytes
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Sets a link up, with this MTU unless 0.
pub(crate) fn link_up(index: u32, mtu: u32) -> Request {
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&IFF_UP.to_ne_bytes());
    body.extend_from_slice(&IFF_UP.to_ne_bytes());
    let request = Request::new(RTM_NEWLINK, 0, &body);
    if mtu == 0 {
        request
    } else {
        request.attribute(IFLA_MTU, &mtu.to_ne_bytes())
    }
}

/// Adds an address alone on its prefix, without duplicate address detection.
pub(crate) fn address(index: u32, address: IpAddr) -> Request {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let mut body = vec![family(address), prefix, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
        .attribute(IFA_LOCAL, &octets(address))
        .attribute(IFA_ADDRESS, &octets(address))
        .attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes())
}

/// Adds the default route through a gateway that no prefix covers.
pub(crate) fn default_route(index: u32, gateway: IpAddr, source: IpAddr) -> Request {
    let mut body = vec![
        family(gateway),
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_STATIC,
        0,
        RTN_UNICAST,
    ];
    body.extend_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .attribute(RTA_GATEWAY, &octets(gateway))
        .attribute(RTA_PREFSRC, &octets(source))
}

/// Adds a neighbour that never expires and is never asked for.
pub(crate) fn permanent_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut body = vec![family(address), 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    body.extend_from_slice(&[0, RTN_UNICAST]);
    Request::new(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body)
        .attribute(NDA_DST, &octets(address))
        .attribute(NDA_LLADDR, &mac)
}

/// What the kernel answered: `None` when this is no acknowledgement, else the error number (0 when
/// the request was carried out).
pub(crate) fn acknowledgement(reply: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*reply.get(4..)?.first_chunk()?);
    let error = i32::from_ne_bytes(*reply.get(HEADER_LENGTH..)?.first_chunk()?);
    (kind == NLMSG_ERROR).then(|| error.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout() {
        let neighbour =
            permanent_neighbour(2, "169.254.1.1".parse().unwrap(), [2, 0xd0, 0, 0, 0, 1]).finish();
        assert_eq!(neighbour.len(), 16 + 12 + 8 + 12);
        assert_eq!(neighbour[..4], 48_u32.to_ne_bytes());
        assert_eq!(neighbour[16..28], [2, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 0, 1]);
        assert_eq!(neighbour[28..36], [8, 0, 1, 0, 169, 254, 1, 1]);
        assert_eq!(neighbour[36..], [10, 0, 2, 0, 2, 0xd0, 0, 0, 0, 1, 0, 0]);
        let route = default_route(2, "fe80::1".parse().unwrap(), "fd78::5".parse().unwrap()).finish();
        assert_eq!(route.len(), 16 + 12 + 8 + 20 + 20);
        assert_eq!(route[16..28], [10, 0, 0, 0, 254, 4, 0, 1, 4, 0, 0, 0]);
    }

    #[test]
    fn acknowledgements() {
        let mut reply = vec![36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(acknowledgement(&reply), None, "cut short");
        reply.extend_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(acknowledgement(&reply), Some(17));
        reply[4] = 16;
        assert_eq!(acknowledgement(&reply), None);
    }
}
