//! A store to import into, and layers with any entries, however wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dormouse_image::{
    ContentStore, Digest, ImageConfig, ImageError, ImportOptions, Limits, MemoryIndex, layout,
};
use dormouse_model::WallTime;

pub const NOW: WallTime = WallTime::from_unix_nanos(1_795_172_732_000_000_000);

/// A store in a directory of its own, or why this machine has none.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub store: ContentStore,
}

impl Bench {
    pub fn new(test: &str) -> Option<Self> {
        Self::with_limits(test, Limits::default())
    }

    pub fn with_limits(test: &str, limits: Limits) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: {test}: unpacking with owners needs root");
            return None;
        }
        if Command::new("mke2fs").arg("-V").output().is_err() {
            println!("skipped: {test}: mke2fs is not installed");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let store = ContentStore::open(directory.path(), Arc::new(MemoryIndex::default()), limits).unwrap();
        Some(Self { directory, store })
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn import(&self, archive: &Path) -> Result<dormouse_image::ImageRecord, ImageError> {
        self.store
            .import(archive, &ImportOptions::default(), NOW, &mut |_| {
                ControlFlow::Continue(())
            })
    }

    /// Imports layers given as tar archives.
    pub fn import_layers(&self, layers: &[Vec<u8>]) -> Result<dormouse_image::ImageRecord, ImageError> {
        let archive = self.file("image.tar", &archive(layers));
        self.import(&archive)
    }

    /// Every file of the store.
    pub fn contents(&self) -> BTreeSet<PathBuf> {
        let (mut found, mut pending) = (BTreeSet::new(), vec![self.directory.path().join("images")]);
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    pending.push(entry.path());
                }
                if !entry.file_type().unwrap().is_dir()
                    || entry.file_name().to_string_lossy().contains("partial")
                {
                    found.insert(entry.path());
                }
            }
        }
        found
    }

    /// What debugfs says about the root file system of an image.
    pub fn debugfs(&self, image: &Digest, request: &str) -> String {
        let output = Command::new("debugfs")
            .args(["-R", request])
            .arg(self.store.rootfs_path(image))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn exists(&self, image: &Digest, path: &str) -> bool {
        self.debugfs(image, &format!("stat {path}")).contains("Inode:")
    }
}

pub fn archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    layout::write_layers(
        &mut bytes,
        &"test:1".parse().unwrap(),
        layers,
        &ImageConfig::default(),
    )
    .unwrap();
    bytes
}

/// An entry of a layer; names are written as they are, however wrong.
#[derive(Clone)]
pub struct Entry {
    pub name: &'static str,
    pub kind: tar::EntryType,
    pub link: &'static str,
    pub contents: &'static [u8],
}

pub fn entry(name: &'static str, kind: tar::EntryType) -> Entry {
    Entry {
        name,
        kind,
        link: "",
        contents: b"",
    }
}

pub fn dir(name: &'static str) -> Entry {
    entry(name, tar::EntryType::Directory)
}

pub fn file(name: &'static str) -> Entry {
    Entry {
        contents: name.as_bytes(),
        ..entry(name, tar::EntryType::Regular)
    }
}

pub fn symlink(name: &'static str, link: &'static str) -> Entry {
    Entry {
        link,
        ..entry(name, tar::EntryType::Symlink)
    }
}

pub fn hard(name: &'static str, link: &'static str) -> Entry {
    Entry {
        link,
        ..entry(name, tar::EntryType::Link)
    }
}

pub fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(if entry.kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.contents.len() as u64);
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        fields.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        builder.append(&header, entry.contents).unwrap();
    }
    builder.into_inner().unwrap()
}
