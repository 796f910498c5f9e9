//! What a caller asks for when creating an instance, checked.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Fault, Kind};
use crate::id::Name;
use crate::policy::PolicySetting;
use crate::trust::OnLostMemory;
use crate::units::Bytes;

/// The addresses of a workload: one of each family, alone on their prefix, and a MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// A /32 of the configured pool.
    pub ipv4: Ipv4Addr,
    /// A /128 of the configured ULA prefix.
    pub ipv6: Ipv6Addr,
    /// Locally administered unicast.
    pub mac: MacAddress,
}

impl Addresses {
    /// Both addresses, for indexes.
    #[must_use]
    pub const fn both(&self) -> [IpAddr; 2] {
        [IpAddr::V4(self.ipv4), IpAddr::V6(self.ipv6)]
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::MacUnreadable {
            text: text.to_owned(),
        };
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

/// Where a guest's RAM lives. See docs/adr for the measured costs of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Placement {
    /// What fits this host: [`Placement::Tmpfs`] where swap exists, else [`Placement::Spill`].
    #[default]
    Auto,
    /// On tmpfs, awake and asleep: pages go to swap or zram when asleep.
    Tmpfs,
    /// On tmpfs awake, spilled to a sparse disk file asleep; woken privately over that file.
    Spill,
    /// A disk file mapped shared: least memory, but a hot guest writes to the disk all the time.
    Disk,
}

impl Placement {
    /// The name in configuration, on the API and in figures.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tmpfs => "tmpfs",
            Self::Spill => "spill",
            Self::Disk => "disk",
        }
    }
}

impl FromStr for Placement {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "auto" | "" => Ok(Self::Auto),
            "tmpfs" => Ok(Self::Tmpfs),
            "spill" => Ok(Self::Spill),
            "disk" => Ok(Self::Disk),
            _ => Err(SpecError::PlacementUnknown {
                text: text.to_owned(),
            }),
        }
    }
}

/// A checked request for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// Unique on the host.
    pub name: Name,
    /// Reference of an imported image: a name with an optional tag, or a digest.
    pub image: String,
    /// Processors, at least 1.
    pub vcpus: u32,
    /// Guest RAM.
    pub memory: Bytes,
    /// Size of the writable disk (sparse).
    pub disk: Bytes,
    /// Where RAM lives.
    pub placement: Placement,
    /// Replaces the image's entry point when not empty.
    pub entrypoint: Vec<String>,
    /// Replaces the image's command when not empty.
    pub command: Vec<String>,
    /// Added to the image's environment.
    pub environment: BTreeMap<String, String>,
    /// Replaces the image's working directory when set.
    pub working_directory: Option<String>,
    /// Replaces the image's user when set.
    pub user: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// When it sleeps by itself.
    pub standby: PolicySetting,
    /// How long a stop waits for the guest before it is killed.
    pub stop_timeout: Duration,
    /// What becomes of it when its memory is lost.
    pub on_lost_memory: OnLostMemory,
}

impl InstanceSpec {
    /// Least RAM: below this the guest kernel and its initial file system do not fit.
    pub const MIN_MEMORY: Bytes = Bytes::mib(128);
    /// Most processors; the limit of the microvm machine that is tested.
    pub const MAX_VCPUS: u32 = 16;
    /// Most bytes of all texts together: a guest is told them in one message, and a record holds them.
    pub const MAX_TEXT: usize = 256 << 10;
    /// Default grace of a stop.
    pub const DEFAULT_STOP_TIMEOUT: Duration = Duration::from_secs(5);

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first field out of its range, with what would be right.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.vcpus == 0 || self.vcpus > Self::MAX_VCPUS {
            return Err(SpecError::VcpusOutOfRange { got: self.vcpus });
        }
        if self.memory < Self::MIN_MEMORY || !self.memory.0.is_multiple_of(2 << 20) {
            return Err(SpecError::MemoryUnusable { got: self.memory });
        }
        if self.disk < Bytes::mib(16) {
            return Err(SpecError::DiskSmall { got: self.disk });
        }
        let bytes = self.text_bytes();
        if bytes > Self::MAX_TEXT {
            return Err(SpecError::TextLarge { got: bytes });
        }
        for key in self.environment.keys() {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(SpecError::EnvironmentKey { key: key.clone() });
            }
        }
        let texts = self
            .entrypoint
            .iter()
            .chain(&self.command)
            .chain(self.environment.values());
        for text in texts.chain(&self.working_directory).chain(&self.user) {
            if text.contains('\0') {
                return Err(SpecError::NulByte { text: text.clone() });
            }
        }
        Ok(())
    }

    /// Bytes of all texts; each counts a few more, which is what it takes on the way.
    fn text_bytes(&self) -> usize {
        const EACH: usize = 8;
        let pairs = self.environment.iter().chain(&self.labels);
        self.entrypoint
            .iter()
            .chain(&self.command)
            .chain(pairs.flat_map(|(key, value)| [key, value]))
            .chain(&self.working_directory)
            .chain(&self.user)
            .chain([&self.image])
            .map(|text| text.len().saturating_add(EACH))
            .fold(0, usize::saturating_add)
    }
}

/// What is wrong with a specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too few or too many processors.
    #[error("vcpus is {got}: use 1 to 16")]
    VcpusOutOfRange {
        /// What was given.
        got: u32,
    },
    /// Too little RAM, or not a multiple of 2 MiB.
    #[error("memory is {got}: use at least 128MiB, in steps of 2MiB")]
    MemoryUnusable {
        /// What was given.
        got: Bytes,
    },
    /// Too small for a file system.
    #[error("disk is {got}: use at least 16MiB")]
    DiskSmall {
        /// What was given.
        got: Bytes,
    },
    /// A variable's name that no program could read.
    #[error("environment key {key:?} is empty or has '=' or a NUL byte")]
    EnvironmentKey {
        /// What was given.
        key: String,
    },
    /// A NUL byte where the kernel's interfaces end a text.
    #[error("{text:?} has a NUL byte")]
    NulByte {
        /// What was given.
        text: String,
    },
    /// Too much text.
    #[error("arguments, environment and labels have {got} bytes together: use at most 256KiB")]
    TextLarge {
        /// How much was given.
        got: usize,
    },
    /// Not a MAC address.
    #[error("{text:?} is not a MAC address")]
    MacUnreadable {
        /// What was given.
        text: String,
    },
    /// Not a placement.
    #[error("{text:?} is not a memory placement: use auto, tmpfs, spill or disk")]
    PlacementUnknown {
        /// What was given.
        text: String,
    },
    /// Not a policy.
    #[error("{text:?} is no policy for lost memory: use stay-stopped or cold-boot")]
    OnLostMemoryUnknown {
        /// What was given.
        text: String,
    },
}

impl Fault for SpecError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "SPEC_INVALID"
    }
}
