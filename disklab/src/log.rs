//! What happened to the disk, as values in one order.

use std::ffi::OsString;
use std::sync::Arc;

/// The number of a file or directory; never used again on the same disk. The root is 1.
pub type FileId = u64;

/// What a name can lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(OsString),
    /// A socket, pipe or device: kept as a name, without content.
    Other,
}

/// One thing that a program did to the disk and was told that it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new node; it has no name yet.
    Made {
        /// Its number.
        file: FileId,
        /// What it is.
        kind: NodeKind,
    },
    /// Permissions and owner as they are now.
    Attributes {
        /// The node.
        file: FileId,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Bytes were written.
    Write {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// The size was set; what is behind it is gone.
    Truncate {
        /// The file.
        file: FileId,
        /// The size in bytes.
        size: u64,
    },
    /// A range reads as zeros from now on (a hole, or zeroed); the size stays.
    Zero {
        /// The file.
        file: FileId,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
    },
    /// A name leads to a node (create, mkdir, symlink, link).
    Name {
        /// The directory.
        directory: FileId,
        /// The name.
        name: OsString,
        /// What it leads to.
        file: FileId,
    },
    /// A name is gone (unlink, rmdir).
    Unname {
        /// The directory.
        directory: FileId,
        /// The name.
        name: OsString,
    },
    /// A name moved, replacing what the new name led to.
    Rename {
        /// The directory of the old name.
        from: FileId,
        /// The old name.
        old: OsString,
        /// The directory of the new name.
        to: FileId,
        /// The new name.
        new: OsString,
        /// What both lead to.
        file: FileId,
    },
    /// A flush of a file has ended (fsync, fdatasync).
    Flush {
        /// The file.
        file: FileId,
    },
    /// A flush of a directory has ended.
    FlushDirectory {
        /// The directory.
        directory: FileId,
    },
    /// A flush of everything has ended (syncfs).
    FlushAll,
    /// The harness's own: what it knew at this point.
    Mark(u64),
}

impl Change {
    /// Whether it makes earlier changes durable.
    #[must_use]
    pub const fn is_flush(&self) -> bool {
        matches!(
            self,
            Self::Flush { .. } | Self::FlushDirectory { .. } | Self::FlushAll
        )
    }
}
