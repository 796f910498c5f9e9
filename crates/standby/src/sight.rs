//! Whether the engine can see: the fold of the observer's gaps and listings.
//!
//! ```text
//!           SyncBegan, SyncDone              SyncBegan, SyncDone (asked for while all is well:
//!   ┌───────┐ ──────────────────▶ ┌───────┐ ──┐            what is known stays true meanwhile)
//!   │ Blind │                     │ Clear │   │
//!   └───────┘ ◀────────────────── └───────┘ ◀─┘
//!        ▲ │       SightLost
//!        └─┘ SightLost, SyncBegan: still blind
//! ```
//!
//! A listing speaks for the workloads that were indexed before it began: for later ones it may have
//! passed over flows that were nobody's then. They are blind until the next.

use std::time::Duration;

use dormouse_model::{Epoch, MonoTime, SightLoss};

/// What can be seen, for statuses and events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SightStatus {
    /// Every flow is known since the listing that opened `epoch`.
    Clear {
        /// The period of sight.
        epoch: Epoch,
    },
    /// Something may be unknown.
    Blind {
        /// What happened; `None` before the first listing is complete and while a listing that
        /// follows a loss runs.
        loss: Option<SightLoss>,
    },
}

/// The fold.
#[derive(Debug)]
pub(crate) struct Sight {
    status: SightStatus,
    /// Since when blind, if there was sight before.
    lost_at: Option<MonoTime>,
    /// How many listings began; the number of the newest.
    begun: u32,
    /// The number of the last complete listing; 0 before the first.
    completed: u32,
    /// The listing that runs.
    open: Option<Epoch>,
}

/// Sight is clear from here on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Regained {
    /// The number of the listing that was completed.
    pub(crate) listing: u32,
    /// Since when it was lost; `None` when it was not, or never had.
    pub(crate) lost_at: Option<MonoTime>,
    /// Whether it was not clear before.
    pub(crate) changed: bool,
}

impl Regained {
    /// How much of an idle time that began at `since` passed unseen until `now`.
    pub(crate) fn unseen(&self, since: MonoTime, now: MonoTime) -> Duration {
        unseen(self.lost_at, since, now)
    }
}

impl Sight {
    pub(crate) const fn new() -> Self {
        let status = SightStatus::Blind { loss: None };
        Self {
            status,
            lost_at: None,
            begun: 0,
            completed: 0,
            open: None,
        }
    }

    /// A listing begins. One that ran is abandoned; sight is what it was.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        self.begun = self.begun.saturating_add(1);
        self.open = Some(epoch);
        if let SightStatus::Blind { loss } = &mut self.status {
            // The observer works again: from here on it is only a matter of time.
            *loss = None;
        }
    }

    /// The listing of `epoch` is complete; `None` when no such listing runs.
    pub(crate) fn complete(&mut self, epoch: Epoch) -> Option<Regained> {
        self.open.take_if(|open| *open == epoch)?;
        let changed = !self.is_clear();
        self.completed = self.begun;
        self.status = SightStatus::Clear { epoch };
        Some(Regained {
            listing: self.begun,
            lost_at: self.lost_at.take(),
            changed,
        })
    }

    /// Something may have been missed.
    pub(crate) fn lose(&mut self, now: MonoTime, reason: SightLoss) {
        if self.is_clear() {
            self.lost_at = Some(now);
        }
        self.open = None;
        self.status = SightStatus::Blind { loss: Some(reason) };
    }

    pub(crate) const fn status(&self) -> SightStatus {
        self.status
    }

    pub(crate) const fn is_clear(&self) -> bool {
        matches!(self.status, SightStatus::Clear { .. })
    }

    pub(crate) const fn is_listing(&self) -> bool {
        self.open.is_some()
    }

    /// The number under which what is seen now is noted.
    pub(crate) const fn listing(&self) -> u32 {
        self.begun
    }

    /// Whether a complete listing began after a workload was indexed under the number `indexed`.
    pub(crate) fn covers(&self, indexed: Option<u32>) -> bool {
        indexed.is_some_and(|number| number < self.completed)
    }

    /// How much of an idle time that began at `since` has passed unseen so far.
    pub(crate) fn unseen(&self, since: MonoTime, now: MonoTime) -> Duration {
        unseen(self.lost_at, since, now)
    }
}

/// The time from a loss to `now`, as far as it is after `since`. Zero without a loss: before the first
/// listing there was no sight to lose, and a restarted daemon resumes the countdowns that it finds.
fn unseen(lost_at: Option<MonoTime>, since: MonoTime, now: MonoTime) -> Duration {
    lost_at.map_or(Duration::ZERO, |lost_at| now.since(lost_at.max(since)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_covers_those_indexed_before_it_began() {
        let mut sight = Sight::new();
        let early = Some(sight.listing());
        sight.begin(Epoch(1));
        let late = Some(sight.listing());
        assert!(
            sight.complete(Epoch(2)).is_none(),
            "another period's end ends nothing"
        );
        let regained = sight.complete(Epoch(1)).unwrap();
        assert!(
            regained.changed && regained.lost_at.is_none(),
            "there was no sight to lose"
        );
        assert!(sight.covers(early) && !sight.covers(late) && !sight.covers(None));
        sight.begin(Epoch(2));
        assert!(sight.is_clear(), "a listing takes no sight away");
        assert!(!sight.complete(Epoch(2)).unwrap().changed);
        assert!(sight.covers(late));
    }

    #[test]
    fn a_loss_voids_the_listing_that_runs() {
        let mut sight = Sight::new();
        sight.begin(Epoch(1));
        sight.complete(Epoch(1)).unwrap();
        let lost_at = MonoTime::from_boot(Duration::from_secs(5));
        sight.lose(lost_at, SightLoss::SocketFailed);
        assert_eq!(
            sight.status(),
            SightStatus::Blind {
                loss: Some(SightLoss::SocketFailed)
            }
        );
        sight.begin(Epoch(2));
        assert_eq!(sight.status(), SightStatus::Blind { loss: None });
        sight.lose(lost_at.plus(Duration::from_secs(1)), SightLoss::ListingFailed);
        assert!(sight.complete(Epoch(2)).is_none());
        sight.begin(Epoch(3));
        let regained = sight.complete(Epoch(3)).unwrap();
        assert_eq!(regained.lost_at, Some(lost_at), "blind since the first loss");
        let now = lost_at.plus(Duration::from_secs(9));
        assert_eq!(regained.unseen(MonoTime::default(), now), Duration::from_secs(9));
        assert_eq!(
            regained.unseen(lost_at.plus(Duration::from_secs(7)), now),
            Duration::from_secs(2)
        );
    }
}
