//! The files of memory images: made, copied, dropped. Blocking; callers use the blocking pool.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use dormouse_model::{Bytes, Digest, Fault, Kind, WorkloadId};
use nix::fcntl::{FallocateFlags, fallocate};

use super::plan::{GuestRam, Home};
use crate::trust::digest::{MemoryDigest, Read, read_data};
use crate::trust::pace::Pace;

/// Where the images of all guests are.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    /// A directory on our tmpfs.
    pub tmpfs: PathBuf,
    /// The directory that has one folder an instance, on disk.
    pub instances: PathBuf,
}

impl ImageFiles {
    /// The file that holds RAM at `home`.
    #[must_use]
    pub fn path(&self, id: WorkloadId, home: Home) -> PathBuf {
        match home {
            Home::Tmpfs => self.tmpfs.join(format!("{id}.ram")),
            Home::Disk => self.instances.join(id.to_string()).join("memory.ram"),
        }
    }

    /// Makes the empty RAM file of a guest that boots, owned by its VMM's `uid`; replaces an old one.
    ///
    /// # Errors
    /// When the file cannot be made, or the disk has no room for a reserved one.
    pub fn create(&self, id: WorkloadId, image: &GuestRam, uid: u32) -> Result<File, MemoryError> {
        let path = self.path(id, image.home);
        let fail = |source| MemoryError::Make {
            path: path.clone(),
            source,
        };
        remove(&path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        file.set_len(image.size.0).map_err(fail)?;
        fchown(&file, Some(uid), Some(uid)).map_err(fail)?;
        if image.home == Home::Disk {
            reserve(&file, image.size, &path)?;
            // Its length: a sleep does not flush it, and a file that a crash left short is no memory.
            file.sync_data().map_err(fail)?;
        }
        Ok(file)
    }

    /// Opens the image that a wake will map; reserves its blocks where a shared mapping needs that.
    ///
    /// # Errors
    /// When the file is gone, has another size than the record says, or the disk is full.
    pub fn open(&self, id: WorkloadId, image: &GuestRam) -> Result<File, MemoryError> {
        let path = self.path(id, image.home);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| MemoryError::Open {
                path: path.clone(),
                source,
            })?;
        let found = file
            .metadata()
            .map_err(|source| MemoryError::Open {
                path: path.clone(),
                source,
            })?
            .len();
        if found != image.size.0 {
            return Err(MemoryError::Size {
                path,
                want: image.size,
                found: Bytes(found),
            });
        }
        if image.reserves() {
            reserve(&file, image.size, &path)?;
        }
        Ok(file)
    }

    /// Bytes of blocks that the image at `home` occupies; 0 when there is none.
    #[must_use]
    pub fn occupied(&self, id: WorkloadId, home: Home) -> Bytes {
        fs::metadata(self.path(id, home)).map_or(Bytes(0), |meta| Bytes(meta.blocks() * 512))
    }

    /// Drops the image at `home`; dropping none succeeds.
    ///
    /// # Errors
    /// When it exists and cannot be removed.
    pub fn drop_image(&self, id: WorkloadId, home: Home) -> Result<(), MemoryError> {
        remove(&self.path(id, home))
    }
}

/// Removes a file; removing none succeeds.
fn remove(path: &Path) -> Result<(), MemoryError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(MemoryError::Remove {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Makes sure that every block of `file` can be written.
fn reserve(file: &File, size: Bytes, path: &Path) -> Result<(), MemoryError> {
    let length = i64::try_from(size.0).unwrap_or(i64::MAX);
    fallocate(file.as_fd(), FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length).map_err(|errno| {
        MemoryError::Reserve {
            path: path.to_owned(),
            size,
            source: errno.into(),
        }
    })
}

/// A copy of a sleeping guest's tmpfs file to the disk, while tmpfs stays the truth.
#[derive(Debug)]
pub struct Spill<'a> {
    /// Whose files.
    pub files: &'a ImageFiles,
    /// Whose image.
    pub id: WorkloadId,
    /// Who shall own the disk file.
    pub uid: u32,
    /// Set by a wake: stop and leave tmpfs the truth.
    pub pace: Pace<'a>,
}

/// How a spill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpillEnd {
    /// The disk file is complete and durable; the tmpfs file may be dropped once a record says so.
    Durable {
        /// Bytes copied.
        copied: Bytes,
        /// The disk file's inode.
        inode: u64,
        /// The digest of the memory, taken from what was copied.
        digest: Digest,
    },
    /// A wake wanted the memory; nothing is left on disk.
    Cancelled,
}

