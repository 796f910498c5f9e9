//! What a caller asks for is looked at with the ledger before it is begun: the caller then learns by its code
//! what is missing. The step itself asks again, and has it promised.

use std::sync::Arc;

use dormouse_model::{State, WorkloadId};

use super::{CreateRequest, Instances};
use crate::error::InstanceError;
use crate::ledger::{Demand, private_bytes};
use crate::memory::{GuestRam, Home};
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::view::InstanceView;

impl Instances {
    /// Whether an instance could be made, and started when that is asked too.
    pub(super) async fn can_be_made(
        &self,
        id: WorkloadId,
        request: &CreateRequest,
    ) -> Result<(), InstanceError> {
        let rooms = Arc::clone(&self.shared.rooms);
        let (spec, start) = (request.spec.clone(), request.start);
        let name = spec.name.clone();
        let look = move || {
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
            .map_err(|source| InstanceError::Ledger {
                verb: "creation",
                name,
                source,
            })
    }

    /// Whether what `verb` takes could be had, where the state makes it take something.
    pub(super) async fn can(&self, verb: &'static str, id: WorkloadId) -> Result<(), InstanceError> {
        let view = self.view(id)?;
        let rooms = Arc::clone(&self.shared.rooms);
        let name = view.spec.name.clone();
        let look = move || match demand(&rooms, &view, verb) {
            Some(demand) => rooms.ledger.could(id, demand),
            None => Ok(()),
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked
            .map_err(|_| InstanceError::ShuttingDown)?
            .map_err(|source| InstanceError::Ledger { verb, name, source })
    }
}

/// What a verb takes in the view's state; `None` where it changes nothing, or will be refused.
fn demand(rooms: &Rooms, view: &InstanceView, verb: &str) -> Option<Demand> {
    let occupied = rooms.layout.images().occupied(view.id, view.memory.home);
    match (verb, view.state) {
        ("start", State::Stopped | State::Failed) => Some(Demand::Boot {
            ram: GuestRam::fresh(view.memory.placement, view.memory.size),
        }),
        ("wake", State::Standby) => Some(Demand::Wake {
            ram: view.memory.woken(),
            occupied,
        }),
        ("standby", State::Running) => Some(Demand::Sleep {
            ram: view.memory,
            private: view.pid.map(private_bytes).unwrap_or_default(),
            occupied,
        }),
        _ => None,
    }
}

impl Rooms {
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
