//! One ordered set of all deadlines. There are no timers: the shell asks for the first and comes
//! back, so none can be lost in a full queue.

use std::collections::BTreeSet;

use dormouse_model::MonoTime;

use crate::roster::Place;

/// Whose deadline it is. A workload has at most one, the earliest of what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// The next request for a listing.
    Resync,
    /// The next thing that time alone brings about for a workload.
    Workload(Place),
}

/// The deadlines, earliest first; equal ones in the order of [`Alarm`], so that a replay is exact.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    set: BTreeSet<(MonoTime, Alarm)>,
}

impl Deadlines {
    /// Moves `alarm` from `armed` to `to` and notes it there. `armed` is where its owner keeps the
    /// time under which it stands in the set.
    pub(crate) fn rearm(&mut self, alarm: Alarm, armed: &mut Option<MonoTime>, to: Option<MonoTime>) {
        if *armed == to {
            return;
        }
        if let Some(at) = *armed {
            self.set.remove(&(at, alarm));
        }
        if let Some(at) = to {
            self.set.insert((at, alarm));
        }
        *armed = to;
    }

    /// The earliest deadline.
    pub(crate) fn first(&self) -> Option<MonoTime> {
        self.set.first().map(|(at, _)| *at)
    }

    /// Takes the earliest deadline if it has come. The owner's note of it is then out of date.
    pub(crate) fn take_due(&mut self, now: MonoTime) -> Option<Alarm> {
        let (at, _) = self.set.first()?;
        if *at > now {
            return None;
        }
        self.set.pop_first().map(|(_, alarm)| alarm)
    }
}
