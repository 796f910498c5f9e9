//! The one place where the rooms are joined: what comes from where, and in which order.
//!
//! ```text
//!  host ─▶ store ─▶ images ─▶ driver ─▶ data plane ─▶ observer ─▶ instances ─▶ engine ─▶ API
//! ```
//!
//! Order matters in four places. The store's lock comes before anything that a second daemon could
//! disturb. Instances are recovered before the data plane is swept, or the sweep would take what they
//! own. The engine subscribes to changes before it lists instances. The API opens last: a request never
//! meets a half-recovered daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dormouse_cgroup::Hierarchy;
use dormouse_conntrack::{Observations, Observer, ObserverConfig, ObserverHandle};
use dormouse_hypervisor::qemu::{QemuConfig, QemuDriver};
use dormouse_hypervisor::{Accelerator, Driver, KeptPrograms, Probe};
use dormouse_image::{GuestKernel, initrd};
use dormouse_instance::ledger::{Floors, Ledger};
use dormouse_instance::rooms::{Background, Clock, Gateways, GuestBoot, Layout};
use dormouse_instance::{InstanceEvent, Instances, Rooms};
use dormouse_keeper::{Custodian, KeeperError, Source};
use dormouse_model::State;
use dormouse_model::error::chain;
use dormouse_model::spec::Placement;
use dormouse_model::workload::SleepSupport;
use dormouse_network::{AddressPool, DataPlane, KnockStream, NetworkConfig};
use dormouse_store::{Damage, Store, StoreError};
use dormouse_sys::netns::Namespace;
use dormouse_sys::spawn::Identity;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::activation::{Activation, StoreSource};
use crate::api::Api;
use crate::config::{AcceleratorChoice, Config, KeeperChoice};
use crate::engine::{EngineHandle, EngineRooms, Watchbook, engine};
use crate::error::DaemonError;
use crate::events::{EventLog, Happening};
use crate::host;
use crate::images::ImageRoom;
use crate::keeper::KeeperSource;
use crate::system::{HostFacts, SystemFacts};

/// How often the store's lock is tried, and the pause between.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// How long a start waits for a keeper: without one guests are adopted all the same.
const KEEPER_PATIENCE: Duration = Duration::from_secs(3);

/// How many sleepers' memory is read at a time in the background: one keeps a processor and the disk busy.
const SETTLING: usize = 1;

/// How many sleepers' memory is copied to disk at a time: while one is flushed, others are read.
const SPILLING: usize = 4;

/// The tasks without which the daemon is of no use: when one ends, the daemon does.
pub type Tasks = JoinSet<&'static str>;

/// The joined house.
#[derive(Debug)]
pub struct House {
    /// The services.
    pub api: Api,
    /// The engine, to be told of the end.
    pub engine: EngineHandle,
    /// The instances, to let go of at the end.
    pub instances: Instances,
    /// Everything that runs.
    pub tasks: Tasks,
}

/// Joins the rooms. What streams to clients ends when `stop` is cancelled.
///
/// # Errors
/// The first room that cannot be had.
pub async fn join(
    config: &Config,
    stop: CancellationToken,
    activation: &mut Activation,
) -> Result<House, DaemonError> {
    let (ram, mark) = (host::prepare(config)?, host::mark(&config.data_directory));
    let (store, damages, images) = open_records(config).await?;
    let (driver, probe) = open_driver(config).await?;
    let cgroups = Hierarchy::open(&format!("dormouse-{mark}"), &config.run_directory.join("cgroup"))?;
    let mut tasks = Tasks::new();
    let plane = open_plane(config, &mark, &mut tasks).await?;
    let (observer, observations) = open_observer(config, &mut tasks)?;
    let custodian = open_custody(config, activation, &mut tasks).await?;
    let (clock, host_facts) = (Arc::new(Clock), HostFacts::read());
    let watchbook = Arc::new(Watchbook::new(observer.clone()));
    let (placement, boot) = (placement(config, &host_facts), guest_boot(config));
    let facts = system_facts(config, &host_facts, &probe, placement, &boot, &cgroups, &clock);
    let rooms = Arc::new(Rooms {
        store: store.clone(),
        driver,
        probe,
        kept: Arc::new(KeptPrograms::new(config.data_directory.join("vmm"))),
        network: plane.network.clone(),
        images: Arc::new(images.clone()),
        custodian,
        vmm_namespace: Arc::new(host::vmm_namespace(&config.run_directory)?),
        cgroups,
        proof: Arc::clone(&watchbook) as Arc<dyn dormouse_instance::rooms::IdleProof>,
        layout: layout(config, ram),
        ledger: Arc::clone(&facts.ledger),
        clock: Arc::clone(&clock),
        pool: plane.pool,
        placement,
        gateways: plane.gateways,
        name_servers: config.name_servers.clone(),
        first_uid: config.first_uid,
        uid_count: config.uid_count,
        boot,
        boot_timeout: config.boot_timeout,
        boot_id: host::boot_id()?,
        background: Background::new(SETTLING, SPILLING),
    });
    let (instances, changes) = recover(config, Arc::clone(&rooms), &mut tasks).await?;
    let engine_rooms = EngineRooms {
        instances: instances.clone(),
        observer,
        observations,
        knocks: plane.knocks,
        network: plane.network,
        store: store.clone(),
        watchbook,
        clock: Arc::clone(&clock),
        sleep_support: sleep_support(&rooms.probe),
    };
    let engine = start_engine(config, engine_rooms, &mut tasks);
    let events = start_event_log(&rooms, changes, damages, &mut tasks)?;
    let api = Api::open(
        instances.clone(),
        images,
        engine.clone(),
        events,
        store,
        Arc::new(facts),
        stop,
    )
    .await?;
    Ok(House {
        api,
        instances,
        engine,
        tasks,
    })
}

