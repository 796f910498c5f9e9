//! Those who act on the world: clients that open and close flows, callers of the API, and faults. What
//! they do, and how often, is drawn anew for every seed, so that some seeds are all traffic and others
//! all crashes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dormouse_instance::machine::{Exit, Removal, Request};
use dormouse_model::{Flow, FlowKey, Protocol, SleepTrigger, TcpState, WakeCause, WorkloadId};

use crate::daemon::Daemon;
use crate::event::{DaemonEvent, Event, delay};
use crate::ground::{Ground, Outage, Truth};
use crate::kernel::{IGNORED_PORT, Packet};

/// How often each sort of act happens, in parts of their sum.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Clients.
    pub traffic: u64,
    /// Bursts of flows that concern nobody.
    pub noise: u64,
    /// Callers.
    pub calls: u64,
    /// Kills of the daemon.
    pub kills: u64,
    /// Ends of VMMs.
    pub crashes: u64,
    /// Reboots.
    pub reboots: u64,
    /// Failures of the event socket.
    pub sockets: u64,
    /// Steps of the wall clock.
    pub clocks: u64,
    /// Outages.
    pub outages: u64,
}

impl Mix {
    /// The mix of one seed.
    #[must_use]
    pub fn draw(ground: &mut Ground) -> Self {
        let random = &mut ground.random;
        let mut often = |most: u64| {
            if random.chance(600) {
                random.below(most + 1)
            } else {
                0
            }
        };
        Self {
            traffic: 300 + often(300),
            noise: often(30),
            calls: 60 + often(100),
            kills: often(20),
            crashes: often(12),
            reboots: often(3),
            sockets: often(25),
            clocks: often(5),
            outages: often(12),
        }
    }
}

/// A flow that a client keeps.
#[derive(Debug, Clone, Copy)]
struct Open {
    key: FlowKey,
    workload: WorkloadId,
}

/// What an act asks of the world, because it is more than ground and daemon can do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// Kill the daemon; start another after this time.
    Kill(Duration),
    /// Reboot the host.
    Reboot,
}

/// The actors.
#[derive(Debug)]
pub struct Actors {
    mix: Mix,
    open: Vec<Open>,
    outbound: Vec<Open>,
    ports: u16,
    ids: u128,
}

/// Most workloads at a time.
const WORKLOADS: usize = 4;

impl Actors {
    /// Actors that follow `mix`.
    #[must_use]
    pub const fn new(mix: Mix) -> Self {
        Self {
            mix,
            open: Vec::new(),
            outbound: Vec::new(),
            ports: 1024,
            ids: 0,
        }
    }

    /// One act.
    pub fn act(&mut self, ground: &mut Ground, daemon: Option<&mut Daemon>) -> Ask {
        let mix = self.mix;
        let parts = [
            mix.traffic,
            mix.noise,
            mix.calls,
            mix.kills,
            mix.crashes,
            mix.reboots,
            mix.sockets,
            mix.clocks,
            mix.outages,
        ];
        let mut at = ground.random.below(parts.iter().sum());
        let which = parts.iter().position(|part| {
            let here = at < *part;
            at = at.saturating_sub(*part);
            here
        });
        match which {
            Some(0) => self.traffic(ground),
            Some(1) => self.noise(ground),
            Some(2) => {
                if let Some(daemon) = daemon {
                    self.call(ground, daemon);
                }
            }
            Some(3) => return Ask::Kill(ground.random.millis(5, 3_000)),
            Some(4) => crash(ground),
            Some(5) => return Ask::Reboot,
            Some(6) => {
                if let Some(daemon) = daemon {
                    daemon.socket_fails(ground);
                }
            }
            Some(8) => outage(ground),
            _ => {
                ground.tally.clock_steps += 1;
                let step = ground.random.millis(1, 60_000);
                ground.wall_offset = if ground.random.chance(500) {
                    ground.wall_offset.saturating_add(step)
                } else {
                    ground.wall_offset.saturating_sub(step)
                };
                ground.note(format_args!("the wall clock steps"));
            }
        }
        Ask::Nothing
    }

    fn target(ground: &mut Ground) -> Option<WorkloadId> {
        let ids: Vec<WorkloadId> = ground.kernel.links.keys().copied().collect();
        ground.random.pick(&ids).copied()
    }

    fn key(&mut self, ground: &mut Ground, id: WorkloadId, protocol: Protocol, port: u16) -> Option<FlowKey> {
        let addresses = ground.truths.get(&id)?.addresses;
        self.ports = if self.ports >= 60_000 {
            1024
        } else {
            self.ports + 1
        };
        let (source, destination): (IpAddr, IpAddr) = if ground.random.chance(500) {
            (Ipv4Addr::new(192, 0, 2, 7).into(), addresses.ipv4.into())
        } else {
            (
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
                addresses.ipv6.into(),
            )
        };
        Some(FlowKey {
            protocol,
            zone: 0,
            source,
            source_port: self.ports,
            destination,
            destination_port: port,
        })
    }

