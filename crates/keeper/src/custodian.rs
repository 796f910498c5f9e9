//! The shell around [`crate::custody`]: holds the descriptors that are to be kept, and carries the machine's
//! effects to whoever keeps them.
//!
//! [`Custodian::hold`] and [`Custodian::release`] note a wish and return: no instance waits for a keeper.
//! The copies that are noted live in this process too, so that a keeper which is lost can be told all of it
//! again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_model::error::chain;
use dormouse_model::{Attempt, MonoTime};
use dormouse_sys::pidfd::PidFd;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

use crate::custody::{Custody, Effect, Input, Status, Trouble};
use crate::error::KeeperError;
use crate::holder::{Holder, LocalHolder};
use crate::shelf::{Held, HeldKind, HeldName, ProcessEnd};

/// Most time for a keeper to be reached, started and ended included.
const REACH_DEADLINE: Duration = Duration::from_secs(10);

/// Keepers lost; see docs/metrics.md.
pub const LOSSES: &str = "dormouse_keeper_losses_total";

/// Where keepers come from.
#[async_trait]
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Reaches the keeper, or makes one. With `replace` one that is there does not answer: it is ended
    /// first.
    ///
    /// # Errors
    /// When there is none and none could be made.
    async fn reach(&self, replace: bool) -> Result<Reached, KeeperError>;
}

/// A keeper that answered.
#[derive(Debug)]
pub struct Reached {
    /// Talks to it.
    pub holder: Arc<dyn Holder>,
    /// Its process, to be told of its end; `None` when that is not known.
    pub process: Option<PidFd>,
}

#[derive(Debug)]
struct Desk {
    machine: Custody,
    /// Effects that nobody has begun yet: one, or one after those of a keeper that was given up meanwhile.
    effects: Vec<Effect>,
    copies: BTreeMap<HeldName, (HeldKind, Arc<Vec<OwnedFd>>)>,
    holder: Option<Arc<dyn Holder>>,
}

#[derive(Debug)]
struct Shared {
    /// Never held across an await.
    desk: Mutex<Desk>,
    changed: Notify,
    reached: watch::Sender<u64>,
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A panic elsewhere leaves wishes and copies that at most differ in one name, which is put right by
        // the next wish for it.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, input: Input) {
        self.tell_with(input, |_| ());
    }

    /// Tells the machine, with the desk changed under the same lock.
    fn tell_with(&self, input: Input, change: impl FnOnce(&mut Desk)) {
        let mut desk = self.desk();
        change(&mut desk);
        let Desk { machine, effects, .. } = &mut *desk;
        let losses = machine.status().losses;
        machine.handle(now(), input, effects);
        let lost = machine.status().losses.saturating_sub(losses);
        if lost > 0 {
            metrics::counter!(LOSSES).increment(lost);
            desk.holder = None;
        }
        drop(desk);
        self.changed.notify_one();
    }
}

fn now() -> MonoTime {
    // The clock exists on every kernel that we run on.
    MonoTime::from_boot(dormouse_sys::clock::since_boot().unwrap_or_default())
}

/// Notes what is to be kept. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Custodian {
    shared: Arc<Shared>,
}

impl Custodian {
    /// A custodian over keepers from `source`, and its task, which the caller runs.
    #[must_use]
    pub fn new(source: Arc<dyn Source>) -> (Self, CustodianTask) {
        let shared = Arc::new(Shared {
            desk: Mutex::new(Desk {
                machine: Custody::new(now()),
                effects: Vec::new(),
                copies: BTreeMap::new(),
                holder: None,
            }),
            changed: Notify::new(),
            reached: watch::Sender::new(0),
        });
        let custodian = Self {
            shared: Arc::clone(&shared),
        };
        (custodian, CustodianTask { shared, source })
    }

    /// One that keeps what it is given in this process only. For tests, and for a daemon whose guests need
    /// not outlive it.
    #[must_use]
    pub fn local() -> (Self, CustodianTask) {
        Self::new(Arc::new(LocalSource(Arc::default())))
    }

    /// Wishes for `descriptor` to be kept under `name`, in place of what was. Returns at once.
    pub fn hold(&self, name: HeldName, kind: HeldKind, descriptor: OwnedFd) {
        self.hold_all(name, kind, vec![descriptor]);
    }

