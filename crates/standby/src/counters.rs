//! What the engine counts, for metrics and for tests that ask whether something was noticed.

/// Totals since the engine was made. Only ever read by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Items of the observer's stream.
    pub observations: u64,
    /// Flows that end at an address of no workload: the host's own, and what guests opened.
    pub unknown_destinations: u64,
    /// Times that sight was lost.
    pub sight_losses: u64,
    /// Ends of listings that did not run.
    pub stale_syncs: u64,
    /// Requests for a listing.
    pub resyncs_requested: u64,
    /// Addresses that a workload claimed while another still had them.
    pub address_conflicts: u64,
    /// Knocks, whatever came of them.
    pub knocks: u64,
    /// Knocks at nobody whom the engine knows.
    pub knocks_unknown: u64,
    /// Knocks at a workload, or holds of one, that was on its way back already.
    pub knocks_while_waking: u64,
    /// Knocks at a workload that runs or cannot be woken; the network heals the former.
    pub knocks_ignored: u64,
    /// Confirms asked for.
    pub confirms_requested: u64,
    /// Confirms that found traffic which the events had not brought.
    pub confirms_live: u64,
    /// Confirms that could not tell, or not in time.
    pub confirms_unsure: u64,
    /// Sleeps asked for.
    pub sleeps_requested: u64,
    /// Sleeps taken back before their commit was known.
    pub sleeps_cancelled: u64,
    /// Sleeps that ended in standby.
    pub sleeps_committed: u64,
    /// Sleeps that ended with the workload running because of traffic or a cancel.
    pub sleeps_interrupted: u64,
    /// Sleeps that failed, were refused, or lost their workload.
    pub sleeps_failed: u64,
    /// Wakes asked for.
    pub wakes_requested: u64,
    /// Wakes that ended with the workload running.
    pub wakes_succeeded: u64,
    /// Wakes that failed, were refused, or lost their workload.
    pub wakes_failed: u64,
    /// Workloads given up after as many failed wakes as may be.
    pub wakes_given_up: u64,
    /// Records to write or erase.
    pub records_requested: u64,
    /// Records that failed.
    pub records_failed: u64,
    /// Outcomes of attempts that are over: ignored.
    pub stale_outcomes: u64,
    /// Holds that took effect.
    pub holds: u64,
}

/// The engine at one moment, for gauges. Counted when asked for, in time linear in the workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// All workloads known.
    pub workloads: usize,
    /// With somebody connected.
    pub active: usize,
    /// In countdown.
    pub idle_countdown: usize,
    /// Due, waiting for a slot, or being confirmed.
    pub ready_for_standby: usize,
    /// Unable to sleep by themselves as they are now, switched off, or blind.
    pub ineligible: usize,
    /// On their way to standby.
    pub standby_requested: usize,
    /// Asleep.
    pub asleep: usize,
    /// On their way back.
    pub waking: usize,
    /// Known flows that hold workloads awake.
    pub active_flows: usize,
    /// Slots for sleeps in use, confirms included.
    pub sleeps_in_flight: usize,
    /// Workloads waiting for such a slot.
    pub sleeps_waiting: usize,
    /// Slots for wakes in use.
    pub wakes_in_flight: usize,
    /// Workloads waiting for such a slot.
    pub wakes_waiting: usize,
}