/// The store, what is damaged in it, and the images that it knows.
async fn open_records(config: &Config) -> Result<(Store, Receiver<Damage>, ImageRoom), DaemonError> {
    let data = &config.data_directory;
    let (store, damages) = open_store(&data.join("dormouse.db")).await?;
    let images = ImageRoom::open(data, store.clone(), config.image_limits).await?;
    Ok((store, damages, images))
}

/// The driver, and what it can do here.
async fn open_driver(config: &Config) -> Result<(Arc<dyn Driver>, Probe), DaemonError> {
    let driver = QemuDriver::new(qemu_config(config));
    let probe = driver.probe().await?;
    Ok((Arc::new(driver), probe))
}

/// The data plane and what belongs to its configuration.
struct Plane {
    network: DataPlane,
    knocks: KnockStream,
    pool: AddressPool,
    gateways: Gateways,
}

async fn open_plane(config: &Config, mark: &str, tasks: &mut Tasks) -> Result<Plane, DaemonError> {
    let config = network_config(config, mark);
    let pool = AddressPool::new(config.ipv4_pool, config.ipv6_prefix);
    let gateways = Gateways {
        ipv4: config.gateway_ipv4,
        ipv6: config.gateway_ipv6,
        mac: NetworkConfig::GATEWAY_MAC,
    };
    let (network, knocks, plane) = DataPlane::open(config).await?;
    tasks.spawn(async move {
        if let Err(error) = plane.run().await {
            tracing::error!(error = %chain(&error), "data plane");
        }
        "data plane"
    });
    Ok(Plane {
        network,
        knocks,
        pool,
        gateways,
    })
}

fn open_observer(config: &Config, tasks: &mut Tasks) -> Result<(ObserverHandle, Observations), DaemonError> {
    let namespace = open_namespace(config)?;
    dormouse_conntrack::requirements::enable_events(namespace.as_deref())?;
    let observer_config = ObserverConfig {
        receive_buffer: config.receive_buffer,
        ..ObserverConfig::standard(namespace)
    };
    let (observer, handle, observations) = Observer::new(observer_config);
    tasks.spawn(async move {
        observer.run().await;
        "observer"
    });
    Ok((handle, observations))
}

fn ledger(config: &Config) -> Ledger {
    let floors = Floors {
        disk: config.disk_floor,
        memory: config.memory_floor,
        percent: config.memory_percent,
    };
    Ledger::new(floors, &config.data_directory, &host::ram(config))
}

fn layout(config: &Config, ram: PathBuf) -> Layout {
    Layout {
        data: config.data_directory.clone(),
        run: config.run_directory.clone(),
        ram,
    }
}

/// Whoever keeps descriptors for the next daemon: the service manager where it does, else our keeper.
async fn open_custody(
    config: &Config,
    activation: &mut Activation,
    tasks: &mut Tasks,
) -> Result<Custodian, KeeperError> {
    let by_manager = match config.keeper {
        KeeperChoice::Auto => activation.can_keep(),
        KeeperChoice::Process => false,
        KeeperChoice::Manager => true,
    };
    let source: Arc<dyn Source> = if by_manager {
        let stored = std::mem::take(&mut activation.stored);
        let store = StoreSource::open(&activation.manager, stored).await;
        Arc::new(store.ok_or_else(|| KeeperError::Absent {
            path: "NOTIFY_SOCKET".into(),
            source: std::io::ErrorKind::NotFound.into(),
        })?)
    } else {
        Arc::new(KeeperSource::new(&config.run_directory))
    };
    let (custodian, task) = Custodian::new(source);
    tasks.spawn(async move {
        task.run().await;
        "custodian"
    });
    if !custodian.first_reached(KEEPER_PATIENCE).await {
        tracing::error!("nobody keeps descriptors yet; taps are taken from their guests' processes");
    }
    Ok(custodian)
}

