//! What a link had counted when its workload was last known to be idle: the proof that nothing came since.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dormouse_conntrack::{BARRIER_PATIENCE, ListFilter, ObserverHandle};
use dormouse_instance::rooms::IdleProof;
use dormouse_instance::view::InstanceView;
use dormouse_model::error::chain;
use dormouse_model::{Addresses, WorkloadId};
use dormouse_network::{DataPlane, LinkCounters};
use dormouse_standby::ConfirmAnswer;

/// How long a listing for one workload's addresses may take.
const LISTING: Duration = Duration::from_secs(5);

/// How long dropping a workload's connections may take; a part of a step that has a deadline of its own.
const FORGETTING: Duration = Duration::from_secs(2);

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

    pub(super) fn noted(&self, id: WorkloadId) -> Option<u64> {
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .copied()
    }

    pub(super) fn note(&self, id: WorkloadId, counters: LinkCounters) {
        let counters = counters.received_by_guest;
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, counters);
    }

    pub(super) fn forget(&self, id: WorkloadId) {
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

    async fn forget_flows(&self, addresses: Addresses) -> Result<(), String> {
        let addresses = addresses.both().into_iter().collect();
        let dropped = self.observer.forget(addresses, FORGETTING).await;
        dropped.map(|_| ()).map_err(|error| chain(&error))
    }
}

/// The barrier, then the link's counters; if these moved since they were noted, one filtered listing a
/// family.
pub(super) async fn confirm(
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
