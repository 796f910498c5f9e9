//! The order in which notes are written: those of one workload one after the other, so that an older note
//! never overwrites a newer one, whatever runs first of the tasks that write.

use std::collections::HashMap;

use dormouse_model::WorkloadId;
use tokio::sync::oneshot;

/// The last write of each workload that has not ended.
#[derive(Debug, Default)]
pub(super) struct NoteWrites {
    last: HashMap<WorkloadId, (u64, oneshot::Receiver<()>)>,
    number: u64,
}

/// A write's place behind the one before it.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) number: u64,
    before: Option<oneshot::Receiver<()>>,
    ended: oneshot::Sender<()>,
}

impl NoteWrites {
    /// Whether everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// The next place for a write of this workload's notes.
    pub(super) fn turn(&mut self, id: WorkloadId) -> Turn {
        self.number += 1;
        let (ended, wait) = oneshot::channel();
        let before = self.last.insert(id, (self.number, wait));
        Turn {
            number: self.number,
            before: before.map(|(_, before)| before),
            ended,
        }
    }

    /// The write with this number has ended.
    pub(super) fn ended(&mut self, id: WorkloadId, number: u64) {
        if self.last.get(&id).is_some_and(|(last, _)| *last == number) {
            self.last.remove(&id);
        }
    }
}

impl Turn {
    /// Runs `write` when it is its turn.
    pub(super) async fn take<T>(self, write: impl Future<Output = T>) -> T {
        if let Some(before) = self.before {
            // Closed without a word means ended too.
            drop(before.await);
        }
        let done = write.await;
        drop(self.ended);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_note_is_written_after_an_older_one() {
        let mut writes = NoteWrites::default();
        let (one, other) = (WorkloadId::from_bits(1), WorkloadId::from_bits(2));
        let (first, second, foreign) = (writes.turn(one), writes.turn(one), writes.turn(other));
        let numbers = (first.number, second.number, foreign.number);
        let mut late = std::pin::pin!(second.take(async { "second" }));
        tokio::select! {
            biased;
            _ = &mut late => panic!("before the first"),
            done = foreign.take(async { "foreign" }) => assert_eq!(done, "foreign"),
        }
        assert_eq!(first.take(async { "first" }).await, "first");
        assert_eq!(late.await, "second");
        writes.ended(one, numbers.0);
        assert!(!writes.is_empty(), "the newer one counts");
        writes.ended(one, numbers.1);
        writes.ended(other, numbers.2);
        assert!(writes.is_empty());
    }
}
