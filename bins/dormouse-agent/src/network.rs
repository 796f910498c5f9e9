//! The guest's network: silent on the wire. Everything that a guest would ask its link for
//! (addresses, routers, neighbours) is told instead, so that a woken guest has nothing to ask and a
//! sleeping one's link carries only what is meant for it.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dormouse_guest::Network;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netlink::{self, Request};
use crate::uevent::Uevents;

const LINKS: &str = "/sys/class/net";

/// The device is there as soon as its driver is.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Brings loopback up and, when there is one, the network.
pub(crate) fn set_up(network: Option<&Network>, uevents: &Uevents) -> Result<()> {
    let netlink = Netlink::open()?;
    netlink.ask("set lo up", netlink::link_up(index_of("lo")?, 0))?;
    let Some(network) = network else { return Ok(()) };
    let what = format!("the network device with address {}", network.mac);
    let wanted = network.mac.to_string();
    let link = uevents.wait_for(&what, APPEARS_WITHIN, || Ok(find(&wanted)))?;
    silence(&link);
    let index = index_of(&link)?;
    netlink.ask("set the link up", netlink::link_up(index, network.mtu))?;
    for (own, gateway) in [
        (IpAddr::V4(network.ipv4), IpAddr::V4(network.gateway_ipv4)),
        (IpAddr::V6(network.ipv6), IpAddr::V6(network.gateway_ipv6)),
    ] {
        let neighbour = netlink::permanent_neighbour(index, gateway, network.gateway_mac.0);
        netlink.ask(&format!("add neighbour {gateway}"), neighbour)?;
        netlink.ask(&format!("add address {own}"), netlink::address(index, own))?;
        netlink.ask(
            &format!("add route via {gateway}"),
            netlink::default_route(index, gateway, own),
        )?;
    }
    Ok(())
}

/// The name of the link with this hardware address.
fn find(mac: &str) -> Option<String> {
    let links = fs::read_dir(LINKS).ok()?;
    links.flatten().find_map(|link| {
        let address = fs::read_to_string(link.path().join("address")).ok()?;
        (address.trim() == mac).then(|| link.file_name().to_string_lossy().into_owned())
    })
}

fn index_of(link: &str) -> Result<u32> {
    let path = format!("{LINKS}/{link}/ifindex");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.trim().parse().with_context(|| format!("read {path}"))
}

/// Switches off what IPv6 says by itself, before the link is up. A kernel that lacks a switch is
/// noisier, no more.
fn silence(link: &str) {
    for (switch, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
        ("autoconf", "0"),
    ] {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/{switch}");
        if let Err(error) = fs::write(&path, value) {
            crate::say(format_args!("cannot write {path}: {error}"));
        }
    }
}

/// A route netlink socket that asks one thing at a time.
struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .context("open a route netlink socket")?;
        // The kernel answers in the call that sends; the limit is there so that no wait is without.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))
            .context("limit the wait for netlink's answer")?;
        Ok(Self { socket })
    }

    fn ask(&self, what: &str, request: Request) -> Result<()> {
        let descriptor = self.socket.as_raw_fd();
        send(descriptor, &request.finish(), MsgFlags::empty()).with_context(|| format!("ask to {what}"))?;
        let mut reply = [0_u8; 4096];
        let length =
            recv(descriptor, &mut reply, MsgFlags::empty()).with_context(|| format!("{what}: no answer"))?;
        match netlink::acknowledgement(reply.get(..length).unwrap_or_default()) {
            Some(0) => Ok(()),
            Some(number) => Err(Errno::from_raw(number)).context(what.to_owned()),
            None => bail!("{what}: the kernel's answer is no acknowledgement"),
        }
    }
}
