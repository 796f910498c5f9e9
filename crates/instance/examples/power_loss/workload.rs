//! What is done to instances while the disk is written down.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_disklab::Disk;
use dormouse_instance::machine::Removal;
use dormouse_instance::memory::Home;
use dormouse_instance::view::SnapshotView;
use dormouse_instance::{CreateRequest, InstanceError, Instances};
use dormouse_model::policy::PolicySetting;
use dormouse_model::spec::Placement;
use dormouse_model::{Bytes, InstanceSpec, OnLostMemory, SleepTrigger, State, WorkloadId};
use dormouse_store::Batch;
use tokio::task::JoinSet;

use crate::Outcome;
use crate::puppet::{Sight, Witness};
use crate::world::World;

/// How long a guest may take until its agent answers.
const READY: Duration = Duration::from_secs(10);
/// Rounds of each instance.
const ROUNDS: u32 = 3;
/// Memory of a guest; only three pages of it are ever written.
const MEMORY: Bytes = Bytes::mib(128);
/// How long it may take until memory is settled.
const SETTLED: Duration = Duration::from_secs(20);

/// What the memory of a sleeper outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// On disk and not settled: nothing.
    Mount,
    /// On tmpfs: a crash of the disk's file system.
    Boot,
    /// On disk and settled: a reboot as well.
    Reboot,
}

/// Something that was known, or was about to be done, at a mark of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deed {
    /// An instance was made: acknowledged.
    Made(WorkloadId),
    /// Its guest is about to run with this content.
    Runs(WorkloadId, u64),
    /// It sleeps: acknowledged.
    Slept(WorkloadId, Lasting),
    /// Its memory is on disk, settled, and nowhere else.
    Settled(WorkloadId),
    /// It is about to be woken or stopped or removed: what was acknowledged of its sleep ends some time from
    /// now.
    Disturbed(WorkloadId),
    /// It is about to be removed.
    Removing(WorkloadId),
    /// It is gone: acknowledged.
    Removed(WorkloadId),
}

/// Notes deeds, each with a mark in the log.
#[derive(Clone)]
struct Notes {
    disk: Arc<Disk>,
    deeds: Arc<Mutex<Vec<Deed>>>,
}

impl Notes {
    fn note(&self, deed: Deed) {
        let mut deeds = self.deeds.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: marks are in the order of the deeds.
        self.disk.mark(u64::try_from(deeds.len()).unwrap_or(u64::MAX));
        deeds.push(deed);
    }
}

/// Runs it.
pub(crate) async fn run(
    world: &World,
    disk: &Arc<Disk>,
    boot_id: &str,
    deeds: &Arc<Mutex<Vec<Deed>>>,
) -> Outcome<()> {
    let notes = Notes {
        disk: Arc::clone(disk),
        deeds: Arc::clone(deeds),
    };
    let witness: Witness = Arc::new({
        let notes = notes.clone();
        move |sight| {
            if let Sight::Runs(id, content) = sight {
                notes.note(Deed::Runs(id, content));
            }
        }
    });
    let (instances, mut tasks) = world.manager(disk.root(), boot_id, witness).await?;
    let mut lives = JoinSet::new();
    for (number, placement) in [Placement::Spill, Placement::Disk, Placement::Tmpfs]
        .into_iter()
        .enumerate()
    {
        let (instances, notes) = (instances.clone(), notes.clone());
        let root = disk.root().to_owned();
        lives.spawn(async move { life(&instances, &notes, &root, number, placement).await });
    }
    let mut outcome = Ok(());
    while let Some(lived) = lives.join_next().await {
        outcome = outcome.and(lived?);
    }
    let ids: Vec<WorkloadId> = instances.ids();
    instances.detach().await;
    tasks.shutdown().await;
    drop(instances);
    world.tidy(ids).await?;
    outcome
}

