//! Changes that become durable together or not at all.

use crate::error::StoreError;
use crate::record::{Key, Record, RecordKind, encode};

/// One change of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The kind.
    pub kind: RecordKind,
    /// The key.
    pub key: Key,
    /// The bytes to keep; `None` removes what is there, set aside or not.
    pub value: Option<Vec<u8>>,
}

/// Changes in order; a later one of the same key wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a batch does nothing until it is applied"]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
}

impl Batch {
    /// No changes.
    pub const fn new() -> Self {
        Self { changes: Vec::new() }
    }

    /// Keeps `record` under `key`, in place of what is there.
    pub fn put<R: Record>(mut self, key: impl Into<Key>, record: &R) -> Self {
        let key = key.into();
        let value = Some(encode(&key, record));
        self.changes.push(Change {
            kind: R::KIND,
            key,
            value,
        });
        self
    }

    /// Removes what is kept under `key`; nothing there is no error.
    pub fn delete<R: Record>(mut self, key: impl Into<Key>) -> Self {
        self.changes.push(Change {
            kind: R::KIND,
            key: key.into(),
            value: None,
        });
        self
    }

    /// Whether it has no changes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Refuses keys that no backend keeps.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.changes.iter().try_for_each(|change| check_key(&change.key))
    }
}

pub(crate) fn check_key(key: &Key) -> Result<(), StoreError> {
    let length = key.bytes().len();
    if length == 0 || length > Key::MAX_LENGTH {
        return Err(StoreError::KeyUnusable { length });
    }
    Ok(())
}
