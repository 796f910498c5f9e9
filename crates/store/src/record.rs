//! Kinds, keys and the bytes of a record.
//!
//! ```text
//!  byte 0     1 .. n-4      n-4 .. n
//!  version    prost body    CRC-32 (IEEE), little endian, over: kind, key length, key, version, body
//! ```
//!
//! Kind and key are part of the sum and not of the bytes: they are where the record is kept.

use std::fmt;

use dormouse_model::WorkloadId;
use prost::Message;

/// What a record is about. The numbers are on disk: they are never changed and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum RecordKind {
    /// An instance.
    Instance = 1,
    /// An imported image.
    Image = 2,
    /// A reference that names an image.
    ImageName = 3,
    /// The standby engine's notes on a workload.
    Idle = 4,
    /// An act begun that several steps make up; removed when it is finished or undone.
    Intent = 5,
    /// The answer to a request that carried an id.
    Request = 6,
    /// What is known of the host itself, such as its last boot.
    Host = 7,
    /// Free for tests.
    Test = 255,
}

impl RecordKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Instance,
        Self::Image,
        Self::ImageName,
        Self::Idle,
        Self::Intent,
        Self::Request,
        Self::Host,
        Self::Test,
    ];

    /// The number on disk.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Instance => 1,
            Self::Image => 2,
            Self::ImageName => 3,
            Self::Idle => 4,
            Self::Intent => 5,
            Self::Request => 6,
            Self::Host => 7,
            Self::Test => 255,
        }
    }

    /// The kind with that number; `None` for one of a newer program.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The newest version of its records that this program writes and reads: the `VERSION` of its
    /// [`Record`], which the compiler compares. Here too, so that a store can be checked by a program that
    /// has no other use for its records.
    #[must_use]
    pub const fn newest_version(self) -> u8 {
        match self {
            Self::Instance
            | Self::Image
            | Self::ImageName
            | Self::Idle
            | Self::Intent
            | Self::Request
            | Self::Host => 1,
            // Tests play at being older and newer programs.
            Self::Test => u8::MAX,
        }
    }

    /// The kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The name in messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Image => "image",
            Self::ImageName => "image name",
            Self::Idle => "idle",
            Self::Intent => "intent",
            Self::Request => "request",
            Self::Host => "host",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A record's body: a prost message that knows its kind and version.
///
/// Adding a field needs no new version; changing what a field means does. Then `VERSION` grows by
/// one and [`Record::upgrade`] reads the old bodies.
pub trait Record: Message + Default {
    /// What it is about.
    const KIND: RecordKind;
    /// The version that is written; starts at 1.
    const VERSION: u8;

    /// Reads a body of `version`, which is at most `VERSION`.
    ///
    /// # Errors
    /// When the body is not one of that version.
    fn upgrade(version: u8, body: &[u8]) -> Result<Self, prost::DecodeError> {
        let _ = version;
        Self::decode(body)
    }
}

/// Under what a record is kept, within its kind. Records are listed in the order of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// The longest key.
    pub const MAX_LENGTH: usize = 512;

    /// The key with these bytes; its length is checked when it is used.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The workload that this is the key of; `None` when it is none's.
    #[must_use]
    pub fn workload(&self) -> Option<WorkloadId> {
        let bytes: [u8; 16] = self.0.as_slice().try_into().ok()?;
        Some(WorkloadId::from_bits(u128::from_be_bytes(bytes)))
    }
}

impl From<WorkloadId> for Key {
    /// Big endian, so that workloads are listed in the order of their creation.
    fn from(id: WorkloadId) -> Self {
        Self(id.bits().to_be_bytes().to_vec())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for Key {
    /// Printable text as it is; 16 bytes as a workload's id; anything else in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(text) = std::str::from_utf8(&self.0)
            && text.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return f.write_str(text);
        }
        if let Some(id) = self.workload() {
            return id.fmt(f);
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What is wrong with the bytes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DamageReason {
    /// Too few bytes to be a record.
    Short,
    /// The sum does not match: changed, cut, or kept in another's place.
    Checksum,
    /// The sum matches and the body is not what the version says.
    Undecodable,
}

impl DamageReason {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Short, Self::Checksum, Self::Undecodable];

    /// The name in messages and on disk.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Short => "too short",
            Self::Checksum => "wrong checksum",
            Self::Undecodable => "undecodable body",
        }
    }

    /// The reason with that name; an unknown one of a newer program counts as undecodable.
    pub(crate) fn from_name(name: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == name)
            .unwrap_or(Self::Undecodable)
    }
}

/// A record that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its kind.
    pub kind: RecordKind,
    /// Its key.
    pub key: Key,
    /// What is wrong.
    pub reason: DamageReason,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} record {} is damaged: {}",
            self.kind,
            self.key,
            self.reason.as_str()
        )
    }
}

/// Bytes around the body.
const FRAME: usize = 1 + 4;

/// What the bytes of a record turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded<R> {
    /// The record.
    Record(R),
    /// Written by a newer program: this version.
    Newer(u8),
    /// Not what was written.
    Damaged(DamageReason),
}

fn sum(kind: RecordKind, key: &Key, framed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind.number()]);
    // The length keeps a longer key with a shorter body from having the same bytes.
    hasher.update(&(key.0.len() as u64).to_le_bytes());
    hasher.update(&key.0);
    hasher.update(framed);
    hasher.finalize()
}