impl Spill<'_> {
    /// Copies all data extents, makes them durable, and puts the file in its place. Holes stay holes.
    ///
    /// # Errors
    /// When reading or writing fails, a full disk included; nothing is left on disk then.
    pub fn run(&self) -> Result<SpillEnd, MemoryError> {
        let target = self.files.path(self.id, Home::Disk);
        let partial = target.with_extension("ram.partial");
        let outcome = self.copy(&partial);
        match outcome {
            Ok(end @ SpillEnd::Durable { .. }) => {
                fs::rename(&partial, &target).map_err(|source| MemoryError::Make {
                    path: target.clone(),
                    source,
                })?;
                if let Some(directory) = target.parent() {
                    sync_directory(directory)?;
                }
                Ok(end)
            }
            Ok(SpillEnd::Cancelled) => remove(&partial).map(|()| SpillEnd::Cancelled),
            Err(error) => {
                remove(&partial)?;
                Err(error)
            }
        }
    }

    fn copy(&self, partial: &Path) -> Result<SpillEnd, MemoryError> {
        let from = self.files.path(self.id, Home::Tmpfs);
        let read_fail = |source| MemoryError::Open {
            path: from.clone(),
            source,
        };
        let write_fail = |source| MemoryError::Make {
            path: partial.to_owned(),
            source,
        };
        remove(partial)?;
        let source = File::open(&from).map_err(read_fail)?;
        let size = source.metadata().map_err(read_fail)?.len();
        let sink = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(partial)
            .map_err(write_fail)?;
        sink.set_len(size).map_err(write_fail)?;
        fchown(&sink, Some(self.uid), Some(self.uid)).map_err(write_fail)?;
        let mut digest = MemoryDigest::of(Bytes(size));
        let mut copied = 0;
        let mut failed = None;
        let read = read_data(&source, &self.pace, |offset, chunk| {
            digest.take(offset, chunk);
            copied += chunk.len() as u64;
            sink.write_all_at(chunk, offset).map_err(|error| {
                let kind = error.kind();
                failed = Some(error);
                kind.into()
            })
        });
        match (read, failed) {
            (_, Some(error)) => return Err(write_fail(error)),
            (Err(error), None) => return Err(read_fail(error)),
            (Ok(Read::CutShort), None) => return Ok(SpillEnd::Cancelled),
            (Ok(Read::Whole), None) => {}
        }
        sink.sync_data().map_err(write_fail)?;
        if self.pace.is_cut() {
            return Ok(SpillEnd::Cancelled);
        }
        Ok(SpillEnd::Durable {
            copied: Bytes(copied),
            inode: sink.metadata().map_err(write_fail)?.ino(),
            digest: digest.end(),
        })
    }
}

/// Makes renames and new names in a directory durable.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory(path: &Path) -> Result<(), MemoryError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| MemoryError::Make {
            path: path.to_owned(),
            source,
        })
}

/// What went wrong with a memory image.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file could not be made or written.
    #[error("writing the memory image {path}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file could not be opened or read.
    #[error("opening the memory image {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file could not be removed.
    #[error("removing the memory image {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system has no room for the guest's RAM.
    #[error("reserving {size} for the memory image {path}")]
    Reserve {
        /// Which.
        path: PathBuf,
        /// How much.
        size: Bytes,
        /// Why.
        source: io::Error,
    },
    /// The file is not the one that the record speaks of.
    #[error("the memory image {path} has {found}, its record says {want}")]
    Size {
        /// Which.
        path: PathBuf,
        /// The size recorded.
        want: Bytes,
        /// The size found.
        found: Bytes,
    },
}

