//! From text to types: every value checked, all problems together.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dormouse_model::spec::Placement;
use dormouse_model::time::parse_duration;
use dormouse_model::{Bytes, Fault, Kind};

use super::raw::RawConfig;

/// Which accelerator guests run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// KVM where a guest proves to run under it, else emulation.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Emulation,
}

/// Who keeps descriptors over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeeperChoice {
    /// The service manager where it says that it does, else a process of ours.
    Auto,
    /// A process of ours.
    Process,
    /// The service manager.
    Manager,
}

/// The configuration of the daemon, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where images, disks, snapshots and records are kept.
    pub data_directory: PathBuf,
    /// Where sockets and the memory of running guests are.
    pub run_directory: PathBuf,
    /// The API's Unix socket.
    pub api_socket: PathBuf,
    /// Who keeps descriptors.
    pub keeper: KeeperChoice,
    /// The network namespace of the data plane; `None` is the daemon's own.
    pub namespace: Option<PathBuf>,
    /// First letters of our devices.
    pub device_prefix: String,
    /// First address and prefix length of the IPv4 pool.
    pub ipv4_pool: (Ipv4Addr, u8),
    /// First address and prefix length of the IPv6 prefix.
    pub ipv6_prefix: (Ipv6Addr, u8),
    /// Whether workloads reach the outside.
    pub masquerade: bool,
    /// Most bytes that wait for one sleeper.
    pub parked_per_sleeper: Bytes,
    /// Sleepers that the host is set up for.
    pub sleepers: u32,
    /// Name servers of guests.
    pub name_servers: Vec<IpAddr>,
    /// The QEMU program.
    pub qemu: PathBuf,
    /// The accelerator.
    pub accelerator: AcceleratorChoice,
    /// First user id of VMMs.
    pub first_uid: u32,
    /// How many.
    pub uid_count: u32,
    /// A directory with a kernel and its modules, of the operator's.
    pub kernel: Option<PathBuf>,
    /// The agent program.
    pub agent: Option<PathBuf>,
    /// How long a guest may take to say that it is ready.
    pub boot_timeout: Duration,
    /// Where RAM lives.
    pub placement: Placement,
    /// Most bytes of RAM of running guests.
    pub tmpfs_size: Option<Bytes>,
    /// What images may have.
    pub image_limits: dormouse_image::Limits,
    /// Bytes of the data directory's file system that are never promised.
    pub disk_floor: Bytes,
    /// Bytes of the host's memory that are never promised.
    pub memory_floor: Bytes,
    /// How much RAM awake guests may be promised, in percent of what the host can give them.
    pub memory_percent: u32,
    /// Most sleeps of the engine's own at one time.
    pub max_concurrent_sleeps: usize,
    /// Most wakes at one time.
    pub max_concurrent_wakes: usize,
    /// How often all flows are listed again.
    pub sync_interval: Duration,
    /// The receive buffer for conntrack events.
    pub receive_buffer: Bytes,
}

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub(super) key: String,
    pub(super) what: String,
}

impl Problem {
    /// The problem `what` with `key`.
    #[must_use]
    pub fn new(key: &str, what: String) -> Self {
        Self {
            key: key.to_owned(),
            what,
        }
    }
}

/// Everything wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            if problem.key.is_empty() {
                write!(f, "{}", problem.what)?;
            } else {
                write!(f, "{}: {}", problem.key, problem.what)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Fault for ConfigError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "CONFIG_INVALID"
    }
}

/// Collects problems, so that a person sees them all at once.
#[derive(Debug, Default)]
struct Collector(Vec<Problem>);

impl Collector {
    fn fail(&mut self, key: &str, what: String) {
        self.0.push(Problem::new(key, what));
    }

