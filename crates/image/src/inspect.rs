//! Looking at parts of an image without a store: their checks, and nothing is made.

use std::io::Read;
use std::path::PathBuf;

use crate::error::ImageError;
use crate::resolve::{BlobName, resolve};
use crate::unpack;

/// The paths of a layer's entries, each checked as for unpacking; `archive` is the layer unpacked.
///
/// # Errors
/// [`ImageError::EntryRefused`] for the first entry that may not be, or [`ImageError::LayerUnreadable`].
pub fn layer(archive: impl Read) -> Result<Vec<PathBuf>, ImageError> {
    unpack::paths(archive)
}

/// Resolves the image of `index`, where the documents that it names are `documents`, in the order in which
/// they are asked for; their digests are not looked at.
///
/// # Errors
/// What is wrong with them.
pub fn documents(index: &[u8], documents: &[&[u8]]) -> Result<(), ImageError> {
    let mut left = documents.iter();
    let mut fetch = |blob: BlobName| {
        let document = left.next().ok_or_else(|| ImageError::BlobMissing {
            path: PathBuf::new(),
            digest: blob.digest.to_string(),
        });
        document.map(|bytes| bytes.to_vec())
    };
    resolve(index, None, &mut fetch).map(drop)
}
