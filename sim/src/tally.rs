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

    /// The same counts, in the same order.
    fn counts(&mut self) -> [&mut u64; 34] {
        [
            &mut self.events,
            &mut self.created,
            &mut self.removed,
            &mut self.sleeps,
            &mut self.interrupted,
            &mut self.sleeps_failed,
            &mut self.wakes,
            &mut self.wakes_failed,
            &mut self.spills,
            &mut self.images_lost,
            &mut self.failed,
            &mut self.daemon_kills,
            &mut self.recovered,
            &mut self.adopted,
            &mut self.process_crashes,
            &mut self.reboots,
            &mut self.steps_failed,
            &mut self.steps_late,
            &mut self.writes_unknown,
            &mut self.overruns,
            &mut self.listings,
            &mut self.listings_failed,
            &mut self.queue_full,
            &mut self.knocks,
            &mut self.knocks_lost,
            &mut self.parked,
            &mut self.delivered,
            &mut self.refused,
            &mut self.flows,
            &mut self.holds,
            &mut self.late_outcomes,
            &mut self.clock_steps,
            &mut self.outages,
            &mut self.discarded,
        ]
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        for (mine, (_, theirs)) in self.counts().into_iter().zip(other.named()) {
            *mine += theirs;
        }
    }
}
