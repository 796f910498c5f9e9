//! Unpacking layers into a tree on disk, hostile ones included.
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | one entry of an archive, its extended headers read and checked |
//! | [`tree`] | changes below one directory that nothing leads out of |
//!
//! The tree is private to this process: it lies in a directory of mode 0700, so a set-user-id file in it cannot be
//! reached by anybody. Kept: owners, permissions with their special bits, times, links, fifos. Left
//! out: extended attributes. Refused: device nodes, but for those below `dev/`, which are counted and
//! left out because guests mount their own.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use flate2::read::MultiGzDecoder;

use crate::blobs::Blobs;
use crate::digest::Hashing;
use crate::error::{EntryFault, ImageError};
use crate::progress::{Phase, Watch};
use crate::resolve::{Layer, Packing};
use crate::unpack::entry::{Entry, Kind};
use crate::unpack::tree::{Tree, Trouble};

pub(crate) mod entry;
pub(crate) mod tree;

/// What an image may take. The defaults fit every published image that is known and keep a bomb from
/// filling a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of all layers together, unpacked.
    pub unpacked_bytes: u64,
    /// Bytes of all blobs together, packed.
    pub packed_bytes: u64,
    /// Unpacked bytes of a layer for each packed one, beyond its first 16 MiB: small archives are
    /// mostly padding.
    pub ratio: u64,
}

/// Unpacked bytes of a layer that no ratio is asked of.
const RATIO_FREE_BYTES: u64 = 16 << 20;

impl Limits {
    /// The most unpacked bytes of a layer of `packed` ones, when `left` are left for the image; and the
    /// limit that this is.
    fn for_layer(self, packed: u64, left: u64) -> (u64, &'static str, u64) {
        let by_ratio = packed.saturating_mul(self.ratio).saturating_add(RATIO_FREE_BYTES);
        if by_ratio < left {
            (by_ratio, "unpacked bytes for each packed one", self.ratio)
        } else {
            (left, "unpacked bytes", self.unpacked_bytes)
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            unpacked_bytes: 64 << 30,
            packed_bytes: 32 << 30,
            ratio: 500,
        }
    }
}

/// The prefix of names that remove what lower layers have (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";

/// The name that removes everything of a directory that lower layers have.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Names of an older union file system's own records; they mean nothing here.
const FOREIGN_WHITEOUT: &[u8] = b".wh..wh.";

/// Unpacks the layers of one image, in order, into one tree.
#[derive(Debug)]
pub(crate) struct Unpacker {
    tree: Tree,
    limits: Limits,
    entries: u64,
    unpacked_bytes: u64,
    pub(crate) skipped_devices: u64,
}

impl Unpacker {
    /// Into the empty directory that `tree` is.
    pub(crate) const fn new(tree: Tree, limits: Limits) -> Self {
        Self {
            tree,
            limits,
            entries: 0,
            unpacked_bytes: 0,
            skipped_devices: 0,
        }
    }

    /// Unpacks one layer and verifies the digest of its archive.
    pub(crate) fn layer(
        &mut self,
        layer: &Layer,
        blobs: &Blobs,
        watch: &mut Watch<'_>,
    ) -> Result<(), ImageError> {
        let name = layer.blob.digest.to_string();
        let packed = CountingFile {
            file: blobs.read(&layer.blob.digest)?,
            count: Rc::default(),
        };
        let count = Rc::clone(&packed.count);
        let unpacked: Box<dyn Read> = match layer.packing {
            Packing::Plain => Box::new(packed),
            Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
        };
        let left = self.limits.unpacked_bytes.saturating_sub(self.unpacked_bytes);
        let (left, what, limit) = self.limits.for_layer(layer.blob.size, left);
        let exceeded = Rc::new(Cell::new(false));
        let limited = Limited {
            inner: unpacked,
            left,
            exceeded: Rc::clone(&exceeded),
        };
        let mut hashing = Hashing::new(limited);
        let mut pass = LayerPass {
            unpacker: self,
            name: &name,
            made: HashSet::new(),
            times: Vec::new(),
        };
        let mut reported = 0;
        let applied = pass.entries(&mut hashing, &mut || {
            let now = count.get();
            let more = now.saturating_sub(std::mem::replace(&mut reported, now));
            watch.advance(Phase::Unpacking, more)
        });
        let times = std::mem::take(&mut pass.times);
        let drained = applied.and_then(|()| {
            io::copy(&mut hashing, &mut io::sink()).map_err(|source| ImageError::LayerUnreadable {
                layer: name.clone(),
                source,
            })
        });
        if exceeded.get() {
            return Err(ImageError::LimitExceeded { what, limit });
        }
        drained?;
        let (got, bytes, _) = hashing.finish();
        self.unpacked_bytes = self.unpacked_bytes.saturating_add(bytes);
        if got != layer.unpacked {
            let (wanted, got) = (layer.unpacked.to_string(), got.to_string());
            return Err(ImageError::DigestWrong {
                what: "an unpacked layer",
                wanted,
                got,
            });
        }
        self.tree.set_directory_times(times);
        watch.advance(Phase::Unpacking, layer.blob.size.saturating_sub(reported))
    }
}

/// The checked paths of all entries of an archive.
pub(crate) fn paths(archive: impl Read) -> Result<Vec<PathBuf>, ImageError> {
    let layer = || "(one that is looked at)".to_owned();
    let unreadable = |source| ImageError::LayerUnreadable {
        layer: layer(),
        source,
    };
    let mut archive = tar::Archive::new(archive);
    let (mut pending, mut found) = (entry::Extensions::default(), Vec::new());
    for item in archive.entries().map_err(unreadable)?.raw(true) {
        let mut item = item.map_err(unreadable)?;
        let shown = String::from_utf8_lossy(&item.path_bytes()).into_owned();
        match pending.read(&mut item) {
            Ok(Some(entry)) => found.push(entry.path.iter().collect()),
            Ok(None) => {}
            Err(Trouble::Fault(fault)) => {
                let entry = shown;
                return Err(ImageError::EntryRefused {
                    layer: layer(),
                    entry,
                    fault,
                });
            }
            Err(Trouble::Archive(source) | Trouble::Tree { source, .. }) => return Err(unreadable(source)),
        }
    }
    Ok(found)
}

