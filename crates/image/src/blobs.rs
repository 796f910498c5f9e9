//! Blobs by their digests: `<store>/blobs/sha256/<digits>`, complete and right or not there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_sys::fault::{Side, reach};

use crate::digest::{Digest, Hashing};
use crate::error::ImageError;
use crate::progress::{Phase, Watch};

/// The ending of files and directories that are being made; left ones are removed at start.
pub(crate) const TEMPORARY: &str = ".partial";

/// Bytes copied between two reports.
const STRIDE: usize = 1 << 20;

/// A path beside `path` that nobody else in any process uses.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{count}{TEMPORARY}", std::process::id()))
}

/// The blobs of a store.
#[derive(Debug)]
pub(crate) struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Blobs below `store`.
    pub(crate) fn open(store: &Path) -> Result<Self, ImageError> {
        let directory = store.join("blobs/sha256");
        fs::create_dir_all(&directory).map_err(ImageError::io("make the directory", &directory))?;
        Ok(Self { directory })
    }

    /// Where the blob is or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Copies a blob in, verifying size and digest on the way. One that is there already is not
    /// read again. Returns whether it was new.
    pub(crate) fn add(
        &self,
        digest: &Digest,
        size: u64,
        source: impl FnOnce() -> Result<Box<dyn Read>, ImageError>,
        watch: &mut Watch<'_>,
    ) -> Result<bool, ImageError> {
        let path = self.path(digest);
        if fs::metadata(&path).is_ok_and(|found| found.len() == size) {
            watch.advance(Phase::Copying, size)?;
            return Ok(false);
        }
        let temporary = temporary_beside(&path);
        let file = File::create_new(&temporary).map_err(ImageError::io("create", &temporary))?;
        let placed = source()
            .and_then(|reader| copy_verified(reader, file, digest, size, &temporary, watch))
            .and_then(|()| {
                reach("import_blob_place", Side::Before, digest);
                fs::rename(&temporary, &path).map_err(ImageError::io("place", &path))
            });
        if placed.is_err() {
            let _left = fs::remove_file(&temporary);
        }
        placed.map(|()| true)
    }

    /// Opens a blob for reading.
    pub(crate) fn read(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        File::open(&path).map_err(ImageError::io("open", &path))
    }

    /// Removes a blob; one that is not there is fine.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn copy_verified(
    source: Box<dyn Read>,
    file: File,
    digest: &Digest,
    size: u64,
    path: &Path,
    watch: &mut Watch<'_>,
) -> Result<(), ImageError> {
    // One byte more than promised is enough to know that it lies.
    let mut source = source.take(size.saturating_add(1));
    let mut sink = Hashing::new(file);
    let mut buffer = vec![0_u8; STRIDE];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ImageError::io("read the source of", path)(error)),
        };
        let read = buffer.get(..count).unwrap_or_default();
        sink.write_all(read).map_err(ImageError::io("write", path))?;
        watch.advance(Phase::Copying, count as u64)?;
    }
    let (got, length, file) = sink.finish();
    if length != size {
        return Err(ImageError::SizeWrong {
            digest: digest.to_string(),
            wanted: size,
            got: length,
        });
    }
    if got != *digest {
        let (wanted, got) = (digest.to_string(), got.to_string());
        return Err(ImageError::DigestWrong {
            what: "a blob",
            wanted,
            got,
        });
    }
    file.sync_all().map_err(ImageError::io("synchronise", path))
}

/// Makes renames in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(ImageError::io("synchronise", path))
}