    /// The parsed `text`, or a default that is never used because a problem was noted.
    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        text.parse()
            .map_err(|error: T::Err| self.fail(key, error.to_string()))
            .ok()
    }

    fn duration(&mut self, key: &str, text: &str) -> Duration {
        match parse_duration(text) {
            Ok(duration) if !duration.is_zero() => duration,
            Ok(_) => {
                self.fail(key, "must be positive".to_owned());
                Duration::ZERO
            }
            Err(error) => {
                self.fail(key, error.to_string());
                Duration::ZERO
            }
        }
    }

    /// A prefix whose length is at most `longest`, host bits zero.
    fn prefix<A: FromStr + Copy>(&mut self, key: &str, text: &str, longest: u8, any: A) -> (A, u8) {
        let wrong = format!("{text:?} is not a prefix with a length of at most {longest}");
        let parsed = text.split_once('/').and_then(|(address, length)| {
            Some((
                address.parse().ok()?,
                length.parse().ok().filter(|length| *length <= longest)?,
            ))
        });
        parsed.unwrap_or_else(|| {
            self.fail(key, wrong);
            (any, 0)
        })
    }

    fn bytes(&mut self, key: &str, text: &str) -> Bytes {
        self.parse(key, text).unwrap_or_default()
    }

    fn count(&mut self, key: &str, count: u32) -> usize {
        if count == 0 {
            self.fail(key, "must be at least 1".to_owned());
        }
        usize::try_from(count).unwrap_or(usize::MAX)
    }
}

fn some_path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

