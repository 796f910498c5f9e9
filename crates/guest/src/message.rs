//! What frames carry: checked types here, protobuf bodies (in `wire`) on the channel.
//!
//! Fields are only ever added, with numbers that were never used; a reader ignores what it does not
//! know and takes what is missing for its zero. `tests/golden` holds the bytes of every release.

use std::net::{Ipv4Addr, Ipv6Addr};

use dormouse_model::MacAddress;
use prost::Message as _;

use crate::error::GuestError;

mod wire;

/// Which side may send a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The daemon.
    Host,
    /// The agent.
    Guest,
}

/// A message between daemon and agent. Links and sessions are [`crate::channel`]'s and not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Host: set the guest up and start its workload. The first boot counts; a repeated one is
    /// answered and changes nothing. Answered by [`Message::Ready`] or [`Message::BootFailed`].
    Boot(Box<Boot>),
    /// Host: the wall clock now, in nanoseconds since 1970 UTC. Answered by [`Message::Done`].
    ClockSet {
        /// Nanoseconds since 1970 UTC.
        unix_nanos: u64,
    },
    /// Host: mix these bytes into the kernel's random state and rekey it at once. Every copy of a
    /// memory image draws the same numbers until this is done. Answered by [`Message::Done`].
    Reseed {
        /// Fresh random bytes, used once.
        seed: [u8; 32],
    },
    /// Host: end the workload with its stop signal, then kill it after the grace, then power off.
    Shutdown {
        /// Milliseconds between the stop signal and the kill.
        grace_millis: u64,
    },
    /// Host: are you there? Outside the order and never resent. Answered by [`Message::Pong`].
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Guest: the workload's process was started. Not that it listens: only a probe can say that.
    Ready {
        /// The process in the guest.
        pid: u32,
    },
    /// Guest: the workload's process ended; power-off follows.
    Exited {
        /// How.
        exit: Exit,
        /// What went wrong when it never ran: its program was not found, its user is unknown.
        problem: String,
    },
    /// Guest: a boot step failed; power-off follows.
    BootFailed {
        /// The step, one word: `root`, `network`, `user`.
        step: String,
        /// The chain of causes.
        problem: String,
    },
    /// Guest: a request was carried out, or why not.
    Done {
        /// The sequence of the request's frame in this session.
        request: u64,
        /// Empty when it was carried out.
        problem: String,
    },
    /// Guest: here.
    Pong {
        /// From the ping.
        nonce: u64,
        /// The guest's wall clock, in nanoseconds since 1970 UTC.
        unix_nanos: u64,
    },
}

/// Everything that the agent needs to start the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Written to the kernel, `/etc/hostname` and `/etc/hosts`.
    pub hostname: String,
    /// `None`: loopback only.
    pub network: Option<Network>,
    /// Program and arguments; the program is looked up in the workload's `PATH`.
    pub arguments: Vec<String>,
    /// The workload's environment; `PATH`, `HOME` and `HOSTNAME` are added where missing.
    pub environment: Vec<(String, String)>,
    /// Where it starts; made when missing. Empty: `/`.
    pub working_directory: String,
    /// As in an OCI image: `user`, `uid`, `user:group`, `uid:gid`. Empty: root.
    pub user: String,
    /// The signal that asks it to end; 0: `SIGTERM`.
    pub stop_signal: u32,
    /// The read-only root file system.
    pub root: Disk,
    /// The writable disk over it; `None`: changes stay in memory.
    pub overlay: Option<Disk>,
    /// Mixed into the kernel's random state before anything else.
    pub seed: [u8; 32],
    /// The wall clock at the time of sending, in nanoseconds since 1970 UTC.
    pub unix_nanos: u64,
}

/// How the agent finds a disk. Device letters follow the order in which the kernel met the devices,
/// which the order on the VMM's command line does not decide: prefer serials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disk {
    /// By the serial number that the VMM announces (`/sys/block/*/serial`), at most 20 bytes.
    Serial(String),
    /// By the label of the ext4 file system on it.
    Label(String),
    /// By path, such as `/dev/vda`.
    Device(String),
}

