//! What is left of instances that have no record: removed when a daemon starts.
//!
//! | what | removed when |
//! |---|---|
//! | `instances/ID.removed` | always: a removal gives a folder this name, durably, before anything in it and its record go |
//! | `instances/ID` | never: nobody removed it. Its record was lost, or is in a store that is not this one; it is said |
//! | memory on tmpfs, `ID.ram` | nobody has the id, and there is no folder |
//! | sockets, empty groups, what the keeper holds | nobody has the id, and no record is set aside |
//!
//! What bears neither an id nor a mark is not ours. The key of a record that was set aside may be what is
//! damaged in it, so while there is one nobody's things are known to be nobody's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_model::WorkloadId;
use dormouse_model::error::chain;

use crate::rooms::Rooms;

/// Ends the name of a folder whose instance is being removed.
const REMOVED: &str = ".removed";

/// Whose things stay: every instance with a record, readable or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owners {
    ids: BTreeSet<WorkloadId>,
    marks: BTreeSet<String>,
    /// A record may be of anybody: nothing is known to be a leftover.
    anybody: bool,
}

impl Owners {
    /// The owner behind the key of a sound record.
    pub(crate) fn enter(&mut self, key: &dormouse_store::Key) {
        match key.workload() {
            Some(id) => {
                self.marks.insert(id.mark());
                self.ids.insert(id);
            }
            None => self.anybody = true,
        }
    }

    /// Others are set aside.
    pub(crate) const fn others(&mut self) {
        self.anybody = true;
    }

    /// Whether something called `name` is what is left of an instance: named by an id that nobody has.
    fn left_by_id(&self, name: &str) -> bool {
        !self.anybody && name.parse().is_ok_and(|id: WorkloadId| !self.ids.contains(&id))
    }

    /// The same of something named by a mark.
    fn left_by_mark(&self, name: &str) -> bool {
        !self.anybody && is_mark(name) && !self.marks.contains(name)
    }
}

/// Whether `name` looks like [`WorkloadId::mark`]: the tail of an id that it completes.
fn is_mark(name: &str) -> bool {
    let longest = WorkloadId::from_bits(0).to_string();
    let head = longest
        .len()
        .saturating_sub(WorkloadId::from_bits(0).mark().len());
    let whole = format!("{}{name}", longest.get(..head).unwrap_or_default());
    whole.parse::<WorkloadId>().is_ok_and(|id| id.mark() == name)
}

/// Removes what is left of instances without a record. What cannot be removed is said and stays for the next
/// start: no instance waits for it.
pub(crate) async fn leftovers(rooms: &Rooms, owners: &Owners) {
    let (layout, of_files) = (rooms.layout.clone(), owners.clone());
    let work = move || {
        let sockets = layout.sockets(WorkloadId::from_bits(0));
        let instances = layout.images().instances;
        sweep_files(&instances, was_removed);
        say_unknown(&instances, &of_files);
        sweep_files(&layout.ram, |name| {
            name.strip_suffix(".ram").is_some_and(|id| {
                of_files.left_by_id(id) && fs::symlink_metadata(instances.join(id)).is_err()
            })
        });
        if let Some(folder) = sockets.parent() {
            sweep_files(folder, |name| of_files.left_by_mark(name));
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(%error, "sweeping the folders of instances panicked");
    }
    sweep_groups(rooms, owners);
    sweep_kept(rooms, owners);
}

/// Whether `name` is what a removal calls the folder of an instance.
fn was_removed(name: &str) -> bool {
    name.strip_suffix(REMOVED)
        .is_some_and(|id| id.parse::<WorkloadId>().is_ok())
}

/// Removes the folder of an instance for good: under another name first, durably, so that whatever is left of
/// it, and only that, goes at the next start. Blocking; removing none succeeds.
///
/// # Errors
/// When it cannot be renamed, or not all of it be removed; doing it again goes on.
pub(crate) fn remove_instance(folder: &Path) -> io::Result<()> {
    let removed = folder.with_extension(REMOVED.trim_start_matches('.'));
    remove_tree(&removed)?;
    match fs::rename(folder, &removed) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    if let Some(parent) = folder.parent() {
        fs::File::open(parent)?.sync_all()?;
    }
    remove_tree(&removed)
}

/// Removes a folder with all that is in it; removing none succeeds.
pub(crate) fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says which folders of instances have no record. They hold disks, which nobody asked to be removed.
fn say_unknown(instances: &Path, owners: &Owners) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| owners.left_by_id(name))
        {
            let path = entry.path();
            tracing::warn!(path = %path.display(), "a folder of an instance without a record is kept");
        }
    }
}

