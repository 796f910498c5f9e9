//! A store in memory: the same promises but durability, for tests and simulations.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::backend::{Backend, Change, Report, Rows, Tally};
use crate::error::StoreError;
use crate::record::{Damage, Key, RecordKind};

/// Where a record is kept.
type Place = (RecordKind, Key);

#[derive(Debug, Default)]
struct Content {
    records: BTreeMap<Place, Vec<u8>>,
    aside: BTreeMap<Place, (Damage, Vec<u8>)>,
}

/// A backend in memory.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    content: Mutex<Content>,
}

impl MemoryBackend {
    /// Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn read(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.content().records.get(&(kind, key)).cloned())
    }

    async fn read_all(&self, kind: RecordKind) -> Result<Rows, StoreError> {
        let content = self.content();
        let mut rows = Rows::default();
        for ((_, key), bytes) in content.records.iter().filter(|((found, _), _)| *found == kind) {
            rows.push(key.bytes(), bytes);
        }
        Ok(rows)
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut content = self.content();
        for Change { kind, key, value } in changes {
            match value {
                Some(bytes) => {
                    content.records.insert((kind, key), bytes);
                }
                None => {
                    content.records.remove(&(kind, key.clone()));
                    content.aside.remove(&(kind, key));
                }
            }
        }
        Ok(())
    }

    async fn set_aside(&self, damaged: Vec<(Damage, Vec<u8>)>) -> Result<(), StoreError> {
        let mut content = self.content();
        for (damage, bytes) in damaged {
            let place = (damage.kind, damage.key.clone());
            if content.records.get(&place) == Some(&bytes) {
                content.records.remove(&place);
                content.aside.insert(place, (damage, bytes));
            }
        }
        Ok(())
    }

    async fn aside(&self, kind: RecordKind) -> Result<Vec<Damage>, StoreError> {
        Ok(self
            .content()
            .aside
            .values()
            .map(|(damage, _)| damage)
            .filter(|damage| damage.kind == kind)
            .cloned()
            .collect())
    }

    async fn read_aside(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .content()
            .aside
            .get(&(kind, key))
            .map(|(_, bytes)| bytes.clone()))
    }

    async fn check(&self) -> Result<Report, StoreError> {
        let content = self.content();
        let mut report = Report {
            set_aside: content.aside.values().map(|(damage, _)| damage.clone()).collect(),
            ..Report::default()
        };
        for ((kind, key), bytes) in &content.records {
            report.take(*kind, key.clone(), bytes);
        }
        Ok(report)
    }

    async fn discard(&self, kind: RecordKind, key: Key) -> Result<bool, StoreError> {
        Ok(self.content().aside.remove(&(kind, key)).is_some())
    }

    async fn back_up(&self, to: &Path) -> Result<Tally, StoreError> {
        Err(StoreError::Backup {
            path: to.to_owned(),
            source: Arc::new(std::io::Error::from(std::io::ErrorKind::Unsupported)),
        })
    }
}
