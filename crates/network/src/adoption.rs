//! Taking over, after a restart, what an earlier daemon left in the kernel; and sweeping what bears
//! our mark and belongs to nobody.
//!
//! The order is: [`DataPlane::open`], then [`DataPlane::adopt`] for every record, then
//! [`DataPlane::sweep`] once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dormouse_model::{Addresses, WorkloadId};
use dormouse_sys::tap;
use netlink_packet_core::Parseable;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};

use crate::error::NetworkError;
use crate::kernel::{Kernel, LinkCore, Tap};
use crate::link::{LinkInput, LinkState};
use crate::plane::{DataPlane, Link};
use crate::registry::{Entry, Links};
use crate::request::{self, Device, Metric, ROUTE_PROTOCOL};
use crate::setup::OwnLink;
use crate::sources;

/// What a workload's record says about its link.
#[derive(Debug)]
pub enum Expected {
    /// It has no process: packets park, and there should be no tap.
    Parked,
    /// It has a process that is not to have packets now: dozing, or on its way to standby or back.
    Shut {
        /// A descriptor of its tap, from whoever held one.
        tap: Option<OwnedFd>,
    },
    /// It runs.
    Open {
        /// A descriptor of its tap, from whoever held one. Without one the link works, but cannot
        /// be drained.
        tap: Option<OwnedFd>,
    },
}

/// What was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// What the record says.
    AsExpected,
    /// The workload should have a tap and has none: its process is gone. The link is parked.
    TapMissing,
}

/// A link that was taken over.
#[derive(Debug)]
pub struct Adopted {
    /// The link, in the state that the record asks for, as far as there was a tap.
    pub link: Link,
    /// What was there.
    pub found: Found,
}

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Taps.
    pub taps: usize,
    /// Routes to the parking device.
    pub routes: usize,
    /// Entries of the parking device, with what waited for them.
    pub neighbours: usize,
}

impl DataPlane {
    /// Takes over the link of a workload that an earlier daemon attached, whatever of it is left.
    /// Packets that wait keep waiting, and are let go when the workload runs.
    ///
    /// # Errors
    /// When the workload or an address of it is attached already, when a foreign device has the
    /// tap's name, when the descriptor is not the tap's, or when the kernel refuses. The workload is
    /// then not attached, and nothing of it was taken away.
    pub async fn adopt(
        &self,
        id: WorkloadId,
        addresses: Addresses,
        expected: Expected,
    ) -> Result<Adopted, NetworkError> {
        let links = Arc::clone(&self.links);
        let work = move |kernel: &mut Kernel| {
            let entry = links.reserve(id, addresses)?;
            let found = take_over(kernel, &mut entry.core(), expected);
            match found {
                Ok(found) => {
                    links.publish(&entry);
                    Ok((entry, found))
                }
                Err(error) => {
                    links.forget(&entry);
                    Err(error)
                }
            }
        };
        let (entry, found) = self.worker.call(work).await?;
        Ok(Adopted {
            link: Link::new(self.clone(), entry),
            found,
        })
    }

    /// Takes over the links of workloads without a process, all in one job: what [`DataPlane::adopt`] does for
    /// [`Expected::Parked`], with one listing of everything instead of questions about each. Returns those
    /// that could not be taken over, as `adopt` would have refused them.
    ///
    /// Permissions to send are left to [`DataPlane::sweep`], which sets all of them at once, before any of
    /// the workloads can have a process.
    pub async fn adopt_parked(
        &self,
        workloads: Vec<(WorkloadId, Addresses)>,
    ) -> Vec<(WorkloadId, NetworkError)> {
        let links = Arc::clone(&self.links);
        let all = workloads.clone();
        let work = move |kernel: &mut Kernel| {
            let left = together(kernel, &links, &workloads)?;
            Ok(left)
        };
        let one_by_one = match self.worker.call(work).await {
            Ok(left) => left,
            Err(error) => {
                let error = dormouse_model::error::chain(&error);
                tracing::warn!(error, "links are taken over one by one");
                all
            }
        };
        let mut refused = Vec::new();
        for (id, addresses) in one_by_one {
            if let Err(error) = self.adopt(id, addresses, Expected::Parked).await {
                refused.push((id, error));
            }
        }
        refused
    }

    /// Removes what bears our mark and belongs to no link: taps, routes, entries of the parking
    /// device, permissions to send. Then reports who waits. To be called once all records are
    /// adopted.
    ///
    /// # Errors
    /// When the kernel refuses; what could be removed is.
    pub async fn sweep(&self) -> Result<Swept, NetworkError> {
        let links = Arc::clone(&self.links);
        let (swept, asked) = self.worker.call(move |kernel| sweep(kernel, &links)).await?;
        for address in asked {
            self.asked(address).await;
        }
        Ok(swept)
    }
}

