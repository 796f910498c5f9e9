//! The messages of the durable record. Tags are never reused.

use std::collections::BTreeMap;

/// The body of an instance's record.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InstanceRecord {
    /// 16 bytes, big endian.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// What was asked for.
    #[prost(message, optional, tag = "2")]
    pub spec: Option<SpecRecord>,
    /// Digest of the image.
    #[prost(string, tag = "3")]
    pub image_digest: String,
    /// The phase of its life, by the name of the variant in lower case.
    #[prost(string, tag = "4")]
    pub phase: String,
    /// Of the phase `failed`: why.
    #[prost(message, optional, tag = "5")]
    pub failure: Option<FailureRecord>,
    /// 4 bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub ipv4: Vec<u8>,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "7")]
    pub ipv6: Vec<u8>,
    /// 6 bytes.
    #[prost(bytes = "vec", tag = "8")]
    pub mac: Vec<u8>,
    /// Where memory is.
    #[prost(message, optional, tag = "9")]
    pub memory: Option<MemoryRecord>,
    /// Nanoseconds since 1970.
    #[prost(uint64, tag = "10")]
    pub created_at: u64,
    /// Likewise; 0 for never.
    #[prost(uint64, tag = "11")]
    pub started_at: u64,
    /// Likewise.
    #[prost(uint64, tag = "12")]
    pub state_changed_at: u64,
    /// Of the phase `running`: the VMM.
    #[prost(message, optional, tag = "13")]
    pub process: Option<ProcessRecord>,
    /// How the command ended.
    #[prost(message, optional, tag = "14")]
    pub exit: Option<ExitRecord>,
    /// Removed once stopped.
    #[prost(bool, tag = "15")]
    pub auto_remove: bool,
    /// Standbys since creation.
    #[prost(uint64, tag = "16")]
    pub standbys: u64,
    /// Wakes since creation.
    #[prost(uint64, tag = "17")]
    pub wakes: u64,
    /// User id of the VMM.
    #[prost(uint32, tag = "18")]
    pub uid: u32,
    /// Of the phase `standby`: the image that a wake may load, once.
    #[prost(message, optional, tag = "19")]
    pub snapshot: Option<SnapshotRecord>,
    /// Number of the newest memory image ever begun; never goes back.
    #[prost(uint64, tag = "20")]
    pub generation: u64,
    /// Of the phase `cold`: why there is no image.
    #[prost(message, optional, tag = "21")]
    pub lost: Option<LostRecord>,
    /// The name under which the program is kept that runs it, or that saved its image; empty for none.
    #[prost(string, tag = "22")]
    pub monitor: String,
}

/// What was asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpecRecord {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Image reference.
    #[prost(string, tag = "2")]
    pub image: String,
    /// Processors.
    #[prost(uint32, tag = "3")]
    pub vcpus: u32,
    /// Bytes of RAM.
    #[prost(uint64, tag = "4")]
    pub memory: u64,
    /// Bytes of disk.
    #[prost(uint64, tag = "5")]
    pub disk: u64,
    /// [`dormouse_model::spec::Placement::as_str`].
    #[prost(string, tag = "6")]
    pub placement: String,
    /// Entry point.
    #[prost(string, repeated, tag = "7")]
    pub entrypoint: Vec<String>,
    /// Command.
    #[prost(string, repeated, tag = "8")]
    pub command: Vec<String>,
    /// Environment.
    #[prost(btree_map = "string, string", tag = "9")]
    pub environment: BTreeMap<String, String>,
    /// Working directory.
    #[prost(string, optional, tag = "10")]
    pub working_directory: Option<String>,
    /// User.
    #[prost(string, optional, tag = "11")]
    pub user: Option<String>,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "12")]
    pub labels: BTreeMap<String, String>,
    /// Policy; unset for none.
    #[prost(message, optional, tag = "13")]
    pub policy: Option<PolicyRecord>,
    /// Milliseconds.
    #[prost(uint64, tag = "14")]
    pub stop_timeout_millis: u64,
    /// [`dormouse_model::OnLostMemory::as_str`]; empty in records of before there was a choice.
    #[prost(string, tag = "15")]
    pub on_lost_memory: String,
}

