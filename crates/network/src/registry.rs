//! All links: who has which, how each was when last touched, and when those settle that were opened.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_model::{Addresses, MonoTime, WorkloadId};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::error::NetworkError;
use crate::kernel::{LinkCore, Tap, now};
use crate::knock::Knocks;
use crate::link::{LinkMachine, LinkState};

/// All links, and what concerns more than one.
#[derive(Debug, Default)]
pub(crate) struct Links {
    registry: Mutex<Registry>,
    pub(crate) knocks: Arc<Knocks>,
    pub(crate) settling: Settling,
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) by_id: BTreeMap<WorkloadId, Arc<Entry>>,
    by_address: HashMap<IpAddr, Arc<Entry>>,
}

/// One link: what the thread works on, and what everybody may see without waiting for it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: WorkloadId,
    pub(crate) addresses: Addresses,
    core: Mutex<LinkCore>,
    seen: Mutex<Seen>,
}

/// A link as of its last step.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) state: LinkState,
    pub(crate) tap: Option<Tap>,
}

impl Entry {
    /// For the thread alone: it is locked for as long as the kernel takes.
    pub(crate) fn core(&self) -> MutexGuard<'_, LinkCore> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Links {
    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn of_address(&self, address: IpAddr) -> Option<Arc<Entry>> {
        self.registry().by_address.get(&address).cloned()
    }

    /// Enters a new link, parked and without a tap.
    pub(crate) fn reserve(&self, id: WorkloadId, addresses: Addresses) -> Result<Arc<Entry>, NetworkError> {
        let mut registry = self.registry();
        if registry.by_id.contains_key(&id) {
            return Err(NetworkError::AddressInUse {
                id,
                address: addresses.ipv4.into(),
            });
        }
        for address in addresses.both() {
            if registry.by_address.contains_key(&address) {
                return Err(NetworkError::AddressInUse { id, address });
            }
        }
        let core = LinkCore {
            id,
            addresses,
            machine: LinkMachine::new(),
            tap: None,
        };
        let seen = Seen {
            state: LinkState::Parked,
            tap: None,
        };
        let entry = Arc::new(Entry {
            id,
            addresses,
            core: Mutex::new(core),
            seen: Mutex::new(seen),
        });
        registry.by_id.insert(id, Arc::clone(&entry));
        registry
            .by_address
            .extend(addresses.both().map(|address| (address, Arc::clone(&entry))));
        Ok(entry)
    }

    /// Takes a link out. Only that very one: its successor may have entered meanwhile.
    pub(crate) fn forget(&self, entry: &Arc<Entry>) {
        let mut registry = self.registry();
        if registry
            .by_id
            .get(&entry.id)
            .is_some_and(|known| Arc::ptr_eq(known, entry))
        {
            registry.by_id.remove(&entry.id);
            for address in entry.addresses.both() {
                registry.by_address.remove(&address);
            }
        }
    }

    /// Shows everybody how a link is after a step.
    pub(crate) fn publish(&self, entry: &Entry) {
        let core = entry.core();
        let seen = Seen {
            state: core.machine.state(),
            tap: core.tap.clone(),
        };
        *entry.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        if let Some(due) = core.machine.next_deadline() {
            self.settling.add(entry.id, due);
        }
    }
}

/// Which links settle when: at most one entry a link.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    due: Mutex<BTreeMap<WorkloadId, MonoTime>>,
    changed: Notify,
}

impl Settling {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkloadId, MonoTime>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: WorkloadId, due: MonoTime) {
        self.lock().insert(id, due);
        self.changed.notify_one();
    }

    /// Waits until the first is due. Safe to cancel.
    pub(crate) async fn due(&self) {
        loop {
            let first = self.lock().values().min().copied();
            let Some(first) = first else {
                self.changed.notified().await;
                continue;
            };
            // Without a clock there is no deadline to keep: all of them are due.
            let left = now().map_or(Duration::ZERO, |now| first.since(now));
            if left.is_zero() || timeout(left, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }

    pub(crate) fn take_due(&self, now: MonoTime) -> Vec<WorkloadId> {
        let mut due = self.lock();
        let ready: Vec<_> = due
            .iter()
            .filter(|&(_, &at)| at <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in &ready {
            due.remove(id);
        }
        ready
    }
}