/// Recovers the instances, and then sweeps what bears our mark and is nobody's. Also returns the changes of
/// instances from the first on.
async fn recover(
    config: &Config,
    rooms: Arc<Rooms>,
    tasks: &mut Tasks,
) -> Result<(Instances, Receiver<InstanceEvent>), DaemonError> {
    let network = rooms.network.clone();
    let (instances, notices) = Instances::recover(rooms).await?;
    // Before the first notice is distributed, or the log would not have it.
    let changes = instances.events();
    tasks.spawn(async move {
        notices.run().await;
        "instances"
    });
    match network.sweep().await {
        Ok(swept) => tracing::debug!(?swept, "data plane swept"),
        Err(error) => tracing::warn!(error = %chain(&error), "sweeping the data plane"),
    }
    look_at_limits(config, &instances).await;
    Ok((instances, changes))
}

fn start_engine(config: &Config, rooms: EngineRooms, tasks: &mut Tasks) -> EngineHandle {
    let (task, handle) = engine(engine_config(config), rooms);
    tasks.spawn(async move {
        task.run().await;
        "engine"
    });
    handle
}

/// Names limits of the host that are too low for the sleepers that there are.
async fn look_at_limits(config: &Config, instances: &Instances) {
    let sleepers = instances.count(State::Standby);
    let data = config.data_directory.clone();
    // What panics in there is logged there, and no reason not to start.
    drop(tokio::task::spawn_blocking(move || crate::setup::look_at_start(&data, sleepers as u64)).await);
}

/// What `auto` means on this host.
fn placement(config: &Config, host: &HostFacts) -> Placement {
    match config.placement {
        Placement::Auto => dormouse_instance::memory::default_placement(host.swap),
        chosen @ (Placement::Tmpfs | Placement::Spill | Placement::Disk) => chosen,
    }
}

fn sleep_support(probe: &Probe) -> SleepSupport {
    if probe.can.sleep {
        SleepSupport::Able
    } else {
        SleepSupport::DriverCannot
    }
}

fn start_event_log(
    rooms: &Rooms,
    mut changes: Receiver<InstanceEvent>,
    mut damages: Receiver<Damage>,
    tasks: &mut Tasks,
) -> Result<EventLog, DaemonError> {
    let epoch = rooms
        .random()
        .map_err(|source| dormouse_instance::InstanceError::Random { source })?;
    let events = EventLog::new(u64::from_be_bytes(epoch));
    let (log, clock) = (events.clone(), Arc::clone(&rooms.clock));
    tasks.spawn(async move {
        loop {
            let happening = tokio::select! {
                change = changes.recv() => change.map(Happening::Instance),
                damage = damages.recv() => damage.map(Happening::SetAside),
            };
            match happening {
                Ok(happening) => log.push(clock.wall(), happening),
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events missed by the log");
                    log.missed(missed);
                }
                Err(RecvError::Closed) => return "event log",
            }
        }
    });
    Ok(events)
}

/// Opens the store, waiting a little for its lock: a daemon that was killed holds it until the kernel has
/// taken it apart, and whoever starts the next one should not have to know that. With it comes what is set
/// aside from now on: the reading at the start finds most of what is damaged.
async fn open_store(path: &Path) -> Result<(Store, Receiver<Damage>), StoreError> {
    let mut opened = Store::open(path).await;
    for _ in 1..LOCK_TRIES {
        if !matches!(opened, Err(StoreError::Locked { .. })) {
            break;
        }
        tokio::time::sleep(LOCK_PAUSE).await;
        opened = Store::open(path).await;
    }
    opened.map(|store| {
        let notices = store.notices();
        (store, notices)
    })
}

