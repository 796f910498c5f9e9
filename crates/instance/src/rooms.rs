//! What an instance's task works with: the other rooms, where files are, and the clock. Joined by the
//! daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_hypervisor::{Driver, KeptPrograms, Probe};
use dormouse_image::ImageError;
use dormouse_keeper::{Custodian, HeldName};
use dormouse_model::spec::Placement;
use dormouse_model::workload::SleepSupport;
use dormouse_model::{Addresses, InstanceSpec, MacAddress, MonoTime, OnLostMemory, WallTime, WorkloadId};
use dormouse_network::{AddressPool, DataPlane, LinkCounters};
use dormouse_store::Store;
use dormouse_sys::netns::Namespace;
use tokio::sync::Semaphore;

use crate::ledger::Ledger;
use crate::machine::{BootId, Limits, Settings, SpillPolicy};
use crate::memory::{GiveBack, GuestRam, ImageFiles};
use crate::trust::pace::Precedence;

/// Where files are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// On disk: one folder an instance under `instances`.
    pub data: PathBuf,
    /// On tmpfs, gone at a reboot: one folder an instance under `instances`.
    pub run: PathBuf,
    /// Our tmpfs for guest RAM.
    pub ram: PathBuf,
}

impl Layout {
    /// The folder of an instance's disk, memory and snapshot.
    #[must_use]
    pub fn instance(&self, id: WorkloadId) -> PathBuf {
        self.data.join("instances").join(id.to_string())
    }

    /// The folder of an instance's sockets. Short: a socket's path has at most 107 bytes.
    #[must_use]
    pub fn sockets(&self, id: WorkloadId) -> PathBuf {
        self.run.join("i").join(id.mark())
    }

    /// The VMM's control socket.
    #[must_use]
    pub fn control_socket(&self, id: WorkloadId) -> PathBuf {
        self.sockets(id).join("qmp.sock")
    }

    /// The agent's socket.
    #[must_use]
    pub fn agent_socket(&self, id: WorkloadId) -> PathBuf {
        self.sockets(id).join("agent.sock")
    }

    /// The writable disk.
    #[must_use]
    pub fn disk(&self, id: WorkloadId) -> PathBuf {
        self.instance(id).join("disk.ext4")
    }

    /// The saved device state of one generation.
    #[must_use]
    pub fn state_file(&self, id: WorkloadId, generation: u64) -> PathBuf {
        self.instance(id).join(format!("state.{generation}"))
    }

    /// What belongs to the saved device state of one generation.
    #[must_use]
    pub fn manifest_file(&self, id: WorkloadId, generation: u64) -> PathBuf {
        self.instance(id).join(format!("manifest.{generation}"))
    }

    /// What the guest wrote to its console.
    #[must_use]
    pub fn console_log(&self, id: WorkloadId) -> PathBuf {
        self.instance(id).join("console.log")
    }

    /// What the VMM wrote.
    #[must_use]
    pub fn vmm_log(&self, id: WorkloadId) -> PathBuf {
        self.instance(id).join("vmm.log")
    }

    /// Where memory images are.
    #[must_use]
    pub fn images(&self) -> ImageFiles {
        ImageFiles {
            tmpfs: self.ram.clone(),
            instances: self.data.join("instances"),
        }
    }
}

/// The host's clocks.
#[derive(Debug, Default)]
pub struct Clock;

impl Clock {
    /// Time since boot.
    #[must_use]
    pub fn now(&self) -> MonoTime {
        // The clock exists on every kernel that we run on; a failure would be a changed ABI.
        MonoTime::from_boot(dormouse_sys::clock::since_boot().unwrap_or_default())
    }

    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> WallTime {
        WallTime::from_unix_nanos(dormouse_sys::clock::unix_nanos().unwrap_or_default())
    }

    /// Resolves at `deadline`; never when there is none.
    pub async fn sleep_until(&self, deadline: Option<MonoTime>) {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline.since(self.now())).await,
            None => std::future::pending().await,
        }
    }
}

/// The gateways that every guest has.
#[derive(Debug, Clone, Copy)]
pub struct Gateways {
    /// 169.254.1.1.
    pub ipv4: Ipv4Addr,
    /// fe80::1.
    pub ipv6: Ipv6Addr,
    /// The Ethernet address behind both: that of every tap's host side.
    pub mac: MacAddress,
}

/// What a guest boots.
#[derive(Debug, Clone)]
pub struct GuestBoot {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
}

/// What an instance runs.
#[derive(Debug, Clone, Default)]
pub struct GuestCommand {
    /// Program and arguments.
    pub arguments: Vec<String>,
    /// Variables.
    pub environment: Vec<(String, String)>,
    /// Where it starts.
    pub working_directory: String,
    /// As whom.
    pub user: String,
    /// The signal that asks it to end, by number; 0: SIGTERM.
    pub stop_signal: u32,
}

/// What instances need of images.
#[async_trait]
pub trait Images: Send + Sync + std::fmt::Debug {
    /// The digest that a reference means now.
    async fn digest_of(&self, reference: &str) -> Result<String, ImageError>;

    /// The read-only root file system of an image.
    fn root_file_system(&self, digest: &str) -> PathBuf;

    /// What an instance of the image runs: the image's configuration with the specification over it.
    fn command_of(&self, digest: &str, spec: &InstanceSpec) -> GuestCommand;
}

