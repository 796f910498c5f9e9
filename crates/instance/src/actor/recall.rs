//! What an instance's task remembers of the record that its machine writes.

use dormouse_model::Fault;

use super::Actor;
use crate::machine::{Kept, Record};
use crate::memory::Home;
use crate::view::SnapshotView;

impl Actor {
    /// `record` is about to be written.
    pub(super) fn remember(&mut self, record: &Record) {
        self.remembered.life = record.clone();
        self.remembered.view.generation = record.generation;
        let snapshot = SnapshotView::of(&record.phase);
        if snapshot != self.remembered.view.snapshot
            && let Some(SnapshotView::Lost(lost)) = &snapshot
        {
            let labels = [("part", lost.part.as_str()), ("fault", lost.fault.as_str())];
            metrics::counter!(crate::metrics::IMAGES_LOST, &labels).increment(1);
            tracing::error!(instance_id = %self.remembered.view.id, code = lost.code(), %lost, "image lost");
        }
        self.remembered.view.snapshot = snapshot;
        if let Some(image) = record.phase.image() {
            self.remembered.view.memory.home = match image.kept {
                Kept::Resident { .. } => Home::Tmpfs,
                Kept::Spilled { .. } => Home::Disk,
            };
        }
    }

    /// The machine took back what was to be written, or made it untrue.
    pub(super) fn recall(&mut self) {
        self.remembered.life = self.machine.record().clone();
        self.remembered.view.snapshot = SnapshotView::of(&self.remembered.life.phase);
    }
}