    /// As [`Custodian::hold`], for several descriptors under one name.
    pub fn hold_all(&self, name: HeldName, kind: HeldKind, descriptors: Vec<OwnedFd>) {
        self.shared.tell_with(Input::Want(name.clone()), |desk| {
            desk.copies.insert(name, (kind, Arc::new(descriptors)));
        });
    }

    /// Wishes for nothing to be kept under `name`. Returns at once.
    pub fn release(&self, name: HeldName) {
        self.shared.tell_with(Input::Forget(name.clone()), |desk| {
            desk.copies.remove(&name);
        });
    }

    /// All owners of what an earlier daemon had kept have said what they want: the rest is let go of.
    pub fn settled(&self) {
        self.shared.tell(Input::Settled);
    }

    /// Waits until a keeper was reached for the first time, at most for `limit`; whether one was. A daemon
    /// that waits for none comes to adopt its guests before it can ask what is kept of them.
    pub async fn first_reached(&self, limit: Duration) -> bool {
        let mut reached = self.shared.reached.subscribe();
        let waited = tokio::time::timeout(limit, reached.wait_for(|times| *times > 0)).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// What is kept under `name`; `None` also when no keeper answers now, because no start of a daemon may
    /// hang on one.
    pub async fn get(&self, name: &HeldName) -> Option<Held> {
        let holder = self.answering()?;
        self.noted(name, holder.get(name).await).flatten()
    }

    /// How the process kept under `name` ended; `None` also when no keeper answers now.
    pub async fn process_end(&self, name: &HeldName) -> Option<ProcessEnd> {
        let holder = self.answering()?;
        self.noted(name, holder.process_end(name).await).flatten()
    }

    /// How it stands, for people.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.desk().machine.status()
    }

    fn answering(&self) -> Option<Arc<dyn Holder>> {
        let desk = self.shared.desk();
        desk.holder.clone().filter(|_| desk.machine.answers())
    }

    fn noted<T>(&self, name: &HeldName, asked: Result<T, KeeperError>) -> Option<T> {
        match asked {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::warn!(%name, error = %chain(&error), "the keeper does not say what it keeps");
                if trouble(&error) == Trouble::Silent {
                    self.shared.tell(Input::Silent);
                }
                None
            }
        }
    }
}

/// The part that runs; without it nothing is kept.
#[derive(Debug)]
pub struct CustodianTask {
    shared: Arc<Shared>,
    source: Arc<dyn Source>,
}

