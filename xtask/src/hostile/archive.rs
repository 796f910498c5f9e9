//! OCI archives that are wrong in one place. Everything is written byte by byte: the writers that others
//! made refuse to write most of this.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The media types that are used here.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// One entry of a tar archive (POSIX.1-1988 `ustar`), every field as it will be written.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub kind: u8,
    pub link: Vec<u8>,
    pub contents: Vec<u8>,
    /// The size field when it shall not be the contents' length.
    pub size: Option<Vec<u8>>,
    /// The field of the user id.
    pub owner: Vec<u8>,
    /// Whether the header's checksum is right.
    pub sealed: bool,
}

/// An entry of `kind`, as tar numbers kinds.
pub(crate) fn entry(name: impl AsRef<[u8]>, kind: u8) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        link: Vec::new(),
        contents: Vec::new(),
        size: None,
        owner: b"0000000\0".to_vec(),
        sealed: true,
    }
}

/// A file with a few bytes.
pub(crate) fn file(name: impl AsRef<[u8]>) -> Entry {
    Entry {
        contents: b"contents\n".to_vec(),
        ..entry(name, b'0')
    }
}

/// A directory.
pub(crate) fn directory(name: impl AsRef<[u8]>) -> Entry {
    entry(name, b'5')
}

/// A symbolic link.
pub(crate) fn symlink(name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Entry {
    Entry {
        link: to.as_ref().to_vec(),
        ..entry(name, b'2')
    }
}

/// A hard link.
pub(crate) fn hard_link(name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Entry {
    Entry {
        link: to.as_ref().to_vec(),
        ..entry(name, b'1')
    }
}

/// An extended header (POSIX.1-2001 pax) for the entry behind it.
pub(crate) fn pax(records: &[(&str, &[u8])]) -> Entry {
    let mut contents = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let length = (1..8)
            .map(|digits| rest + digits)
            .find(|total| rest + total.to_string().len() == *total)
            .unwrap_or(rest);
        contents.extend_from_slice(format!("{length} {key}=").as_bytes());
        contents.extend_from_slice(value);
        contents.push(b'\n');
    }
    Entry {
        contents,
        ..entry("pax", b'x')
    }
}

impl Entry {
    fn header(&self) -> Vec<u8> {
        let mut header = vec![0_u8; 512];
        let mut put = |at: usize, bytes: &[u8], room: usize| {
            let count = bytes.len().min(room);
            if let (Some(field), Some(bytes)) = (header.get_mut(at..at + count), bytes.get(..count)) {
                field.copy_from_slice(bytes);
            }
        };
        let size = format!("{:011o}\0", self.contents.len()).into_bytes();
        put(0, &self.name, 100);
        put(100, b"0000755\0", 8);
        put(108, &self.owner, 8);
        put(116, b"0000000\0", 8);
        put(124, self.size.as_ref().unwrap_or(&size), 12);
        put(136, b"00000000000\0", 12);
        put(148, b"        ", 8);
        put(156, &[self.kind], 1);
        put(157, &self.link, 100);
        put(257, b"ustar\x0000", 8);
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        let sum = format!("{:06o}\0 ", if self.sealed { sum } else { sum + 1 });
        if let Some(field) = header.get_mut(148..156) {
            field.copy_from_slice(sum.as_bytes());
        }
        header
    }
}

/// The archive of `entries`, with its end.
pub(crate) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = open_tar(entries);
    out.resize(out.len() + 1024, 0);
    out
}

/// The same without its end.
pub(crate) fn open_tar(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&entry.header());
        out.extend_from_slice(&entry.contents);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

/// `bytes` under gzip.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).context("compressing")?;
    encoder.finish().context("compressing")
}

/// `sha256:` and the digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A descriptor of `bytes`.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

/// One layer: what is in the archive, and what the documents say of it.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub packed: Vec<u8>,
    pub media_type: String,
    pub unpacked_digest: String,
}

impl Layer {
    /// A right one of `entries`.
    pub(crate) fn of(entries: &[Entry]) -> Self {
        Self::plain(tar(entries))
    }

    /// An archive as it is.
    pub(crate) fn plain(bytes: Vec<u8>) -> Self {
        Self {
            unpacked_digest: digest(&bytes),
            packed: bytes,
            media_type: PLAIN.to_owned(),
        }
    }

