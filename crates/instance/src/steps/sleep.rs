//! Saving a guest: device state, and the pages that a private mapping dirtied.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use dormouse_hypervisor::ProcessIdentity;
use dormouse_hypervisor::memory::write_back_private;
use dormouse_model::error::chain;
use dormouse_model::{Generation, WorkloadId};

use super::{Change, Outcome, StepContext, distrust, failure, file_failure, missing};
use crate::machine::{Done, StepFailure};
use crate::memory::{GuestRam, ImageFiles};
use crate::record::{InstanceRecord, Remembered};
use crate::trust::seal::Seal;

impl StepContext {
    /// Saves device state as `generation`, writes the manifest and makes both durable. Memory is not copied:
    /// a shared mapping is the file already, and of a private one only the pages dirtied since the wake are
    /// written. What cannot be saved whole is removed: on a full disk it would take the room of others.
    pub(super) async fn save(self, generation: Generation) -> Outcome {
        let (id, layout) = (self.remembered.view.id, self.rooms.layout.clone());
        let outcome = self.save_whole(generation).await;
        if outcome.is_err() {
            // A file that stays is replaced by the next sleep.
            let _left = super::blocking(move || drop_state(&layout.instance(id), generation)).await;
        }
        outcome
    }

    async fn save_whole(self, generation: Generation) -> Outcome {
        let id = self.remembered.view.id;
        let vm = self.vm()?;
        let layout = self.rooms.layout.clone();
        let path = layout.state_file(id, generation.0);
        let file = new_state_file(&path)?;
        let handle = file
            .try_clone()
            .map_err(|error| file_failure("duplicating", &path, &error))?;
        vm.snapshot(OwnedFd::from(handle))
            .await
            .map_err(|error| failure(&error))?;
        self.still_untouched().await?;
        let process = vm.process().clone();
        let ram = self.remembered.view.memory;
        if ram.writes_back() {
            let files = layout.images();
            self.alone(move || write_back(&process, &files, id, &ram)).await?;
        }
        let (boot, monitor) = (self.rooms.boot(), self.monitor_part());
        let image = super::blocking(move || {
            let seal = Seal {
                layout: &layout,
                id,
                generation,
                boot,
                ram,
                monitor,
                state: &file,
            };
            seal.make().map_err(distrust)
        })
        .await?;
        Ok((Done::Image(image), Change::Nothing))
    }
}

impl StepContext {
    /// What the store says of this instance. It answers in the order in which it was asked: behind a commit
    /// that it was handed and of which nobody waited for the end.
    pub(super) async fn read_back(self) -> Outcome {
        let id = self.remembered.view.id;
        let record = self.rooms.store.get::<InstanceRecord>(id).await;
        let record = record.map_err(|error| failure(&error))?;
        let remembered = match record.map(Remembered::from_record) {
            Some(Ok(remembered)) => remembered,
            Some(Err(error)) => return Err(StepFailure::Lasting { why: chain(&error) }),
            None => return Err(missing("record")),
        };
        Ok((Done::Recorded(Box::new(remembered.life)), Change::Nothing))
    }

    /// Removes what a commit may name. That the removal outlives this boot does not matter: neither does an image
    /// whose memory nobody has flushed.
    pub(super) async fn discard(self, generation: Generation) -> Outcome {
        let folder = self.rooms.layout.instance(self.remembered.view.id);
        super::blocking(move || drop_state(&folder, generation))
            .await
            .map(super::plain)
    }

    /// A process of the host that was preempted between asking for a route and sending may have reached
    /// the tap after it was drained, and what is in the tap's queue goes with the tap: so it is looked at
    /// again now that the guest has stopped, before anything is final.
    async fn still_untouched(&self) -> Result<(), StepFailure> {
        let (Some(link), Some(drained)) = (&self.parts.link, &self.parts.drained) else {
            return Ok(());
        };
        match link.untouched_since(drained).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StepFailure::Passing {
                why: "a packet came while the guest stopped".to_owned(),
            }),
            Err(error) => Err(failure(&error)),
        }
    }
}

/// The empty file of a new generation: a leftover of an abandoned sleep is replaced.
fn new_state_file(path: &Path) -> Result<File, StepFailure> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| file_failure("making", path, &error))
}

/// Writes what the guest dirtied since its wake into its file, in place: that wake consumed the image
/// that the file was, so nothing is lost if this is cut short, and the process still has every page.
fn write_back(
    process: &ProcessIdentity,
    files: &ImageFiles,
    id: WorkloadId,
    ram: &GuestRam,
) -> Result<(), StepFailure> {
    let file = files.open(id, ram).map_err(|error| failure(&error))?;
    let written = write_back_private(process, file.as_fd(), ram.size).map_err(|error| failure(&error))?;
    metrics::counter!(crate::metrics::WRITTEN_BACK_BYTES).increment(written.bytes);
    tracing::debug!(instance_id = %id, ranges = written.ranges, bytes = written.bytes, "pages written back");
    Ok(())
}

/// Removes the saved states, and the manifests, of sleeps before `kept`: their wakes have consumed them. Blocking.
pub(crate) fn drop_earlier_states(folder: &Path, kept: Generation) -> Result<(), StepFailure> {
    super::remove_matching(folder, |name| {
        sleep_of(name).is_some_and(|number| number < kept.0)
    })
}

/// Removes the saved state, and the manifest, of this one sleep, which no record names. Blocking.
fn drop_state(folder: &Path, generation: Generation) -> Result<(), StepFailure> {
    super::remove_matching(folder, |name| sleep_of(name) == Some(generation.0))
}

/// Of which sleep a file with this name is the state or the manifest.
fn sleep_of(name: &str) -> Option<u64> {
    ["state.", "manifest."]
        .iter()
        .find_map(|beginning| name.strip_prefix(beginning))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_states_of_earlier_sleeps_are_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        for name in [
            "state.8",
            "manifest.8",
            "manifest.10",
            "state.9",
            "state.10",
            "state.11",
            "state.x",
            "disk.ext4",
        ] {
            std::fs::write(scratch.path().join(name), name).unwrap();
        }
        drop_earlier_states(scratch.path(), Generation(10)).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["disk.ext4", "manifest.10", "state.10", "state.11", "state.x"]
        );
        assert!(drop_earlier_states(&scratch.path().join("gone"), Generation(1)).is_ok());
        drop_state(scratch.path(), Generation(10)).unwrap();
        for (name, there) in [
            ("state.10", false),
            ("manifest.10", false),
            ("state.11", true),
            ("state.x", true),
        ] {
            assert_eq!(scratch.path().join(name).exists(), there, "{name}");
        }
    }
}
