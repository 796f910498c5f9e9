//! What is left of instances that have no record: removed when a daemon starts.
//!
//! A removal takes files away before the record, and neither waits for the other to reach the disk: after a
//! power loss the record can be gone and a folder still there. Everything that is made for an instance bears
//! its id or its mark, so leftovers are found by what they are called. What bears neither is not ours; what
//! belongs to a record that cannot be read is kept, because the record may be put right.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_keeper::HeldName;
use dormouse_model::WorkloadId;
use dormouse_model::error::chain;

use crate::rooms::Rooms;

/// Whose things stay: every instance with a record, readable or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owners {
    ids: BTreeSet<WorkloadId>,
    marks: BTreeSet<String>,
    /// A record is of nobody knows whom: nothing is anybody's leftover.
    anybody: bool,
}

impl Owners {
    /// The owners behind the keys of all records, those set aside included.
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = &'a dormouse_store::Key>) -> Self {
        let mut owners = Self::default();
        for key in keys {
            match key.workload() {
                Some(id) => {
                    owners.marks.insert(id.mark());
                    owners.ids.insert(id);
                }
                None => owners.anybody = true,
            }
        }
        owners
    }

    /// Whether something called `name` is what is left of an instance: named by an id that nobody has.
    fn left_by_id(&self, name: &str) -> bool {
        !self.anybody && name.parse().is_ok_and(|id: WorkloadId| !self.ids.contains(&id))
    }

    /// The same of something named by a mark.
    fn left_by_mark(&self, name: &str) -> bool {
        !self.anybody && is_mark(name) && !self.marks.contains(name)
    }

    /// The same of something that the keeper holds, `ID/WHAT`.
    fn left_in_keeper(&self, name: &str) -> bool {
        name.split_once('/').is_some_and(|(id, _)| self.left_by_id(id))
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
        sweep_files(&layout.data.join("instances"), |name| of_files.left_by_id(name));
        sweep_files(&layout.ram, |name| {
            name.strip_suffix(".ram")
                .is_some_and(|id| of_files.left_by_id(id))
        });
        if let Some(folder) = sockets.parent() {
            sweep_files(folder, |name| of_files.left_by_mark(name));
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(work).await {
        tracing::error!(%error, "sweeping the folders of instances panicked");
    }
    sweep_groups(rooms, owners);
    sweep_keeper(rooms, owners).await;
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

/// Has the keeper let go of what it holds for nobody.
async fn sweep_keeper(rooms: &Rooms, owners: &Owners) {
    let held = match rooms.holder.list().await {
        Ok(held) => held,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the keeper not asked for leftovers");
            return;
        }
    };
    let names = held.into_iter().map(|entry| entry.name);
    let left: Vec<HeldName> = names
        .filter(|name| owners.left_in_keeper(&name.to_string()))
        .collect();
    for name in left {
        if let Err(error) = rooms.holder.remove(&name).await {
            tracing::warn!(%name, error = %chain(&error), "the keeper still holds it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_store::Key;

    #[test]
    fn only_what_names_nobodys_instance_is_left() {
        let [owner, gone] = [
            WorkloadId::from_bits(7 << 80 | 5),
            WorkloadId::from_bits(9 << 80 | 6),
        ];
        let owners = Owners::new(&[Key::from(owner)]);
        assert!(owners.left_by_id(&gone.to_string()));
        assert!(!owners.left_by_id(&owner.to_string()));
        assert!(owners.left_by_mark(&gone.mark()));
        assert!(!owners.left_by_mark(&owner.mark()));
        assert!(owners.left_in_keeper(&format!("{gone}/tap")));
        assert!(!owners.left_in_keeper(&format!("{owner}/tap")));
        for foreign in ["", "lost+found", "web", "tap", "../x", "ILOU000000"] {
            assert!(!owners.left_by_id(foreign), "{foreign}");
            assert!(!owners.left_by_mark(foreign), "{foreign}");
            assert!(!owners.left_in_keeper(foreign), "{foreign}");
        }
        // A record set aside under a key that is no id may be of any of them.
        let unsure = Owners::new(&[Key::from(owner), Key::from("?")]);
        assert!(!unsure.left_by_id(&gone.to_string()) && !unsure.left_by_mark(&gone.mark()));
    }

    #[test]
    fn folders_and_files_of_nobody_go_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let [owner, gone] = [WorkloadId::from_bits(5), WorkloadId::from_bits(6)];
        let owners = Owners::new(&[Key::from(owner)]);
        for name in [owner.to_string(), gone.to_string(), "lost+found".to_owned()] {
            fs::create_dir(directory.path().join(&name)).unwrap();
            fs::write(directory.path().join(&name).join("disk.ext4"), "x").unwrap();
        }
        sweep_files(directory.path(), |name| owners.left_by_id(name));
        sweep_files(&directory.path().join("none"), |_| true);
        let mut stay: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        stay.sort();
        assert_eq!(stay, [owner.to_string(), "lost+found".to_owned()]);
    }
}
