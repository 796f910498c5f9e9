//! The typed front of a backend.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::backend::{Backend, Report, Rows, Tally};
use crate::batch::{Batch, check_key};
use crate::error::StoreError;
use crate::memory::MemoryBackend;
use crate::record::{Damage, Decoded, Key, Record, RecordKind, decode};
use crate::sqlite::{Options, SqliteBackend};

/// Durable records. Cheap to clone; the last clone's drop closes the store.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    /// Told of every record that is set aside.
    aside: broadcast::Sender<Damage>,
}

/// Records set aside that a slow listener may be behind.
const NOTICES: usize = 64;

/// All records of a kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<R> {
    /// The sound ones, in the order of their keys.
    pub records: Vec<(Key, R)>,
    /// The damaged ones, now set aside where the disk takes that; each stays in every listing until its key is
    /// deleted.
    pub damaged: Vec<Damage>,
}

/// The records of a kind that a [`Store::scan`] found, as bytes in one piece of memory.
#[derive(Debug)]
pub struct Scan<R> {
    rows: Rows,
    /// The damaged ones, as in a [`Listing`].
    pub damaged: Vec<Damage>,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Scan<R> {
    /// The record with this number, read again; `None` for one that was not sound or is not there.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<R> {
        let (key, bytes) = self.rows.get(number)?;
        match decode(&Key::new(key), bytes) {
            Decoded::Record(record) => Some(record),
            Decoded::Newer(_) | Decoded::Damaged(_) => None,
        }
    }
}

