//! The data plane's configuration, its checks, and the names of what it makes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use dormouse_model::{Bytes, Fault, Kind, MacAddress, WorkloadId};
use ipnet::{Ipv4Net, Ipv6Net};

/// What the data plane is made of. Checked by [`NetworkConfig::problems`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The network namespace to work in, by its file; `None` is the daemon's own.
    pub namespace: Option<PathBuf>,
    /// Begins the name of every device and of the packet table: 1 to 4 characters of a-z and 0-9.
    pub device_prefix: String,
    /// Who owns what is made, written into every device and the packet table: two daemons in one
    /// namespace need different owners and different prefixes.
    pub owner: String,
    /// Guests' IPv4 addresses come from here, a /32 each.
    pub ipv4_pool: Ipv4Net,
    /// Guests' IPv6 addresses come from here, a /128 each; a ULA prefix.
    pub ipv6_prefix: Ipv6Net,
    /// The host as guests see it. Link-local, so that it cannot clash with a pool.
    pub gateway_ipv4: Ipv4Addr,
    /// The host as guests see it.
    pub gateway_ipv6: Ipv6Addr,
    /// Bytes of a frame without its Ethernet header, on every device.
    pub mtu_bytes: u32,
    /// Frames that a tap holds for its VMM. What a release lets go arrives at once: keep it at
    /// three times the largest burst that should survive. Memory is taken in powers of two.
    pub tap_queue_length: u32,
    /// Memory that one sleeper's waiting packets may take, in each of the two families. The oldest
    /// are dropped beyond it. The kernel counts about 830 bytes for a small packet.
    pub parked_bytes_per_sleeper: Bytes,
    /// Whether guests reach the world behind the host's address.
    pub masquerade: bool,
    /// Which tracked flows make events.
    pub flow_events: FlowEvents,
}

/// Which tracked flows of the namespace make conntrack events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlowEvents {
    /// Only those addressed to workloads. The others are tracked in silence, which saves the host
    /// about a third of the cost of a connection.
    WorkloadsOnly,
    /// All, for a host where somebody else listens too.
    All,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        let ipv4_pool = Ipv4Net::new_assert(Ipv4Addr::new(10, 78, 0, 0), 16);
        let ipv6_prefix = Ipv6Net::new_assert(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0), 48);
        Self {
            namespace: None,
            device_prefix: "dm".to_owned(),
            owner: "host".to_owned(),
            ipv4_pool,
            ipv6_prefix,
            gateway_ipv4: Ipv4Addr::new(169, 254, 1, 1),
            gateway_ipv6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            mtu_bytes: 1500,
            tap_queue_length: 8192,
            parked_bytes_per_sleeper: Bytes::mib(64),
            masquerade: true,
            flow_events: FlowEvents::WorkloadsOnly,
        }
    }
}

impl NetworkConfig {
    /// The MAC of the host's end of every tap. The same for all, so that the neighbour entry that a
    /// guest was given stays right when it wakes on another tap.
    pub const GATEWAY_MAC: MacAddress = MacAddress([0x02, 0xd0, 0, 0, 0, 0x01]);
    /// The MAC of `p0`.
    pub(crate) const PARKING_MAC: MacAddress = MacAddress([0x02, 0xd0, 0, 0, 0, 0xfd]);
    /// The MAC of `p1`, which is where a release sends what waited.
    pub(crate) const REENTRY_MAC: MacAddress = MacAddress([0x02, 0xd0, 0, 0, 0, 0xfe]);

    /// Everything that is wrong, in the order of the fields; empty when the configuration is valid.
    #[must_use]
    pub fn problems(&self) -> Vec<ConfigError> {
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let mut found = Vec::new();
        let prefix = &self.device_prefix;
        if prefix.is_empty() || prefix.len() > 4 || !plain(prefix) || prefix.contains('-') {
            found.push(ConfigError::DevicePrefix { got: prefix.clone() });
        }
        if self.owner.is_empty() || self.owner.len() > 63 || !plain(&self.owner) {
            found.push(ConfigError::Owner {
                got: self.owner.clone(),
            });
        }
        let pool = self.ipv4_pool;
        let ordinary =
            !pool.addr().is_multicast() && !pool.addr().is_loopback() && !pool.addr().is_link_local();
        if !(8..=29).contains(&pool.prefix_len()) || !ordinary {
            found.push(ConfigError::Ipv4Pool { got: pool });
        }
        let ula = self.ipv6_prefix.addr().is_unique_local();
        if self.ipv6_prefix.prefix_len() > 96 || !ula {
            found.push(ConfigError::Ipv6Prefix {
                got: self.ipv6_prefix,
            });
        }
        if !self.gateway_ipv4.is_link_local() {
            found.push(ConfigError::Gateway {
                got: self.gateway_ipv4.into(),
            });
        }
        if !self.gateway_ipv6.is_unicast_link_local() {
            found.push(ConfigError::Gateway {
                got: self.gateway_ipv6.into(),
            });
        }
        // 1280 is the least that IPv6 allows (RFC 8200 section 5).
        if !(1280..=65_535).contains(&self.mtu_bytes) {
            found.push(ConfigError::Mtu { got: self.mtu_bytes });
        }
        if !(64..=1_000_000).contains(&self.tap_queue_length) {
            found.push(ConfigError::TapQueueLength {
                got: self.tap_queue_length,
            });
        }
        let parked = self.parked_bytes_per_sleeper;
        if parked < Bytes(1 << 16) || parked > Bytes::mib(2047) {
            found.push(ConfigError::ParkedBytes { got: parked });
        }
        found
    }

