//! The port over the descriptor store of a service manager: what it is given it hands to the next process of
//! the unit, however this one ends (`FileDescriptorStoreMax=` in systemd.service(5)).
//!
//! The manager is not asked what it keeps, so a shelf of our own answers; it begins as what was handed to us.
//! A descriptor's name there is `KIND.PLACE.COUNT.NAME`: the manager knows names and no more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dormouse_sys::descriptor::{MAX_DESCRIPTORS, Passed};

use crate::error::KeeperError;
use crate::holder::Holder;
use crate::notify::{News, Notifier};
use crate::shelf::{Entry, Held, HeldKind, HeldName, ProcessEnd, Shelf};

/// The longest name that a manager takes (`FDNAME_MAX`).
const MAX_NAME: usize = 255;

/// A holder that has a service manager keep things.
#[derive(Debug)]
pub struct DescriptorStore {
    notifier: Arc<Notifier>,
    shelf: Mutex<Shelf>,
    /// One change at a time: the messages of two would mix.
    changing: tokio::sync::Mutex<()>,
}

/// The name of one descriptor of several in the manager's store.
fn stored_name(kind: HeldKind, place: usize, count: usize, name: &HeldName) -> Result<String, KeeperError> {
    // The manager separates names by colons.
    let text = name.as_str().replace('%', "%25").replace(':', "%3A");
    let stored = format!("{}.{place}.{count}.{text}", kind_word(kind));
    if stored.len() > MAX_NAME {
        return Err(KeeperError::NameUnusable {
            text: name.to_string(),
        });
    }
    Ok(stored)
}

/// What a name of the manager's store means; `None` when it is none of ours.
fn parse_stored(text: &str) -> Option<(HeldKind, usize, usize, HeldName)> {
    let mut parts = text.splitn(4, '.');
    let kind = kind_of(parts.next()?)?;
    let place: usize = parts.next()?.parse().ok()?;
    let count: usize = parts.next()?.parse().ok()?;
    let name = parts.next()?.replace("%3A", ":").replace("%25", "%");
    (place < count && count <= MAX_DESCRIPTORS).then_some(())?;
    Some((kind, place, count, name.parse().ok()?))
}

const fn kind_word(kind: HeldKind) -> &'static str {
    match kind {
        HeldKind::Tap => "tap",
        HeldKind::Process => "process",
        HeldKind::Socket => "socket",
        HeldKind::File => "file",
    }
}

fn kind_of(word: &str) -> Option<HeldKind> {
    [HeldKind::Tap, HeldKind::Process, HeldKind::Socket, HeldKind::File]
        .into_iter()
        .find(|kind| kind_word(*kind) == word)
}

/// Whether the name of a passed descriptor is one of the store's.
#[must_use]
pub fn is_stored(name: &str) -> bool {
    parse_stored(name).is_some()
}

impl DescriptorStore {
    /// The store behind `notifier`, with what it has handed to this process. What is no whole set, because
    /// this process's predecessor was interrupted, is closed and removed.
    pub async fn new(notifier: Arc<Notifier>, passed: Vec<Passed>) -> Self {
        let mut sets: BTreeMap<HeldName, (HeldKind, usize, BTreeMap<usize, OwnedFd>)> = BTreeMap::new();
        for Passed { name, descriptor } in passed {
            let Some((kind, place, count, held)) = parse_stored(&name) else {
                continue;
            };
            let set = sets.entry(held).or_insert_with(|| (kind, count, BTreeMap::new()));
            set.2.insert(place, descriptor);
        }
        let mut shelf = Shelf::default();
        for (name, (kind, count, descriptors)) in sets {
            let whole = descriptors.len() == count;
            let held = Held {
                kind,
                descriptors: descriptors.into_values().collect(),
            };
            let kept = whole && shelf.put(name.clone(), held).is_ok();
            if !kept {
                tracing::warn!(%name, "the manager kept a part of a set; it is let go");
                for place in 0..count {
                    if let Ok(stored) = stored_name(kind, place, count, &name) {
                        // What stays there is handed over again and removed then.
                        let _unheard = notifier.say(&[News::Remove(&stored)]).await;
                    }
                }
            }
        }
        Self {
            notifier,
            shelf: Mutex::new(shelf),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    /// Every change of a shelf is one insertion or removal, so a panic elsewhere leaves it whole.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forget(&self, name: &HeldName) -> Result<bool, KeeperError> {
        let known = self
            .shelf()
            .get(name)
            .map(|held| (held.kind, held.descriptors.len()));
        let Some((kind, count)) = known else {
            return Ok(false);
        };
        for place in 0..count {
            let stored = stored_name(kind, place, count, name)?;
            self.notifier
                .say(&[News::Remove(&stored)])
                .await
                .map_err(broken)?;
        }
        Ok(self.shelf().remove(name))
    }
}

fn broken(source: io::Error) -> KeeperError {
    let path = PathBuf::from("the notify socket");
    if source.kind() == io::ErrorKind::TimedOut {
        return KeeperError::Slow {
            path,
            after: crate::notify::DEADLINE,
        };
    }
    KeeperError::Broken { path, source }
}

#[async_trait]
impl Holder for DescriptorStore {
    async fn put(
        &self,
        name: &HeldName,
        kind: HeldKind,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), KeeperError> {
        let count = descriptors.len();
        if count == 0 || count > MAX_DESCRIPTORS || (kind == HeldKind::Process && count != 1) {
            return Err(KeeperError::CountUnusable { count });
        }
        let _alone = self.changing.lock().await;
        // First: a manager passes over a file that it keeps already.
        self.forget(name).await?;
        for (place, descriptor) in descriptors.iter().enumerate() {
            let stored = stored_name(kind, place, count, name)?;
            self.notifier
                .store(&stored, descriptor.as_fd())
                .await
                .map_err(broken)?;
        }
        self.notifier.settled().await.map_err(broken)?;
        self.shelf().put(name.clone(), Held { kind, descriptors })
    }

    async fn get(&self, name: &HeldName) -> Result<Option<Held>, KeeperError> {
        self.shelf().copy(name)
    }

    async fn list(&self) -> Result<Vec<Entry>, KeeperError> {
        Ok(self.shelf().list(None, usize::MAX))
    }

    async fn remove(&self, name: &HeldName) -> Result<bool, KeeperError> {
        let _alone = self.changing.lock().await;
        let was_there = self.forget(name).await?;
        self.notifier.settled().await.map_err(broken)?;
        Ok(was_there)
    }

    async fn process_end(&self, name: &HeldName) -> Result<Option<ProcessEnd>, KeeperError> {
        self.shelf().process_end(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_manager() {
        let text = "01k:/tap%3A";
        let name: HeldName = text.parse().unwrap();
        let stored = stored_name(HeldKind::Socket, 1, 3, &name).unwrap();
        assert_eq!(stored, "socket.1.3.01k%3A/tap%253A");
        assert_eq!(parse_stored(&stored), Some((HeldKind::Socket, 1, 3, name)));
        for none in [
            "api",
            "unknown",
            "tap.1.1.a",
            "tap.0.99.a",
            "cat.0.1.a",
            "tap.0.1.",
            "tap.x.1.a",
        ] {
            assert_eq!(parse_stored(none), None, "{none}");
        }
        let long: HeldName = "%".repeat(128).parse().unwrap();
        assert!(stored_name(HeldKind::Tap, 0, 1, &long).is_err());
    }
}
