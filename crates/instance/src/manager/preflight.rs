//! What a caller asks for is looked at with the ledger before it is begun: the caller then learns by its code
//! what is missing. The step itself asks again, and has it promised.

use std::sync::Arc;

use dormouse_hypervisor::KeepError;
use dormouse_model::{Name, State, WorkloadId};

use super::{CreateRequest, Instances};
use crate::error::InstanceError;
use crate::ledger::{Demand, LedgerError, private_bytes};
use crate::memory::{GuestRam, Home};
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::view::InstanceView;

impl Instances {
    /// Whether an instance could be made, and started when that is asked too. One that can never start here
    /// is not made.
    pub(super) async fn can_be_made(
        &self,
        id: WorkloadId,
        request: &CreateRequest,
    ) -> Result<(), InstanceError> {
        let rooms = Arc::clone(&self.shared.rooms);
        let (spec, start) = (request.spec.clone(), request.start);
        let name = spec.name.clone();
        let look = move || {
            rooms.can_execute()?;
            let ram = GuestRam::fresh(rooms.placement_of(&spec), spec.memory);
            rooms.ledger.ever(Demand::Boot { ram })?;
            rooms.ledger.could(id, Demand::Create { disk: spec.disk })?;
            if start {
                rooms.ledger.could(id, Demand::Boot { ram })?;
            }
            Ok(())
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked
            .map_err(|_| InstanceError::ShuttingDown)?
            .map_err(|lacking: Lacking| lacking.of("creation", name))
    }

    /// Whether what `verb` takes could be had, where the state makes it take something.
    pub(super) async fn can(&self, verb: Verb, id: WorkloadId) -> Result<(), InstanceError> {
        let view = self.view(id)?;
        let rooms = Arc::clone(&self.shared.rooms);
        let name = view.spec.name.clone();
        let look = move || {
            let Some(demand) = demand(&rooms, &view, verb) else {
                return Ok(());
            };
            match verb {
                Verb::Start | Verb::Wake => rooms.can_execute()?,
                Verb::Standby => {}
            }
            Ok(rooms.ledger.could(id, demand)?)
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked
            .map_err(|_| InstanceError::ShuttingDown)?
            .map_err(|lacking: Lacking| lacking.of(verb.as_str(), name))
    }
}

/// What a caller may ask for that takes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Start,
    Wake,
    Standby,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Wake => "wake",
            Self::Standby => "standby",
        }
    }
}

/// What the host lacks.
enum Lacking {
    Room(LedgerError),
    Execution(KeepError),
}

impl From<LedgerError> for Lacking {
    fn from(source: LedgerError) -> Self {
        Self::Room(source)
    }
}

impl Lacking {
    fn of(self, verb: &'static str, name: Name) -> InstanceError {
        match self {
            Self::Room(source) => InstanceError::Ledger { verb, name, source },
            Self::Execution(source) => InstanceError::Monitor { verb, name, source },
        }
    }
}

/// What a verb takes in the view's state; `None` where it changes nothing, or will be refused.
fn demand(rooms: &Rooms, view: &InstanceView, verb: Verb) -> Option<Demand> {
    let occupied = || rooms.layout.images().occupied(view.id, view.memory.home);
    match (verb, view.state) {
        (Verb::Start, State::Stopped | State::Failed) => Some(Demand::Boot {
            ram: GuestRam::fresh(view.memory.placement, view.memory.size),
        }),
        (Verb::Wake, State::Standby) => Some(Demand::Wake {
            ram: view.memory.woken(),
            occupied: occupied(),
        }),
        (Verb::Standby, State::Running) => Some(Demand::Sleep {
            ram: view.memory,
            private: view.pid.map(private_bytes).unwrap_or_default(),
            occupied: occupied(),
        }),
        (Verb::Start | Verb::Wake, State::Running)
        | (Verb::Start | Verb::Standby, State::Standby)
        | (Verb::Wake | Verb::Standby, State::Stopped | State::Failed)
        | (
            Verb::Start | Verb::Wake | Verb::Standby,
            State::Starting
            | State::Initializing
            | State::Dozing
            | State::Sleeping
            | State::Waking
            | State::Stopping
            | State::Deleting,
        ) => None,
    }
}

impl Rooms {
    /// Whether monitors run from where they are kept: nothing of an instance would work otherwise.
    fn can_execute(&self) -> Result<(), Lacking> {
        match &self.probe.program {
            Some(_) => self.kept.runnable().map_err(Lacking::Execution),
            None => Ok(()),
        }
    }

    /// Enters what an instance of an earlier daemon has: its guest runs on, or its file lies on tmpfs.
    pub(crate) fn enter_promises(&self, remembered: &Remembered, awake: bool) {
        let view = &remembered.view;
        let occupied = self.layout.images().occupied(view.id, Home::Tmpfs);
        if awake {
            let ram = view.memory;
            self.ledger.honour(
                view.id,
                Demand::Wake {
                    ram,
                    occupied: ram.size,
                },
            );
        } else {
            self.ledger.at_rest(view.id, occupied);
        }
    }
}
