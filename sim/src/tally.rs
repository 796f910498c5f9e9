//! What happened in a run, counted: a simulation that never meets a fault proves nothing.

/// Counts of one run, or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events of the world.
    pub events: u64,
    /// Workloads created.
    pub created: u64,
    /// Workloads removed.
    pub removed: u64,
    /// Sleeps that were committed and let go.
    pub sleeps: u64,
    /// Sleeps that were taken back.
    pub interrupted: u64,
    /// Sleeps that failed.
    pub sleeps_failed: u64,
    /// Wakes that ended with a running guest.
    pub wakes: u64,
    /// Wakes that failed and left the sleeper asleep.
    pub wakes_failed: u64,
    /// Spills that became durable.
    pub spills: u64,
    /// Images that were found to be lost.
    pub images_lost: u64,
    /// Workloads that failed.
    pub failed: u64,
    /// Daemons killed.
    pub daemon_kills: u64,
    /// Records that a daemon found at its start.
    pub recovered: u64,
    /// Processes adopted.
    pub adopted: u64,
    /// Processes ended by a fault.
    pub process_crashes: u64,
    /// Reboots of the host.
    pub reboots: u64,
    /// Steps that a fault made fail.
    pub steps_failed: u64,
    /// Steps that a fault made late.
    pub steps_late: u64,
    /// Writes of which nobody knew whether they happened.
    pub writes_unknown: u64,
    /// Overruns of the event socket.
    pub overruns: u64,
    /// Listings that were interrupted or failed.
    pub listings_failed: u64,
    /// Listings completed.
    pub listings: u64,
    /// Times that the engine's queue was full.
    pub queue_full: u64,
    /// Knocks lost on the way.
    pub knocks_lost: u64,
    /// Knocks heard.
    pub knocks: u64,
    /// Packets parked.
    pub parked: u64,
    /// Packets that reached a guest.
    pub delivered: u64,
    /// Packets that nobody took.
    pub refused: u64,
    /// Flows opened.
    pub flows: u64,
    /// Holds granted.
    pub holds: u64,
    /// Outcomes that came too late and were ignored.
    pub late_outcomes: u64,
    /// Steps of the wall clock.
    pub clock_steps: u64,
    /// Times that a disk or the ends of processes failed for longer.
    pub outages: u64,
    /// Images that were discarded because nobody knew of their commit.
    pub discarded: u64,
}

impl Tally {
    /// The counts with their names, in a fixed order.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 34] {
        [
            ("events", self.events),
            ("created", self.created),
            ("removed", self.removed),
            ("sleeps", self.sleeps),
            ("interrupted", self.interrupted),
            ("sleeps_failed", self.sleeps_failed),
            ("wakes", self.wakes),
            ("wakes_failed", self.wakes_failed),
            ("spills", self.spills),
            ("images_lost", self.images_lost),
            ("failed", self.failed),
            ("daemon_kills", self.daemon_kills),
            ("recovered", self.recovered),
            ("adopted", self.adopted),
            ("process_crashes", self.process_crashes),
            ("reboots", self.reboots),
            ("steps_failed", self.steps_failed),
            ("steps_late", self.steps_late),
            ("writes_unknown", self.writes_unknown),
            ("overruns", self.overruns),
            ("listings", self.listings),
            ("listings_failed", self.listings_failed),
            ("queue_full", self.queue_full),
            ("knocks", self.knocks),
            ("knocks_lost", self.knocks_lost),
            ("packets_parked", self.parked),
            ("packets_delivered", self.delivered),
            ("packets_refused", self.refused),
            ("flows", self.flows),
            ("holds", self.holds),
            ("late_outcomes", self.late_outcomes),
            ("clock_steps", self.clock_steps),
            ("outages", self.outages),
            ("discarded", self.discarded),
        ]
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        let Self {
            events,
            created,
            removed,
            sleeps,
            interrupted,
            sleeps_failed,
            wakes,
            wakes_failed,
            spills,
            images_lost,
            failed,
            daemon_kills,
            recovered,
            adopted,
            process_crashes,
            reboots,
            steps_failed,
            steps_late,
            writes_unknown,
            overruns,
            listings_failed,
            listings,
            queue_full,
            knocks_lost,
            knocks,
            parked,
            delivered,
            refused,
            flows,
            holds,
            late_outcomes,
            clock_steps,
            outages,
            discarded,
        } = self;
        for (mine, theirs) in [
            (events, other.events),
            (created, other.created),
            (removed, other.removed),
            (sleeps, other.sleeps),
            (interrupted, other.interrupted),
            (sleeps_failed, other.sleeps_failed),
            (wakes, other.wakes),
            (wakes_failed, other.wakes_failed),
            (spills, other.spills),
            (images_lost, other.images_lost),
            (failed, other.failed),
            (daemon_kills, other.daemon_kills),
            (recovered, other.recovered),
            (adopted, other.adopted),
            (process_crashes, other.process_crashes),
            (reboots, other.reboots),
            (steps_failed, other.steps_failed),
            (steps_late, other.steps_late),
            (writes_unknown, other.writes_unknown),
            (overruns, other.overruns),
            (listings_failed, other.listings_failed),
            (listings, other.listings),
            (queue_full, other.queue_full),
            (knocks_lost, other.knocks_lost),
            (knocks, other.knocks),
            (parked, other.parked),
            (delivered, other.delivered),
            (refused, other.refused),
            (flows, other.flows),
            (holds, other.holds),
            (late_outcomes, other.late_outcomes),
            (clock_steps, other.clock_steps),
            (outages, other.outages),
            (discarded, other.discarded),
        ] {
            *mine += theirs;
        }
    }
}
