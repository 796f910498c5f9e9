//! What is asked, done to the backing directory and written down.
//!
//! The session answers one request after another, so the order of the log is the order in which
//! things were done, and a flush covers exactly what is before it in the log.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _, FileTypeExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Request, TimeOrNow};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, renameat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence, fchownat, ftruncate, lseek64, unlinkat};

use crate::faults::{Call, SharedGate};
use crate::log::{Change, FileId, NodeKind};
use crate::nodes::Nodes;

/// How long the kernel may keep what it was told: nobody else changes the backing directory.
pub(crate) const KEEP: Duration = Duration::from_secs(3600);
/// `FOPEN_KEEP_CACHE` of linux/fuse.h: pages stay over an open, for the same reason.
pub(crate) const KEEP_CACHE: u32 = 1 << 1;
/// Bytes in which `st_blocks` counts.
const BLOCK: u64 = 512;

/// What comes of a request.
pub(crate) type Done<T> = Result<T, Errno>;

/// The file system.
#[derive(Debug)]
pub(crate) struct Passthrough {
    pub(crate) gate: SharedGate,
    pub(crate) nodes: Nodes,
    pub(crate) files: HashMap<u64, File>,
    pub(crate) listings: HashMap<u64, Vec<(u64, FileType, OsString)>>,
    next_handle: u64,
}

impl Passthrough {
    pub(crate) fn new(backing: &Path, gate: SharedGate) -> io::Result<Self> {
        Ok(Self {
            gate,
            nodes: Nodes::new(backing)?,
            files: HashMap::new(),
            listings: HashMap::new(),
            next_handle: 1,
        })
    }

    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    pub(crate) fn file(&self, handle: u64) -> Done<&File> {
        self.files.get(&handle).ok_or(Errno::EBADF)
    }

