//! Barriers under way: a pure book of questions sent on the event socket and not yet answered.
//!
//! ```text
//!  ask ──▶ waiting ──answer of its sequence──▶ answered ──all earlier observations queued──▶ Ok(epoch)
//!             │                                    │
//!             └──── loss of sight, deadline ───────┴──▶ Err
//! ```
//!
//! Why an answer proves anything: the kernel queues it on the same socket as the events, so behind every
//! event that was queued before it, and whatever is lost for want of buffer is told by `ENOBUFS`, which
//! ends the socket and voids the book. That `ENOBUFS` may also have eaten the answer is why every
//! question has a deadline and a number of its own.

use std::time::Duration;

use dormouse_model::{Epoch, Fault, Kind, MonoTime, SightLoss};

/// Why it cannot be said that everything before now was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// The observer is not in sync: something may be missing anyway.
    #[error("the observer does not see all connections now")]
    Blind {
        /// What it missed, where it knows.
        reason: Option<SightLoss>,
    },
    /// No answer came in time; under an overrun the kernel drops answers too.
    #[error("the kernel did not answer the observer's barrier within {waited:?}")]
    Timeout {
        /// The time given.
        waited: Duration,
    },
    /// Too many questions wait for answers.
    #[error("{waiting} barriers are waiting already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The observer does not run.
    #[error("the observer is not running")]
    NotRunning,
}

impl Fault for BarrierError {
    fn kind(&self) -> Kind {
        match self {
            Self::Blind { .. } | Self::NotRunning => Kind::Unavailable,
            Self::Timeout { .. } => Kind::Timeout,
            Self::Busy { .. } => Kind::Exhausted,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Blind { .. } => "OBSERVER_BLIND",
            Self::Timeout { .. } => "OBSERVER_BARRIER_TIMEOUT",
            Self::Busy { .. } => "OBSERVER_BARRIER_BUSY",
            Self::NotRunning => "OBSERVER_NOT_RUNNING",
        }
    }
}

#[derive(Debug)]
struct Waiting<T> {
    sequence: u32,
    epoch: Epoch,
    asked: MonoTime,
    patience: Duration,
    answered: bool,
    caller: T,
}

/// One barrier that ended: who asked, when, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended<T> {
    /// Whoever asked.
    pub caller: T,
    /// When.
    pub asked: MonoTime,
    /// How it ended.
    pub result: Result<Epoch, BarrierError>,
}

/// The book. `T` is whatever the shell needs to answer the caller.
#[derive(Debug)]
pub struct BarrierBook<T> {
    waiting: Vec<Waiting<T>>,
    waiting_max: usize,
    last_sequence: u32,
}

impl<T> BarrierBook<T> {
    /// An empty book for at most `waiting_max` questions at a time.
    #[must_use]
    pub const fn new(waiting_max: usize) -> Self {
        Self {
            waiting: Vec::new(),
            waiting_max,
            last_sequence: 0,
        }
    }

    /// Enters a question asked in `epoch` and returns the sequence number to send it with: never 0,
    /// which is what events have, and never one that still waits.
    ///
    /// # Errors
    /// The caller back, when too many wait.
    pub fn ask(
        &mut self,
        now: MonoTime,
        epoch: Epoch,
        patience: Duration,
        caller: T,
    ) -> Result<u32, (T, BarrierError)> {
        if self.waiting.len() >= self.waiting_max {
            return Err((
                caller,
                BarrierError::Busy {
                    waiting: self.waiting.len(),
                },
            ));
        }
        loop {
            self.last_sequence = self.last_sequence.wrapping_add(1).max(1);
            if self.waiting.iter().all(|one| one.sequence != self.last_sequence) {
                break;
            }
        }
        let sequence = self.last_sequence;
        self.waiting.push(Waiting {
            sequence,
            epoch,
            asked: now,
            patience,
            answered: false,
            caller,
        });
        Ok(sequence)
    }

