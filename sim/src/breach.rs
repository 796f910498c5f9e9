//! The invariants, and how a run says that one was broken.

use std::fmt;

/// What must hold, whatever happens. Judged from the world's own truth, not from what the machines
/// believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    /// The engine's sleep commits only when no live inbound flow was in the kernel's table when the
    /// proof began.
    NoFalseSleep,
    /// No sleep is asked for, or committed, by an engine that was told that sight is lost.
    BlindHolds,
    /// What the engine was told and what the kernel knows agree once everything was told.
    SightIsTrue,
    /// A caller's hold delays the engine's sleep.
    HoldRespected,
    /// A sleep that a caller wants runs to its commit whatever arrives.
    CallersSleepRuns,
    /// A workload has at most one process.
    NeverTwoProcesses,
    /// A workload that is published as running has its process, running.
    NeverNoProcess,
    /// A memory image is not loaded after its guest ran again.
    ImageLoadedOnce,
    /// A sleeper whose record was durable keeps its image, until its end is wanted or the image is lost.
    CommittedKept,
    /// Nothing of an image is loaded that was not compared with what was saved since the host booted.
    NothingUntrusted,
    /// A guest runs only when the durable record says that this process is the workload.
    RecordsFirst,
    /// No packet for a workload is lost while it may come back.
    NoPacketLost,
    /// A parked packet wakes its sleeper within a bounded time.
    KnocksAreHeard,
    /// One attempt, and one step, of a workload at a time.
    OneOutstanding,
    /// The engine's caps hold.
    CapsHold,
    /// No address belongs to two workloads.
    AddressesUnique,
    /// Nothing fails without a fault that explains it; no acknowledged workload disappears.
    NothingLost,
    /// Published states follow the table.
    StatesFollowTable,
    /// A status names one reason that fits it.
    StatusExplains,
    /// An idle workload goes to sleep within a bounded time.
    IdleSleeps,
    /// What is wanted is done within a bounded time, and nothing is left over.
    Settles,
}

impl Invariant {
    /// The name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoFalseSleep => "no false sleep",
            Self::BlindHolds => "blind holds",
            Self::SightIsTrue => "sight is true",
            Self::HoldRespected => "hold respected",
            Self::CallersSleepRuns => "callers' sleep runs",
            Self::NeverTwoProcesses => "never two processes",
            Self::CommittedKept => "committed is kept",
            Self::NothingUntrusted => "nothing untrusted",
            Self::NeverNoProcess => "never no process",
            Self::ImageLoadedOnce => "image loaded once",
            Self::RecordsFirst => "records first",
            Self::NoPacketLost => "no packet lost",
            Self::KnocksAreHeard => "knocks are heard",
            Self::OneOutstanding => "one outstanding",
            Self::CapsHold => "caps hold",
            Self::AddressesUnique => "addresses unique",
            Self::NothingLost => "nothing lost",
            Self::StatesFollowTable => "states follow table",
            Self::StatusExplains => "status explains",
            Self::IdleSleeps => "idle sleeps",
            Self::Settles => "settles",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Which.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
    /// After how many events.
    pub event: u64,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (event {}): {}", self.invariant, self.event, self.what)
    }
}
