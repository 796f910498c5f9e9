//! The port: whoever keeps descriptors for the daemon.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::error::KeeperError;
use crate::shelf::{Entry, Held, HeldKind, HeldName, ProcessEnd, Shelf};

/// Keeps descriptors by name.
#[async_trait]
pub trait Holder: Send + Sync + std::fmt::Debug {
    /// Keeps descriptors under `name`; what was there is closed. May be sent again.
    async fn put(
        &self,
        name: &HeldName,
        kind: HeldKind,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), KeeperError>;

    /// Copies of what is kept under `name`; `None` for nothing.
    async fn get(&self, name: &HeldName) -> Result<Option<Held>, KeeperError>;

    /// All that is kept, in the order of the names.
    async fn list(&self) -> Result<Vec<Entry>, KeeperError>;

    /// Closes what is kept under `name`; whether there was something.
    async fn remove(&self, name: &HeldName) -> Result<bool, KeeperError>;

    /// How the process kept under `name` ended; `None` when nothing is kept there.
    async fn process_end(&self, name: &HeldName) -> Result<Option<ProcessEnd>, KeeperError>;
}

/// A holder in this process: what it keeps ends with it. For tests, and for a daemon whose guests
/// need not outlive it.
#[derive(Debug, Default)]
pub struct LocalHolder {
    shelf: Mutex<Shelf>,
}

impl LocalHolder {
    /// Every change of a shelf is one insertion or removal, so a panic elsewhere leaves it whole.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Holder for LocalHolder {
    async fn put(
        &self,
        name: &HeldName,
        kind: HeldKind,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), KeeperError> {
        self.shelf().put(name.clone(), Held { kind, descriptors })
    }

    async fn get(&self, name: &HeldName) -> Result<Option<Held>, KeeperError> {
        self.shelf().copy(name)
    }

    async fn list(&self) -> Result<Vec<Entry>, KeeperError> {
        Ok(self.shelf().list(None, usize::MAX))
    }

    async fn remove(&self, name: &HeldName) -> Result<bool, KeeperError> {
        Ok(self.shelf().remove(name))
    }

    async fn process_end(&self, name: &HeldName) -> Result<Option<ProcessEnd>, KeeperError> {
        self.shelf().process_end(name)
    }
}
