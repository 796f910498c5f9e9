//! The daemon in the simulation: the real machines (observer's sync, engine, lifecycle, adoption,
//! allocator) joined by a shell that stands for the real one. The shell decides nothing; what it has to
//! get right is order, and it keeps the order that the real one promises.

mod deeds;
mod instances;
mod observer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::time::Duration;

use dormouse_conntrack::{SyncConfig, SyncInput, SyncMachine};
use dormouse_instance::adoption::{Facts, Heard, Seen};
use dormouse_instance::machine::{
    Input as LifeInput, Limits, Machine, Phase, Request, Settings, SpillPolicy, Step, Ticket,
};
use dormouse_model::workload::{IdleRecord, SleepSupport};
use dormouse_model::{Addresses, Attempt, Bytes, MonoTime, State, WorkloadId, WorkloadView};
use dormouse_network::AddressPool;
use dormouse_standby::{Config, Engine, Input as EngineInput, Knock};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::breach::Invariant;
use crate::event::DaemonEvent;
use crate::ground::Ground;

/// Deadlines of the lifecycle, short so that much happens in little time.
pub const LIMITS: Limits = Limits {
    step: Duration::from_secs(1),
    write: Duration::from_secs(2),
    prove: Duration::from_secs(1),
    process: Duration::from_secs(3),
    files: Duration::from_secs(3),
    verify: Duration::from_secs(5),
    settle: Duration::from_secs(5),
    ready: Duration::from_secs(10),
    removal_grace: Duration::from_millis(500),
    retry_pause: Duration::from_millis(20),
    retry_pause_max: Duration::from_secs(2),
    tries: 8,
    chore_pause: Duration::from_millis(300),
    chore_pause_max: Duration::from_secs(5),
    chore_tries: 12,
    waiters: 32,
};

/// Most sleeps, and most wakes, at a time.
pub const CAP: usize = 2;

/// How long a confirm may take.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// One thing that waits for its turn inside the shell.
#[derive(Debug)]
enum Work {
    Engine(EngineInput),
    Life(WorkloadId, LifeInput),
    Ask(WorkloadId, Ticket, Request),
    Sync(SyncInput),
}

/// What the observer hands to the engine's task.
#[derive(Debug, Clone, Copy)]
enum Item {
    Observed(dormouse_model::Observation),
    Barrier(Attempt),
}

/// Who waits for a barrier.
#[derive(Debug, Clone, Copy)]
enum BarrierFor {
    Confirm(WorkloadId, Attempt),
    Prove(WorkloadId, Attempt),
}

/// A step that is being done, or waits to be.
#[derive(Debug, Clone)]
struct Deed {
    number: Attempt,
    step: Step,
    deadline: MonoTime,
}

/// The last step that a machine asked for.
#[derive(Debug, Clone, Copy)]
struct LastRun {
    number: Attempt,
    deadline: MonoTime,
    /// It was reported, or is no longer awaited.
    over: bool,
    background: bool,
}

/// One instance in the shell.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) machine: Machine,
    deeds: VecDeque<Deed>,
    /// Whether the first of `deeds` is being done.
    busy: bool,
    aside: Option<Deed>,
    last_run: Option<LastRun>,
    published: Option<State>,
    /// When the engine met it.
    pub(crate) met: MonoTime,
    /// The link's counter when its idle time began.
    idle_passed: Option<u64>,
    /// The link's counter when it was last confirmed idle.
    confirmed_passed: u64,
    /// Whether the sleep under way is the engine's.
    pub(crate) engine_sleep: bool,
    /// Tickets of callers who want their sleep whatever arrives.
    insisting: Vec<Ticket>,
    /// The ticket of the start that creates it.
    creation: Option<Ticket>,
    /// When an exit is on its way to the machine.
    pub(crate) exit_expected: bool,
}

impl Instance {
    const fn new(machine: Machine, met: MonoTime) -> Self {
        Self {
            machine,
            met,
            deeds: VecDeque::new(),
            busy: false,
            aside: None,
            last_run: None,
            published: None,
            idle_passed: None,
            confirmed_passed: 0,
            engine_sleep: false,
            insisting: Vec::new(),
            creation: None,
            exit_expected: false,
        }
    }