impl CustodianTask {
    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut watched: Option<(Attempt, AsyncFd<PidFd>)> = None;
        self.shared.tell(Input::Deadline);
        loop {
            let next = {
                let mut desk = self.shared.desk();
                let first = (!desk.effects.is_empty()).then(|| desk.effects.remove(0));
                first.ok_or_else(|| desk.machine.next_deadline())
            };
            match next {
                Ok(Effect::Reach { attempt, replace }) => {
                    drop(watched.take());
                    watched = self.reach(attempt, replace).await;
                }
                Ok(Effect::Put { attempt, name }) => self.put(attempt, &name).await,
                Ok(Effect::Remove { attempt, name }) => self.remove(attempt, &name).await,
                Err(deadline) => {
                    tokio::select! {
                        () = self.shared.changed.notified() => {}
                        () = sleep_until(deadline) => self.shared.tell(Input::Deadline),
                        attempt = ended(watched.as_ref()) => {
                            watched = None;
                            self.shared.tell(Input::Ended { attempt });
                        }
                    }
                }
            }
        }
    }

    /// Reaches a keeper and asks what it has; gives its process to be watched.
    async fn reach(&self, attempt: Attempt, replace: bool) -> Option<(Attempt, AsyncFd<PidFd>)> {
        let work = async {
            let reached = self.source.reach(replace).await?;
            let names = reached.holder.list().await?;
            Ok::<_, KeeperError>((reached, names))
        };
        match tokio::time::timeout(REACH_DEADLINE, work).await {
            Ok(Ok((reached, entries))) => {
                let names = entries.into_iter().map(|entry| entry.name).collect();
                let holder = reached.holder;
                self.shared.tell_with(Input::Reached { attempt, names }, |desk| {
                    desk.holder = Some(holder);
                });
                self.shared.reached.send_modify(|times| *times += 1);
                let watch = register(reached.process?).ok()?;
                return Some((attempt, watch));
            }
            Ok(Err(error)) => {
                tracing::error!(attempt = attempt.0, error = %chain(&error), "no keeper");
            }
            Err(_) => tracing::error!(attempt = attempt.0, "no keeper within {REACH_DEADLINE:?}"),
        }
        self.shared.tell(Input::NotReached { attempt });
        None
    }

    async fn put(&self, attempt: Attempt, name: &HeldName) {
        let (holder, copies) = {
            let desk = self.shared.desk();
            (desk.holder.clone(), desk.copies.get(name).cloned())
        };
        let outcome = match (holder, copies) {
            (Some(holder), Some((kind, descriptors))) => {
                let copies: io::Result<Vec<OwnedFd>> = descriptors
                    .iter()
                    .map(|one| one.as_fd().try_clone_to_owned())
                    .collect();
                match copies {
                    Ok(copies) => holder.put(name, kind, copies).await,
                    Err(source) => Err(KeeperError::Unreadable {
                        name: name.to_string(),
                        source,
                    }),
                }
            }
            // Given up meanwhile: the machine knows, and this outcome is late or overtaken.
            (_, None) | (None, _) => Ok(()),
        };
        self.told(attempt, name, outcome);
    }

    async fn remove(&self, attempt: Attempt, name: &HeldName) {
        let holder = self.shared.desk().holder.clone();
        let outcome = match holder {
            Some(holder) => holder.remove(name).await.map(drop),
            None => Ok(()),
        };
        self.told(attempt, name, outcome);
    }

    fn told(&self, attempt: Attempt, name: &HeldName, outcome: Result<(), KeeperError>) {
        let input = match outcome {
            Ok(()) => Input::Done { attempt },
            Err(error) => {
                let trouble = trouble(&error);
                tracing::warn!(%name, attempt = attempt.0, ?trouble, error = %chain(&error), "not kept");
                Input::Failed { attempt, trouble }
            }
        };
        self.shared.tell(input);
    }
}

/// Registers a pidfd with the runtime, which unregisters it before it closes: a `PidFd` has one descriptor for
/// its whole life.
#[allow(deprecated, reason = "the successor needs unsafe, which this crate forbids")]
fn register(process: PidFd) -> io::Result<AsyncFd<PidFd>> {
    AsyncFd::new(process)
}

/// What an error says about the keeper.
fn trouble(error: &KeeperError) -> Trouble {
    match error {
        KeeperError::Absent { .. }
        | KeeperError::Broken { .. }
        | KeeperError::Garbled { .. }
        | KeeperError::Listen { .. }
        | KeeperError::Taken { .. } => Trouble::Lost,
        KeeperError::Slow { .. } => Trouble::Silent,
        KeeperError::NameUnusable { .. }
        | KeeperError::CountUnusable { .. }
        | KeeperError::Full
        | KeeperError::NotProcess { .. }
        | KeeperError::Unreadable { .. }
        | KeeperError::Refused { .. } => Trouble::Refused,
    }
}

async fn sleep_until(deadline: Option<MonoTime>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(now())).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the process has ended, with the attempt that had reached it; never for none.
async fn ended(watched: Option<&(Attempt, AsyncFd<PidFd>)>) -> Attempt {
    let Some((attempt, process)) = watched else {
        return std::future::pending().await;
    };
    // An error of the poll says as much as the end: it is looked for again.
    let _ready = process.readable().await;
    // Reaps it when it was our child.
    match process.get_ref().exit() {
        Ok(how) => tracing::warn!(?how, "the keeper ended"),
        Err(error) => tracing::warn!(%error, "the keeper cannot be watched"),
    }
    *attempt
}

#[derive(Debug)]
struct LocalSource(Arc<LocalHolder>);

#[async_trait]
impl Source for LocalSource {
    async fn reach(&self, _replace: bool) -> Result<Reached, KeeperError> {
        let holder: Arc<dyn Holder> = Arc::clone(&self.0) as Arc<dyn Holder>;
        Ok(Reached {
            holder,
            process: None,
        })
    }
}
