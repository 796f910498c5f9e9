//! The observer's metrics: names, labels, help. The handles are made once, so that an event costs one
//! atomic addition.

use std::time::Duration;

use dormouse_model::SightLoss;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::barrier::BarrierError;
use crate::sync::Delta;

const EVENTS: &str = "dormouse_observer_events_total";
const SIGHT_LOST: &str = "dormouse_observer_sight_lost_total";
const SYNCED: &str = "dormouse_observer_synced";
const BLIND: &str = "dormouse_observer_blind_seconds";
const LISTINGS: &str = "dormouse_observer_listings_total";
const LISTING_SECONDS: &str = "dormouse_observer_listing_seconds";
const LISTED: &str = "dormouse_observer_listed_flows_total";
const BARRIERS: &str = "dormouse_observer_barriers_total";
const BARRIER_SECONDS: &str = "dormouse_observer_barrier_seconds";
const FOREIGN: &str = "dormouse_observer_foreign_messages_total";
const QUEUE_BLOCKED: &str = "dormouse_observer_queue_blocked_total";
const RECEIVE_BUFFER: &str = "dormouse_observer_receive_buffer_bytes";

/// How a listing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListingEnd {
    Complete,
    Interrupted,
    Failed,
    Stopped,
}

impl ListingEnd {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// The handles.
pub(crate) struct Metrics {
    opened: Counter,
    changed: Counter,
    closed: Counter,
    synced: Gauge,
    blind: Gauge,
    listing_seconds: Histogram,
    listed: Counter,
    barrier_seconds: Histogram,
    pub(crate) foreign: Counter,
    pub(crate) queue_blocked: Counter,
    receive_buffer: Gauge,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        describe_counter!(EVENTS, "Events of the kernel's connection tracking, by kind.");
        describe_counter!(
            SIGHT_LOST,
            "Times that the observer may have missed something, by reason."
        );
        describe_gauge!(SYNCED, "1 while the observer knows the whole table, else 0.");
        describe_gauge!(
            BLIND,
            "Seconds, summed up, in which something may have been missed."
        );
        describe_counter!(LISTINGS, "Listings of the kernel's table, by how they ended.");
        describe_histogram!(LISTING_SECONDS, "Duration of complete listings.");
        describe_counter!(LISTED, "Flows that listings brought.");
        describe_counter!(BARRIERS, "Barriers asked for, by how they ended.");
        describe_histogram!(BARRIER_SECONDS, "Time from asking for a barrier to its answer.");
        describe_counter!(
            FOREIGN,
            "Messages on the event socket that did not come from the kernel."
        );
        describe_counter!(QUEUE_BLOCKED, "Times that the queue to the consumer was full.");
        describe_gauge!(
            RECEIVE_BUFFER,
            "Size of the event socket's buffer as the kernel accounts it."
        );
        Self {
            opened: counter!(EVENTS, "event" => "opened"),
            changed: counter!(EVENTS, "event" => "changed"),
            closed: counter!(EVENTS, "event" => "closed"),
            synced: gauge!(SYNCED),
            blind: gauge!(BLIND),
            listing_seconds: histogram!(LISTING_SECONDS),
            listed: counter!(LISTED),
            barrier_seconds: histogram!(BARRIER_SECONDS),
            foreign: counter!(FOREIGN),
            queue_blocked: counter!(QUEUE_BLOCKED),
            receive_buffer: gauge!(RECEIVE_BUFFER),
        }
    }

    pub(crate) fn event(&self, delta: &Delta) {
        match delta {
            Delta::Opened(_) => self.opened.increment(1),
            Delta::Changed(_) => self.changed.increment(1),
            Delta::Closed(_) => self.closed.increment(1),
        }
    }

    #[allow(clippy::unused_self, reason = "one place for all metrics")]
    pub(crate) fn sight_lost(&self, reason: SightLoss) {
        counter!(SIGHT_LOST, "reason" => reason.as_str()).increment(1);
    }

    /// Called when sight changes: whether it is whole now, and how long the blindness before it was.
    pub(crate) fn sight(&self, synced: bool, blind_for: Duration) {
        self.synced.set(f64::from(u8::from(synced)));
        self.blind.increment(blind_for.as_secs_f64());
    }

    pub(crate) fn listing(&self, end: ListingEnd, took: Duration) {
        counter!(LISTINGS, "outcome" => end.as_str()).increment(1);
        if end == ListingEnd::Complete {
            self.listing_seconds.record(took);
        }
    }

    pub(crate) fn listed(&self, flows: usize) {
        self.listed.increment(flows as u64);
    }

    pub(crate) fn barrier(&self, error: Option<&BarrierError>, took: Duration) {
        let outcome = match error {
            None => "answered",
            Some(BarrierError::Blind { .. }) => "blind",
            Some(BarrierError::Timeout { .. }) => "timeout",
            Some(BarrierError::Busy { .. }) => "busy",
            Some(BarrierError::NotRunning) => "not_running",
        };
        counter!(BARRIERS, "outcome" => outcome).increment(1);
        if error.is_none() {
            self.barrier_seconds.record(took);
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a buffer is far below 2^52 bytes")]
    pub(crate) fn receive_buffer(&self, bytes: usize) {
        self.receive_buffer.set(bytes as f64);
    }
}
