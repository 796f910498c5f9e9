//! The kernel's requests: each is taken apart, done by [`Passthrough`], and answered.

use std::ffi::OsStr;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    Filesystem, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, mkdirat, mknodat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{LinkatFlags, UnlinkatFlags, Whence, linkat, lseek64, symlinkat};

use crate::deeds::{Done, KEEP, KEEP_CACHE, Passthrough, attributes};
use crate::faults::Call;
use crate::log::{Change, FileId, NodeKind};
use crate::nodes::ROOT;

impl Passthrough {
    fn answer_entry(reply: ReplyEntry, outcome: Done<(FileId, FileStat)>) {
        match outcome {
            Ok((file, stat)) => reply.entry(&KEEP, &attributes(file, &stat), 0),
            Err(error) => reply.error(error as i32),
        }
    }

    fn answer_empty(reply: ReplyEmpty, outcome: Done<()>) {
        match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error as i32),
        }
    }
}

impl Filesystem for Passthrough {
    fn lookup(&mut self, _req: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let found = self.nodes.look_up(parent, name);
        Self::answer_entry(reply, found.map(|(file, stat, _)| (file, stat)));
    }

    fn forget(&mut self, _req: &Request<'_>, ino: u64, nlookup: u64) {
        self.nodes.forget(ino, nlookup);
    }

    fn getattr(&mut self, _req: &Request<'_>, ino: u64, _fh: Option<u64>, reply: ReplyAttr) {
        match self.nodes.stat(ino) {
            // The kernel never asks for what it was told, so times are as old as that.
            Ok(stat) => reply.attr(&KEEP, &attributes(ino, &stat)),
            Err(error) => reply.error(error as i32),
        }
    }

    fn setattr(
        &mut self,
        _req: &Request<'_>,
        ino: u64,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<u64>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<u32>,
        reply: ReplyAttr,
    ) {
        let outcome = size
            .map_or(Ok(()), |size| self.truncate(ino, size))
            .and_then(|()| self.change_attributes(ino, mode, (uid, gid), (atime, mtime)))
            .and_then(|()| self.nodes.stat(ino));
        match outcome {
            Ok(stat) => reply.attr(&KEEP, &attributes(ino, &stat)),
            Err(error) => reply.error(error as i32),
        }
    }

