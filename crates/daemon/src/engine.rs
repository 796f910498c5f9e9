//! The shell around the standby engine: one task that owns it, and bounded executors for what it asks.
//!
//! ```text
//!  observer ─────▶┌────────────┐── ConfirmIdle ──▶ barrier, link counters, at need one listing
//!  knocks ───────▶│   engine   │── RequestSleep ─▶ instance manager
//!  instances ────▶│   (pure)   │── RequestWake ──▶ instance manager
//!  callers ──────▶└────────────┘── RecordIdle ───▶ store
//! ```
//!
//! There is no policy here. One rule of order: before an answer to a confirm is handed over, everything
//! that the observer had queued is: the barrier promises no more than that it is in the queue.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dormouse_conntrack::{Observations, ObserverHandle};
use dormouse_instance::machine::CancelReason;
use dormouse_instance::rooms::Clock;
use dormouse_instance::view::InstanceView;
use dormouse_instance::{InstanceEvent, Instances};
use dormouse_model::error::chain;
use dormouse_model::workload::{IdleRecord, SleepSupport};
use dormouse_model::{Attempt, MonoTime, SleepEnd, State, WakeEnd, WallTime, WorkloadId, WorkloadView};
use dormouse_network::{DataPlane, KnockStream};
use dormouse_standby::{CancelWhy, ConfirmAnswer, Effect, Engine, HoldError, Input, Knock, StatusSnapshot};
use dormouse_store::{Key, Record, RecordKind, Store};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

mod notes;
mod watchbook;

use notes::NoteWrites;
pub use watchbook::Watchbook;
use watchbook::confirm;

/// Questions of callers that may wait; they wait when it is full.
const ASKS: usize = 64;

/// The engine's notes on one workload as they are stored.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IdleNotes {
    /// Nanoseconds since 1970; 0 for none.
    #[prost(uint64, tag = "1")]
    pub idle_since: u64,
    /// Likewise.
    #[prost(uint64, tag = "2")]
    pub last_inbound: u64,
    /// Likewise.
    #[prost(uint64, tag = "3")]
    pub hold_until: u64,
}

impl Record for IdleNotes {
    const KIND: RecordKind = RecordKind::Idle;
    const VERSION: u8 = 1;
}

impl From<IdleRecord> for IdleNotes {
    fn from(record: IdleRecord) -> Self {
        let nanos = |time: Option<WallTime>| time.map_or(0, WallTime::unix_nanos);
        Self {
            idle_since: nanos(record.idle_since),
            last_inbound: nanos(record.last_inbound),
            hold_until: nanos(record.hold_until),
        }
    }
}

impl From<IdleNotes> for IdleRecord {
    fn from(notes: IdleNotes) -> Self {
        let time = |nanos| (nanos > 0).then(|| WallTime::from_unix_nanos(nanos));
        Self {
            idle_since: time(notes.idle_since),
            last_inbound: time(notes.last_inbound),
            hold_until: time(notes.hold_until),
        }
    }
}

/// What callers ask the engine.
#[derive(Debug)]
enum Ask {
    Status {
        id: WorkloadId,
        answer: oneshot::Sender<Option<StatusSnapshot>>,
    },
    Hold {
        id: WorkloadId,
        duration: Option<Duration>,
        answer: oneshot::Sender<Result<(), HoldError>>,
    },
    ShutDown {
        done: oneshot::Sender<()>,
    },
}

/// Asks the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    asks: mpsc::Sender<Ask>,
}

impl EngineHandle {
    /// What the engine says of a workload; `None` when it does not know it or has stopped.
    pub async fn status(&self, id: WorkloadId) -> Option<StatusSnapshot> {
        let (answer, wait) = oneshot::channel();
        self.asks.send(Ask::Status { id, answer }).await.ok()?;
        wait.await.ok().flatten()
    }

    /// Keeps a workload awake for `duration`, or for one idle timeout.
    ///
    /// # Errors
    /// When the engine does not know it or has stopped.
    pub async fn hold(&self, id: WorkloadId, duration: Option<Duration>) -> Result<(), HoldError> {
        let (answer, wait) = oneshot::channel();
        let stopping = || HoldError::Stopping { id };
        self.asks
            .send(Ask::Hold { id, duration, answer })
            .await
            .map_err(|_| stopping())?;
        wait.await.map_err(|_| stopping())?
    }

    /// Has it begin nothing more; returns when its notes are written. Sleeps and wakes that were begun go on.
    pub async fn shut_down(&self) {
        let (done, wait) = oneshot::channel();
        // Gone means that it begins nothing more.
        if self.asks.send(Ask::ShutDown { done }).await.is_ok() {
            drop(wait.await);
        }
    }
}

