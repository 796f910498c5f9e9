//! One store, one process: an advisory lock on a file beside the database, which the kernel drops
//! with its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::opening::open_failed;
use crate::error::StoreError;

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Takes the lock of the database at `database` without waiting and writes our process id into
    /// the lock's file, for the error of whoever comes second.
    pub(super) fn take(database: &Path) -> Result<Self, StoreError> {
        let open_failed = |source| open_failed(database, source);
        // Not truncated before the lock is ours: the text is the holder's.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path(database))
            .map_err(open_failed)?;
        lock(database, &mut file)?;
        // The lock is ours whatever becomes of the text: a full disk takes none.
        let told = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = told {
            tracing::debug!(%error, "the lock does not say whose it is");
        }
        Ok(Self { _file: file })
    }

    /// Takes the lock without leaving a trace, for whoever only reads; nothing when there is no lock to
    /// take.
    pub(super) fn take_if_there(database: &Path) -> Result<Option<Self>, StoreError> {
        match File::open(lock_path(database)) {
            Ok(mut file) => {
                lock(database, &mut file)?;
                Ok(Some(Self { _file: file }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(open_failed(database, error)),
        }
    }
}

fn lock(database: &Path, file: &mut File) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Without a readable number the error still says what matters.
            let _ = file.read_to_string(&mut text);
            Err(StoreError::Locked {
                path: database.to_owned(),
                holder: text.trim().parse().ok(),
            })
        }
        Err(TryLockError::Error(source)) => Err(open_failed(database, source)),
    }
}

fn lock_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}