/// Enters the links of workloads of which the kernel has just what a sleeper has, or less; returns the
/// others. All or nothing when the kernel refuses.
fn together(
    kernel: &mut Kernel,
    links: &Links,
    workloads: &[(WorkloadId, Addresses)],
) -> Result<Vec<(WorkloadId, Addresses)>, NetworkError> {
    let routed = parking_routes(kernel)?;
    let taps: BTreeSet<String> = (kernel.route.list(&request::list_links())?.iter())
        .filter_map(|(_, body)| OwnLink::read(body))
        .map(|link| link.name)
        .collect();
    let open: BTreeSet<IpAddr> = (kernel.waiting()?.into_iter())
        .filter(|entry| entry.valid)
        .map(|entry| entry.address)
        .collect();
    let (mut entries, mut left, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for &(id, addresses) in workloads {
        let both = addresses.both();
        let more = taps.contains(&kernel.config.tap_name(id)) || both.iter().any(|one| open.contains(one));
        match links.reserve(id, addresses) {
            Ok(entry) if !more => {
                entries.push(entry);
                if !both.iter().all(|address| routed.contains(address)) {
                    missing.extend(kernel.parking_routes(addresses));
                }
            }
            Ok(entry) => {
                links.forget(&entry);
                left.push((id, addresses));
            }
            // Said again, with its error, by the one that is asked next.
            Err(_) => left.push((id, addresses)),
        }
    }
    if let Err(error) = kernel.route.run(&missing) {
        entries.iter().for_each(|entry| links.forget(entry));
        return Err(error);
    }
    Ok(left)
}

fn take_over(kernel: &mut Kernel, link: &mut LinkCore, expected: Expected) -> Result<Found, NetworkError> {
    let name = kernel.config.tap_name(link.id);
    let index = kernel.find_own(&name)?;
    let (open, wanted, descriptor) = match expected {
        Expected::Parked => (false, false, None),
        Expected::Shut { tap } => (false, true, tap),
        Expected::Open { tap } => (true, true, tap),
    };
    if let (Some(descriptor), Some(_)) = (&descriptor, index) {
        let got = tap::name(descriptor.as_fd()).unwrap_or_default();
        if got != name {
            return Err(NetworkError::NotItsTap { id: link.id, got });
        }
    }
    kernel.park(link.id, link.addresses)?;
    let Some(index) = index else {
        // An opening that a crash cut short, of a tap that has gone since.
        kernel.forget(link.addresses.both())?;
        return Ok(if wanted {
            Found::TapMissing
        } else {
            Found::AsExpected
        });
    };
    link.tap = Some(Tap {
        index,
        descriptor: descriptor.map(Arc::new),
    });
    let inhabitants = kernel.inhabitants(index, link.addresses);
    kernel.route.run(&inhabitants)?;
    kernel.step(link, LinkInput::TapMade)?;
    if open {
        kernel.step(link, LinkInput::Open)?;
        return Ok(Found::AsExpected);
    }
    // The machine takes it to be shut; see to it that it is.
    kernel.forget(link.addresses.both())?;
    let both = link.addresses.both();
    kernel
        .route
        .run(&both.map(|address| request::remove_route(address, index, Metric::Tap)))?;
    if !wanted {
        kernel.step(link, LinkInput::DropTap)?;
    }
    Ok(Found::AsExpected)
}

/// Also returns the addresses that somebody waits for.
fn sweep(kernel: &mut Kernel, links: &Links) -> Result<(Swept, Vec<IpAddr>), NetworkError> {
    let known: Vec<Arc<Entry>> = links.registry().by_id.values().cloned().collect();
    let taps: BTreeMap<String, &Arc<Entry>> = known
        .iter()
        .map(|entry| (kernel.config.tap_name(entry.id), entry))
        .collect();
    let states: BTreeMap<IpAddr, LinkState> = known
        .iter()
        .flat_map(|entry| {
            entry
                .addresses
                .both()
                .map(|address| (address, entry.seen().state))
        })
        .collect();
    let mut swept = Swept::default();
    let mut requests = Vec::new();

    let (mark, prefix) = (kernel.config.owner_mark(), kernel.config.tap_prefix());
    for (_, body) in kernel.route.list(&request::list_links())? {
        let Some(link) = OwnLink::read(&body) else {
            continue;
        };
        let ours = link.alias.as_deref() == Some(mark.as_str()) && link.name.starts_with(&prefix);
        if ours && !taps.contains_key(&link.name) {
            swept.taps += 1;
            requests.push(request::remove_link(Device::Index(link.index)));
        }
    }
    for address in parking_routes(kernel)? {
        if !states.contains_key(&address) {
            swept.routes += 1;
            requests.push(request::remove_route(address, kernel.parking, Metric::Parking));
        }
    }
    let mut asked = Vec::new();
    let pools = kernel.pools();
    // Groups have entries too, which the kernel makes.
    let in_pools = |address: &IpAddr| pools.iter().any(|pool| pool.contains(address));
    for entry in kernel
        .waiting()?
        .into_iter()
        .filter(|entry| in_pools(&entry.address))
    {
        match states.get(&entry.address) {
            None => {
                swept.neighbours += 1;
                requests.push(request::remove_neighbour(kernel.parking, entry.address));
            }
            Some(LinkState::Parked | LinkState::Open) if entry.valid => {
                swept.neighbours += 1;
                requests.push(request::remove_neighbour(kernel.parking, entry.address));
            }
            Some(_) if entry.asked => asked.push(entry.address),
            Some(_) => {}
        }
    }
    kernel.route.run(&requests)?;
    let allowed: Vec<_> = taps
        .iter()
        .flat_map(|(name, entry)| entry.addresses.both().map(|address| (name.as_str(), address)))
        .collect();
    kernel
        .packet
        .run_bracketed(&sources::replace(&kernel.config.table_name(), &allowed))?;
    Ok((swept, asked))
}

/// The addresses that are routed to the parking device by a route of ours.
fn parking_routes(kernel: &mut Kernel) -> Result<BTreeSet<IpAddr>, NetworkError> {
    let mut found = BTreeSet::new();
    for family in kernel.gateways() {
        for (_, body) in kernel.route.list(&request::list_routes(family))? {
            let Ok(route) = RouteMessage::parse(&body[..]) else {
                continue;
            };
            let to_parking = route.attributes.contains(&RouteAttribute::Oif(kernel.parking));
            if route.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) || !to_parking {
                continue;
            }
            found.extend(route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ipv4)) => Some(IpAddr::V4(*ipv4)),
                RouteAttribute::Destination(RouteAddress::Inet6(ipv6)) => Some(IpAddr::V6(*ipv6)),
                _ => None,
            }));
        }
    }
    Ok(found)
}
