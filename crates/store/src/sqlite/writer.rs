//! The thread that owns the connection, and the grouping of commits.

use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot};

use super::database::Database;
use super::inspection;
use super::lock::StoreLock;
use crate::backend::{Change, Report, Rows, Tally};
use crate::error::StoreError;
use crate::record::{Damage, Key, RecordKind};

/// Where an answer goes. A caller that gave up is no error.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Request {
    Read {
        kind: RecordKind,
        key: Key,
        answer: Answer<Option<Vec<u8>>>,
    },
    ReadAll {
        kind: RecordKind,
        answer: Answer<Rows>,
    },
    Commit {
        changes: Vec<Change>,
        answer: Answer<()>,
    },
    SetAside {
        damaged: Vec<(Damage, Vec<u8>)>,
        answer: Answer<()>,
    },
    Aside {
        kind: RecordKind,
        answer: Answer<Vec<Damage>>,
    },
    ReadAside {
        kind: RecordKind,
        key: Key,
        answer: Answer<Option<Vec<u8>>>,
    },
    Check {
        answer: Answer<Report>,
    },
    Discard {
        kind: RecordKind,
        key: Key,
        answer: Answer<bool>,
    },
    BackUp {
        to: PathBuf,
        answer: Answer<Tally>,
    },
}

/// The database and its lock; the lock is freed last (fields are dropped in order).
#[derive(Debug)]
pub(super) struct Writer {
    database: Database,
    _lock: StoreLock,
}

impl Writer {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = StoreLock::take(path)?;
        Ok(Self {
            database: Database::open(path)?,
            _lock: lock,
        })
    }

    /// Answers requests in order until the queue is closed and empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>, group: usize) {
        // The request that ended a group: it comes after the group's commit.
        let mut held = None;
        while let Some(request) = held.take().or_else(|| queue.blocking_recv()) {
            match request {
                Request::Commit { changes, answer } => {
                    held = self.commit(vec![(changes, answer)], &mut queue, group);
                }
                Request::Read { kind, key, answer } => {
                    let _ = answer.send(self.database.read(kind, &key));
                }
                Request::ReadAll { kind, answer } => {
                    let _ = answer.send(self.database.read_all(kind));
                }
                Request::SetAside { damaged, answer } => {
                    let _ = answer.send(self.database.set_aside(&damaged));
                }
                Request::Aside { kind, answer } => {
                    let _ = answer.send(self.database.aside(kind));
                }
                Request::ReadAside { kind, key, answer } => {
                    let _ = answer.send(self.database.read_aside(kind, &key));
                }
                Request::Check { answer } => {
                    let _ = answer.send(self.database.check());
                }
                Request::Discard { kind, key, answer } => {
                    let _ = answer.send(self.database.discard(kind, &key));
                }
                Request::BackUp { to, answer } => {
                    let _ = answer.send(inspection::back_up(&self.database, &to));
                }
            }
        }
    }

    /// Commits `waiting` and all commits queued right behind it, at most `group`; returns the first
    /// request that is none.
    fn commit(
        &mut self,
        mut waiting: Vec<(Vec<Change>, Answer<()>)>,
        queue: &mut mpsc::Receiver<Request>,
        group: usize,
    ) -> Option<Request> {
        let mut held = None;
        while waiting.len() < group {
            match queue.try_recv() {
                Ok(Request::Commit { changes, answer }) => waiting.push((changes, answer)),
                Ok(other) => {
                    held = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let outcome = self
            .database
            .commit(waiting.iter().flat_map(|(changes, _)| changes));
        for (_, answer) in waiting {
            let _ = answer.send(outcome.clone());
        }
        held
    }
}
