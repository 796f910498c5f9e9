//! The few network devices of a lab, by rtnetlink (include/uapi/linux/rtnetlink.h, if_link.h).
//!
//! Written by hand because it is five messages: a bench must not need iproute2.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;

/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 0x5;
/// `NLM_F_CREATE | NLM_F_EXCL`.
const CREATE: u16 = 0x600;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;
const RTA_OIF: u16 = 4;
/// No duplicate address detection: the address is good at once.
const IFA_F_NODAD: u8 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// An rtnetlink socket of the calling thread's namespace.
#[derive(Debug)]
pub(crate) struct Links(OwnedFd);

impl Links {
    pub(crate) fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("opening an rtnetlink socket")?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0)).context("setting a deadline")?;
        Ok(Self(socket))
    }

    /// Makes a veth pair: `name` here, `peer` in the namespace `elsewhere`, each with its MAC.
    pub(crate) fn add_veth(
        &self,
        (name, mac): (&str, [u8; 6]),
        (peer, peer_mac): (&str, [u8; 6]),
        elsewhere: impl AsFd,
    ) -> Result<()> {
        let mut there = interface(0, 0);
        attribute(&mut there, IFLA_IFNAME, &zero_ended(peer));
        attribute(&mut there, IFLA_ADDRESS, &peer_mac);
        attribute(
            &mut there,
            IFLA_NET_NS_FD,
            &elsewhere.as_fd().as_raw_fd().to_ne_bytes(),
        );
        let mut data = Vec::new();
        attribute(&mut data, VETH_INFO_PEER, &there);
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, b"veth");
        attribute(&mut info, IFLA_INFO_DATA, &data);
        let mut body = interface(0, 0);
        attribute(&mut body, IFLA_IFNAME, &zero_ended(name));
        attribute(&mut body, IFLA_ADDRESS, &mac);
        attribute(&mut body, IFLA_LINKINFO, &info);
        self.ask(RTM_NEWLINK, CREATE, &body)
            .with_context(|| format!("making the veth pair {name}, {peer}"))
    }

    /// Sets a device up.
    pub(crate) fn up(&self, name: &str) -> Result<()> {
        const IFF_UP: u32 = 1;
        self.ask(RTM_NEWLINK, 0, &interface(index(name)?, IFF_UP))
            .with_context(|| format!("setting {name} up"))
    }

    /// Gives a device an address.
    pub(crate) fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let (family, bytes, flags) = match address {
            IpAddr::V4(address) => (AF_INET, address.octets().to_vec(), 0),
            IpAddr::V6(address) => (AF_INET6, address.octets().to_vec(), IFA_F_NODAD),
        };
        let mut body = vec![family, prefix, flags, 0];
        body.extend(index(name)?.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &bytes);
        attribute(&mut body, IFA_ADDRESS, &bytes);
        self.ask(RTM_NEWADDR, CREATE, &body)
            .with_context(|| format!("giving {name} the address {address}"))
    }

    /// Adds the route to `to` (all addresses of the gateway's family when `None`).
    pub(crate) fn add_route(
        &self,
        to: Option<(IpAddr, u8)>,
        via: Option<IpAddr>,
        device: &str,
    ) -> Result<()> {
        const RTA_DST: u16 = 1;
        const TABLE_MAIN: u8 = 254;
        const PROTOCOL_BOOT: u8 = 3;
        const TYPE_UNICAST: u8 = 1;
        /// `RT_SCOPE_LINK`: without a gateway.
        const SCOPE_LINK: u8 = 253;
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
        };
        let family = match (to, via) {
            (Some((address, _)), _) | (None, Some(address)) => octets(address).0,
            (None, None) => bail!("a default route takes a gateway"),
        };
        let length = to.map_or(0, |(_, length)| length);
        let scope = if via.is_some() || family == AF_INET6 {
            0
        } else {
            SCOPE_LINK
        };
        let mut body = vec![
            family,
            length,
            0,
            0,
            TABLE_MAIN,
            PROTOCOL_BOOT,
            scope,
            TYPE_UNICAST,
            0,
            0,
            0,
            0,
        ];
        if let Some((address, _)) = to {
            attribute(&mut body, RTA_DST, &octets(address).1);
        }
        if let Some(gateway) = via {
            attribute(&mut body, RTA_GATEWAY, &octets(gateway).1);
        }
        attribute(&mut body, RTA_OIF, &index(device)?.to_ne_bytes());
        self.ask(RTM_NEWROUTE, CREATE, &body)
            .with_context(|| format!("adding a route by {device}"))
    }

    /// Makes the entry for a neighbour that is never asked for.
    pub(crate) fn add_neighbour(&self, device: &str, address: IpAddr, mac: [u8; 6]) -> Result<()> {
        const RTM_NEWNEIGH: u16 = 28;
        const NUD_PERMANENT: u16 = 0x80;
        const NDA_DST: u16 = 1;
        const NDA_LLADDR: u16 = 2;
        let (family, bytes) = match address {
            IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
            IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
        };
        let mut body = vec![family, 0, 0, 0];
        body.extend(index(device)?.to_ne_bytes());
        body.extend(NUD_PERMANENT.to_ne_bytes());
        body.extend([0, 0]);
        attribute(&mut body, NDA_DST, &bytes);
        attribute(&mut body, NDA_LLADDR, &mac);
        self.ask(RTM_NEWNEIGH, CREATE, &body)
            .with_context(|| format!("adding the neighbour {address}"))
    }

    /// Sends one request and waits for its acknowledgement.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let length = u32::try_from(16 + body.len()).context("a netlink message's length")?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty()).context("sending to rtnetlink")?;
        let mut answer = [0_u8; 4096];
        let got =
            recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).context("waiting for rtnetlink")?;
        let answer = answer.get(..got).unwrap_or_default();
        let kind = answer
            .get(4..6)
            .and_then(|b| b.try_into().ok())
            .map(u16::from_ne_bytes);
        let error = answer
            .get(16..20)
            .and_then(|b| b.try_into().ok())
            .map(i32::from_ne_bytes);
        ensure!(
            kind == Some(NLMSG_ERROR),
            "rtnetlink answered with a message of type {kind:?}"
        );
        match error {
            Some(0) => Ok(()),
            Some(error) => Err(std::io::Error::from_raw_os_error(-error)).context("rtnetlink refused"),
            None => bail!("rtnetlink's answer is too short"),
        }
    }
}

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("finding the device {name}"))
}

/// `struct ifinfomsg`, of any family.
fn interface(index: u32, up: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(up.to_ne_bytes());
    bytes.extend(up.to_ne_bytes());
    bytes
}

fn zero_ended(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Appends `struct rtattr` with its padding.
fn attribute(to: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    // Attributes here are some dozens of bytes.
    let length = u16::try_from(4 + bytes.len()).unwrap_or(u16::MAX);
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(bytes);
    to.resize(to.len().next_multiple_of(4), 0);
}