/// How something that the engine asked for ended.
#[derive(Debug)]
enum Ended {
    Confirmed {
        id: WorkloadId,
        attempt: Attempt,
        answer: ConfirmAnswer,
    },
    Slept {
        id: WorkloadId,
        attempt: Attempt,
        end: SleepEnd,
    },
    Woke {
        id: WorkloadId,
        attempt: Attempt,
        end: WakeEnd,
    },
    Recorded {
        id: WorkloadId,
        attempt: Attempt,
        written: bool,
        number: u64,
    },
    Forgotten {
        id: WorkloadId,
        number: u64,
    },
    Nothing,
}

/// What the engine's task works with.
#[derive(Debug)]
pub struct EngineRooms {
    /// The instances.
    pub instances: Instances,
    /// The flows.
    pub observer: ObserverHandle,
    /// What the observer says.
    pub observations: Observations,
    /// What knocks.
    pub knocks: KnockStream,
    /// Links' counters.
    pub network: DataPlane,
    /// Notes.
    pub store: Store,
    /// The proof's notes.
    pub watchbook: Arc<Watchbook>,
    /// The clocks.
    pub clock: Arc<Clock>,
    /// Whether the driver can sleep.
    pub sleep_support: SleepSupport,
}

/// The task.
#[derive(Debug)]
pub struct EngineTask {
    engine: Engine,
    rooms: EngineRooms,
    asks: mpsc::Receiver<Ask>,
    running: JoinSet<Ended>,
    /// When the packet knocked that a wake answers; the wake's figure begins there.
    knocked_at: HashMap<WorkloadId, MonoTime>,
    /// Whom the engine was told of.
    known: BTreeSet<WorkloadId>,
    writes: NoteWrites,
    /// Who waits until all notes are written.
    stopping: Option<oneshot::Sender<()>>,
}

/// The engine's task and the handle to ask it things.
#[must_use]
pub fn engine(config: dormouse_standby::Config, rooms: EngineRooms) -> (EngineTask, EngineHandle) {
    let (sender, asks) = mpsc::channel(ASKS);
    let task = EngineTask {
        engine: Engine::new(config),
        rooms,
        asks,
        running: JoinSet::new(),
        knocked_at: HashMap::new(),
        known: BTreeSet::new(),
        writes: NoteWrites::default(),
        stopping: None,
    };
    (task, EngineHandle { asks: sender })
}

