//! The simulated store: records that are durable once their write has ended, writes that may fail
//! without anybody knowing whether they happened.

use std::collections::BTreeMap;

use dormouse_instance::machine::Record;
use dormouse_model::workload::IdleRecord;
use dormouse_model::{Addresses, WorkloadId};

/// One workload's durable record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What was given to it.
    pub addresses: Addresses,
    /// The lifecycle part.
    pub life: Record,
    /// The engine's note.
    pub note: Option<IdleRecord>,
}

/// The disk.
#[derive(Debug, Default)]
pub struct Store {
    /// What would be read after a crash now.
    pub records: BTreeMap<WorkloadId, Stored>,
    /// Writes that failed and that the disk may bring back when the daemon ends before a later one is durable.
    pub limbo: BTreeMap<WorkloadId, Stored>,
}

impl Store {
    /// Replaces the lifecycle part of a record.
    pub fn write(&mut self, id: WorkloadId, addresses: Addresses, life: Record) {
        let stored = self.stored(id, addresses, life);
        self.limbo.remove(&id);
        self.records.insert(id, stored);
    }

    /// A write failed: it is not there to be read, and may be one day.
    pub fn doubtful(&mut self, id: WorkloadId, addresses: Addresses, life: Record) {
        let stored = self.stored(id, addresses, life);
        self.limbo.insert(id, stored);
    }

    /// The daemon has ended: what was in doubt is there or never will be.
    pub fn reopen(&mut self, mut comes_back: impl FnMut() -> bool) {
        for (id, stored) in std::mem::take(&mut self.limbo) {
            if comes_back() {
                self.records.insert(id, stored);
            }
        }
    }

    /// All that a record of `id` may say to the next daemon.
    pub fn possible(&self, id: WorkloadId) -> impl Iterator<Item = &Stored> {
        self.records.get(&id).into_iter().chain(self.limbo.get(&id))
    }

    fn stored(&self, id: WorkloadId, addresses: Addresses, life: Record) -> Stored {
        let note = self.records.get(&id).and_then(|stored| stored.note);
        Stored {
            addresses,
            life,
            note,
        }
    }

    /// Replaces the engine's note, if there is a record to hold it.
    pub fn note(&mut self, id: WorkloadId, note: Option<IdleRecord>) {
        if let Some(stored) = self.records.get_mut(&id) {
            stored.note = note;
        }
    }
}