    /// The host's own IPv6 address towards guests: the first of the prefix. Link-local sources do
    /// not reach an address of wider scope, so the host needs one.
    #[must_use]
    pub fn host_ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.ipv6_prefix.network().to_bits() | 1)
    }

    /// The parking device.
    #[must_use]
    pub fn parking_device(&self) -> String {
        format!("{}p0", self.device_prefix)
    }

    /// Where released packets come back in.
    #[must_use]
    pub fn reentry_device(&self) -> String {
        format!("{}p1", self.device_prefix)
    }

    /// The tap of a workload: at most 15 characters, deterministic.
    #[must_use]
    pub fn tap_name(&self, id: WorkloadId) -> String {
        format!("{}{}", self.tap_prefix(), id.mark())
    }

    /// How the names of taps begin.
    pub(crate) fn tap_prefix(&self) -> String {
        format!("{}t", self.device_prefix)
    }

    /// The packet table.
    #[must_use]
    pub fn table_name(&self) -> String {
        format!("dormouse_{}", self.device_prefix)
    }

    /// What every device (as its alias) and the packet table (as its comment) carry.
    #[must_use]
    pub fn owner_mark(&self) -> String {
        format!("dormouse:{}", self.owner)
    }
}

/// A field out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not the beginning of an interface's name.
    #[error("network.device_prefix {got:?}: use 1 to 4 characters of a-z and 0-9")]
    DevicePrefix {
        /// What was given.
        got: String,
    },
    /// Not an owner.
    #[error("network.owner {got:?}: use 1 to 63 characters of a-z, 0-9 and dashes")]
    Owner {
        /// What was given.
        got: String,
    },
    /// Not a pool.
    #[error("network.ipv4_pool {got}: use an ordinary unicast prefix of length 8 to 29")]
    Ipv4Pool {
        /// What was given.
        got: Ipv4Net,
    },
    /// Not a ULA prefix.
    #[error("network.ipv6_prefix {got}: use a prefix of fd00::/8 (RFC 4193), at most 96 bits long")]
    Ipv6Prefix {
        /// What was given.
        got: Ipv6Net,
    },
    /// Not link-local.
    #[error("network.gateway {got}: use a link-local address")]
    Gateway {
        /// What was given.
        got: IpAddr,
    },
    /// Out of range.
    #[error("network.mtu_bytes is {got}: use 1280 to 65535")]
    Mtu {
        /// What was given.
        got: u32,
    },
    /// Out of range.
    #[error("network.tap_queue_length is {got}: use 64 to 1000000")]
    TapQueueLength {
        /// What was given.
        got: u32,
    },
    /// Out of range.
    #[error("network.parked_bytes_per_sleeper is {got}: use 64KiB to 2047MiB")]
    ParkedBytes {
        /// What was given.
        got: Bytes,
    },
}

impl Fault for ConfigError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "NETWORK_CONFIG_INVALID"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_names_fit() {
        let config = NetworkConfig::default();
        assert_eq!(config.problems(), []);
        let longest = NetworkConfig {
            device_prefix: "abcd".to_owned(),
            ..config.clone()
        };
        assert_eq!(longest.problems(), []);
        assert_eq!(longest.tap_name(WorkloadId::from_bits(u128::MAX)).len(), 15);
        assert_eq!(config.host_ipv6().to_string(), "fd78::1");
    }

    #[test]
    fn every_wrong_field_is_reported_at_once() {
        let wrong = NetworkConfig {
            device_prefix: "Domouse".to_owned(),
            owner: "a b".to_owned(),
            ipv4_pool: Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
            ipv6_prefix: Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 48),
            gateway_ipv4: Ipv4Addr::new(10, 0, 0, 1),
            gateway_ipv6: Ipv6Addr::LOCALHOST,
            mtu_bytes: 1000,
            tap_queue_length: 1,
            parked_bytes_per_sleeper: Bytes::gib(4),
            ..NetworkConfig::default()
        };
        assert_eq!(wrong.problems().len(), 9);
    }
}
