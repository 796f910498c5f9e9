//! What the observer needs of the kernel: tracking that is switched on, and events of it.
//!
//! Two defaults of Linux make an observer blind without a word. Nothing is tracked in a namespace until a
//! rule there asks for it. And with `nf_conntrack_events` at 2, entries made while nobody listened stay
//! silent for all their life, their end included.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use dormouse_model::{Fault, Kind};
use dormouse_sys::netns::{Namespace, NamespaceError};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::link;
use crate::wire::{Body, messages, request};

/// Where the settings are. The kernel shows those of the reader's namespace.
const SETTINGS: &str = "/proc/sys/net/netfilter";

/// How long the kernel may take to answer a request; it answers while it is being asked.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Which entries speak (`net.netfilter.nf_conntrack_events`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsSetting {
    /// 0: none.
    Off,
    /// 1: all. What the observer needs.
    Always,
    /// 2: those made while somebody listened.
    WhileListened,
    /// Another number, of a newer kernel.
    Unknown(u32),
}

/// Whether packets of a family are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// A datagram sent over the loopback device was tracked.
    On,
    /// It was not: no rule of the namespace asks for tracking, or one exempts the loopback device.
    Off,
    /// It could not be tried: the loopback device is down or has no address of the family.
    Untried,
}

/// What was found in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirements {
    /// Which entries speak.
    pub events: EventsSetting,
    /// Whether IPv4 is tracked.
    pub tracking_v4: Tracking,
    /// Whether IPv6 is tracked.
    pub tracking_v6: Tracking,
    /// Entries in the namespace's table now.
    pub entries: u64,
    /// The most entries of all namespaces together; beyond it new connections are dropped.
    pub entries_max: u64,
}

/// Why the requirements are not known.
#[derive(Debug, thiserror::Error)]
pub enum RequirementsError {
    /// The namespace could not be entered.
    #[error("cannot enter the network namespace to look at its connection tracking")]
    Namespace(#[from] NamespaceError),
    /// The kernel has no connection tracking, or it is not loaded.
    #[error("this kernel has no connection tracking ({SETTINGS} is missing)")]
    NoTracking(#[source] io::Error),
    /// A setting could not be read or written.
    #[error("cannot access {SETTINGS}/{name}")]
    Setting {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A setting is not a number.
    #[error("{SETTINGS}/{name} holds {text:?}, not a number")]
    NotANumber {
        /// Which.
        name: &'static str,
        /// What it holds.
        text: String,
    },
    /// The attempt with the loopback device failed.
    #[error("cannot ask the kernel for a tracked datagram")]
    Probe(#[source] io::Error),
}

impl Fault for RequirementsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Unavailable,
            Self::NoTracking(_) => Kind::Unsupported,
            Self::Setting { source, .. } | Self::Probe(source) => match source.kind() {
                io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Unavailable,
            },
            Self::NotANumber { .. } => Kind::Unsupported,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "OBSERVER_NAMESPACE",
            Self::NoTracking(_) => "OBSERVER_NO_TRACKING",
            Self::Setting { .. } => "OBSERVER_SETTING",
            Self::NotANumber { .. } => "OBSERVER_SETTING_UNKNOWN",
            Self::Probe(_) => "OBSERVER_PROBE",
        }
    }
}

impl Requirements {
    /// Looks at `namespace`, the caller's own when `None`. Changes nothing, but sends one datagram a
    /// family over the loopback device to itself. Blocking, for milliseconds.
    ///
    /// # Errors
    /// See [`RequirementsError`].
    pub fn check(namespace: Option<&Namespace>) -> Result<Self, RequirementsError> {
        match namespace {
            Some(namespace) => namespace.within(Self::check_here)?,
            None => Self::check_here(),
        }
    }

    fn check_here() -> Result<Self, RequirementsError> {
        fs::metadata(SETTINGS).map_err(RequirementsError::NoTracking)?;
        Ok(Self {
            events: events_setting()?,
            tracking_v4: tracking(Ipv4Addr::LOCALHOST.into())?,
            tracking_v6: tracking(Ipv6Addr::LOCALHOST.into())?,
            entries: number("nf_conntrack_count")?,
            entries_max: number("nf_conntrack_max")?,
        })
    }

