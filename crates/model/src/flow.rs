//! Tracked flows as the kernel reports them, the rule that says which count as inbound traffic, and
//! the observer's stream: ordered observations with explicit gaps.

use std::net::IpAddr;

use crate::id::Epoch;
use crate::plant::{Plant, planted};
use crate::policy::StandbyPolicy;

/// A transport protocol by its IANA number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 1 and 58: echo and its kind, which open no conversation.
    Icmp,
    /// Any other number; counts as a conversation, because unknown means alive.
    Other(u8),
}

impl Protocol {
    /// The protocol with IANA number `number`.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            1 | 58 => Self::Icmp,
            other => Self::Other(other),
        }
    }
}

/// A conntrack TCP state by the kernel's number (`enum tcp_conntrack` in
/// include/uapi/linux/netfilter/nf_conntrack_tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpState(pub u8);

impl TcpState {
    /// No state yet.
    pub const NONE: Self = Self(0);
    /// SYN seen.
    pub const SYN_SENT: Self = Self(1);
    /// SYN-ACK seen.
    pub const SYN_RECV: Self = Self(2);
    /// Handshake done.
    pub const ESTABLISHED: Self = Self(3);
    /// First FIN seen.
    pub const FIN_WAIT: Self = Self(4);
    /// FIN acknowledged.
    pub const CLOSE_WAIT: Self = Self(5);
    /// Second FIN seen.
    pub const LAST_ACK: Self = Self(6);
    /// Both sides done.
    pub const TIME_WAIT: Self = Self(7);
    /// Reset.
    pub const CLOSE: Self = Self(8);
    /// SYN seen from both sides; the kernel reuses the old LISTEN number.
    pub const LISTEN: Self = Self(9);
    /// Not a state of flows; the kernel uses it inside its table.
    pub const IGNORE: Self = Self(10);
    /// Likewise.
    pub const RETRANS: Self = Self(11);

    /// Whether a flow in this state holds its guest awake. Only what is surely over does not:
    /// a live flow taken for dead strands a client, the opposite costs idle time. Numbers that
    /// nobody has named yet are alive.
    #[must_use]
    pub fn is_live(self) -> bool {
        if planted(Plant::SynSentInactive) && self == Self::SYN_SENT {
            return false;
        }
        !matches!(self, Self::NONE | Self::TIME_WAIT | Self::CLOSE)
    }
}

/// What identifies a flow: the original direction's tuple, its protocol and its zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Protocol.
    pub protocol: Protocol,
    /// Conntrack zone; 0 unless rules say otherwise.
    pub zone: u16,
    /// Who opened the flow; IPv4-mapped addresses are unmapped at the edge.
    pub source: IpAddr,
    /// The opener's port; for ICMP the echo id.
    pub source_port: u16,
    /// Whom the opener addressed, before any DNAT.
    pub destination: IpAddr,
    /// The port addressed, before any DNAT.
    pub destination_port: u16,
}

/// A tracked flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Its identity.
    pub key: FlowKey,
    /// Who answers: the source of the reply direction. Equal to `key.destination` unless the
    /// connection was made to a published port, where it is the guest behind it.
    pub responder: IpAddr,
    /// The responder's port.
    pub responder_port: u16,
    /// The state, for TCP; `None` for other protocols or when the kernel did not say.
    pub tcp_state: Option<TcpState>,
}

impl Flow {
    /// Whether this flow, taken as one for `guest`, holds it awake under `policy`.
    ///
    /// Inbound only: the guest is the responder. What the guest opened itself never counts, nor
    /// does what the policy ignores, nor ICMP, nor what is surely over.
    #[must_use]
    pub fn holds_awake(&self, guest: IpAddr, policy: &StandbyPolicy) -> bool {
        self.responder == guest && self.is_live() && !policy.ignores(self.key.source, self.responder_port)
    }

    /// Whether the flow is not surely over. A TCP flow without a state counts as over when it is
    /// being destroyed and as alive otherwise, so callers of deltas decide before they ask.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self.key.protocol {
            Protocol::Tcp => self.tcp_state.is_none_or(TcpState::is_live),
            Protocol::Udp | Protocol::Other(_) => true,
            Protocol::Icmp => false,
        }
    }
}

/// One item of the observer's stream. The order is the kernel's; a gap is an item, never silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// A listing of all flows begins; what follows until `SyncDone` replaces what was known.
    SyncBegan {
        /// The number of the period of sight that the listing opens.
        epoch: Epoch,
    },
    /// A flow of the listing.
    FlowListed(Flow),
    /// The listing is complete and nothing was missed since it began.
    SyncDone {
        /// The period's number, as in `SyncBegan`.
        epoch: Epoch,
    },
    /// The kernel made an entry.
    FlowOpened(Flow),
    /// The kernel changed an entry.
    FlowChanged(Flow),
    /// The kernel dropped an entry.
    FlowClosed(FlowKey),
    /// Something may have been missed: nothing known is certain until the next `SyncDone`.
    SightLost {
        /// What happened.
        reason: SightLoss,
    },
}

/// How sight was lost. Closed, because each is a label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SightLoss {
    /// The kernel dropped events because our buffer was full (`ENOBUFS`).
    Overrun,
    /// The socket failed or was closed.
    SocketFailed,
    /// A message could not be decoded.
    Undecodable,
    /// A listing was interrupted by changes (`NLM_F_DUMP_INTR`) or failed.
    ListingFailed,
    /// Our own queue to the consumer was full.
    ConsumerSlow,
}

impl SightLoss {
    /// The label of this reason on metrics and in statuses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overrun => "overrun",
            Self::SocketFailed => "socket_failed",
            Self::Undecodable => "undecodable",
            Self::ListingFailed => "listing_failed",
            Self::ConsumerSlow => "consumer_slow",
        }
    }
}
