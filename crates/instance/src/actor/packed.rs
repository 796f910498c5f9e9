//! What rests, in few bytes: the body of its record, with what many instances have in common kept once.
//!
//! What is packed is unpacked again at once and compared: what would come back as another is kept as it
//! is. So packing needs no promise of the machine or of the record; it may only fail to save memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;

use crate::machine::{Machine, Residue, Settings};
use crate::record::{InstanceRecord, Remembered, SpecRecord};

/// The common parts of records, each kept once.
#[derive(Debug, Default)]
pub(crate) struct Commons {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By their encoding.
    parts: HashMap<Vec<u8>, Arc<InstanceRecord>>,
    /// How many there may be before those are dropped that nobody has any more.
    sweep_at: usize,
}

/// Fewest parts that are looked through.
const SWEEP: usize = 64;

impl Commons {
    /// The one copy of `part`.
    fn shared(&self, part: InstanceRecord) -> Arc<InstanceRecord> {
        let encoded = part.encode_to_vec();
        // Every change of the map is one insert or remove: a panic elsewhere leaves it whole.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = known.parts.get(&encoded) {
            return Arc::clone(part);
        }
        if known.parts.len() >= known.sweep_at {
            known.parts.retain(|_, part| Arc::strong_count(part) > 1);
            known.sweep_at = SWEEP.max(2 * known.parts.len());
        }
        let part = Arc::new(part);
        known.parts.insert(encoded, Arc::clone(&part));
        part
    }
}

/// A packed instance.
#[derive(Debug)]
pub(super) struct Packed {
    /// What others have too.
    common: Arc<InstanceRecord>,
    /// What it has alone. A message may be cut anywhere between fields: read into the common part, it makes
    /// the record (protobuf encoding, "Last One Wins").
    own: Box<[u8]>,
    residue: Residue,
    revision: u64,
    /// Of a sleep or wake since the daemon started.
    figures: Option<Box<Figures>>,
}

/// What no record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figures {
    last_wake: Option<Duration>,
    last_standby: Option<Duration>,
    last_commit: Option<Duration>,
}

impl Packed {
    /// Packs an instance, if what comes back is the same. `settings` are those that
    /// [`Self::unpack`] will be given.
    pub(super) fn pack(
        commons: &Commons,
        settings: Settings,
        machine: &Machine,
        remembered: &Remembered,
    ) -> Option<Self> {
        let view = &remembered.view;
        let figures = Figures {
            last_wake: view.last_wake,
            last_standby: view.last_standby,
            last_commit: view.last_commit,
        };
        let any = view
            .last_wake
            .or(view.last_standby)
            .or(view.last_commit)
            .is_some();
        let (common, own) = halves(remembered.to_record());
        let packed = Self {
            common: commons.shared(common),
            own: own.encode_to_vec().into(),
            residue: machine.residue()?,
            revision: view.revision,
            figures: any.then(|| Box::new(figures)),
        };
        // The machine's residue was compared with these settings and this record.
        let same = *machine.settings() == settings
            && remembered.life == *machine.record()
            && packed.remembered().as_ref() == Some(remembered);
        same.then_some(packed)
    }

    /// The digest of its image.
    pub(super) fn image_digest(&self) -> &str {
        &self.common.image_digest
    }

    /// What the record and this say of the instance. Never `None`: it was read when it was packed.
    pub(super) fn remembered(&self) -> Option<Remembered> {
        let mut record = InstanceRecord::clone(&self.common);
        record.merge(&*self.own).ok()?;
        let mut remembered = Remembered::from_record(record).ok()?;
        let view = &mut remembered.view;
        view.revision = self.revision;
        if let Some(figures) = &self.figures {
            view.last_wake = figures.last_wake;
            view.last_standby = figures.last_standby;
            view.last_commit = figures.last_commit;
        }
        Some(remembered)
    }

