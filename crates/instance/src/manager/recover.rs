//! What a daemon finds when it starts: every record compared with the host. Sleepers, of which there may be
//! thousands, are looked at together, each question asked once for all; whatever else there is has a look
//! of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use dormouse_model::error::chain;
use dormouse_model::{Addresses, WorkloadId};
use dormouse_store::{Key, Scan};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::damaged::Remains;
use super::seat::Seat;
use super::{EVENTS, Holdings, Instances, InstancesTask, NOTICES, Registry, Shared};
use crate::actor::{Actor, Commons, Rested, settings};
use crate::adoption::{Facts, Heard};
use crate::error::InstanceError;
use crate::machine::{Done, Effect, Input, Machine, Phase, Step};
use crate::record::{InstanceRecord, RecordError, Remembered};
use crate::recovery;
use crate::rooms::Rooms;
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

/// What a first look at all records brings.
struct Sorted {
    /// Marks that have a control group.
    groups: Option<HashSet<String>>,
    owners: Owners,
    /// Programs that records name.
    monitors: BTreeSet<String>,
    /// Records that contradict themselves, by their numbers.
    contradictory: Vec<(usize, Key, RecordError)>,
    /// Those of which no process can be left, by the number of the record.
    quiet: Vec<usize>,
    /// Who of them sleeps.
    parked: Vec<(WorkloadId, Addresses)>,
    others: Vec<Remembered>,
}

impl Instances {
    /// The manager over `rooms`, with every recorded instance recovered: what runs is adopted, what
    /// sleeps stays asleep, what was half done is finished or undone by its task.
    ///
    /// # Errors
    /// When the records cannot be read at all.
    pub async fn recover(rooms: Arc<Rooms>) -> Result<(Self, InstancesTask), InstanceError> {
        let (instances, task) = Self::empty(rooms);
        let mut sorted = Sorted {
            groups: groups(&instances.shared.rooms),
            owners: Owners::default(),
            monitors: BTreeSet::new(),
            contradictory: Vec::new(),
            quiet: Vec::new(),
            parked: Vec::new(),
            others: Vec::new(),
        };
        let see = |number, key, record| instances.sort(&mut sorted, number, key, record);
        let scanned = instances.shared.rooms.store.scan(see).await;
        let mut scan = scanned.map_err(|source| InstanceError::Store {
            what: "all instances".to_owned(),
            source,
        })?;
        // A record that was set aside may name any program.
        let all_known = scan.damaged.is_empty();
        if !all_known {
            sorted.owners.others();
        }
        let mut remains = instances.set_aside(std::mem::take(&mut scan.damaged)).await;
        for (number, key, error) in sorted.contradictory {
            remains.extend(instances.contradictory(&key, scan.get(number), &error));
        }
        instances
            .bring_back_quiet(scan, sorted.quiet, sorted.parked)
            .await;
        let turns = Arc::new(Semaphore::new(LOOKS));
        let linking: Vec<_> = (sorted.others.into_iter())
            .map(|remembered| instances.bring_back(remembered, &turns))
            .collect();
        for linked in linking {
            // Closed when it is so; nothing is ever sent.
            let _closed = linked.await;
        }
        instances.keep_damaged(remains).await;
        sweep::leftovers(&instances.shared.rooms, &sorted.owners).await;
        if all_known {
            // Beside the start: nobody waits for it. A record that changes meanwhile names the own program.
            let (rooms, monitors) = (Arc::clone(&instances.shared.rooms), sorted.monitors);
            instances.shared.spawn(async move {
                if let Err(error) = recovery::sweep_programs(&rooms, monitors).await {
                    tracing::warn!(%error, "programs of monitors not swept");
                }
            });
        }
        Ok((instances, task))
    }

    /// Keeps the image of an instance whose record cannot be believed, and what the record still tells.
    fn contradictory(
        &self,
        key: &Key,
        record: Option<InstanceRecord>,
        error: &RecordError,
    ) -> Option<Remains> {
        tracing::error!(%key, %error, "an instance's record contradicts itself");
        let record = record?;
        let remains = Remains::of_record(key, &record, error);
        // Its guest may run: nobody removes the image under it.
        let leased = key.workload().map(|id| (id, record.image_digest));
        self.shared.registry().leases.extend(leased);
        remains
    }