    fn traffic(&mut self, ground: &mut Ground) {
        match ground.random.below(20) {
            0..=5 => self.connect(ground, false),
            6 => self.connect(ground, true),
            7..=12 => self.close(ground),
            13 | 14 => {
                // Payload on an open flow, which makes no event.
                if let Some(open) = ground.random.pick(&self.open).copied() {
                    ground.send(open.key.destination, Packet::Data(open.key));
                }
            }
            15 => {
                if let Some(id) = Self::target(ground)
                    && let Some(key) = self.key(ground, id, Protocol::Udp, 53)
                {
                    track(ground, key, None, Some(delay::DATAGRAMS));
                    ground.send(key.destination, Packet::Data(key));
                }
            }
            16 => {
                if let Some(id) = Self::target(ground)
                    && let Some(address) = ground.truths.get(&id).map(|truth| truth.addresses.ipv4)
                {
                    ground.send(address.into(), Packet::Ping);
                }
            }
            17 => {
                if let Some(id) = Self::target(ground)
                    && let Some(key) = self.key(ground, id, Protocol::Tcp, IGNORED_PORT)
                {
                    track(ground, key, Some(TcpState::SYN_SENT), Some(delay::SYN_SENT));
                    ground.send(key.destination, Packet::Syn(key));
                    self.open.push(Open { key, workload: id });
                }
            }
            _ => self.outbound(ground),
        }
    }

    fn connect(&mut self, ground: &mut Ground, half_open: bool) {
        let Some(id) = Self::target(ground) else { return };
        let Some(key) = self.key(ground, id, Protocol::Tcp, 80) else {
            return;
        };
        ground.tally.flows += 1;
        track(ground, key, Some(TcpState::SYN_SENT), Some(delay::SYN_SENT));
        let packet = if half_open {
            Packet::LostSyn(key)
        } else {
            Packet::Syn(key)
        };
        ground.send(key.destination, packet);
        if !half_open {
            self.open.push(Open { key, workload: id });
        }
    }

    fn close(&mut self, ground: &mut Ground) {
        let count = self.open.len() as u64;
        let Ok(at) = usize::try_from(ground.random.below(count)) else {
            return;
        };
        if at >= self.open.len() {
            return;
        }
        let open = self.open.swap_remove(at);
        let Some(stamp) = ground.kernel.flows.get(&open.key).map(|entry| entry.stamp) else {
            return;
        };
        if ground.random.chance(300) {
            ground.answered(open.key, stamp, TcpState::CLOSE, Some(delay::CLOSE));
            ground.send(open.key.destination, Packet::Data(open.key));
        } else {
            ground.answered(open.key, stamp, TcpState::FIN_WAIT, None);
            ground.send(open.key.destination, Packet::Fin(open.key));
        }
    }

    /// The guest opens a flow, or gets the answer on one.
    fn outbound(&mut self, ground: &mut Ground) {
        if ground.random.chance(500)
            && let Some(open) = ground.random.pick(&self.outbound).copied()
        {
            ground.send(open.key.source, Packet::Reply(open.key));
            return;
        }
        let Some(id) = Self::target(ground).filter(|id| ground.host.guest_runs(*id)) else {
            return;
        };
        let Some(key) = self.key(ground, id, Protocol::Tcp, 443) else {
            return;
        };
        let key = FlowKey {
            source: key.destination,
            destination: key.source,
            ..key
        };
        track(ground, key, Some(TcpState::ESTABLISHED), None);
        self.outbound.push(Open { key, workload: id });
    }

    fn noise(&mut self, ground: &mut Ground) {
        let count = ground.random.below(80);
        for _ in 0..count {
            self.ports = if self.ports >= 60_000 {
                1024
            } else {
                self.ports + 1
            };
            let key = FlowKey {
                protocol: Protocol::Tcp,
                zone: 0,
                source: Ipv4Addr::new(192, 0, 2, 9).into(),
                source_port: self.ports,
                destination: Ipv4Addr::new(203, 0, 113, 1).into(),
                destination_port: 80,
            };
            let keep = ground.random.millis(1, 400);
            track(ground, key, Some(TcpState::SYN_SENT), Some(keep));
        }
    }

