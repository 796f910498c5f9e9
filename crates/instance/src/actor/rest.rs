//! An instance without a task: what is left of it when nothing goes on, and its way back.

use std::sync::Arc;

use dormouse_model::{Attempt, State, WorkloadId};
use tokio::sync::{mpsc, watch};

use super::{Actor, Command, Outlets};
use crate::machine::Machine;
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::steps::Parts;
use crate::view::InstanceView;

/// What is left of an instance's task when nothing is outstanding, nothing is timed and it has no process:
/// all that the next task begins with.
#[derive(Debug)]
pub(crate) struct Rested {
    machine: Machine,
    remembered: Remembered,
    caller_attempts: Attempt,
}

impl Rested {
    /// An instance whose machine needs nothing; what was given when it does.
    #[allow(clippy::result_large_err, reason = "handed on at once by the one caller")]
    pub(crate) fn new(machine: Machine, remembered: Remembered) -> Result<Box<Self>, (Machine, Remembered)> {
        if !at_rest(&machine) {
            return Err((machine, remembered));
        }
        Ok(Box::new(Self {
            machine,
            remembered,
            caller_attempts: Attempt(0),
        }))
    }

    /// What others see of it.
    pub(crate) const fn view(&self) -> &InstanceView {
        &self.remembered.view
    }
}

/// Whether a machine needs neither steps nor time nor a process.
fn at_rest(machine: &Machine) -> bool {
    let still = match machine.state() {
        State::Stopped | State::Standby | State::Failed => true,
        State::Starting
        | State::Initializing
        | State::Running
        | State::Dozing
        | State::Sleeping
        | State::Waking
        | State::Stopping
        | State::Deleting => false,
    };
    still && machine.next_deadline().is_none() && machine.outstanding().is_none()
}

impl Actor {
    /// The task of an instance that was at rest.
    pub(crate) fn of_rested(
        rooms: Arc<Rooms>,
        rested: Rested,
        outlets: Outlets,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        let parts = Parts {
            link: rooms.network.link(rested.remembered.view.id),
            ..Parts::default()
        };
        Self {
            caller_attempts: rested.caller_attempts,
            ..Self::new(rooms, rested.machine, rested.remembered, parts, outlets, inbox)
        }
    }

    /// Whose.
    pub(crate) const fn id(&self) -> WorkloadId {
        self.remembered.view.id
    }

    /// What a seat looks at before it takes the instance back.
    pub(crate) const fn ends(&self) -> (&mpsc::Receiver<Command>, &Arc<watch::Sender<InstanceView>>) {
        (&self.inbox, &self.outlets.view)
    }

    /// What rests. What is not kept is empty: see [`Self::restful`].
    pub(crate) fn rested(&self) -> Box<Rested> {
        Box::new(Rested {
            machine: self.machine.clone(),
            remembered: self.remembered.clone(),
            caller_attempts: self.caller_attempts,
        })
    }

    /// Whether everything of this task that rest does not keep is done with.
    pub(super) fn restful(&self) -> bool {
        at_rest(&self.machine)
            && !self.gone
            && !self.detaching
            && self.inbox.is_empty()
            && self.underway.is_empty()
            && self.exits.is_empty()
            && self.agents.is_empty()
            && self.agent_events.is_empty()
            && self.chores.is_empty()
            && self.waiters.is_empty()
            // What was cut short may still write the instance's files.
            && Arc::strong_count(&self.parts.files) == 1
    }
}