    /// The machine and what is remembered. Never `None`, likewise.
    pub(super) fn unpack(
        &self,
        settings: impl FnOnce(&Remembered) -> Settings,
    ) -> Option<(Machine, Remembered)> {
        let remembered = self.remembered()?;
        let machine = Machine::of_residue(settings(&remembered), remembered.life.clone(), self.residue)?;
        Some((machine, remembered))
    }
}

/// What many records have in common, and the rest. No repeated field is in both.
fn halves(mut record: InstanceRecord) -> (InstanceRecord, InstanceRecord) {
    let name = record.spec.as_mut().map(|spec| std::mem::take(&mut spec.name));
    let common = InstanceRecord {
        spec: record.spec.take(),
        image_digest: std::mem::take(&mut record.image_digest),
        phase: std::mem::take(&mut record.phase),
        memory: record.memory.take(),
        monitor: std::mem::take(&mut record.monitor),
        ..InstanceRecord::default()
    };
    record.spec = name.map(|name| SpecRecord {
        name,
        ..SpecRecord::default()
    });
    (common, record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Limits, Phase, Record, SpillPolicy};
    use crate::record::tests::{asleep, remembered};
    use dormouse_model::workload::SleepSupport;
    use dormouse_model::{FailReason, Generation, OnLostMemory, State};

    const SETTINGS: Settings = Settings {
        limits: Limits::DEFAULT,
        sleep_support: SleepSupport::Able,
        spill: SpillPolicy::Spill,
        on_lost: OnLostMemory::ColdBoot,
        boot: crate::machine::BootId(56),
    };

    /// The machine of `remembered`, if its phase is one in which a machine rests.
    fn machine(remembered: &Remembered) -> Option<Machine> {
        let residue = Machine::new(SETTINGS).residue().unwrap();
        Machine::of_residue(SETTINGS, remembered.life.clone(), residue)
    }

    #[test]
    fn what_rests_comes_back_as_it_was_and_is_small() {
        let mut sleeper = asleep();
        sleeper.view.last_standby = Some(Duration::from_millis(7));
        sleeper.view.revision = 9;
        let mut failed = sleeper.clone();
        let reason = FailReason::HostRebooted;
        (failed.view.state, failed.view.reason) = (State::Failed, reason.to_string());
        failed.view.snapshot = None;
        failed.life = Record {
            phase: Phase::Failed { reason },
            generation: Generation(4),
        };
        let commons = Commons::default();
        for one in [sleeper, failed] {
            let machine = machine(&one).unwrap();
            let packed = Packed::pack(&commons, SETTINGS, &machine, &one).unwrap();
            let back = packed.unpack(|_| SETTINGS).unwrap();
            assert_eq!(back, (machine, one));
            let bytes = size_of::<Packed>() + packed.own.len();
            assert!(bytes < 512, "{bytes} bytes");
        }
    }

    #[test]
    fn what_would_come_back_as_another_is_not_packed() {
        let commons = Commons::default();
        let sleeper = asleep();
        let other = Settings {
            spill: SpillPolicy::Stay,
            ..SETTINGS
        };
        let own = machine(&sleeper).unwrap();
        assert!(Packed::pack(&commons, other, &own, &sleeper).is_none());
        let mut told = sleeper.clone();
        told.view.reason = "what no record says".to_owned();
        assert!(Packed::pack(&commons, SETTINGS, &own, &told).is_none());
        assert_eq!(machine(&remembered()), None, "it runs");
    }

    #[test]
    fn common_parts_are_kept_once_and_go_with_their_last_owner() {
        let commons = Commons::default();
        let part = |uid| InstanceRecord {
            uid,
            ..InstanceRecord::default()
        };
        let first = commons.shared(part(0));
        assert!(Arc::ptr_eq(&first, &commons.shared(part(0))));
        for uid in 1..=200 {
            drop(commons.shared(part(uid)));
        }
        let known = commons.known.lock().unwrap();
        assert!(known.parts.len() <= 2 * SWEEP);
        assert!(known.parts.values().any(|known| Arc::ptr_eq(known, &first)));
    }
}