/// Removes the entries of `folder` whose names are `left`.
fn sweep_files(folder: &Path, left: impl Fn(&str) -> bool) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "not looked at for leftovers");
            return;
        }
    };
    let paths: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&left))
        .map(|entry| entry.path())
        .collect();
    for path in paths {
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Ok(()) => tracing::info!(path = %path.display(), "leftover of nobody's instance removed"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "leftover not removed"),
        }
    }
}

/// Removes empty groups. One with processes stays: what runs there is not known to be nobody's.
fn sweep_groups(rooms: &Rooms, owners: &Owners) {
    let names = rooms.cgroups.names().unwrap_or_else(|error| {
        tracing::warn!(error = %chain(&error), "groups not looked at for leftovers");
        Vec::new()
    });
    for name in names.iter().filter(|name| owners.left_by_mark(name)) {
        let removed = rooms
            .cgroups
            .group(name)
            .and_then(|group| group.remove(1, |_| ()));
        if let Err(error) = removed {
            tracing::warn!(name, error = %chain(&error), "group without an instance not removed");
        }
    }
}

/// Has let go of what is kept for nobody: every instance with something to be kept has said so.
fn sweep_kept(rooms: &Rooms, owners: &Owners) {
    if !owners.anybody {
        rooms.custodian.settled();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_store::Key;

    fn owners<const N: usize>(keys: [Key; N]) -> Owners {
        let mut owners = Owners::default();
        keys.iter().for_each(|key| owners.enter(key));
        owners
    }

    #[test]
    fn only_what_names_nobodys_instance_is_left() {
        let [owner, gone] = [
            WorkloadId::from_bits(7 << 80 | 5),
            WorkloadId::from_bits(9 << 80 | 6),
        ];
        let known = owners([Key::from(owner)]);
        assert!(known.left_by_id(&gone.to_string()));
        assert!(!known.left_by_id(&owner.to_string()));
        assert!(known.left_by_mark(&gone.mark()));
        assert!(!known.left_by_mark(&owner.mark()));
        for foreign in ["", "lost+found", "web", "tap", "../x", "ILOU000000"] {
            assert!(!known.left_by_id(foreign), "{foreign}");
            assert!(!known.left_by_mark(foreign), "{foreign}");
        }
        // A record set aside under a key that is no id may be of any of them.
        // So may one whose key has an id: that may be what is damaged.
        let mut aside = known;
        aside.others();
        for unsure in [owners([Key::from(owner), Key::from("?")]), aside] {
            assert!(!unsure.left_by_id(&gone.to_string()) && !unsure.left_by_mark(&gone.mark()));
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_a_removal_has_named_goes() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = [WorkloadId::from_bits(5), WorkloadId::from_bits(6)];
        let removed = format!("{second}{REMOVED}");
        let all = [
            first.to_string(),
            removed.clone(),
            "lost+found.removed".to_owned(),
        ];
        for name in &all {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("disk.ext4"), "x").unwrap();
        }
        sweep_files(directory.path(), was_removed);
        sweep_files(&directory.path().join("none"), |_| true);
        assert_eq!(names(directory.path()), [all[0].clone(), all[2].clone()]);
    }

    #[test]
    fn a_removal_goes_on_where_it_was_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let id = WorkloadId::from_bits(5).to_string();
        let folder = directory.path().join(&id);
        for left in [
            vec![],
            vec![id.clone()],
            vec![format!("{id}{REMOVED}")],
            vec![id.clone(), format!("{id}{REMOVED}")],
        ] {
            for name in &left {
                fs::create_dir(directory.path().join(name)).unwrap();
                fs::write(directory.path().join(name).join("disk.ext4"), "x").unwrap();
            }
            remove_instance(&folder).unwrap();
            assert_eq!(names(directory.path()), Vec::<String>::new(), "{left:?}");
        }
    }
}
