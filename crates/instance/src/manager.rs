//! The instance manager: finds instances by name and id, makes them, hands requests to their tasks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dormouse_model::{Addresses, Bytes, InstanceSpec, Name, State, WallTime, WorkloadId};
use dormouse_network::AddressPool;
use dormouse_store::Batch;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinSet;

use crate::actor::{Actor, Command, Commons, INBOX, Outlets, Paused, Rested};
use crate::error::InstanceError;
use crate::machine::{Effect, Machine, Removal};
use crate::record::Remembered;
use crate::rooms::{Layout, Rooms};
use crate::steps::Parts;
use crate::view::{InstanceEvent, InstanceView};

mod create;
mod damaged;
mod doubt;
mod preflight;
mod recover;
mod requests;
mod seat;

use seat::{Seat, Task};

/// Events that a slow listener may lag behind; beyond that it is told of a gap.
const EVENTS: usize = 4096;

/// Notices of tasks that may wait for the registry.
const NOTICES: usize = 1024;

/// A checked request for an instance.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// What.
    pub spec: InstanceSpec,
    /// Also start it.
    pub start: bool,
    /// Remove it once it has stopped.
    pub auto_remove: bool,
    /// Its id, of [`Instances::new_id`], where the caller has to name it before it is there.
    pub id: Option<WorkloadId>,
    /// What becomes durable with its record, in one commit: what the caller keeps about the request.
    pub along: Batch,
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
    /// What those at rest have in common.
    commons: Commons,
    /// Rung when there is a doubt more.
    doubted: Notify,
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
    uids: BTreeSet<u32>,
    holdings: HashMap<WorkloadId, Holdings>,
    /// Why, of instances whose records are not to be read.
    damaged: BTreeMap<WorkloadId, String>,
    /// Images of instances that are being made: from before the image is looked at for the last time until
    /// the instance is in `entries`. Who removes an image asks here too.
    leases: HashMap<WorkloadId, String>,
    /// Instances that were refused, and whose records may be on the disk for all that; see [`doubt`].
    doubts: BTreeSet<WorkloadId>,
}

/// What an instance has that nobody else may be given. All of it is known, but of an instance whose record is
/// damaged.
#[derive(Debug, Clone, Copy)]
struct Holdings {
    addresses: Option<Addresses>,
    uid: Option<u32>,
}

type Entry = Seat<Command, InstanceView, Rested>;

impl Entry {
    /// What `look` sees of the instance now; `None` when its task has ended.
    fn see<T>(&self, look: impl FnOnce(&InstanceView) -> T) -> Option<T> {
        match self {
            Seat::Taken(task) => task.view.upgrade().map(|view| look(&view.borrow())),
            Seat::Resting(rested) => rested.see(look),
            Seat::Moving => None,
        }
    }

