//! Changes below one directory that nothing leads out of.
//!
//! A path is walked component by component from the top's descriptor; a link on the way is read and
//! its target walked likewise, an absolute one from the top, as it would be in the guest. So no call
//! ever follows a link by itself, and a `..` that would leave the top is an error, not a clamp. The
//! last component of what is made or removed is never followed.

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use crate::error::{EntryFault, ImageError};
use crate::unpack::entry::MAX_DEPTH;

/// Links that one path may go through, as in the kernel (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;

/// Owner, permissions and time of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Permissions with the set-id and sticky bits.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: i64,
}

/// Why a change was not made.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The entry may not be.
    Fault(EntryFault),
    /// Its contents could not be read.
    Archive(io::Error),
    /// The file system refused.
    Tree { action: &'static str, source: io::Error },
}

impl From<EntryFault> for Trouble {
    fn from(fault: EntryFault) -> Self {
        Self::Fault(fault)
    }
}

fn refused(action: &'static str) -> impl FnOnce(Errno) -> Trouble {
    move |errno| Trouble::Tree {
        action,
        source: errno.into(),
    }
}

/// An open directory of the tree.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    descriptor: Rc<OwnedFd>,
    inode: u64,
}

impl Directory {
    fn open(at: BorrowedFd<'_>, name: &OsStr) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let descriptor = openat(at, name, flags, Mode::empty())?;
        let inode = fstat(&descriptor)?.st_ino;
        Ok(Self {
            descriptor: Rc::new(descriptor),
            inode,
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Its inode number: with a name in it, the place of an entry.
    pub(super) const fn inode(&self) -> u64 {
        self.inode
    }

    /// What stands at `name`, not followed.
    fn look(&self, name: &OsStr) -> Result<Option<FileStat>, Trouble> {
        match fstatat(self.fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(refused("look at")(errno)),
        }
    }
}

fn is_directory(found: &FileStat) -> bool {
    found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

/// What was made by the layer being applied, as inode of the directory and name.
pub(super) type Made = HashSet<(u64, OsString)>;

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    top: Directory,
    /// The last parent that was walked to: entries of one directory follow each other.
    last: Option<(Vec<OsString>, Directory)>,
}

impl Tree {
    /// The tree below the existing directory `top`.
    pub(crate) fn open(top: &Path) -> Result<Self, ImageError> {
        let opened = Directory::open(AT_FDCWD, top.as_os_str());
        Ok(Self {
            top: opened.map_err(ImageError::errno("open", top))?,
            last: None,
        })
    }

    /// The directory at `path`; what is missing of it is made and noted in `made`.
    pub(super) fn parent(&mut self, path: &[OsString], made: &mut Made) -> Result<Directory, Trouble> {
        if let Some((known, directory)) = &self.last
            && known == path
        {
            return Ok(directory.clone());
        }
        let found = self.walk(path, Some(made))?.ok_or(EntryFault::ThroughFile)?;
        self.last = Some((path.to_vec(), found.clone()));
        Ok(found)
    }

    /// The directory at `path`, if there is one.
    pub(super) fn existing_parent(&mut self, path: &[OsString]) -> Result<Option<Directory>, Trouble> {
        self.walk(path, None)
    }

    fn walk(&self, path: &[OsString], mut made: Option<&mut Made>) -> Result<Option<Directory>, Trouble> {
        let mut stack = vec![self.top.clone()];
        let mut pending: VecDeque<OsString> = path.iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                stack.pop();
                if stack.is_empty() {
                    return Err(EntryFault::Escapes.into());
                }
                continue;
            }
            let here = stack.last().unwrap_or(&self.top).clone();
            match Directory::open(here.fd(), &name) {
                Ok(next) => stack.push(next),
                Err(Errno::ENOENT) => {
                    let Some(made) = &mut made else { return Ok(None) };
                    mkdirat(here.fd(), name.as_os_str(), Mode::from_bits_truncate(0o755))
                        .map_err(refused("make the directory of"))?;
                    made.insert((here.inode, name.clone()));
                    stack.push(Directory::open(here.fd(), &name).map_err(refused("open the directory of"))?);
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let target = match readlinkat(here.fd(), name.as_os_str()) {
                        Ok(target) => target,
                        Err(_) if made.is_none() => return Ok(None),
                        Err(_) => return Err(EntryFault::ThroughFile.into()),
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(EntryFault::LinkLoop.into());
                    }
                    if target.as_bytes().starts_with(b"/") {
                        stack.truncate(1);
                    }
                    prepend(&mut pending, &target);
                }
                Err(errno) => return Err(refused("walk to")(errno)),
            }
            if stack.len() > MAX_DEPTH || pending.len() > MAX_DEPTH {
                return Err(EntryFault::Name.into());
            }
        }
        Ok(stack.pop())
    }

    /// Sets the attributes of the top. What keeps the tree private is the directory that it is in.
    pub(super) fn set_root(&mut self, attributes: &Attributes) -> Result<(), Trouble> {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        fchownat(self.top.fd(), "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH).map_err(refused("own"))?;
        let mode = Mode::from_bits_truncate(attributes.mode);
        fchmodat(self.top.fd(), ".", mode, FchmodatFlags::FollowSymlink)
            .map_err(refused("set the permissions of"))
    }

    /// Makes a directory, or changes the one that is there.
    pub(super) fn directory(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), Trouble> {
        let found = parent.look(name)?;
        if !found.as_ref().is_some_and(is_directory) {
            self.clear(parent, name, found)?;
            mkdirat(parent.fd(), name, Mode::from_bits_truncate(0o700)).map_err(refused("make"))?;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(parent.fd(), name, flags, Mode::empty()).map_err(refused("open"))?;
        own(&opened, attributes)
    }

    /// Makes a file with the next `size` bytes of `contents`.
    pub(super) fn file(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        attributes: &Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<(), Trouble> {
        let found = parent.look(name)?;
        self.clear(parent, name, found)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened =
            openat(parent.fd(), name, flags, Mode::from_bits_truncate(0o600)).map_err(refused("make"))?;
        let mut file = File::from(opened);
        copy(contents, &mut file, size)?;
        own(&file, attributes)?;
        let time = TimeSpec::new(attributes.modified, 0);
        futimens(&file, &time, &time).map_err(refused("set the time of"))
    }

    /// Makes a symbolic link; its target is only text here.
    pub(super) fn symlink(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        attributes: &Attributes,
        target: &OsStr,
    ) -> Result<(), Trouble> {
        let found = parent.look(name)?;
        self.clear(parent, name, found)?;
        symlinkat(target, parent.fd(), name).map_err(refused("link"))?;
        own_unfollowed(parent, name, attributes)
    }

    /// Makes a second name for a file of the tree.
    pub(super) fn hard_link(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        target: &[OsString],
    ) -> Result<(), Trouble> {
        let (last, before) = target.split_last().ok_or(EntryFault::LinkTarget)?;
        let holder = self.walk(before, None)?.ok_or(EntryFault::LinkTarget)?;
        let source = holder
            .look(last)?
            .filter(|found| !is_directory(found))
            .ok_or(EntryFault::LinkTarget)?;
        let found = parent.look(name)?;
        // A link to itself is there already, and clearing it would lose it.
        if found.as_ref().is_some_and(|found| found.st_ino == source.st_ino) {
            return Ok(());
        }
        self.clear(parent, name, found)?;
        linkat(
            holder.fd(),
            last.as_os_str(),
            parent.fd(),
            name,
            LinkatFlags::empty(),
        )
        .map_err(refused("link"))
    }

    /// Makes a fifo.
    pub(super) fn fifo(
        &mut self,
        parent: &Directory,
        name: &OsStr,
        attributes: &Attributes,
    ) -> Result<(), Trouble> {
        let found = parent.look(name)?;
        self.clear(parent, name, found)?;
        let mode = Mode::from_bits_truncate(attributes.mode & 0o777);
        mknodat(parent.fd(), name, SFlag::S_IFIFO, mode, 0).map_err(refused("make"))?;
        own_unfollowed(parent, name, attributes)
    }

    /// Removes what stands at `name` so that something else can.
    fn clear(&mut self, parent: &Directory, name: &OsStr, found: Option<FileStat>) -> Result<(), Trouble> {
        match found {
            None => Ok(()),
            Some(found) if is_directory(&found) => {
                self.last = None;
                self.prune_one(parent, name, &Made::new())
            }
            Some(_) => {
                // It may have been a link on the way to the last parent.
                self.last = None;
                unlinkat(parent.fd(), name, UnlinkatFlags::NoRemoveDir).map_err(refused("replace"))
            }
        }
    }

    /// Removes all in `directory` that this layer has not made.
    pub(super) fn prune(&mut self, directory: &Directory, made: &Made) -> Result<(), Trouble> {
        self.last = None;
        prune_all(directory, made, 0)
    }

    /// Removes `name` and what is in it, but for what this layer has made.
    pub(super) fn prune_one(&mut self, parent: &Directory, name: &OsStr, made: &Made) -> Result<(), Trouble> {
        self.last = None;
        match parent.look(name)? {
            None => Ok(()),
            Some(found) => prune_found(parent, name, is_directory(&found), made, 0),
        }
    }

    /// Sets directories' times; one that was removed or covered since needs none.
    pub(super) fn set_directory_times(&mut self, times: Vec<(Vec<OsString>, i64)>) {
        for (path, modified) in times {
            let Some((name, parents)) = path.split_last() else {
                continue;
            };
            if let Ok(Some(parent)) = self.walk(parents, None) {
                let time = TimeSpec::new(modified, 0);
                let _gone = utimensat(
                    parent.fd(),
                    name.as_os_str(),
                    &time,
                    &time,
                    UtimensatFlags::NoFollowSymlink,
                );
            }
        }
    }
}

fn prune_all(directory: &Directory, made: &Made, depth: usize) -> Result<(), Trouble> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listed = Dir::openat(directory.fd(), ".", flags, Mode::empty()).map_err(refused("list"))?;
    let mut children = Vec::new();
    for child in listed.iter() {
        let child = child.map_err(refused("list"))?;
        let name = OsStr::from_bytes(child.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            children.push((name, child.file_type()));
        }
    }
    drop(listed);
    for (name, kind) in children {
        let is_directory = match kind {
            Some(kind) => kind == Type::Directory,
            None => directory.look(&name)?.as_ref().is_some_and(is_directory),
        };
        prune_found(directory, &name, is_directory, made, depth)?;
    }
    Ok(())
}

/// Recursion is as deep as the tree, which [`MAX_DEPTH`] bounds.
fn prune_found(
    parent: &Directory,
    name: &OsStr,
    is_directory: bool,
    made: &Made,
    depth: usize,
) -> Result<(), Trouble> {
    let ours = made.contains(&(parent.inode, name.to_owned()));
    if !is_directory {
        return if ours {
            Ok(())
        } else {
            unlinkat(parent.fd(), name, UnlinkatFlags::NoRemoveDir).map_err(refused("remove"))
        };
    }
    if depth > MAX_DEPTH {
        return Err(EntryFault::Name.into());
    }
    let directory = Directory::open(parent.fd(), name).map_err(refused("open"))?;
    prune_all(&directory, made, depth + 1)?;
    if ours {
        return Ok(());
    }
    match unlinkat(parent.fd(), name, UnlinkatFlags::RemoveDir) {
        // Something of this layer is in it.
        Ok(()) | Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(errno) => Err(refused("remove")(errno)),
    }
}

/// Puts the components of a link's target before what is still to be walked.
fn prepend(pending: &mut VecDeque<OsString>, target: &OsStr) {
    let parts = target.as_bytes().split(|&byte| byte == b'/');
    for part in parts.rev().filter(|part| !part.is_empty() && *part != b".") {
        pending.push_front(OsStr::from_bytes(part).to_owned());
    }
}

/// Owner first: changing it clears the set-id bits.
fn own(file: impl AsFd, attributes: &Attributes) -> Result<(), Trouble> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    fchown(&file, Some(uid), Some(gid)).map_err(refused("own"))?;
    fchmod(&file, Mode::from_bits_truncate(attributes.mode)).map_err(refused("set the permissions of"))
}

fn own_unfollowed(parent: &Directory, name: &OsStr, attributes: &Attributes) -> Result<(), Trouble> {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    fchownat(
        parent.fd(),
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(refused("own"))?;
    let time = TimeSpec::new(attributes.modified, 0);
    utimensat(parent.fd(), name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .map_err(refused("set the time of"))
}

/// Copies exactly `size` bytes.
fn copy(contents: &mut dyn Read, file: &mut File, size: u64) -> Result<(), Trouble> {
    let mut left = size;
    let mut buffer = vec![0_u8; 1 << 16];
    while left > 0 {
        let count = match contents.read(&mut buffer) {
            Ok(0) => return Err(Trouble::Archive(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Trouble::Archive(error)),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        io::Write::write_all(file, bytes).map_err(|source| Trouble::Tree {
            action: "write",
            source,
        })?;
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}
