//! OCI image layouts: a directory, or a tar archive of one (OCI image specification,
//! image-layout.md).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oci_spec::image::OciLayout;

use crate::digest::Digest;
use crate::error::ImageError;

/// No document of an image is larger.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// The `oci-layout` file has one short line.
const MAX_LAYOUT: u64 = 4096;

/// Entries of an archive that are looked at: a layout has one a blob and a few more.
const MAX_ENTRIES: u64 = 10_000;

/// A layout to import from.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    /// `None` for a directory; for an archive, where each file's contents lie.
    entries: Option<HashMap<String, Extent>>,
}

#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    length: u64,
}

impl Source {
    /// Opens a directory or an archive.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let metadata = fs::metadata(path).map_err(ImageError::io("open the layout", path))?;
        let entries = if metadata.is_dir() {
            None
        } else if metadata.is_file() {
            Some(scan(path)?)
        } else {
            // Opening a fifo waits for a writer, and a device may have no end.
            return Err(ImageError::LayoutForeign {
                path: path.to_owned(),
                why: "it is neither a file nor a directory".to_owned(),
            });
        };
        let source = Self {
            path: path.to_owned(),
            entries,
        };
        source.check_kind()?;
        Ok(source)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The `index.json`.
    pub(crate) fn index(&self) -> Result<Vec<u8>, ImageError> {
        let mut text = Vec::new();
        let reader = self
            .file("index.json")?
            .ok_or_else(|| self.foreign("it has no index.json"))?;
        reader
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut text)
            .map_err(ImageError::io("read index.json of", &self.path))?;
        if text.len() as u64 > MAX_DOCUMENT {
            return Err(ImageError::LimitExceeded {
                what: "bytes of index",
                limit: MAX_DOCUMENT,
            });
        }
        Ok(text)
    }

    /// Opens a blob's bytes, unverified.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Box<dyn Read>, ImageError> {
        let missing = || ImageError::BlobMissing {
            path: self.path.clone(),
            digest: digest.to_string(),
        };
        self.file(&format!("blobs/sha256/{}", digest.hex()))?
            .ok_or_else(missing)
    }

    fn check_kind(&self) -> Result<(), ImageError> {
        if let Some(layout) = self.file("oci-layout")? {
            return self.check_version(layout);
        }
        // Some writers leave it out; what is in the index decides then.
        if self.file("index.json")?.is_some() {
            return Ok(());
        }
        if self.file("manifest.json")?.is_some() {
            return Err(self.foreign(
                "it is a docker archive of the old kind; save it with docker 25 or newer, or copy it with \
                 `skopeo copy docker-archive:IN oci-archive:OUT`",
            ));
        }
        Err(self.foreign("it has neither oci-layout nor index.json"))
    }

    /// Reads the file that says which layout this is (OCI image specification, image-layout.md).
    fn check_version(&self, layout: Box<dyn Read>) -> Result<(), ImageError> {
        let layout = OciLayout::from_reader(layout.take(MAX_LAYOUT))
            .map_err(|error| self.foreign(&format!("its oci-layout cannot be read: {error}")))?;
        let version = layout.image_layout_version();
        if version.starts_with("1.") {
            return Ok(());
        }
        Err(self.foreign(&format!("it is a layout of version {version:?}; 1.0.0 is read")))
    }

    fn foreign(&self, why: &str) -> ImageError {
        ImageError::LayoutForeign {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }

    /// Opens a file of the layout. Names are ours: fixed ones, or made from a digest's digits.
    fn file(&self, name: &str) -> Result<Option<Box<dyn Read>>, ImageError> {
        let Some(entries) = &self.entries else {
            let path = self.path.join(name);
            // A link in a layout could lead to any file of the host, which nobody packed.
            let opened = OpenOptions::new()
                .read(true)
                // A fifo in the place of a file must not be waited for.
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(&path)
                .and_then(|file| Ok((file.metadata()?.is_file(), file)));
            return match opened {
                Ok((true, file)) => Ok(Some(Box::new(file))),
                Ok((false, _)) => Err(self.foreign(&format!("its {name} is no file"))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(ImageError::io("open", &path)(error)),
            };
        };
        let Some(extent) = entries.get(name) else {
            return Ok(None);
        };
        let mut file = File::open(&self.path).map_err(ImageError::io("open", &self.path))?;
        file.seek(SeekFrom::Start(extent.offset))
            .map_err(ImageError::io("seek in", &self.path))?;
        Ok(Some(Box::new(file.take(extent.length))))
    }
}

/// Where the files of an archive lie. Only headers are read.
fn scan(path: &Path) -> Result<HashMap<String, Extent>, ImageError> {
    let foreign = |why: String| ImageError::LayoutForeign {
        path: path.to_owned(),
        why,
    };
    let mut file = File::open(path).map_err(ImageError::io("open", path))?;
    let mut magic = [0_u8; 6];
    let read = file.read(&mut magic).map_err(ImageError::io("read", path))?;
    if magic.get(..read).unwrap_or_default().starts_with(&[0x1f, 0x8b]) {
        return Err(foreign(
            "it is compressed with gzip; unpack it with gunzip first".to_owned(),
        ));
    }
    if magic
        .get(..read)
        .unwrap_or_default()
        .starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
    {
        return Err(foreign(
            "it is compressed with zstd; unpack it with unzstd first".to_owned(),
        ));
    }
    file.rewind().map_err(ImageError::io("read", path))?;
    let length = file.metadata().map_err(ImageError::io("read", path))?.len();
    let mut archive = tar::Archive::new(file);
    let unreadable = |error: io::Error| foreign(format!("it is no tar archive: {error}"));
    let (mut entries, mut count) = (HashMap::new(), 0_u64);
    for entry in archive.entries_with_seek().map_err(unreadable)?.raw(true) {
        let entry = entry.map_err(unreadable)?;
        count += 1;
        if count > MAX_ENTRIES {
            return Err(ImageError::LimitExceeded {
                what: "files in its archive",
                limit: MAX_ENTRIES,
            });
        }
        // Names of a layout are short, so extended headers never belong to a file that matters.
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let extent = Extent {
            offset: entry.raw_file_position(),
            length: entry.size(),
        };
        if extent.offset.saturating_add(extent.length) > length {
            return Err(foreign("it ends in the middle of a file".to_owned()));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").to_owned();
        // The first of two files of one name counts; digests decide whether it is the right one.
        entries.entry(name).or_insert(extent);
    }
    Ok(entries)
}
