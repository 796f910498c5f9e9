//! An instance without a task: what is left of it when nothing goes on, and its way back.

use std::sync::Arc;

use dormouse_model::{Attempt, State, WorkloadId};
use tokio::sync::{mpsc, watch};

use super::packed::{Commons, Packed};
use super::{Actor, Command, Outlets};
use crate::machine::{Machine, Settings};
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::steps::Parts;
use crate::view::InstanceView;

/// What is left of an instance's task when nothing is outstanding, nothing is timed and it has no process:
/// all that the next task begins with.
#[derive(Debug)]
pub(crate) struct Rested {
    kept: Kept,
    state: State,
    caller_attempts: Attempt,
}

/// How it is kept.
#[derive(Debug)]
enum Kept {
    Packed(Packed),
    /// What packing would not bring back as it is.
    Whole(Box<(Machine, Remembered)>),
}

impl Rested {
    /// An instance whose machine needs nothing; what was given when it does.
    #[allow(clippy::result_large_err, reason = "handed on at once by the one caller")]
    pub(crate) fn new(
        rooms: &Rooms,
        commons: &Commons,
        machine: Machine,
        remembered: Remembered,
    ) -> Result<Box<Self>, (Machine, Remembered)> {
        if at_rest(&machine) {
            Ok(Self::of(rooms, commons, &machine, &remembered, Attempt(0)))
        } else {
            Err((machine, remembered))
        }
    }

    fn of(
        rooms: &Rooms,
        commons: &Commons,
        machine: &Machine,
        remembered: &Remembered,
        caller_attempts: Attempt,
    ) -> Box<Self> {
        let settings = settings(rooms, remembered);
        let kept = Packed::pack(commons, settings, machine, remembered).map_or_else(
            || Kept::Whole(Box::new((machine.clone(), remembered.clone()))),
            Kept::Packed,
        );
        Box::new(Self {
            kept,
            state: remembered.view.state,
            caller_attempts,
        })
    }

    /// What `look` sees of it.
    pub(crate) fn see<T>(&self, look: impl FnOnce(&InstanceView) -> T) -> Option<T> {
        match &self.kept {
            Kept::Packed(packed) => packed.remembered().map(|remembered| look(&remembered.view)),
            Kept::Whole(whole) => Some(look(&whole.1.view)),
        }
    }

    /// Its state, which takes no unpacking.
    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Whether its image has this digest; takes no unpacking either.
    pub(crate) fn uses(&self, digest: &str) -> bool {
        match &self.kept {
            Kept::Packed(packed) => packed.image_digest() == digest,
            Kept::Whole(whole) => whole.1.view.image_digest == digest,
        }
    }

    fn unpack(self, rooms: &Rooms) -> Option<(Machine, Remembered)> {
        match self.kept {
            Kept::Packed(packed) => packed.unpack(|remembered| settings(rooms, remembered)),
            Kept::Whole(whole) => Some(*whole),
        }
    }
}

/// What the machine of an instance is made with.
pub(crate) fn settings(rooms: &Rooms, remembered: &Remembered) -> Settings {
    let view = &remembered.view;
    rooms.machine_settings(&view.memory, view.spec.on_lost_memory)
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
    /// The task of an instance that was at rest; its ends are made from its view. `None` for one that does
    /// not come back, which packing has ruled out.
    pub(crate) fn of_rested<T>(
        rooms: &Arc<Rooms>,
        rested: Rested,
        outlets: impl FnOnce(&InstanceView) -> (Outlets, mpsc::Receiver<Command>, T),
    ) -> Option<(Self, T)> {
        let caller_attempts = rested.caller_attempts;
        let (machine, remembered) = rested.unpack(rooms)?;
        let parts = Parts {
            link: rooms.network.link(remembered.view.id),
            ..Parts::default()
        };
        let (outlets, inbox, task) = outlets(&remembered.view);
        let actor = Self {
            caller_attempts,
            ..Self::new(Arc::clone(rooms), machine, remembered, parts, outlets, inbox)
        };
        Some((actor, task))
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
    pub(crate) fn rested(&self, commons: &Commons) -> Box<Rested> {
        let (machine, remembered) = (&self.machine, &self.remembered);
        Rested::of(&self.rooms, commons, machine, remembered, self.caller_attempts)
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