    /// Whether anything of it is being done.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy || self.machine.next_deadline().is_some()
    }
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) engine: Engine,
    pub(crate) sync: SyncMachine,
    channel: VecDeque<Item>,
    /// How many observations fit between observer and engine.
    pub channel_capacity: usize,
    /// How much fits into the event socket.
    pub socket_capacity: usize,
    channel_scheduled: bool,
    reader_scheduled: bool,
    pub(crate) instances: BTreeMap<WorkloadId, Instance>,
    pool: AddressPool,
    /// Who has which of its addresses.
    owned: BTreeMap<WorkloadId, Addresses>,
    work: VecDeque<Work>,
    /// Whether the last word to the engine was that sight is whole.
    told_clear: bool,
    /// When the listing began that the engine is being told, and the last one that it was told whole.
    listing_since: Option<MonoTime>,
    pub(crate) listed_since: Option<MonoTime>,
    barriers: BTreeMap<Attempt, BarrierFor>,
    tokens: Attempt,
    tickets: Attempt,
    /// Sleeps and wakes of the engine that have not ended.
    sleeping: BTreeMap<WorkloadId, Attempt>,
    waking: BTreeMap<WorkloadId, Attempt>,
    /// Confirms that have not been answered.
    confirming: BTreeMap<WorkloadId, Attempt>,
    /// Confirms that were answered with idle.
    confirmed: BTreeSet<Attempt>,
    notes: BTreeMap<WorkloadId, (Attempt, Option<IdleRecord>)>,
}

/// How much fits where.
#[derive(Debug, Clone, Copy)]
pub struct Capacities {
    /// Observations between observer and engine.
    pub channel: usize,
    /// Events in the observer's socket.
    pub socket: usize,
}

impl Daemon {
    /// Starts a daemon: everything that the disk knows is recovered, and packets that wait are heard.
    #[must_use]
    pub fn start(
        ground: &mut Ground,
        capacities: Capacities,
        pool: Ipv4Net,
        prefix: Ipv6Net,
    ) -> Option<Self> {
        let cap = NonZeroUsize::new(CAP)?;
        let config = Config {
            max_sleeps: cap,
            max_wakes: cap,
            resync_interval: Duration::from_secs(60),
            settle_delay: Duration::from_millis(200),
            confirm_timeout: CONFIRM_TIMEOUT,
            sleep_timeout: Duration::from_secs(15),
            ..Config::default()
        };
        let sync = SyncConfig {
            listing_deadline: Duration::from_secs(5),
            connect_deadline: Duration::from_secs(1),
            ..SyncConfig::STANDARD
        };
        let mut daemon = Self {
            engine: Engine::new(config),
            sync: SyncMachine::new(sync),
            channel: VecDeque::new(),
            channel_capacity: capacities.channel,
            socket_capacity: capacities.socket,
            channel_scheduled: false,
            reader_scheduled: false,
            instances: BTreeMap::new(),
            pool: AddressPool::new(pool, prefix),
            owned: BTreeMap::new(),
            work: VecDeque::new(),
            told_clear: false,
            listing_since: None,
            listed_since: None,
            barriers: BTreeMap::new(),
            tokens: Attempt(0),
            tickets: Attempt(0),
            sleeping: BTreeMap::new(),
            waking: BTreeMap::new(),
            confirming: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            notes: BTreeMap::new(),
        };
        daemon.recover(ground);
        daemon.hear_parked(ground);
        daemon.settle(ground);
        Some(daemon)
    }

    fn settings(ground: &Ground, id: WorkloadId) -> Settings {
        Settings {
            limits: LIMITS,
            sleep_support: SleepSupport::Able,
            spill: SpillPolicy::Spill,
            on_lost: Ground::on_lost(id),
            boot: ground.host.boot,
        }
    }

