//! What a step takes of the host: promised before the step begins, settled when it has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_model::WorkloadId;

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
            | Step::ReadBack
            | Step::AttachLink
            | Step::MakeTap
            | Step::Shut
            | Step::Drain
            | Step::Prove
            | Step::Pause
            | Step::Save { .. }
            | Step::Discard { .. }
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

/// The dues of one step. A step that is given up in the middle, at its deadline or by a defect, never says how it
/// ended: its dues go then without being settled.
pub(super) struct Dues(Arc<Claim>);

/// What is promised to a step. The thread that has it promised may outlive the step.
struct Claim {
    rooms: Arc<Rooms>,
    id: WorkloadId,
    demand: Option<Demand>,
    settling: Settling,
    settled: AtomicBool,
    /// Nothing is promised from now on: what ends the step's process may have been settled already.
    given_up: AtomicBool,
}

impl Drop for Dues {
    fn drop(&mut self) {
        let claim = &*self.0;
        // First: whoever promises sees it, or has promised before and it is given back here.
        claim.given_up.store(true, Ordering::Release);
        // What has or had a process is settled by the step that ends it, which follows in any case.
        let lost = claim.settling == Settling::Landed && !claim.settled.load(Ordering::Acquire);
        if lost && claim.demand.is_some() {
            claim.rooms.ledger.landed(claim.id);
        }
    }
}

impl Dues {
    /// Those of `step`.
    pub(super) fn of(context: &StepContext, step: &Step) -> Self {
        let (rooms, remembered) = (Arc::clone(&context.rooms), &context.remembered);
        let view = &remembered.view;
        let demand = match step {
            Step::PrepareDisks if !rooms.layout.disk(view.id).exists() => {
                Some(Demand::Create { disk: view.spec.disk })
            }
            Step::Launch => Some(boot(remembered)),
            Step::Restore { image } => Some(wake(&rooms, remembered, home_of(image.kept))),
            // The first step of a sleep: what it takes is known before anything is half done.
            Step::Shut => Some(sleep(
                &rooms,
                remembered,
                context.parts.vm.as_ref().map(|vm| vm.process().pid),
            )),
            Step::Spill { .. } => Some(Demand::Spill {
                occupied: rooms.layout.images().occupied(view.id, Home::Tmpfs),
            }),
            Step::Write(_)
            | Step::ReadBack
            | Step::PrepareDisks
            | Step::AttachLink
            | Step::MakeTap
            | Step::Open
            | Step::Drain
            | Step::Prove
            | Step::Pause
            | Step::Save { .. }
            | Step::Discard { .. }
            | Step::LetGo
            | Step::DropResident
            | Step::Settle { .. }
            | Step::Verify { .. }
            | Step::Resume
            | Step::Greet
            | Step::Shutdown { .. }
            | Step::EndProcess
            | Step::ReleaseLink
            | Step::DropMemory
            | Step::RemoveFiles
            | Step::RemoveRecord
            | Step::FreeAddresses => None,
        };
        Self(Arc::new(Claim {
            id: view.id,
            rooms,
            demand,
            settling: Settling::of(step),
            settled: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        }))
    }

    /// Has them promised.
    ///
    /// # Errors
    /// When the host cannot: what is missing, in words.
    pub(super) async fn promise(&self) -> Result<(), StepFailure> {
        let Some(demand) = self.0.demand else {
            return Ok(());
        };
        // The thread may come that far when the step was given up already.
        let claim = Arc::clone(&self.0);
        blocking(move || {
            let Claim {
                rooms, id, given_up, ..
            } = &*claim;
            let promised = rooms.ledger.admit(*id, demand, given_up);
            promised.map_err(|error| failure(&error))
        })
        .await
    }

    /// Enters how it ended.
    pub(super) fn settle(&self, outcome: &Outcome) {
        let Claim { rooms, id, .. } = &*self.0;
        self.0.settled.store(true, Ordering::Release);
        let resting = match (self.0.settling, outcome.is_ok()) {
            (Settling::Nothing, _) | (Settling::AtRest, false) => return,
            (Settling::Landed, _) | (Settling::Process, true) => false,
            (Settling::Process, false) | (Settling::AtRest, true) => true,
        };
        if resting {
            let resident = rooms.layout.images().occupied(*id, Home::Tmpfs);
            rooms.ledger.at_rest(*id, resident);
        } else {
            rooms.ledger.landed(*id);
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
