//! What a step takes of the host: promised before the step begins, settled when it has ended.

use std::sync::Arc;

use super::{Outcome, StepContext, blocking, failure};
use crate::ledger::{Demand, private_bytes};
use crate::machine::{Kept, Step, StepFailure};
use crate::memory::{GuestRam, Home};
use crate::record::Remembered;
use crate::rooms::Rooms;

/// What the end of a step changes in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settling {
    /// Nothing.
    Nothing,
    /// The disk has been taken, or will not be.
    Landed,
    /// As `Landed`; and when it failed, nothing has a process.
    Process,
    /// When it succeeded, nothing has a process.
    AtRest,
}

impl Settling {
    const fn of(step: &Step) -> Self {
        match step {
            Step::PrepareDisks | Step::Spill { .. } | Step::Open => Self::Landed,
            Step::Launch | Step::Restore { .. } => Self::Process,
            Step::LetGo | Step::EndProcess | Step::DropResident | Step::DropMemory | Step::RemoveRecord => {
                Self::AtRest
            }
            Step::Write(_)
            | Step::AttachLink
            | Step::MakeTap
            | Step::Shut
            | Step::Drain
            | Step::Prove
            | Step::Pause
            | Step::Save { .. }
            | Step::Settle { .. }
            | Step::Verify { .. }
            | Step::Resume
            | Step::Greet
            | Step::Shutdown { .. }
            | Step::ReleaseLink
            | Step::RemoveFiles
            | Step::FreeAddresses => Self::Nothing,
        }
    }
}

/// The dues of one step.
pub(super) struct Dues {
    rooms: Arc<Rooms>,
    remembered: Remembered,
    demand: Option<Demand>,
    settling: Settling,
}

impl Dues {
    /// Those of `step`.
    pub(super) fn of(context: &StepContext, step: &Step) -> Self {
        let (rooms, remembered) = (Arc::clone(&context.rooms), context.remembered.clone());
        let view = &remembered.view;
        let demand = match step {
            Step::PrepareDisks if !rooms.layout.disk(view.id).is_file() => {
                Some(Demand::Create { disk: view.spec.disk })
            }
            Step::Launch => Some(boot(&remembered)),
            Step::Restore { image } => Some(wake(&rooms, &remembered, home_of(image.kept))),
            // The first step of a sleep: what it takes is known before anything is half done.
            Step::Shut => Some(sleep(
                &rooms,
                &remembered,
                context.parts.vm.as_ref().map(|vm| vm.process().pid),
            )),
            Step::Spill { .. } => Some(Demand::Spill {
                occupied: rooms.layout.images().occupied(view.id, Home::Tmpfs),
            }),
            Step::PrepareDisks
            | Step::Write(_)
            | Step::AttachLink
            | Step::MakeTap
            | Step::Drain
            | Step::Prove
            | Step::Pause
            | Step::Save { .. }
            | Step::LetGo
            | Step::Settle { .. }
            | Step::Verify { .. }
            | Step::Resume
            | Step::Open
            | Step::Greet
            | Step::Shutdown { .. }
            | Step::EndProcess
            | Step::ReleaseLink
            | Step::DropResident
            | Step::DropMemory
            | Step::RemoveFiles
            | Step::FreeAddresses
            | Step::RemoveRecord => None,
        };
        Self {
            rooms,
            remembered,
            demand,
            settling: Settling::of(step),
        }
    }

    /// Has them promised.
    ///
    /// # Errors
    /// When the host cannot: what is missing, in words.
    pub(super) async fn promise(&self) -> Result<(), StepFailure> {
        let Some(demand) = self.demand else { return Ok(()) };
        let (rooms, id) = (Arc::clone(&self.rooms), self.remembered.view.id);
        blocking(move || rooms.ledger.admit(id, demand).map_err(|error| failure(&error))).await
    }

    /// Enters how it ended.
    pub(super) fn settle(&self, outcome: &Outcome) {
        let id = self.remembered.view.id;
        let resting = match (self.settling, outcome.is_ok()) {
            (Settling::Nothing, _) | (Settling::AtRest, false) => return,
            (Settling::Landed, _) | (Settling::Process, true) => false,
            (Settling::Process, false) | (Settling::AtRest, true) => true,
        };
        if resting {
            let resident = self.rooms.layout.images().occupied(id, Home::Tmpfs);
            self.rooms.ledger.at_rest(id, resident);
        } else {
            self.rooms.ledger.landed(id);
        }
    }
}

const fn home_of(kept: Kept) -> Home {
    match kept {
        Kept::Resident { .. } => Home::Tmpfs,
        Kept::Spilled { .. } => Home::Disk,
    }
}

/// What a boot takes.
fn boot(remembered: &Remembered) -> Demand {
    let memory = &remembered.view.memory;
    Demand::Boot {
        ram: GuestRam::fresh(memory.placement, memory.size),
    }
}

/// What a wake from `home` takes.
fn wake(rooms: &Rooms, remembered: &Remembered, home: Home) -> Demand {
    let view = &remembered.view;
    Demand::Wake {
        ram: GuestRam { home, ..view.memory }.woken(),
        occupied: rooms.layout.images().occupied(view.id, home),
    }
}

/// What a sleep takes.
fn sleep(rooms: &Rooms, remembered: &Remembered, pid: Option<u32>) -> Demand {
    let view = &remembered.view;
    Demand::Sleep {
        ram: view.memory,
        private: pid.map(private_bytes).unwrap_or_default(),
        occupied: rooms.layout.images().occupied(view.id, view.memory.home),
    }
}
