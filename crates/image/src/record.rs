//! What is known of an imported image, and how it is kept.

use dormouse_model::{Bytes, WallTime};
use prost::Message as _;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::reference::ImageName;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Name and tag; the key of the index.
    pub name: ImageName,
    /// The manifest's digest, which names the root file system as well.
    pub digest: Digest,
    /// Bytes of manifest, configuration and layers as they were packed.
    pub size: Bytes,
    /// Length of the root file system's file.
    pub rootfs_size: Bytes,
    /// When it was imported under this name.
    pub imported: WallTime,
    /// Manifest, configuration and layers, each once.
    pub blobs: Vec<Digest>,
    /// Device nodes below `dev/` that were left out: guests mount their own.
    pub skipped_devices: u64,
    /// What to run.
    pub config: ImageConfig,
}

/// What an image says about running it (OCI image specification, config.md).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// First part of the command line.
    pub entrypoint: Vec<String>,
    /// Second part, which a caller replaces more often.
    pub command: Vec<String>,
    /// Names and values, in the image's order.
    pub environment: Vec<(String, String)>,
    /// Empty: `/`.
    pub working_directory: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty: root.
    pub user: String,
    /// The signal that asks the program to end, by number; 0: `SIGTERM`.
    pub stop_signal: u32,
}

impl ImageConfig {
    /// The command line under a caller's overrides, each of which counts when not empty. An entry
    /// point of the caller's drops the image's command, which was meant for the image's own. Empty
    /// when neither says what to run.
    #[must_use]
    pub fn arguments(&self, entrypoint: &[String], command: &[String]) -> Vec<String> {
        let (first, second) = match (entrypoint, command) {
            ([], []) => (self.entrypoint.as_slice(), self.command.as_slice()),
            ([], command) => (self.entrypoint.as_slice(), command),
            (entrypoint, command) => (entrypoint, command),
        };
        [first, second].concat()
    }

    /// The environment under a caller's additions, which win.
    #[must_use]
    pub fn environment_with<'a>(
        &self,
        additions: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Vec<(String, String)> {
        let mut variables = self.environment.clone();
        for (name, value) in additions {
            variables.retain(|(known, _)| known != name);
            variables.push((name.clone(), value.clone()));
        }
        variables
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    digest: Vec<u8>,
    #[prost(uint64, tag = "3")]
    size: u64,
    #[prost(uint64, tag = "4")]
    rootfs_size: u64,
    #[prost(fixed64, tag = "5")]
    imported: u64,
    #[prost(bytes = "vec", repeated, tag = "6")]
    blobs: Vec<Vec<u8>>,
    #[prost(uint64, tag = "7")]
    skipped_devices: u64,
    #[prost(string, repeated, tag = "8")]
    entrypoint: Vec<String>,
    #[prost(string, repeated, tag = "9")]
    command: Vec<String>,
    #[prost(message, repeated, tag = "10")]
    environment: Vec<Variable>,
    #[prost(string, tag = "11")]
    working_directory: String,
    #[prost(string, tag = "12")]
    user: String,
    #[prost(uint32, tag = "13")]
    stop_signal: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Variable {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

impl ImageRecord {
    /// The record as a protobuf body, for a store that adds version and checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let variable = |(name, value): &(String, String)| Variable {
            name: name.clone(),
            value: value.clone(),
        };
        let config = self.config.clone();
        Wire {
            name: self.name.to_string(),
            digest: self.digest.bytes().to_vec(),
            size: self.size.0,
            rootfs_size: self.rootfs_size.0,
            imported: self.imported.unix_nanos(),
            blobs: self.blobs.iter().map(|blob| blob.bytes().to_vec()).collect(),
            skipped_devices: self.skipped_devices,
            environment: config.environment.iter().map(variable).collect(),
            entrypoint: config.entrypoint,
            command: config.command,
            working_directory: config.working_directory,
            user: config.user,
            stop_signal: config.stop_signal,
        }
        .encode_to_vec()
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`ImageError::RecordUnreadable`].
    pub fn decode(body: &[u8]) -> Result<Self, ImageError> {
        let wrong = |why: String| ImageError::RecordUnreadable { why };
        let wire = Wire::decode(body).map_err(|error| wrong(error.to_string()))?;
        let digest = |bytes: &Vec<u8>| {
            <[u8; 32]>::try_from(bytes.as_slice())
                .map(Digest::from_bytes)
                .map_err(|_| wrong(format!("a digest has {} bytes, not 32", bytes.len())))
        };
        Ok(Self {
            name: wire
                .name
                .parse()
                .map_err(|error: ImageError| wrong(error.to_string()))?,
            digest: digest(&wire.digest)?,
            size: Bytes(wire.size),
            rootfs_size: Bytes(wire.rootfs_size),
            imported: WallTime::from_unix_nanos(wire.imported),
            blobs: wire.blobs.iter().map(digest).collect::<Result<_, _>>()?,
            skipped_devices: wire.skipped_devices,
            config: ImageConfig {
                entrypoint: wire.entrypoint,
                command: wire.command,
                environment: wire.environment.into_iter().map(|v| (v.name, v.value)).collect(),
                working_directory: wire.working_directory,
                user: wire.user,
                stop_signal: wire.stop_signal,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn records_survive_bytes() {
        let record = ImageRecord {
            name: "web:1".parse().unwrap(),
            digest: Digest::of(b"m"),
            size: Bytes(5),
            rootfs_size: Bytes::mib(9),
            imported: WallTime::from_unix_nanos(7),
            blobs: vec![Digest::of(b"m"), Digest::of(b"l")],
            skipped_devices: 2,
            config: ImageConfig {
                entrypoint: words("/bin/sh -c"),
                command: words("serve"),
                environment: vec![("A".to_owned(), "=b".to_owned())],
                working_directory: "/srv".to_owned(),
                user: "www".to_owned(),
                stop_signal: 3,
            },
        };
        assert_eq!(ImageRecord::decode(&record.encode()).unwrap(), record);
        assert!(ImageRecord::decode(b"\xff\xff").is_err());
        assert!(ImageRecord::decode(&[]).is_err());
    }

    #[test]
    fn command_lines() {
        let config = ImageConfig {
            entrypoint: words("run it"),
            command: words("fast"),
            ..ImageConfig::default()
        };
        for (entrypoint, command, want) in [
            ("", "", "run it fast"),
            ("", "slow now", "run it slow now"),
            ("sh", "", "sh"),
            ("sh -c", "true", "sh -c true"),
        ] {
            assert_eq!(config.arguments(&words(entrypoint), &words(command)), words(want));
        }
        assert_eq!(ImageConfig::default().arguments(&[], &[]), Vec::<String>::new());
    }
}