    /// An archive under gzip.
    pub(crate) fn zipped(bytes: &[u8]) -> Result<Self> {
        Ok(Self {
            unpacked_digest: digest(bytes),
            packed: gzip(bytes)?,
            media_type: GZIP.to_owned(),
        })
    }
}

type Twist = Box<dyn Fn(&mut Value)>;

/// An image whose documents can be twisted before their digests are taken.
pub(crate) struct Image {
    pub layers: Vec<Layer>,
    pub config: Twist,
    pub manifest: Twist,
    pub index: Twist,
    /// Takes a blob away by its digest's place: 0 the configuration, 1 the manifest, then the layers.
    pub without: Option<usize>,
    /// `oci-layout`, when there is one.
    pub layout: Option<Vec<u8>>,
    /// Entries before everything else.
    pub before: Vec<Entry>,
    /// Blobs that the documents may name.
    pub blobs: Vec<Vec<u8>>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            layers: vec![Layer::of(&[directory("bin"), file("bin/sh")])],
            config: Box::new(|_| {}),
            manifest: Box::new(|_| {}),
            index: Box::new(|_| {}),
            without: None,
            layout: Some(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            before: Vec::new(),
            blobs: Vec::new(),
        }
    }
}

impl Image {
    /// One with these layers.
    pub(crate) fn of(layers: Vec<Layer>) -> Self {
        Self {
            layers,
            ..Self::default()
        }
    }

    /// A good one with a twisted configuration.
    pub(crate) fn config(twist: impl Fn(&mut Value) + 'static) -> Self {
        Self {
            config: Box::new(twist),
            ..Self::default()
        }
    }

    /// A good one with a twisted manifest.
    pub(crate) fn manifest(twist: impl Fn(&mut Value) + 'static) -> Self {
        Self {
            manifest: Box::new(twist),
            ..Self::default()
        }
    }

    /// A good one with a twisted index.
    pub(crate) fn index(twist: impl Fn(&mut Value) + 'static) -> Self {
        Self {
            index: Box::new(twist),
            ..Self::default()
        }
    }

    /// The configuration and the manifest, as they will be in the archive.
    fn documents(&self) -> (Vec<u8>, Vec<u8>) {
        let mut config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": ["/bin/sh"], "Env": ["PATH=/bin"] },
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| layer.unpacked_digest.clone()).collect::<Vec<_>>(),
            },
        });
        (self.config)(&mut config);
        let config = config.to_string().into_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(&layer.media_type, &layer.packed))
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers,
        });
        (self.manifest)(&mut manifest);
        let manifest = manifest.to_string().into_bytes();
        (config, manifest)
    }

    /// The manifest.
    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.documents().1
    }

    /// The archive.
    pub(crate) fn build(&self) -> Vec<u8> {
        let (config, manifest) = self.documents();
        let mut listed = descriptor(MANIFEST, &manifest);
        listed["annotations"] = json!({ "org.opencontainers.image.ref.name": "hostile:case" });
        let mut index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [listed] });
        (self.index)(&mut index);
        let mut entries = self.before.clone();
        if let Some(layout) = &self.layout {
            entries.push(with("oci-layout", layout.clone()));
        }
        entries.push(with("index.json", index.to_string().into_bytes()));
        let mut blobs = vec![config, manifest];
        blobs.extend(self.layers.iter().map(|layer| layer.packed.clone()));
        if let Some(place) = self.without {
            blobs.remove(place);
        }
        blobs.extend(self.blobs.iter().cloned());
        for blob in blobs {
            let name = format!("blobs/{}", digest(&blob).replace(':', "/"));
            entries.push(with(&name, blob));
        }
        tar(&entries)
    }
}

/// A file with these bytes.
pub(crate) fn with(name: &str, contents: Vec<u8>) -> Entry {
    Entry {
        contents,
        ..file(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_not_twisted_is_right() {
        let bytes = Image::default().build();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).unwrap();
                let name = entry.path().unwrap().display().to_string();
                if let Some(digits) = name.strip_prefix("blobs/sha256/") {
                    assert_eq!(digest(&contents), format!("sha256:{digits}"));
                }
                name
            })
            .collect();
        assert_eq!(names.len(), 5, "{names:?}");
    }

    #[test]
    fn lengths_of_extended_records_count_themselves() {
        let made = pax(&[("path", &[b'a'; 90]), ("size", b"7")]);
        let records: Vec<_> = tar::PaxExtensions::new(&made.contents)
            .map(|record| record.unwrap().value_bytes().len())
            .collect();
        assert_eq!(records, [90, 1]);
    }
}
