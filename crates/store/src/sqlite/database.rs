//! The tables, and the statements on them. Blocking; only the writer thread calls it.
//!
//! ```sql
//! records (kind, key) -> value      what is kept
//! aside   (kind, key) -> value, reason      damaged records, moved out of the way
//! PRAGMA user_version               the layout's number
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, TransactionBehavior, params};

use super::log::{Log, survey};
use super::opening;
use crate::backend::{Change, Report, Rows};
use crate::error::{Cause, StoreError};
use crate::record::{Damage, DamageReason, Key, RecordKind};

/// The open database.
///
/// ```text
///          a write or a flush fails
///  sound ───────────────────────────▶ broken: every change is refused, reading goes on
///    ▲                                   │ the next change is asked for
///    └── the log is on disk again ───────┘
/// ```
///
/// After a failed flush the kernel calls the lost pages clean, so that a later flush says nothing of
/// them, and another reading of the log, ours or the next process's, finds in memory what is not on the
/// disk. So the log is written again, byte by byte in its place, and flushed, before anything else counts
/// on it; and a commit of nothing takes the place of the one that failed, so that it is not found later.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Connection,
    /// The failure since which nothing could be written.
    broken: Option<Cause>,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            connection: opening::open(path)?,
            broken: None,
        })
    }

    pub(super) fn read(&self, kind: RecordKind, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || {
            self.connection
                .prepare("SELECT value FROM records WHERE kind = ?1 AND key = ?2")?
                .query_row(params![kind.number(), key.bytes()], |row| row.get(0))
                .optional()
        };
        read().map_err(|source| StoreError::Read {
            kind,
            source: Arc::new(source),
        })
    }

    pub(super) fn read_all(&self, kind: RecordKind) -> Result<Rows, StoreError> {
        let read = || {
            let mut found = Rows::default();
            let mut statement = self
                .connection
                .prepare("SELECT key, value FROM records WHERE kind = ?1 ORDER BY key")?;
            let mut rows = statement.query([kind.number()])?;
            while let Some(row) = rows.next()? {
                found.push(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
            }
            Ok(found)
        };
        let listed = read().and_then(|listed| {
            // What a listing went through is not read again soon.
            self.connection.execute_batch("PRAGMA shrink_memory")?;
            Ok(listed)
        });
        listed.map_err(|source: rusqlite::Error| StoreError::Read {
            kind,
            source: Arc::new(source),
        })
    }

    /// Makes all `changes` in one transaction with one flush.
    pub(super) fn commit<'a>(&mut self, changes: impl Iterator<Item = &'a Change>) -> Result<(), StoreError> {
        self.transact(|transaction| {
            for Change { kind, key, value } in changes {
                let (kind, key) = (kind.number(), key.bytes());
                if let Some(bytes) = value {
                    transaction
                        .prepare("INSERT OR REPLACE INTO records (kind, key, value) VALUES (?1, ?2, ?3)")?
                        .execute(params![kind, key, bytes])?;
                    continue;
                }
                for statement in [
                    "DELETE FROM records WHERE kind = ?1 AND key = ?2",
                    "DELETE FROM aside WHERE kind = ?1 AND key = ?2",
                ] {
                    transaction.prepare(statement)?.execute(params![kind, key])?;
                }
            }
            Ok(())
        })
    }

    pub(super) fn set_aside(&mut self, damaged: &[(Damage, Vec<u8>)]) -> Result<(), StoreError> {
        self.transact(|transaction| {
            for (damage, bytes) in damaged {
                let (kind, key) = (damage.kind.number(), damage.key.bytes());
                let moved = transaction.execute(
                    "DELETE FROM records WHERE kind = ?1 AND key = ?2 AND value = ?3",
                    params![kind, key, bytes],
                )?;
                if moved > 0 {
                    transaction.execute(
                        "INSERT OR REPLACE INTO aside (kind, key, value, reason) VALUES (?1, ?2, ?3, ?4)",
                        params![kind, key, bytes, damage.reason.as_str()],
                    )?;
                }
            }
            Ok(())
        })
    }

    pub(super) fn aside(&self, kind: RecordKind) -> Result<Vec<Damage>, StoreError> {
        let read = || {
            self.connection
                .prepare("SELECT key, reason FROM aside WHERE kind = ?1 ORDER BY key")?
                .query_map([kind.number()], |row| {
                    let reason = DamageReason::from_name(&row.get::<_, String>(1)?);
                    Ok(Damage {
                        kind,
                        key: Key::new(row.get::<_, Vec<u8>>(0)?),
                        reason,
                    })
                })?
                .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|source: rusqlite::Error| StoreError::Read {
            kind,
            source: Arc::new(source),
        })
    }

    pub(super) fn read_aside(&self, kind: RecordKind, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || {
            self.connection
                .prepare("SELECT value FROM aside WHERE kind = ?1 AND key = ?2")?
                .query_row(params![kind.number(), key.bytes()], |row| row.get(0))
                .optional()
        };
        read().map_err(|source: rusqlite::Error| StoreError::Read {
            kind,
            source: Arc::new(source),
        })
    }

    pub(super) fn check(&self) -> Result<Report, StoreError> {
        super::inspection::look(&self.connection).map_err(|source| StoreError::Check {
            source: Arc::new(source),
        })
    }

    /// Removes what was set aside under `key`; says whether there was something.
    pub(super) fn discard(&mut self, kind: RecordKind, key: &Key) -> Result<bool, StoreError> {
        let mut found = false;
        self.transact(|transaction| {
            let removed = transaction.execute(
                "DELETE FROM aside WHERE kind = ?1 AND key = ?2",
                params![kind.number(), key.bytes()],
            )?;
            found = removed > 0;
            Ok(())
        })?;
        Ok(found)
    }

    /// Copies everything that is committed into a new database at `to`.
    pub(super) fn copy_into(&self, to: &Path) -> Result<(), rusqlite::Error> {
        let to = to.to_string_lossy();
        self.connection.execute("VACUUM INTO ?1", [to.as_ref()])?;
        Ok(())
    }

    /// Makes what `act` does durable, or nothing of it.
    fn transact(
        &mut self,
        act: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), StoreError> {
        if self.broken.is_some() {
            self.mend().map_err(|source| StoreError::Broken { source })?;
            tracing::warn!(store = %self.path.display(), "the store can be written again");
            self.broken = None;
        }
        let Err(error) = self.run(act) else { return Ok(()) };
        let code = error.sqlite_error_code();
        let source: Cause = Arc::new(error);
        match code {
            Some(ErrorCode::DiskFull) => Err(StoreError::Full { source }),
            // Read and write errors of the file system, failed flushes among them.
            Some(ErrorCode::SystemIoFailure) => {
                tracing::error!(store = %self.path.display(), error = %source, "the store cannot be written");
                self.broken = Some(Arc::clone(&source));
                Err(StoreError::Broken { source })
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Err(StoreError::DatabaseDamaged {
                path: self.path.clone(),
                found: source.to_string(),
            }),
            _ => Err(StoreError::Commit { source }),
        }
    }

    fn run(
        &mut self,
        act: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), rusqlite::Error> {
        let outcome = (|| {
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            act(&transaction)?;
            transaction.commit()
        })();
        if outcome.is_err() && !self.connection.is_autocommit() {
            // SQLite has done so by itself after most failures.
            self.connection.execute_batch("ROLLBACK")?;
        }
        outcome
    }

    /// Makes the log what memory says that it is, on the disk too.
    fn mend(&mut self) -> Result<(), Cause> {
        let log = opening::log_path(&self.path);
        opening::write_again(&log, None)?;
        // Writes the first page, whatever its value: a commit in the place of the one that failed.
        self.run(|transaction| transaction.pragma_update(None, "user_version", opening::LAYOUT))
            .map_err(|source| -> Cause { Arc::new(source) })?;
        // What the failed one left behind it would look like damage, were there several.
        let bytes = std::fs::read(&log).map_err(|source| -> Cause { Arc::new(source) })?;
        if let Log::Sound { end } = survey(&bytes) {
            opening::write_again(&log, Some(end))?;
        }
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Closing moves the log into the database and removes it, which may not happen to a log that is
        // not on the disk: then it stays, and the next opening writes it again.
        if self.broken.is_none()
            && let Err(error) = self
                .connection
                .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        {
            tracing::debug!(%error, "the store's log stays");
        }
    }
}