    fn readlink(&mut self, _req: &Request<'_>, ino: u64, reply: ReplyData) {
        match self.nodes.path(ino).and_then(|path| readlinkat(path, "")) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(error as i32),
        }
    }

    fn mknod(
        &mut self,
        req: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
        let permissions = Mode::from_bits_truncate(mode & 0o7777 & !umask);
        let made = self.gate.admit(Call::Name).and_then(|()| {
            mknodat(self.nodes.path(parent)?, name, kind, permissions, u64::from(rdev))?;
            let kind = if kind == SFlag::S_IFREG {
                NodeKind::File
            } else {
                NodeKind::Other
            };
            self.enter(req, parent, name, kind)
        });
        Self::answer_entry(reply, made);
    }

    fn mkdir(
        &mut self,
        req: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let permissions = Mode::from_bits_truncate(mode & 0o7777 & !umask);
        let made = self.gate.admit(Call::Name).and_then(|()| {
            let directory = self.nodes.path(parent)?;
            mkdirat(directory, name, permissions)?;
            fchmodat(directory, name, permissions, FchmodatFlags::FollowSymlink)?;
            self.enter(req, parent, name, NodeKind::Directory)
        });
        Self::answer_entry(reply, made);
    }

    fn unlink(&mut self, _req: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        Self::answer_empty(reply, self.remove(parent, name, UnlinkatFlags::NoRemoveDir));
    }

    fn rmdir(&mut self, _req: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        Self::answer_empty(reply, self.remove(parent, name, UnlinkatFlags::RemoveDir));
    }

    fn symlink(
        &mut self,
        req: &Request<'_>,
        parent: u64,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made = self.gate.admit(Call::Name).and_then(|()| {
            symlinkat(target, self.nodes.path(parent)?, link_name)?;
            let kind = NodeKind::Symlink(target.as_os_str().to_owned());
            self.enter(req, parent, link_name, kind)
        });
        Self::answer_entry(reply, made);
    }

    fn rename(
        &mut self,
        _req: &Request<'_>,
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        Self::answer_empty(reply, self.move_name((parent, name), (newparent, newname), flags));
    }

    fn link(&mut self, _req: &Request<'_>, ino: u64, newparent: u64, newname: &OsStr, reply: ReplyEntry) {
        let made = self.gate.admit(Call::Name).and_then(|()| {
            linkat(
                self.nodes.path(ino)?,
                "",
                self.nodes.path(newparent)?,
                newname,
                LinkatFlags::AT_EMPTY_PATH,
            )?;
            let (file, stat, _) = self.nodes.look_up(newparent, newname)?;
            self.gate.done(Change::Name {
                directory: newparent,
                name: newname.to_owned(),
                file,
            });
            Ok((file, stat))
        });
        Self::answer_entry(reply, made);
    }

    fn open(&mut self, _req: &Request<'_>, ino: u64, flags: i32, reply: ReplyOpen) {
        match self.open_file(ino, flags) {
            Ok(handle) => reply.opened(handle, KEEP_CACHE),
            Err(error) => reply.error(error as i32),
        }
    }

    fn read(
        &mut self,
        _req: &Request<'_>,
        _ino: u64,
        fh: u64,
        offset: i64,
        size: u32,
        _flags: i32,
        _lock_owner: Option<u64>,
        reply: ReplyData,
    ) {
        match self.load(fh, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error as i32),
        }
    }

    fn write(
        &mut self,
        _req: &Request<'_>,
        ino: u64,
        fh: u64,
        offset: i64,
        data: &[u8],
        _write_flags: u32,
        _flags: i32,
        _lock_owner: Option<u64>,
        reply: ReplyWrite,
    ) {
        match self.store(ino, fh, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error as i32),
        }
    }

    // No `flush`: the kernel then never asks at a close, not even when our process ends.

    fn release(
        &mut self,
        _req: &Request<'_>,
        _ino: u64,
        fh: u64,
        _flags: i32,
        _lock_owner: Option<u64>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.files.remove(&fh);
        reply.ok();
    }

    fn fsync(&mut self, _req: &Request<'_>, ino: u64, _fh: u64, _datasync: bool, reply: ReplyEmpty) {
        Self::answer_empty(reply, self.flush_file(ino));
    }

    fn opendir(&mut self, _req: &Request<'_>, ino: u64, _flags: i32, reply: ReplyOpen) {
        match self.list(ino) {
            Ok(handle) => reply.opened(handle, 0),
            Err(error) => reply.error(error as i32),
        }
    }

    fn readdir(&mut self, _req: &Request<'_>, _ino: u64, fh: u64, offset: i64, mut reply: ReplyDirectory) {
        // The listing is of the time when the directory was opened, or of its rewinding.
        let Some(entries) = self.listings.get(&fh) else {
            return reply.error(Errno::EBADF as i32);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (number, (ino, kind, name)) in (1_i64..).zip(entries).skip(from) {
            if reply.add(*ino, number, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&mut self, _req: &Request<'_>, _ino: u64, fh: u64, _flags: i32, reply: ReplyEmpty) {
        self.listings.remove(&fh);
        reply.ok();
    }

    fn fsyncdir(&mut self, _req: &Request<'_>, ino: u64, _fh: u64, _datasync: bool, reply: ReplyEmpty) {
        let flushed = self.gate.admit(Call::Flush).map(|()| {
            self.gate.done(Change::FlushDirectory { directory: ino });
        });
        Self::answer_empty(reply, flushed);
    }

    fn statfs(&mut self, _req: &Request<'_>, _ino: u64, reply: ReplyStatfs) {
        let facts = match self.nodes.path(ROOT).and_then(fstatvfs) {
            Ok(facts) => facts,
            Err(error) => return reply.error(error as i32),
        };
        let size = facts.fragment_size();
        let (mut blocks, mut free) = (facts.blocks(), facts.blocks_available());
        if let (Some(quota), Some(room)) = (self.gate.quota(), self.gate.room()) {
            blocks = quota / size;
            free = free.min(room / size);
        }
        let size = u32::try_from(size).unwrap_or(4096);
        reply.statfs(
            blocks,
            free,
            free,
            facts.files(),
            facts.files_free(),
            size,
            255,
            size,
        );
    }

    fn create(
        &mut self,
        req: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make_file(req, parent, name, mode & 0o7777 & !umask, flags) {
            Ok((file, stat, handle)) => reply.created(&KEEP, &attributes(file, &stat), 0, handle, KEEP_CACHE),
            Err(error) => reply.error(error as i32),
        }
    }

    fn fallocate(
        &mut self,
        _req: &Request<'_>,
        ino: u64,
        fh: u64,
        offset: i64,
        length: i64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        Self::answer_empty(reply, self.allocate(ino, fh, offset, length, mode));
    }

    fn lseek(&mut self, _req: &Request<'_>, _ino: u64, fh: u64, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            nix::libc::SEEK_DATA => Whence::SeekData,
            nix::libc::SEEK_HOLE => Whence::SeekHole,
            _ => return reply.error(Errno::EINVAL as i32),
        };
        match self.file(fh).and_then(|file| lseek64(file, offset, whence)) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(error as i32),
        }
    }
}