    /// Notes the answer to `sequence`; false when nobody waits for it.
    pub fn answered(&mut self, sequence: u32) -> bool {
        match self.waiting.iter_mut().find(|one| one.sequence == sequence) {
            Some(one) => {
                one.answered = true;
                true
            }
            None => false,
        }
    }

    /// Takes out the answered ones: every observation before their answers is with the consumer now.
    pub fn settle(&mut self) -> Vec<Ended<T>> {
        self.take(|one| one.answered, |one| Ok(one.epoch))
    }

    /// Takes out all: sight was lost.
    pub fn void(&mut self, reason: Option<SightLoss>) -> Vec<Ended<T>> {
        self.take(|_| true, |_| Err(BarrierError::Blind { reason }))
    }

    /// Takes out those whose time is over.
    pub fn expire(&mut self, now: MonoTime) -> Vec<Ended<T>> {
        self.take(
            |one| one.asked.plus(one.patience) <= now,
            |one| Err(BarrierError::Timeout { waited: one.patience }),
        )
    }

    /// When [`expire`](Self::expire) has something to take.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.waiting.iter().map(|one| one.asked.plus(one.patience)).min()
    }

    fn take(
        &mut self,
        which: impl Fn(&Waiting<T>) -> bool,
        result: impl Fn(&Waiting<T>) -> Result<Epoch, BarrierError>,
    ) -> Vec<Ended<T>> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        self.waiting
            .extract_if(.., |one| which(one))
            .map(|one| {
                let result = result(&one);
                Ended {
                    caller: one.caller,
                    asked: one.asked,
                    result,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    const fn at(millis: u64) -> MonoTime {
        MonoTime::from_boot(Duration::from_millis(millis))
    }

    fn results(ended: Vec<Ended<char>>) -> Vec<(char, Result<Epoch, BarrierError>)> {
        ended.into_iter().map(|one| (one.caller, one.result)).collect()
    }

    #[test]
    fn an_answer_settles_only_its_own_question() {
        let mut book = BarrierBook::new(4);
        let first = book.ask(at(0), Epoch(1), PATIENCE, 'a').unwrap();
        let second = book.ask(at(10), Epoch(1), PATIENCE, 'b').unwrap();
        assert_ne!(first, second);
        assert!(book.settle().is_empty());
        assert!(book.answered(second) && !book.answered(0) && !book.answered(99));
        assert_eq!(results(book.settle()), [('b', Ok(Epoch(1)))]);
        assert!(!book.answered(second), "an answer is used once");
        assert_eq!(book.next_deadline(), Some(at(100)));
    }

    #[test]
    fn a_loss_voids_even_what_was_answered() {
        let mut book = BarrierBook::new(4);
        let first = book.ask(at(0), Epoch(1), PATIENCE, 'a').unwrap();
        book.answered(first);
        let reason = Some(SightLoss::Overrun);
        assert_eq!(
            results(book.void(reason)),
            [('a', Err(BarrierError::Blind { reason }))]
        );
        assert!(book.settle().is_empty());
    }

    #[test]
    fn time_runs_out_one_by_one() {
        let mut book = BarrierBook::new(4);
        book.ask(at(0), Epoch(1), PATIENCE, 'a').unwrap();
        book.ask(at(50), Epoch(1), PATIENCE, 'b').unwrap();
        assert!(book.expire(at(99)).is_empty());
        let late = Err(BarrierError::Timeout { waited: PATIENCE });
        assert_eq!(results(book.expire(at(100))), [('a', late)]);
        assert_eq!(results(book.expire(at(200))), [('b', late)]);
        assert_eq!(book.next_deadline(), None);
    }

    #[test]
    fn the_book_is_bounded_and_numbers_are_fresh() {
        let mut book = BarrierBook::new(1);
        book.last_sequence = u32::MAX;
        assert_eq!(book.ask(at(0), Epoch(1), PATIENCE, 'a'), Ok(1));
        assert_eq!(
            book.ask(at(0), Epoch(1), PATIENCE, 'b'),
            Err(('b', BarrierError::Busy { waiting: 1 }))
        );
    }
}
