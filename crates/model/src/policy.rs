//! The standby policy: when a workload may sleep by itself, and what does not count as traffic.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::error::{Fault, Kind};
use crate::time::{format_duration, parse_duration};

/// A valid policy that is switched on. There is no default timeout: a caller who wants sleep says
/// after how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyPolicy {
    idle_timeout: Duration,
    ignore_sources: Vec<IpNet>,
    ignore_ports: Vec<u16>,
}

/// What a workload says about sleeping by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PolicySetting {
    /// Nothing was said.
    #[default]
    Missing,
    /// It was said: never by itself.
    Disabled,
    /// Sleeps by this policy.
    Enabled(StandbyPolicy),
}

impl PolicySetting {
    /// The policy when switched on.
    #[must_use]
    pub const fn enabled(&self) -> Option<&StandbyPolicy> {
        match self {
            Self::Enabled(policy) => Some(policy),
            Self::Missing | Self::Disabled => None,
        }
    }
}

/// A policy as a person wrote it: text, in any order, perhaps twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawPolicy {
    /// Off discards every other field.
    pub enabled: bool,
    /// Such as `5m`; required when enabled.
    pub idle_timeout: String,
    /// Prefixes such as `10.0.0.0/8`; blanks are skipped.
    pub ignore_sources: Vec<String>,
    /// Destination ports of the guest, 1 to 65535.
    pub ignore_ports: Vec<u32>,
}

impl RawPolicy {
    /// Checks and normalises: masks host bits, sorts, removes doubles. Idempotent.
    ///
    /// # Errors
    /// The first field that is wrong, with its text.
    pub fn normalise(&self) -> Result<PolicySetting, PolicyError> {
        if !self.enabled {
            return Ok(PolicySetting::Disabled);
        }
        let text = self.idle_timeout.trim();
        if text.is_empty() {
            return Err(PolicyError::TimeoutMissing);
        }
        let idle_timeout = parse_duration(text).map_err(|_| PolicyError::TimeoutUnreadable {
            text: text.to_owned(),
        })?;
        let mut ignore_sources = Vec::new();
        for text in self
            .ignore_sources
            .iter()
            .map(|s| s.trim())
            .filter(|s| !s.is_empty())
        {
            let prefix: IpNet = text.parse().map_err(|_| PolicyError::PrefixUnreadable {
                text: text.to_owned(),
            })?;
            ignore_sources.push(prefix.trunc());
        }
        let mut ignore_ports = Vec::new();
        for &port in &self.ignore_ports {
            match u16::try_from(port) {
                Ok(0) | Err(_) => return Err(PolicyError::PortOutOfRange { port }),
                Ok(port) => ignore_ports.push(port),
            }
        }
        StandbyPolicy::new(idle_timeout, ignore_sources, ignore_ports).map(PolicySetting::Enabled)
    }
}

impl StandbyPolicy {
    /// A policy that sleeps after `idle_timeout` without inbound flows.
    ///
    /// # Errors
    /// When the timeout is zero.
    pub fn new(
        idle_timeout: Duration,
        mut ignore_sources: Vec<IpNet>,
        mut ignore_ports: Vec<u16>,
    ) -> Result<Self, PolicyError> {
        if idle_timeout.is_zero() {
            return Err(PolicyError::TimeoutZero);
        }
        // Sorted as text, as the systems before us do, so that a stored policy compares equal.
        ignore_sources.sort_by_key(ToString::to_string);
        ignore_sources.dedup();
        ignore_ports.sort_unstable();
        ignore_ports.dedup();
        Ok(Self {
            idle_timeout,
            ignore_sources,
            ignore_ports,
        })
    }

    /// How long without a live inbound flow until sleep.
    #[must_use]
    pub const fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// Prefixes whose flows do not count; sorted, host bits masked.
    #[must_use]
    pub fn ignore_sources(&self) -> &[IpNet] {
        &self.ignore_sources
    }

    /// Ports of the guest whose flows do not count; ascending.
    #[must_use]
    pub fn ignore_ports(&self) -> &[u16] {
        &self.ignore_ports
    }

    /// Whether flows from `source` to `port` of the guest are ignored. An IPv4-mapped source is
    /// compared as the IPv4 address that it stands for.
    #[must_use]
    pub fn ignores(&self, source: IpAddr, port: u16) -> bool {
        let source = source.to_canonical();
        self.ignore_ports.binary_search(&port).is_ok()
            || self.ignore_sources.iter().any(|prefix| prefix.contains(&source))
    }

    /// The policy as text again, for records and the API.
    #[must_use]
    pub fn to_raw(&self) -> RawPolicy {
        RawPolicy {
            enabled: true,
            idle_timeout: format_duration(self.idle_timeout),
            ignore_sources: self.ignore_sources.iter().map(ToString::to_string).collect(),
            ignore_ports: self.ignore_ports.iter().copied().map(u32::from).collect(),
        }
    }
}

/// What is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Enabled without a timeout.
    #[error("standby.idle_timeout is required when standby is enabled: write a duration such as 5m")]
    TimeoutMissing,
    /// Not a duration.
    #[error("standby.idle_timeout {text:?} is not a duration: write one such as 5m or 1h30m")]
    TimeoutUnreadable {
        /// What was given.
        text: String,
    },
    /// Zero.
    #[error("standby.idle_timeout must be positive")]
    TimeoutZero,
    /// Not a prefix.
    #[error("standby.ignore_sources {text:?} is not a prefix: write one such as 10.0.0.0/8 or fd00::/8")]
    PrefixUnreadable {
        /// What was given.
        text: String,
    },
    /// Not a port.
    #[error("standby.ignore_ports {port} is not a port: use 1 to 65535")]
    PortOutOfRange {
        /// What was given.
        port: u32,
    },
}

impl Fault for PolicyError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "POLICY_INVALID"
    }
}
