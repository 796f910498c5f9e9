//! A bounded number of slots and those who wait for one, first come first served.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use crate::roster::Place;

/// A place in the queue; smaller came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Slots and queue. A workload is in a lane at most once, so both are bounded by the workloads.
#[derive(Debug)]
pub(crate) struct Lane {
    slots: NonZeroUsize,
    busy: BTreeSet<Place>,
    waiting: BTreeMap<Ticket, Place>,
    issued: u64,
}

impl Lane {
    pub(crate) const fn new(slots: NonZeroUsize) -> Self {
        Self {
            slots,
            busy: BTreeSet::new(),
            waiting: BTreeMap::new(),
            issued: 0,
        }
    }

    /// Puts `place` at the end of the queue, also when a slot is free: [`Lane::admit`] alone gives
    /// slots, so nobody overtakes.
    pub(crate) fn wait(&mut self, place: Place) -> Ticket {
        self.issued = self.issued.saturating_add(1);
        let ticket = Ticket(self.issued);
        self.waiting.insert(ticket, place);
        ticket
    }

    /// Gives a free slot to the first who waits.
    pub(crate) fn admit(&mut self) -> Option<Place> {
        if self.busy.len() >= self.slots.get() {
            return None;
        }
        let (_, place) = self.waiting.pop_first()?;
        self.busy.insert(place);
        Some(place)
    }

    /// Leaves the queue.
    pub(crate) fn give_up(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// Gives the slot back.
    pub(crate) fn release(&mut self, place: Place) {
        self.busy.remove(&place);
    }

    /// Slots in use.
    pub(crate) fn busy(&self) -> usize {
        self.busy.len()
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Everybody in the lane, those with a slot first. Collected, because callers change the lane.
    pub(crate) fn members(&self) -> Vec<Place> {
        self.busy.iter().chain(self.waiting.values()).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_served_in_order() {
        let mut lane = Lane::new(NonZeroUsize::MIN);
        let tickets: Vec<Ticket> = (0..4).map(|at| lane.wait(Place::at(at))).collect();
        assert_eq!(lane.admit(), Some(Place::at(0)));
        assert_eq!(lane.admit(), None, "the only slot is taken");
        lane.give_up(tickets[1]);
        lane.release(Place::at(0));
        assert_eq!(lane.admit(), Some(Place::at(2)));
        assert_eq!((lane.busy(), lane.waiting()), (1, 1));
        assert_eq!(lane.members(), [Place::at(2), Place::at(3)]);
    }
}
