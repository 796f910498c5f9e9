//! The requests that the data plane makes, as netlink messages. Pure.

use std::net::IpAddr;

use dormouse_model::MacAddress;
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::stats::{StatsFilterMask, StatsMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use crate::netlink::{Request, tolerate};

// Message types of include/uapi/linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
pub(crate) const RTM_GETNEIGH: u16 = 30;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETSTATS: u16 = 94;

/// The protocol number that our routes bear: `m`, which iproute2's table leaves free.
pub(crate) const ROUTE_PROTOCOL: u8 = b'm';

/// Lower wins: the tap's routes beat the parking device's, which are always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    /// To a tap.
    Tap = 10,
    /// To the parking device.
    Parking = 2048,
    /// For addresses of the pools that nobody has.
    Nobody = 4096,
}

fn request(kind: u16, flags: u16, message: &impl Emitable, doing: &'static str, about: String) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    Request {
        kind,
        flags,
        body,
        tolerated: tolerate::NOTHING,
        doing,
        about,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route(to: IpNet, device: Option<u32>, metric: Metric) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = if device.is_some() {
        RouteType::Unicast
    } else {
        RouteType::Unreachable
    };
    // IPv4: on this very link, no router between. IPv6 has no scopes of routes.
    message.header.scope = match (to, device) {
        (IpNet::V4(_), Some(_)) => RouteScope::Link,
        (IpNet::V4(_), None) | (IpNet::V6(_), _) => RouteScope::Universe,
    };
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(to.addr())));
    message.attributes.push(RouteAttribute::Priority(metric as u32));
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message
}

/// Routes a workload's address to a device; the host's own packets to it come from `source`.
pub(crate) fn add_route(to: IpAddr, device: u32, metric: Metric, source: IpAddr) -> Request {
    let mut message = route(to.into(), Some(device), metric);
    message
        .attributes
        .push(RouteAttribute::PrefSource(RouteAddress::from(source)));
    request(
        RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_REPLACE,
        &message,
        "adding a route to",
        to.to_string(),
    )
}

/// Takes such a route away.
pub(crate) fn remove_route(to: IpAddr, device: u32, metric: Metric) -> Request {
    let message = route(to.into(), Some(device), metric);
    let request = request(RTM_DELROUTE, 0, &message, "removing the route to", to.to_string());
    Request {
        tolerated: tolerate::ABSENT,
        ..request
    }
}

/// Answers for the addresses of `pool` that nobody has: they must not leave by the default route.
pub(crate) fn add_unreachable(pool: IpNet) -> Request {
    let message = route(pool, None, Metric::Nobody);
    request(
        RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_REPLACE,
        &message,
        "closing the pool",
        pool.to_string(),
    )
}

/// Takes that away.
pub(crate) fn remove_unreachable(pool: IpNet) -> Request {
    let message = route(pool, None, Metric::Nobody);
    let request = request(RTM_DELROUTE, 0, &message, "forgetting the pool", pool.to_string());
    Request {
        tolerated: tolerate::ABSENT,
        ..request
    }
}

/// Asks for all routes of the family of `any`.
pub(crate) fn list_routes(any: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = family(any);
    request(RTM_GETROUTE, 0, &message, "listing", "routes".to_owned()).listing()
}

fn neighbour(device: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = device;
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(ipv4) => NeighbourAddress::Inet(ipv4),
            IpAddr::V6(ipv6) => NeighbourAddress::Inet6(ipv6),
        }));
    message
}

/// Makes `address` reachable on `device` at `mac`, for good. What waited for it goes out.
pub(crate) fn set_neighbour(device: u32, address: IpAddr, mac: MacAddress) -> Request {
    let mut message = neighbour(device, address);
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    request(
        RTM_NEWNEIGH,
        flags,
        &message,
        "setting the neighbour",
        address.to_string(),
    )
}

