//! The content store: images by name, blobs and root file systems by digest.
//!
//! ```text
//! <data>/images/blobs/sha256/<digits>     manifests, configurations, layers
//!               rootfs/<digits>.ext4      root file systems by their manifest, mode 0444
//!               staging/                  mode 0700, empty between imports
//! ```
//!
//! Everything that an import makes is named by its digest and complete when it has that name, so two
//! imports of one image share instead of disturbing each other. What an import works with is pinned;
//! a removal, or an import that fails, removes whatever is neither pinned nor part of an image in
//! the index. So a failure leaves nothing and never takes anything away from somebody else.
//!
//! All calls block: from asynchronous code, run them with `spawn_blocking`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_model::{Bytes, WallTime};
use dormouse_sys::fault::{Side, reach};

use crate::blobs::{Blobs, TEMPORARY, sync_directory};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::index::{ImageIndex, IndexError};
use crate::progress::{OnProgress, Phase, Watch};
use crate::record::ImageRecord;
use crate::reference::{ImageName, Reference};
use crate::resolve::{BlobName, Resolved, resolve};
use crate::rootfs::Rootfs;
use crate::source::{MAX_DOCUMENT, Source};
use crate::unpack::Limits;

/// What an import is asked for beside its layout.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// The name to import under; `None` takes what the layout says, or its file's name.
    pub name: Option<ImageName>,
    /// Which image of a layout with several, by its reference in there.
    pub choose: Option<String>,
}

/// Writes the record of an import; see [`ContentStore::import_by`].
pub type Commit<'a> = &'a dyn Fn(&ImageRecord) -> Result<(), IndexError>;

/// The images of one data directory. One store a directory at a time.
#[derive(Debug)]
pub struct ContentStore {
    blobs: Blobs,
    rootfs: Rootfs,
    index: Arc<dyn ImageIndex>,
    limits: Limits,
    /// What imports in progress work with, counted. Held while the index is changed, so that what is
    /// pinned or in the index is decided as one.
    pins: Mutex<BTreeMap<Digest, u32>>,
}

impl ContentStore {
    /// Opens the store below `data` and removes what unfinished imports of a process that died have
    /// left.
    ///
    /// # Errors
    /// [`ImageError::Io`] or [`ImageError::IndexFailed`].
    pub fn open(data: &Path, index: Arc<dyn ImageIndex>, limits: Limits) -> Result<Self, ImageError> {
        let directory = data.join("images");
        let (blobs, rootfs) = (Blobs::open(&directory)?, Rootfs::open(&directory)?);
        // Names that an earlier process had no time to make durable: from here on what is there stays.
        for folder in [
            data,
            &directory,
            &directory.join("blobs"),
            blobs.directory(),
            rootfs.directory(),
        ] {
            sync_directory(folder)?;
        }
        let store = Self {
            blobs,
            rootfs,
            index,
            limits,
            pins: Mutex::default(),
        };
        store.sweep()?;
        Ok(store)
    }