    fn call(&mut self, ground: &mut Ground, daemon: &mut Daemon) {
        let live = daemon.instances.len();
        let what = ground.random.below(20);
        if live == 0 || (live < WORKLOADS && what < 3) {
            return self.create(ground, daemon);
        }
        let ids: Vec<WorkloadId> = daemon.instances.keys().copied().collect();
        let Some(id) = ground.random.pick(&ids).copied() else {
            return;
        };
        match what {
            0..=2 => {
                let removal = if ground.random.chance(500) {
                    Removal::Graceful
                } else {
                    Removal::Forced
                };
                daemon.call(id, Request::Delete { removal });
                // Somebody else takes the place of what goes, while it goes.
                if ground.random.chance(500) {
                    daemon.serve(ground);
                    self.create(ground, daemon);
                }
            }
            3 => {
                daemon.call(
                    id,
                    Request::Stop {
                        grace: Duration::from_millis(300),
                    },
                );
            }
            4..=6 => {
                daemon.call(id, Request::Start);
            }
            7..=10 => {
                daemon.call(
                    id,
                    Request::Sleep {
                        trigger: SleepTrigger::Caller,
                    },
                );
            }
            11 => {
                daemon.call(
                    id,
                    Request::Sleep {
                        trigger: SleepTrigger::CallerYielding,
                    },
                );
            }
            12..=15 => {
                daemon.call(
                    id,
                    Request::Wake {
                        cause: WakeCause::Caller,
                    },
                );
            }
            _ => daemon.hold(ground, id),
        }
        daemon.serve(ground);
    }

    fn create(&mut self, ground: &mut Ground, daemon: &mut Daemon) {
        self.ids += 1;
        let id = WorkloadId::from_bits(self.ids);
        let Some(addresses) = daemon.allocate(ground, id) else {
            return;
        };
        let idle_timeout = ground.random.millis(500, 5_000);
        let policy = if ground.random.chance(900) {
            Ground::policy(idle_timeout)
        } else {
            dormouse_model::policy::PolicySetting::Missing
        };
        let truth = Truth {
            addresses,
            policy,
            idle_timeout,
            acknowledged: false,
            removal_wanted: false,
            crashed: false,
            rebooted: false,
            injected: 0,
            held_until: None,
            live_at_proof: Vec::new(),
            delivered: 0,
            committed: None,
            discarded: false,
            refused: false,
        };
        ground.note(format_args!("create {id} {}", addresses.ipv4));
        ground.truths.insert(id, truth);
        daemon.create(ground, id);
    }

    /// Clients go home: what they keep open is closed.
    pub fn leave(&mut self, ground: &mut Ground) {
        while !self.open.is_empty() {
            self.close(ground);
        }
        for open in std::mem::take(&mut self.outbound) {
            if let Some(stamp) = ground.kernel.flows.get(&open.key).map(|entry| entry.stamp) {
                ground.after(delay::CLOSE, Event::EntryExpires(open.key, stamp));
            }
        }
        // What nobody closes any more the kernel forgets in the end.
        let rest: Vec<FlowKey> = ground.kernel.flows.keys().copied().collect();
        for key in rest {
            ground.after(delay::SYN_SENT, Event::EntryForgotten(key));
        }
    }

    /// Forgets flows of workloads that are gone or whose entries are.
    pub fn tidy(&mut self, ground: &Ground) {
        let known = |open: &Open| {
            ground.kernel.flows.contains_key(&open.key) && ground.kernel.links.contains_key(&open.workload)
        };
        self.open.retain(known);
        self.outbound.retain(known);
    }
}

/// The kernel meets a flow.
fn track(ground: &mut Ground, key: FlowKey, tcp_state: Option<TcpState>, keep: Option<Duration>) {
    let flow = Flow {
        key,
        responder: key.destination,
        responder_port: key.destination_port,
        tcp_state,
    };
    let stamp = ground.kernel.set_flow(flow);
    ground.note(format_args!(
        "flow {}:{} to {}:{}",
        key.source, key.source_port, key.destination, key.destination_port
    ));
    if let Some(keep) = keep {
        ground.after(keep, Event::EntryExpires(key, stamp));
    }
}

/// Something fails for longer than any step is tried.
fn outage(ground: &mut Ground) {
    let sorts = [Outage::Ends, Outage::Writes, Outage::WritesAndReads, Outage::Disk];
    let Some(sort) = ground.random.pick(&sorts).copied() else {
        return;
    };
    ground.tally.outages += 1;
    let until = ground.now.plus(ground.random.millis(100, 30_000));
    ground.note(format_args!("outage: {sort:?}"));
    ground.outage = Some((sort, until));
}

/// A VMM ends, by a fault or because its guest powers off.
fn crash(ground: &mut Ground) {
    let owners: Vec<WorkloadId> = ground
        .host
        .processes
        .values()
        .filter_map(|process| process.owner)
        .collect();
    let Some(id) = ground.random.pick(&owners).copied() else {
        return;
    };
    ground.tally.process_crashes += 1;
    if let Some(truth) = ground.truths.get_mut(&id) {
        truth.crashed = true;
    }
    let how = if ground.random.chance(300) && ground.host.guest_runs(id) {
        Exit::PoweredOff
    } else {
        Exit::Ended {
            how: "signal 11".to_owned(),
        }
    };
    ground.process_ends(id, &how);
}

impl Daemon {
    /// The event socket fails.
    pub(crate) fn socket_fails(&mut self, ground: &mut Ground) {
        if ground.kernel.socket.take().is_some() {
            ground.note(format_args!("the event socket fails"));
            ground.tell_after(Duration::ZERO, DaemonEvent::SocketFails);
        }
    }
}
