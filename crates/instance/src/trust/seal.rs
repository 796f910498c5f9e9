//! What a sleep writes once its guest has stopped, and in which order it becomes durable. Blocking.
//!
//! ```text
//!  state written ─▶ hash it ─▶ manifest written ─┬─ flush state    ─┐
//!                                                ├─ flush manifest ─┼─▶ the record names the manifest
//!                                                └─ flush folder   ─┘
//! ```
//!
//! The three flushes run side by side: nothing orders them among each other, and a journalling file system
//! commits them together. All three are over before the record is written. Memory is not flushed here (see
//! [`Settled`]): the manifest names the mount whose page cache has it. Only where the
//! kernel cannot tell one mount from a later one is memory on disk the fourth that is flushed.
//!
//! The head of a disk is read through the page cache of the file that the monitor writes, after
//! [`dormouse_hypervisor::Vm::pause`], which returns when every write of the guest has been made and
//! flushed. So the head is that of the disk as the guest left it, and the disk is durable as far as the
//! guest was told so. The kill that comes later loses nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dormouse_model::{Bytes, Generation, ImagePart, WorkloadId};

use super::manifest::{DiskPart, Manifest, MemoryPart, MonitorPart, Shape};
use super::{TrustError, digest};
use crate::machine::{BootId, Expected, Kept, MemoryImage, Settled};
use crate::memory::{GuestRam, Home};
use crate::rooms::Layout;

/// A sleep whose device state is written and not yet durable.
#[derive(Debug)]
pub struct Seal<'a> {
    /// Where files are.
    pub layout: &'a Layout,
    /// Whose sleep.
    pub id: WorkloadId,
    /// Which.
    pub generation: Generation,
    /// This boot.
    pub boot: BootId,
    /// Where RAM is.
    pub ram: GuestRam,
    /// Who saved the state.
    pub monitor: MonitorPart,
    /// The file of the device state.
    pub state: &'a File,
}

impl Seal<'_> {
    /// Writes the manifest and makes it, the state and their names durable.
    ///
    /// # Errors
    /// When a file cannot be read, written or flushed; the sleep is then taken back.
    pub fn make(self) -> Result<MemoryImage, TrustError> {
        let (layout, id) = (self.layout, self.id);
        let state_path = layout.state_file(id, self.generation.0);
        let state = read_whole(self.state).map_err(|source| failed(&state_path, source))?;
        let memory_path = layout.images().path(id, self.ram.home);
        let memory_file = File::open(&memory_path).map_err(|source| failed(&memory_path, source))?;
        let memory = memory_file
            .metadata()
            .map_err(|source| failed(&memory_path, source))?;
        let unflushed_on = match self.ram.home {
            Home::Tmpfs => None,
            Home::Disk => dormouse_sys::mount::unique_number(&memory_file)
                .map_err(|source| failed(&memory_path, source))?,
        };
        let manifest = Manifest {
            instance: id,
            generation: self.generation,
            shape: Shape::Own,
            boot: self.boot,
            memory: MemoryPart {
                size: self.ram.size,
                home: self.ram.home,
                name: name_of(&memory_path),
                inode: memory.ino(),
                unflushed_on,
            },
            state_length: Bytes(state.len() as u64),
            state_digest: digest::of_bytes(&state),
            disks: vec![disk(&layout.disk(id))?],
            monitor: self.monitor,
        };
        let bytes = manifest.encode();
        let path = layout.manifest_file(id, self.generation.0);
        let file = write(&path, &bytes).map_err(|source| failed(&path, source))?;
        let mut files = vec![(&state_path, self.state), (&path, &file)];
        if self.ram.home == Home::Disk && unflushed_on.is_none() {
            files.push((&memory_path, &memory_file));
        }
        flush(&files, &layout.instance(id))?;
        let kept = match self.ram.home {
            Home::Tmpfs => Kept::Resident { inode: memory.ino() },
            Home::Disk => Kept::Spilled { inode: memory.ino() },
        };
        Ok(MemoryImage {
            generation: self.generation,
            boot: self.boot,
            kept,
            expected: Expected {
                manifest: digest::of_bytes(&bytes),
                state: manifest.state_length,
                memory: Bytes(memory.len()),
            },
            settled: Settled::Open,
        })
    }
}

fn failed(path: &Path, source: io::Error) -> TrustError {
    TrustError::File {
        path: path.to_owned(),
        source,
    }
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A writable disk as it is now.
fn disk(path: &Path) -> Result<DiskPart, TrustError> {
    let fail = |source| TrustError::of(ImagePart::Disk, path, source);
    let file = File::open(path).map_err(fail)?;
    let size = Bytes(file.metadata().map_err(fail)?.len());
    Ok(DiskPart {
        name: name_of(path),
        size,
        head: digest::of_head(&file).map_err(fail)?,
    })
}

/// A leftover of an abandoned sleep is replaced.
fn write(path: &PathBuf, bytes: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Flushes files, and the folder that has their names, side by side.
fn flush(files: &[(&PathBuf, &File)], folder: &Path) -> Result<(), TrustError> {
    std::thread::scope(|scope| {
        let waiting: Vec<_> = files
            .iter()
            .map(|(path, file)| (*path, scope.spawn(move || file.sync_data())))
            .collect();
        let named = File::open(folder).and_then(|folder| folder.sync_all());
        for (path, flushed) in waiting {
            let flushed = flushed
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread that flushed it panicked")));
            flushed.map_err(|source| failed(path, source))?;
        }
        named.map_err(|source| failed(folder, source))
    })
}