    /// Imports an image from an OCI layout: a directory, or a tar archive of one.
    ///
    /// The same image again is quick and changes only its time; a name that meant another image
    /// means this one afterwards. `now` is the time of the record.
    ///
    /// # Errors
    /// Any of [`ImageError`]; the store is as it was.
    pub fn import(
        &self,
        layout: &Path,
        options: &ImportOptions,
        now: WallTime,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<ImageRecord, ImageError> {
        self.import_by(layout, options, now, on_progress, &|record| {
            self.index.put(record)
        })
    }

    /// The same, with the record written by `commit` in place of the index: together with what its caller
    /// wants to be durable at the same instant. Called once, last of all; it must do what
    /// [`ImageIndex::put`] does.
    ///
    /// # Errors
    /// Any of [`ImageError`]; the store is as it was.
    pub fn import_by(
        &self,
        layout: &Path,
        options: &ImportOptions,
        now: WallTime,
        on_progress: &mut OnProgress<'_>,
        commit: Commit<'_>,
    ) -> Result<ImageRecord, ImageError> {
        let source = Source::open(layout)?;
        let index = source.index()?;
        let mut fetch = |blob: BlobName| read_document(&source, blob);
        let image = resolve(&index, options.choose.as_deref(), &mut fetch)?;
        let name = match &options.name {
            Some(name) => name.clone(),
            None => default_name(image.reference.as_deref(), layout)?,
        };
        let blobs = blobs_of(&image);
        self.pin(blobs.keys());
        let imported = self
            .stored(&source, &image, &blobs, name, now, on_progress)
            .and_then(|record| {
                let _guard = self.lock();
                reach("import_record", Side::Before, &record.digest);
                commit(&record).map_err(index_failed("write to"))?;
                reach("import_record", Side::After, &record.digest);
                Ok(record)
            });
        reach("import_release", Side::Before, &image.manifest.digest);
        let released = self.release(blobs.keys());
        reach("import_release", Side::After, &image.manifest.digest);
        // What could not be removed is removed at the next start; the import's own fate matters more.
        if let Err(error) = released {
            tracing::warn!(%error, "what an import left could not be removed");
        }
        imported
    }

    /// Puts everything of a pinned image in its place; returns the record, which nobody knows yet.
    fn stored(
        &self,
        source: &Source,
        image: &Resolved,
        blobs: &BTreeMap<Digest, u64>,
        name: ImageName,
        now: WallTime,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<ImageRecord, ImageError> {
        let size: u64 = blobs.values().fold(0, |sum, &size| sum.saturating_add(size));
        if size > self.limits.packed_bytes {
            return Err(ImageError::LimitExceeded {
                what: "packed bytes",
                limit: self.limits.packed_bytes,
            });
        }
        let mut watch = Watch::new(on_progress);
        watch.begin(Phase::Copying, size)?;
        for (digest, &size) in blobs {
            reach("import_blob", Side::Before, digest);
            self.blobs.add(digest, size, || source.blob(digest), &mut watch)?;
            reach("import_blob", Side::After, digest);
        }
        // Also when none was new: another import may have placed one and not come so far.
        sync_directory(self.blobs.directory())?;
        let manifest = image.manifest.digest;
        reach("import_rootfs", Side::Before, &manifest);
        let skipped_devices = match self.rootfs.size(&manifest) {
            None => self.rootfs.make(image, &self.blobs, self.limits, &mut watch)?,
            Some(_) => {
                sync_directory(self.rootfs.directory())?;
                self.known_skips(&manifest)?
            }
        };
        reach("import_rootfs", Side::After, &manifest);
        let rootfs_path = self.rootfs.path(&manifest);
        let made = fs::metadata(&rootfs_path).map_err(ImageError::io("look at", &rootfs_path))?;
        Ok(ImageRecord {
            name,
            digest: manifest,
            size: Bytes(size),
            rootfs_size: Bytes(made.len()),
            imported: now,
            blobs: blobs.keys().copied().collect(),
            skipped_devices,
            config: image.config.clone(),
        })
    }

    /// Every image, by name.
    ///
    /// # Errors
    /// [`ImageError::IndexFailed`].
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        self.index.list().map_err(index_failed("read"))
    }

    /// The image of a name (`web`, `web:1`), a digest, or the first digits of one. A name wins over
    /// digits.
    ///
    /// # Errors
    /// [`ImageError::ReferenceInvalid`], [`ImageError::NotFound`], [`ImageError::Ambiguous`].
    pub fn get(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        // Not while a removal is between its look at what is used and its change of the index: whoever
        // leases an image and then finds it here has it.
        let _guard = self.lock();
        self.look_up(reference)
    }

    fn look_up(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        let parsed = Reference::parse(reference)?;
        let not_found = || ImageError::NotFound {
            reference: reference.to_owned(),
        };
        let digits = match parsed {
            Reference::Digits(digits) => digits,
            Reference::Name { name, digits } => {
                if let Some(record) = self.index.get(&name).map_err(index_failed("read"))? {
                    return Ok(record);
                }
                digits.ok_or_else(not_found)?
            }
        };
        let mut fits = self.list()?;
        fits.retain(|record| record.digest.hex().starts_with(&digits));
        let digests: BTreeSet<Digest> = fits.iter().map(|record| record.digest).collect();
        if digests.len() > 1 {
            let candidates = digests.iter().map(ToString::to_string).collect();
            return Err(ImageError::Ambiguous {
                reference: reference.to_owned(),
                candidates,
            });
        }
        fits.into_iter().next().ok_or_else(not_found)
    }

    /// The read-only root file system of an image.
    #[must_use]
    pub fn rootfs_path(&self, image: &Digest) -> PathBuf {
        self.rootfs.path(image)
    }

    /// Removes a name, and the image when it has no other. `used` are the manifests that instances
    /// use.
    ///
    /// # Errors
    /// Those of [`Self::get`]; [`ImageError::InUse`] when it is the last name of a used image.
    pub fn remove(&self, reference: &str, used: &BTreeSet<Digest>) -> Result<ImageRecord, ImageError> {
        let removed = self.remove_by(
            reference,
            &|record| Ok(!used.contains(&record.digest)),
            &|record, _| self.index.remove(&record.name),
        );
        removed.map(|(record, _)| record)
    }

    /// The same, with `free` asked at the last moment whether the content may go, or whether the removal may
    /// be at all; and with the record removed by `commit`, which is told whether content goes too, and must
    /// do what [`ImageIndex::remove`] does. Nobody finds the image between the two. Returns whether content
    /// went.
    ///
    /// # Errors
    /// Those of [`Self::remove`] and of `free`.
    pub fn remove_by(
        &self,
        reference: &str,
        free: &dyn Fn(&ImageRecord) -> Result<bool, ImageError>,
        commit: &dyn Fn(&ImageRecord, bool) -> Result<(), IndexError>,
    ) -> Result<(ImageRecord, bool), ImageError> {
        let pins = self.lock();
        let record = self.look_up(reference)?;
        let others = self.list()?;
        let named_again = others
            .iter()
            .any(|other| other.digest == record.digest && other.name != record.name);
        if !free(&record)? && !named_again {
            return Err(ImageError::InUse {
                reference: record.name.to_string(),
            });
        }
        reach("image_record_removal", Side::Before, &record.digest);
        commit(&record, !named_again).map_err(index_failed("remove from"))?;
        reach("image_record_removal", Side::After, &record.digest);
        // The image is gone with its record: what stays of its files goes at the next start.
        if let Err(error) = self.collect(&pins, &record.blobs) {
            tracing::warn!(%error, image = %record.name, "files of a removed image are left");
        }
        reach("image_collection", Side::After, &record.digest);
        Ok((record, !named_again))
    }

    /// Device nodes that were left out when the image was unpacked under another name.
    fn known_skips(&self, manifest: &Digest) -> Result<u64, ImageError> {
        let known = self.list()?.into_iter().find(|record| record.digest == *manifest);
        Ok(known.map_or(0, |record| record.skipped_devices))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, u32>> {
        // A panic elsewhere has left counts that are too high at worst, which only keeps things.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin<'a>(&self, digests: impl Iterator<Item = &'a Digest>) {
        let mut pins = self.lock();
        for digest in digests {
            *pins.entry(*digest).or_insert(0) += 1;
        }
    }

    fn release<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> Result<(), ImageError> {
        let mut pins = self.lock();
        let mut free = Vec::new();
        for digest in digests {
            if let Some(count) = pins.get_mut(digest) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    pins.remove(digest);
                }
            }
            free.push(*digest);
        }
        self.collect(&pins, &free)
    }