impl Store {
    /// Opens the SQLite store at `path`, or makes it.
    ///
    /// # Errors
    /// When another process has it, when it is newer than this program, or when it cannot be read.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self::on(SqliteBackend::open(path, Options::default()).await?))
    }

    /// A store that is gone with its last clone.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::on(MemoryBackend::default())
    }

    /// A store on `backend`.
    #[must_use]
    pub fn on(backend: impl Backend) -> Self {
        Self {
            backend: Arc::new(backend),
            aside: broadcast::Sender::new(NOTICES),
        }
    }

    /// Records that are set aside from now on, as it happens.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Damage> {
        self.aside.subscribe()
    }

    /// Keeps `record` under `key`, in place of what is there; returns when that is durable.
    ///
    /// # Errors
    /// When it could not be written; then nothing has changed.
    pub async fn put<R: Record>(&self, key: impl Into<Key>, record: &R) -> Result<(), StoreError> {
        self.apply(Batch::new().put(key, record)).await
    }

    /// Removes what is kept under `key`, damaged or not; nothing there is no error.
    ///
    /// # Errors
    /// When it could not be written; then nothing has changed.
    pub async fn delete<R: Record>(&self, key: impl Into<Key>) -> Result<(), StoreError> {
        self.apply(Batch::new().delete::<R>(key)).await
    }

    /// Makes all changes of `batch` or none; returns when they are durable. An empty one is free.
    ///
    /// # Errors
    /// When they could not be written; then nothing has changed, unless the error is
    /// [`StoreError::Slow`] or [`StoreError::Broken`], which cannot know.
    pub async fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        batch.check()?;
        self.backend.commit(batch.changes).await
    }

    /// The record under `key`.
    ///
    /// # Errors
    /// When it is damaged, also when it was set aside, or of a newer version, or cannot be read.
    pub async fn get<R: Record>(&self, key: impl Into<Key>) -> Result<Option<R>, StoreError> {
        let key = key.into();
        check_key(&key)?;
        let Some(bytes) = self.backend.read(R::KIND, key.clone()).await? else {
            let aside = self.backend.aside(R::KIND).await?;
            return match aside.into_iter().find(|damage| damage.key == key) {
                Some(damage) => Err(StoreError::Damaged(damage)),
                None => Ok(None),
            };
        };
        match decode::<R>(&key, &bytes) {
            Decoded::Record(record) => Ok(Some(record)),
            Decoded::Newer(found) => Err(newer::<R>(&key, found)),
            Decoded::Damaged(reason) => Err(StoreError::Damaged(Damage {
                kind: R::KIND,
                key,
                reason,
            })),
        }
    }

    /// All records of a kind. Damaged ones are set aside and reported; the rest is listed.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub async fn list<R: Record>(&self) -> Result<Listing<R>, StoreError> {
        let mut records = Vec::new();
        let scan = self.scan(|_, key, record| records.push((key, record))).await?;
        Ok(Listing {
            records,
            damaged: scan.damaged,
        })
    }

    /// Shows all records of a kind to `see`, one after the other, each with its number. Damaged ones are set
    /// aside and reported. What is returned holds the bytes of the sound ones, to be read once more.
    ///
    /// # Errors
    /// When one is of a newer version, so that an older program never takes a part for the whole: what was
    /// seen before counts for nothing then. Or when they cannot be read.
    pub async fn scan<R: Record>(&self, mut see: impl FnMut(usize, Key, R)) -> Result<Scan<R>, StoreError> {
        let rows = self.backend.read_all(R::KIND).await?;
        let mut fresh = Vec::new();
        for (number, (key, bytes)) in rows.iter().enumerate() {
            let key = Key::new(key);
            match decode::<R>(&key, bytes) {
                Decoded::Record(record) => see(number, key, record),
                Decoded::Newer(found) => return Err(newer::<R>(&key, found)),
                Decoded::Damaged(reason) => {
                    let damage = Damage {
                        kind: R::KIND,
                        key,
                        reason,
                    };
                    tracing::error!(kind = %damage.kind, key = %damage.key, reason = reason.as_str(), "record set aside");
                    fresh.push((damage, bytes.to_vec()));
                }
            }
        }
        let damaged = self.put_aside(R::KIND, fresh).await?;
        Ok(Scan {
            rows,
            damaged,
            record: PhantomData,
        })
    }

    /// Sets aside what was found damaged; all of the kind that is damaged.
    async fn put_aside(
        &self,
        kind: RecordKind,
        fresh: Vec<(Damage, Vec<u8>)>,
    ) -> Result<Vec<Damage>, StoreError> {
        let mut found: Vec<Damage> = fresh.iter().map(|(damage, _)| damage.clone()).collect();
        if !fresh.is_empty() {
            match self.backend.set_aside(fresh).await {
                // Nobody need listen.
                Ok(()) => found
                    .iter()
                    .for_each(|damage| drop(self.aside.send(damage.clone()))),
                // On a full disk for instance: they stay where they are, and hide the others no more for it.
                Err(error) => tracing::error!(%error, "damaged records stay in their place"),
            }
        }
        let mut damaged = self.backend.aside(kind).await?;
        // A record whose key is damaged may be out of its order, where no search finds it: it stays.
        found.retain(|damage| !damaged.contains(damage));
        damaged.append(&mut found);
        Ok(damaged)
    }

    /// The bytes of a record of this kind that was set aside, for whoever looks for what they still tell.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn aside_bytes<R: Record>(&self, key: impl Into<Key>) -> Result<Option<Vec<u8>>, StoreError> {
        self.backend.read_aside(R::KIND, key.into()).await
    }

    /// Reads everything and says what is wrong. Changes nothing.
    ///
    /// # Errors
    /// When the store cannot be read at all.
    pub async fn check(&self) -> Result<Report, StoreError> {
        self.backend.check().await
    }

    /// Removes the record of `kind` that was set aside under a key with this text, for good.
    ///
    /// # Errors
    /// When nothing was set aside under it, or it could not be removed.
    pub async fn discard(&self, kind: RecordKind, key: &str) -> Result<(), StoreError> {
        let aside = self.backend.aside(kind).await?;
        let found = aside.into_iter().find(|damage| damage.key.to_string() == key);
        let gone = match found {
            Some(damage) => self.backend.discard(kind, damage.key).await?,
            None => false,
        };
        if gone {
            tracing::warn!(%kind, key, "record that was set aside removed");
            return Ok(());
        }
        Err(StoreError::NotSetAside {
            kind,
            key: key.to_owned(),
        })
    }

    /// Copies everything to a new store at `to` while this one serves, and checks the copy. Changes wait
    /// meanwhile.
    ///
    /// # Errors
    /// When there is something at `to`, or the copy could not be made or is not right; then nothing is
    /// there.
    pub async fn back_up(&self, to: &Path) -> Result<Tally, StoreError> {
        self.backend.back_up(to).await
    }
}

fn newer<R: Record>(key: &Key, found: u8) -> StoreError {
    StoreError::RecordNewer {
        kind: R::KIND,
        key: key.to_string(),
        found,
        known: R::VERSION,
    }
}