    /// Whether the observer sees everything.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.events == EventsSetting::Always
            && self.tracking_v4 != Tracking::Off
            && self.tracking_v6 != Tracking::Off
    }
}

/// Makes all entries of `namespace` speak, the caller's own when `None`; returns what was set before.
/// Entries that were made silent stay silent: do it before traffic.
///
/// # Errors
/// See [`RequirementsError`]; needs root in the namespace.
pub fn enable_events(namespace: Option<&Namespace>) -> Result<EventsSetting, RequirementsError> {
    match namespace {
        Some(namespace) => namespace.within(enable_events_here)?,
        None => enable_events_here(),
    }
}

const EVENTS: &str = "nf_conntrack_events";

fn enable_events_here() -> Result<EventsSetting, RequirementsError> {
    fs::metadata(SETTINGS).map_err(RequirementsError::NoTracking)?;
    let before = events_setting()?;
    if before != EventsSetting::Always {
        fs::write(format!("{SETTINGS}/{EVENTS}"), "1")
            .map_err(|source| RequirementsError::Setting { name: EVENTS, source })?;
    }
    Ok(before)
}

fn events_setting() -> Result<EventsSetting, RequirementsError> {
    Ok(match number(EVENTS)? {
        0 => EventsSetting::Off,
        1 => EventsSetting::Always,
        2 => EventsSetting::WhileListened,
        other => EventsSetting::Unknown(u32::try_from(other).unwrap_or(u32::MAX)),
    })
}

fn number(name: &'static str) -> Result<u64, RequirementsError> {
    let text = fs::read_to_string(format!("{SETTINGS}/{name}"))
        .map_err(|source| RequirementsError::Setting { name, source })?;
    text.trim().parse().map_err(|_| RequirementsError::NotANumber {
        name,
        text: text.trim().to_owned(),
    })
}

/// Sends a datagram from a loopback address to itself and asks for its entry.
fn tracking(address: IpAddr) -> Result<Tracking, RequirementsError> {
    let Some(port) = send_to_self(address) else {
        return Ok(Tracking::Untried);
    };
    let socket = Socket::new(NETLINK_NETFILTER).map_err(RequirementsError::Probe)?;
    let wait = TimeVal::milliseconds(i64::try_from(ANSWER_PATIENCE.as_millis()).unwrap_or(1000));
    setsockopt(&socket, sockopt::ReceiveTimeout, &wait).map_err(|e| RequirementsError::Probe(e.into()))?;
    let question = request::udp_entry(1, (address, port), (address, port));
    link::ask(&socket, &question).map_err(RequirementsError::Probe)?;
    let mut buffer = [0_u8; link::ANSWER_BYTES];
    let answer = loop {
        if let Some(length) = link::receive(&socket, &mut buffer, 0).map_err(RequirementsError::Probe)? {
            break buffer.get(..length).unwrap_or_default();
        }
    };
    match messages(answer).next() {
        Some(Ok(message)) => match message.body {
            Body::Made(_) | Body::Entry(_) => Ok(Tracking::On),
            Body::Answer {
                errno: nix::libc::ENOENT,
            } => Ok(Tracking::Off),
            Body::Answer { errno } => Err(RequirementsError::Probe(io::Error::from_raw_os_error(errno))),
            Body::Gone(_) | Body::Done { .. } | Body::Overrun | Body::Other => Ok(Tracking::Untried),
        },
        Some(Err(error)) => Err(RequirementsError::Probe(io::Error::new(
            io::ErrorKind::InvalidData,
            error,
        ))),
        None => Ok(Tracking::Untried),
    }
}

/// The port used, or `None` where the loopback device does not carry the family.
fn send_to_self(address: IpAddr) -> Option<u16> {
    let socket = UdpSocket::bind((address, 0)).ok()?;
    let own = socket.local_addr().ok()?;
    socket.send_to(&[0], own).ok()?;
    socket.set_read_timeout(Some(ANSWER_PATIENCE)).ok()?;
    // Once it has arrived, its entry is in the table if there is to be one.
    socket.recv(&mut [0]).ok()?;
    Some(own.port())
}
