//! The port that a [`crate::Store`] is put on: bytes by kind and key, changed in atomic, durable
//! groups. It knows nothing of what the bytes mean but their frame.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;

pub use crate::batch::Change;
use crate::error::StoreError;
use crate::record::{Damage, Key, RecordKind, open_frame};

/// What a check of everything found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Records whose sum is right, newer ones included.
    pub sound: u64,
    /// The same by kind; kinds without records are left out.
    pub kinds: BTreeMap<RecordKind, u64>,
    /// Sound records of a newer version than this program knows.
    pub newer: Vec<Newer>,
    /// Records whose sum is wrong, still in their place.
    pub damaged: Vec<Damage>,
    /// Records that were set aside earlier.
    pub set_aside: Vec<Damage>,
    /// Rows of kinds that this program does not know: their number on disk.
    pub unknown_kinds: Vec<u8>,
    /// What the database says about its own pages; empty when they are sound.
    pub layout_faults: Vec<String>,
}

/// A record of a newer program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newer {
    /// Its kind.
    pub kind: RecordKind,
    /// Its key.
    pub key: Key,
    /// Its version.
    pub found: u8,
    /// The newest that is known here.
    pub known: u8,
}

impl Report {
    /// Whether nothing was found wrong.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.damaged.is_empty()
            && self.newer.is_empty()
            && self.set_aside.is_empty()
            && self.unknown_kinds.is_empty()
            && self.layout_faults.is_empty()
    }

    /// Counts the record under `key`.
    pub(crate) fn take(&mut self, kind: RecordKind, key: Key, bytes: &[u8]) {
        let found = match open_frame(kind, &key, bytes) {
            Ok((version, _)) => version,
            Err(reason) => return self.damaged.push(Damage { kind, key, reason }),
        };
        self.sound += 1;
        *self.kinds.entry(kind).or_default() += 1;
        let known = kind.newest_version();
        if found > known {
            self.newer.push(Newer {
                kind,
                key,
                found,
                known,
            });
        }
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Sound records.
    pub records: u64,
    /// The size of the copy.
    pub bytes: u64,
}

/// Records of one kind as they are kept, in one piece of memory: thousands that are read and given up one by
/// one would leave holes between what is made of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    bytes: Vec<u8>,
    /// Where key and value of each end.
    ends: Vec<(usize, usize)>,
}

impl Rows {
    /// Adds a record behind the others.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let end_of_key = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((end_of_key, self.bytes.len()));
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Key and value of the record with this number; the first has 0.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let &(end_of_key, end) = self.ends.get(number)?;
        let before = number.checked_sub(1).and_then(|before| self.ends.get(before));
        let start = before.map_or(0, |&(_, end)| end);
        Some((
            self.bytes.get(start..end_of_key)?,
            self.bytes.get(end_of_key..end)?,
        ))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        (0..self.len()).filter_map(|number| self.get(number))
    }
}

/// Where records are kept.
///
/// Calls from one task take effect in the order in which they were made. A call that is dropped
/// before it returns may still take effect.
#[async_trait]
pub trait Backend: Send + Sync + std::fmt::Debug + 'static {
    /// The bytes under `key`.
    async fn read(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError>;

    /// All of a kind, in the order of their keys.
    async fn read_all(&self, kind: RecordKind) -> Result<Rows, StoreError>;

    /// Makes all changes or none; returns when they are durable.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError>;

    /// Moves damaged records out of the way, each only if its bytes are still `bytes`.
    async fn set_aside(&self, damaged: Vec<(Damage, Vec<u8>)>) -> Result<(), StoreError>;

    /// What of a kind has been set aside, in the order of the keys.
    async fn aside(&self, kind: RecordKind) -> Result<Vec<Damage>, StoreError>;

    /// The bytes of a record that was set aside.
    async fn read_aside(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError>;

    /// Reads everything and says what is wrong. Changes nothing.
    async fn check(&self) -> Result<Report, StoreError>;

    /// Removes what was set aside under `key`, and nothing else; says whether there was something.
    async fn discard(&self, kind: RecordKind, key: Key) -> Result<bool, StoreError>;

    /// Copies everything to a new file at `to`, which must not be there, and checks the copy. Commits wait
    /// meanwhile.
    async fn back_up(&self, to: &Path) -> Result<Tally, StoreError>;
}