/// The guest's network: one address of each family alone on its prefix, routed through gateways
/// that are neighbours for ever, so that the guest never asks on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Set as a /32.
    pub ipv4: Ipv4Addr,
    /// Set as a /128 without duplicate address detection.
    pub ipv6: Ipv6Addr,
    /// The default route of IPv4, reached on the link.
    pub gateway_ipv4: Ipv4Addr,
    /// The default route of IPv6, a link-local address.
    pub gateway_ipv6: Ipv6Addr,
    /// The permanent neighbour behind both gateways.
    pub gateway_mac: MacAddress,
    /// The guest's own device is the one with this address.
    pub mac: MacAddress,
    /// Bytes; 0 leaves the device's own.
    pub mtu: u32,
    /// Resolvers for `/etc/resolv.conf`; empty leaves the image's file.
    pub dns: Vec<std::net::IpAddr>,
}

/// How the workload's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status. 126 and 127 with a problem mean that it never ran.
    Code(u8),
    /// By a signal.
    Signal {
        /// The signal's number.
        signal: u8,
        /// Whether the guest kernel killed for want of memory meanwhile.
        out_of_memory: bool,
    },
}

/// How far the guest is, told with every greeting: a daemon that starts anew learns it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Waits for [`Message::Boot`].
    #[default]
    Waiting,
    /// Carries out the boot.
    Booting,
    /// The workload was started.
    Running,
    /// The workload ended or is being ended; power-off follows.
    Ending,
}

impl Phase {
    /// The number on the wire.
    #[must_use]
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Waiting => 1,
            Self::Booting => 2,
            Self::Running => 3,
            Self::Ending => 4,
        }
    }

    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Waiting),
            2 => Some(Self::Booting),
            3 => Some(Self::Running),
            4 => Some(Self::Ending),
            _ => None,
        }
    }
}

/// The kinds of frames. Numbers are never used twice.
pub mod kind {
    /// [`super::Message::Boot`]
    pub const BOOT: u8 = 16;
    /// [`super::Message::ClockSet`]
    pub const CLOCK_SET: u8 = 17;
    /// [`super::Message::Reseed`]
    pub const RESEED: u8 = 18;
    /// [`super::Message::Shutdown`]
    pub const SHUTDOWN: u8 = 19;
    /// [`super::Message::Ping`]
    pub const PING: u8 = 20;
    /// [`super::Message::Ready`]
    pub const READY: u8 = 64;
    /// [`super::Message::Exited`]
    pub const EXITED: u8 = 65;
    /// [`super::Message::BootFailed`]
    pub const BOOT_FAILED: u8 = 66;
    /// [`super::Message::Done`]
    pub const DONE: u8 = 67;
    /// [`super::Message::Pong`]
    pub const PONG: u8 = 68;
}

