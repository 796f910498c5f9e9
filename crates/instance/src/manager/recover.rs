//! What a daemon finds when it starts: every record compared with the host. Sleepers, of which there may be
//! thousands, are looked at together, each question asked once for all; whatever else there is has a look
//! of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use dormouse_model::error::chain;
use dormouse_model::{Addresses, WorkloadId};
use prost::Message;
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::damaged::Remains;
use super::seat::Seat;
use super::{EVENTS, Holdings, Instances, InstancesTask, NOTICES, Registry, Shared};
use crate::actor::{Actor, Commons, Rested, settings};
use crate::adoption::{Facts, Heard};
use crate::error::InstanceError;
use crate::machine::{BootId, Done, Effect, Input, Machine, Phase, Step};
use crate::record::{InstanceRecord, Remembered};
use crate::recovery;
use crate::rooms::{Layout, Rooms};
use crate::steps::{Parts, has_memory};
use crate::sweep::{self, Owners};

/// Instances that are looked for at a time when a daemon starts: one that does not answer holds up no other.
const LOOKS: usize = 32;

/// Instances whose files one thread looks at before it takes the next.
const INSTANCES_A_LOOK: usize = 128;

/// Marks that have a control group: of these a process may be left. `None` when nobody says, so that nobody
/// is taken to have none.
///
/// What the keeper holds is no such mark. A tap that nobody but the keeper has is found as a device when the
/// links of sleepers are taken over, and what is held for no process is let go of by [`sweep::leftovers`].
fn groups(rooms: &Rooms) -> Option<HashSet<String>> {
    match rooms.cgroups.names() {
        Ok(names) => Some(names.into_iter().collect()),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "control groups not listed");
            None
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
        let (instances, task) = Self::empty(rooms);
        let keys = listing.records.iter().map(|(key, _)| key);
        let owners = Owners::new(keys, !listing.damaged.is_empty());
        // A record that was set aside may name any program.
        let all_known = listing.damaged.is_empty();
        let mut remains = instances.set_aside(listing.damaged).await;
        let groups = groups(&instances.shared.rooms);
        let (mut quiet, mut others, mut parked) = (Bodies::default(), Vec::new(), Vec::new());
        let mut monitors = BTreeSet::new();
        for (key, record) in listing.records {
            if !monitors.contains(&record.monitor) {
                monitors.insert(record.monitor.clone());
            }
            let mut remembered = match Remembered::from_record(record.clone()) {
                Ok(remembered) => remembered,
                Err(error) => {
                    tracing::error!(%key, %error, "an instance's record contradicts itself");
                    remains.extend(Remains::of_record(&key, &record, &error));
                    // Its guest may run: nobody removes the image under it.
                    let digest = record.image_digest.clone();
                    let mut registry = instances.shared.registry();
                    registry.leases.extend(key.workload().map(|id| (id, digest)));
                    continue;
                }
            };
            remembered.view.revision = instances.shared.rooms.first_revision();
            instances.enter(&remembered);
            match &groups {
                Some(left) if may_rest(&remembered) && !left.contains(&remembered.view.id.mark()) => {
                    if sleeps(&remembered) {
                        parked.push((remembered.view.id, remembered.view.addresses));
                    }
                    quiet.push(&remembered);
                }
                Some(_) | None => others.push(remembered),
            }
        }
        instances.bring_back_quiet(quiet, parked).await;
        let turns = Arc::new(Semaphore::new(LOOKS));
        let linking: Vec<_> = (others.into_iter())
            .map(|remembered| instances.bring_back(remembered, &turns))
            .collect();
        for linked in linking {
            // Closed when it is so; nothing is ever sent.
            let _closed = linked.await;
        }
        instances.keep_damaged(remains).await;
        sweep::leftovers(&instances.shared.rooms, &owners).await;
        if all_known {
            // Beside the start: nobody waits for it. A record that changes meanwhile names the own program.
            let rooms = Arc::clone(&instances.shared.rooms);
            instances.shared.spawn(async move {
                if let Err(error) = recovery::sweep_programs(&rooms, monitors).await {
                    tracing::warn!(%error, "programs of monitors not swept");
                }
            });
        }
        Ok((instances, task))
    }

    fn empty(rooms: Arc<Rooms>) -> (Self, InstancesTask) {
        let (notices, receiver) = mpsc::channel(NOTICES);
        let shared = Arc::new(Shared {
            registry: Mutex::new(Registry {
                entries: BTreeMap::new(),
                names: HashMap::new(),
                pool: rooms.pool.clone(),
                uids: BTreeSet::new(),
                holdings: HashMap::new(),
                leases: HashMap::new(),
                damaged: BTreeMap::new(),
                doubts: BTreeSet::new(),
            }),
            rooms,
            events: broadcast::Sender::new(EVENTS),
            notices,
            tasks: Mutex::new(JoinSet::new()),
            commons: Commons::default(),
            doubted: Notify::new(),
            detaching: AtomicBool::new(false),
            leaving: watch::Sender::new(false),
        });
        let task = InstancesTask {
            shared: Arc::clone(&shared),
            notices: receiver,
        };
        (Self { shared }, task)
    }

    /// Takes what the record says that the instance has.
    fn enter(&self, remembered: &Remembered) {
        let (id, addresses) = (remembered.view.id, remembered.view.addresses);
        let mut registry = self.shared.registry();
        // Taken already or of another pool: the instance keeps what its guest has, and the pool
        // gives it to nobody else.
        if let Err(error) = registry.pool.claim(addresses) {
            tracing::error!(instance_id = %id, %error, "recorded addresses");
        }
        let holdings = Holdings {
            addresses: Some(addresses),
            uid: Some(remembered.uid),
        };
        registry.holdings.insert(id, holdings);
        registry.uids.insert(remembered.uid);
        registry.names.insert(remembered.view.spec.name.clone(), id);
    }

    /// Gives a recorded instance its seat, and looks for it on the host in its task. What is returned closes
    /// when its link is known to the data plane; a VMM that does not answer keeps only its own callers waiting.
    fn bring_back(&self, remembered: Remembered, turns: &Arc<Semaphore>) -> oneshot::Receiver<()> {
        let rooms = Arc::clone(&self.shared.rooms);
        let (outlets, inbox) = self.seat(&remembered);
        let (linked, wait) = oneshot::channel::<()>();
        let (turns, mut leaving) = (Arc::clone(turns), self.shared.leaving.subscribe());
        let shared = Arc::downgrade(&self.shared);
        self.shared.spawn(async move {
            // The semaphore is never closed.
            let turn = turns.acquire_owned().await.ok();
            let look = recovery::look(&rooms, &remembered, (linked, turn));
            let found = tokio::select! {
                found = look => found,
                // What its VMM would have said the next daemon asks.
                _ = leaving.wait_for(|leaving| *leaving) => return,
            };
            rooms.enter_promises(&remembered, found.parts.vm.is_some());
            let (machine, effects) = recovered(&rooms, &remembered, &found.facts);
            let mut actor = Actor::new(rooms, machine, remembered, found.parts, outlets, inbox);
            actor.begin(None, effects).await;
            Shared::see_through(&shared, actor).await;
        });
        wait
    }

    /// Brings back those of which no process can be left, a few at a time: the memory that this takes is
    /// used again for the next, and what stays of each lies close together.
    async fn bring_back_quiet(&self, mut quiet: Bodies, parked: Vec<(WorkloadId, Addresses)>) {
        let rooms = &self.shared.rooms;
        if !parked.is_empty() {
            for (id, error) in rooms.network.adopt_parked(parked).await {
                tracing::error!(instance_id = %id, error = %chain(&error), "link not adopted");
            }
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (boot, mut looking) = (rooms.boot(), JoinSet::new());
        loop {
            let part = quiet.next(INSTANCES_A_LOOK, rooms.first_revision());
            if part.is_empty() || looking.len() >= threads {
                let looked: Vec<Looked> = match looking.join_next().await {
                    Some(Ok(looked)) => looked,
                    Some(Err(error)) => {
                        // Named where it happened; its instances are not known to this daemon, and untouched.
                        tracing::error!(%error, "looking at instances' files panicked");
                        Vec::new()
                    }
                    None => return,
                };
                for one in looked {
                    self.lay_down(one);
                }
            }
            if !part.is_empty() {
                let layout = rooms.layout.clone();
                looking.spawn_blocking(move || {
                    part.into_iter()
                        .map(|remembered| Looked::at(&layout, boot, remembered))
                        .collect()
                });
            }
        }
    }

    /// Puts an instance in its place: at rest when all is as its record says, else with a task that sees to
    /// it.
    fn lay_down(&self, looked: Looked) {
        let rooms = &self.shared.rooms;
        let Looked {
            remembered,
            facts,
            tidy,
        } = looked;
        let id = remembered.view.id;
        if facts.resident.is_some() {
            rooms.enter_promises(&remembered, false);
        }
        let (mut machine, mut effects) = recovered(rooms, &remembered, &facts);
        // A sleeper has a link, and one that has stopped has none.
        if tidy && rooms.network.link(id).is_some() == sleeps(&remembered) {
            answer_what_is_so(&mut machine, rooms, &mut effects);
        }
        let quiet = effects
            .iter()
            .all(|effect| matches!(effect, Effect::Publish { .. }))
            && machine.state() == remembered.view.state;
        if !quiet {
            self.revive(machine, remembered, effects);
            return;
        }
        match Rested::new(rooms, &self.shared.commons, machine, remembered) {
            Ok(rested) => {
                self.shared.registry().entries.insert(id, Seat::Resting(rested));
            }
            Err((machine, remembered)) => self.revive(machine, remembered, effects),
        }
    }

    fn revive(&self, machine: Machine, remembered: Remembered, effects: Vec<Effect>) {
        let parts = Parts {
            link: self.shared.rooms.network.link(remembered.view.id),
            ..Parts::default()
        };
        self.launch_task(machine, remembered, parts, None, effects);
    }
}

