//! What a recovery needs around the sleepers: a data plane in a namespace of its own, a driver without
//! processes, and stand-ins for images and for the proof of idleness.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use dormouse_cgroup::Hierarchy;
use dormouse_hypervisor::fake::FakeDriver;
use dormouse_hypervisor::{Driver as _, KeptPrograms};
use dormouse_image::ImageError;
use dormouse_instance::ledger::{Floors, Ledger};
use dormouse_instance::machine::{BootId, Removal};
use dormouse_instance::rooms::{Background, Clock, Gateways, GuestCommand, IdleProof, Layout};
use dormouse_instance::view::{InstanceView, SnapshotView};
use dormouse_instance::{Images, Instances, Rooms};
use dormouse_keeper::Custodian;
use dormouse_model::error::chain;
use dormouse_model::spec::Placement;
use dormouse_model::{Fault as _, InstanceSpec, State, WorkloadId};
use dormouse_network::{AddressPool, DataPlane, KnockStream, LinkCounters, NetworkConfig};
use dormouse_store::backend::Backend as _;
use dormouse_store::sqlite::{Options, SqliteBackend};
use dormouse_store::{Store, StoreError};
use dormouse_sys::netns::Namespace;
use tokio::task::JoinSet;

use super::change::{Case, Crossing, Kind, Part, flip};
use super::random::Random;
use super::sleeper::{self, Kept, Sleeper};
use crate::figures::Samples;

/// The boot in which all fall asleep, and the one after it.
const BEFORE: &str = "00000000-0000-0000-0000-00000000000a";
const AFTER: &str = "00000000-0000-0000-0000-00000000000b";

/// Nothing takes longer, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of one sleeper.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It runs.
    Accepted,
    /// It does not, with a stable reason.
    Refused(String),
    /// It does not, and nobody says why.
    Unexplained(String),
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) verdicts: Vec<Verdict>,
    /// Machines that live and are no accepted sleeper's, and taps that are.
    pub(super) strays: u64,
    pub(super) check_millis: Samples,
}

/// The surroundings, made once.
#[derive(Debug)]
pub(super) struct Bed {
    scratch: PathBuf,
    namespace: PathBuf,
    network: DataPlane,
    _knocks: KnockStream,
    _tasks: JoinSet<()>,
    cgroups: Hierarchy,
    vmm_namespace: Arc<Namespace>,
}

#[derive(Debug)]
struct Still(PathBuf);

#[async_trait]
impl Images for Still {
    async fn digest_of(&self, _reference: &str) -> Result<String, ImageError> {
        Ok("sha256:00".to_owned())
    }
    fn root_file_system(&self, _digest: &str) -> PathBuf {
        self.0.clone()
    }
    fn command_of(&self, _digest: &str, _spec: &InstanceSpec) -> GuestCommand {
        GuestCommand::default()
    }
}

#[derive(Debug)]
struct Idle;

#[async_trait]
impl IdleProof for Idle {
    async fn nothing_arrived(&self, _id: WorkloadId, _now: LinkCounters) -> Result<bool, String> {
        Ok(true)
    }
}

impl Bed {
    pub(super) async fn make() -> Result<Self> {
        // Flushes cost nothing in memory, and nothing here is about them.
        let shelf = Path::new("/dev/shm");
        let shelf = if shelf.is_dir() {
            shelf.to_owned()
        } else {
            std::env::temp_dir()
        };
        let scratch = shelf.join(format!("dormouse-corruption-{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
        fs::write(scratch.join("root"), b"a root file system")?;
        let namespace = scratch.join("plane.netns");
        Namespace::create_at(&namespace).map_err(|error| anyhow::anyhow!(chain(&error)))?;
        let vmm = scratch.join("vmm.netns");
        let vmm_namespace = Namespace::create_at(&vmm).map_err(|error| anyhow::anyhow!(chain(&error)))?;
        let config = NetworkConfig {
            namespace: Some(namespace.clone()),
            device_prefix: "co".to_owned(),
            owner: "corruption".to_owned(),
            masquerade: false,
            ..NetworkConfig::default()
        };
        let (network, knocks, plane) = DataPlane::open(config)
            .await
            .map_err(|error| anyhow::anyhow!(chain(&error)))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = plane.run().await {
                println!("data plane: {}", chain(&error));
            }
        });
        let name = format!("dormouse-corruption-{}", std::process::id());
        let cgroups = Hierarchy::open(&name, &scratch.join("cgroup"))
            .map_err(|error| anyhow::anyhow!(chain(&error)))?;
        Ok(Self {
            scratch,
            namespace,
            network,
            _knocks: knocks,
            _tasks: tasks,
            cgroups,
            vmm_namespace: Arc::new(vmm_namespace),
        })
    }

