//! The instance manager: finds instances by name and id, makes them, hands requests to their tasks.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_model::{Addresses, Bytes, InstanceSpec, Name, State, WallTime, WorkloadId};
use dormouse_network::AddressPool;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::actor::{Actor, Asked, Command, INBOX, Outlets};
use crate::error::InstanceError;
use crate::machine::{Machine, Record, Removal};
use crate::memory::GuestRam;
use crate::record::{InstanceRecord, Remembered};
use crate::recovery;
use crate::rooms::{Layout, Rooms};
use crate::steps::Parts;
use crate::view::{InstanceEvent, InstanceView};

mod damaged;
mod requests;

use damaged::Remains;

/// Events that a slow listener may lag behind; beyond that it is told of a gap.
const EVENTS: usize = 4096;

/// Notices of tasks that may wait for the registry.
const NOTICES: usize = 1024;

/// Instances that are looked for at a time when a daemon starts: one that does not answer holds up no other.
const LOOKS: usize = 32;

/// A checked request for an instance.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// What.
    pub spec: InstanceSpec,
    /// Also start it.
    pub start: bool,
    /// Remove it once it has stopped.
    pub auto_remove: bool,
}

/// All instances of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Instances {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rooms: Arc<Rooms>,
    /// Looked at by every request and changed by few; never held across an await.
    registry: Mutex<Registry>,
    events: broadcast::Sender<InstanceEvent>,
    notices: mpsc::Sender<InstanceEvent>,
    tasks: Mutex<JoinSet<()>>,
    /// Whether the daemon goes down: a task that ends then says nothing about its instance.
    detaching: AtomicBool,
    /// Set with it: a look at a VMM that does not answer is given up.
    leaving: watch::Sender<bool>,
}

#[derive(Debug)]
struct Registry {
    entries: BTreeMap<WorkloadId, Entry>,
    names: HashMap<Name, WorkloadId>,
    pool: AddressPool,
    uids: HashMap<u32, WorkloadId>,
    addresses: HashMap<WorkloadId, Addresses>,
    /// Why, of instances whose records are not to be read.
    damaged: BTreeMap<WorkloadId, String>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Name,
    inbox: mpsc::Sender<Command>,
    view: watch::Receiver<InstanceView>,
}

/// The part of the manager that runs: distributes notices. For the daemon to spawn.
#[derive(Debug)]
pub struct InstancesTask {
    shared: Arc<Shared>,
    notices: mpsc::Receiver<InstanceEvent>,
}

impl InstancesTask {
    /// Runs until the manager is dropped.
    pub async fn run(mut self) {
        while let Some(event) = self.notices.recv().await {
            if let InstanceEvent::Deleted(view) = &event {
                self.shared.forget(view.id);
            }
            let auto_remove = wants_removal(&event);
            let id = event.view().id;
            // No listener is no error.
            drop(self.shared.events.send(event));
            if auto_remove {
                let instances = Instances {
                    shared: Arc::clone(&self.shared),
                };
                self.shared.spawn(async move {
                    if let Err(error) = instances.delete(id, Removal::Forced).await {
                        tracing::warn!(instance_id = %id, %error, "removing a stopped instance");
                    }
                });
            }
        }
    }
}

/// Whether the instance of `event` is one that goes once it has stopped, and has. A daemon that starts
/// tells the state that it found, which is no change: one that stopped under an earlier daemon goes too,
/// but not one that was never started.
fn wants_removal(event: &InstanceEvent) -> bool {
    match event {
        InstanceEvent::StateChanged { now, .. } => {
            now.auto_remove && matches!(now.state, State::Stopped | State::Failed)
        }
        InstanceEvent::Updated(now) => {
            let ended = match now.state {
                State::Failed => true,
                State::Stopped => now.started_at.is_some(),
                State::Starting
                | State::Initializing
                | State::Running
                | State::Dozing
                | State::Sleeping
                | State::Standby
                | State::Waking
                | State::Stopping
                | State::Deleting => false,
            };
            now.auto_remove && ended
        }
        InstanceEvent::Created(_) | InstanceEvent::Deleted(_) => false,
    }
}