/// The machine of a record, given what was found, and what it wants done first.
pub(super) fn recovered(rooms: &Rooms, remembered: &Remembered, facts: &Facts) -> (Machine, Vec<Effect>) {
    let mut effects = Vec::new();
    let machine = Machine::recover(
        settings(rooms, remembered),
        remembered.life.clone(),
        facts,
        rooms.clock.now(),
        &mut effects,
    );
    (machine, effects)
}

/// Whether the record is of one that may need nothing. One that is to be removed once it has stopped needs
/// that its state is told.
const fn may_rest(remembered: &Remembered) -> bool {
    match remembered.life.phase {
        Phase::Standby { .. } => true,
        Phase::Stopped => !remembered.view.auto_remove,
        Phase::Starting
        | Phase::Running { .. }
        | Phase::Cold { .. }
        | Phase::Stopping
        | Phase::Failed { .. }
        | Phase::Deleting => false,
    }
}

const fn sleeps(remembered: &Remembered) -> bool {
    matches!(remembered.life.phase, Phase::Standby { .. })
}

/// Reports the steps done whose work is known to be done: no process is left, the link is there or is not
/// to be, and the files are those of the record.
fn answer_what_is_so(machine: &mut Machine, rooms: &Rooms, effects: &mut Vec<Effect>) {
    let is_so = |effect: &Effect| match effect {
        Effect::Run { step, .. } => matches!(
            step,
            Step::LetGo | Step::AttachLink | Step::EndProcess | Step::ReleaseLink | Step::DropMemory
        ),
        Effect::CutShort { .. } | Effect::Publish { .. } | Effect::Ended { .. } | Effect::Gone => false,
    };
    while let Some(at) = effects.iter().position(is_so) {
        if let Effect::Run { number, .. } = effects.remove(at) {
            let done = Done::Plain;
            machine.handle(rooms.clock.now(), Input::StepDone { number, done }, effects);
        }
    }
}

