//! The configuration as a person writes it. Unknown keys are errors.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use super::resolve::{ConfigError, Problem};
use super::shape;

/// All keys. Every text is parsed by [`super::resolve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// Where images, disks, snapshots and records are kept.
    pub data_directory: PathBuf,
    /// Where sockets and the memory of running guests are; lost at a reboot.
    pub run_directory: PathBuf,
    /// The API.
    pub api: RawApi,
    /// Who keeps descriptors over a restart.
    pub keeper: RawKeeper,
    /// The data plane.
    pub network: RawNetwork,
    /// How guests run.
    pub hypervisor: RawHypervisor,
    /// What guests boot.
    pub guest: RawGuest,
    /// Where guests' RAM lives.
    pub memory: RawMemory,
    /// What images may have.
    pub images: RawImages,
    /// What is kept free.
    pub ledger: RawLedger,
    /// When workloads sleep and wake.
    pub standby: RawStandby,
}

/// `[api]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawApi {
    /// The Unix socket; empty means `dormoused.sock` in the run directory.
    pub socket: String,
}

/// `[keeper]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawKeeper {
    /// `auto`, `process` or `manager`. `auto` takes the service manager's descriptor store where the manager
    /// says that it has one for us, else a `dormouse-keeper`.
    pub backend: String,
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNetwork {
    /// A network namespace to work in, as a path; empty means the daemon's own.
    pub namespace: String,
    /// First letters of every device that we make, 1 to 3 of a-z and 0-9.
    pub device_prefix: String,
    /// The pool of which every workload has one IPv4 address.
    pub ipv4_pool: String,
    /// The unique local prefix of which every workload has one IPv6 address.
    pub ipv6_prefix: String,
    /// Whether workloads reach the outside under the host's address.
    pub masquerade: bool,
    /// Most bytes that wait for one sleeper, per address family; the oldest are dropped beyond.
    pub parked_per_sleeper: String,
    /// Name servers that guests are told of.
    pub name_servers: Vec<String>,
    /// Sleepers that `setup` raises the host's limits for when it is not told how many.
    pub sleepers: u32,
}

/// `[hypervisor]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawHypervisor {
    /// The QEMU program, a name on the path or a path.
    pub qemu: String,
    /// `auto`, `kvm` or `emulation`. `auto` takes KVM only where a guest proves to run under it.
    pub accelerator: String,
    /// First of the user ids that VMMs run as, one an instance.
    pub first_uid: u32,
    /// How many there are.
    pub uid_count: u32,
}

/// `[guest]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawGuest {
    /// A directory with a kernel and its modules; empty means the one that `dormoused --unpack-kernel` made in
    /// the data directory.
    pub kernel: String,
    /// The agent that is the init of guests; empty means `dormouse-agent` beside the daemon.
    pub agent: String,
    /// How long a guest may take from launch until its agent says that it is ready.
    pub boot_timeout: String,
}

/// `[memory]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawMemory {
    /// `auto`, `tmpfs`, `spill` or `disk`.
    pub placement: String,
    /// Most bytes of RAM of running guests; empty means as much as the host has.
    pub tmpfs_size: String,
}

/// `[images]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawImages {
    /// Most bytes of an image's layers, unpacked.
    pub max_unpacked: String,
    /// Most bytes of an image's blobs.
    pub max_packed: String,
    /// Most entries of an image's layers.
    pub max_entries: u64,
    /// Most unpacked bytes of a layer for each packed one.
    pub max_ratio: u64,
}

/// `[ledger]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLedger {
    /// Bytes of the data directory's file system that are never promised.
    pub disk_floor: String,
    /// Bytes of the host's memory that are never promised.
    pub memory_floor: String,
    /// How much RAM awake guests may be promised, in percent of what the host can give them.
    pub memory_percent: u32,
}

/// `[standby]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawStandby {
    /// Most sleeps of the engine's own at one time.
    pub max_concurrent: u32,
    /// Most wakes at one time; more wait in order.
    pub max_concurrent_wakes: u32,
    /// How often all flows are listed again for safety.
    pub sync_interval: String,
    /// The receive buffer for conntrack events.
    pub receive_buffer: String,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            data_directory: "/var/lib/dormouse".into(),
            run_directory: "/run/dormouse".into(),
            api: RawApi {
                socket: String::new(),
            },
            keeper: RawKeeper {
                backend: "auto".to_owned(),
            },
            network: RawNetwork {
                namespace: String::new(),
                device_prefix: "dm".to_owned(),
                ipv4_pool: "10.78.0.0/16".to_owned(),
                ipv6_prefix: "fd78:6d6f:7573::/48".to_owned(),
                masquerade: true,
                parked_per_sleeper: "64MiB".to_owned(),
                name_servers: Vec::new(),
                sleepers: 10_000,
            },
            hypervisor: RawHypervisor {
                qemu: "qemu-system-x86_64".to_owned(),
                accelerator: "auto".to_owned(),
                first_uid: 700_000,
                uid_count: 60_000,
            },
            guest: RawGuest {
                kernel: String::new(),
                agent: String::new(),
                boot_timeout: "120s".to_owned(),
            },
            memory: RawMemory {
                placement: "auto".to_owned(),
                tmpfs_size: String::new(),
            },
            images: RawImages {
                max_unpacked: "64GiB".to_owned(),
                max_packed: "32GiB".to_owned(),
                max_entries: 2_000_000,
                max_ratio: 500,
            },
            ledger: RawLedger {
                disk_floor: "1GiB".to_owned(),
                memory_floor: "512MiB".to_owned(),
                memory_percent: 100,
            },
            standby: RawStandby {
                max_concurrent: 16,
                max_concurrent_wakes: 16,
                sync_interval: "5m".to_owned(),
                receive_buffer: "40MiB".to_owned(),
            },
        }
    }
}

