//! The store on disk: embedded SQLite with a write-ahead log.
//!
//! One thread owns the connection. Requests reach it through a queue of [`Options::queue`] places;
//! when it is full, callers wait. The thread takes every commit that waits, up to
//! [`Options::group`], into one transaction: one flush for all, so that a burst of commits costs
//! little more than one of them.

mod database;
mod inspection;
mod lock;
mod log;
mod opening;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::backend::{Backend, Change, Report, Rows, Tally};
use crate::error::StoreError;
use crate::record::{Damage, Key, RecordKind};
use writer::{Request, Writer};

/// How a SQLite store works. No value changes what is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Requests that may wait; whoever comes when it is full waits too. At least 1.
    pub queue: usize,
    /// Commits that one flush may carry. At least 1.
    pub group: usize,
    /// How long a request waits for its answer, queue included.
    pub deadline: Duration,
}

impl Default for Options {
    /// Room for a storm of wakes, and patience for a disk that is busy with a spill.
    fn default() -> Self {
        Self {
            queue: 1024,
            group: 256,
            deadline: Duration::from_secs(30),
        }
    }
}

/// A backend on a SQLite database. Dropping it ends the thread, closes the database and frees the
/// lock before the drop returns, which takes as long as the commits that wait.
#[derive(Debug)]
pub struct SqliteBackend {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<std::thread::JoinHandle<()>>,
    deadline: Duration,
}

impl SqliteBackend {
    /// Opens the database at `path`, or makes it; its directory must exist and be durable. Beside it there will be
    /// `PATH.lock`, `PATH-wal` and, while it is open, perhaps `PATH-shm`.
    ///
    /// # Errors
    /// When another process has it, when its layout is newer, or when it cannot be opened.
    pub async fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let (requests, queue) = mpsc::channel(options.queue.max(1));
        let (opened, outcome) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let path: PathBuf = path.to_owned();
                move || match Writer::open(&path) {
                    Ok(writer) => {
                        // Whoever asked may have given up; then the queue is closed too.
                        let _ = opened.send(Ok(()));
                        writer.run(queue, options.group.max(1));
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
            })
            .map_err(|source| StoreError::Open {
                path: path.to_owned(),
                source: std::sync::Arc::new(source),
            })?;
        let backend = Self {
            requests: Some(requests),
            thread: Some(thread),
            deadline: options.deadline,
        };
        match timeout(options.deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map(|()| backend),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Slow {
                after: options.deadline,
            }),
        }
    }

    /// Hands the writer a request and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(writer::Answer<T>) -> Request) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
            requests
                .send(request(answer))
                .await
                .map_err(|_| StoreError::Closed)?;
            answered.await.map_err(|_| StoreError::Closed)?
        };
        timeout(self.deadline, exchange)
            .await
            .map_err(|_| StoreError::Slow { after: self.deadline })?
    }
}

/// Checks a store that nobody has open, a backup for instance. Changes nothing. Blocking.
///
/// # Errors
/// When somebody has it open, when its layout is newer, or when it is so damaged that its records cannot be
/// read; single damaged records are in the report.
pub fn inspect(path: &Path) -> Result<Report, StoreError> {
    inspection::inspect(path)
}

impl Drop for SqliteBackend {
    fn drop(&mut self) {
        // Closing the queue is what ends the thread.
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    async fn read(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(|answer| Request::Read { kind, key, answer }).await
    }

    async fn read_all(&self, kind: RecordKind) -> Result<Rows, StoreError> {
        self.ask(|answer| Request::ReadAll { kind, answer }).await
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.ask(|answer| Request::Commit { changes, answer }).await
    }

    async fn set_aside(&self, damaged: Vec<(Damage, Vec<u8>)>) -> Result<(), StoreError> {
        self.ask(|answer| Request::SetAside { damaged, answer }).await
    }

    async fn aside(&self, kind: RecordKind) -> Result<Vec<Damage>, StoreError> {
        self.ask(|answer| Request::Aside { kind, answer }).await
    }

    async fn read_aside(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.ask(|answer| Request::ReadAside { kind, key, answer }).await
    }

    async fn check(&self) -> Result<Report, StoreError> {
        self.ask(|answer| Request::Check { answer }).await
    }

    async fn discard(&self, kind: RecordKind, key: Key) -> Result<bool, StoreError> {
        self.ask(|answer| Request::Discard { kind, key, answer }).await
    }

    async fn back_up(&self, to: &Path) -> Result<Tally, StoreError> {
        let to = to.to_owned();
        self.ask(|answer| Request::BackUp { to, answer }).await
    }
}
