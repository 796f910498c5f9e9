//! Reading everything to say what is wrong with it, and copies that are known to be right.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use super::database::Database;
use super::lock::StoreLock;
use super::opening;
use crate::backend::{Report, Tally};
use crate::error::{Cause, StoreError};
use crate::record::{Damage, DamageReason, Key, RecordKind};

/// Reads every row.
pub(super) fn look(connection: &Connection) -> Result<Report, rusqlite::Error> {
    let mut report = Report::default();
    connection.pragma_query(None, "integrity_check", |row| {
        report.layout_faults.push(row.get::<_, String>(0)?);
        Ok(())
    })?;
    // SQLite's way of saying that there is nothing to say.
    report.layout_faults.retain(|fault| fault != "ok");
    let mut statement = connection.prepare("SELECT kind, key, value FROM records ORDER BY kind, key")?;
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
        report.take(kind, key, &row.get::<_, Vec<u8>>(2)?);
    }
    let mut statement = connection.prepare("SELECT kind, key, reason FROM aside ORDER BY kind, key")?;
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

/// Checks the store at `path`, which nobody may have open. Changes nothing in it.
pub(super) fn inspect(path: &Path) -> Result<Report, StoreError> {
    let meta = fs::metadata(path).map_err(|source| opening::open_failed(path, source))?;
    if !meta.is_file() {
        let what = std::io::Error::other("it is no regular file");
        return Err(opening::open_failed(path, what));
    }
    // SQLite does not say why a file cannot be read.
    drop(File::open(path).map_err(|source| opening::open_failed(path, source))?);
    let size = meta.len();
    // A store on a medium that cannot be written has no owner either.
    let _lock = StoreLock::take_if_there(path)?;
    let log = opening::log_path(path);
    let logged = opening::sound_log(path, &log, size == 0)?;
    // SQLite needs to write to read a log; without one it is kept from it.
    let access = if logged.is_some() {
        OpenFlags::SQLITE_OPEN_READ_WRITE
    } else {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    };
    if logged.is_some() {
        return inspect_connection(path, &opening::connect(path, access)?);
    }
    // A database in log mode without a log cannot be opened for reading alone, unless it is said that
    // nobody changes it, which the lock has made so.
    let location = format!("file:{}?immutable=1", escape(path));
    let connection = Connection::open_with_flags(location, access | OpenFlags::SQLITE_OPEN_URI)
        .map_err(|error| opening::refused(path, error))?;
    inspect_connection(path, &connection)
}

fn inspect_connection(path: &Path, connection: &Connection) -> Result<Report, StoreError> {
    // A new database has no layout yet. A daemon would fill it; whoever asks what is in it took it for a store.
    if opening::verify(path, connection)? == 0 {
        return Err(StoreError::DatabaseDamaged {
            path: path.to_owned(),
            found: "it is empty".to_owned(),
        });
    }
    look(connection).map_err(|error| opening::refused(path, error))
}

/// A path as part of a URI.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Copies the store to `to`, which must not be there; checks the copy before it has that name.
pub(super) fn back_up(database: &Database, to: &Path) -> Result<Tally, StoreError> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(StoreError::BackupExists { path: to.to_owned() });
    }
    let part = part_path(to);
    // Records name what people run. What is there under this name is another copy that is being made, or was
    // when its daemon ended: not ours to write into. SQLite takes the empty file for a new database.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => StoreError::BackupExists { path: part.clone() },
            _ => failed(to, source),
        })?;
    let outcome = copy_and_check(database, &part, to).and_then(|tally| {
        fs::hard_link(&part, to).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => StoreError::BackupExists { path: to.to_owned() },
            _ => failed(to, source),
        })?;
        if let Err(source) = opening::sync_directory(to) {
            // A name that may be gone tomorrow is no backup.
            drop(fs::remove_file(to));
            return Err(failed(to, source));
        }
        Ok(tally)
    });
    if let Err(error) = fs::remove_file(&part) {
        tracing::debug!(%error, path = %part.display(), "removing the unfinished copy");
    }
    outcome
}

fn copy_and_check(database: &Database, part: &Path, to: &Path) -> Result<Tally, StoreError> {
    database
        .copy_into(part)
        .map_err(|error| match opening::refused(part, error) {
            StoreError::Full { source } => full(to, source),
            other => StoreError::Backup {
                path: to.to_owned(),
                source: Arc::new(other),
            },
        })?;
    File::open(part)
        .and_then(|file| file.sync_all())
        .map_err(|source| failed(to, source))?;
    let (copied, ours) = (inspect(part)?, database.check()?);
    if copied != ours {
        return Err(StoreError::Backup {
            path: to.to_owned(),
            source: Arc::new(StoreError::DatabaseDamaged {
                path: part.to_owned(),
                found: "the copy is not what was copied".to_owned(),
            }),
        });
    }
    let size = fs::metadata(part).map_err(|source| failed(to, source))?.len();
    Ok(Tally {
        records: ours.sound,
        bytes: size,
    })
}

fn failed(path: &Path, source: std::io::Error) -> StoreError {
    if source.kind() == std::io::ErrorKind::StorageFull {
        return full(path, Arc::new(source));
    }
    StoreError::Backup {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

/// It is the place of the copy that is full, not that of the store.
fn full(path: &Path, source: Cause) -> StoreError {
    let copying = StoreError::Backup {
        path: path.to_owned(),
        source,
    };
    StoreError::Full {
        source: Arc::new(copying),
    }
}

/// Where a copy is made until it is known to be right.
fn part_path(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}
