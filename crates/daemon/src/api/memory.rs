//! What long answers leave behind is given back to the kernel, once they are sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

/// Entries from which an answer is long: hundreds of KiB.
const LONG: usize = 256;

/// When the last of several is taken to be sent. A client that reads more slowly leaves a little more behind.
const SENT_AFTER: Duration = Duration::from_secs(1);

/// Gives memory back. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// At most one waits at a time.
    waiting: Arc<Mutex<JoinSet<()>>>,
    /// Whether an answer was made since that one began to wait.
    again: Arc<AtomicBool>,
}

impl Memory {
    /// An answer of so many entries was made.
    pub(super) fn long_answer(&self, entries: usize) {
        if entries < LONG {
            return;
        }
        self.again.store(true, Ordering::Release);
        // A set of tasks is whole whatever panicked beside it.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.try_join_next().is_some() {}
        if waiting.is_empty() {
            let again = Arc::clone(&self.again);
            waiting.spawn(async move {
                while again.swap(false, Ordering::AcqRel) {
                    tokio::time::sleep(SENT_AFTER).await;
                }
                // A panic in there is logged there.
                drop(tokio::task::spawn_blocking(dormouse_sys::memory::give_back_freed).await);
            });
        }
    }
}