/// Takes the neighbour away, and what waits for it.
pub(crate) fn remove_neighbour(device: u32, address: IpAddr) -> Request {
    let message = neighbour(device, address);
    let request = request(
        RTM_DELNEIGH,
        0,
        &message,
        "removing the neighbour",
        address.to_string(),
    );
    Request {
        tolerated: tolerate::ABSENT,
        ..request
    }
}

/// Asks for one neighbour.
pub(crate) fn get_neighbour(device: u32, address: IpAddr) -> Request {
    let message = neighbour(device, address);
    let request = request(
        RTM_GETNEIGH,
        0,
        &message,
        "looking up the neighbour",
        address.to_string(),
    );
    Request {
        tolerated: tolerate::ABSENT,
        ..request
    }
}

/// Asks for the neighbours of a device, in the family of `any`. The kernel filters by the
/// attribute; the header's field is ignored in listings.
pub(crate) fn list_neighbours(device: u32, any: IpAddr) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(any);
    message.attributes.push(NeighbourAttribute::IfIndex(device));
    request(RTM_GETNEIGH, 0, &message, "listing", "neighbours".to_owned()).listing()
}

/// Adds an address of our own to a device, alone on its prefix, usable at once.
pub(crate) fn add_address(device: u32, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = device;
    message.header.prefix_len = IpNet::from(address).prefix_len();
    message.attributes.push(AddressAttribute::Address(address));
    match address {
        IpAddr::V4(_) => {
            message.header.scope = AddressScope::Link;
            message.attributes.push(AddressAttribute::Local(address));
        }
        // No duplicate address detection: nobody else is on these links.
        IpAddr::V6(_) => {
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            message.attributes.push(AddressAttribute::Flags(flags));
        }
    }
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    let request = request(
        RTM_NEWADDR,
        flags,
        &message,
        "adding the address",
        address.to_string(),
    );
    Request {
        tolerated: tolerate::EXISTS,
        ..request
    }
}

/// Which device a request about links means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Device<'a> {
    /// By its number.
    Index(u32),
    /// By its name.
    Named(&'a str),
}

fn link(device: Device<'_>) -> (LinkMessage, String) {
    let mut message = LinkMessage::default();
    let about = match device {
        Device::Index(index) => {
            message.header.index = index;
            format!("number {index}")
        }
        Device::Named(name) => {
            message.attributes.push(LinkAttribute::IfName(name.to_owned()));
            name.to_owned()
        }
    };
    (message, about)
}

/// Makes the two ends of a veth pair.
pub(crate) fn add_veth(ends: [(&str, MacAddress); 2], mtu_bytes: u32) -> Request {
    let [mut message, peer] = ends.map(|(name, mac)| {
        let (mut message, _) = link(Device::Named(name));
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        message.attributes.push(LinkAttribute::Mtu(mtu_bytes));
        message
    });
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let about = format!("{} and {}", ends[0].0, ends[1].0);
    request(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        &message,
        "making the veth pair",
        about,
    )
}

/// What a device is to be like.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkSettings<'a> {
    /// Its alias, which bears our mark.
    pub(crate) alias: Option<&'a str>,
    /// Its MAC.
    pub(crate) mac: Option<MacAddress>,
    /// Its MTU.
    pub(crate) mtu_bytes: Option<u32>,
    /// Its transmit queue, which for a tap is the ring that the VMM reads.
    pub(crate) queue_length: Option<u32>,
    /// Whether it is a guest's own link: no address resolution, no multicast, no check of the way
    /// back (packet rules check sources, and must not while the routes are elsewhere).
    pub(crate) private: bool,
}

/// `IFLA_INET_CONF` and, inside it, the numbers of include/uapi/linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;

