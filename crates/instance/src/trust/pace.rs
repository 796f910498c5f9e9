//! Whoever waits for a guest goes first. Copying and comparing gigabytes of memory takes a processor, and
//! the wake of another guest wants it for a tenth of a second: background work pauses at its next chunk.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long work that has just begun pauses: longer than most wakes take.
const GRACE: Duration = Duration::from_millis(500);

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
    began: Cell<Option<Instant>>,
    paused: Cell<Duration>,
}

impl<'a> Pace<'a> {
    /// Without pauses, until `cut` is set: somebody waits for this.
    #[must_use]
    pub const fn straight(cut: &'a AtomicBool) -> Self {
        Self {
            cut,
            behind: None,
            began: Cell::new(None),
            paused: Cell::new(Duration::ZERO),
        }
    }

    /// Behind those who wait for a guest. It never pauses longer in all than it worked, and half a second: where
    /// guests are woken all the time, memory must still be given back and settled, at half the speed.
    #[must_use]
    pub const fn behind(cut: &'a AtomicBool, precedence: &'a Precedence) -> Self {
        Self {
            behind: Some(precedence),
            ..Self::straight(cut)
        }
    }

    /// Whether the work is still wanted; may block while others go first. Called before each chunk.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        let began = self.began.get().unwrap_or_else(Instant::now);
        self.began.set(Some(began));
        while let Some(precedence) = self.behind
            && !self.is_cut()
        {
            let paused = self.paused.get();
            let worked = began.elapsed().saturating_sub(paused);
            let pause = if paused < worked + GRACE {
                precedence.pause()
            } else {
                Duration::ZERO
            };
            if pause.is_zero() {
                break;
            }
            self.paused.set(paused + pause);
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
    fn background_work_pauses_and_goes_on_all_the_same() {
        let (precedence, cut) = (Precedence::default(), AtomicBool::new(false));
        let pace = Pace::behind(&cut, &precedence);
        assert!(pace.goes_on(), "nobody is before it");
        assert_eq!(pace.paused.get(), Duration::ZERO);
        precedence.claim(Duration::from_secs(3600));
        assert!(pace.goes_on());
        assert!(pace.paused.get() >= GRACE, "{:?}", pace.paused.get());
        assert!(Pace::straight(&cut).goes_on(), "who is waited for does not wait");
    }

    #[test]
    fn unwanted_work_ends_whoever_is_before_it() {
        let (precedence, cut) = (Precedence::default(), AtomicBool::new(true));
        precedence.claim(Duration::from_secs(3600));
        assert!(!Pace::behind(&cut, &precedence).goes_on());
        assert!(!Pace::straight(&cut).goes_on());
    }
}
