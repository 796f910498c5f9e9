//! Whether what a manager finds on a disk after a power loss is what was acknowledged.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_instance::Instances;
use dormouse_instance::view::InstanceView;
use dormouse_model::{State, WorkloadId};

use crate::Outcome;
use crate::puppet::{Sight, Witness};
use crate::workload::{Deed, Lasting};
use crate::world::World;

/// What was acknowledged of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Life {
    made: bool,
    removing: bool,
    removed: bool,
    /// It sleeps, with memory that outlives this, and nothing was asked of it since.
    asleep: Option<Lasting>,
    /// The content with which its guest ran last.
    content: Option<u64>,
}

/// Everything that was known at a point of the log.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    lives: BTreeMap<WorkloadId, Life>,
}

impl Knowledge {
    /// Takes the next deed.
    pub(crate) fn learn(&mut self, deed: &Deed) {
        let (Deed::Made(id)
        | Deed::Runs(id, _)
        | Deed::Slept(id, _)
        | Deed::Settled(id)
        | Deed::Disturbed(id)
        | Deed::Removing(id)
        | Deed::Removed(id)) = deed;
        let life = self.lives.entry(*id).or_default();
        match deed {
            Deed::Made(_) => life.made = true,
            Deed::Runs(_, content) => {
                life.content = Some(*content);
                life.asleep = None;
            }
            Deed::Slept(_, lasting) => life.asleep = Some(*lasting),
            Deed::Settled(_) => life.asleep = Some(Lasting::Reboot),
            Deed::Disturbed(_) => life.asleep = None,
            Deed::Removing(_) => (life.removing, life.asleep) = (true, None),
            Deed::Removed(_) => life.removed = true,
        }
    }
}

/// What came of all cuts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) cut_points: u64,
    pub(crate) acknowledged_lost: u64,
    pub(crate) believed_wrong: u64,
    pub(crate) unreadable: u64,
    pub(crate) unexplained: u64,
    pub(crate) believed: u64,
    pub(crate) refused: u64,
    pub(crate) planted_found: u64,
    pub(crate) log_changes: u64,
    /// Losses are planted: nobody wants to read of each.
    pub(crate) quiet: bool,
}

impl Counts {
    fn say(&self, what: std::fmt::Arguments<'_>) {
        if !self.quiet {
            println!("{what}");
        }
    }

    /// For the harness that reads it.
    pub(crate) fn print(&self) {
        for (name, value) in [
            ("cut_points", self.cut_points),
            ("acknowledged_lost", self.acknowledged_lost),
            ("believed_wrong", self.believed_wrong),
            ("unreadable", self.unreadable),
            ("unexplained", self.unexplained),
            ("believed", self.believed),
            ("refused", self.refused),
            ("planted_found", self.planted_found),
            ("log_changes", self.log_changes),
        ] {
            println!("count {name} {value}");
        }
    }
}

/// Recovers a manager on `disk` and compares.
pub(crate) async fn judge(
    world: &World,
    disk: &Path,
    boot_id: &str,
    known: &Knowledge,
    reboot: bool,
    counts: &mut Counts,
) -> Outcome<()> {
    counts.cut_points += 1;
    let sights = Arc::new(Mutex::new(Vec::new()));
    let witness: Witness = Arc::new({
        let sights = Arc::clone(&sights);
        move |sight| sights.lock().unwrap_or_else(PoisonError::into_inner).push(sight)
    });
    if !disk.join("data").is_dir() {
        // Before the daemon made sure of its directory nothing was acknowledged.
        counts.unreadable += u64::from(known.lives.values().any(|life| life.made));
        return Ok(());
    }
    let (instances, mut tasks) = match world.manager(disk, boot_id, witness).await {
        Ok(started) => started,
        Err(error) => {
            counts.unreadable += 1;
            counts.say(format_args!("unreadable: {error}"));
            return Ok(());
        }
    };
    let found: BTreeMap<WorkloadId, InstanceView> =
        instances.views(None).map(|view| (view.id, view)).collect();
    for (id, life) in &known.lives {
        let Some(view) = found.get(id) else {
            if life.made && !life.removing {
                counts.acknowledged_lost += 1;
                counts.say(format_args!("lost: {id} was made and is not known"));
            }
            continue;
        };
        if life.removed {
            counts.acknowledged_lost += 1;
            counts.say(format_args!("lost: {id} was removed and is {}", view.state));
        } else {
            judge_sleeper(&instances, view, life, reboot, &sights, counts).await;
        }
    }
    let ids: Vec<WorkloadId> = found.keys().copied().collect();
    instances.detach().await;
    tasks.shutdown().await;
    drop(instances);
    world.tidy(ids).await
}

async fn judge_sleeper(
    instances: &Instances,
    view: &InstanceView,
    life: &Life,
    reboot: bool,
    sights: &Arc<Mutex<Vec<Sight>>>,
    counts: &mut Counts,
) {
    let id = view.id;
    // The manager may still be at it: a wake waits for that.
    let view = instances.view(id).unwrap_or_else(|_| view.clone());
    let mut why = view.reason.clone();
    let mut woken = false;
    if view.state == State::Standby {
        match instances.wake(id).await {
            Ok(_) => woken = true,
            Err(error) => {
                // A wake that cannot be trusted fails the instance: its reason says more.
                let reason = instances.view(id).map(|view| view.reason).unwrap_or_default();
                why = format!("{}: {reason}", dormouse_model::error::chain(&error));
            }
        }
    }
    let loaded = sights
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .find_map(|sight| match sight {
            Sight::Loaded(loaded, contents) if *loaded == id => Some(*contents),
            Sight::Loaded(..) | Sight::Runs(..) => None,
        });
    if woken {
        counts.believed += 1;
        if loaded != Some([life.content; 3]) || life.content.is_none() {
            counts.believed_wrong += 1;
            counts.say(format_args!(
                "believed wrong: {id} ran last with {:?}, loaded {loaded:?}",
                life.content
            ));
        }
        return;
    }
    // It was acknowledged that it sleeps.
    let Some(lasting) = life.asleep else { return };
    let may_be_refused = match lasting {
        Lasting::Mount => true,
        Lasting::Boot => reboot,
        Lasting::Reboot => false,
    };
    if why.is_empty() {
        counts.unexplained += 1;
        counts.say(format_args!("unexplained: {id} slept and is {}", view.state));
    } else if may_be_refused {
        counts.refused += 1;
    } else {
        counts.acknowledged_lost += 1;
        counts.say(format_args!("lost: {id} slept and is {}: {why}", view.state));
    }
}
