//! The event log: numbered, bounded, resumable.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_instance::InstanceEvent;
use dormouse_model::WallTime;
use dormouse_store::Damage;
use tokio::sync::watch;

use crate::api::current_request;
use crate::causes::Causes;

/// Events kept for resuming; a client that was away longer is told of a gap.
const KEPT: usize = 4096;

/// What happened.
#[derive(Debug, Clone)]
pub enum Happening {
    /// To an instance.
    Instance(InstanceEvent),
    /// To an image: its digest, and whether it was imported.
    Image {
        /// Which.
        digest: String,
        /// Imported, else removed.
        imported: bool,
    },
    /// A record was found damaged and set aside.
    SetAside(Damage),
}

/// One numbered event.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Position; the first is 1.
    pub number: u64,
    /// When.
    pub at: WallTime,
    /// What.
    pub what: Happening,
    /// The id of the request that caused it; empty when none is known.
    pub request_id: String,
}

/// Where a reader goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// After this one.
    After(u64),
    /// At the beginning: the cursor is of an earlier daemon, and nobody knows how much is missing.
    Foreign,
}

/// What a reader finds after a position.
#[derive(Debug, Clone)]
pub enum Found {
    /// These, in order; perhaps none.
    Entries(Vec<Arc<Entry>>),
    /// This many are forgotten; reading goes on at the position.
    Gap {
        /// How many.
        missed: u64,
        /// Where to go on.
        resume_after: u64,
    },
}

/// The log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kept: Mutex<VecDeque<Arc<Entry>>>,
    newest: watch::Sender<u64>,
    /// Distinguishes cursors of this daemon from those of an earlier one.
    epoch: u64,
    causes: Causes,
}

impl EventLog {
    /// An empty log; `epoch` is random.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        let shared = Shared {
            kept: Mutex::default(),
            newest: watch::Sender::new(0),
            epoch,
            causes: Causes::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests whose changes are logged here.
    pub(crate) fn causes(&self) -> &Causes {
        &self.shared.causes
    }

    /// Adds an event.
    pub fn push(&self, at: WallTime, what: Happening) {
        let request_id = match &what {
            Happening::Instance(event) => self.shared.causes.of(event),
            Happening::SetAside(_) => String::new(),
            // Told by the request itself.
            Happening::Image { .. } => current_request(),
        };
        let mut kept = self.kept();
        let number = self.shared.newest.borrow().saturating_add(1);
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::new(Entry {
            number,
            at,
            what,
            request_id,
        }));
        // Under the lock: whoever adds next counts on from here.
        self.shared.newest.send_replace(number);
    }

    /// So many events were lost before they came here: readers find a gap in their place.
    pub fn missed(&self, count: u64) {
        let mut kept = self.kept();
        kept.clear();
        let number = self.shared.newest.borrow().saturating_add(count);
        self.shared.newest.send_replace(number);
    }

    /// The newest position, and its changes.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.shared.newest.subscribe()
    }

    /// The cursor of a position.
    #[must_use]
    pub fn cursor_of(&self, number: u64) -> String {
        format!("{:016x}-{number}", self.shared.epoch)
    }

    /// The cursor of the newest event.
    #[must_use]
    pub fn cursor(&self) -> String {
        self.cursor_of(*self.shared.newest.borrow())
    }

    /// Where a reader with this cursor goes on. `None` for a text that is no cursor.
    #[must_use]
    pub fn position(&self, cursor: &str) -> Option<Position> {
        let (epoch, number) = cursor.split_once('-')?;
        let epoch = u64::from_str_radix(epoch, 16).ok()?;
        let number: u64 = number.parse().ok()?;
        if epoch != self.shared.epoch {
            return Some(Position::Foreign);
        }
        // None of ours is beyond the newest.
        Some(Position::After(number.min(*self.shared.newest.borrow())))
    }

    /// Everything after a position.
    #[must_use]
    pub fn after(&self, position: u64) -> Found {
        let kept = self.kept();
        let next = self.shared.newest.borrow().saturating_add(1);
        let first = kept.front().map_or(next, |entry| entry.number);
        let wanted = position.saturating_add(1);
        if wanted < first {
            return Found::Gap {
                missed: first - wanted,
                resume_after: first - 1,
            };
        }
        let skip = usize::try_from(wanted - first).unwrap_or(usize::MAX);
        Found::Entries(kept.iter().skip(skip).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(log: &EventLog, digest: &str) {
        let what = Happening::Image {
            digest: digest.to_owned(),
            imported: true,
        };
        log.push(WallTime::default(), what);
    }

    #[test]
    fn a_reader_resumes_where_it_was_and_is_told_of_gaps() {
        let log = EventLog::new(7);
        assert!(matches!(log.after(0), Found::Entries(entries) if entries.is_empty()));
        for _ in 0..KEPT + 10 {
            push(&log, "d");
        }
        let Found::Gap { missed, resume_after } = log.after(0) else {
            panic!("ten are forgotten")
        };
        assert_eq!((missed, resume_after), (10, 10));
        let Found::Entries(entries) = log.after(resume_after) else {
            panic!("kept")
        };
        assert_eq!((entries.len(), entries[0].number), (KEPT, 11));
        let cursor = log.cursor();
        assert_eq!(log.position(&cursor), Some(Position::After((KEPT + 10) as u64)));
        assert_eq!(EventLog::new(8).position(&cursor), Some(Position::Foreign));
        assert_eq!(log.position("nonsense"), None);
    }

    #[test]
    fn a_cursor_beyond_the_newest_event_is_the_newest() {
        let log = EventLog::new(7);
        push(&log, "d");
        let beyond = log.cursor_of(u64::MAX);
        assert_eq!(log.position(&beyond), Some(Position::After(1)));
        assert!(matches!(log.after(u64::MAX), Found::Entries(entries) if entries.is_empty()));
    }

    #[test]
    fn what_was_lost_on_the_way_is_a_gap() {
        let log = EventLog::new(7);
        push(&log, "before");
        log.missed(5);
        let Found::Gap { missed, resume_after } = log.after(1) else {
            panic!("five are lost")
        };
        assert_eq!((missed, resume_after), (5, 6));
        assert!(matches!(log.after(6), Found::Entries(entries) if entries.is_empty()));
        push(&log, "after");
        let Found::Entries(entries) = log.after(6) else {
            panic!("kept")
        };
        assert_eq!(entries[0].number, 7);
        assert!(matches!(
            log.after(0),
            Found::Gap {
                missed: 6,
                resume_after: 6
            }
        ));
    }

    #[test]
    fn numbers_are_given_once_whoever_adds() {
        let log = EventLog::new(7);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| push(&log, "d")));
            }
        });
        let Found::Entries(entries) = log.after(0) else {
            panic!("all are kept")
        };
        assert!(entries.iter().map(|entry| entry.number).eq(1..=2000));
    }
}
