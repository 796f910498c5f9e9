//! The workloads, found by id or by place. A place is an index: a flow's event goes from its address
//! to the workload without a search.

use std::collections::HashMap;

use dormouse_model::WorkloadId;

use crate::workload::Workload;

/// Where a workload is kept for as long as it is known. Given again after it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(u32);

impl Place {
    /// A place, for the tests of what is keyed by places.
    #[cfg(test)]
    pub(crate) const fn at(index: u32) -> Self {
        Self(index)
    }

    fn index(self) -> usize {
        // Places are only made from lengths that fit both.
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// All workloads. Iteration is by place, which depends on the inputs alone: replays are exact.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    places: Vec<Option<Workload>>,
    free: Vec<Place>,
    by_id: HashMap<WorkloadId, Place>,
}

impl Roster {
    /// The place of the workload `id`.
    pub(crate) fn find(&self, id: WorkloadId) -> Option<Place> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn get(&self, place: Place) -> Option<&Workload> {
        self.places.get(place.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, place: Place) -> Option<&mut Workload> {
        self.places.get_mut(place.index())?.as_mut()
    }

    /// Takes in a workload whose id is not known yet. `None` when 2^32 are known, which no address
    /// pool allows.
    pub(crate) fn insert(&mut self, workload: Workload) -> Option<Place> {
        let id = workload.view.id;
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = Place(u32::try_from(self.places.len()).ok()?);
                self.places.push(None);
                place
            }
        };
        *self.places.get_mut(place.index())? = Some(workload);
        self.by_id.insert(id, place);
        Some(place)
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<Workload> {
        let workload = self.places.get_mut(place.index())?.take()?;
        self.by_id.remove(&workload.view.id);
        self.free.push(place);
        Some(workload)
    }

    /// The places in use and not, in order. Not borrowed, so that the body may change workloads.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + use<> {
        // The length fits: `insert` checked it.
        (0..u32::try_from(self.places.len()).unwrap_or(u32::MAX)).map(Place)
    }

    /// Every workload, in the order of places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Workload> {
        self.places.iter().flatten()
    }
}