impl Shared {
    /// An instance's task is not there: because the instance is gone, or the daemon goes down.
    fn gone(&self, id: WorkloadId) -> InstanceError {
        if self.detaching.load(Ordering::Acquire) {
            InstanceError::ShuttingDown
        } else {
            InstanceError::NotFound { key: id.to_string() }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Every change of the registry is one insert or remove: a panic elsewhere leaves it whole.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn forget(&self, id: WorkloadId) {
        let mut registry = self.registry();
        registry.entries.remove(&id);
        registry.damaged.remove(&id);
        registry.names.retain(|_, owner| *owner != id);
        registry.uids.retain(|_, owner| *owner != id);
        if let Some(addresses) = registry.addresses.remove(&id)
            && let Err(error) = registry.pool.release(addresses)
        {
            tracing::warn!(instance_id = %id, %error, "addresses given back");
        }
    }
}

impl Instances {
    /// The manager over `rooms`, with every recorded instance recovered: what runs is adopted, what
    /// sleeps stays asleep, what was half done is finished or undone by its task.
    ///
    /// # Errors
    /// When the records cannot be read at all.
    pub async fn recover(rooms: Arc<Rooms>) -> Result<(Self, InstancesTask), InstanceError> {
        let listing = rooms
            .store
            .list::<InstanceRecord>()
            .await
            .map_err(|source| InstanceError::Store {
                what: "all instances".to_owned(),
                source,
            })?;
        let (notices, receiver) = mpsc::channel(NOTICES);
        let shared = Arc::new(Shared {
            registry: Mutex::new(Registry {
                entries: BTreeMap::new(),
                names: HashMap::new(),
                pool: rooms.pool.clone(),
                uids: HashMap::new(),
                addresses: HashMap::new(),
                damaged: BTreeMap::new(),
            }),
            rooms,
            events: broadcast::Sender::new(EVENTS),
            notices,
            tasks: Mutex::new(JoinSet::new()),
            detaching: AtomicBool::new(false),
            leaving: watch::Sender::new(false),
        });
        let instances = Self {
            shared: Arc::clone(&shared),
        };
        let mut remains = Vec::new();
        for damage in listing.damaged {
            tracing::error!(%damage, "an instance's record is set aside");
            if let Some(id) = damage.key.workload() {
                let bytes = shared.rooms.store.aside_bytes::<InstanceRecord>(id).await;
                remains.push(Remains {
                    id,
                    why: damage.reason.as_str().to_owned(),
                    bytes: bytes.ok().flatten().unwrap_or_default(),
                });
            }
        }
        let turns = Arc::new(Semaphore::new(LOOKS));
        let mut linking = Vec::new();
        for (key, record) in listing.records {
            match Remembered::from_record(record.clone()) {
                Ok(remembered) => linking.push(instances.bring_back(remembered, &turns)),
                Err(error) => {
                    tracing::error!(%key, %error, "an instance's record contradicts itself");
                    if let Some(id) = key.workload() {
                        remains.push(Remains {
                            id,
                            why: error.to_string(),
                            bytes: dormouse_store::record::encode(&key, &record),
                        });
                    }
                }
            }
        }
        for linked in linking {
            // Closed when it is so; nothing is ever sent.
            let _closed = linked.await;
        }
        instances.keep_damaged(remains).await;
        Ok((
            instances,
            InstancesTask {
                shared,
                notices: receiver,
            },
        ))
    }

    /// Enters a recorded instance, and looks for it on the host in its task. What is returned closes when its
    /// link is known to the data plane; a VMM that does not answer keeps only its own callers waiting.
    fn bring_back(&self, mut remembered: Remembered, turns: &Arc<Semaphore>) -> oneshot::Receiver<()> {
        let rooms = Arc::clone(&self.shared.rooms);
        let id = remembered.view.id;
        {
            let mut registry = self.shared.registry();
            // Taken already or of another pool: the instance keeps what its guest has, and the pool
            // gives it to nobody else.
            if let Err(error) = registry.pool.claim(remembered.view.addresses) {
                tracing::error!(instance_id = %id, %error, "recorded addresses");
            }
            registry.addresses.insert(id, remembered.view.addresses);
            registry.uids.insert(remembered.uid, id);
        }
        remembered.view.revision = rooms.first_revision();
        let (outlets, commands) = self.enter(&remembered);
        let (linked, wait) = oneshot::channel::<()>();
        let (turns, mut leaving) = (Arc::clone(turns), self.shared.leaving.subscribe());
        self.shared.spawn(async move {
            // The semaphore is never closed.
            let turn = turns.acquire_owned().await.ok();
            let look = recovery::look(&rooms, &remembered, (linked, turn));
            let found = tokio::select! {
                found = look => found,
                // What its VMM would have said the next daemon asks.
                _ = leaving.wait_for(|leaving| *leaving) => return,
            };
            let mut effects = Vec::new();
            let machine = Machine::recover(
                rooms.machine_settings(&remembered.view.memory),
                remembered.life.clone(),
                &found.facts,
                rooms.clock.now(),
                &mut effects,
            );
            let actor = Actor::new(rooms, machine, remembered, found.parts, outlets, commands);
            actor.run(None, effects).await;
        });
        wait
    }

    /// Enters an instance into the registry; gives what its task will need.
    fn enter(&self, remembered: &Remembered) -> (Outlets, mpsc::Receiver<Command>) {
        let (inbox, commands) = mpsc::channel(INBOX);
        let (view_sender, view) = watch::channel(remembered.view.clone());
        let entry = Entry {
            name: remembered.view.spec.name.clone(),
            inbox,
            view,
        };
        let id = remembered.view.id;
        let mut registry = self.shared.registry();
        registry.names.insert(entry.name.clone(), id);
        registry.entries.insert(id, entry);
        let outlets = Outlets {
            view: view_sender,
            notices: self.shared.notices.clone(),
        };
        (outlets, commands)
    }

    /// Enters a new instance and starts its task; `birth` is told before anything else of it.
    fn launch_task(&self, machine: Machine, remembered: Remembered, birth: InstanceEvent) {
        let (outlets, commands) = self.enter(&remembered);
        let rooms = Arc::clone(&self.shared.rooms);
        let actor = Actor::new(rooms, machine, remembered, Parts::default(), outlets, commands);
        self.shared.spawn(actor.run(Some(birth), Vec::new()));
    }

    /// Makes an instance, wholly or not at all, and starts it when asked. Returns once the record is
    /// durable and, when started, the process runs or the start has failed. A caller that goes away
    /// meanwhile changes nothing: the work goes on without it.
    ///
    /// # Errors
    /// When the name is taken, the image unknown, or the record cannot be written; nothing is left then.
    /// When only the start failed the instance stays, failed.
    pub async fn create(&self, request: CreateRequest) -> Result<InstanceView, InstanceError> {
        if self.shared.detaching.load(Ordering::Acquire) {
            return Err(InstanceError::ShuttingDown);
        }
        let instances = self.clone();
        let (done, outcome) = oneshot::channel();
        self.shared.spawn(async move {
            // Whoever asked may be gone.
            drop(done.send(instances.make(request).await));
        });
        outcome.await.map_err(|_| InstanceError::ShuttingDown)?
    }

    async fn make(&self, request: CreateRequest) -> Result<InstanceView, InstanceError> {
        let rooms = &self.shared.rooms;
        let (reference, start) = (request.spec.image.clone(), request.start);
        let digest = rooms
            .images
            .digest_of(&reference)
            .await
            .map_err(|source| InstanceError::Image { reference, source })?;
        let id = WorkloadId::new(rooms.clock.wall(), rooms.random());
        let remembered = self.reserve(id, request, digest)?;
        if let Err(source) = rooms.store.put(id, &remembered.to_record()).await {
            let what = remembered.view.spec.name.to_string();
            // The write may have happened for all that. Name and addresses are given back only once it is
            // certain that no record has them.
            match rooms.store.delete::<InstanceRecord>(id).await {
                Ok(()) => self.shared.forget(id),
                Err(error) => {
                    tracing::error!(instance_id = %id, %error, "a record of unknown outcome is left");
                }
            }
            return Err(InstanceError::Store { what, source });
        }
        let machine = Machine::new(rooms.machine_settings(&remembered.view.memory));
        let birth = InstanceEvent::Created(Box::new(remembered.view.clone()));
        self.launch_task(machine, remembered, birth);
        if start {
            self.start(id).await
        } else {
            self.view(id)
        }
    }

    /// Takes name, addresses and a user id, or nothing.
    fn reserve(
        &self,
        id: WorkloadId,
        request: CreateRequest,
        image_digest: String,
    ) -> Result<Remembered, InstanceError> {
        let rooms = &self.shared.rooms;
        let mut registry = self.shared.registry();
        let name = request.spec.name.clone();
        if registry.names.contains_key(&name) {
            return Err(InstanceError::NameTaken { name });
        }
        let uid = (rooms.first_uid..rooms.first_uid.saturating_add(rooms.uid_count))
            .find(|uid| !registry.uids.contains_key(uid))
            .ok_or(InstanceError::Exhausted { what: "user id" })?;
        let addresses = registry
            .pool
            .allocate()
            .map_err(|_| InstanceError::Exhausted { what: "address" })?;
        registry.addresses.insert(id, addresses);
        registry.uids.insert(uid, id);
        registry.names.insert(name, id);
        drop(registry);
        let placement = match request.spec.placement {
            dormouse_model::spec::Placement::Auto => rooms.placement,
            chosen => chosen,
        };
        let now = rooms.clock.wall();
        let view = InstanceView {
            id,
            image_digest,
            state: State::Stopped,
            reason: String::new(),
            addresses,
            memory: GuestRam::fresh(placement, request.spec.memory),
            generation: Record::NEW.generation,
            created_at: now,
            started_at: None,
            state_changed_at: now,
            last_wake: None,
            last_standby: None,
            last_commit: None,
            pid: None,
            exit: None,
            agent_ready: false,
            auto_remove: request.auto_remove,
            standbys: 0,
            wakes: 0,
            revision: rooms.first_revision(),
            spec: request.spec,
        };
        Ok(Remembered {
            view,
            uid,
            life: Record::NEW,
            state_sha256: Vec::new(),
        })
    }

    /// All instances, in the order of their creation.
    #[must_use]
    pub fn list(&self) -> Vec<InstanceView> {
        self.shared
            .registry()
            .entries
            .values()
            .map(|entry| entry.view.borrow().clone())
            .collect()
    }

    /// The instance with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn view(&self, id: WorkloadId) -> Result<InstanceView, InstanceError> {
        self.entry(id).map(|entry| entry.view.borrow().clone())
    }

    fn entry(&self, id: WorkloadId) -> Result<Entry, InstanceError> {
        let registry = self.shared.registry();
        registry
            .entries
            .get(&id)
            .cloned()
            .ok_or_else(|| InstanceError::NotFound { key: id.to_string() })
    }

    /// Finds an instance by id, then by name, then by a unique beginning of an id.
    ///
    /// # Errors
    /// When there is none, or several ids begin so.
    pub fn find(&self, key: &str) -> Result<InstanceView, InstanceError> {
        let registry = self.shared.registry();
        let by_id = key
            .parse::<WorkloadId>()
            .ok()
            .and_then(|id| registry.entries.get(&id));
        let by_name = || {
            key.parse::<Name>()
                .ok()
                .and_then(|name| registry.entries.get(registry.names.get(&name)?))
        };
        if let Some(entry) = by_id.or_else(by_name) {
            return Ok(entry.view.borrow().clone());
        }
        let begins: Vec<_> = registry
            .entries
            .iter()
            .filter(|(id, _)| !key.is_empty() && id.to_string().starts_with(key))
            .collect();
        match begins.as_slice() {
            [] => Err(InstanceError::NotFound { key: key.to_owned() }),
            [(_, entry)] => Ok(entry.view.borrow().clone()),
            several => Err(InstanceError::Ambiguous {
                key: key.to_owned(),
                candidates: several
                    .iter()
                    .map(|(id, entry)| format!("{id} ({})", entry.name))
                    .collect(),
            }),
        }
    }

    /// Events from now on. A listener that lags more than a few thousand behind is told so.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<InstanceEvent> {
        self.shared.events.subscribe()
    }

