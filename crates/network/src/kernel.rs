//! Deeds on links: each effect of [`crate::link`] as requests to the kernel. Runs on the data
//! plane's thread and blocks.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dormouse_model::{Addresses, MonoTime, WorkloadId};
use dormouse_sys::clock;
use dormouse_sys::tap::{self, TapError};
use netlink_packet_core::Parseable;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::stats::{StatsAttribute, StatsMessage};

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::link::{LinkEffect, LinkInput, LinkMachine, OnFailure};
use crate::netlink::{Request, RequestSocket};
use crate::reaper::{Deletion, Reaper};
use crate::request::{self, Device, LinkSettings, Metric};
use crate::setup::unreadable;
use crate::sources;

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) config: NetworkConfig,
    pub(crate) route: RequestSocket,
    pub(crate) packet: RequestSocket,
    pub(crate) reaper: Reaper,
    /// The number of `p0`.
    pub(crate) parking: u32,
}

/// One workload's link, as the thread knows it.
#[derive(Debug)]
pub(crate) struct LinkCore {
    pub(crate) id: WorkloadId,
    pub(crate) addresses: Addresses,
    pub(crate) machine: LinkMachine,
    pub(crate) tap: Option<Tap>,
}

/// A tap that exists, or did when last seen.
#[derive(Debug, Clone)]
pub(crate) struct Tap {
    pub(crate) index: u32,
    /// Ours, beside the VMM's: to look into the queue.
    pub(crate) descriptor: Option<Arc<OwnedFd>>,
}

/// What came of a step.
#[derive(Debug, Default)]
pub(crate) struct Stepped {
    /// Whether the input is to be reported as a knock.
    pub(crate) report: bool,
    /// Taps that are being deleted.
    pub(crate) deletions: Vec<Deletion>,
}

/// What a tap has counted since it was made. All counters only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkCounters {
    /// Packets for the guest that the VMM took out of the queue. Those still queued do not count.
    pub received_by_guest: u64,
    /// Packets that the guest sent.
    pub sent_by_guest: u64,
    /// Packets for the device that were dropped: the queue was full, or the frame was not for the
    /// guest (multicast, broadcast, neighbour discovery).
    pub dropped: u64,
}

/// A neighbour of `p0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) address: IpAddr,
    /// Whether the entry is valid: then nothing waits, it is let through.
    pub(crate) valid: bool,
    /// Whether somebody asked: the entry is being resolved.
    pub(crate) asked: bool,
}

impl Kernel {
    /// Makes the routes to the parking device and the permissions to send.
    pub(crate) fn park(&mut self, id: WorkloadId, addresses: Addresses) -> Result<(), NetworkError> {
        let name = self.config.tap_name(id);
        let sources = addresses.both().map(|address| (name.as_str(), address));
        self.packet
            .run_bracketed(&sources::allow(&self.config.table_name(), &sources))?;
        self.route.run(&self.parking_routes(addresses))
    }

    /// The routes of a workload to the parking device.
    pub(crate) fn parking_routes(&self, addresses: Addresses) -> [Request; 2] {
        self.routes(addresses, self.parking, Metric::Parking)
    }

    fn routes(&self, addresses: Addresses, device: u32, metric: Metric) -> [Request; 2] {
        let [v4, v6] = addresses.both();
        let [source_v4, source_v6] = self.host_sources();
        [
            request::add_route(v4, device, metric, source_v4),
            request::add_route(v6, device, metric, source_v6),
        ]
    }

    /// Feeds `input` to the link's machine and does what it says, as far as it can be done.
    pub(crate) fn step(&mut self, link: &mut LinkCore, input: LinkInput) -> Result<Stepped, NetworkError> {
        let mut effects = Vec::new();
        let now = now()?;
        let refused = |source| NetworkError::Refused { id: link.id, source };
        link.machine.handle(now, input, &mut effects).map_err(refused)?;
        let (mut stepped, mut failed) = (Stepped::default(), None);
        for effect in effects {
            let Err(error) = self.perform(link, effect, &mut stepped) else {
                continue;
            };
            failed = failed.or(Some(error));
            match input.on_failure() {
                OnFailure::GoOn => {}
                OnFailure::GoBack => {
                    self.go_back(link, now);
                    break;
                }
            }
        }
        failed.map_or(Ok(stepped), Err)
    }