    /// Takes what a record says that its instance has, and says what is to be done for it.
    fn sort(&self, sorted: &mut Sorted, number: usize, key: Key, record: InstanceRecord) {
        sorted.owners.enter(&key);
        if !sorted.monitors.contains(&record.monitor) {
            sorted.monitors.insert(record.monitor.clone());
        }
        let mut remembered = match Remembered::from_record(record) {
            Ok(remembered) => remembered,
            Err(error) => return sorted.contradictory.push((number, key, error)),
        };
        remembered.view.revision = self.shared.rooms.first_revision();
        self.enter(&remembered);
        match &sorted.groups {
            Some(left) if may_rest(&remembered) && !left.contains(&remembered.view.id.mark()) => {
                if sleeps(&remembered) {
                    sorted
                        .parked
                        .push((remembered.view.id, remembered.view.addresses));
                }
                sorted.quiet.push(number);
            }
            Some(_) | None => sorted.others.push(remembered),
        }
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

    /// Brings back those of which no process can be left, by the numbers of their records.
    async fn bring_back_quiet(
        &self,
        scan: Scan<InstanceRecord>,
        quiet: Vec<usize>,
        parked: Vec<(WorkloadId, Addresses)>,
    ) {
        if !parked.is_empty() {
            for (id, error) in self.shared.rooms.network.adopt_parked(parked).await {
                tracing::error!(instance_id = %id, error = %chain(&error), "link not adopted");
            }
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (scan, mut looking) = (Arc::new(scan), JoinSet::new());
        let mut parts = quiet.chunks(INSTANCES_A_LOOK);
        loop {
            while looking.len() < threads
                && let Some(part) = parts.next()
            {
                let (shared, scan, part) = (Arc::clone(&self.shared), Arc::clone(&scan), part.to_vec());
                looking.spawn_blocking(move || {
                    part.into_iter()
                        .filter_map(|number| shared.looked_at(scan.get(number)?))
                        .collect::<Vec<_>>()
                });
            }
            match looking.join_next().await {
                Some(Ok(looked)) => looked.into_iter().for_each(|one| self.lay_down(one)),
                // Named where it happened; its instances are not known to this daemon, and untouched.
                Some(Err(error)) => tracing::error!(%error, "looking at instances' files panicked"),
                None => return,
            }
        }
    }

    /// Puts an instance in its place: at rest, or with a task that sees to it.
    fn lay_down(&self, looked: Looked) {
        match looked {
            Looked::Rests(id, rested) => {
                self.shared.registry().entries.insert(id, Seat::Resting(rested));
            }
            Looked::Wants(machine, remembered, effects) => self.revive(*machine, *remembered, effects),
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

/// What one is that may need nothing.
#[derive(Debug)]
enum Looked {
    /// All is as its record says.
    Rests(WorkloadId, Box<Rested>),
    /// Something is to be done.
    Wants(Box<Machine>, Box<Remembered>, Vec<Effect>),
}

impl Shared {
    /// Looks at the instance of a record of which no process can be left. Blocking: a handful of looks at
    /// names. One after the other, so that the memory that this takes is used again for the next, and what
    /// stays of each lies close together. `None` for a record that contradicts itself, which is known by now.
    fn looked_at(&self, record: InstanceRecord) -> Option<Looked> {
        let rooms = &self.rooms;
        let mut remembered = Remembered::from_record(record).ok()?;
        remembered.view.revision = rooms.first_revision();
        let (id, layout) = (remembered.view.id, &rooms.layout);
        let facts = recovery::facts(layout, &remembered, rooms.boot(), None, Heard::Answers);
        if facts.resident.is_some() {
            rooms.enter_promises(&remembered, false);
        }
        // Whether nothing is there that the record does not speak of.
        let tidy = !layout.sockets(id).exists() && (sleeps(&remembered) || !has_memory(layout, id));
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
            return Some(Looked::Wants(Box::new(machine), Box::new(remembered), effects));
        }
        Some(match Rested::new(rooms, &self.commons, machine, remembered) {
            Ok(rested) => Looked::Rests(id, rested),
            Err((machine, remembered)) => Looked::Wants(Box::new(machine), Box::new(remembered), effects),
        })
    }
}