/// The standby policy as text, as a caller would write it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PolicyRecord {
    /// On.
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    /// Such as `5m`.
    #[prost(string, tag = "2")]
    pub idle_timeout: String,
    /// Prefixes.
    #[prost(string, repeated, tag = "3")]
    pub ignore_sources: Vec<String>,
    /// Ports.
    #[prost(uint32, repeated, tag = "4")]
    pub ignore_ports: Vec<u32>,
}

/// Where memory is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemoryRecord {
    /// [`dormouse_model::spec::Placement::as_str`], never `auto`.
    #[prost(string, tag = "1")]
    pub placement: String,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// On disk, else on tmpfs.
    #[prost(bool, tag = "3")]
    pub on_disk: bool,
    /// Mapped privately by the VMM, else shared.
    #[prost(bool, tag = "4")]
    pub private: bool,
}

/// Why an instance failed: [`dormouse_model::FailReason`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailureRecord {
    /// The variant's name in lower case.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// Its text, where it has one.
    #[prost(string, tag = "2")]
    pub text: String,
    /// Of a lost image: how.
    #[prost(message, optional, tag = "3")]
    pub lost: Option<LostRecord>,
}

/// A process told apart from every other: pid, start time and boot (proc(5), stat field 22).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessRecord {
    /// Process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Clock ticks after boot at which it started.
    #[prost(uint64, tag = "2")]
    pub start_ticks: u64,
    /// 16 bytes: the kernel's id of the boot.
    #[prost(bytes = "vec", tag = "3")]
    pub boot_id: Vec<u8>,
    /// Whether the guest had said that it is ready.
    #[prost(bool, tag = "4")]
    pub ready: bool,
}

/// A saved memory image. Tag 2 was the hash of the state file, now in the manifest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotRecord {
    /// The generation that the state file and the memory file belong to.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// 16 bytes: the boot in which its memory was last known to be whole.
    #[prost(bytes = "vec", tag = "3")]
    pub boot_id: Vec<u8>,
    /// Inode of the memory file on tmpfs; 0 when the memory is on disk.
    #[prost(uint64, tag = "4")]
    pub resident_inode: u64,
    /// Inode of the memory file on disk, in that boot; 0 when the memory is on tmpfs.
    #[prost(uint64, tag = "5")]
    pub spilled_inode: u64,
    /// SHA-256 of the manifest.
    #[prost(bytes = "vec", tag = "6")]
    pub manifest_sha256: Vec<u8>,
    /// Length of the state file.
    #[prost(uint64, tag = "7")]
    pub state_length: u64,
    /// Length of the memory file.
    #[prost(uint64, tag = "8")]
    pub memory_length: u64,
    /// Digest of the memory on disk, once that is flushed; empty before.
    #[prost(bytes = "vec", tag = "9")]
    pub memory_digest: Vec<u8>,
}

/// Why an image is lost: [`dormouse_model::Lost`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct LostRecord {
    /// [`dormouse_model::ImagePart::as_str`].
    #[prost(string, tag = "1")]
    pub part: String,
    /// [`dormouse_model::PartFault::as_str`].
    #[prost(string, tag = "2")]
    pub fault: String,
    /// What was found.
    #[prost(string, tag = "3")]
    pub found: String,
    /// What was wanted.
    #[prost(string, tag = "4")]
    pub wanted: String,
}

/// How the command ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExitRecord {
    /// Exit code.
    #[prost(int32, optional, tag = "1")]
    pub code: Option<i32>,
    /// Signal.
    #[prost(int32, optional, tag = "2")]
    pub signal: Option<i32>,
    /// In words.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Nanoseconds since 1970.
    #[prost(uint64, tag = "4")]
    pub at: u64,
}