    /// Its state, at the cost of a look; `None` when its task has ended.
    fn state(&self) -> Option<State> {
        match self {
            Seat::Taken(_) => self.see(|view| view.state),
            Seat::Resting(rested) => Some(rested.state()),
            Seat::Moving => None,
        }
    }
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
        loop {
            let event = tokio::select! {
                event = self.notices.recv() => event,
                () = self.shared.doubts_due() => {
                    let shared = Arc::clone(&self.shared);
                    // Whether it could settle them, the next time tells.
                    self.shared.spawn(async move { drop(shared.settle_doubts().await) });
                    continue;
                }
            };
            let Some(event) = event else { return };
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

    /// The ends of a task that publishes `view`.
    fn outlets(
        &self,
        view: &InstanceView,
    ) -> (Outlets, mpsc::Receiver<Command>, Task<Command, InstanceView>) {
        let (inbox, commands) = mpsc::channel(INBOX);
        let view = Arc::new(watch::Sender::new(view.clone()));
        let task = Task {
            inbox,
            view: Arc::downgrade(&view),
        };
        let outlets = Outlets {
            view,
            notices: self.notices.clone(),
        };
        (outlets, commands, task)
    }

    /// Gives an instance that was at rest a task again. Under the registry's lock.
    #[allow(clippy::boxed_local, reason = "what a seat hands out")]
    fn raise(self: &Arc<Self>, rested: Box<Rested>) -> Task<Command, InstanceView> {
        let Some((actor, task)) = Actor::of_rested(&self.rooms, *rested, |view| self.outlets(view)) else {
            tracing::error!("an instance at rest does not come back before the next start");
            return Task::ended();
        };
        self.occupy(actor, None, Vec::new());
        task
    }

    /// Runs an instance's task.
    fn occupy(self: &Arc<Self>, mut actor: Actor, birth: Option<InstanceEvent>, effects: Vec<Effect>) {
        let shared = Arc::downgrade(self);
        self.spawn(async move {
            actor.begin(birth, effects).await;
            Self::see_through(&shared, actor).await;
        });
    }

    /// Runs a task that has begun until it ends or its seat takes the instance back. The way to the seat is
    /// weak: the task is owned by what it would keep alive.
    async fn see_through(shared: &Weak<Self>, mut actor: Actor) {
        while actor.run().await == Paused::Restful {
            let Some(shared) = shared.upgrade() else { return };
            let mut registry = shared.registry();
            let (inbox, view) = actor.ends();
            let seat = registry.entries.get_mut(&actor.id());
            if seat.is_none_or(|seat| seat.rest(inbox, view, || actor.rested(&shared.commons))) {
                return;
            }
        }
    }

    fn forget(&self, id: WorkloadId) {
        let mut registry = self.registry();
        registry.entries.remove(&id);
        registry.leases.remove(&id);
        registry.damaged.remove(&id);
        registry.names.retain(|_, owner| *owner != id);
        let Some(Holdings { addresses, uid }) = registry.holdings.remove(&id) else {
            return;
        };
        if let Some(uid) = uid {
            registry.uids.remove(&uid);
        }
        if let Some(addresses) = addresses
            && let Err(error) = registry.pool.release(addresses)
        {
            tracing::warn!(instance_id = %id, %error, "addresses given back");
        }
    }
}

impl Instances {
    /// Enters the instance and starts its task; `birth` is told before anything else of it.
    fn launch_task(
        &self,
        machine: Machine,
        remembered: Remembered,
        parts: Parts,
        birth: Option<InstanceEvent>,
        effects: Vec<Effect>,
    ) {
        let (outlets, inbox) = self.seat(&remembered);
        let rooms = Arc::clone(&self.shared.rooms);
        let actor = Actor::new(rooms, machine, remembered, parts, outlets, inbox);
        self.shared.occupy(actor, birth, effects);
    }

    /// Gives the instance a seat with a task, whose ends are returned: what is asked of it waits from now on.
    fn seat(&self, remembered: &Remembered) -> (Outlets, mpsc::Receiver<Command>) {
        let (name, id) = (remembered.view.spec.name.clone(), remembered.view.id);
        let (outlets, inbox, task) = self.shared.outlets(&remembered.view);
        let mut registry = self.shared.registry();
        registry.names.insert(name, id);
        registry.entries.insert(id, Seat::Taken(task));
        registry.leases.remove(&id);
        (outlets, inbox)
    }