/// Shows that nothing arrived at a workload that is about to sleep.
#[async_trait]
pub trait IdleProof: Send + Sync + std::fmt::Debug {
    /// Whether nothing has arrived since the workload's idle time began: the observer's barrier came
    /// back without loss, and the link's counters are those noted when idle began.
    ///
    /// # Errors
    /// When it cannot be said, in words; the sleep is then taken back.
    async fn nothing_arrived(&self, id: WorkloadId, now: LinkCounters) -> Result<bool, String>;

    /// Has the kernel drop what it tracks of connections from and to a workload that has no link any more:
    /// whoever has the addresses next, itself included, must not seem to be connected.
    ///
    /// # Errors
    /// When some may be left, in words. They age out, and can keep awake but never put to sleep.
    async fn forget_flows(&self, addresses: Addresses) -> Result<(), String> {
        let _ = addresses;
        Ok(())
    }
}

/// The bounds of work in the background.
#[derive(Debug)]
pub struct Background {
    /// How many sleepers' memory is read at a time.
    pub settling: Arc<Semaphore>,
    /// How many sleepers' memory is copied to disk at a time.
    pub spilling: Arc<Semaphore>,
    /// Lets wakes go first.
    pub precedence: Arc<Precedence>,
}

impl Background {
    /// So many at a time of each.
    #[must_use]
    pub fn new(settling: usize, spilling: usize) -> Self {
        Self {
            settling: Arc::new(Semaphore::new(settling)),
            spilling: Arc::new(Semaphore::new(spilling)),
            precedence: Arc::default(),
        }
    }
}

/// Everything that an instance's task works with.
#[derive(Debug)]
pub struct Rooms {
    /// Durable records.
    pub store: Store,
    /// Makes VMMs.
    pub driver: Arc<dyn Driver>,
    /// What the driver found on this host.
    pub probe: Probe,
    /// Programs of monitors, kept for the images that they saved.
    pub kept: Arc<KeptPrograms>,
    /// Links, parking and knocks.
    pub network: DataPlane,
    /// Imported images.
    pub images: Arc<dyn Images>,
    /// Has descriptors kept over restarts of the daemon.
    pub custodian: Custodian,
    /// An empty network namespace for VMMs: what they need they hold by descriptor.
    pub vmm_namespace: Arc<Namespace>,
    /// One group a VMM.
    pub cgroups: dormouse_cgroup::Hierarchy,
    /// Says whether a workload is idle beyond doubt.
    pub proof: Arc<dyn IdleProof>,
    /// Where files are.
    pub layout: Layout,
    /// What the host has promised, and may.
    pub ledger: Arc<Ledger>,
    /// The clocks.
    pub clock: Arc<Clock>,
    /// This boot of the host, as the kernel writes it (`/proc/sys/kernel/random/boot_id`): memory images of
    /// another one are looked at anew.
    pub boot_id: String,
    /// What is done with sleepers' memory while nobody waits.
    pub background: Background,
    /// Addresses that workloads may have; cloned once by the registry.
    pub pool: AddressPool,
    /// What `auto` placement means here.
    pub placement: Placement,
    /// Gateways of guests.
    pub gateways: Gateways,
    /// Name servers of guests.
    pub name_servers: Vec<IpAddr>,
    /// First user id of VMMs.
    pub first_uid: u32,
    /// How many.
    pub uid_count: u32,
    /// What guests boot, or why nothing can.
    pub boot: Result<GuestBoot, String>,
    /// How long a guest may take until it is ready.
    pub boot_timeout: Duration,
}

impl Rooms {
    /// Random bytes from the kernel, for ids, sessions and seeds.
    ///
    /// # Errors
    /// When the kernel gives none. Nothing may be made with zeros in their place: ids would meet, and all
    /// guests would have one seed.
    pub fn random<const N: usize>(&self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        dormouse_sys::random::fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The revision that an instance begins with in this daemon. Revisions are not recorded: counting from
    /// the clock keeps them apart from those of an earlier daemon, and of another instance of the name.
    #[must_use]
    pub fn first_revision(&self) -> u64 {
        self.clock.wall().unix_nanos()
    }

    /// What is kept of an instance that has a process: its tap, and its pidfd.
    pub const HELD: [&str; 2] = ["tap", "process"];

    /// Under what the keeper holds an instance's `what`; `None` is impossible for the words we use.
    #[must_use]
    pub fn held_name(id: WorkloadId, what: &str) -> Option<HeldName> {
        format!("{id}/{what}").parse().ok()
    }

    /// This boot of the host.
    #[must_use]
    pub fn boot(&self) -> BootId {
        crate::steps::boot_of(&self.boot_id)
    }

    /// Where the RAM of an instance of `spec` lives.
    #[must_use]
    pub const fn placement_of(&self, spec: &InstanceSpec) -> Placement {
        match spec.placement {
            Placement::Auto => self.placement,
            chosen @ (Placement::Tmpfs | Placement::Spill | Placement::Disk) => chosen,
        }
    }

    /// The settings of an instance's machine.
    #[must_use]
    pub fn machine_settings(&self, memory: &GuestRam, on_lost: OnLostMemory) -> Settings {
        let limits = Limits {
            ready: self.boot_timeout,
            ..Limits::DEFAULT
        };
        let sleep_support = if self.probe.can.sleep {
            SleepSupport::Able
        } else {
            SleepSupport::DriverCannot
        };
        let fresh = GuestRam::fresh(memory.placement, memory.size);
        let spill = match fresh.give_back() {
            GiveBack::CopyToDisk => SpillPolicy::Spill,
            GiveBack::FlushDisk | GiveBack::LeaveToSwap => SpillPolicy::Stay,
        };
        Settings {
            limits,
            sleep_support,
            spill,
            on_lost,
            boot: self.boot(),
        }
    }
}