    pub(super) async fn remove(self) -> Result<()> {
        let fail = |error: &dyn std::error::Error| anyhow::anyhow!(chain(error));
        self.network.tear_down().await.map_err(|error| fail(&error))?;
        drop(self.network);
        drop(self.vmm_namespace);
        for path in [self.namespace, self.scratch.join("vmm.netns")] {
            Namespace::remove(&path).map_err(|error| fail(&error))?;
        }
        self.cgroups.remove().map_err(|error| fail(&error))?;
        fs::remove_dir_all(&self.scratch).context("removing the scratch directory")
    }

    /// Makes a sleeper for each case, changes all but the controls, recovers them, wakes them.
    pub(super) async fn judge(
        &self,
        number: u64,
        crossing: Crossing,
        cases: &[Option<Case>],
        random: &mut Random,
    ) -> Result<Judged> {
        let root = self.scratch.join(format!("batch-{number}"));
        let layout = Layout {
            data: root.join("data"),
            run: root.join("run"),
            ram: root.join("ram"),
        };
        for folder in [&layout.data.join("instances"), &layout.run, &layout.ram] {
            fs::create_dir_all(folder)?;
        }
        let mut judged = Judged::default();
        let sleepers = self.put_to_sleep(&layout, crossing, cases, random, &mut judged)?;
        let database = layout.data.join("dormouse.db");
        change(&database, cases, &sleepers, random).await?;
        cross(&layout, crossing, &sleepers)?;
        let boot = match crossing {
            Crossing::None => BEFORE,
            Crossing::Reboot | Crossing::Transfer => AFTER,
        };
        let driver = FakeDriver::new();
        let rooms = self.rooms(&layout, &driver, boot, open(&database).await?).await?;
        let store = rooms.store.clone();
        match Instances::recover(Arc::new(rooms)).await {
            Ok((instances, notices)) => {
                let mut tasks = JoinSet::new();
                tasks.spawn(notices.run());
                for sleeper in &sleepers {
                    judged
                        .verdicts
                        .push(verdict(&instances, &store, sleeper.id).await?);
                }
                self.count_strays(&driver, &mut judged);
                for sleeper in &sleepers {
                    let gone = tokio::time::timeout(PATIENCE, instances.delete(sleeper.id, Removal::Forced));
                    gone.await.context("removing a sleeper")??;
                }
                instances.detach().await;
            }
            Err(error) => {
                let why = format!("{}: {}", error.code(), chain(&error));
                println!("no daemon over these records: {why}");
                judged
                    .verdicts
                    .extend(sleepers.iter().map(|_| Verdict::Refused(error.code().to_owned())));
            }
        }
        drop(store);
        fs::remove_dir_all(&root).context("removing a batch")?;
        Ok(judged)
    }

