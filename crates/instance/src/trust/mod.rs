//! Trust in saved images: what is written at a sleep, and what is compared before a wake.
//!
//! ```text
//!  record (store) ──names by SHA-256──▶ manifest.N ──▶ state.N        length, SHA-256
//!     │ settled: digest of memory                 ├──▶ disk           size, SHA-256 of its first 64 KiB
//!     │ boot, inode of memory                     ├──▶ memory         size, home, inode, boot
//!     ▼                                           └──▶ monitor        driver, version, program
//!  memory file
//! ```
//!
//! | when | what is compared |
//! |---|---|
//! | a daemon starts | names, lengths, inode, boot (`adoption.rs`); nothing is read |
//! | before each wake | manifest, device state, disk heads, monitor: whole. Memory: inode, boot, and until it is settled the mount |
//! | once in another boot than the memory is of | all of memory, in the background or before the wake |
//!
//! What protects memory within one boot is that nobody but a wake opens the file: inode and boot tell it
//! from any other, and the number of its mount tells whether the page cache is the one that it was left in
//! (a file system that failed and was mounted again has a cache of its own). Over a reboot only memory that was settled is believed: flushed, and its digest in the
//! record, both durable ([`Settled`](crate::machine::Settled)).
//!
//! | module | |
//! |---|---|
//! | [`manifest`] | the manifest and its bytes |
//! | [`digest`] | SHA-256 of files; the digest of memory, the same for a hole and for zeros |
//! | [`seal`] | what a sleep writes, and in which order it becomes durable |
//! | [`check`] | what is compared before a wake |
//! | [`pace`] | background reading goes behind those who wait for a guest |

pub mod check;
pub mod digest;
pub mod manifest;
pub mod pace;
pub mod seal;

use std::io;
use std::path::{Path, PathBuf};

use dormouse_model::{Fault, ImagePart, Kind, Lost, PartFault};

/// An image that must not be loaded, or that cannot be looked at now.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not what was saved.
    #[error("the image is lost")]
    Lost(#[source] Lost),
    /// A file of it cannot be read or written, for reasons that may pass.
    #[error("reading or writing {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A wake, a stop or the end of the daemon came first.
    #[error("comparing {path} was cut short")]
    CutShort {
        /// Which file.
        path: PathBuf,
    },
}

impl TrustError {
    /// What an error of the file of `part` means: a file that is not there, and one that the disk cannot
    /// give back, will not get better.
    pub(crate) fn of(part: ImagePart, path: &Path, source: io::Error) -> Self {
        let lost = |fault, found: &dyn std::fmt::Display| {
            let mut lost = Lost::plain(part, fault);
            lost.found = found.to_string();
            Self::Lost(lost)
        };
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory, _) => {
                lost(PartFault::Missing, &"")
            }
            (io::ErrorKind::UnexpectedEof, _) => lost(PartFault::Size, &"it became shorter"),
            (_, Some(nix::libc::EIO | nix::libc::EUCLEAN)) => lost(PartFault::Unreadable, &source),
            (_, _) => Self::File {
                path: path.to_owned(),
                source,
            },
        }
    }
}

impl Fault for TrustError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lost(lost) => lost.kind(),
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => Kind::Exhausted,
            Self::File { .. } => Kind::Unavailable,
            Self::CutShort { .. } => Kind::Cancelled,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Lost(lost) => lost.code(),
            Self::File { .. } => "SNAPSHOT_FILE",
            Self::CutShort { .. } => "SNAPSHOT_CUT_SHORT",
        }
    }
}
