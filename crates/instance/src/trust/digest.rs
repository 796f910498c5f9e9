//! Digests of files. Blocking.
//!
//! The digest of memory is SHA-256 over a name, the length, and each page of 4 KiB that is not all zeros,
//! preceded by its number. A hole and zeros that were written are the same memory, so a copy that turned
//! one into the other has the same digest.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use dormouse_model::{Bytes, Digest};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use sha2::{Digest as _, Sha256};

use super::pace::Pace;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Bytes that are read at a time; between two of them the reader looks whether it was cut short.
const CHUNK: usize = 1 << 20;

/// How much of a disk's beginning is compared. It holds the superblock and the first group descriptors of
/// ext4, which every mount and every allocation change.
pub const HEAD: u64 = 64 << 10;

/// Begins what is hashed: a digest of memory is no digest of anything else.
const NAME: &[u8] = b"dormouse memory 1\0";

static ZEROS: [u8; PAGE] = [0; PAGE];

/// Collects the digest of memory, chunk by chunk in their order.
#[derive(Debug, Clone)]
pub struct MemoryDigest(Sha256);

impl MemoryDigest {
    /// Of memory of this length.
    #[must_use]
    pub fn of(length: Bytes) -> Self {
        let mut hash = Sha256::new();
        hash.update(NAME);
        hash.update(length.0.to_le_bytes());
        Self(hash)
    }

    /// Takes `chunk`, which begins at `offset`, a multiple of [`PAGE`].
    pub fn take(&mut self, offset: u64, chunk: &[u8]) {
        for (number, page) in (offset / PAGE as u64..).zip(chunk.chunks(PAGE)) {
            if ZEROS.get(..page.len()) != Some(page) {
                self.0.update(number.to_le_bytes());
                self.0.update(page);
            }
        }
    }

    /// The digest.
    #[must_use]
    pub fn end(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// SHA-256 of bytes.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// SHA-256 of the first [`HEAD`] bytes of a file, or of all when it is shorter.
///
/// # Errors
/// When it cannot be read.
pub fn of_head(file: &File) -> io::Result<Digest> {
    let length = file.metadata()?.len().min(HEAD);
    let mut head = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut head, 0)?;
    Ok(of_bytes(&head))
}

/// What became of reading memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// All of it was read.
    Whole,
    /// It was cut short.
    CutShort,
}

/// Hands all chunks of `file` that hold data to `take`, page by page whole, in their order.
///
/// # Errors
/// The first of the file, or of `take`.
pub fn read_data(
    file: &File,
    pace: &Pace<'_>,
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<Read> {
    let length = file.metadata()?.len();
    let page = PAGE as u64;
    let mut buffer = vec![0_u8; CHUNK];
    let mut at = 0;
    while let Some((start, end)) = next_extent(file, at)? {
        // File systems with smaller blocks begin and end data within a page.
        let mut position = (start / page * page).max(at);
        let end = end.div_ceil(page).saturating_mul(page).min(length);
        while position < end {
            if !pace.goes_on() {
                return Ok(Read::CutShort);
            }
            let wanted = usize::try_from(end - position).unwrap_or(CHUNK).min(CHUNK);
            let chunk = buffer.get_mut(..wanted).ok_or(io::ErrorKind::InvalidInput)?;
            file.read_exact_at(chunk, position)?;
            take(position, chunk)?;
            position += wanted as u64;
        }
        at = end;
    }
    Ok(Read::Whole)
}

/// The digest of the memory in `file`; `None` when it was cut short.
///
/// # Errors
/// When it cannot be read.
pub fn of_memory(file: &File, pace: &Pace<'_>) -> io::Result<Option<Digest>> {
    let mut digest = MemoryDigest::of(Bytes(file.metadata()?.len()));
    let read = read_data(file, pace, |offset, chunk| {
        digest.take(offset, chunk);
        Ok(())
    })?;
    Ok((read == Read::Whole).then(|| digest.end()))
}

/// The next run of data at or after `from`, by `SEEK_DATA` and `SEEK_HOLE` (lseek(2)).
fn next_extent(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let offset = i64::try_from(from).map_err(io::Error::other)?;
    let start = match lseek(file.as_fd(), offset, Whence::SeekData) {
        Ok(start) => start,
        // ENXIO: no data behind this offset.
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = lseek(file.as_fd(), start, Whence::SeekHole)?;
    Ok(Some((
        u64::try_from(start).unwrap_or(0),
        u64::try_from(end).unwrap_or(0),
    )))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_hole_and_zeros_are_the_same_memory() {
        let mut bytes = vec![0; 40 * PAGE];
        bytes[7 * PAGE + 5] = 1;
        let written = of_memory(&file(&bytes), &Pace::straight(&GO_ON))
            .unwrap()
            .unwrap();
        let sparse = file(&[]);
        sparse.set_len(bytes.len() as u64).unwrap();
        sparse.write_all_at(&[1], 7 * PAGE as u64 + 5).unwrap();
        assert_eq!(
            of_memory(&sparse, &Pace::straight(&GO_ON)).unwrap(),
            Some(written)
        );
        // Golden: another result would strand every settled image.
        assert_eq!(written.short(), "dc388b301c2647ba");
    }

    #[test]
    fn length_and_place_count() {
        let digest = |length: usize, at: usize| {
            let mut bytes = vec![0; length * PAGE];
            bytes[at * PAGE] = 1;
            of_memory(&file(&bytes), &Pace::straight(&GO_ON))
                .unwrap()
                .unwrap()
        };
        assert_ne!(digest(4, 0), digest(5, 0));
        assert_ne!(digest(4, 0), digest(4, 1));
    }

    #[test]
    fn it_can_be_cut_short() {
        let cut = AtomicBool::new(true);
        assert_eq!(of_memory(&file(&[1; PAGE]), &Pace::straight(&cut)).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_another_memory(at in 0..8 * PAGE, bit in 0_u8..8, fill in any::<u8>()) {
            let mut bytes = vec![0; 8 * PAGE];
            bytes[3 * PAGE..5 * PAGE].fill(fill);
            let before = of_memory(&file(&bytes), &Pace::straight(&GO_ON)).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(of_memory(&file(&bytes), &Pace::straight(&GO_ON)).unwrap(), before);
        }
    }
}
