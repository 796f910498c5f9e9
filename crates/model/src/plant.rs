//! Planted faults: one branch a name, so that the simulation can show that it would notice.
//!
//! Without the cargo feature `plant` the question is a constant `false` and the branches are gone;
//! no release binary is built with it (tidy checks).

/// A fault that the simulation can switch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Plant {
    /// The observer reconnects and goes on without a listing.
    NoResyncAfterReconnect,
    /// A half-open connection does not hold its guest awake.
    SynSentInactive,
    /// An outcome is accepted whatever its attempt.
    StaleAttemptAccepted,
    /// A hold does not delay the sleep.
    HoldIgnored,
    /// A cancel that comes after the commit resumes the old process.
    CancelAfterCommitHonoured,
    /// The durable record is written after the act that it announces.
    RecordAfterEffect,
    /// The snapshot is marked consumed after the guest runs again.
    ConsumedMarkAfterResume,
    /// A process is taken for ours because its pid is.
    AdoptByPidAlone,
    /// A deleted workload's address is given away before its links are gone.
    AddressFreedBeforeRemoval,
    /// A full queue drops an observation without saying so.
    QueueFullDroppedSilently,
    /// Sleep goes ahead while sight is lost.
    BlindNotHolding,
    /// A second knock starts a second wake.
    DoubleWake,
    /// Memory that was not settled on disk is trusted after a reboot.
    UnsettledTrusted,
}

impl Plant {
    /// Every fault.
    pub const ALL: [Self; 13] = [
        Self::NoResyncAfterReconnect,
        Self::SynSentInactive,
        Self::StaleAttemptAccepted,
        Self::HoldIgnored,
        Self::CancelAfterCommitHonoured,
        Self::RecordAfterEffect,
        Self::ConsumedMarkAfterResume,
        Self::AdoptByPidAlone,
        Self::AddressFreedBeforeRemoval,
        Self::QueueFullDroppedSilently,
        Self::BlindNotHolding,
        Self::DoubleWake,
        Self::UnsettledTrusted,
    ];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoResyncAfterReconnect => "no-resync-after-reconnect",
            Self::SynSentInactive => "syn-sent-inactive",
            Self::StaleAttemptAccepted => "stale-attempt-accepted",
            Self::HoldIgnored => "hold-ignored",
            Self::CancelAfterCommitHonoured => "cancel-after-commit-honoured",
            Self::RecordAfterEffect => "record-after-effect",
            Self::ConsumedMarkAfterResume => "consumed-mark-after-resume",
            Self::AdoptByPidAlone => "adopt-by-pid-alone",
            Self::AddressFreedBeforeRemoval => "address-freed-before-removal",
            Self::QueueFullDroppedSilently => "queue-full-dropped-silently",
            Self::BlindNotHolding => "blind-not-holding",
            Self::DoubleWake => "double-wake",
            Self::UnsettledTrusted => "unsettled-trusted",
        }
    }
}

#[cfg(feature = "plant")]
mod switch {
    use super::Plant;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
    }

    /// Switches one fault on for this thread, or all off.
    pub fn plant(fault: Option<Plant>) {
        PLANTED.set(fault);
    }

    /// Whether `fault` is switched on for this thread.
    #[must_use]
    pub fn planted(fault: Plant) -> bool {
        PLANTED.get() == Some(fault)
    }
}

#[cfg(not(feature = "plant"))]
mod switch {
    use super::Plant;

    /// Whether `fault` is switched on: never, in this build.
    #[must_use]
    #[inline(always)]
    pub const fn planted(_fault: Plant) -> bool {
        false
    }
}

pub use switch::*;
