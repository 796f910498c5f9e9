//! What a daemon finds when it starts: every record compared with the host. Sleepers, of which there may be
//! thousands, are looked at together, each question asked once for all; whatever else there is has a look
//! of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use dormouse_model::WorkloadId;
use dormouse_model::error::chain;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinSet;

use super::seat::Seat;
use super::{EVENTS, Instances, InstancesTask, NOTICES, Registry, Shared};
use crate::actor::Rested;
use crate::adoption::Facts;
use crate::error::InstanceError;
use crate::machine::{Done, Effect, Input, Machine, Phase, Step};
use crate::record::{InstanceRecord, Remembered};
use crate::recovery;
use crate::rooms::Rooms;
use crate::steps::Parts;
use crate::sweep::{self, Owners};

/// Instances that are looked for at a time when a daemon starts: one that does not answer holds up no other.
const LOOKS: usize = 32;

/// Sleepers whose files one thread looks at before it takes the next.
const SLEEPERS_A_LOOK: usize = 1024;

/// What may be left of a process on this host, by name.
#[derive(Debug)]
struct Leftovers {
    /// Marks that have a control group.
    groups: HashSet<String>,
    /// What the keeper holds, by the instance's id.
    held: HashSet<String>,
}

impl Leftovers {
    /// Asks once for all; `None` when one of them does not say, so that nobody is taken to have none.
    async fn find(rooms: &Rooms) -> Option<Self> {
        let groups = match rooms.cgroups.names() {
            Ok(names) => names.into_iter().collect(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "control groups not listed");
                return None;
            }
        };
        let held = match rooms.holder.list().await {
            Ok(entries) => (entries.iter())
                .filter_map(|entry| entry.name.as_str().split_once('/'))
                .map(|(id, _)| id.to_owned())
                .collect(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "what the keeper holds is not listed");
                return None;
            }
        };
        Some(Self { groups, held })
    }

    fn has(&self, id: WorkloadId) -> bool {
        self.groups.contains(&id.mark()) || (!self.held.is_empty() && self.held.contains(&id.to_string()))
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
        let aside = listing.damaged.iter().map(|damage| &damage.key);
        let owners = Owners::new(listing.records.iter().map(|(key, _)| key).chain(aside));
        for damage in listing.damaged {
            tracing::error!(%damage, "an instance's record is set aside");
        }
        let leftovers = Leftovers::find(&instances.shared.rooms).await;
        let (mut sleepers, mut others) = (Vec::new(), Vec::new());
        for (key, record) in listing.records {
            let mut remembered = match Remembered::from_record(record) {
                Ok(remembered) => remembered,
                Err(error) => {
                    tracing::error!(%key, %error, "an instance's record is passed over");
                    continue;
                }
            };
            remembered.view.revision = instances.shared.rooms.first_revision();
            instances.enter(&remembered);
            let sleeps = matches!(remembered.life.phase, Phase::Standby { .. });
            match &leftovers {
                Some(left) if sleeps && !left.has(remembered.view.id) => sleepers.push(remembered),
                Some(_) | None => others.push(remembered),
            }
        }
        instances.bring_back_sleepers(sleepers).await;
        let mut looking = JoinSet::new();
        for remembered in others {
            if looking.len() >= LOOKS {
                looking.join_next().await;
            }
            let instances = instances.clone();
            looking.spawn(async move { instances.bring_back(remembered).await });
        }
        while let Some(looked) = looking.join_next().await {
            if let Err(error) = looked {
                tracing::error!(%error, "looking for an instance panicked");
            }
        }
        sweep::leftovers(&instances.shared.rooms, &owners).await;
        // Beside the start: nobody waits for it.
        let rooms = Arc::clone(&instances.shared.rooms);
        instances.shared.spawn(async move {
            if let Err(error) = recovery::sweep_programs(&rooms).await {
                tracing::warn!(%error, "programs of monitors not swept");
            }
        });
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
                doubts: BTreeSet::new(),
            }),
            rooms,
            events: broadcast::Sender::new(EVENTS),
            notices,
            tasks: Mutex::new(JoinSet::new()),
            doubted: Notify::new(),
            detaching: AtomicBool::new(false),
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
        registry.holdings.insert(id, (addresses, remembered.uid));
        registry.uids.insert(remembered.uid);
    }

    async fn bring_back(&self, remembered: Remembered) {
        let rooms = &self.shared.rooms;
        let found = recovery::look(rooms, &remembered).await;
        rooms.enter_promises(&remembered, found.parts.vm.is_some());
        let (machine, effects) = recovered(rooms, &remembered, &found.facts);
        self.launch_task(machine, remembered, found.parts, None, effects);
    }

    /// Brings back sleepers of which no process can be left.
    async fn bring_back_sleepers(&self, sleepers: Vec<Remembered>) {
        if sleepers.is_empty() {
            return;
        }
        let rooms = &self.shared.rooms;
        let links = sleepers
            .iter()
            .map(|sleeper| (sleeper.view.id, sleeper.view.addresses));
        let adopted = rooms.network.adopt_parked(links.collect());
        let (looked, adopted) = tokio::join!(look_at_files(rooms, sleepers), adopted);
        for (id, error) in adopted {
            tracing::error!(instance_id = %id, error = %chain(&error), "link not adopted");
        }
        for (remembered, facts) in looked {
            self.lay_down(remembered, &facts);
        }
    }

    /// Puts a sleeper in its place: at rest when all of it is there, else with a task that sees to it.
    fn lay_down(&self, remembered: Remembered, facts: &Facts) {
        let rooms = &self.shared.rooms;
        let id = remembered.view.id;
        let link = rooms.network.link(id);
        if facts.resident.is_some() {
            rooms.enter_promises(&remembered, false);
        }
        let (mut machine, mut effects) = recovered(rooms, &remembered, facts);
        if link.is_some() {
            answer_what_is_so(&mut machine, rooms, &mut effects);
        }
        let quiet = effects
            .iter()
            .all(|effect| matches!(effect, Effect::Publish { .. }))
            && machine.state() == remembered.view.state;
        let name = remembered.view.spec.name.clone();
        if quiet {
            match Rested::new(machine, remembered) {
                Ok(rested) => {
                    let mut registry = self.shared.registry();
                    registry.names.insert(name, id);
                    registry.entries.insert(id, Seat::Resting(rested));
                }
                Err((machine, remembered)) => self.revive(machine, remembered, effects),
            }
        } else {
            self.revive(machine, remembered, effects);
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

fn recovered(rooms: &Rooms, remembered: &Remembered, facts: &Facts) -> (Machine, Vec<Effect>) {
    let mut effects = Vec::new();
    let machine = Machine::recover(
        rooms.machine_settings(&remembered.view.memory, remembered.view.spec.on_lost_memory),
        remembered.life.clone(),
        facts,
        rooms.clock.now(),
        &mut effects,
    );
    (machine, effects)
}

/// Reports the steps done whose work is known to be done: no process is left, and the link is there.
fn answer_what_is_so(machine: &mut Machine, rooms: &Rooms, effects: &mut Vec<Effect>) {
    let is_so = |effect: &Effect| match effect {
        Effect::Run { step, .. } => matches!(step, Step::LetGo | Step::AttachLink),
        Effect::CutShort { .. } | Effect::Publish { .. } | Effect::Ended { .. } | Effect::Gone => false,
    };
    while let Some(at) = effects.iter().position(is_so) {
        if let Effect::Run { number, .. } = effects.remove(at) {
            let done = Done::Plain;
            machine.handle(rooms.clock.now(), Input::StepDone { number, done }, effects);
        }
    }
}

/// Looks at the files of all sleepers, a bounded number at a time.
async fn look_at_files(rooms: &Rooms, sleepers: Vec<Remembered>) -> Vec<(Remembered, Facts)> {
    let boot = rooms.boot();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut looking, mut looked) = (JoinSet::new(), Vec::with_capacity(sleepers.len()));
    let mut rest = sleepers.into_iter();
    loop {
        let part: Vec<Remembered> = rest.by_ref().take(SLEEPERS_A_LOOK).collect();
        if part.is_empty() || looking.len() >= threads {
            match looking.join_next().await {
                Some(Ok(found)) => looked.extend::<Vec<_>>(found),
                // Named where it happened; its instances are not known to this daemon, and untouched.
                Some(Err(error)) => tracing::error!(%error, "looking at sleepers' files panicked"),
                None => return looked,
            }
        }
        if !part.is_empty() {
            let layout = rooms.layout.clone();
            looking.spawn_blocking(move || {
                let facts = |sleeper: Remembered| {
                    let facts = recovery::facts(&layout, &sleeper, boot, None);
                    (sleeper, facts)
                };
                part.into_iter().map(facts).collect()
            });
        }
    }
}