    fn recover(&mut self, ground: &mut Ground) {
        let records: Vec<_> = ground
            .store
            .records
            .iter()
            .map(|(id, stored)| (*id, stored.clone()))
            .collect();
        for (id, stored) in records {
            ground.tally.recovered += 1;
            self.owned.insert(id, stored.addresses);
            if let Err(error) = self.pool.claim(stored.addresses) {
                ground.broken(Invariant::AddressesUnique, format!("{id}: {error}"));
            }
            let facts = facts(ground, id, &stored.life.phase);
            ground.note(format_args!("recover {id} {:?} {facts:?}", stored.life.phase));
            let mut effects = Vec::new();
            let machine = Machine::recover(
                Self::settings(ground, id),
                stored.life,
                &facts,
                ground.now,
                &mut effects,
            );
            if machine.process().is_some() {
                ground.tally.adopted += 1;
            }
            self.instances.insert(id, Instance::new(machine, ground.now));
            self.life_effects(ground, id, effects, stored.note);
            self.settle(ground);
            self.watch_readiness(ground, id);
        }
        let missing: Vec<WorkloadId> = ground
            .truths
            .iter()
            .filter(|(id, truth)| {
                truth.acknowledged && !truth.removal_wanted && !ground.store.records.contains_key(id)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in missing {
            ground.broken(
                Invariant::NothingLost,
                format!("{id} was acknowledged and has no record"),
            );
        }
    }

    /// The agent of a guest that boots, or booted while no daemon ran, says ready.
    fn watch_readiness(&self, ground: &mut Ground, id: WorkloadId) {
        let Some(process) = self
            .instances
            .get(&id)
            .and_then(|instance| instance.machine.process())
        else {
            return;
        };
        let wait = ground.random.millis(20, 400);
        ground.tell_after(wait, DaemonEvent::Ready(id, process));
    }

    /// Dumps the parking lot, as a daemon does that starts or was told that knocks were lost.
    fn hear_parked(&mut self, ground: &Ground) {
        for (id, link) in &ground.kernel.links {
            if !link.parked.is_empty() && self.instances.contains_key(id) {
                self.knock(*id, Knock::Inbound);
            }
        }
    }

    fn knock(&mut self, id: WorkloadId, knock: Knock) {
        self.work.push_back(Work::Life(id, LifeInput::Knock));
        self.work
            .push_back(Work::Engine(EngineInput::Knocked { id, knock }));
    }

    /// Takes one event.
    pub fn take(&mut self, ground: &mut Ground, event: DaemonEvent) {
        match event {
            DaemonEvent::Connected(attempt) => self.connected(ground, attempt),
            DaemonEvent::SocketFails => self.work.push_back(Work::Sync(SyncInput::SocketFailed)),
            DaemonEvent::SocketReadable => self.read_socket(ground),
            DaemonEvent::Listing(epoch, after) => self.list(ground, epoch, after),
            DaemonEvent::ChannelReadable => self.read_channel(ground),
            DaemonEvent::Knock(id, knock) => {
                ground.tally.knocks += 1;
                ground.note(format_args!("knock {id} {knock:?}"));
                self.knock(id, knock);
            }
            DaemonEvent::KnocksLost => self.hear_parked(ground),
            DaemonEvent::DeedEnds(id, number) => self.deed_ends(ground, id, number),
            DaemonEvent::AsideEnds(id, number) => self.aside_ends(ground, id, number),
            DaemonEvent::Exited(id, process, how) => {
                if let Some(instance) = self.instances.get_mut(&id) {
                    instance.exit_expected = false;
                }
                self.work
                    .push_back(Work::Life(id, LifeInput::ProcessExited { process, how }));
            }
            DaemonEvent::Ready(id, process) => {
                if let Some(found) = ground.host.find(process) {
                    found.ready = true;
                    self.work
                        .push_back(Work::Life(id, LifeInput::GuestReady { process }));
                }
            }
            DaemonEvent::NoteWritten(id, attempt) => self.note_written(ground, id, attempt),
            DaemonEvent::ConfirmGivenUp(id, attempt) => {
                if self.confirming.get(&id) == Some(&attempt) {
                    let why = "the barrier did not come back".to_owned();
                    self.answer_confirm(
                        ground,
                        id,
                        attempt,
                        dormouse_standby::ConfirmAnswer::Unsure { why },
                    );
                }
            }
        }
        self.settle(ground);
    }

    /// The next time that one of the machines wants to be asked.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        let lives = self
            .instances
            .values()
            .filter_map(|instance| instance.machine.next_deadline());
        lives
            .chain(self.engine.next_deadline())
            .chain(self.sync.next_deadline())
            .min()
    }

    /// Asks every machine whose deadline has come.
    pub fn deadlines(&mut self, ground: &mut Ground) {
        let now = ground.now;
        let due: Vec<WorkloadId> = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.machine.next_deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.work.push_back(Work::Life(id, LifeInput::Deadline));
        }
        if self.sync.next_deadline().is_some_and(|at| at <= now) {
            self.work.push_back(Work::Sync(SyncInput::DeadlineReached));
        }
        if self.engine.next_deadline().is_some_and(|at| at <= now) {
            self.work.push_back(Work::Engine(EngineInput::DeadlineReached));
        }
        self.settle(ground);
    }