impl EngineTask {
    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        // Subscribed before listed: what changes in between is seen twice, never not at all.
        let mut changes = self.rooms.instances.events();
        self.take_all_instances().await;
        // All that a start looks at once has been freed.
        self.running.spawn_blocking(|| {
            dormouse_sys::memory::give_back_freed();
            Ended::Nothing
        });
        loop {
            let deadline = self.engine.next_deadline();
            tokio::select! {
                biased;
                () = self.rooms.clock.sleep_until(deadline), if deadline.is_some() => {
                    self.input(Input::DeadlineReached);
                }
                knock = self.rooms.knocks.next() => match knock {
                    Some(knock) => self.knocked(knock.workload),
                    None => return,
                },
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => {
                    if let Ok(ended) = ended {
                        self.ended(ended);
                    }
                }
                change = changes.recv() => match change {
                    Ok(event) => self.changed(&event),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "instance events missed; all are read again");
                        self.take_all_instances().await;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                batch = self.rooms.observations.next() => match batch {
                    Some(batch) => self.observed(batch),
                    None => return,
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => return,
                },
            }
            if self.writes.is_empty()
                && let Some(done) = self.stopping.take()
            {
                // Whoever asked may have given up.
                let _ = done.send(());
            }
        }
    }

    fn input(&mut self, input: Input) {
        let (now, wall) = (self.rooms.clock.now(), self.rooms.clock.wall());
        let mut effects = Vec::new();
        self.engine.handle(now, wall, input, &mut effects);
        self.perform(effects);
    }

    fn observed(&mut self, batch: dormouse_conntrack::Batch) {
        let (now, wall) = (self.rooms.clock.now(), self.rooms.clock.wall());
        let mut effects = Vec::new();
        for observation in batch {
            self.engine
                .handle(now, wall, Input::Observed(observation), &mut effects);
        }
        self.perform(effects);
    }

    fn knocked(&mut self, id: WorkloadId) {
        let now = self.rooms.clock.now();
        if self.known.contains(&id) {
            self.knocked_at.entry(id).or_insert(now);
        }
        self.rooms.instances.knock(id);
        self.input(Input::Knocked {
            id,
            knock: Knock::Inbound,
        });
    }

    /// Tells the engine of every instance, and of those that are gone.
    async fn take_all_instances(&mut self) {
        let mut records: HashMap<Key, IdleRecord> = match self.rooms.store.list::<IdleNotes>().await {
            Ok(listing) => (listing.records.into_iter())
                .map(|(key, notes)| (key, IdleRecord::from(notes)))
                .collect(),
            Err(error) => {
                // Countdowns begin anew: nothing sleeps too early for that.
                tracing::warn!(error = %chain(&error), "idle notes not read");
                HashMap::new()
            }
        };
        let present: BTreeSet<WorkloadId> = self.rooms.instances.ids().into_iter().collect();
        let gone: Vec<WorkloadId> = self.known.difference(&present).copied().collect();
        for id in gone {
            self.gone(id);
        }
        for id in present {
            let record = records.remove(&Key::from(id));
            // Gone meanwhile: the event of that is on its way.
            if let Ok(view) = self.rooms.instances.see(id, |view| self.workload(view)) {
                self.meet(view, record);
            }
        }
    }

    fn changed(&mut self, event: &InstanceEvent) {
        match event {
            InstanceEvent::Deleted(view) => self.gone(view.id),
            InstanceEvent::Created(view)
            | InstanceEvent::Updated(view)
            | InstanceEvent::StateChanged { now: view, .. } => {
                if matches!(view.state, State::Standby | State::Stopped | State::Failed) {
                    // The next tap counts from nothing: what this one had counted says nothing of that.
                    self.rooms.watchbook.forget(view.id);
                }
                self.meet(self.workload(view), None);
            }
        }
    }

    fn gone(&mut self, id: WorkloadId) {
        self.known.remove(&id);
        self.knocked_at.remove(&id);
        self.rooms.watchbook.forget(id);
        self.input(Input::WorkloadGone { id });
        let turn = self.writes.turn(id);
        let store = self.rooms.store.clone();
        self.running.spawn(async move {
            let number = turn.number;
            let deletion = async {
                if let Err(error) = store.delete::<IdleNotes>(id).await {
                    tracing::warn!(instance_id = %id, error = %chain(&error), "idle notes are left");
                }
            };
            turn.take(deletion).await;
            Ended::Forgotten { id, number }
        });
    }

    /// What the engine knows of an instance.
    fn workload(&self, view: &InstanceView) -> WorkloadView {
        WorkloadView {
            id: view.id,
            state: view.state,
            addresses: Some(view.addresses),
            sleep_support: self.rooms.sleep_support,
            policy: view.spec.standby.clone(),
        }
    }

    fn meet(&mut self, view: WorkloadView, record: Option<IdleRecord>) {
        self.known.insert(view.id);
        self.input(Input::WorkloadChanged { view, record });
    }

    fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Confirmed { id, attempt, answer } => {
                while let Some(batch) = self.rooms.observations.take() {
                    self.observed(batch);
                }
                self.input(Input::IdleConfirmed { id, attempt, answer });
            }
            Ended::Slept { id, attempt, end } => {
                if end != SleepEnd::Committed {
                    // It runs: what knocked was let through, and no wake answers it.
                    self.knocked_at.remove(&id);
                }
                self.input(Input::SleepEnded { id, attempt, end });
            }
            Ended::Woke { id, attempt, end } => {
                self.knocked_at.remove(&id);
                self.input(Input::WakeEnded { id, attempt, end });
            }
            Ended::Recorded {
                id,
                attempt,
                written,
                number,
            } => {
                self.writes.ended(id, number);
                if !written {
                    self.input(Input::RecordFailed { id, attempt });
                }
            }
            Ended::Forgotten { id, number } => self.writes.ended(id, number),
            Ended::Nothing => {}
        }
    }

    fn answer(&mut self, ask: Ask) {
        let (now, wall) = (self.rooms.clock.now(), self.rooms.clock.wall());
        match ask {
            Ask::Status { id, answer } => drop(answer.send(self.engine.status(id, now, wall))),
            Ask::ShutDown { done } => {
                self.input(Input::Shutdown);
                self.stopping = Some(done);
            }
            Ask::Hold { id, duration, answer } => {
                let mut effects = Vec::new();
                let held = match duration {
                    Some(duration) => self.engine.hold_for(now, wall, id, duration, &mut effects),
                    None => self.engine.hold(now, wall, id, &mut effects),
                };
                self.perform(effects);
                drop(answer.send(held.map(|_| ())));
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            metrics::counter!("dormouse_standby_effects_total", "effect" => effect.name()).increment(1);
            match effect {
                Effect::RequestResync => {
                    self.rooms.observer.resync();
                    // The one thing that comes by itself, and only while something is awake.
                    self.running.spawn_blocking(|| {
                        crate::setup::count_overflows();
                        Ended::Nothing
                    });
                }
                Effect::ConfirmIdle { id, attempt } => self.confirm(id, attempt),
                // What is asked is asked here, in the order of the effects; only the waiting is a task's.
                Effect::RequestSleep { id, attempt } => {
                    let end = self.rooms.instances.engine_sleep(id, attempt);
                    self.running.spawn(async move {
                        let end = end.await;
                        Ended::Slept { id, attempt, end }
                    });
                }
                Effect::CancelSleep { id, attempt, why } => {
                    tracing::debug!(instance_id = %id, %attempt, %why, "sleep cancelled");
                    let told = (self.rooms.instances).engine_cancel(id, attempt, cancel_reason(why));
                    self.running.spawn(async move {
                        told.await;
                        Ended::Nothing
                    });
                }
                Effect::RequestWake { id, attempt, cause } => {
                    let knocked = self.knocked_at.get(&id).copied();
                    let at = knocked.unwrap_or_else(|| self.rooms.clock.now());
                    let end = self.rooms.instances.engine_wake(id, attempt, cause, at);
                    self.running.spawn(async move {
                        let end = end.await;
                        Ended::Woke { id, attempt, end }
                    });
                }
                Effect::RecordIdle { id, attempt, record } => self.record(id, attempt, record),
                Effect::Announce { id, status, reason } => {
                    tracing::debug!(instance_id = %id, %status, %reason, "standby status");
                }
                Effect::AnnounceSight { sight } => tracing::info!(?sight, "sight"),
            }
        }
    }

    /// Writes notes. An idle time that begins is also when the link's counters are noted: what moves
    /// them from here on has to be explained before a sleep.
    fn record(&mut self, id: WorkloadId, attempt: Attempt, record: Option<IdleRecord>) {
        if record.is_some_and(|record| record.idle_since.is_some()) {
            self.note_counters(id);
        }
        let turn = self.writes.turn(id);
        let store = self.rooms.store.clone();
        self.running.spawn(async move {
            let number = turn.number;
            let write = async {
                let written = match record {
                    Some(record) => store.put(id, &IdleNotes::from(record)).await,
                    None => store.delete::<IdleNotes>(id).await,
                };
                if let Err(error) = &written {
                    tracing::warn!(instance_id = %id, error = %chain(error), "idle notes not written");
                }
                written.is_ok()
            };
            let written = turn.take(write).await;
            Ended::Recorded {
                id,
                attempt,
                written,
                number,
            }
        });
    }

    fn confirm(&mut self, id: WorkloadId, attempt: Attempt) {
        let view = self.rooms.instances.view(id);
        let (observer, network, book) = (
            self.rooms.observer.clone(),
            self.rooms.network.clone(),
            Arc::clone(&self.rooms.watchbook),
        );
        self.running.spawn(async move {
            let answer = match view {
                Ok(view) => confirm(&observer, &network, &book, &view)
                    .await
                    .unwrap_or_else(|why| ConfirmAnswer::Unsure { why }),
                Err(error) => ConfirmAnswer::Unsure {
                    why: error.to_string(),
                },
            };
            Ended::Confirmed { id, attempt, answer }
        });
    }

    /// Notes a link's counters where an idle time begins.
    fn note_counters(&mut self, id: WorkloadId) {
        let (network, book) = (self.rooms.network.clone(), Arc::clone(&self.rooms.watchbook));
        self.running.spawn(async move {
            // Without a note the confirm lists the workload's flows, which is slower and as sure.
            let counters = match network.link(id) {
                Some(link) => link.counters().await.ok(),
                None => None,
            };
            match counters {
                Some(counters) => book.note(id, counters),
                None => book.forget(id),
            }
            Ended::Nothing
        });
    }
}

/// The engine's reason to cancel in the lifecycle machine's words.
const fn cancel_reason(why: CancelWhy) -> CancelReason {
    match why {
        CancelWhy::InboundFlow | CancelWhy::Knock | CancelWhy::Reply => CancelReason::Traffic,
        CancelWhy::Hold => CancelReason::Held,
        CancelWhy::Blind => CancelReason::Blind,
        CancelWhy::NotDue | CancelWhy::Overdue => CancelReason::Changed,
    }
}
