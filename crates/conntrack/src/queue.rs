//! The queue from the observer to its one consumer: batches of observations, bounded.
//!
//! Policy when full: the observer stops reading, so that the kernel's buffer takes what comes, and looks
//! again as soon as the consumer takes a batch. When the configured patience is over, what waits is
//! dropped and the next thing that the consumer reads is `SightLost { ConsumerSlow }`. A listing only
//! uses the first half of the queue; the other half is for what happens meanwhile.

use std::sync::Arc;

use dormouse_model::Observation;
use tokio::sync::{Notify, mpsc};

/// Observations in the kernel's order; never empty.
pub type Batch = Vec<Observation>;

/// The consumer's end.
#[derive(Debug)]
pub struct Observations {
    batches: mpsc::Receiver<Batch>,
    room: Arc<Notify>,
}

impl Observations {
    /// Waits for the next batch; `None` when the observer has ended and everything was taken. Dropping
    /// the future loses nothing.
    pub async fn next(&mut self) -> Option<Batch> {
        let batch = self.batches.recv().await;
        self.room.notify_one();
        batch
    }

    /// The next batch if there is one now. After a barrier was answered, taking until `None` has taken
    /// everything that happened before the barrier.
    pub fn take(&mut self) -> Option<Batch> {
        let batch = self.batches.try_recv().ok()?;
        self.room.notify_one();
        Some(batch)
    }
}

/// The observer's end.
#[derive(Debug)]
pub(crate) struct Outlet {
    batches: mpsc::Sender<Batch>,
    room: Arc<Notify>,
    batches_max: usize,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is in the queue, or there was nothing to send.
    Queued,
    /// There was no room; the batch is as it was.
    Full,
}

impl Outlet {
    /// Moves what is in `batch` to the queue if there is room. A consumer that is gone takes everything.
    pub(crate) fn send(&self, batch: &mut Batch) -> Sent {
        if batch.is_empty() {
            return Sent::Queued;
        }
        match self.batches.try_reserve() {
            Ok(permit) => {
                permit.send(std::mem::take(batch));
                Sent::Queued
            }
            Err(mpsc::error::TrySendError::Full(())) => Sent::Full,
            Err(mpsc::error::TrySendError::Closed(())) => {
                batch.clear();
                Sent::Queued
            }
        }
    }

    /// Whether a batch would find room.
    pub(crate) fn has_room(&self) -> bool {
        self.batches.capacity() > 0
    }

    /// Whether a listing may use the queue.
    pub(crate) fn has_room_for_listing(&self) -> bool {
        self.batches.capacity() * 2 > self.batches_max
    }

    /// Completes after the consumer took a batch; at once if it did since the last time.
    pub(crate) async fn taken(&self) {
        self.room.notified().await;
    }

    /// Completes when the consumer is gone.
    pub(crate) async fn closed(&self) {
        self.batches.closed().await;
    }
}

/// A queue of at most `batches_max` batches, at least 2.
pub(crate) fn queue(batches_max: usize) -> (Outlet, Observations) {
    let batches_max = batches_max.max(2);
    let (sender, receiver) = mpsc::channel(batches_max);
    let room = Arc::new(Notify::new());
    let outlet = Outlet {
        batches: sender,
        room: Arc::clone(&room),
        batches_max,
    };
    (
        outlet,
        Observations {
            batches: receiver,
            room,
        },
    )
}