    /// A view that changes; closed when the instance is gone.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn watch(&self, id: WorkloadId) -> Result<watch::Receiver<InstanceView>, InstanceError> {
        self.entry(id).map(|entry| entry.view)
    }

    /// Ids of instances that use an image, by digest.
    #[must_use]
    pub fn users_of(&self, digest: &str) -> Vec<WorkloadId> {
        let registry = self.shared.registry();
        let uses = |entry: &&Entry| entry.view.borrow().image_digest == digest;
        registry
            .entries
            .values()
            .filter(uses)
            .map(|entry| entry.view.borrow().id)
            .collect()
    }

    /// Lets go of every instance without touching it: outstanding steps finish, guests stay as they are.
    pub async fn detach(&self) {
        self.shared.detaching.store(true, Ordering::Release);
        self.shared.leaving.send_replace(true);
        let entries: Vec<Entry> = self.shared.registry().entries.values().cloned().collect();
        for entry in entries {
            drop(entry.inbox.send(Command::Detach).await);
        }
        let mut tasks =
            std::mem::take(&mut *self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }

    /// Where files are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.shared.rooms.layout
    }

    /// The wall clock.
    #[must_use]
    pub fn now(&self) -> WallTime {
        self.shared.rooms.clock.wall()
    }

    /// Random bits, for names.
    #[must_use]
    pub fn seed(&self) -> u64 {
        u64::from_be_bytes(self.shared.rooms.random())
    }

    /// Bytes of host memory that an instance holds: the share of its VMM while there is one, after that
    /// the blocks of its memory on tmpfs or the dirty pages of it on disk. Blocking.
    #[must_use]
    pub fn memory_held(&self, view: &InstanceView) -> Bytes {
        crate::memory::held(&self.shared.rooms.layout.images(), view.id, view.pid)
    }
}