    /// Instances in the order of their creation, from the one after `after` on, or from the first. Each is
    /// looked at when it is its turn: one that goes before is left out, and no more than one is in memory.
    pub fn views(&self, after: Option<WorkloadId>) -> impl Iterator<Item = InstanceView> + use<'_> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids: Vec<WorkloadId> = {
            let registry = self.shared.registry();
            let range = registry.entries.range((from, Bound::Unbounded));
            range.map(|(id, _)| *id).collect()
        };
        ids.into_iter().filter_map(|id| self.view(id).ok())
    }

    /// How many instances are in `state`.
    #[must_use]
    pub fn count(&self, state: State) -> usize {
        let registry = self.shared.registry();
        let is_so = |entry: &&Entry| entry.state() == Some(state);
        registry.entries.values().filter(is_so).count()
    }

    /// The ids of all instances, in the order of their creation.
    #[must_use]
    pub fn ids(&self) -> Vec<WorkloadId> {
        self.shared.registry().entries.keys().copied().collect()
    }

    /// The instance with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn view(&self, id: WorkloadId) -> Result<InstanceView, InstanceError> {
        self.see(id, InstanceView::clone)
    }

    /// What `look` sees of the instance with this id; it is looked at under a lock, so briefly.
    ///
    /// # Errors
    /// When there is none.
    pub fn see<T>(&self, id: WorkloadId, look: impl FnOnce(&InstanceView) -> T) -> Result<T, InstanceError> {
        let registry = self.shared.registry();
        let seen = registry.entries.get(&id).and_then(|entry| entry.see(look));
        seen.ok_or_else(|| self.shared.gone(id))
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
        if let Some(view) = by_id
            .or_else(by_name)
            .and_then(|entry| entry.see(InstanceView::clone))
        {
            return Ok(view);
        }
        let begins: Vec<_> = registry
            .entries
            .iter()
            .filter(|(id, _)| !key.is_empty() && id.to_string().starts_with(key))
            .collect();
        match begins.as_slice() {
            [] => Err(InstanceError::NotFound { key: key.to_owned() }),
            [(id, entry)] => entry
                .see(InstanceView::clone)
                .ok_or_else(|| self.shared.gone(**id)),
            several => Err(InstanceError::Ambiguous {
                key: key.to_owned(),
                candidates: several
                    .iter()
                    .filter_map(|(id, entry)| entry.see(|view| format!("{id} ({})", view.spec.name)))
                    .collect(),
            }),
        }
    }

    /// Events from now on. A listener that lags more than a few thousand behind is told so.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<InstanceEvent> {
        self.shared.events.subscribe()
    }

    /// A view that changes; closed when the instance is gone. An instance at rest is given a task for as long
    /// as it is watched.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn watch(&self, id: WorkloadId) -> Result<watch::Receiver<InstanceView>, InstanceError> {
        self.with_seat(id, |seat, raise| seat.watch(raise))
            .flatten()
            .ok_or_else(|| self.shared.gone(id))
    }

    /// Moves a seat under the lock; `None` when there is none, or nothing may move any more.
    fn with_seat<T>(
        &self,
        id: WorkloadId,
        act: impl FnOnce(&mut Entry, &dyn Fn(Box<Rested>) -> Task<Command, InstanceView>) -> T,
    ) -> Option<T> {
        let mut registry = self.shared.registry();
        // Under the lock: whoever detaches has set this before it looks who is there.
        if self.shared.detaching.load(Ordering::Acquire) {
            return None;
        }
        let seat = registry.entries.get_mut(&id)?;
        Some(act(seat, &|rested| self.shared.raise(rested)))
    }

    /// Ids of instances that use an image, by digest; also of those that are being made.
    #[must_use]
    pub fn users_of(&self, digest: &str) -> Vec<WorkloadId> {
        let registry = self.shared.registry();
        let uses = |entry: &Entry| match entry {
            Seat::Taken(_) => entry.see(|view| view.image_digest == digest) == Some(true),
            Seat::Resting(rested) => rested.uses(digest),
            Seat::Moving => false,
        };
        let made = registry.entries.iter().filter(|(_, entry)| uses(entry));
        let leased = registry.leases.iter().filter(|(_, leased)| *leased == digest);
        made.map(|(id, _)| *id).chain(leased.map(|(id, _)| *id)).collect()
    }

    /// Lets go of every instance without touching it: outstanding steps finish, guests stay as they are.
    pub async fn detach(&self) {
        self.shared.detaching.store(true, Ordering::Release);
        self.shared.leaving.send_replace(true);
        // Those at rest have nothing to let go of.
        let inboxes: Vec<_> = (self.shared.registry().entries.values())
            .filter_map(|entry| match entry {
                Seat::Taken(task) => Some(task.inbox.clone()),
                Seat::Resting(_) | Seat::Moving => None,
            })
            .collect();
        for inbox in inboxes {
            drop(inbox.send(Command::Detach).await);
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
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn seed(&self) -> Result<u64, InstanceError> {
        let random = self.shared.rooms.random();
        let bytes = random.map_err(|source| InstanceError::Random { source })?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Bytes of host memory that an instance holds: the share of its VMM while there is one, after that
    /// the blocks of its memory on tmpfs or the dirty pages of it on disk. Blocking.
    #[must_use]
    pub fn memory_held(&self, view: &InstanceView) -> Bytes {
        crate::memory::held(&self.shared.rooms.layout.images(), view.id, view.pid)
    }
}
