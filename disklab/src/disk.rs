//! The mount.

use std::io;
use std::path::{Path, PathBuf};

use fuser::{BackgroundSession, MountOption};

use crate::deeds::Passthrough;
use crate::faults::{Faults, Gate, SharedGate, Tally};
use crate::log::{Change, FileId};
use crate::tree::Tree;

/// A mounted disk; unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    gate: SharedGate,
    root: PathBuf,
    /// Dropping it unmounts; `None` only while that happens.
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts `backing` at the existing directory `at`.
    ///
    /// # Errors
    /// When `/dev/fuse` is not there, we are not root, or one of the directories cannot be opened.
    pub fn mount(backing: &Path, at: &Path) -> io::Result<Self> {
        Self::mount_numbered(backing, at, std::iter::empty())
    }

    /// Writes `tree` into the empty directory `backing` and mounts it at `at`, each file with the number
    /// that it had: what a program knew by inode it finds again.
    ///
    /// # Errors
    /// As [`Disk::mount`], and when the tree cannot be written.
    pub fn mount_tree(tree: &Tree, backing: &Path, at: &Path) -> io::Result<Self> {
        tree.write_to(backing)?;
        let numbers = tree
            .entries
            .iter()
            .map(|(path, placed)| (path.as_path(), placed.file));
        Self::mount_numbered(backing, at, numbers)
    }

    fn mount_numbered<'a>(
        backing: &Path,
        at: &Path,
        numbers: impl Iterator<Item = (&'a Path, FileId)>,
    ) -> io::Result<Self> {
        let gate = SharedGate::new(Gate::default());
        let mut passthrough = Passthrough::new(backing, SharedGate::clone(&gate))?;
        for (path, file) in numbers {
            passthrough.nodes.number_as(&backing.join(path), file)?;
        }
        let options = [
            MountOption::FSName("disklab".to_owned()),
            MountOption::AllowOther,
            MountOption::DefaultPermissions,
        ];
        let session = fuser::spawn_mount2(passthrough, at, &options)?;
        Ok(Self {
            gate,
            root: at.to_owned(),
            session: Some(session),
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Orders what goes wrong from now on, in place of what was ordered before.
    pub fn set_faults(&self, faults: Faults) {
        self.gate.set_faults(faults);
    }

    /// Stops or resumes the keeping of changes; counting goes on. A log with a gap cannot be replayed.
    pub fn set_silent(&self, silent: bool) {
        self.gate.set_silent(silent);
    }

    /// Writes `number` into the log at this point.
    pub fn mark(&self, number: u64) {
        self.gate.done(Change::Mark(number));
    }

    /// What was counted.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.gate.tally()
    }

    /// Everything that was done, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Change> {
        self.gate.log()
    }

    /// How many changes the log has.
    #[must_use]
    pub fn log_length(&self) -> usize {
        self.gate.length()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A delay must not hold the server's thread while it is to end.
        self.gate.set_faults(Faults::default());
        drop(self.session.take());
    }
}
