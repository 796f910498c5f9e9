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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_conntrack::{BARRIER_PATIENCE, ListFilter, Observations, ObserverHandle};
use dormouse_instance::machine::CancelReason;
use dormouse_instance::rooms::{Clock, IdleProof};
use dormouse_instance::view::InstanceView;
use dormouse_instance::{InstanceEvent, Instances};
use dormouse_model::error::chain;
use dormouse_model::workload::{IdleRecord, SleepSupport};
use dormouse_model::{Attempt, MonoTime, SleepEnd, WakeEnd, WallTime, WorkloadId, WorkloadView};
use dormouse_network::{DataPlane, KnockStream, LinkCounters};
use dormouse_standby::{CancelWhy, ConfirmAnswer, Effect, Engine, HoldError, Input, Knock, StatusSnapshot};
use dormouse_store::{Record, RecordKind, Store};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

/// Questions of callers that may wait; they wait when it is full.
const ASKS: usize = 64;

/// How long a listing for one workload's addresses may take.
const LISTING: Duration = Duration::from_secs(5);

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

/// The counters of links when their workloads were last known to be idle, and the barrier. It answers
/// the engine's confirms and the last proof of a sleep.
#[derive(Debug)]
pub struct Watchbook {
    observer: ObserverHandle,
    /// Packets that each guest had received. What it sends, and what was not for it, says nothing.
    noted: Mutex<HashMap<WorkloadId, u64>>,
}

impl Watchbook {
    /// A book with nothing noted.
    #[must_use]
    pub fn new(observer: ObserverHandle) -> Self {
        Self {
            observer,
            noted: Mutex::default(),
        }
    }

    fn noted(&self, id: WorkloadId) -> Option<u64> {
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .copied()
    }

    fn note(&self, id: WorkloadId, counters: LinkCounters) {
        let counters = counters.received_by_guest;
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, counters);
    }

    fn forget(&self, id: WorkloadId) {
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }
}

#[tonic::async_trait]
impl IdleProof for Watchbook {
    async fn nothing_arrived(&self, id: WorkloadId, now: LinkCounters) -> Result<bool, String> {
        self.observer
            .barrier(BARRIER_PATIENCE)
            .await
            .map_err(|error| chain(&error))?;
        // Without a note nobody claimed that it is idle: a caller wanted this sleep.
        Ok(self.noted(id).is_none_or(|noted| noted == now.received_by_guest))
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
        answer: oneshot::Sender<Result<(), HoldError>>,
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

    /// Keeps a workload awake for one idle timeout.
    ///
    /// # Errors
    /// When the engine does not know it or has stopped.
    pub async fn hold(&self, id: WorkloadId) -> Result<(), HoldError> {
        let (answer, wait) = oneshot::channel();
        let stopping = || HoldError::Stopping { id };
        self.asks
            .send(Ask::Hold { id, answer })
            .await
            .map_err(|_| stopping())?;
        wait.await.map_err(|_| stopping())?
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
    };
    (task, EngineHandle { asks: sender })
}

impl EngineTask {
    /// Runs until every handle is gone.
    pub async fn run(mut self) {
        // Subscribed before listed: what changes in between is seen twice, never not at all.
        let mut changes = self.rooms.instances.events();
        self.take_all_instances().await;
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
                    Ok(event) => self.changed(&event).await,
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
        self.knocked_at.entry(id).or_insert(now);
        self.rooms.instances.knock(id);
        self.input(Input::Knocked {
            id,
            knock: Knock::Inbound,
        });
    }

    async fn take_all_instances(&mut self) {
        for view in self.rooms.instances.list() {
            let record = self
                .rooms
                .store
                .get::<IdleNotes>(view.id)
                .await
                .ok()
                .flatten()
                .map(IdleRecord::from);
            self.meet(&view, record);
        }
    }

    async fn changed(&mut self, event: &InstanceEvent) {
        match event {
            InstanceEvent::Deleted(view) => {
                self.rooms.watchbook.forget(view.id);
                self.knocked_at.remove(&view.id);
                self.input(Input::WorkloadGone { id: view.id });
                let (store, id) = (self.rooms.store.clone(), view.id);
                self.running.spawn(async move {
                    drop(store.delete::<IdleNotes>(id).await);
                    Ended::Nothing
                });
            }
            InstanceEvent::Created(view)
            | InstanceEvent::Updated(view)
            | InstanceEvent::StateChanged { now: view, .. } => {
                self.meet(view, None);
            }
        }
    }