    /// Works until nothing waits.
    fn settle(&mut self, ground: &mut Ground) {
        // A bound, because a loop between two machines would otherwise not end.
        for _ in 0..10_000 {
            let Some(work) = self.work.pop_front() else { return };
            match work {
                Work::Engine(input) => self.engine_input(ground, input),
                Work::Life(id, input) => self.life_input(ground, id, input),
                Work::Ask(id, ticket, request) => self.ask(ground, id, ticket, request),
                Work::Sync(input) => self.sync_input(ground, input),
            }
        }
        ground.broken(Invariant::Settles, "the machines keep each other busy".to_owned());
    }

    /// The view that the engine gets.
    fn view(&self, ground: &Ground, id: WorkloadId) -> Option<WorkloadView> {
        let truth = ground.truths.get(&id)?;
        let state = self.instances.get(&id)?.machine.state();
        Some(WorkloadView {
            id,
            state,
            addresses: Some(truth.addresses),
            sleep_support: SleepSupport::Able,
            policy: truth.policy.clone(),
        })
    }

    /// Whether everything that the kernel said has reached the engine.
    pub(crate) fn is_up_to_date(&self, ground: &Ground) -> bool {
        let socket_read = ground
            .kernel
            .socket
            .as_ref()
            .is_some_and(|socket| socket.queue.is_empty() && !socket.overrun);
        let synced = matches!(self.sync.sight(), dormouse_conntrack::Sight::Synced { .. });
        socket_read && synced && self.told_clear && self.channel.is_empty()
    }

    /// The daemon is killed. What its deeds had begun is done or not, as it happens.
    pub fn killed(mut self, ground: &mut Ground) {
        ground.kernel.socket = None;
        let ids: Vec<WorkloadId> = self.instances.keys().copied().collect();
        for id in ids {
            let Some(instance) = self.instances.get_mut(&id) else {
                continue;
            };
            let deed = instance.deeds.pop_front().filter(|_| instance.busy);
            let aside = instance.aside.take();
            for deed in deed.into_iter().chain(aside) {
                if ground.random.chance(500) {
                    ground.note(format_args!("{id} the dying daemon's {} happens", deed.step));
                    let _ = self.apply(ground, id, &deed.step);
                }
            }
        }
        let random = &mut ground.random;
        ground.store.reopen(|| random.chance(500));
        for truth in ground.truths.values_mut() {
            // A hold is durable soon, not at once.
            truth.held_until = None;
        }
    }
}

/// What a starting daemon finds for one record.
fn facts(ground: &Ground, id: WorkloadId, phase: &Phase) -> Facts {
    let start_ticks_at_pid = phase
        .process()
        .and_then(|process| ground.host.processes.get(&process.pid))
        .map(|found| found.start_ticks);
    let memory = ground.host.memory.get(&id);
    let seen = |inode| Seen {
        inode,
        length: Bytes(0),
    };
    let wanted = phase.image().map(|image| image.generation);
    let state = memory
        .and_then(|memory| memory.device_state)
        .filter(|(generation, _)| Some(*generation) == wanted)
        .map(|_| seen(0));
    Facts {
        boot: ground.host.boot,
        start_ticks_at_pid,
        heard: Heard::Answers,
        resident: memory.and_then(|memory| memory.resident).map(seen),
        spilled: memory.and_then(|memory| memory.disk.map(|_| seen(memory.disk_inode))),
        state,
        manifest: state,
        unsure: false,
    }
}