    fn go_back(&mut self, link: &mut LinkCore, now: MonoTime) {
        let mut effects = Vec::new();
        // Never refused: a failure is a fact.
        let _ = link.machine.handle(now, LinkInput::Failed, &mut effects);
        for effect in effects {
            if let Err(error) = self.perform(link, effect, &mut Stepped::default()) {
                let error = dormouse_model::error::chain(&error);
                tracing::warn!(id = %link.id, ?effect, error, "the link could not go back");
            }
        }
    }

    fn perform(
        &mut self,
        link: &mut LinkCore,
        effect: LinkEffect,
        stepped: &mut Stepped,
    ) -> Result<(), NetworkError> {
        let both = link.addresses.both();
        match effect {
            LinkEffect::RouteToTap => {
                let tap = tap_of(link)?;
                self.route.run(&self.routes(link.addresses, tap, Metric::Tap))
            }
            LinkEffect::RouteToParking => {
                let Some(tap) = &link.tap else { return Ok(()) };
                let index = tap.index;
                self.route
                    .run(&both.map(|address| request::remove_route(address, index, Metric::Tap)))
            }
            LinkEffect::Release => {
                let (parking, mac) = (self.parking, NetworkConfig::REENTRY_MAC);
                self.route
                    .run(&both.map(|address| request::set_neighbour(parking, address, mac)))
            }
            LinkEffect::Forget => self.forget(both),
            LinkEffect::DeleteTap => {
                // Others may hold descriptors: the device goes now, not with the last of them.
                stepped
                    .deletions
                    .extend(link.tap.take().map(|tap| self.reaper.delete(tap)));
                Ok(())
            }
            LinkEffect::Withdraw => self.withdraw(link, stepped),
            LinkEffect::Report => {
                stepped.report = true;
                Ok(())
            }
        }
    }

    /// Takes valid entries back. Looking first is safe: nobody else makes or unmakes a valid entry.
    pub(crate) fn forget(&mut self, addresses: [IpAddr; 2]) -> Result<(), NetworkError> {
        let mut requests = Vec::new();
        for address in addresses {
            let found = self.route.get(&request::get_neighbour(self.parking, address))?;
            let found = found.and_then(|(_, body)| Waiting::read(&body, self.parking));
            if found.is_some_and(|entry| entry.valid) {
                requests.push(request::remove_neighbour(self.parking, address));
            }
        }
        self.route.run(&requests)
    }

    fn withdraw(&mut self, link: &LinkCore, stepped: &mut Stepped) -> Result<(), NetworkError> {
        // Of an earlier life, or of a deletion that failed.
        if let Some(index) = self.find_own(&self.config.tap_name(link.id))? {
            stepped.deletions.push(self.reaper.delete(Tap {
                index,
                descriptor: None,
            }));
        }
        let withdrawn = link.addresses.both().into_iter().flat_map(|address| {
            [
                request::remove_route(address, self.parking, Metric::Parking),
                request::remove_neighbour(self.parking, address),
            ]
        });
        let withdrawn: Vec<_> = withdrawn.collect();
        self.route.run(&withdrawn)?;
        self.forbid(link.id, link.addresses)
    }

    /// One transaction each: one that was gone already must not keep the other.
    fn forbid(&mut self, id: WorkloadId, addresses: Addresses) -> Result<(), NetworkError> {
        let (name, table) = (self.config.tap_name(id), self.config.table_name());
        for address in addresses.both() {
            self.packet
                .run_bracketed(&sources::forbid(&table, (name.as_str(), address)))?;
        }
        Ok(())
    }

    /// Makes the link's tap, ready to be opened, and returns a descriptor for the VMM.
    pub(crate) fn make_tap(&mut self, link: &mut LinkCore) -> Result<OwnedFd, NetworkError> {
        // Asks first, so that a refusal makes nothing.
        let mut trial = link.machine.clone();
        let refused = |source| NetworkError::Refused { id: link.id, source };
        trial
            .handle(now()?, LinkInput::TapMade, &mut Vec::new())
            .map_err(refused)?;
        let descriptor = self.create_tap(link)?;
        let name = self.config.tap_name(link.id);
        let index = nix::net::if_::if_nametoindex(name.as_str())
            .map_err(|errno| kernel_error("looking up the tap", &name, errno.into()))?;
        self.dress_tap(index, link.addresses)?;
        let copy = descriptor
            .try_clone()
            .map_err(|source| kernel_error("copying the tap", &name, source))?;
        link.tap = Some(Tap {
            index,
            descriptor: Some(Arc::new(copy)),
        });
        self.step(link, LinkInput::TapMade)?;
        Ok(descriptor)
    }