    /// Removes those of `digests` that are neither pinned nor part of an image in the index.
    fn collect(&self, pins: &BTreeMap<Digest, u32>, digests: &[Digest]) -> Result<(), ImageError> {
        if !self.index.is_whole().map_err(index_failed("read"))? {
            tracing::warn!("an image's record is damaged: no content is removed until it is put right");
            return Ok(());
        }
        let records = self.list()?;
        let needed: BTreeSet<Digest> = records
            .iter()
            .flat_map(|record| record.blobs.iter().copied())
            .collect();
        for digest in digests
            .iter()
            .filter(|digest| !pins.contains_key(digest) && !needed.contains(digest))
        {
            self.blobs.remove(digest)?;
            reach("image_blob_removal", Side::After, digest);
            // Only a manifest has one.
            self.rootfs.remove(digest)?;
        }
        Ok(())
    }

    /// Removes unfinished files and what belongs to no image.
    fn sweep(&self) -> Result<(), ImageError> {
        let [rootfs, staging] = self.rootfs.directories();
        for directory in [self.blobs.directory(), rootfs, staging] {
            for entry in fs::read_dir(directory)
                .map_err(ImageError::io("list", directory))?
                .flatten()
            {
                if !entry.file_name().to_string_lossy().ends_with(TEMPORARY) {
                    continue;
                }
                let path = entry.path();
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let removed = if is_directory {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(ImageError::io("remove", &path))?;
            }
        }
        let pins = self.lock();
        let listed =
            fs::read_dir(self.blobs.directory()).map_err(ImageError::io("list", self.blobs.directory()))?;
        let names = listed
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut found: Vec<Digest> = names
            .filter_map(|name| format!("sha256:{name}").parse().ok())
            .collect();
        found.extend(self.rootfs.present()?);
        self.collect(&pins, &found)
    }
}

fn index_failed(action: &'static str) -> impl FnOnce(IndexError) -> ImageError {
    move |source| ImageError::IndexFailed { action, source }
}

/// A small blob's verified bytes.
fn read_document(source: &Source, blob: BlobName) -> Result<Vec<u8>, ImageError> {
    if blob.size > MAX_DOCUMENT {
        return Err(ImageError::LimitExceeded {
            what: "bytes of a document",
            limit: MAX_DOCUMENT,
        });
    }
    let mut bytes = Vec::new();
    let reader = source.blob(&blob.digest)?;
    let read = reader.take(blob.size.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(ImageError::io("read a document of", source.path()))?;
    let (got, size) = (Digest::of(&bytes), bytes.len() as u64);
    if size != blob.size {
        return Err(ImageError::SizeWrong {
            digest: blob.digest.to_string(),
            wanted: blob.size,
            got: size,
        });
    }
    if got != blob.digest {
        let (wanted, got) = (blob.digest.to_string(), got.to_string());
        return Err(ImageError::DigestWrong {
            what: "a document",
            wanted,
            got,
        });
    }
    Ok(bytes)
}

/// Every blob of an image once, with its size. A layer may be listed twice.
fn blobs_of(image: &Resolved) -> BTreeMap<Digest, u64> {
    let layers = image.layers.iter().map(|layer| layer.blob);
    let all = [image.manifest, image.configuration].into_iter().chain(layers);
    all.map(|blob| (blob.digest, blob.size)).collect()
}

/// What the layout calls the image; a bare tag goes with the file's name.
fn default_name(reference: Option<&str>, layout: &Path) -> Result<ImageName, ImageError> {
    if let Some(reference) = reference.filter(|text| text.contains([':', '/'])) {
        return reference.parse();
    }
    let stem = layout
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    let stem = stem.trim_end_matches(".oci");
    match reference {
        Some(tag) => format!("{stem}:{tag}").parse(),
        None => stem.parse(),
    }
}
