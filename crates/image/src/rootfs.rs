//! From a resolved image to its root file system: `<store>/rootfs/<digits of the manifest>.ext4`.
//! Nothing is mounted: layers are unpacked into a private directory and `mke2fs -d` copies that.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_sys::fault::{Side, reach};

use crate::blobs::{Blobs, sync_directory, temporary_beside};
use crate::digest::Digest;
use crate::disk::{self, Need};
use crate::error::ImageError;
use crate::progress::{Phase, Watch};
use crate::resolve::Resolved;
use crate::unpack::tree::Tree;
use crate::unpack::{Limits, Unpacker};

/// Copying a tree of 64 GiB takes minutes on a slow disk.
const MAKE_LIMIT: Duration = Duration::from_secs(1800);

/// The root file systems of a store.
#[derive(Debug)]
pub(crate) struct Rootfs {
    directory: PathBuf,
    staging: PathBuf,
}

impl Rootfs {
    /// Root file systems below `store`.
    pub(crate) fn open(store: &Path) -> Result<Self, ImageError> {
        let (directory, staging) = (store.join("rootfs"), store.join("staging"));
        fs::create_dir_all(&directory).map_err(ImageError::io("make the directory", &directory))?;
        let mut private = DirBuilder::new();
        private
            .recursive(true)
            .mode(0o700)
            .create(&staging)
            .map_err(ImageError::io("make the directory", &staging))?;
        let closed = fs::set_permissions(&staging, Permissions::from_mode(0o700));
        closed.map_err(ImageError::io("close", &staging))?;
        Ok(Self { directory, staging })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn directories(&self) -> [&Path; 2] {
        [&self.directory, &self.staging]
    }

    /// Where the root file system of a manifest is or would be.
    pub(crate) fn path(&self, manifest: &Digest) -> PathBuf {
        self.directory.join(format!("{}.ext4", manifest.hex()))
    }

    /// The length of the file, when it is there.
    pub(crate) fn size(&self, manifest: &Digest) -> Option<u64> {
        fs::metadata(self.path(manifest)).ok().map(|found| found.len())
    }

    /// Makes the root file system unless it is there. Returns how many device nodes were left out.
    pub(crate) fn make(
        &self,
        image: &Resolved,
        blobs: &Blobs,
        limits: Limits,
        watch: &mut Watch<'_>,
    ) -> Result<u64, ImageError> {
        let staged = temporary_beside(&self.staging.join(&image.manifest.digest.hex()[..16]));
        let made = self.make_in(&staged, image, blobs, limits, watch);
        match fs::remove_dir_all(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start removes it; the import itself is not worse for it.
                tracing::warn!(path = %staged.display(), %error, "a staging directory stays");
            }
            Ok(()) | Err(_) => {}
        }
        made
    }

    fn make_in(
        &self,
        staged: &Path,
        image: &Resolved,
        blobs: &Blobs,
        limits: Limits,
        watch: &mut Watch<'_>,
    ) -> Result<u64, ImageError> {
        let top = staged.join("tree");
        for directory in [staged, &top] {
            fs::create_dir(directory).map_err(ImageError::io("make the directory", directory))?;
        }
        watch.begin(
            Phase::Unpacking,
            image.layers.iter().map(|layer| layer.blob.size).sum(),
        )?;
        let mut unpacker = Unpacker::new(Tree::open(&top)?, limits);
        for layer in &image.layers {
            unpacker.layer(layer, blobs, watch)?;
        }
        watch.begin(Phase::Building, 0)?;
        let file = staged.join("rootfs.ext4");
        disk::make_root(&file, &top, need_of(&top)?, &image.manifest.digest, MAKE_LIMIT)?;
        fs::set_permissions(&file, Permissions::from_mode(0o444))
            .map_err(ImageError::io("protect", &file))?;
        File::open(&file)
            .and_then(|file| file.sync_all())
            .map_err(ImageError::io("synchronise", &file))?;
        reach("import_rootfs_place", Side::Before, &image.manifest.digest);
        // A link does not replace: of two imports of one image the first stays, and a guest that
        // has it open already shares its pages with those to come.
        match fs::hard_link(&file, self.path(&image.manifest.digest)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(ImageError::io("place", &self.path(&image.manifest.digest))(error));
            }
            Ok(()) | Err(_) => {}
        }
        sync_directory(&self.directory)?;
        watch.advance(Phase::Building, 0)?;
        Ok(unpacker.skipped_devices)
    }

    /// Removes a root file system; one that is not there is fine.
    pub(crate) fn remove(&self, manifest: &Digest) -> Result<(), ImageError> {
        let path = self.path(manifest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The manifests whose root file systems are there.
    pub(crate) fn present(&self) -> Result<BTreeSet<Digest>, ImageError> {
        let listed = fs::read_dir(&self.directory).map_err(ImageError::io("list", &self.directory))?;
        let names = listed
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        Ok(names
            .filter_map(|name| format!("sha256:{}", name.strip_suffix(".ext4")?).parse().ok())
            .collect())
    }
}

/// Counts what a tree needs as a file system. Links are not followed.
fn need_of(top: &Path) -> Result<Need, ImageError> {
    let mut need = Need {
        inodes: 16,
        blocks: 16,
    };
    let mut linked = HashSet::new();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        let mut names = 0_u64;
        for entry in fs::read_dir(&directory).map_err(ImageError::io("list", &directory))? {
            let entry = entry.map_err(ImageError::io("list", &directory))?;
            let metadata = entry
                .metadata()
                .map_err(ImageError::io("look at", &entry.path()))?;
            // An entry of a directory takes 8 bytes and its name, padded.
            names += 12 + entry.file_name().len() as u64;
            if metadata.is_dir() {
                pending.push(entry.path());
                continue;
            }
            if metadata.nlink() > 1 && !linked.insert(metadata.ino()) {
                continue;
            }
            need.inodes += 1;
            // A short link is kept in its inode.
            need.blocks += if metadata.len() < 60 && metadata.is_symlink() {
                0
            } else {
                metadata.len().div_ceil(4096)
            };
        }
        need.inodes += 1;
        need.blocks += 1 + names.div_ceil(3000);
    }
    Ok(need)
}
