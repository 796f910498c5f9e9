//! Opening the database: what is refused, and what is made sure of first.
//!
//! Nothing is written before everything was found sound, so that a damaged store stays what it is.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::log::{Log, survey};
use crate::error::{Cause, StoreError};

/// The newest layout that is known here.
pub(super) const LAYOUT: u32 = 1;

const TABLES: &str = "
    CREATE TABLE records (
        kind INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE TABLE aside (
        kind INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
";

/// Opens the database at `path`, or makes it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let io = |source: std::io::Error| open_failed(path, source);
    // SQLite would make the file readable for all; records name what people run.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let empty = file.metadata().map_err(io)?.len() == 0;
    // Before SQLite has locks on the file: closing any descriptor of it would drop them.
    drop(file);
    let log = log_path(path);
    if let Some(end) = sound_log(path, &log, empty)? {
        // A flush of the last process may have failed: see `Database`.
        write_again(&log, Some(end)).map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })?;
    }
    sync_directory(path).map_err(io)?;
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let refused = |error| refused(path, error);
    let found = verify(path, &connection)?;
    // Only a new database takes it: a record of up to 2,030 bytes then needs no page of its own,
    // so that an ordinary commit writes one page.
    connection
        .pragma_update(None, "page_size", 8192)
        .map_err(refused)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(refused)?;
    // FULL flushes the log at every commit, which is what an acknowledgement means here.
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(refused)?;
    if found == 0 {
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(refused)?;
        transaction.execute_batch(TABLES).map_err(refused)?;
        transaction
            .pragma_update(None, "user_version", LAYOUT)
            .map_err(refused)?;
        transaction.commit().map_err(refused)?;
    }
    Ok(connection)
}

/// Memory for pages of the database.
const CACHE_KIB: i64 = 512;

/// A connection that leaves the files as they are until it is told to write.
pub(super) fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let refused = |error| refused(path, error);
    let connection =
        Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(refused)?;
    // Or closing would move a log into the database, whatever was found wrong with either.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(refused)?;
    // The lock file already keeps others out; this also keeps the WAL index off shared memory.
    connection
        .pragma_update(None, "locking_mode", "EXCLUSIVE")
        .map_err(refused)?;
    connection
        .pragma_update(None, "trusted_schema", false)
        .map_err(refused)?;
    // Negative is KiB. Records are read by name, a few at a time, and listed once, at start.
    connection
        .pragma_update(None, "cache_size", -CACHE_KIB)
        .map_err(refused)?;
    Ok(connection)
}

/// The layout found, 0 for a new database; an error when it is newer or not sound.
pub(super) fn verify(path: &Path, connection: &Connection) -> Result<u32, StoreError> {
    let refused = |error| refused(path, error);
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(refused)?;
    if found > LAYOUT {
        return Err(StoreError::LayoutNewer {
            path: path.to_owned(),
            found,
            known: LAYOUT,
        });
    }
    let fault: String = connection
        .pragma_query_value(None, "quick_check", |row| row.get(0))
        .map_err(refused)?;
    // SQLite's way of saying that there is nothing to say.
    if fault != "ok" {
        return Err(damaged(path, fault));
    }
    let tables: u32 = connection
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table'",
            [],
            |row| row.get(0),
        )
        .map_err(refused)?;
    let ours: u32 = connection
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name IN ('records', 'aside')",
            [],
            |row| row.get(0),
        )
        .map_err(refused)?;
    if (found == 0 && tables > 0) || (found > 0 && ours != 2) {
        return Err(damaged(path, "it has not the tables of a store".to_owned()));
    }
    Ok(found)
}

/// Where the whole transactions of the log end; `None` without a log. An error when it is not sound.
pub(super) fn sound_log(path: &Path, log: &Path, database_empty: bool) -> Result<Option<usize>, StoreError> {
    let bytes = match std::fs::read(log) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(open_failed(path, error)),
    };
    match survey(&bytes) {
        Log::Empty => Ok(None),
        // SQLite would remove it.
        Log::Sound { .. } if database_empty => {
            Err(damaged(path, "it is empty, and its log is not".to_owned()))
        }
        Log::Sound { end } => Ok(Some(end)),
        Log::Damaged(damage) => Err(damaged(path, damage.to_string())),
    }
}

/// Writes a file over itself up to `end`, or all of it, and flushes it: what memory holds is then on the
/// disk, whatever became of earlier flushes. With an end it is cut there. A file that is not there is none.
pub(super) fn write_again(path: &Path, end: Option<usize>) -> Result<(), Cause> {
    let attempt = || -> Result<(), std::io::Error> {
        let mut bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new().write(true).open(path)?;
        if let Some(end) = end.filter(|end| *end < bytes.len()) {
            bytes.truncate(end);
            file.set_len(end as u64)?;
        }
        file.write_all_at(&bytes, 0)?;
        file.sync_all()
    };
    attempt().map_err(|source| -> Cause { Arc::new(source) })
}

/// Makes the names beside `path` durable.
pub(super) fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// SQLite's name for the log of a database.
pub(super) fn log_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

pub(super) fn open_failed(path: &Path, source: std::io::Error) -> StoreError {
    if source.kind() == std::io::ErrorKind::StorageFull {
        return StoreError::Full {
            source: Arc::new(source),
        };
    }
    StoreError::Open {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn damaged(path: &Path, found: String) -> StoreError {
    StoreError::DatabaseDamaged {
        path: path.to_owned(),
        found,
    }
}

/// What SQLite's refusal means.
pub(super) fn refused(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, error.to_string()),
        Some(ErrorCode::DiskFull) => StoreError::Full {
            source: Arc::new(error),
        },
        _ => StoreError::Open {
            path: path.to_owned(),
            source: Arc::new(error),
        },
    }
}
