//! A machine at rest, without what its record says already: ten thousand of them are kept in memory.

use std::time::Duration;

use dormouse_model::{Attempt, SleepTrigger, State};

use super::{Machine, Phase, Readiness, Record, Removal, Rest, Settings};

/// What settings and record do not say of a machine at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residue {
    number: Attempt,
    late_outcomes: u64,
    grace: Duration,
    readiness: Readiness,
    dirty: bool,
    trigger: SleepTrigger,
    removal: Removal,
    stop_from: State,
}

impl Machine {
    /// What it was made with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What is left of the machine beside its settings and its record. `None` when these would bring back
    /// another one: it does not rest, or remembers more.
    #[must_use]
    pub fn residue(&self) -> Option<Residue> {
        let residue = Residue {
            number: self.number,
            late_outcomes: self.late_outcomes,
            grace: self.grace,
            readiness: self.readiness,
            dirty: self.dirty,
            trigger: self.trigger,
            removal: self.removal,
            stop_from: self.stop_from,
        };
        let back = Self::of_residue(self.settings, self.record.clone(), residue)?;
        (back == *self).then_some(residue)
    }

    /// The machine that [`Self::residue`] was of; `None` for a record of a phase in which none rests.
    #[must_use]
    pub fn of_residue(settings: Settings, record: Record, residue: Residue) -> Option<Self> {
        let (mut image, mut lost) = (None, None);
        let rest = match &record.phase {
            Phase::Stopped => Rest::Stopped,
            Phase::Standby { image: kept } => {
                image = Some(*kept);
                Rest::Asleep
            }
            Phase::Cold { lost: why } => {
                lost = Some(why.clone());
                Rest::Asleep
            }
            Phase::Failed { reason } => Rest::Failed(reason.clone()),
            Phase::Starting | Phase::Running { .. } | Phase::Stopping | Phase::Deleting => return None,
        };
        let mut machine = Self {
            rest,
            record,
            image,
            lost,
            number: residue.number,
            late_outcomes: residue.late_outcomes,
            grace: residue.grace,
            readiness: residue.readiness,
            dirty: residue.dirty,
            trigger: residue.trigger,
            removal: residue.removal,
            stop_from: residue.stop_from,
            ..Self::new(settings)
        };
        machine.published = (machine.state(), machine.fail_reason().cloned());
        Some(machine)
    }
}