/// Reads the configuration: defaults, then `file` when given, then the environment, where
/// `DORMOUSE_NETWORK__IPV4_POOL` is `network.ipv4_pool`. `DORMOUSE_HOST` belongs to the command line.
///
/// # Errors
/// When the file cannot be read or a key is unknown or of the wrong type.
pub fn load(file: Option<&Path>) -> Result<RawConfig, ConfigError> {
    let defaults = Figment::from(Serialized::defaults(RawConfig::default()));
    let mut figment = defaults.clone();
    if let Some(path) = file {
        // Named files must exist: a daemon that runs on defaults because of a typing error is worse.
        if !path.is_file() {
            return Err(ConfigError {
                problems: vec![Problem::new(
                    "config",
                    format!("{} is not a file", path.display()),
                )],
            });
        }
        figment = figment.merge(Toml::file(path));
    }
    let figment = figment.merge(
        Env::prefixed("DORMOUSE_")
            .filter(|key| is_ours(key.as_str()))
            .split("__"),
    );
    let mut problems = nameless(std::env::vars_os());
    problems.extend(shape::problems(&figment, &defaults));
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    // What has no key is the file's: it is no TOML.
    let whole = file.map(|path| path.display().to_string()).unwrap_or_default();
    figment.extract().map_err(|errors| ConfigError {
        problems: errors
            .into_iter()
            .map(|error| {
                let key = match error.path.join(".") {
                    key if key.is_empty() => whole.clone(),
                    key => key,
                };
                Problem::new(&key, error.kind.to_string())
            })
            .collect(),
    })
}

/// Variables of ours that leave out a part of a key: the layer below takes them for nobody's.
fn nameless(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<Problem> {
    let ours = variables.filter_map(|(name, _)| {
        let name = name.into_string().ok()?;
        let key = name.strip_prefix("DORMOUSE_")?;
        key.split("__").any(str::is_empty).then(|| {
            let what = "is no key: a part of it is empty";
            Problem::new(&name, what.to_owned())
        })
    });
    ours.collect()
}

/// Whether a variable, its prefix gone, is meant for the daemon: the command line and the tests have
/// some of their own, and fault points have their socket. Any other that is no key is an error.
fn is_ours(name: &str) -> bool {
    let of_others = ["host", "commit"]
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other));
    let of_tests = name
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("test_"));
    let of_faults = cfg!(feature = "plant") && name.eq_ignore_ascii_case("fault_socket");
    !(of_others || of_tests || of_faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_without_a_whole_key_is_an_error() {
        let of = |name: &str| nameless(std::iter::once((name.into(), "1".into()))).len();
        for name in [
            "DORMOUSE_",
            "DORMOUSE___",
            "DORMOUSE_NETWORK__",
            "DORMOUSE___IPV4_POOL",
        ] {
            assert_eq!(of(name), 1, "{name}");
        }
        for name in ["DORMOUSE_NETWORK__IPV4_POOL", "DORMOUSE", "DORMOUSELY__", "PATH"] {
            assert_eq!(of(name), 0, "{name}");
        }
    }

    #[test]
    fn files_override_defaults_and_unknown_keys_are_errors() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.toml");
        std::fs::write(
            &file,
            "data_directory = \"/d\"\n[network]\nipv4_pool = \"10.9.0.0/24\"\n",
        )
        .unwrap();
        let config = load(Some(&file)).unwrap();
        assert_eq!(config.data_directory, Path::new("/d"));
        assert_eq!(config.network.ipv4_pool, "10.9.0.0/24");
        assert_eq!(config.network.device_prefix, "dm");
        let wrong = "nothing = 1\nguest = 2\n[network]\nipv4_poll = \"10.9.0.0/24\"\nipv4_pool = 7\nname_servers = {}\n";
        std::fs::write(&file, wrong).unwrap();
        let error = load(Some(&file)).unwrap_err();
        let told: Vec<_> = (error.problems.iter())
            .map(|problem| {
                (
                    problem.key.as_str(),
                    problem.what.split([':', '(']).next().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("guest", "is a number where a table of keys belongs "),
                ("network.ipv4_poll", "is no key"),
                ("network.ipv4_pool", "is a number where text belongs"),
                ("network.name_servers", "is a table of keys where a list belongs "),
                ("nothing", "is no key"),
            ]
        );
        let file_named = file.display().to_string();
        assert!(
            error
                .problems
                .iter()
                .all(|problem| problem.what.contains(&file_named))
        );
        std::fs::write(&file, "[network").unwrap();
        assert_eq!(load(Some(&file)).unwrap_err().problems[0].key, file_named);
        assert!(load(Some(&scratch.path().join("none"))).is_err());
    }
}
