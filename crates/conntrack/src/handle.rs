//! The handle: what others may ask the observer.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dormouse_model::{Epoch, Flow};
use dormouse_sys::netns::Namespace;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use crate::barrier::BarrierError;
use crate::forget::forget;
use crate::listing::{ListError, ListFilter, list};
use crate::sync::Sight;

/// How long a barrier is waited for unless the caller knows better. It takes microseconds; under an
/// overrun it takes for ever.
pub const BARRIER_PATIENCE: Duration = Duration::from_millis(100);

/// Listings asked for through the handle at a time: each walks the whole table.
const LISTS_MAX: usize = 1;

#[derive(Debug)]
pub(crate) struct BarrierRequest {
    pub(crate) patience: Duration,
    pub(crate) answer: oneshot::Sender<Result<Epoch, BarrierError>>,
}

/// Asks the observer things; cheap to clone.
#[derive(Debug, Clone)]
pub struct ObserverHandle {
    barriers: mpsc::Sender<BarrierRequest>,
    resync: Arc<Notify>,
    sight: watch::Receiver<Sight>,
    namespace: Option<Arc<Namespace>>,
    lists: Arc<Semaphore>,
}

impl ObserverHandle {
    pub(crate) fn new(
        barriers: mpsc::Sender<BarrierRequest>,
        resync: Arc<Notify>,
        sight: watch::Receiver<Sight>,
        namespace: Option<Arc<Namespace>>,
    ) -> Self {
        Self {
            barriers,
            resync,
            sight,
            namespace,
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
        }
    }

    /// Waits until the observer is level with the kernel: when this returns `Ok`, everything that the
    /// kernel reported before the call is in the consumer's queue, and nothing was missed since the
    /// returned epoch began. A consumer that then empties its queue ([`Observations::take`] until `None`)
    /// knows it all. What a processor is still working on in its packet path is not reported yet; that
    /// gap is closed by shutting the link first.
    ///
    /// Costs one request to the kernel, whatever the size of its table.
    ///
    /// # Errors
    /// See [`BarrierError`]; each means "hold". Retry after a pause.
    ///
    /// [`Observations::take`]: crate::Observations::take
    pub async fn barrier(&self, patience: Duration) -> Result<Epoch, BarrierError> {
        let (answer, wait) = oneshot::channel();
        match self.barriers.try_send(BarrierRequest { patience, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(BarrierError::Busy {
                    waiting: self.barriers.max_capacity(),
                });
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(BarrierError::NotRunning),
        }
        match tokio::time::timeout(patience, wait).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(BarrierError::NotRunning),
            Err(_) => Err(BarrierError::Timeout { waited: patience }),
        }
    }

    /// Asks for a fresh listing, told in-band as a new epoch. Many asks before it begins are one.
    pub fn resync(&self) {
        self.resync.notify_one();
    }

    /// What the observer knows now. For statuses and health; decisions follow the queue.
    #[must_use]
    pub fn sight(&self) -> Sight {
        *self.sight.borrow()
    }

    /// Waits until the observer is in sync and returns the epoch; `None` when it does not run any more.
    /// A listing that fills the queue waits for the consumer, so the consumer must not wait for this.
    pub async fn synced(&self) -> Option<Epoch> {
        let mut sight = self.sight.clone();
        loop {
            if let Sight::Synced { epoch, .. } = *sight.borrow_and_update() {
                return Some(epoch);
            }
            sight.changed().await.ok()?;
        }
    }

    /// Lists flows once, on a thread of its own; see [`list`]. One listing runs at a time, further ones
    /// wait their turn within their patience.
    ///
    /// # Errors
    /// See [`ListError`].
    pub async fn list(&self, filter: ListFilter, patience: Duration) -> Result<Vec<Flow>, ListError> {
        let namespace = self.namespace.clone();
        self.in_turn(patience, move || list(namespace.as_deref(), &filter, patience))
            .await
    }

    /// Drops the entries in which one of `addresses` sends or answers, on a thread of its own; see
    /// [`forget`]. Takes its turn with the listings. The observer sees their ends as any others.
    ///
    /// # Errors
    /// See [`ListError`].
    pub async fn forget(&self, addresses: HashSet<IpAddr>, patience: Duration) -> Result<usize, ListError> {
        let namespace = self.namespace.clone();
        self.in_turn(patience, move || {
            forget(namespace.as_deref(), &addresses, patience)
        })
        .await
    }

    /// Walks the table on a thread of its own; one walk at a time.
    async fn in_turn<T: Send + 'static>(
        &self,
        patience: Duration,
        walk: impl FnOnce() -> Result<T, ListError> + Send + 'static,
    ) -> Result<T, ListError> {
        let work = async {
            let turn = Arc::clone(&self.lists)
                .acquire_owned()
                .await
                .map_err(|_| ListError::GivenUp)?;
            let walked = tokio::task::spawn_blocking(move || {
                // Held until the walk is over even if the caller has left.
                let _turn = turn;
                walk()
            });
            walked.await.map_err(|_| ListError::GivenUp)?
        };
        tokio::time::timeout(patience, work)
            .await
            .unwrap_or(Err(ListError::Timeout { waited: patience }))
    }
}