    /// Everything about a new tap but its routes.
    fn dress_tap(&mut self, index: u32, addresses: Addresses) -> Result<(), NetworkError> {
        let device = Device::Index(index);
        let mark = self.config.owner_mark();
        let settings = LinkSettings {
            alias: Some(&mark),
            mac: Some(NetworkConfig::GATEWAY_MAC),
            mtu_bytes: Some(self.config.mtu_bytes),
            queue_length: Some(self.config.tap_queue_length),
            private: true,
        };
        let mut requests = vec![
            request::set_link(device, &settings),
            request::remove_queueing(index),
            request::raise_link(device),
        ];
        requests.extend(self.inhabitants(index, addresses));
        self.route.run(&requests)
    }

    /// Who lives on a tap: the gateway here, the guest there. Idempotent, unlike the settings before:
    /// setting even the same MAC again throws the device's neighbours out.
    pub(crate) fn inhabitants(&self, tap: u32, addresses: Addresses) -> Vec<Request> {
        let gateways = self.gateways().map(|gateway| request::add_address(tap, gateway));
        let guest = addresses
            .both()
            .map(|address| request::set_neighbour(tap, address, addresses.mac));
        gateways.into_iter().chain(guest).collect()
    }

    fn create_tap(&mut self, link: &LinkCore) -> Result<OwnedFd, NetworkError> {
        let name = self.config.tap_name(link.id);
        let failed = |source| NetworkError::Tap { id: link.id, source };
        match tap::create(&name, link.addresses.mac.0) {
            Err(TapError::Create {
                source: nix::Error::EBUSY | nix::Error::EINVAL,
                ..
            }) => {
                // What is left of an earlier life, held by somebody who has not noticed. Once.
                let left = self.find_own(&name)?;
                if let Some(index) = left {
                    self.route.run(&[request::remove_link(Device::Index(index))])?;
                }
                tap::create(&name, link.addresses.mac.0).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Reads the counters of a tap.
    pub(crate) fn counters(&mut self, index: u32) -> Result<LinkCounters, NetworkError> {
        let request = request::get_counters(index);
        let unreadable = || unreadable(request.doing, &request.about);
        let (_, body) = self.route.get(&request)?.ok_or_else(unreadable)?;
        let message = StatsMessage::parse(&body[..]).map_err(|_| unreadable())?;
        let stats = message
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                StatsAttribute::Link64(stats) => Some(stats),
                _ => None,
            });
        let stats = stats.ok_or_else(unreadable)?;
        Ok(LinkCounters {
            received_by_guest: stats.tx_packets,
            sent_by_guest: stats.rx_packets,
            dropped: stats.tx_dropped,
        })
    }

    /// All neighbours of `p0`.
    pub(crate) fn waiting(&mut self) -> Result<Vec<Waiting>, NetworkError> {
        let mut found = Vec::new();
        for family in self.gateways() {
            let listed = self.route.list(&request::list_neighbours(self.parking, family))?;
            found.extend(
                listed
                    .iter()
                    .filter_map(|(_, body)| Waiting::read(body, self.parking)),
            );
        }
        Ok(found)
    }
}

impl Waiting {
    /// From the body of a message about a neighbour; `None` when it is not one of `device`.
    pub(crate) fn read(body: &[u8], device: u32) -> Option<Self> {
        let message = NeighbourMessage::parse(body).ok()?;
        if message.header.ifindex != device {
            return None;
        }
        let address = message
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ipv4)) => Some(IpAddr::V4(ipv4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ipv6)) => Some(IpAddr::V6(ipv6)),
                _ => None,
            })?;
        let state = message.header.state;
        // An entry that user space reports is incomplete; any other state that is not valid holds
        // nothing.
        Some(Self {
            address,
            valid: state == NeighbourState::Permanent,
            asked: state == NeighbourState::Incomplete,
        })
    }
}

/// Now, as the machines count.
pub(crate) fn now() -> Result<MonoTime, NetworkError> {
    let read = clock::since_boot();
    read.map(MonoTime::from_boot)
        .map_err(|source| kernel_error("reading the clock", "CLOCK_BOOTTIME", source))
}

fn tap_of(link: &LinkCore) -> Result<u32, NetworkError> {
    let source = crate::link::LinkRefusal::NoTap;
    link.tap
        .as_ref()
        .map(|tap| tap.index)
        .ok_or(NetworkError::Refused { id: link.id, source })
}

fn kernel_error(doing: &'static str, about: &str, source: std::io::Error) -> NetworkError {
    NetworkError::Kernel {
        doing,
        about: about.to_owned(),
        source,
    }
}
