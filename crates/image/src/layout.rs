//! Writing an OCI archive: an image from files that a machine has, for demonstrations and tests.
//! Deterministic: the same input gives the same bytes and so the same digests.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::record::ImageConfig;
use crate::reference::ImageName;

/// A file of the image. Paths are relative; directories on the way are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where in the image.
    pub path: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub content: Content,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes, with these permissions.
    Bytes {
        /// Permissions with set-id and sticky bits.
        mode: u32,
        /// The contents.
        bytes: Vec<u8>,
    },
    /// What a file of this machine has, with these permissions.
    Copy {
        /// Permissions with set-id and sticky bits.
        mode: u32,
        /// The file to read.
        from: PathBuf,
    },
    /// A directory.
    Directory {
        /// Permissions with set-id and sticky bits.
        mode: u32,
    },
    /// A symbolic link to this target.
    Symlink(String),
    /// A second name for a file that stands before it.
    HardLink(String),
}

impl File {
    /// A file of root's with these bytes.
    #[must_use]
    pub fn bytes(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(
            path,
            Content::Bytes {
                mode,
                bytes: bytes.into(),
            },
        )
    }

    /// A file of root's with the contents of a file of this machine.
    #[must_use]
    pub fn copy(path: &str, mode: u32, from: impl Into<PathBuf>) -> Self {
        Self::new(
            path,
            Content::Copy {
                mode,
                from: from.into(),
            },
        )
    }

    /// A directory of root's.
    #[must_use]
    pub fn directory(path: &str, mode: u32) -> Self {
        Self::new(path, Content::Directory { mode })
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, Content::Symlink(target.to_owned()))
    }

    fn new(path: &str, content: Content) -> Self {
        Self {
            path: path.to_owned(),
            uid: 0,
            gid: 0,
            content,
        }
    }
}

/// The files of an image that serves `/www` over HTTP on port 80 with a statically linked busybox:
/// the program, links to it for each of `applets`, the accounts root and nobody, and an index page.
#[must_use]
pub fn busybox_files(busybox: &Path, applets: &[&str], index_page: &str) -> Vec<File> {
    let mut files = vec![
        File::directory("bin", 0o755),
        File::copy("bin/busybox", 0o755, busybox),
        File::bytes(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        File::bytes("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
        File::directory("root", 0o700),
        File::directory("tmp", 0o1777),
        File::bytes("www/index.html", 0o644, index_page),
    ];
    files.extend(
        applets
            .iter()
            .map(|applet| File::symlink(&format!("bin/{applet}"), "busybox")),
    );
    files
}

/// Writes an OCI archive with one image of one layer to `out` and returns its manifest's digest.
///
/// # Errors
/// [`ImageError::Io`] when a file cannot be read or the archive written.
pub fn write_archive(
    out: &mut dyn Write,
    name: &ImageName,
    files: &[File],
    config: &ImageConfig,
) -> Result<Digest, ImageError> {
    let layer = layer(files)?;
    write_layers(out, name, &[layer], config)
}

/// Writes an OCI archive of layers that are tar archives already, lowest first.
///
/// # Errors
/// [`ImageError::Io`] when the archive cannot be written.
pub fn write_layers(
    out: &mut dyn Write,
    name: &ImageName,
    layers: &[Vec<u8>],
    config: &ImageConfig,
) -> Result<Digest, ImageError> {
    let failed = |source| ImageError::Io {
        action: "write",
        path: PathBuf::from("an OCI archive"),
        source,
    };
    let packed = layers
        .iter()
        .map(|layer| gzip(layer))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    let environment = config
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let mut running = json!({
        "Entrypoint": config.entrypoint, "Cmd": config.command, "Env": environment.collect::<Vec<_>>(),
        "WorkingDir": config.working_directory, "User": config.user,
    });
    if config.stop_signal != 0 {
        running["StopSignal"] = json!(config.stop_signal.to_string());
    }
    let unpacked: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let configuration = json!({
        "architecture": architecture, "os": "linux", "config": running,
        "rootfs": {"type": "layers", "diff_ids": unpacked},
    })
    .to_string()
    .into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let layer_kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &configuration),
        "layers": packed.iter().map(|layer| descriptor(layer_kind, layer)).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    listed["annotations"] = json!({"org.opencontainers.image.ref.name": name.to_string()});
    let index = json!({"schemaVersion": 2, "manifests": [listed]})
        .to_string()
        .into_bytes();
    let mut archive = tar::Builder::new(out);
    let mut blobs: Vec<(String, &[u8])> = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json".to_owned(), &index),
    ];
    let contents = packed
        .iter()
        .map(Vec::as_slice)
        .chain([manifest.as_slice(), configuration.as_slice()]);
    blobs.extend(contents.map(|bytes| (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes)));
    for (path, bytes) in blobs {
        append(&mut archive, &path, tar::EntryType::Regular, 0o644, (0, 0), bytes).map_err(failed)?;
    }
    archive.into_inner().and_then(|out| out.flush()).map_err(failed)?;
    Ok(Digest::of(&manifest))
}

/// The tar archive of some files.
fn layer(files: &[File]) -> Result<Vec<u8>, ImageError> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let owner = (file.uid, file.gid);
        let put = match &file.content {
            Content::Bytes { mode, bytes } => append(
                &mut archive,
                &file.path,
                tar::EntryType::Regular,
                *mode,
                owner,
                bytes,
            ),
            Content::Copy { mode, from } => {
                let bytes = std::fs::read(from).map_err(ImageError::io("read", from))?;
                append(
                    &mut archive,
                    &file.path,
                    tar::EntryType::Regular,
                    *mode,
                    owner,
                    &bytes,
                )
            }
            Content::Directory { mode } => append(
                &mut archive,
                &file.path,
                tar::EntryType::Directory,
                *mode,
                owner,
                &[],
            ),
            Content::Symlink(target) => {
                link(&mut archive, &file.path, tar::EntryType::Symlink, target, owner)
            }
            Content::HardLink(target) => link(&mut archive, &file.path, tar::EntryType::Link, target, owner),
        };
        put.map_err(ImageError::io("pack", Path::new(&file.path)))?;
    }
    archive
        .into_inner()
        .map_err(ImageError::io("pack", Path::new("a layer")))
}

fn header(kind: tar::EntryType, mode: u32, owner: (u32, u32), size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.0.into());
    header.set_gid(owner.1.into());
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    owner: (u32, u32),
    bytes: &[u8],
) -> io::Result<()> {
    archive.append_data(&mut header(kind, mode, owner, bytes.len()), path, bytes)
}

fn link<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    kind: tar::EntryType,
    target: &str,
    owner: (u32, u32),
) -> io::Result<()> {
    archive.append_link(&mut header(kind, 0o777, owner, 0), path, target)
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // flate2 writes no time and no name, so the same input gives the same bytes.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}