/// The bytes of `record` as they are kept under `key`.
#[must_use]
pub fn encode<R: Record>(key: &Key, record: &R) -> Vec<u8> {
    const {
        assert!(
            R::VERSION == R::KIND.newest_version() || R::KIND.number() == RecordKind::Test.number(),
            "the version of a record has changed: change RecordKind::newest_version with it"
        );
    }
    encode_body(R::KIND, key, R::VERSION, &record.encode_to_vec())
}

/// The bytes of a record's body as a program that knows `version` keeps them: what shows that records of
/// other versions are told apart needs them.
#[must_use]
pub fn encode_body(kind: RecordKind, key: &Key, version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME + body.len());
    bytes.push(version);
    bytes.extend_from_slice(body);
    let crc = sum(kind, key, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Version and body of what is kept under `kind` and `key`, once the sum has been checked.
pub(crate) fn open_frame<'a>(
    kind: RecordKind,
    key: &Key,
    bytes: &'a [u8],
) -> Result<(u8, &'a [u8]), DamageReason> {
    if bytes.len() < FRAME {
        return Err(DamageReason::Short);
    }
    let (framed, crc) = bytes.split_last_chunk::<4>().ok_or(DamageReason::Short)?;
    if sum(kind, key, framed) != u32::from_le_bytes(*crc) {
        return Err(DamageReason::Checksum);
    }
    let (version, body) = framed.split_first().ok_or(DamageReason::Short)?;
    Ok((*version, body))
}

/// Reads back what [`encode`] wrote. Total on any bytes.
#[must_use]
pub fn decode<R: Record>(key: &Key, bytes: &[u8]) -> Decoded<R> {
    let (version, body) = match open_frame(R::KIND, key, bytes) {
        Ok(opened) => opened,
        Err(reason) => return Decoded::Damaged(reason),
    };
    if version > R::VERSION {
        return Decoded::Newer(version);
    }
    match R::upgrade(version, body) {
        Ok(record) => Decoded::Record(record),
        Err(_) => Decoded::Damaged(DamageReason::Undecodable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, PartialEq, Message)]
    struct Note {
        #[prost(string, tag = "1")]
        text: String,
    }

    impl Record for Note {
        const KIND: RecordKind = RecordKind::Test;
        const VERSION: u8 = 2;
        fn upgrade(version: u8, body: &[u8]) -> Result<Self, prost::DecodeError> {
            let mut note = Self::decode(body)?;
            if version < 2 {
                note.text.push_str(" (old)");
            }
            Ok(note)
        }
    }

    fn note(text: &str) -> Note {
        Note {
            text: text.to_owned(),
        }
    }

    #[test]
    fn numbers_are_unique_and_read_back() {
        for kind in RecordKind::ALL {
            assert_eq!(RecordKind::from_number(kind.number()), Some(kind));
            assert_eq!(kind as u8, kind.number());
        }
        assert_eq!(RecordKind::from_number(0), None);
    }

    #[test]
    fn the_bytes_are_what_the_module_says() {
        // Golden: a change here strands every store that exists.
        let bytes = encode(&Key::from("k"), &note("a"));
        assert_eq!(bytes, [2, 0x0a, 1, b'a', 0x9d, 0x23, 0x77, 0x59], "{bytes:02x?}");
    }

    #[test]
    fn versions() {
        let key = Key::from("k");
        let body = note("a").encode_to_vec();
        let at = |version| decode::<Note>(&key, &encode_body(RecordKind::Test, &key, version, &body));
        assert_eq!(at(2), Decoded::Record(note("a")));
        assert_eq!(at(1), Decoded::Record(note("a (old)")));
        assert_eq!(at(3), Decoded::Newer(3));
        let garbled = encode_body(RecordKind::Test, &key, 2, &[0xff, 0xff]);
        assert_eq!(
            decode::<Note>(&key, &garbled),
            Decoded::Damaged(DamageReason::Undecodable)
        );
    }

    #[test]
    fn a_record_in_anothers_place_is_damaged() {
        let bytes = encode(&Key::from("k"), &note("a"));
        assert_eq!(
            decode::<Note>(&Key::from("l"), &bytes),
            Decoded::Damaged(DamageReason::Checksum)
        );
    }

    #[test]
    fn keys_print_as_people_know_them() {
        assert_eq!(Key::from("web:latest").to_string(), "web:latest");
        let id = WorkloadId::from_bits(77);
        assert_eq!(Key::from(id).to_string(), id.to_string());
        assert_eq!(Key::from(id).workload(), Some(id));
        assert_eq!(Key::new([0, 255]).to_string(), "00ff");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(text in ".{0,80}", key in proptest::collection::vec(any::<u8>(), 1..40)) {
            let key = Key::new(key);
            let record = Note { text };
            prop_assert_eq!(decode::<Note>(&key, &encode(&key, &record)), Decoded::Record(record));
        }

        #[test]
        fn any_flip_or_cut_is_found(text in ".{0,40}", at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<bool>()) {
            let key = Key::from("k");
            let mut bytes = encode(&key, &Note { text });
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert!(matches!(decode::<Note>(&key, &bytes), Decoded::Damaged(_)));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<Note>(&Key::from("k"), &bytes);
        }
    }
}