    fn put_to_sleep(
        &self,
        layout: &Layout,
        crossing: Crossing,
        cases: &[Option<Case>],
        random: &mut Random,
        judged: &mut Judged,
    ) -> Result<Vec<Sleeper>> {
        let config = self.network.config();
        let mut pool = AddressPool::new(config.ipv4_pool, config.ipv6_prefix);
        let mut sleepers = Vec::new();
        for (number, case) in cases.iter().enumerate() {
            let unsettled = case.is_some_and(|case| case.kind == Kind::Unsettled);
            let kept = match (crossing, unsettled, random.below(2)) {
                (Crossing::None, _, 0) | (_, true, 0) => Kept::Resident,
                (Crossing::None, _, _) | (_, true, _) => Kept::Spilled,
                (Crossing::Reboot | Crossing::Transfer, false, _) => Kept::Settled,
            };
            let addresses = pool.allocate().map_err(|error| anyhow::anyhow!(chain(&error)))?;
            let boot = BootId(0xa);
            let sleeper = Sleeper::make(layout, number, addresses, boot, kept, random)?;
            if case.is_none() {
                let began = Instant::now();
                sleeper.check()?;
                judged.check_millis.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            sleepers.push(sleeper);
        }
        Ok(sleepers)
    }

    async fn rooms(&self, layout: &Layout, driver: &FakeDriver, boot: &str, store: Store) -> Result<Rooms> {
        let config = self.network.config();
        Ok(Rooms {
            store,
            driver: Arc::new(driver.clone()),
            probe: driver.probe().await?,
            kept: Arc::new(KeptPrograms::new(layout.data.join("vmm"))),
            network: self.network.clone(),
            images: Arc::new(Still(self.scratch.join("root"))),
            // Nothing outlives this process, so its task does not run.
            custodian: Custodian::local().0,
            vmm_namespace: Arc::clone(&self.vmm_namespace),
            cgroups: self.cgroups.clone(),
            proof: Arc::new(Idle),
            ledger: Arc::new(Ledger::new(Floors::NONE, &layout.data, &layout.ram)),
            layout: layout.clone(),
            clock: Arc::new(Clock),
            boot_id: boot.to_owned(),
            background: Background::new(1, 1),
            pool: AddressPool::new(config.ipv4_pool, config.ipv6_prefix),
            placement: Placement::Spill,
            gateways: Gateways {
                ipv4: config.gateway_ipv4,
                ipv6: config.gateway_ipv6,
                mac: NetworkConfig::GATEWAY_MAC,
            },
            name_servers: Vec::new(),
            first_uid: 60_000,
            uid_count: 1000,
            boot: Err("nothing boots here".to_owned()),
            boot_timeout: PATIENCE,
        })
    }

    /// Machines and taps are those of accepted sleepers, and no others.
    fn count_strays(&self, driver: &FakeDriver, judged: &mut Judged) {
        let accepted = judged
            .verdicts
            .iter()
            .filter(|verdict| matches!(verdict, Verdict::Accepted))
            .count();
        let machines = driver.living().len();
        if machines != accepted {
            println!("{machines} machines live, {accepted} sleepers were accepted");
            judged.strays += machines.abs_diff(accepted) as u64;
        }
    }
}

/// Opens the store; the one before lets go of its lock a moment after it was dropped.
async fn open(database: &Path) -> Result<Store> {
    let began = Instant::now();
    loop {
        match Store::open(database).await {
            Err(StoreError::Locked { .. }) if began.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            opened => return opened.context("opening the store"),
        }
    }
}

async fn open_raw(database: &Path) -> Result<SqliteBackend> {
    let began = Instant::now();
    loop {
        match SqliteBackend::open(database, Options::default()).await {
            Err(StoreError::Locked { .. }) if began.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            opened => return opened.context("opening the database"),
        }
    }
}

/// Writes the records, then changes what the cases say.
async fn change(
    database: &Path,
    cases: &[Option<Case>],
    sleepers: &[Sleeper],
    random: &mut Random,
) -> Result<()> {
    use dormouse_store::RecordKind;
    use dormouse_store::backend::Change;

    let raw = open_raw(database).await?;
    let write = |sleeper: &Sleeper| Change {
        kind: RecordKind::Instance,
        key: sleeper.key(),
        value: Some(sleeper.record()),
    };
    raw.commit(sleepers.iter().map(write).collect()).await?;
    let mut changes = Vec::new();
    let mut in_file = Vec::new();
    for (at, (case, sleeper)) in cases.iter().zip(sleepers).enumerate() {
        let Some(case) = case else { continue };
        // The control before it: others' files are whole.
        let control = at - at % super::CONTROL_EACH;
        let other = sleepers.get(control).unwrap_or(sleeper);
        changes.extend(sleeper.change(*case, other, random)?);
        if case.part == Part::RecordFile {
            in_file.push(sleeper);
        }
    }
    raw.commit(changes).await?;
    drop(raw);
    if in_file.is_empty() {
        return Ok(());
    }
    flip_in_file(database, &in_file, random).await
}

async fn flip_in_file(database: &Path, sleepers: &[&Sleeper], random: &mut Random) -> Result<()> {
    let began = Instant::now();
    let log = database.with_extension("db-wal");
    // The last connection removes the log when it closes.
    while log.exists() && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut bytes = fs::read(database)?;
    for sleeper in sleepers {
        let record = sleeper.record();
        let mut flipped = record.clone();
        flip(&mut flipped, random);
        // Freed space of a page keeps what was there: every place, because one of them is read.
        let places: Vec<usize> = bytes
            .windows(record.len())
            .enumerate()
            .filter(|(_, window)| *window == record)
            .map(|(at, _)| at)
            .collect();
        if places.is_empty() {
            bail!("a record is not whole in the database's file");
        }
        for at in places {
            if let Some(place) = bytes.get_mut(at..at + record.len()) {
                place.copy_from_slice(&flipped);
            }
        }
    }
    fs::write(database, bytes).context("writing the database's file")
}

/// What a reboot or a transfer does to files.
fn cross(layout: &Layout, crossing: Crossing, sleepers: &[Sleeper]) -> Result<()> {
    match crossing {
        Crossing::None => Ok(()),
        Crossing::Reboot => {
            fs::remove_dir_all(&layout.ram)?;
            fs::create_dir_all(&layout.ram).context("emptying the tmpfs")
        }
        Crossing::Transfer => {
            for path in sleepers.iter().map(Sleeper::memory_path) {
                if path.exists() {
                    sleeper::copy_over(&path, &path)?;
                }
            }
            fs::remove_dir_all(&layout.ram)?;
            fs::create_dir_all(&layout.ram).context("emptying the tmpfs")
        }
    }
}

/// Wakes one, and says what came of it.
async fn verdict(instances: &Instances, store: &Store, id: WorkloadId) -> Result<Verdict> {
    let Ok(view) = instances.view(id) else {
        let report = store.check().await?;
        let aside = report.set_aside.iter().chain(&report.damaged);
        let damage = aside.into_iter().find(|damage| damage.key.workload() == Some(id));
        return Ok(match damage {
            Some(damage) => Verdict::Refused(format!("record: {}", damage.reason.as_str())),
            None => Verdict::Unexplained("it is gone and no record was set aside".to_owned()),
        });
    };
    if view.state == State::Failed {
        return Ok(reason(&view));
    }
    let woken = tokio::time::timeout(PATIENCE, instances.wake(id))
        .await
        .context("waiting for a wake")?;
    match woken {
        Ok(view) if view.state == State::Running => Ok(Verdict::Accepted),
        Ok(view) => bail!("a woken sleeper is {}", view.state),
        Err(_) => {
            let mut watched = instances.watch(id)?;
            let failed = watched.wait_for(|view| view.state == State::Failed);
            let view = tokio::time::timeout(PATIENCE, failed)
                .await
                .context("waiting for a refusal")?;
            Ok(reason(&*view?))
        }
    }
}

fn reason(view: &InstanceView) -> Verdict {
    match &view.snapshot {
        Some(SnapshotView::Lost(lost)) => Verdict::Refused(format!("{} {}", lost.part.as_str(), lost.code())),
        Some(SnapshotView::Kept { .. }) | None => match view.reason.strip_prefix("its record is damaged: ") {
            Some(what) => Verdict::Refused(format!("record: {what}")),
            None => Verdict::Unexplained(view.reason.clone()),
        },
    }
}
