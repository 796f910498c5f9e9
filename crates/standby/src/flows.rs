//! The flows that hold one workload awake, and the count of them as a pure function.

use std::collections::HashMap;
use std::time::Duration;

use dormouse_model::error::{Fault, Kind};
use dormouse_model::{Flow, FlowKey, WorkloadId, WorkloadView};

/// Above this many slots an emptied set gives its memory back: a burst must not be paid for forever.
const KEPT_CAPACITY: usize = 256;

/// The known flows of one workload, each with the number of the last listing that began before it was
/// seen. A finished listing keeps those with its own number: there is no second set to build and swap,
/// and a flow that a listing finds counts at once.
///
/// The hash is the standard keyed one: remote hosts choose the keys.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    seen: HashMap<FlowKey, u32>,
}

impl Flows {
    /// Notes `key` as seen under `listing`. Whether it is new.
    pub(crate) fn see(&mut self, key: FlowKey, listing: u32) -> bool {
        self.seen.insert(key, listing).is_none()
    }

    /// Whether `key` was known; it is not any more.
    pub(crate) fn end(&mut self, key: &FlowKey) -> bool {
        // Most ends that come are of flows that ended before, by their state.
        if self.seen.is_empty() || self.seen.remove(key).is_none() {
            return false;
        }
        self.give_back();
        true
    }

    /// Drops what the listing `listing` did not bring.
    pub(crate) fn keep_listed(&mut self, listing: u32) {
        if !self.seen.is_empty() {
            self.seen.retain(|_, seen| *seen == listing);
            self.give_back();
        }
    }

    pub(crate) fn knows(&self, key: &FlowKey) -> bool {
        self.seen.contains_key(key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.seen.len()
    }

    /// The keys, in no order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &FlowKey> {
        self.seen.keys()
    }

    pub(crate) fn clear(&mut self) {
        self.seen.clear();
        self.give_back();
    }

    fn give_back(&mut self) {
        if self.seen.is_empty() && self.seen.capacity() > KEPT_CAPACITY {
            self.seen = HashMap::new();
        }
    }
}

/// What [`active_inbound_count`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActiveInbound {
    /// Entries that hold the workload awake. Entries are counted, not distinct keys.
    pub count: usize,
    /// The idle timeout of its policy; zero without one.
    pub idle_timeout: Duration,
}

/// Counts the entries of `flows` that hold the workload awake. A pure question about a listing: neither
/// the workload's state nor its ability to sleep plays a part, and without a policy that is switched on
/// nothing counts.
///
/// # Errors
/// When the workload has a policy and no addresses, so that nothing can be told inbound.
pub fn active_inbound_count<'a>(
    view: &WorkloadView,
    flows: impl IntoIterator<Item = &'a Flow>,
) -> Result<ActiveInbound, CountError> {
    let Some(policy) = view.policy.enabled() else {
        return Ok(ActiveInbound::default());
    };
    let addresses = view
        .addresses
        .ok_or(CountError::NoAddresses { id: view.id })?
        .both();
    let holds = |flow: &&Flow| addresses.iter().any(|guest| flow.holds_awake(*guest, policy));
    Ok(ActiveInbound {
        count: flows.into_iter().filter(holds).count(),
        idle_timeout: policy.idle_timeout(),
    })
}

/// Why inbound flows cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// The workload has no network.
    #[error("counting the inbound flows of {id}, which has no addresses")]
    NoAddresses {
        /// Who.
        id: WorkloadId,
    },
}

impl Fault for CountError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoAddresses { .. } => Kind::Unsupported,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoAddresses { .. } => "STANDBY_NO_ADDRESSES",
        }
    }
}
