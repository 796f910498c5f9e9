//! ext4 disks: the writable disk of an instance, and how root file systems are made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dormouse_model::Bytes;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::tool::{self, MKE2FS};

/// The label of root file systems made from images; at most 16 bytes.
pub const ROOT_LABEL: &str = "dormouse-root";

/// The label of writable disks.
pub const DATA_LABEL: &str = "dormouse-data";

/// Least size of a writable disk: below it a journal does not fit.
pub const MIN_DISK: Bytes = Bytes::mib(16);

/// Making an empty file system writes a few hundred kilobytes.
const EMPTY_LIMIT: Duration = Duration::from_secs(60);

/// Makes an empty sparse disk of `size` bytes with an ext4 file system labelled [`DATA_LABEL`] at
/// `path`, which must not exist. The file is mode 0600 and is not synchronised: an instance's
/// creation has one completion record after it.
///
/// It has a journal, because a guest may be killed at any time, and inode tables that are written
/// as they are used, because writing them now would fill the file.
///
/// # Errors
/// [`ImageError::Io`] when the file exists or cannot be made, or what `mke2fs` says. Nothing is left.
pub fn create_empty(path: &Path, size: Bytes) -> Result<(), ImageError> {
    if size < MIN_DISK {
        return Err(ImageError::LimitExceeded {
            what: "data than its disk can hold, or a disk smaller",
            limit: MIN_DISK.0,
        });
    }
    let file = create_sparse(path, size)?;
    drop(file);
    let made = make_empty(path);
    if made.is_err() {
        // The first error is the one to tell.
        let _left = fs::remove_file(path);
    }
    made
}

fn make_empty(path: &Path) -> Result<(), ImageError> {
    let mut command = MKE2FS.command()?;
    command.args([
        "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", DATA_LABEL,
    ]);
    command.args(["-J", "size=4", "-O", "^resize_inode"]);
    command.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
    command.arg(path);
    run(command, EMPTY_LIMIT, path)
}

/// Runs mke2fs. That the disk is full it says in words only; the locale of a tool is `C`.
fn run(command: Command, limit: Duration, path: &Path) -> Result<(), ImageError> {
    match tool::run(command, limit) {
        Err(ImageError::ToolFailed { message, .. }) if message.contains("No space left on device") => Err(
            ImageError::io("make a file system in", path)(io::ErrorKind::StorageFull.into()),
        ),
        outcome => outcome,
    }
}

/// Makes a new file of `size` bytes without blocks.
pub(crate) fn create_sparse(path: &Path, size: Bytes) -> Result<File, ImageError> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let file = created.map_err(ImageError::io("create", path))?;
    file.set_len(size.0).map_err(ImageError::io("size", path))?;
    Ok(file)
}

/// What a tree needs as a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Need {
    /// Files, directories and links.
    pub(crate) inodes: u64,
    /// Blocks of 4 KiB that their contents take.
    pub(crate) blocks: u64,
}

/// Room for what is not counted: the file system's own tables and extent trees.
const SLACK_BLOCKS: u64 = 2048;

impl Need {
    /// The size of the file system: contents, 256 bytes an inode, a share for the tables, slack.
    pub(crate) const fn size(self) -> Bytes {
        let inodes = self.inodes + 64;
        let tables = inodes.div_ceil(16);
        let blocks = self.blocks + tables;
        Bytes(4096 * (blocks + blocks / 32 + SLACK_BLOCKS))
    }
}

/// Makes a root file system from the tree at `tree`: no journal, because it is only ever read, and
/// everything that could differ between two runs derived from `identity`.
pub(crate) fn make_root(
    path: &Path,
    tree: &Path,
    need: Need,
    identity: &Digest,
    limit: Duration,
) -> Result<(), ImageError> {
    drop(create_sparse(path, need.size())?);
    let uuid = uuid_of(identity);
    let mut command = MKE2FS.command()?;
    command.env("E2FSPROGS_FAKE_TIME", "1");
    command.args([
        "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", ROOT_LABEL, "-U", &uuid,
    ]);
    command.args([
        "-N",
        &(need.inodes + 64).to_string(),
        "-O",
        "^has_journal,^resize_inode",
    ]);
    command.args(["-E", &format!("hash_seed={uuid},root_owner=0:0,nodiscard")]);
    command.arg("-d").arg(tree).arg(path);
    run(command, limit, path)
}

/// A UUID of version 8 (RFC 9562, section 5.8) from a digest's first bytes.
fn uuid_of(digest: &Digest) -> String {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = *digest.bytes();
    let (g, i) = ((g & 0x0f) | 0x80, (i & 0x3f) | 0x80);
    format!(
        "{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}-{g:02x}{h:02x}-{i:02x}{j:02x}-{k:02x}{l:02x}{m:02x}{n:02x}{o:02x}{p:02x}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_model::Fault;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn uuids_are_of_version_8() {
        assert_eq!(
            uuid_of(&Digest::of(b"abc")),
            "ba7816bf-8f01-8fea-8141-40de5dae2223"
        );
    }

    #[test]
    fn an_empty_disk_is_sparse_and_never_overwrites() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        for size in [Bytes::mib(16), Bytes::gib(64)] {
            create_empty(&path, size).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.len(), metadata.mode() & 0o777), (size.0, 0o600));
            assert!(
                metadata.blocks() * 512 < 8 << 20,
                "{} blocks at {size}",
                metadata.blocks()
            );
            let error = create_empty(&path, size).unwrap_err();
            assert_eq!(error.code(), "IMAGE_IO");
            assert!(path.exists(), "the existing disk stays");
            fs::remove_file(&path).unwrap();
        }
        assert!(create_empty(&path, Bytes::mib(1)).is_err());
        assert!(!path.exists());
    }
}