/// One layer being applied.
struct LayerPass<'a> {
    unpacker: &'a mut Unpacker,
    name: &'a str,
    /// What this layer has made, as its directory's inode and its name: whiteouts spare it, because
    /// they speak of lower layers wherever in the archive they stand.
    made: HashSet<(u64, OsString)>,
    /// Directories and their times, set at the end, when nothing is put into them any more.
    times: Vec<(Vec<OsString>, i64)>,
}

impl LayerPass<'_> {
    fn entries(
        &mut self,
        archive: &mut dyn Read,
        tick: &mut dyn FnMut() -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let unreadable = |layer: &str, source| ImageError::LayerUnreadable {
            layer: layer.to_owned(),
            source,
        };
        let mut archive = tar::Archive::new(archive);
        let raw = archive
            .entries()
            .map_err(|source| unreadable(self.name, source))?
            .raw(true);
        let mut pending = entry::Extensions::default();
        for item in raw {
            let mut item = item.map_err(|source| unreadable(self.name, source))?;
            self.unpacker.entries += 1;
            if self.unpacker.entries > self.unpacker.limits.entries {
                let limit = self.unpacker.limits.entries;
                return Err(ImageError::LimitExceeded {
                    what: "entries",
                    limit,
                });
            }
            let shown = String::from_utf8_lossy(&item.path_bytes()).into_owned();
            let entry = match pending.read(&mut item) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(trouble) => return Err(self.explain(trouble, shown)),
            };
            let applied = self.apply(&entry, &mut item);
            applied.map_err(|trouble| self.explain(trouble, entry.shown()))?;
            tick()?;
        }
        Ok(())
    }

    fn explain(&self, trouble: Trouble, entry: String) -> ImageError {
        let layer = self.name.to_owned();
        match trouble {
            Trouble::Fault(fault) => ImageError::EntryRefused { layer, entry, fault },
            Trouble::Archive(source) => ImageError::LayerUnreadable { layer, source },
            Trouble::Tree { action, source } => ImageError::Io {
                action,
                path: entry.into(),
                source,
            },
        }
    }

    fn apply(&mut self, entry: &Entry, contents: &mut dyn Read) -> Result<(), Trouble> {
        let Some((name, parents)) = entry.path.split_last() else {
            // The root itself: only its attributes.
            return match entry.kind {
                Kind::Directory => self.unpacker.tree.set_root(&entry.attributes),
                _ => Err(EntryFault::Name.into()),
            };
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.white_out(parents, name, hidden);
        }
        if matches!(entry.kind, Kind::Device) {
            let below_dev = parents.first().is_some_and(|first| first == "dev");
            self.unpacker.skipped_devices += u64::from(below_dev);
            return if below_dev {
                Ok(())
            } else {
                Err(EntryFault::Device.into())
            };
        }
        let tree = &mut self.unpacker.tree;
        let parent = tree.parent(parents, &mut self.made)?;
        match &entry.kind {
            Kind::Directory => {
                tree.directory(&parent, name, &entry.attributes)?;
                self.times.push((entry.path.clone(), entry.attributes.modified));
            }
            Kind::File { size } => tree.file(&parent, name, &entry.attributes, *size, contents)?,
            Kind::Symlink { target } => tree.symlink(&parent, name, &entry.attributes, target)?,
            Kind::HardLink { target } => tree.hard_link(&parent, name, target)?,
            Kind::Fifo => tree.fifo(&parent, name, &entry.attributes)?,
            // Handled above.
            Kind::Device => {}
        }
        self.made.insert((parent.inode(), name.clone()));
        Ok(())
    }

    fn white_out(&mut self, parents: &[OsString], name: &OsStr, hidden: &[u8]) -> Result<(), Trouble> {
        let opaque = name.as_bytes() == OPAQUE;
        let foreign = name.as_bytes().starts_with(FOREIGN_WHITEOUT);
        if !opaque && !foreign && (hidden.is_empty() || hidden == b"." || hidden == b"..") {
            return Err(EntryFault::Whiteout.into());
        }
        let tree = &mut self.unpacker.tree;
        let Some(parent) = tree.existing_parent(parents)? else {
            return Ok(());
        };
        if opaque {
            return tree.prune(&parent, &self.made);
        }
        if foreign {
            return Ok(());
        }
        tree.prune_one(&parent, OsStr::from_bytes(hidden), &self.made)
    }
}

/// Counts the packed bytes read, for progress.
struct CountingFile {
    file: File,
    count: Rc<Cell<u64>>,
}

impl Read for CountingFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.count.set(self.count.get().saturating_add(count as u64));
        Ok(count)
    }
}

/// Ends a stream that is longer than allowed with an error and remembers why.
struct Limited<R> {
    inner: R,
    left: u64,
    exceeded: Rc<Cell<bool>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => {
                self.left = left;
                Ok(count)
            }
            None => {
                self.exceeded.set(true);
                Err(io::Error::other("more bytes than allowed"))
            }
        }
    }
}

impl Entry {
    /// The path for messages.
    fn shown(&self) -> String {
        let parts: Vec<_> = self.path.iter().map(|part| part.to_string_lossy()).collect();
        parts.join("/")
    }
}
