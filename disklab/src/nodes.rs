//! Numbers of files, and the descriptors that lead to them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, lstat};

use crate::log::FileId;

/// The root's number, by FUSE.
pub(crate) const ROOT: FileId = 1;

#[derive(Debug)]
struct Node {
    /// Opened with `O_PATH`: leads to the file whatever it is called.
    path: OwnedFd,
    lookups: u64,
    place: (u64, u64),
}

/// Which number is which file of the backing file system.
///
/// A number belongs to a file for its whole life: it stays known while the file has a name, also when
/// the kernel has forgotten it, since an inode number of the backing file system is used again.
#[derive(Debug)]
pub(crate) struct Nodes {
    open: HashMap<FileId, Node>,
    numbers: HashMap<(u64, u64), FileId>,
    next: FileId,
}

const PATH: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn place(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl Nodes {
    pub(crate) fn new(backing: &Path) -> Result<Self, Errno> {
        let path = open(
            backing,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let place = place(&fstat(&path)?);
        let root = Node {
            path,
            lookups: 1,
            place,
        };
        Ok(Self {
            open: HashMap::from([(ROOT, root)]),
            numbers: HashMap::from([(place, ROOT)]),
            next: ROOT + 1,
        })
    }

    /// Gives the file at `path` this number, before anybody has looked it up.
    pub(crate) fn number_as(&mut self, path: &Path, file: FileId) -> Result<(), Errno> {
        let found = lstat(path)?;
        self.numbers.insert(place(&found), file);
        self.next = self.next.max(file + 1);
        Ok(())
    }

    /// The descriptor that leads to a file.
    pub(crate) fn path(&self, file: FileId) -> Result<BorrowedFd<'_>, Errno> {
        Ok(self.open.get(&file).ok_or(Errno::ESTALE)?.path.as_fd())
    }

    /// Counts a lookup of a name by the kernel. Says whether the number is new.
    pub(crate) fn look_up(
        &mut self,
        parent: FileId,
        name: &OsStr,
    ) -> Result<(FileId, FileStat, bool), Errno> {
        let path = openat(self.path(parent)?, name, PATH, Mode::empty())?;
        let stat = fstat(&path)?;
        let place = place(&stat);
        let fresh = !self.numbers.contains_key(&place);
        let file = *self.numbers.entry(place).or_insert_with(|| {
            let number = self.next;
            self.next += 1;
            number
        });
        self.open
            .entry(file)
            .or_insert(Node {
                path,
                lookups: 0,
                place,
            })
            .lookups += 1;
        Ok((file, stat, fresh))
    }

    /// The number of a name, without counting a lookup.
    pub(crate) fn number(&self, parent: FileId, name: &OsStr) -> Result<FileId, Errno> {
        let stat = fstatat(self.path(parent)?, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        self.numbers.get(&place(&stat)).copied().ok_or(Errno::ESTALE)
    }

    pub(crate) fn stat(&self, file: FileId) -> Result<FileStat, Errno> {
        fstat(self.path(file)?)
    }

    /// The kernel has forgotten `count` lookups.
    pub(crate) fn forget(&mut self, file: FileId, count: u64) {
        let Some(node) = self.open.get_mut(&file) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 || file == ROOT {
            return;
        }
        let gone = fstat(&node.path).is_ok_and(|stat| stat.st_nlink == 0);
        if let Some(node) = self.open.remove(&file)
            && gone
        {
            self.numbers.remove(&node.place);
        }
    }

    /// Opens a file for reading and writing, whatever it is called.
    pub(crate) fn reopen(&self, file: FileId, flags: OFlag) -> Result<File, Errno> {
        let path = format!("/proc/self/fd/{}", self.path(file)?.as_raw_fd());
        Ok(File::from(open(
            path.as_str(),
            flags | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?))
    }
}
