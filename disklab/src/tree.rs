//! One content of a disk.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use crate::content::Content;
use crate::log::FileId;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file and what it holds.
    File(Content),
    /// A symbolic link and where it leads.
    Symlink(OsString),
}

/// Everything that a disk holds, by path beneath its root, parents first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Number, permission bits, owner and group, content.
    pub(crate) entries: BTreeMap<PathBuf, Placed>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) file: FileId,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) entry: Entry,
}

impl Tree {
    /// What is at `path`, which is relative to the root.
    #[must_use]
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.entries.get(path).map(|placed| &placed.entry)
    }

    /// All paths with what is there, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.entries
            .iter()
            .map(|(path, placed)| (path.as_path(), &placed.entry))
    }

    /// Puts what `other` has at and beneath `path` in the place of what is there; nothing without an `other`.
    pub fn replace(&mut self, path: &Path, other: Option<Self>) {
        self.entries.retain(|at, _| !at.starts_with(path));
        let taken = other.into_iter().flat_map(|other| other.entries);
        self.entries.extend(taken.filter(|(at, _)| at.starts_with(path)));
    }

    /// Makes all of it beneath the existing empty directory `root`. Pages of zeros become holes;
    /// two names of one file become hard links.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn write_to(&self, root: &Path) -> io::Result<()> {
        let mut made: BTreeMap<FileId, PathBuf> = BTreeMap::new();
        for (path, placed) in &self.entries {
            let at = root.join(path);
            if let Some(first) = made.get(&placed.file) {
                fs::hard_link(first, &at)?;
                continue;
            }
            match &placed.entry {
                Entry::Directory => fs::create_dir(&at)?,
                Entry::File(content) => write_sparse(&at, content)?,
                Entry::Symlink(target) => {
                    symlink(target, &at)?;
                    continue;
                }
            }
            chown(&at, Some(placed.owner.0), Some(placed.owner.1))?;
            fs::set_permissions(&at, fs::Permissions::from_mode(placed.mode))?;
            if matches!(placed.entry, Entry::File(_)) {
                made.insert(placed.file, at);
            }
        }
        Ok(())
    }
}

fn write_sparse(path: &Path, content: &Content) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create_new(path)?;
    file.set_len(content.size())?;
    for (offset, page) in content.pages() {
        file.write_all_at(page, offset)?;
    }
    Ok(())
}
