//! A host for the manager: a data plane and control groups of its own, everything else stood in for.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dormouse_cgroup::Hierarchy;
use dormouse_hypervisor::{Driver as _, KeptPrograms};
use dormouse_image::ImageError;
use dormouse_instance::ledger::{Floors, Ledger};
use dormouse_instance::rooms::{Background, Clock, Gateways, GuestBoot, GuestCommand, IdleProof, Layout};
use dormouse_instance::{Images, Instances, Rooms};
use dormouse_keeper::Custodian;
use dormouse_model::spec::Placement;
use dormouse_model::{InstanceSpec, WorkloadId};
use dormouse_network::{AddressPool, DataPlane, LinkCounters, NetworkConfig};
use dormouse_store::Store;
use dormouse_sys::netns::Namespace;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::puppet::{Puppet, Witness};

/// The one image that there is.
#[derive(Debug)]
struct OneImage {
    root: PathBuf,
}

#[async_trait]
impl Images for OneImage {
    async fn digest_of(&self, _: &str) -> Result<String, ImageError> {
        Ok("sha256:0".to_owned())
    }

    fn root_file_system(&self, _: &str) -> PathBuf {
        self.root.clone()
    }

    fn command_of(&self, _: &str, _: &InstanceSpec) -> GuestCommand {
        GuestCommand {
            arguments: vec!["true".to_owned()],
            ..GuestCommand::default()
        }
    }
}

/// Nobody ever talks to these guests.
#[derive(Debug)]
struct Quiet;

#[async_trait]
impl IdleProof for Quiet {
    async fn nothing_arrived(&self, _: WorkloadId, _: LinkCounters) -> Result<bool, String> {
        Ok(true)
    }
}

/// What one process of the harness has for all managers that it makes.
pub(crate) struct World {
    network: DataPlane,
    cgroup_name: String,
    scratch: PathBuf,
    plane: PathBuf,
    vmm_namespace: Arc<Namespace>,
    tasks: JoinSet<()>,
}

impl World {
    /// A world that keeps what it needs in `scratch`.
    pub(crate) async fn make(scratch: &Path) -> Outcome<Self> {
        let (plane, vmm) = (scratch.join("plane.netns"), scratch.join("vmm.netns"));
        Namespace::create_at(&plane)?;
        let vmm_namespace = Arc::new(Namespace::create_at(&vmm)?);
        let config = NetworkConfig {
            namespace: Some(plane.clone()),
            owner: "power".to_owned(),
            ..NetworkConfig::default()
        };
        let (network, _knocks, task) = DataPlane::open(config).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // It ends with the world.
            let _ = task.run().await;
        });
        for (name, bytes) in [("root.img", "root"), ("kernel", "kernel"), ("initrd", "initrd")] {
            std::fs::write(scratch.join(name), bytes)?;
        }
        Ok(Self {
            network,
            cgroup_name: format!("dormouse-power-{}", std::process::id()),
            scratch: scratch.to_owned(),
            plane,
            vmm_namespace,
            tasks,
        })
    }

    /// A manager over a disk, as a daemon that starts there. Its tasks come with it.
    pub(crate) async fn manager(
        &self,
        disk: &Path,
        boot_id: &str,
        witness: Witness,
    ) -> Outcome<(Instances, JoinSet<()>)> {
        let driver = Puppet::new(boot_id, witness);
        let config = self.network.config();
        let run = self.scratch.join("run");
        let ram = disk.join("ram");
        for folder in [&run, &ram] {
            std::fs::create_dir_all(folder)?;
        }
        let rooms = Rooms {
            store: Store::open(&disk.join("data/dormouse.db")).await?,
            probe: driver.probe().await?,
            driver: Arc::new(driver),
            network: self.network.clone(),
            images: Arc::new(OneImage {
                root: self.scratch.join("root.img"),
            }),
            // Nothing outlives this process, so its task does not run.
            custodian: Custodian::local().0,
            vmm_namespace: Arc::clone(&self.vmm_namespace),
            cgroups: Hierarchy::open(&self.cgroup_name, &self.scratch.join("cgroup"))?,
            proof: Arc::new(Quiet),
            ledger: Arc::new(Ledger::new(Floors::NONE, disk, disk)),
            layout: Layout {
                data: disk.join("data"),
                run,
                ram,
            },
            clock: Arc::new(Clock),
            pool: AddressPool::new(config.ipv4_pool, config.ipv6_prefix),
            placement: Placement::Spill,
            gateways: Gateways {
                ipv4: Ipv4Addr::new(169, 254, 1, 1),
                ipv6: config.gateway_ipv6,
                mac: NetworkConfig::GATEWAY_MAC,
            },
            name_servers: Vec::new(),
            first_uid: 700_000,
            uid_count: 1000,
            boot: Ok(GuestBoot {
                kernel: self.scratch.join("kernel"),
                initrd: self.scratch.join("initrd"),
                command_line: String::new(),
            }),
            boot_timeout: Duration::from_secs(20),
            boot_id: boot_id.to_owned(),
            background: Background::new(2, 2),
            kept: Arc::new(KeptPrograms::new(disk.join("data/vmm"))),
        };
        let (instances, notices) = Instances::recover(Arc::new(rooms)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(notices.run());
        Ok((instances, tasks))
    }

    /// Links of instances that a manager left, and what it made for sockets.
    pub(crate) async fn tidy(&self, ids: impl IntoIterator<Item = WorkloadId>) -> Outcome<()> {
        for id in ids {
            if let Some(link) = self.network.link(id) {
                link.remove().await?;
            }
        }
        Ok(std::fs::remove_dir_all(self.scratch.join("run"))?)
    }

    /// Takes everything away again.
    pub(crate) async fn end(mut self) -> Outcome<()> {
        self.network.tear_down().await?;
        self.tasks.shutdown().await;
        for path in [&self.plane, &self.scratch.join("vmm.netns")] {
            Namespace::remove(path)?;
        }
        let groups = Hierarchy::open(&self.cgroup_name, &self.scratch.join("cgroup"))?;
        for name in groups.names()? {
            groups.group(&name)?.remove(1, |_| ())?;
        }
        groups.remove()?;
        Ok(())
    }
}