impl Message {
    /// The kind of the frame that carries it.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Boot(_) => kind::BOOT,
            Self::ClockSet { .. } => kind::CLOCK_SET,
            Self::Reseed { .. } => kind::RESEED,
            Self::Shutdown { .. } => kind::SHUTDOWN,
            Self::Ping { .. } => kind::PING,
            Self::Ready { .. } => kind::READY,
            Self::Exited { .. } => kind::EXITED,
            Self::BootFailed { .. } => kind::BOOT_FAILED,
            Self::Done { .. } => kind::DONE,
            Self::Pong { .. } => kind::PONG,
        }
    }

    /// Who may send it.
    #[must_use]
    pub const fn sender(&self) -> Side {
        match self {
            Self::Boot(_)
            | Self::ClockSet { .. }
            | Self::Reseed { .. }
            | Self::Shutdown { .. }
            | Self::Ping { .. } => Side::Host,
            Self::Ready { .. }
            | Self::Exited { .. }
            | Self::BootFailed { .. }
            | Self::Done { .. }
            | Self::Pong { .. } => Side::Guest,
        }
    }

    /// Whether it is numbered, acknowledged and resent. A ping is worth nothing later.
    #[must_use]
    pub const fn is_ordered(&self) -> bool {
        !matches!(self, Self::Ping { .. } | Self::Pong { .. })
    }

    /// The body of its frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Boot(boot) => wire::Boot::from(boot.as_ref()).encode_to_vec(),
            Self::ClockSet { unix_nanos } => wire::ClockSet {
                unix_nanos: *unix_nanos,
            }
            .encode_to_vec(),
            Self::Reseed { seed } => wire::Reseed { seed: seed.to_vec() }.encode_to_vec(),
            Self::Shutdown { grace_millis } => wire::Shutdown {
                grace_millis: *grace_millis,
            }
            .encode_to_vec(),
            Self::Ping { nonce } => wire::Ping { nonce: *nonce }.encode_to_vec(),
            Self::Ready { pid } => wire::Ready { pid: *pid }.encode_to_vec(),
            Self::Exited { exit, problem } => wire::Exited::new(*exit, problem).encode_to_vec(),
            Self::BootFailed { step, problem } => wire::BootFailed {
                step: step.clone(),
                problem: problem.clone(),
            }
            .encode_to_vec(),
            Self::Done { request, problem } => wire::Done {
                request: *request,
                problem: problem.clone(),
            }
            .encode_to_vec(),
            Self::Pong { nonce, unix_nanos } => wire::Pong {
                nonce: *nonce,
                unix_nanos: *unix_nanos,
            }
            .encode_to_vec(),
        }
    }

    /// The message of a frame's kind and body.
    ///
    /// # Errors
    /// [`GuestError::KindUnknown`] or [`GuestError::BodyUnreadable`].
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, GuestError> {
        let read = |what: String| GuestError::BodyUnreadable { kind, what };
        Ok(match kind {
            kind::BOOT => Self::Boot(Box::new(
                parse::<wire::Boot>(kind, body)?.try_into().map_err(read)?,
            )),
            kind::CLOCK_SET => Self::ClockSet {
                unix_nanos: parse::<wire::ClockSet>(kind, body)?.unix_nanos,
            },
            kind::RESEED => {
                let seed = parse::<wire::Reseed>(kind, body)?.seed;
                Self::Reseed {
                    seed: wire::fixed("seed", &seed).map_err(read)?,
                }
            }
            kind::SHUTDOWN => Self::Shutdown {
                grace_millis: parse::<wire::Shutdown>(kind, body)?.grace_millis,
            },
            kind::PING => Self::Ping {
                nonce: parse::<wire::Ping>(kind, body)?.nonce,
            },
            kind::READY => Self::Ready {
                pid: parse::<wire::Ready>(kind, body)?.pid,
            },
            kind::EXITED => {
                let exited = parse::<wire::Exited>(kind, body)?;
                Self::Exited {
                    exit: exited.exit().map_err(read)?,
                    problem: exited.problem,
                }
            }
            kind::BOOT_FAILED => {
                let failed = parse::<wire::BootFailed>(kind, body)?;
                Self::BootFailed {
                    step: failed.step,
                    problem: failed.problem,
                }
            }
            kind::DONE => {
                let done = parse::<wire::Done>(kind, body)?;
                Self::Done {
                    request: done.request,
                    problem: done.problem,
                }
            }
            kind::PONG => {
                let pong = parse::<wire::Pong>(kind, body)?;
                Self::Pong {
                    nonce: pong.nonce,
                    unix_nanos: pong.unix_nanos,
                }
            }
            _ => return Err(GuestError::KindUnknown { kind }),
        })
    }
}

/// Reads a protobuf body; the text of prost's error is all there is to know, so it is kept as text.
fn parse<T: prost::Message + Default>(kind: u8, body: &[u8]) -> Result<T, GuestError> {
    T::decode(body).map_err(|error| GuestError::BodyUnreadable {
        kind,
        what: error.to_string(),
    })
}

/// The host's greeting: opens or resumes a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) newest: u32,
    pub(crate) oldest: u32,
}

/// The guest's answer to a greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HelloAck {
    pub(crate) version: u32,
    pub(crate) resumed: bool,
    pub(crate) boot_id: String,
    pub(crate) release: String,
    pub(crate) phase: Phase,
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        wire::Hello {
            newest: self.newest,
            oldest: self.oldest,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(kind: u8, body: &[u8]) -> Result<Self, GuestError> {
        let hello = parse::<wire::Hello>(kind, body)?;
        Ok(Self {
            newest: hello.newest,
            oldest: hello.oldest,
        })
    }
}

impl HelloAck {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (boot_id, release) = (self.boot_id.clone(), self.release.clone());
        let (version, resumed, phase) = (self.version, self.resumed, self.phase.number());
        wire::HelloAck {
            version,
            resumed,
            boot_id,
            release,
            phase,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(kind: u8, body: &[u8]) -> Result<Self, GuestError> {
        let wire::HelloAck {
            version,
            resumed,
            boot_id,
            release,
            phase,
        } = parse(kind, body)?;
        let phase = Phase::from_number(phase).ok_or_else(|| GuestError::BodyUnreadable {
            kind,
            what: format!("phase {phase} is unknown"),
        })?;
        Ok(Self {
            version,
            resumed,
            boot_id,
            release,
            phase,
        })
    }
}
