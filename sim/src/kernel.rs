//! The simulated kernel: connection tracking with its event socket, and links with their parking.
//!
//! Faithful where the machines could be wrong: events are queued at the moment of the change and lost
//! when the socket's buffer is full; the loss is reported once and before what is still queued; a
//! listing walks the table while it changes; packets for a shut link wait in order, packets at a tap
//! die with it.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use dormouse_conntrack::Delta;
use dormouse_model::{Addresses, Attempt, Flow, FlowKey, Protocol, TcpState, WorkloadId};

/// An entry of the table.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// What the kernel would report.
    pub flow: Flow,
    /// Changes with every use, so that a timeout that was put off is known.
    pub stamp: u64,
}

/// What the event socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// An event.
    Delta(Delta),
    /// The answer to a barrier.
    Barrier(Attempt),
}

/// A subscribed event socket.
#[derive(Debug, Default)]
pub struct EventSocket {
    /// What waits to be read.
    pub queue: VecDeque<Message>,
    /// How much fits.
    pub capacity: usize,
    /// Something did not fit and nobody was told yet.
    pub overrun: bool,
}

impl EventSocket {
    fn push(&mut self, message: Message) {
        // After a loss the kernel queues nothing until the socket was read empty
        // (NETLINK_S_CONGESTED in net/netlink/af_netlink.c).
        if self.overrun || self.queue.len() >= self.capacity {
            self.overrun = true;
        } else {
            self.queue.push_back(message);
        }
    }
}

/// What a packet does to its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// Opens a connection.
    Syn(FlowKey),
    /// Opens a connection that the guest will not answer.
    LostSyn(FlowKey),
    /// Payload, or a datagram.
    Data(FlowKey),
    /// Ends a connection.
    Fin(FlowKey),
    /// An echo request; no flow.
    Ping,
    /// The answer to a flow that the guest opened.
    Reply(FlowKey),
}

/// Whether packets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They park.
    Shut,
    /// They go to the tap.
    Open,
}

/// One workload's way to its guest. Belongs to the kernel: it outlives daemon and VMM.
#[derive(Debug)]
pub struct Link {
    /// Where packets for these addresses go.
    pub addresses: Addresses,
    /// Whether they pass.
    pub gate: Gate,
    /// Those that wait because it is shut, in order.
    pub parked: VecDeque<Packet>,
    /// Those that wait at the tap for the guest to read.
    pub ring: VecDeque<Packet>,
    /// Whether a tap exists.
    pub tap: bool,
    /// Packets that were given to the tap.
    pub passed: u64,
    /// Whether the kernel is already asking for the neighbour.
    pub soliciting: bool,
}

/// Where a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// To the tap.
    AtTap,
    /// It waits; `first` is whether the asking begins.
    Parked {
        /// Whether nothing waited before.
        first: bool,
    },
    /// Nobody has this address, or there is no tap: refused, the sender knows.
    Refused,
}

/// The kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    /// The table, in the order in which a listing walks it.
    pub flows: BTreeMap<FlowKey, Entry>,
    /// The observer's socket.
    pub socket: Option<EventSocket>,
    /// All links.
    pub links: BTreeMap<WorkloadId, Link>,
    stamps: u64,
}

impl Kernel {
    /// Makes or changes an entry, and says so on the event socket. Returns its new stamp.
    pub fn set_flow(&mut self, flow: Flow) -> u64 {
        self.stamps += 1;
        let stamp = self.stamps;
        let delta = match self.flows.insert(flow.key, Entry { flow, stamp }) {
            None => Some(Delta::Opened(flow)),
            Some(before) => (before.flow != flow).then_some(Delta::Changed(flow)),
        };
        if let (Some(delta), Some(socket)) = (delta, &mut self.socket) {
            socket.push(Message::Delta(delta));
        }
        stamp
    }

    /// Changes the TCP state of an entry that has `stamp`.
    pub fn set_tcp_state(&mut self, key: FlowKey, stamp: u64, state: TcpState) -> Option<u64> {
        let entry = self.flows.get(&key).filter(|entry| entry.stamp == stamp)?;
        let flow = Flow {
            tcp_state: Some(state),
            ..entry.flow
        };
        Some(self.set_flow(flow))
    }

    /// Drops an entry, if it still has `stamp`.
    pub fn expire(&mut self, key: FlowKey, stamp: u64) -> bool {
        let known = self.flows.get(&key).is_some_and(|entry| entry.stamp == stamp);
        if known {
            self.flows.remove(&key);
            if let Some(socket) = &mut self.socket {
                socket.push(Message::Delta(Delta::Closed(key)));
            }
        }
        known
    }

    /// Queues the answer to a barrier, as the kernel does: behind everything that is queued.
    pub fn barrier(&mut self, attempt: Attempt) -> bool {
        match &mut self.socket {
            Some(socket) => {
                socket.push(Message::Barrier(attempt));
                true
            }
            None => false,
        }
    }

    /// The link that has `address`.
    #[must_use]
    pub fn route(&self, address: IpAddr) -> Option<WorkloadId> {
        self.links
            .iter()
            .find(|(_, link)| link.addresses.both().contains(&address))
            .map(|(id, _)| *id)
    }

    /// Sends a packet to whoever has `address`.
    pub fn send(&mut self, address: IpAddr, packet: Packet) -> (Option<WorkloadId>, Fate) {
        let Some(id) = self.route(address) else {
            return (None, Fate::Refused);
        };
        let Some(link) = self.links.get_mut(&id) else {
            return (None, Fate::Refused);
        };
        let fate = match link.gate {
            Gate::Shut => {
                link.parked.push_back(packet);
                let first = !link.soliciting;
                link.soliciting = true;
                Fate::Parked { first }
            }
            Gate::Open if link.tap => {
                link.passed += 1;
                link.ring.push_back(packet);
                Fate::AtTap
            }
            Gate::Open => Fate::Refused,
        };
        (Some(id), fate)
    }

    /// Opens a link: parked packets go to the tap in order.
    pub fn open(&mut self, id: WorkloadId) -> bool {
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        link.gate = Gate::Open;
        link.soliciting = false;
        link.passed += link.parked.len() as u64;
        let parked = std::mem::take(&mut link.parked);
        link.ring.extend(parked);
        true
    }

    /// The live inbound flows of these addresses, by this page's own rule: whoever changes the rule of
    /// the model has to change the world as well.
    #[must_use]
    pub fn live_inbound(&self, addresses: &Addresses) -> Vec<FlowKey> {
        self.flows
            .values()
            .filter(|entry| is_inbound(&entry.flow, addresses) && is_alive(&entry.flow))
            .map(|entry| entry.flow.key)
            .collect()
    }

    /// The host reboots: nothing here survives.
    pub fn reboot(&mut self) {
        let stamps = self.stamps;
        *self = Self {
            stamps,
            ..Self::default()
        };
    }
}

/// The port that the simulated policies ignore.
pub const IGNORED_PORT: u16 = 9;

fn is_inbound(flow: &Flow, addresses: &Addresses) -> bool {
    addresses.both().contains(&flow.responder) && flow.responder_port != IGNORED_PORT
}

/// Only what is surely over is not alive (spec: NONE, TIME_WAIT, CLOSE).
fn is_alive(flow: &Flow) -> bool {
    match (flow.key.protocol, flow.tcp_state) {
        (Protocol::Icmp, _) => false,
        (Protocol::Tcp, Some(TcpState(number))) => !matches!(number, 0 | 7 | 8),
        (Protocol::Tcp, None) | (Protocol::Udp | Protocol::Other(_), _) => true,
    }
}