    fn meet(&mut self, view: &InstanceView, record: Option<IdleRecord>) {
        let view = WorkloadView {
            id: view.id,
            state: view.state,
            addresses: Some(view.addresses),
            sleep_support: self.rooms.sleep_support,
            policy: view.spec.standby.clone(),
        };
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
            Ended::Slept { id, attempt, end } => self.input(Input::SleepEnded { id, attempt, end }),
            Ended::Woke { id, attempt, end } => {
                self.knocked_at.remove(&id);
                self.input(Input::WakeEnded { id, attempt, end });
            }
            Ended::Recorded { id, attempt, written } => {
                if !written {
                    self.input(Input::RecordFailed { id, attempt });
                }
            }
            Ended::Nothing => {}
        }
    }

    fn answer(&mut self, ask: Ask) {
        let (now, wall) = (self.rooms.clock.now(), self.rooms.clock.wall());
        match ask {
            Ask::Status { id, answer } => drop(answer.send(self.engine.status(id, now, wall))),
            Ask::Hold { id, answer } => {
                let mut effects = Vec::new();
                let held = self.engine.hold(now, wall, id, &mut effects);
                self.perform(effects);
                drop(answer.send(held.map(|_| ())));
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            metrics::counter!("dormouse_standby_effects_total", "effect" => effect.name()).increment(1);
            match effect {
                Effect::RequestResync => self.rooms.observer.resync(),
                Effect::ConfirmIdle { id, attempt } => self.confirm(id, attempt),
                Effect::RequestSleep { id, attempt } => {
                    let instances = self.rooms.instances.clone();
                    self.running.spawn(async move {
                        Ended::Slept {
                            id,
                            attempt,
                            end: instances.engine_sleep(id, attempt).await,
                        }
                    });
                }
                Effect::CancelSleep { id, attempt, why } => {
                    tracing::debug!(instance_id = %id, %attempt, %why, "sleep cancelled");
                    let instances = self.rooms.instances.clone();
                    self.running.spawn(async move {
                        instances.engine_cancel(id, attempt, cancel_reason(why)).await;
                        Ended::Nothing
                    });
                }
                Effect::RequestWake { id, attempt, cause } => {
                    let instances = self.rooms.instances.clone();
                    let at = self
                        .knocked_at
                        .get(&id)
                        .copied()
                        .unwrap_or_else(|| self.rooms.clock.now());
                    self.running.spawn(async move {
                        Ended::Woke {
                            id,
                            attempt,
                            end: instances.engine_wake(id, attempt, cause, at).await,
                        }
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
        let store = self.rooms.store.clone();
        self.running.spawn(async move {
            let written = match record {
                Some(record) => store.put(id, &IdleNotes::from(record)).await,
                None => store.delete::<IdleNotes>(id).await,
            };
            if let Err(error) = &written {
                tracing::warn!(instance_id = %id, error = %chain(error), "idle notes not written");
            }
            Ended::Recorded {
                id,
                attempt,
                written: written.is_ok(),
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

/// The barrier, then the link's counters; if these moved since they were noted, one filtered listing a
/// family.
async fn confirm(
    observer: &ObserverHandle,
    network: &DataPlane,
    book: &Watchbook,
    view: &InstanceView,
) -> Result<ConfirmAnswer, String> {
    observer
        .barrier(BARRIER_PATIENCE)
        .await
        .map_err(|error| chain(&error))?;
    let link = network.link(view.id).ok_or("it has no link")?;
    let counters = link.counters().await.map_err(|error| chain(&error))?;
    if book.noted(view.id) == Some(counters.received_by_guest) {
        return Ok(ConfirmAnswer::Idle);
    }
    let Some(policy) = view.spec.standby.enabled() else {
        return Err("its policy is off".to_owned());
    };
    let mut flows = Vec::new();
    for address in view.addresses.both() {
        let listed = observer
            .list(ListFilter::Responder(address), LISTING)
            .await
            .map_err(|error| chain(&error))?;
        flows.extend(
            listed
                .into_iter()
                .filter(|flow| flow.holds_awake(address, policy)),
        );
    }
    // Read before the listing: what moves the counters from there on is asked for again.
    book.note(view.id, counters);
    Ok(if flows.is_empty() {
        ConfirmAnswer::Idle
    } else {
        ConfirmAnswer::Live { flows }
    })
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