    /// A node that has just been made under `name`.
    pub(crate) fn enter(
        &mut self,
        req: &Request<'_>,
        parent: FileId,
        name: &OsStr,
        kind: NodeKind,
    ) -> Done<(FileId, FileStat)> {
        let owner = (Some(Uid::from_raw(req.uid())), Some(Gid::from_raw(req.gid())));
        fchownat(
            self.nodes.path(parent)?,
            name,
            owner.0,
            owner.1,
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        let (file, stat, _) = self.nodes.look_up(parent, name)?;
        self.gate.done(Change::Made { file, kind });
        self.note_attributes(file, &stat);
        self.gate.done(Change::Name {
            directory: parent,
            name: name.to_owned(),
            file,
        });
        Ok((file, stat))
    }

    pub(crate) fn note_attributes(&self, file: FileId, stat: &FileStat) {
        self.gate.done(Change::Attributes {
            file,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
        });
    }

    /// Counts what a file holds before and after `act`.
    pub(crate) fn measured<T>(&self, file: &File, act: impl FnOnce() -> Done<T>) -> Done<T> {
        let before = fstat(file)?;
        let outcome = act();
        let after = fstat(file)?;
        self.gate.count_used(held(&before), held(&after));
        outcome
    }

    pub(crate) fn truncate(&self, file: FileId, size: u64) -> Done<()> {
        self.gate.admit(Call::Data)?;
        let opened = self.nodes.reopen(file, OFlag::O_WRONLY)?;
        self.measured(&opened, || ftruncate(&opened, signed(size)?))?;
        self.gate.done(Change::Truncate { file, size });
        Ok(())
    }

    pub(crate) fn load(&self, handle: u64, offset: i64, length: u32) -> Done<Vec<u8>> {
        let file = self.file(handle)?;
        let mut buffer = vec![0; length as usize];
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let at = unsigned(offset)? + filled as u64;
            match file.read_at(rest, at).map_err(|error| errno(&error))? {
                0 => break,
                more => filled += more,
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    pub(crate) fn store(&self, file: FileId, handle: u64, offset: i64, data: &[u8]) -> Done<u32> {
        self.gate.admit(Call::Data)?;
        let opened = self.file(handle)?;
        let offset = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let fits = self.fitting(opened, offset, data.len())?;
        let data = data.get(..fits).unwrap_or(data);
        self.measured(opened, || {
            opened.write_all_at(data, offset).map_err(|error| errno(&error))
        })?;
        self.gate.done(Change::Write {
            file,
            offset,
            data: Arc::from(data),
        });
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    /// How much of a write the quota allows; ENOSPC when nothing.
    pub(crate) fn fitting(&self, file: &File, offset: u64, length: usize) -> Done<usize> {
        let Some(room) = self.gate.room() else {
            return Ok(length);
        };
        // The last page that is begun counts as a whole.
        if length as u64 + 4096 <= room || !has_hole(file, offset, length as u64)? {
            return Ok(length);
        }
        let fits = usize::try_from(room.saturating_sub(4096) / 4096 * 4096).unwrap_or(0);
        if fits == 0 {
            self.gate.count_failed();
            return Err(Errno::ENOSPC);
        }
        Ok(fits.min(length))
    }

    pub(crate) fn allocate(
        &self,
        file: FileId,
        handle: u64,
        offset: i64,
        length: i64,
        mode: i32,
    ) -> Done<()> {
        self.gate.admit(Call::Data)?;
        let opened = self.file(handle)?;
        let flags = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        let known = FallocateFlags::FALLOC_FL_KEEP_SIZE
            | FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | FallocateFlags::FALLOC_FL_ZERO_RANGE;
        if !known.contains(flags) {
            return Err(Errno::EOPNOTSUPP);
        }
        let (start, bytes) = (unsigned(offset)?, unsigned(length)?);
        let zeroes =
            flags.intersects(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_ZERO_RANGE);
        if !flags.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE)
            && self.gate.room().is_some_and(|room| bytes > room)
            && has_hole(opened, start, bytes)?
        {
            self.gate.count_failed();
            return Err(Errno::ENOSPC);
        }
        let before = fstat(opened)?.st_size;
        self.measured(opened, || fallocate(opened, flags, offset, length))?;
        let after = fstat(opened)?.st_size;
        if zeroes {
            self.gate.done(Change::Zero {
                file,
                offset: start,
                length: bytes,
            });
        }
        if after != before {
            let size = unsigned(after)?;
            self.gate.done(Change::Truncate { file, size });
        }
        Ok(())
    }

    pub(crate) fn change_attributes(
        &self,
        file: FileId,
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
        times: (Option<TimeOrNow>, Option<TimeOrNow>),
    ) -> Done<()> {
        let path = proc_path(&self.nodes.path(file)?);
        if mode.is_some() || owner.0.is_some() || owner.1.is_some() {
            self.gate.admit(Call::Name)?;
        }
        if let Some(mode) = mode {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(
                nix::fcntl::AT_FDCWD,
                path.as_str(),
                mode,
                FchmodatFlags::FollowSymlink,
            )?;
        }
        if owner.0.is_some() || owner.1.is_some() {
            let (uid, gid) = (owner.0.map(Uid::from_raw), owner.1.map(Gid::from_raw));
            fchownat(self.nodes.path(file)?, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if times.0.is_some() || times.1.is_some() {
            let (accessed, modified) = (time(times.0), time(times.1));
            utimensat(
                nix::fcntl::AT_FDCWD,
                path.as_str(),
                &accessed,
                &modified,
                UtimensatFlags::FollowSymlink,
            )?;
        }
        if mode.is_some() || owner.0.is_some() || owner.1.is_some() {
            self.note_attributes(file, &self.nodes.stat(file)?);
        }
        Ok(())
    }

    pub(crate) fn remove(&self, parent: FileId, name: &OsStr, flag: UnlinkatFlags) -> Done<()> {
        self.gate.admit(Call::Removal)?;
        let directory = self.nodes.path(parent)?;
        let stat = nix::sys::stat::fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        unlinkat(directory, name, flag)?;
        self.note_replaced(&stat);
        self.gate.done(Change::Unname {
            directory: parent,
            name: name.to_owned(),
        });
        Ok(())
    }

    /// A name of the file was taken away. A last one frees its bytes (also when it is still open:
    /// a quota is no more exact than that).
    pub(crate) fn note_replaced(&self, stat: &FileStat) {
        if stat.st_nlink == 1
            && SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG
        {
            self.gate.count_used(held(stat), 0);
        }
    }

    pub(crate) fn move_name(&self, from: (FileId, &OsStr), to: (FileId, &OsStr), flags: u32) -> Done<()> {
        self.gate.admit(Call::Name)?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        let file = self.nodes.number(from.0, from.1)?;
        let (source, target) = (self.nodes.path(from.0)?, self.nodes.path(to.0)?);
        let replaced = nix::sys::stat::fstatat(target, to.1, AtFlags::AT_SYMLINK_NOFOLLOW);
        renameat2(source, from.1, target, to.1, flags)?;
        if let Ok(stat) = replaced {
            self.note_replaced(&stat);
        }
        self.gate.done(Change::Rename {
            from: from.0,
            old: from.1.to_owned(),
            to: to.0,
            new: to.1.to_owned(),
            file,
        });
        Ok(())
    }

    pub(crate) fn open_file(&mut self, file: FileId, flags: i32) -> Done<u64> {
        // Reading is needed for a partial page; appending is the kernel's arithmetic, and the rest was
        // done by earlier requests.
        let access = match OFlag::from_bits_truncate(flags & nix::libc::O_ACCMODE) {
            OFlag::O_RDONLY => OFlag::O_RDONLY,
            _ => OFlag::O_RDWR,
        };
        let opened = self.nodes.reopen(file, access)?;
        let handle = self.handle();
        self.files.insert(handle, opened);
        Ok(handle)
    }

    pub(crate) fn make_file(
        &mut self,
        req: &Request<'_>,
        parent: FileId,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Done<(FileId, FileStat, u64)> {
        self.gate.admit(Call::Name)?;
        mknodat(
            self.nodes.path(parent)?,
            name,
            SFlag::S_IFREG,
            Mode::from_bits_truncate(mode),
            0,
        )?;
        fchmodat(
            self.nodes.path(parent)?,
            name,
            Mode::from_bits_truncate(mode),
            FchmodatFlags::FollowSymlink,
        )?;
        let (file, stat) = self.enter(req, parent, name, NodeKind::File)?;
        let handle = self.open_file(file, flags | nix::libc::O_RDWR)?;
        Ok((file, stat, handle))
    }

    pub(crate) fn flush_file(&self, file: FileId) -> Done<()> {
        self.gate.admit(Call::Flush)?;
        // The backing file system's own durability is not what is tested.
        self.gate.done(Change::Flush { file });
        Ok(())
    }

    pub(crate) fn list(&mut self, directory: FileId) -> Done<u64> {
        let entries = std::fs::read_dir(proc_path(&self.nodes.path(directory)?))
            .and_then(|entries| {
                entries
                    .map(|entry| {
                        let entry = entry?;
                        Ok((entry.ino(), kind_of_entry(entry.file_type()?), entry.file_name()))
                    })
                    .collect::<io::Result<Vec<_>>>()
            })
            .map_err(|error| errno(&error))?;
        let handle = self.handle();
        self.listings.insert(handle, entries);
        Ok(handle)
    }
}

fn held(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK
}

/// Whether the range needs room that the file does not hold yet.
fn has_hole(file: &File, offset: u64, length: u64) -> Done<bool> {
    match lseek64(file, signed(offset)?, Whence::SeekHole) {
        Ok(hole) => Ok(unsigned(hole)? < offset + length),
        // Behind the end.
        Err(Errno::ENXIO) => Ok(true),
        Err(error) => Err(error),
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn signed(value: u64) -> Done<i64> {
    i64::try_from(value).map_err(|_| Errno::EFBIG)
}

fn unsigned(value: i64) -> Done<u64> {
    u64::try_from(value).map_err(|_| Errno::EINVAL)
}

fn time(wanted: Option<TimeOrNow>) -> TimeSpec {
    match wanted {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => {
            TimeSpec::from_duration(time.duration_since(UNIX_EPOCH).unwrap_or_default())
        }
    }
}

fn system_time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

fn kind_of_entry(kind: std::fs::FileType) -> FileType {
    if kind.is_dir() {
        FileType::Directory
    } else if kind.is_symlink() {
        FileType::Symlink
    } else if kind.is_socket() {
        FileType::Socket
    } else if kind.is_fifo() {
        FileType::NamedPipe
    } else if kind.is_char_device() {
        FileType::CharDevice
    } else if kind.is_block_device() {
        FileType::BlockDevice
    } else {
        FileType::RegularFile
    }
}

/// A path that leads to what a descriptor is.
fn proc_path(descriptor: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

fn kind_of(mode: u32) -> FileType {
    match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => FileType::Directory,
        SFlag::S_IFLNK => FileType::Symlink,
        SFlag::S_IFSOCK => FileType::Socket,
        SFlag::S_IFIFO => FileType::NamedPipe,
        SFlag::S_IFCHR => FileType::CharDevice,
        SFlag::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(crate) fn attributes(file: FileId, stat: &FileStat) -> FileAttr {
    FileAttr {
        ino: file,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: system_time(stat.st_atime, stat.st_atime_nsec),
        mtime: system_time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: system_time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind_of(stat.st_mode),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
        blksize: 4096,
        flags: 0,
    }
}
