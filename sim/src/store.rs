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
}

impl Store {
    /// Replaces the lifecycle part of a record.
    pub fn write(&mut self, id: WorkloadId, addresses: Addresses, life: Record) {
        let note = self.records.get(&id).and_then(|stored| stored.note);
        self.records.insert(
            id,
            Stored {
                addresses,
                life,
                note,
            },
        );
    }

    /// Replaces the engine's note, if there is a record to hold it.
    pub fn note(&mut self, id: WorkloadId, note: Option<IdleRecord>) {
        if let Some(stored) = self.records.get_mut(&id) {
            stored.note = note;
        }
    }
}
