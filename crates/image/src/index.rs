//! The index of images by name: kept by whoever embeds this room, for one durable store in all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::record::ImageRecord;
use crate::reference::ImageName;

/// Why an index failed; the store wraps it.
pub type IndexError = Box<dyn std::error::Error + Send + Sync>;

/// Records by name and tag. Calls block; a `put` or `remove` is durable when it returns.
pub trait ImageIndex: Send + Sync + std::fmt::Debug {
    /// Writes a record in place of one of the same name.
    ///
    /// # Errors
    /// When it could not be written; then nothing was.
    fn put(&self, record: &ImageRecord) -> Result<(), IndexError>;

    /// The record of a name.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn get(&self, name: &ImageName) -> Result<Option<ImageRecord>, IndexError>;

    /// Every record, by name.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn list(&self) -> Result<Vec<ImageRecord>, IndexError>;

    /// Whether [`Self::list`] lists all there is. While a record is damaged its image is not known, and
    /// nothing that could be part of it is removed.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn is_whole(&self) -> Result<bool, IndexError> {
        Ok(true)
    }

    /// Removes a record; one that is not there is fine.
    ///
    /// # Errors
    /// When it could not be removed.
    fn remove(&self, name: &ImageName) -> Result<(), IndexError>;
}

/// An index in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    records: Mutex<BTreeMap<ImageName, ImageRecord>>,
}

impl ImageIndex for MemoryIndex {
    fn put(&self, record: &ImageRecord) -> Result<(), IndexError> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.insert(record.name.clone(), record.clone());
        Ok(())
    }

    fn get(&self, name: &ImageName) -> Result<Option<ImageRecord>, IndexError> {
        Ok(self
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned())
    }

    fn list(&self) -> Result<Vec<ImageRecord>, IndexError> {
        Ok(self
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect())
    }

    fn remove(&self, name: &ImageName) -> Result<(), IndexError> {
        self.records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        Ok(())
    }
}
