//! The manifest of one saved image: what belongs together, and how to know it again.
//!
//! ```text
//!  byte 0     1 .. n-4      n-4 .. n
//!  version    prost body    CRC-32 (IEEE), little endian, over a name, the version and the body
//! ```
//!
//! The record names the file by its SHA-256; the sum tells a file that was cut from one that was never ours.

use dormouse_model::{Bytes, Digest, Generation, ImagePart, Lost, PartFault, WorkloadId};
use prost::Message;

use crate::machine::BootId;
use crate::memory::Home;

/// Version of the body; newer ones are refused.
pub const MANIFEST_VERSION: u8 = 1;

/// The longest manifest that is read: many times what one with all disks takes.
pub const MOST: u64 = 64 << 10;

/// Begins what is summed.
const NAME: &[u8] = b"dormouse manifest\0";

/// What the memory of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A file of the workload's own, consumed by its wake. The only one that is made.
    Own,
    /// A frozen file that several map privately.
    Base,
    /// Such a file and the pages that this workload changed.
    BaseDelta,
}

/// The memory of an image, as its sleep left it. A spill moves it later; the record says where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPart {
    /// Bytes of guest RAM.
    pub size: Bytes,
    /// On which file system.
    pub home: Home,
    /// The file's name there.
    pub name: String,
    /// Its inode.
    pub inode: u64,
    /// The mount that alone shows all of it, by its number ([`dormouse_sys::mount`]): pages of it may be in
    /// the page cache only, which another mount of the same disk does not have. `None` when the sleep has
    /// flushed it, and on tmpfs, where there is nothing but the cache.
    pub unflushed_on: Option<u64>,
}

/// A writable disk as its guest left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPart {
    /// The file's name in the instance's folder.
    pub name: String,
    /// Its length.
    pub size: Bytes,
    /// SHA-256 of its beginning ([`super::digest::HEAD`]).
    pub head: Digest,
}

/// The program that saved the device state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorPart {
    /// The driver's name.
    pub driver: String,
    /// The program's version, in its own words.
    pub version: String,
    /// The name under which the program is kept; empty for a driver without a program.
    pub kept: String,
    /// The version of the translation that made its arguments.
    pub translation: u32,
}

/// All that belongs to one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose image.
    pub instance: WorkloadId,
    /// Which sleep made it.
    pub generation: Generation,
    /// What its memory is.
    pub shape: Shape,
    /// The boot in which it was made.
    pub boot: BootId,
    /// Its memory.
    pub memory: MemoryPart,
    /// Length of the device state.
    pub state_length: Bytes,
    /// SHA-256 of the device state.
    pub state_digest: Digest,
    /// The writable disks.
    pub disks: Vec<DiskPart>,
    /// Who saved it.
    pub monitor: MonitorPart,
}

/// The body of a manifest. Tags are never reused.
#[derive(Clone, PartialEq, Message)]
struct Body {
    /// 16 bytes, big endian.
    #[prost(bytes = "vec", tag = "1")]
    instance: Vec<u8>,
    #[prost(uint64, tag = "2")]
    generation: u64,
    /// 1 own, 2 base, 3 base and delta.
    #[prost(uint32, tag = "3")]
    shape: u32,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "4")]
    boot: Vec<u8>,
    #[prost(uint64, tag = "5")]
    memory_size: u64,
    #[prost(bool, tag = "6")]
    memory_on_disk: bool,
    #[prost(string, tag = "7")]
    memory_name: String,
    #[prost(uint64, tag = "8")]
    memory_inode: u64,
    #[prost(uint64, tag = "9")]
    state_length: u64,
    #[prost(bytes = "vec", tag = "10")]
    state_digest: Vec<u8>,
    #[prost(message, repeated, tag = "11")]
    disks: Vec<DiskBody>,
    #[prost(message, optional, tag = "12")]
    monitor: Option<MonitorBody>,
    /// 0 for none: the kernel begins to count above it.
    #[prost(uint64, tag = "13")]
    memory_unflushed_on: u64,
}

#[derive(Clone, PartialEq, Message)]
struct DiskBody {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(bytes = "vec", tag = "3")]
    head: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct MonitorBody {
    #[prost(string, tag = "1")]
    driver: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    kept: String,
    #[prost(uint32, tag = "4")]
    translation: u32,
}

fn malformed(field: &str) -> Lost {
    Lost::differs(ImagePart::Manifest, PartFault::Malformed, field, "")
}

