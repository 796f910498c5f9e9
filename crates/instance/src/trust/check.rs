//! What is compared before a wake. Blocking: under a millisecond, but for the memory of an earlier boot.
//!
//! Device state and memory are compared through the very descriptors that the monitor gets, so that what was
//! compared is what is loaded.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dormouse_model::{Bytes, Digest, ImagePart, Lost, PartFault, WorkloadId};

use super::manifest::{MOST, Manifest, MonitorPart, Shape};
use super::pace::Pace;
use super::{TrustError, digest};
use crate::machine::{BootId, Kept, MemoryImage, Settled};
use crate::memory::Home;
use crate::rooms::Layout;

/// An image that is about to be loaded.
#[derive(Debug)]
pub struct Check<'a> {
    /// Where files are.
    pub layout: &'a Layout,
    /// Whose image.
    pub id: WorkloadId,
    /// What the record says of it.
    pub image: MemoryImage,
    /// This boot.
    pub boot: BootId,
}

/// The parts of an image that passed.
#[derive(Debug)]
pub struct Sound {
    /// The device state, read from its beginning.
    pub state: OwnedFd,
    /// Who saved it.
    pub monitor: MonitorPart,
}

fn lost<T>(part: ImagePart, fault: PartFault) -> Result<T, TrustError> {
    Err(TrustError::Lost(Lost::plain(part, fault)))
}

/// Passes what is as it should be.
fn same<T: PartialEq + std::fmt::Display>(
    part: ImagePart,
    fault: PartFault,
    found: T,
    wanted: T,
) -> Result<(), TrustError> {
    if found == wanted {
        return Ok(());
    }
    Err(TrustError::Lost(Lost::differs(part, fault, found, wanted)))
}

fn same_digest(part: ImagePart, found: Digest, wanted: Digest) -> Result<(), TrustError> {
    same(part, PartFault::Digest, found.short(), wanted.short())
}