impl RawConfig {
    /// Checks everything and builds the typed configuration.
    ///
    /// # Errors
    /// All problems at once.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let mut collector = Collector::default();
        let config = self.collect(&mut collector);
        if collector.0.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError {
                problems: collector.0,
            })
        }
    }

    /// What no conversion below would find.
    fn check(&self, problems: &mut Collector) {
        for (key, path) in [
            ("data_directory", &self.data_directory),
            ("run_directory", &self.run_directory),
        ] {
            if !path.is_absolute() {
                problems.fail(key, format!("{} is not an absolute path", path.display()));
            }
        }
        let prefix = &self.network.device_prefix;
        if prefix.is_empty()
            || prefix.len() > 3
            || !prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        {
            problems.fail(
                "network.device_prefix",
                format!("{prefix:?} is not 1 to 3 of a-z and 0-9"),
            );
        }
        if !(10..=1000).contains(&self.ledger.memory_percent) {
            problems.fail("ledger.memory_percent", "must be 10 to 1000".to_owned());
        }
        if self.hypervisor.first_uid < 1000 {
            problems.fail("hypervisor.first_uid", "must be at least 1000".to_owned());
        }
    }

    fn image_limits(&self, problems: &mut Collector) -> dormouse_image::Limits {
        let images = &self.images;
        for (key, number) in [
            ("images.max_entries", images.max_entries),
            ("images.max_ratio", images.max_ratio),
        ] {
            if number == 0 {
                problems.fail(key, "must be at least 1".to_owned());
            }
        }
        dormouse_image::Limits {
            entries: images.max_entries,
            unpacked_bytes: problems.bytes("images.max_unpacked", &images.max_unpacked).0,
            packed_bytes: problems.bytes("images.max_packed", &images.max_packed).0,
            ratio: images.max_ratio,
        }
    }

    fn keeper(&self, problems: &mut Collector) -> KeeperChoice {
        match self.keeper.backend.as_str() {
            "auto" => KeeperChoice::Auto,
            "process" => KeeperChoice::Process,
            "manager" => KeeperChoice::Manager,
            other => {
                problems.fail(
                    "keeper.backend",
                    format!("{other:?} is none of auto, process, manager"),
                );
                KeeperChoice::Auto
            }
        }
    }

    fn accelerator(&self, problems: &mut Collector) -> AcceleratorChoice {
        match self.hypervisor.accelerator.as_str() {
            "auto" => AcceleratorChoice::Auto,
            "kvm" => AcceleratorChoice::Kvm,
            "emulation" => AcceleratorChoice::Emulation,
            other => {
                problems.fail(
                    "hypervisor.accelerator",
                    format!("{other:?} is not auto, kvm or emulation"),
                );
                AcceleratorChoice::Auto
            }
        }
    }

    fn collect(&self, problems: &mut Collector) -> Config {
        self.check(problems);
        let network = &self.network;
        if self.hypervisor.uid_count == 0 {
            problems.fail("hypervisor.uid_count", "must be at least 1".to_owned());
        }
        let name_servers: Vec<Option<IpAddr>> = network
            .name_servers
            .iter()
            .map(|text| problems.parse("network.name_servers", text))
            .collect();
        let tmpfs_size = match self.memory.tmpfs_size.as_str() {
            "" => None,
            text => problems.parse("memory.tmpfs_size", text),
        };
        Config {
            data_directory: self.data_directory.clone(),
            run_directory: self.run_directory.clone(),
            api_socket: some_path(&self.api.socket)
                .unwrap_or_else(|| self.run_directory.join("dormoused.sock")),
            keeper: self.keeper(problems),
            namespace: some_path(&network.namespace),
            device_prefix: network.device_prefix.clone(),
            ipv4_pool: problems.prefix("network.ipv4_pool", &network.ipv4_pool, 29, Ipv4Addr::UNSPECIFIED),
            ipv6_prefix: problems.prefix(
                "network.ipv6_prefix",
                &network.ipv6_prefix,
                64,
                Ipv6Addr::UNSPECIFIED,
            ),
            masquerade: network.masquerade,
            sleepers: network.sleepers,
            parked_per_sleeper: problems
                .parse("network.parked_per_sleeper", &network.parked_per_sleeper)
                .unwrap_or_default(),
            name_servers: name_servers.into_iter().flatten().collect(),
            qemu: PathBuf::from(&self.hypervisor.qemu),
            accelerator: self.accelerator(problems),
            first_uid: self.hypervisor.first_uid,
            uid_count: self.hypervisor.uid_count,
            kernel: some_path(&self.guest.kernel),
            agent: some_path(&self.guest.agent),
            boot_timeout: problems.duration("guest.boot_timeout", &self.guest.boot_timeout),
            placement: problems
                .parse("memory.placement", &self.memory.placement)
                .unwrap_or_default(),
            tmpfs_size,
            image_limits: self.image_limits(problems),
            disk_floor: problems.bytes("ledger.disk_floor", &self.ledger.disk_floor),
            memory_floor: problems.bytes("ledger.memory_floor", &self.ledger.memory_floor),
            memory_percent: self.ledger.memory_percent,
            max_concurrent_sleeps: problems.count("standby.max_concurrent", self.standby.max_concurrent),
            max_concurrent_wakes: problems
                .count("standby.max_concurrent_wakes", self.standby.max_concurrent_wakes),
            sync_interval: problems.duration("standby.sync_interval", &self.standby.sync_interval),
            receive_buffer: problems
                .parse("standby.receive_buffer", &self.standby.receive_buffer)
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config = RawConfig::default().resolve().unwrap();
        assert_eq!(config.api_socket, PathBuf::from("/run/dormouse/dormoused.sock"));
        assert_eq!(config.placement, Placement::Auto);
    }

    #[test]
    fn all_problems_are_reported_with_their_keys() {
        let mut raw = RawConfig::default();
        raw.network.ipv4_pool = "10.0.0.0/31".to_owned();
        raw.network.device_prefix = "WAY".to_owned();
        raw.memory.placement = "ram".to_owned();
        raw.standby.sync_interval = "0s".to_owned();
        raw.standby.max_concurrent = 0;
        raw.hypervisor.accelerator = "hax".to_owned();
        let error = raw.resolve().unwrap_err();
        let text = error.to_string();
        for key in [
            "network.ipv4_pool",
            "network.device_prefix",
            "memory.placement",
            "standby.sync_interval",
            "standby.max_concurrent",
            "hypervisor.accelerator",
        ] {
            assert!(text.contains(key), "{key} in {text}");
        }
        assert_eq!(error.problems.len(), 6);
    }
}