/// What the files say of one that may need nothing.
#[derive(Debug)]
struct Looked {
    remembered: Remembered,
    facts: Facts,
    /// Whether nothing is there that the record does not speak of.
    tidy: bool,
}

impl Looked {
    /// Blocking: a handful of looks at names.
    fn at(layout: &Layout, boot: BootId, remembered: Remembered) -> Self {
        let facts = recovery::facts(layout, &remembered, boot, None, Heard::Answers);
        let id = remembered.view.id;
        let tidy = !layout.sockets(id).exists() && (sleeps(&remembered) || !has_memory(layout, id));
        Self {
            remembered,
            facts,
            tidy,
        }
    }
}

/// Records one after the other in one piece of memory, which goes as a whole: ten thousand that are read
/// and given up in pieces would leave holes between what stays.
#[derive(Debug, Default)]
struct Bodies {
    bytes: Vec<u8>,
    read: usize,
}

impl Bodies {
    fn push(&mut self, remembered: &Remembered) {
        self.bytes
            .extend(remembered.to_record().encode_length_delimited_to_vec());
    }

    /// The next `most`, in order; none at the end.
    fn next(&mut self, most: usize, revision: u64) -> Vec<Remembered> {
        let mut rest = self.bytes.get(self.read..).unwrap_or_default();
        let mut part = Vec::with_capacity(most);
        while part.len() < most && !rest.is_empty() {
            let record =
                InstanceRecord::decode_length_delimited(&mut rest).map_err(|error| error.to_string());
            let read = |record| Remembered::from_record(record).map_err(|error| error.to_string());
            match record.and_then(read) {
                Ok(mut remembered) => {
                    remembered.view.revision = revision;
                    part.push(remembered);
                }
                // It was written a moment ago.
                Err(error) => {
                    tracing::error!(error, "an instance's record is passed over");
                    rest = &[];
                }
            }
        }
        self.read = self.bytes.len() - rest.len();
        part
    }
}
