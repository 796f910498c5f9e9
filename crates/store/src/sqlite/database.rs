//! The tables, and the statements on them. Blocking; only the writer thread calls it.
//!
//! ```sql
//! records (kind, key) -> value      what is kept
//! aside   (kind, key) -> value, reason      damaged records, moved out of the way
//! PRAGMA user_version               the layout's number
//! ```

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, TransactionBehavior, params};

use crate::backend::{Change, Report};
use crate::error::{Cause, StoreError};
use crate::record::{Damage, DamageReason, Key, RecordKind, open_frame};

/// The newest layout that is known here.
const LAYOUT: u32 = 1;

const TABLES: &str = "
    CREATE TABLE records (
        kind INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE TABLE aside (
        kind INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
";

#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    /// Set by the first failed flush; see [`StoreError::Broken`].
    broken: Option<Cause>,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        // SQLite would make the file readable for all; records name what people run.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::Open {
                path: path.to_owned(),
                source: Arc::new(source),
            })?;
        let failed = |source| StoreError::Open {
            path: path.to_owned(),
            source: Arc::new(source),
        };
        let mut connection = Connection::open(path).map_err(failed)?;
        let found: u32 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed)?;
        if found > LAYOUT {
            return Err(StoreError::LayoutNewer {
                path: path.to_owned(),
                found,
                known: LAYOUT,
            });
        }
        // Only a new database takes it: a record of up to 2,030 bytes then needs no page of its own,
        // so that an ordinary commit writes one page.
        connection
            .pragma_update(None, "page_size", 8192)
            .map_err(failed)?;
        // The lock file already keeps others out; this also keeps the WAL index off shared memory.
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .map_err(failed)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(failed)?;
        // FULL flushes the log at every commit, which is what an acknowledgement means here.
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed)?;
        connection
            .pragma_update(None, "trusted_schema", false)
            .map_err(failed)?;
        if found == 0 {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(failed)?;
            transaction.execute_batch(TABLES).map_err(failed)?;
            transaction
                .pragma_update(None, "user_version", LAYOUT)
                .map_err(failed)?;
            transaction.commit().map_err(failed)?;
        }
        Ok(Self {
            connection,
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

    pub(super) fn read_all(&self, kind: RecordKind) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        let read = || {
            self.connection
                .prepare("SELECT key, value FROM records WHERE kind = ?1 ORDER BY key")?
                .query_map([kind.number()], |row| {
                    Ok((Key::new(row.get::<_, Vec<u8>>(0)?), row.get(1)?))
                })?
                .collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|source: rusqlite::Error| StoreError::Read {
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
        self.look().map_err(|source| StoreError::Check {
            source: Arc::new(source),
        })
    }

    fn look(&self) -> Result<Report, rusqlite::Error> {
        let mut report = Report::default();
        self.connection.pragma_query(None, "quick_check", |row| {
            report.layout_faults.push(row.get::<_, String>(0)?);
            Ok(())
        })?;
        // SQLite's way of saying that there is nothing to say.
        report.layout_faults.retain(|fault| fault != "ok");
        let mut statement = self
            .connection
            .prepare("SELECT kind, key, value FROM records ORDER BY kind, key")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let number: u8 = row.get(0)?;
            let Some(kind) = RecordKind::from_number(number) else {
                if report.unknown_kinds.last() != Some(&number) {
                    report.unknown_kinds.push(number);
                }
                continue;
            };
            let key = Key::new(row.get::<_, Vec<u8>>(1)?);
            match open_frame(kind, &key, &row.get::<_, Vec<u8>>(2)?) {
                Ok(_) => report.sound += 1,
                Err(reason) => report.damaged.push(Damage { kind, key, reason }),
            }
        }
        let mut statement = self
            .connection
            .prepare("SELECT kind, key, reason FROM aside ORDER BY kind, key")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(kind) = RecordKind::from_number(row.get(0)?) {
                let reason = DamageReason::from_name(&row.get::<_, String>(2)?);
                report.set_aside.push(Damage {
                    kind,
                    key: Key::new(row.get::<_, Vec<u8>>(1)?),
                    reason,
                });
            }
        }
        Ok(report)
    }

    fn transact(
        &mut self,
        act: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), StoreError> {
        if let Some(source) = &self.broken {
            return Err(StoreError::Broken {
                source: Arc::clone(source),
            });
        }
        let run = || {
            let transaction = self
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            act(&transaction)?;
            transaction.commit()
        };
        let Err(error) = run() else { return Ok(()) };
        let code = error.sqlite_error_code();
        let source: Cause = Arc::new(error);
        match code {
            Some(ErrorCode::DiskFull) => Err(StoreError::Full { source }),
            // Read and write errors of the file system, failed flushes among them.
            Some(ErrorCode::SystemIoFailure) => {
                self.broken = Some(Arc::clone(&source));
                Err(StoreError::Broken { source })
            }
            _ => Err(StoreError::Commit { source }),
        }
    }
}
