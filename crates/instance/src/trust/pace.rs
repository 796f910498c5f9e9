//! Whoever waits for a guest goes first. Copying and comparing gigabytes of memory takes a processor, and
//! the wake of another guest wants it for a tenth of a second: background work pauses at its next chunk.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often pausing work looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// Until when background work is to pause; one for a host.
#[derive(Debug, Default)]
pub struct Precedence {
    until: Mutex<Option<Instant>>,
    /// Never told: whoever pauses looks again by itself. It is the wait that the lock comes with.
    later: Condvar,
}

impl Precedence {
    /// Somebody waits for a guest, for as long as this from now.
    pub fn claim(&self, lasting: Duration) {
        let mut until = self.until();
        *until = (*until).max(Instant::now().checked_add(lasting));
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant is whole whatever panicked beside it.
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks while it is claimed, [`LOOK`] at most. Returns how long that was; nothing when it is free.
    fn pause(&self) -> Duration {
        let until = self.until();
        let now = Instant::now();
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if !left.is_zero() {
            // Whether it was told or timed out, the next look decides.
            drop(self.later.wait_timeout(until, left.min(LOOK)));
        }
        now.elapsed().min(left)
    }
}

/// How work on memory goes on from chunk to chunk.
#[derive(Debug)]
pub struct Pace<'a> {
    cut: &'a AtomicBool,
    behind: Option<&'a Precedence>,
    patience: Cell<Duration>,
}

impl<'a> Pace<'a> {
    /// Without pauses, until `cut` is set: somebody waits for this.
    #[must_use]
    pub const fn straight(cut: &'a AtomicBool) -> Self {
        Self {
            cut,
            behind: None,
            patience: Cell::new(Duration::ZERO),
        }
    }

    /// Behind those who wait for a guest, for at most `patience` in all: memory must be given back on a busy
    /// host too.
    #[must_use]
    pub const fn behind(cut: &'a AtomicBool, precedence: &'a Precedence, patience: Duration) -> Self {
        Self {
            cut,
            behind: Some(precedence),
            patience: Cell::new(patience),
        }
    }

    /// Whether the work is still wanted; may block while others go first.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        while let Some(precedence) = self.behind
            && !self.patience.get().is_zero()
            && !self.is_cut()
        {
            let paused = precedence.pause();
            if paused.is_zero() {
                break;
            }
            self.patience.set(self.patience.get().saturating_sub(paused));
        }
        !self.is_cut()
    }

    /// Whether the work is no longer wanted.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_work_waits_its_patience_and_no_longer() {
        let (precedence, cut) = (Precedence::default(), AtomicBool::new(false));
        let began = Instant::now();
        let pace = Pace::behind(&cut, &precedence, Duration::from_millis(50));
        assert!(pace.goes_on(), "nobody is before it");
        precedence.claim(Duration::from_secs(3600));
        assert!(pace.goes_on());
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert_eq!(pace.patience.get(), Duration::ZERO, "spent");
        assert!(Pace::straight(&cut).goes_on(), "who is waited for does not wait");
    }

    #[test]
    fn unwanted_work_ends_whoever_is_before_it() {
        let (precedence, cut) = (Precedence::default(), AtomicBool::new(true));
        precedence.claim(Duration::from_secs(3600));
        assert!(!Pace::behind(&cut, &precedence, Duration::from_secs(3600)).goes_on());
        assert!(!Pace::straight(&cut).goes_on());
    }
}
