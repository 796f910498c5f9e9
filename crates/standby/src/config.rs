//! The numbers of the engine: bounds, deadlines and retries.

use std::num::NonZeroUsize;
use std::time::Duration;

/// The engine's settings. Every value is legal: bounds cannot be zero, and durations below
/// [`Config::SHORTEST`] are raised to it, so that no timer of the engine can spin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Most attempts to sleep at one time, confirms included. Others wait in the order in which
    /// their countdowns ended.
    pub max_sleeps: NonZeroUsize,
    /// Most wakes at one time. Others wait in the order of their knocks. More than the host has
    /// cores makes every wake slower and finishes the last one no earlier.
    pub max_wakes: NonZeroUsize,
    /// How often a listing is asked for although nothing seems to be missing.
    pub resync_interval: Duration,
    /// Least pause between two requests for a listing, however many new workloads want one.
    pub resync_gap: Duration,
    /// An idle time shorter than this is neither recorded nor announced, so that a workload with
    /// many short connections costs no write and no event for each.
    pub settle_delay: Duration,
    /// How long the answer to a confirm may take; later it counts as unsure.
    pub confirm_timeout: Duration,
    /// How long a sleep may take before it is cancelled.
    pub sleep_timeout: Duration,
    /// Pauses between tries to wake.
    pub wake_retry: Backoff,
    /// How many times in a row a wake may fail before only a new knock tries again.
    pub wake_tries: u32,
    /// First pause after a sleep that a reply to the guest interrupted; it doubles up to the
    /// workload's own idle timeout.
    pub reply_retry_first: Duration,
    /// Pauses between tries to write a record.
    pub record_retry: Backoff,
    /// How many times in a row the same record may fail before the next change writes it.
    pub record_tries: u32,
}

impl Config {
    /// The shortest pause or interval that the engine uses.
    pub const SHORTEST: Duration = Duration::from_millis(1);

    /// The same settings with every duration at least [`Config::SHORTEST`].
    #[must_use]
    pub(crate) fn raised(mut self) -> Self {
        for duration in [
            &mut self.resync_interval,
            &mut self.resync_gap,
            &mut self.confirm_timeout,
            &mut self.sleep_timeout,
            &mut self.wake_retry.first,
            &mut self.wake_retry.most,
            &mut self.reply_retry_first,
            &mut self.record_retry.first,
            &mut self.record_retry.most,
        ] {
            *duration = (*duration).max(Self::SHORTEST);
        }
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_sleeps: NonZeroUsize::MIN.saturating_add(15),
            max_wakes: NonZeroUsize::MIN.saturating_add(7),
            resync_interval: Duration::from_secs(300),
            resync_gap: Duration::from_secs(1),
            settle_delay: Duration::from_secs(2),
            confirm_timeout: Duration::from_secs(5),
            sleep_timeout: Duration::from_secs(120),
            wake_retry: Backoff {
                first: Duration::from_millis(100),
                most: Duration::from_secs(5),
            },
            wake_tries: 8,
            reply_retry_first: Duration::from_secs(1),
            record_retry: Backoff {
                first: Duration::from_secs(1),
                most: Duration::from_secs(60),
            },
            record_tries: 8,
        }
    }
}

/// A pause that doubles up to a most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
}

impl Backoff {
    /// The pause after `failures` failures in a row; the first failure has the first pause.
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        // 2^31 times a millisecond is 24 days: no configured `most` is beyond it.
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_most() {
        let backoff = Config::default().wake_retry;
        for (failures, millis) in [
            (0, 100),
            (1, 100),
            (2, 200),
            (3, 400),
            (6, 3_200),
            (7, 5_000),
            (u32::MAX, 5_000),
        ] {
            assert_eq!(
                backoff.after(failures),
                Duration::from_millis(millis),
                "{failures} failures"
            );
        }
    }

    #[test]
    fn no_timer_can_spin() {
        let zero = Config {
            resync_interval: Duration::ZERO,
            ..Config::default()
        };
        assert_eq!(zero.raised().resync_interval, Config::SHORTEST);
        assert_eq!(Config::default().raised(), Config::default());
    }
}
