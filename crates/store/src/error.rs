//! What can go wrong with a store.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_model::{Fault, Kind};

use crate::record::{Damage, RecordKind};

/// A cause. Shared, because one failed flush is the cause of every change that waited for it.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// Why a store could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store.
    #[error("the store {} is in use by {}", path.display(), holder_text(*holder))]
    Locked {
        /// The database.
        path: PathBuf,
        /// The process that has it, when it could be read.
        holder: Option<u32>,
    },
    /// The database or its lock could not be opened.
    #[error("opening the store {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The database is not what was written. Nothing was changed by finding out.
    #[error(
        "the store {} is damaged ({found}); nothing was changed: keep its files, and put a backup in their \
         place (runbook: the store is damaged)",
        path.display()
    )]
    DatabaseDamaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// A newer program has changed the tables.
    #[error("the store {} has layout {found}, this program knows {known}: use the newer program", path.display())]
    LayoutNewer {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// A newer program has written a record.
    #[error("the {kind} record {key} has version {found}, this program knows {known}: use the newer program")]
    RecordNewer {
        /// The kind.
        kind: RecordKind,
        /// The key as text.
        key: String,
        /// The version found.
        found: u8,
        /// The newest that is known here.
        known: u8,
    },
    /// A record is not what was written.
    #[error("{0}")]
    Damaged(Damage),
    /// A key is empty or too long.
    #[error("a key of {length} bytes: use 1 to {} bytes", crate::record::Key::MAX_LENGTH)]
    KeyUnusable {
        /// The length.
        length: usize,
    },
    /// Reading failed.
    #[error("reading {kind} records")]
    Read {
        /// The kind.
        kind: RecordKind,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The file system is full; nothing was changed.
    #[error("writing records: no space is left")]
    Full {
        /// What the database said.
        #[source]
        source: Cause,
    },
    /// A commit failed and nothing was changed.
    #[error("writing records")]
    Commit {
        /// Why.
        #[source]
        source: Cause,
    },
    /// A write or a flush failed. Nothing was changed, unless the process ends before the disk takes
    /// writes again: then the change may be found. Every later change begins with writing again what the
    /// kernel may have dropped; reading goes on.
    #[error("the disk under the store fails: nothing was changed")]
    Broken {
        /// The failure.
        #[source]
        source: Cause,
    },
    /// A check of the tables failed.
    #[error("checking the store")]
    Check {
        /// Why.
        #[source]
        source: Cause,
    },
    /// A copy is not made over something.
    #[error("there is something at {} already", path.display())]
    BackupExists {
        /// Where the copy was to be.
        path: PathBuf,
    },
    /// A copy could not be made or is not right.
    #[error("copying the store to {}", path.display())]
    Backup {
        /// Where the copy was to be.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// Nothing was set aside under that key.
    #[error("no {kind} record {key} was set aside")]
    NotSetAside {
        /// The kind.
        kind: RecordKind,
        /// The key as text.
        key: String,
    },
    /// No answer in time. The change may still be made.
    #[error("the store did not answer within {} ms", after.as_millis())]
    Slow {
        /// The deadline.
        after: Duration,
    },
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl Fault for StoreError {
    fn kind(&self) -> Kind {
        match self {
            Self::Locked { .. } | Self::Open { .. } | Self::Broken { .. } | Self::Closed => Kind::Unavailable,
            Self::LayoutNewer { .. } | Self::RecordNewer { .. } => Kind::Unsupported,
            Self::Damaged(_) | Self::DatabaseDamaged { .. } => Kind::Corrupt,
            Self::BackupExists { .. } => Kind::Exists,
            Self::NotSetAside { .. } => Kind::NotFound,
            Self::KeyUnusable { .. } => Kind::Invalid,
            Self::Read { .. } | Self::Commit { .. } | Self::Check { .. } | Self::Backup { .. } => {
                Kind::Unavailable
            }
            Self::Full { .. } => Kind::Exhausted,
            Self::Slow { .. } => Kind::Timeout,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "STORE_LOCKED",
            Self::Open { .. } => "STORE_OPEN_FAILED",
            Self::DatabaseDamaged { .. } => "STORE_DAMAGED",
            Self::BackupExists { .. } => "STORE_BACKUP_EXISTS",
            Self::Backup { .. } => "STORE_BACKUP_FAILED",
            Self::NotSetAside { .. } => "STORE_NOT_SET_ASIDE",
            Self::LayoutNewer { .. } => "STORE_LAYOUT_NEWER",
            Self::RecordNewer { .. } => "STORE_RECORD_NEWER",
            Self::Damaged(_) => "STORE_RECORD_DAMAGED",
            Self::KeyUnusable { .. } => "STORE_KEY_INVALID",
            Self::Read { .. } => "STORE_READ_FAILED",
            Self::Full { .. } => "STORE_FULL",
            Self::Commit { .. } => "STORE_COMMIT_FAILED",
            Self::Broken { .. } => "STORE_BROKEN",
            Self::Check { .. } => "STORE_CHECK_FAILED",
            Self::Slow { .. } => "STORE_SLOW",
            Self::Closed => "STORE_CLOSED",
        }
    }
}