async fn life(
    instances: &Instances,
    notes: &Notes,
    root: &Path,
    number: usize,
    placement: Placement,
) -> Outcome<()> {
    for round in 0..ROUNDS {
        let spec = InstanceSpec {
            name: format!("guest-{number}-{round}").parse()?,
            image: "one".to_owned(),
            vcpus: 1,
            memory: MEMORY,
            disk: Bytes::mib(16),
            placement,
            entrypoint: Vec::new(),
            command: Vec::new(),
            environment: std::collections::BTreeMap::new(),
            working_directory: None,
            user: None,
            labels: std::collections::BTreeMap::new(),
            standby: PolicySetting::Disabled,
            stop_timeout: Duration::from_secs(1),
            on_lost_memory: OnLostMemory::StayStopped,
        };
        let made = instances
            .create(CreateRequest {
                spec,
                start: false,
                auto_remove: false,
                id: None,
                along: Batch::new(),
            })
            .await?;
        let id = made.id;
        notes.note(Deed::Made(id));
        for boot in 0..2 {
            instances.start(id).await?;
            instances.wait(id, &[State::Running], false, READY).await?;
            sleep(instances, notes, id).await?;
            sleeps(instances, notes, root, id, (placement, boot)).await?;
            if boot == 0 {
                notes.note(Deed::Disturbed(id));
                if placement == Placement::Spill {
                    instances.wake(id).await?;
                }
                instances.stop(id, Some(Duration::from_millis(10))).await?;
            }
        }
        // The last one stays: some are asleep at the end.
        if round + 1 < ROUNDS {
            notes.note(Deed::Removing(id));
            instances.delete(id, Removal::Forced).await?;
            notes.note(Deed::Removed(id));
        }
    }
    Ok(())
}

/// What a sleeper of this placement goes through in its first and second boot.
async fn sleeps(
    instances: &Instances,
    notes: &Notes,
    root: &Path,
    id: WorkloadId,
    (placement, boot): (Placement, u32),
) -> Outcome<()> {
    match (placement, boot) {
        (Placement::Tmpfs | Placement::Auto, 0) => once_more(instances, notes, id).await,
        (Placement::Tmpfs | Placement::Auto, _) => Ok(()),
        (Placement::Disk, _) => {
            once_more(instances, notes, id).await?;
            settled(instances, notes, root, id).await?;
            once_more(instances, notes, id).await
        }
        (Placement::Spill, boot) => {
            if boot == 0 {
                // While it is copied.
                once_more(instances, notes, id).await?;
            }
            settled(instances, notes, root, id).await?;
            // Mapped privately, and written back.
            once_more(instances, notes, id).await?;
            if boot == 0 {
                settled(instances, notes, root, id).await?;
                once_more(instances, notes, id).await?;
            }
            Ok(())
        }
    }
}

async fn once_more(instances: &Instances, notes: &Notes, id: WorkloadId) -> Outcome<()> {
    notes.note(Deed::Disturbed(id));
    instances.wake(id).await?;
    sleep(instances, notes, id).await
}

async fn sleep(instances: &Instances, notes: &Notes, id: WorkloadId) -> Outcome<()> {
    let view = instances.standby(id, SleepTrigger::Caller).await?;
    let lasting = match view.memory.home {
        Home::Tmpfs => Lasting::Boot,
        Home::Disk => Lasting::Mount,
    };
    notes.note(Deed::Slept(id, lasting));
    Ok(())
}

/// Waits until the memory is on disk, settled, and tmpfs has it no more.
async fn settled(instances: &Instances, notes: &Notes, root: &Path, id: WorkloadId) -> Outcome<()> {
    let resident = root.join("ram").join(format!("{id}.ram"));
    let wait = async {
        loop {
            let view = instances.view(id)?;
            if view.snapshot == Some(SnapshotView::Kept { settled: true }) && !resident.exists() {
                return Ok::<(), InstanceError>(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SETTLED, wait).await??;
    notes.note(Deed::Settled(id));
    Ok(())
}
