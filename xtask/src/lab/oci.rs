//! OCI archives made from what the machine has: one layer, one manifest (OCI image layout 1.0).

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One file of an image.
#[derive(Debug)]
pub(crate) struct ImageFile {
    /// Its path, without a leading slash.
    pub path: &'static str,
    /// Its permission bits.
    pub mode: u32,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// What an image runs and serves.
#[derive(Debug)]
pub(crate) struct ImageRun<'a> {
    /// The reference that the archive names.
    pub name: &'a str,
    /// Program and arguments.
    pub entrypoint: &'a [&'a str],
    /// Ports, such as 80/tcp.
    pub ports: &'a [&'a str],
}

/// Writes the archive of an image with `files` to `out`.
pub(crate) fn write_archive(out: &Path, run: &ImageRun<'_>, files: &[ImageFile]) -> Result<()> {
    let tar = layer(files).context("building the layer")?;
    let diff_id = digest(&tar);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&tar).context("compressing the layer")?;
    let layer = encoder.finish().context("compressing the layer")?;
    let config = json_bytes(&config(run, &diff_id));
    let manifest = json_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": run.name });
    let index = json_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }));
    let file = std::fs::File::create(out).with_context(|| format!("making {}", out.display()))?;
    let mut archive = tar::Builder::new(file);
    append(
        &mut archive,
        "oci-layout",
        0o644,
        &json_bytes(&json!({ "imageLayoutVersion": "1.0.0" })),
    )?;
    append(&mut archive, "index.json", 0o644, &index)?;
    for blob in [&config, &manifest, &layer] {
        append(
            &mut archive,
            &format!("blobs/{}", digest(blob).replace(':', "/")),
            0o644,
            blob,
        )?;
    }
    archive
        .into_inner()
        .and_then(|mut file| file.flush())
        .with_context(|| format!("writing {}", out.display()))
}

fn config(run: &ImageRun<'_>, diff_id: &str) -> Value {
    let ports: serde_json::Map<String, Value> = run
        .ports
        .iter()
        .map(|port| ((*port).to_owned(), json!({})))
        .collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": run.entrypoint,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
            "ExposedPorts": ports,
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": "xtask" }],
    })
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold("sha256:".to_owned(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn json_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The layer, uncompressed: all parents of the files, then the files.
fn layer(files: &[ImageFile]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut parents = BTreeSet::new();
    for file in files {
        let directories = Path::new(file.path)
            .ancestors()
            .skip(1)
            .filter(|path| !path.as_os_str().is_empty());
        parents.extend(directories.map(Path::to_owned));
    }
    for directory in ["dev", "proc", "sys", "tmp"] {
        parents.insert(directory.into());
    }
    for directory in parents {
        let mut header = plain_header();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if directory.ends_with("tmp") { 0o1777 } else { 0o755 });
        header.set_size(0);
        archive.append_data(&mut header, &directory, std::io::empty())?;
    }
    for file in files {
        append(&mut archive, file.path, file.mode, &file.bytes)?;
    }
    Ok(archive.into_inner()?)
}

/// A header whose every number is there: an empty field is no number.
fn plain_header() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = plain_header();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive
        .append_data(&mut header, path, bytes)
        .with_context(|| format!("adding {path} to an archive"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    #[test]
    fn every_blob_is_where_its_digest_says() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("image.tar");
        let run = ImageRun {
            name: "web:latest",
            entrypoint: &["/bin/web", "-f"],
            ports: &["80/tcp"],
        };
        let files = [
            ImageFile {
                path: "bin/web",
                mode: 0o755,
                bytes: vec![1; 5000],
            },
            ImageFile {
                path: "srv/www/index.html",
                mode: 0o644,
                bytes: b"hello".to_vec(),
            },
        ];
        write_archive(&out, &run, &files).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(std::fs::File::open(&out).unwrap())
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            found.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        let blob = |value: &Value| {
            let bytes = &found[&format!("blobs/{}", value["digest"].as_str().unwrap().replace(':', "/"))];
            assert_eq!(value["digest"], digest(bytes));
            assert_eq!(value["size"], bytes.len());
            bytes
        };
        let index: Value = serde_json::from_slice(&found["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][1], "-f");
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&tar));
        let mut archive = tar::Archive::new(&tar[..]);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        let place = |name: &str| {
            names
                .iter()
                .position(|n| n.trim_end_matches('/') == name)
                .unwrap()
        };
        assert!(place("srv") < place("srv/www") && place("srv/www") < place("srv/www/index.html"));
    }
}
