//! What can go wrong in the data plane.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_model::{Fault, Kind, WorkloadId};
use dormouse_sys::netns::NamespaceError;
use dormouse_sys::tap::TapError;

use crate::config::ConfigError;
use crate::link::LinkRefusal;

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configuration is not valid.
    #[error("checking the network configuration")]
    Config(#[from] ConfigError),
    /// The data plane's namespace could not be entered.
    #[error("entering the data plane's network namespace")]
    Namespace(#[from] NamespaceError),
    /// A tap could not be made.
    #[error("making the tap of workload {id}")]
    Tap {
        /// Whose.
        id: WorkloadId,
        /// Why.
        source: TapError,
    },
    /// A device has a name of ours and does not bear our mark.
    #[error("the device {name} is in the way: {why}")]
    DeviceInTheWay {
        /// Which.
        name: String,
        /// What it lacks.
        why: String,
    },
    /// The packet table has our name and does not bear our mark.
    #[error("the packet table {name} is in the way: it does not carry the comment {mark:?}")]
    TableInTheWay {
        /// Which.
        name: String,
        /// What it should carry.
        mark: String,
    },
    /// The kernel refused a request.
    #[error("{doing} {about}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// To what.
        about: String,
        /// Why.
        source: io::Error,
    },
    /// A kernel setting could not be read or written.
    #[error("setting {} to {value:?}", .path.display())]
    Setting {
        /// Which.
        path: PathBuf,
        /// To what.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// The packet rules could not be installed.
    #[error("running nft: {text}")]
    Rules {
        /// What it printed.
        text: String,
    },
    /// The program that installs packet rules could not be run.
    #[error("starting nft (package nftables)")]
    RulesProgram(#[source] io::Error),
    /// The host drops packets whose way back is another device than the one they came by.
    #[error(
        "net.ipv4.conf.all.rp_filter is 1, which drops what a sleeper is woken for: \
         set it to 0 or 2"
    )]
    SourceCheckStrict,
    /// IPv6 is switched off here.
    #[error("IPv6 is switched off in the data plane's network namespace")]
    Ipv6Off,
    /// Another workload has this address, or the workload is attached already.
    #[error("attaching workload {id}: {address} is in use on a link")]
    AddressInUse {
        /// Who.
        id: WorkloadId,
        /// Which.
        address: IpAddr,
    },
    /// The link's state does not allow this.
    #[error("changing the link of workload {id}")]
    Refused {
        /// Whose.
        id: WorkloadId,
        /// Why.
        source: LinkRefusal,
    },
    /// The descriptor handed over is not the workload's tap.
    #[error("adopting workload {id}: the descriptor is of {got:?}, not of its tap")]
    NotItsTap {
        /// Who.
        id: WorkloadId,
        /// What the descriptor is of.
        got: String,
    },
    /// Nobody here holds a descriptor of the tap, so its queue cannot be seen.
    #[error("looking into the queue of the tap of workload {id}: no descriptor of it is held here")]
    DescriptorMissing {
        /// Whose.
        id: WorkloadId,
    },
    /// The tap's queue still held packets.
    #[error("draining the tap of workload {id}: packets were still queued after {waited:?}")]
    NotDrained {
        /// Whose.
        id: WorkloadId,
        /// How long.
        waited: Duration,
    },
    /// The kernel's packets in flight could not be waited for.
    #[error("waiting for packets in flight")]
    InFlight(#[source] io::Error),
    /// The kernel gave no thread.
    #[error("starting a thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The data plane's thread did not answer in time.
    #[error("waiting {waited:?} for the network thread")]
    Slow {
        /// How long.
        waited: Duration,
    },
    /// The data plane's thread is gone.
    #[error("asking the network thread, which has ended")]
    WorkerGone,
}

impl Fault for NetworkError {
    fn kind(&self) -> Kind {
        match self {
            Self::Config(cause) => cause.kind(),
            Self::Namespace(_) | Self::RulesProgram(_) => Kind::Unavailable,
            Self::Tap { .. } => Kind::Unavailable,
            Self::DeviceInTheWay { .. } | Self::TableInTheWay { .. } => Kind::Conflict,
            Self::Kernel { source, .. }
            | Self::Setting { source, .. }
            | Self::InFlight(source)
            | Self::Thread { source } => of_io(source),
            Self::SourceCheckStrict | Self::Ipv6Off => Kind::Unsupported,
            Self::AddressInUse { .. } => Kind::Exists,
            Self::Refused { .. } | Self::DescriptorMissing { .. } => Kind::WrongState,
            Self::NotItsTap { .. } => Kind::Invalid,
            Self::NotDrained { .. } | Self::Slow { .. } => Kind::Timeout,
            Self::Rules { .. } | Self::WorkerGone => Kind::Bug,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Config(cause) => cause.code(),
            Self::Namespace(_) => "NETWORK_NAMESPACE_UNUSABLE",
            Self::Tap { .. } => "NETWORK_TAP_FAILED",
            Self::DeviceInTheWay { .. } => "NETWORK_DEVICE_IN_THE_WAY",
            Self::TableInTheWay { .. } => "NETWORK_TABLE_IN_THE_WAY",
            Self::Kernel { .. } => "NETWORK_KERNEL_REFUSED",
            Self::Setting { .. } => "NETWORK_SETTING_REFUSED",
            Self::Rules { .. } => "NETWORK_RULES_REFUSED",
            Self::RulesProgram(_) => "NETWORK_RULES_PROGRAM_MISSING",
            Self::SourceCheckStrict => "NETWORK_SOURCE_CHECK_STRICT",
            Self::Ipv6Off => "NETWORK_IPV6_OFF",
            Self::AddressInUse { .. } => "NETWORK_ADDRESS_IN_USE",
            Self::Refused { .. } => "NETWORK_LINK_STATE",
            Self::NotItsTap { .. } => "NETWORK_NOT_ITS_TAP",
            Self::DescriptorMissing { .. } => "NETWORK_DESCRIPTOR_MISSING",
            Self::NotDrained { .. } => "NETWORK_NOT_DRAINED",
            Self::InFlight(_) => "NETWORK_IN_FLIGHT_UNKNOWN",
            Self::Thread { .. } => "NETWORK_THREAD_REFUSED",
            Self::Slow { .. } => "NETWORK_SLOW",
            Self::WorkerGone => "NETWORK_WORKER_GONE",
        }
    }
}

/// What an error of a system call means for the caller.
fn of_io(error: &io::Error) -> Kind {
    match error.raw_os_error() {
        Some(nix::libc::EPERM | nix::libc::EACCES) => Kind::Denied,
        Some(nix::libc::ENOMEM | nix::libc::ENOBUFS | nix::libc::ENOSPC) => Kind::Exhausted,
        Some(nix::libc::ENOSYS | nix::libc::EOPNOTSUPP) => Kind::Unsupported,
        Some(nix::libc::EAGAIN | nix::libc::ETIMEDOUT) => Kind::Timeout,
        Some(_) | None => Kind::Unavailable,
    }
}
