//! Records of unknown outcome: a write that the disk refused may have reached it for all that. The name and
//! the addresses of an instance that was refused so are given back once it is certain that no record has
//! them.
//!
//! Until then no other instance is made either, so that there are never more doubts than requests at once.

use std::time::Duration;

use dormouse_model::WorkloadId;
use dormouse_model::error::chain;
use dormouse_store::StoreError;

use super::Shared;
use crate::record::InstanceRecord;

/// How long it is quiet before doubts that nobody waits for are settled.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

impl Shared {
    /// Makes certain that the refused instance `id` has no record, now or later.
    pub(super) async fn doubt(&self, id: WorkloadId) {
        self.registry().doubts.insert(id);
        if let Err(error) = self.settle_doubts().await {
            tracing::error!(instance_id = %id, error = %chain(&error), "a record of unknown outcome");
            self.doubted.notify_one();
        }
    }

    /// Removes the records in doubt, and gives back what their instances held.
    ///
    /// # Errors
    /// The store's, when one cannot be removed; it stays in doubt, and so do those after it.
    pub(super) async fn settle_doubts(&self) -> Result<(), StoreError> {
        let doubts: Vec<WorkloadId> = self.registry().doubts.iter().copied().collect();
        for id in doubts {
            self.rooms.store.delete::<InstanceRecord>(id).await?;
            self.registry().doubts.remove(&id);
            self.forget(id);
        }
        Ok(())
    }

    /// Returns when doubts are to be settled, while there are some. Safe to cancel, which begins the wait anew.
    pub(super) async fn doubts_due(&self) {
        while self.registry().doubts.is_empty() {
            self.doubted.notified().await;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}