impl Check<'_> {
    /// Compares manifest, device state, disks, and the identity of the memory file `memory`.
    ///
    /// # Errors
    /// The first part that is not what was saved, or that cannot be looked at.
    pub fn parts(&self, memory: &File) -> Result<Sound, TrustError> {
        let manifest = self.manifest()?;
        self.memory(&manifest, memory)?;
        for disk in &manifest.disks {
            self.disk(&disk.name, disk.size, disk.head)?;
        }
        let state = self.state(&manifest)?;
        Ok(Sound {
            state,
            monitor: manifest.monitor,
        })
    }

    fn manifest(&self) -> Result<Manifest, TrustError> {
        const PART: ImagePart = ImagePart::Manifest;
        let path = self.layout.manifest_file(self.id, self.image.generation.0);
        let fail = |source| TrustError::of(PART, &path, source);
        let mut bytes = Vec::new();
        File::open(&path)
            .map_err(fail)?
            .take(MOST)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
        same_digest(PART, digest::of_bytes(&bytes), self.image.expected.manifest)?;
        let manifest = Manifest::decode(&bytes).map_err(TrustError::Lost)?;
        same(
            PART,
            PartFault::Owner,
            manifest.instance.to_string(),
            self.id.to_string(),
        )?;
        same(
            PART,
            PartFault::Generation,
            manifest.generation.0,
            self.image.generation.0,
        )?;
        match manifest.shape {
            Shape::Own => Ok(manifest),
            Shape::Base | Shape::BaseDelta => lost(PART, PartFault::Unsupported),
        }
    }

    fn state(&self, manifest: &Manifest) -> Result<OwnedFd, TrustError> {
        const PART: ImagePart = ImagePart::State;
        let path = self.layout.state_file(self.id, self.image.generation.0);
        let fail = |source| TrustError::of(PART, &path, source);
        let mut file = File::open(&path).map_err(fail)?;
        let wanted = manifest.state_length.0;
        same(
            PART,
            PartFault::Size,
            file.metadata().map_err(fail)?.len(),
            wanted,
        )?;
        let mut bytes = Vec::new();
        (&file)
            .take(wanted.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(fail)?;
        same_digest(PART, digest::of_bytes(&bytes), manifest.state_digest)?;
        file.rewind().map_err(fail)?;
        Ok(file.into())
    }

    fn disk(&self, name: &str, size: Bytes, head: Digest) -> Result<(), TrustError> {
        const PART: ImagePart = ImagePart::Disk;
        // A name is one of ours, never a path to elsewhere.
        let path = self.layout.disk(self.id);
        same(PART, PartFault::Unsupported, name, &super::seal::name_of(&path))?;
        let fail = |source| TrustError::of(PART, &path, source);
        let file = File::open(&path).map_err(fail)?;
        same(
            PART,
            PartFault::Size,
            file.metadata().map_err(fail)?.len(),
            size.0,
        )?;
        same_digest(PART, digest::of_head(&file).map_err(fail)?, head)
    }

    /// The memory file is the one that was left, in this boot.
    fn memory(&self, manifest: &Manifest, memory: &File) -> Result<(), TrustError> {
        const PART: ImagePart = ImagePart::Memory;
        let (image, boot) = (&self.image, self.boot);
        if image.boot != boot {
            return lost(PART, PartFault::Unsettled);
        }
        let (home, inode) = match image.kept {
            Kept::Resident { inode } => (Home::Tmpfs, inode),
            Kept::Spilled { inode } => (Home::Disk, inode),
        };
        let path = self.layout.images().path(self.id, home);
        let meta = memory
            .metadata()
            .map_err(|source| TrustError::of(PART, &path, source))?;
        same(PART, PartFault::Size, meta.len(), manifest.memory.size.0)?;
        same(PART, PartFault::Inode, meta.ino(), inode)?;
        // Memory that is where its sleep left it is the very file.
        if manifest.memory.home == home && manifest.boot == boot {
            same(PART, PartFault::Inode, meta.ino(), manifest.memory.inode)?;
        }
        self.same_mount(manifest, memory, &path)?;
        // It never moves to tmpfs.
        if manifest.memory.home == Home::Disk && home == Home::Tmpfs {
            return lost(PART, PartFault::Unsupported);
        }
        Ok(())
    }

    /// Memory of which pages may be in the page cache only is all there on the very mount where its sleep left
    /// it. Unmounted and mounted again, within one boot and with the same inode, it is what the disk has of it.
    fn same_mount(&self, manifest: &Manifest, memory: &File, path: &Path) -> Result<(), TrustError> {
        const PART: ImagePart = ImagePart::Memory;
        let (Settled::Open, Some(left)) = (self.image.settled, manifest.memory.unflushed_on) else {
            return Ok(());
        };
        let found = dormouse_sys::mount::unique_number(memory)
            .map_err(|source| TrustError::of(PART, path, source))?;
        if found == Some(left) {
            Ok(())
        } else {
            lost(PART, PartFault::Unsettled)
        }
    }

    /// Makes sure that memory on disk outlives this boot, and returns the image as it is then: what nobody
    /// has settled is flushed and its digest taken; what an earlier boot settled is compared.
    ///
    /// # Errors
    /// When it is not what it should be, when it cannot be read, or when it was cut short meanwhile.
    pub fn settle(&self, pace: &Pace<'_>) -> Result<MemoryImage, TrustError> {
        const PART: ImagePart = ImagePart::Memory;
        let path = self.layout.images().path(self.id, Home::Disk);
        let fail = |source| TrustError::of(PART, &path, source);
        let file = File::open(&path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        same(PART, PartFault::Size, meta.len(), self.image.expected.memory.0)?;
        let same_boot = self.image.boot == self.boot;
        match (self.image.kept, self.image.settled) {
            (Kept::Resident { .. }, _) => return lost(PART, PartFault::Unsupported),
            (Kept::Spilled { inode }, _) if same_boot => {
                same(PART, PartFault::Inode, meta.ino(), inode)?;
            }
            (Kept::Spilled { .. }, Settled::Open) => return lost(PART, PartFault::Unsettled),
            (Kept::Spilled { .. }, Settled::At(_)) => {}
        }
        if same_boot && self.image.settled != Settled::Open {
            return Ok(self.image);
        }
        if self.image.settled == Settled::Open {
            // A digest of what the disk kept of it would vouch for the wrong memory.
            self.same_mount(&self.manifest()?, &file, &path)?;
            file.sync_data().map_err(fail)?;
        }
        let found = memory_digest(&file, &path, pace)?;
        if let Settled::At(wanted) = self.image.settled {
            same_digest(PART, found, wanted)?;
        }
        Ok(MemoryImage {
            boot: self.boot,
            kept: Kept::Spilled { inode: meta.ino() },
            settled: Settled::At(found),
            ..self.image
        })
    }
}

fn memory_digest(file: &File, path: &Path, pace: &Pace<'_>) -> Result<Digest, TrustError> {
    let found =
        digest::of_memory(file, pace).map_err(|source| TrustError::of(ImagePart::Memory, path, source))?;
    found.ok_or_else(|| TrustError::CutShort {
        path: path.to_owned(),
    })
}