impl Manifest {
    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = Body {
            instance: self.instance.bits().to_be_bytes().to_vec(),
            generation: self.generation.0,
            shape: match self.shape {
                Shape::Own => 1,
                Shape::Base => 2,
                Shape::BaseDelta => 3,
            },
            boot: self.boot.0.to_be_bytes().to_vec(),
            memory_size: self.memory.size.0,
            memory_on_disk: self.memory.home == Home::Disk,
            memory_name: self.memory.name.clone(),
            memory_inode: self.memory.inode,
            memory_unflushed_on: self.memory.unflushed_on.unwrap_or(0),
            state_length: self.state_length.0,
            state_digest: self.state_digest.0.to_vec(),
            disks: self
                .disks
                .iter()
                .map(|disk| DiskBody {
                    name: disk.name.clone(),
                    size: disk.size.0,
                    head: disk.head.0.to_vec(),
                })
                .collect(),
            monitor: Some(MonitorBody {
                driver: self.monitor.driver.clone(),
                version: self.monitor.version.clone(),
                kept: self.monitor.kept.clone(),
                translation: self.monitor.translation,
            }),
        };
        frame(MANIFEST_VERSION, &body.encode_to_vec())
    }

    /// Reads the bytes of a file. Total on any bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, Lost> {
        let (framed, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| malformed("too short"))?;
        if sum(framed) != u32::from_le_bytes(*crc) {
            return Err(malformed("checksum"));
        }
        let (version, body) = framed.split_first().ok_or_else(|| malformed("too short"))?;
        if *version != MANIFEST_VERSION {
            return Err(Lost::differs(
                ImagePart::Manifest,
                PartFault::Version,
                version,
                MANIFEST_VERSION,
            ));
        }
        let body = Body::decode(body).map_err(|_| malformed("body"))?;
        body.read()
    }
}

/// The bytes of a manifest whose body is of this version; public for tests of how versions meet.
#[must_use]
pub fn frame(version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.push(version);
    bytes.extend_from_slice(body);
    let crc = sum(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn sum(framed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(NAME);
    hasher.update(framed);
    hasher.finalize()
}

impl Body {
    fn read(self) -> Result<Manifest, Lost> {
        let bits = |bytes: &[u8], field| {
            let bytes: [u8; 16] = bytes.try_into().map_err(|_| malformed(field))?;
            Ok(u128::from_be_bytes(bytes))
        };
        let digest = |bytes: &[u8], field| Digest::from_bytes(bytes).ok_or_else(|| malformed(field));
        let monitor = self.monitor.ok_or_else(|| malformed("monitor"))?;
        Ok(Manifest {
            instance: WorkloadId::from_bits(bits(&self.instance, "instance")?),
            generation: Generation(self.generation),
            shape: match self.shape {
                1 => Shape::Own,
                2 => Shape::Base,
                3 => Shape::BaseDelta,
                _ => return Err(malformed("shape")),
            },
            boot: BootId(bits(&self.boot, "boot")?),
            memory: MemoryPart {
                size: Bytes(self.memory_size),
                home: if self.memory_on_disk {
                    Home::Disk
                } else {
                    Home::Tmpfs
                },
                name: self.memory_name,
                inode: self.memory_inode,
                unflushed_on: (self.memory_unflushed_on != 0).then_some(self.memory_unflushed_on),
            },
            state_length: Bytes(self.state_length),
            state_digest: digest(&self.state_digest, "state digest")?,
            disks: self
                .disks
                .into_iter()
                .map(|disk| {
                    Ok(DiskPart {
                        size: Bytes(disk.size),
                        head: digest(&disk.head, "disk head")?,
                        name: disk.name,
                    })
                })
                .collect::<Result<_, _>>()?,
            monitor: MonitorPart {
                driver: monitor.driver,
                version: monitor.version,
                kept: monitor.kept,
                translation: monitor.translation,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        Manifest {
            instance: WorkloadId::from_bits(7),
            generation: Generation(3),
            shape: Shape::Own,
            boot: BootId(9),
            memory: MemoryPart {
                size: Bytes::mib(128),
                home: Home::Tmpfs,
                name: "x.ram".to_owned(),
                inode: 11,
                unflushed_on: None,
            },
            state_length: Bytes(16),
            state_digest: Digest([1; 32]),
            disks: vec![DiskPart {
                name: "disk.ext4".to_owned(),
                size: Bytes::mib(16),
                head: Digest([2; 32]),
            }],
            monitor: MonitorPart {
                driver: "qemu".to_owned(),
                version: "7.2.22".to_owned(),
                kept: "7.2.22-0123456789abcdef".to_owned(),
                translation: 1,
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (shape, unflushed_on) in [
            (Shape::Own, None),
            (Shape::Base, Some(1)),
            (Shape::BaseDelta, Some(u64::MAX)),
        ] {
            let mut manifest = Manifest { shape, ..manifest() };
            manifest.memory.unflushed_on = unflushed_on;
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    }

    #[test]
    fn the_bytes_are_what_the_module_says() {
        // Golden: a change here strands every sleeper that exists.
        let digest = super::super::digest::of_bytes(&manifest().encode());
        assert_eq!(digest.short(), "5baa693ae8e077ec");
    }

    #[test]
    fn other_versions_are_refused_by_their_number() {
        let bytes = manifest().encode();
        for version in [0, 2, 255] {
            let body = &bytes[1..bytes.len() - 4];
            let lost = Manifest::decode(&frame(version, body)).unwrap_err();
            assert_eq!(lost.fault, PartFault::Version, "{lost}");
        }
    }

    proptest! {
        #[test]
        fn any_flip_or_cut_is_found(at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<bool>()) {
            let mut bytes = manifest().encode();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode(&bytes);
            let _ = Manifest::decode(&frame(MANIFEST_VERSION, &bytes));
        }
    }
}