fn qemu_config(config: &Config) -> QemuConfig {
    let accelerator = match config.accelerator {
        AcceleratorChoice::Auto => dormouse_hypervisor::qemu::AcceleratorChoice::Auto,
        AcceleratorChoice::Kvm => dormouse_hypervisor::qemu::AcceleratorChoice::Kvm,
        AcceleratorChoice::Emulation => dormouse_hypervisor::qemu::AcceleratorChoice::Emulation,
    };
    let program = which(&config.qemu);
    // The probe's guest runs as the guests will, at the end of the range: no instance has that user.
    let uid = config.first_uid.saturating_add(config.uid_count);
    QemuConfig {
        program,
        accelerator,
        probe_identity: Some(Identity { uid, gid: uid }),
        ..QemuConfig::default()
    }
}

/// A bare name is looked for on the path; a path is taken as it is.
fn which(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| PathBuf::from("/usr/bin").join(program))
}

fn network_config(config: &Config, mark: &str) -> NetworkConfig {
    let defaults = NetworkConfig::default();
    let (pool, pool_length) = config.ipv4_pool;
    let (prefix, prefix_length) = config.ipv6_prefix;
    NetworkConfig {
        namespace: config.namespace.clone(),
        device_prefix: config.device_prefix.clone(),
        owner: mark.to_owned(),
        // Lengths were checked where the text was read; the data plane checks the rest.
        ipv4_pool: ipnet::Ipv4Net::new(pool, pool_length).unwrap_or(defaults.ipv4_pool),
        ipv6_prefix: ipnet::Ipv6Net::new(prefix, prefix_length).unwrap_or(defaults.ipv6_prefix),
        parked_bytes_per_sleeper: config.parked_per_sleeper,
        masquerade: config.masquerade,
        ..defaults
    }
}

fn open_namespace(config: &Config) -> Result<Option<Arc<Namespace>>, DaemonError> {
    match &config.namespace {
        Some(path) => Ok(Some(Arc::new(Namespace::open(path)?))),
        None => Ok(None),
    }
}

fn engine_config(config: &Config) -> dormouse_standby::Config {
    let at_least_one = |count| std::num::NonZeroUsize::new(count).unwrap_or(std::num::NonZeroUsize::MIN);
    dormouse_standby::Config {
        max_sleeps: at_least_one(config.max_concurrent_sleeps),
        max_wakes: at_least_one(config.max_concurrent_wakes),
        resync_interval: config.sync_interval,
        ..dormouse_standby::Config::default()
    }
}

/// What guests boot; without it instances cannot start, and everything else works.
fn guest_boot(config: &Config) -> Result<GuestBoot, String> {
    let agent = config
        .agent
        .clone()
        .or_else(beside_us)
        .ok_or("the daemon's own path is unknown")?;
    let kernel = GuestKernel::locate(&config.data_directory, config.kernel.as_deref())
        .map_err(|error| chain(&error))?;
    let folder = config.data_directory.join("guest");
    let initrd = initrd::build(&kernel, &agent, &folder).map_err(|error| chain(&error))?;
    let command_line =
        "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 net.ifnames=0 cryptomgr.notests nowatchdog"
            .to_owned();
    Ok(GuestBoot {
        kernel: kernel.image().to_owned(),
        initrd,
        command_line,
    })
}

fn beside_us() -> Option<PathBuf> {
    std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("dormouse-agent"))
}

fn system_facts(
    config: &Config,
    host: &HostFacts,
    probe: &Probe,
    placement: Placement,
    boot: &Result<GuestBoot, String>,
    cgroups: &Hierarchy,
    clock: &Clock,
) -> SystemFacts {
    let accelerator_reason = match &probe.accelerator {
        Accelerator::Kvm => "a guest ran under it at full speed".to_owned(),
        Accelerator::Emulation { why } => why.clone(),
    };
    let (pool, prefix) = (config.ipv4_pool, config.ipv6_prefix);
    SystemFacts {
        hostname: host.hostname.clone(),
        kernel: host.kernel.clone(),
        cpus: host.cpus,
        memory: host.memory,
        swap: host.swap,
        driver_version: probe.version.clone(),
        accelerator: probe.accelerator.as_str().to_owned(),
        accelerator_reason,
        placement,
        data_directory: config.data_directory.clone(),
        run_directory: config.run_directory.clone(),
        namespace: config.namespace.clone(),
        ipv4_pool: format!("{}/{}", pool.0, pool.1),
        ipv6_prefix: format!("{}/{}", prefix.0, prefix.1),
        started_at: clock.wall(),
        boot_id: dormouse_sys::clock::boot_id().unwrap_or_default(),
        guest_kernel: boot
            .as_ref()
            .map(|boot| boot.kernel.clone())
            .map_err(Clone::clone),
        sleepers: config.sleepers,
        cgroup: format!("{:?} at {}", cgroups.version(), cgroups.root().display()),
        ledger: Arc::new(ledger(config)),
    }
}