impl Fault for MemoryError {
    fn kind(&self) -> Kind {
        match self {
            Self::Make { source, .. } | Self::Reserve { source, .. }
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                Kind::Exhausted
            }
            Self::Make { .. } | Self::Open { .. } | Self::Remove { .. } | Self::Reserve { .. } => {
                Kind::Unavailable
            }
            Self::Size { .. } => Kind::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Make { .. } => "MEMORY_WRITE",
            Self::Open { .. } => "MEMORY_OPEN",
            Self::Remove { .. } => "MEMORY_REMOVE",
            Self::Reserve { .. } => "MEMORY_RESERVE",
            Self::Size { .. } => "MEMORY_SIZE",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use dormouse_model::spec::Placement;

    fn files(scratch: &Path) -> (ImageFiles, WorkloadId) {
        let files = ImageFiles {
            tmpfs: scratch.join("ram"),
            instances: scratch.join("instances"),
        };
        let id = WorkloadId::from_bits(7);
        fs::create_dir_all(&files.tmpfs).unwrap();
        fs::create_dir_all(files.instances.join(id.to_string())).unwrap();
        (files, id)
    }

    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    #[test]
    fn a_spill_keeps_data_and_holes() {
        let scratch = tempfile::tempdir().unwrap();
        let (files, id) = files(scratch.path());
        let image = GuestRam::fresh(Placement::Spill, Bytes::mib(64));
        let ram = files.create(id, &image, own_uid()).unwrap();
        ram.write_all_at(b"low", 0).unwrap();
        ram.write_all_at(b"high", Bytes::mib(40).0).unwrap();
        let cancelled = AtomicBool::new(false);
        let spill = Spill {
            files: &files,
            id,
            uid: own_uid(),
            pace: Pace::straight(&cancelled),
        };
        let SpillEnd::Durable {
            copied,
            inode,
            digest,
        } = spill.run().unwrap()
        else {
            panic!("not cancelled")
        };
        assert!(copied < Bytes::mib(1), "{copied} copied of two pages");
        let disk = GuestRam {
            home: Home::Disk,
            ..image
        };
        let back = files.open(id, &disk).unwrap();
        let mut word = [0_u8; 4];
        back.read_exact_at(&mut word, Bytes::mib(40).0).unwrap();
        assert_eq!(&word, b"high");
        assert_eq!(inode, back.metadata().unwrap().ino());
        let found = crate::trust::digest::of_memory(&back, &Pace::straight(&cancelled)).unwrap();
        assert_eq!(found, Some(digest), "the copy is what was read");
        assert!(files.occupied(id, Home::Disk) < Bytes::mib(1));
    }

    #[test]
    fn a_cancelled_spill_leaves_nothing_on_disk() {
        let scratch = tempfile::tempdir().unwrap();
        let (files, id) = files(scratch.path());
        let image = GuestRam::fresh(Placement::Spill, Bytes::mib(4));
        files
            .create(id, &image, own_uid())
            .unwrap()
            .write_all_at(b"x", 0)
            .unwrap();
        let cancelled = AtomicBool::new(true);
        let spill = Spill {
            files: &files,
            id,
            uid: own_uid(),
            pace: Pace::straight(&cancelled),
        };
        assert_eq!(spill.run().unwrap(), SpillEnd::Cancelled);
        assert_eq!(
            fs::read_dir(files.instances.join(id.to_string()))
                .unwrap()
                .count(),
            0
        );
        assert!(files.open(id, &image).is_ok(), "tmpfs is still the truth");
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let (files, id) = files(scratch.path());
        let image = GuestRam::fresh(Placement::Tmpfs, Bytes::mib(4));
        files.create(id, &image, own_uid()).unwrap().set_len(1).unwrap();
        let error = files.open(id, &image).unwrap_err();
        assert_eq!(error.code(), "MEMORY_SIZE");
    }
}