/// Changes a device that is not up yet. No address makes itself on it.
pub(crate) fn set_link(device: Device<'_>, settings: &LinkSettings<'_>) -> Request {
    let (mut message, about) = link(device);
    let attributes = &mut message.attributes;
    attributes.extend(
        settings
            .alias
            .map(|alias| LinkAttribute::IfAlias(alias.to_owned())),
    );
    attributes.extend(settings.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(settings.mtu_bytes.map(LinkAttribute::Mtu));
    attributes.extend(settings.queue_length.map(LinkAttribute::TxQueueLen));
    let mut families = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])];
    if settings.private {
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp | LinkFlags::Multicast;
        let off = DefaultNla::new(IPV4_DEVCONF_RP_FILTER, 0_u32.to_ne_bytes().to_vec());
        let mut conf = vec![0; off.buffer_len()];
        off.emit(&mut conf);
        let conf = DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, conf);
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(conf)]));
    }
    message.attributes.push(LinkAttribute::AfSpecUnspec(families));
    request(RTM_SETLINK, 0, &message, "setting up the device", about)
}

/// Sets only the alias of a device.
pub(crate) fn set_alias(device: Device<'_>, alias: &str) -> Request {
    let (mut message, about) = link(device);
    message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    request(RTM_SETLINK, 0, &message, "marking the device", about)
}

/// Takes the queueing discipline from a device that is not up yet. A tap never pushes back, so that
/// nothing ever queues there, and the default costs 450 KiB a tap (docs/adr/0001).
pub(crate) fn remove_queueing(device: u32) -> Request {
    let mut message = TcMessage::with_index(device.cast_signed());
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("noqueue".to_owned()));
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    request(
        RTM_NEWQDISC,
        flags,
        &message,
        "taking the queue from device",
        format!("number {device}"),
    )
}

/// Switches a device on.
pub(crate) fn raise_link(device: Device<'_>) -> Request {
    let (mut message, about) = link(device);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    request(RTM_SETLINK, 0, &message, "raising the device", about)
}

/// Deletes a device.
pub(crate) fn remove_link(device: Device<'_>) -> Request {
    let (message, about) = link(device);
    let request = request(RTM_DELLINK, 0, &message, "deleting the device", about);
    Request {
        tolerated: tolerate::ABSENT,
        ..request
    }
}

/// Asks for one device by its name.
pub(crate) fn get_link(name: &str) -> Request {
    let (message, about) = link(Device::Named(name));
    let request = request(RTM_GETLINK, 0, &message, "looking up the device", about);
    Request {
        tolerated: tolerate::ABSENT,
        ..request
    }
}

/// Asks for all devices.
pub(crate) fn list_links() -> Request {
    request(
        RTM_GETLINK,
        0,
        &LinkMessage::default(),
        "listing",
        "devices".to_owned(),
    )
    .listing()
}

/// Asks for the counters of a device.
pub(crate) fn get_counters(device: u32) -> Request {
    let mut message = StatsMessage::default();
    message.header.ifindex = device;
    message.header.filter_mask = StatsFilterMask::Link64;
    request(
        RTM_GETSTATS,
        0,
        &message,
        "reading the counters of device",
        format!("number {device}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as the kernel's headers lay them out, written out by hand.
    #[test]
    fn neighbours_and_routes_are_laid_out_as_the_kernel_reads_them() {
        let address: IpAddr = "10.78.0.2".parse().unwrap();
        let set = set_neighbour(7, address, MacAddress([2, 0xd0, 0, 0, 0, 0xfe]));
        let mut want = vec![2, 0, 0, 0];
        want.extend(7_u32.to_ne_bytes());
        want.extend(0x80_u16.to_ne_bytes());
        want.extend([0, 0]);
        want.extend([8_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        want.extend([10, 78, 0, 2]);
        want.extend([10_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
        want.extend([2, 0xd0, 0, 0, 0, 0xfe, 0, 0]);
        assert_eq!((set.kind, set.flags, set.body), (28, 0x500, want));

        let remove = remove_route("fd78::2".parse().unwrap(), 7, Metric::Tap);
        assert_eq!(&remove.body[..8], &[10, 128, 0, 0, 254, b'm', 0, 1]);
        let add = add_route(address, 7, Metric::Parking, "169.254.1.1".parse().unwrap());
        assert_eq!(&add.body[..8], &[2, 32, 0, 0, 254, b'm', 253, 1]);
        assert_eq!(add.flags, 0x500);
    }
}
