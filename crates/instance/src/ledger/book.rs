//! What is promised to whom, and whether more can be: pure.

use std::collections::BTreeMap;

use dormouse_model::{Bytes, Fault, Kind, WorkloadId};

use crate::memory::{GuestRam, Home, Sharing};

/// What a virtual machine monitor takes beside its guest's RAM (measured: 18 to 35 MiB).
const PROCESS: Bytes = Bytes::mib(32);
/// What a device state and a record take.
const STATE: Bytes = Bytes::mib(4);
/// What the records of a step take: a wake whose mark cannot be written would have no good end.
const RECORD: Bytes = Bytes::mib(1);
/// What a new guest must find at once, whatever is promised.
const FIRST: Bytes = Bytes::mib(64);
/// A file system's metadata: so much, and one part in so many of its size.
const METADATA: Bytes = Bytes::mib(8);
const METADATA_SHARE: u64 = 4096;

/// One file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// All of it.
    pub total: Bytes,
    /// What can still be written.
    pub free: Bytes,
}

/// What the host has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Supply {
    /// The data directory's file system.
    pub disk: Room,
    /// The tmpfs of guest RAM.
    pub ram: Room,
    /// Memory.
    pub memory: Bytes,
    /// Memory that programs could have now without swapping.
    pub available: Bytes,
    /// Swap.
    pub swap: Bytes,
    /// Swap that is free.
    pub swap_free: Bytes,
}

/// What is kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floors {
    /// Bytes of the disk that are never promised.
    pub disk: Bytes,
    /// Bytes of memory that are never promised.
    pub memory: Bytes,
    /// How much memory may be promised, in percent of what there is. More than 100: guests that use all
    /// of their RAM at once can meet the kernel's killer.
    pub percent: u32,
}

impl Floors {
    /// Nothing is kept back: for hosts that are made for a test.
    pub const NONE: Self = Self {
        disk: Bytes(0),
        memory: Bytes(0),
        percent: 100,
    };
}

impl Default for Floors {
    fn default() -> Self {
        Self {
            disk: Bytes::gib(1),
            memory: Bytes::mib(512),
            percent: 100,
        }
    }
}

/// What one instance is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Memory, its file on tmpfs included.
    pub memory: Bytes,
    /// Bytes of its file on tmpfs.
    pub ram: Bytes,
    /// Disk that it is about to take, until it has.
    pub disk: Bytes,
}

impl Account {
    fn plus(self, other: Self) -> Self {
        let sum = |a: Bytes, b: Bytes| Bytes(a.0.saturating_add(b.0));
        Self {
            memory: sum(self.memory, other.memory),
            ram: sum(self.ram, other.ram),
            disk: sum(self.disk, other.disk),
        }
    }
}

/// What a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// A writable disk is made.
    Create {
        /// Its size.
        disk: Bytes,
    },
    /// A guest boots with this RAM.
    Boot {
        /// Fresh.
        ram: GuestRam,
    },
    /// A sleeper is loaded.
    Wake {
        /// As it will be mapped.
        ram: GuestRam,
        /// Bytes of its file that have blocks.
        occupied: Bytes,
    },
    /// A guest is put to sleep.
    Sleep {
        /// As it is mapped.
        ram: GuestRam,
        /// Bytes that its process has alone.
        private: Bytes,
        /// Bytes of its file that have blocks.
        occupied: Bytes,
    },
    /// A sleeper's file is copied to the disk.
    Spill {
        /// Bytes of it that have blocks.
        occupied: Bytes,
    },
}

impl Demand {
    /// What it is, in words.
    const fn doing(self) -> &'static str {
        match self {
            Self::Create { .. } => "make the instance",
            Self::Boot { .. } => "start the guest",
            Self::Wake { .. } => "wake the guest",
            Self::Sleep { .. } => "put the guest to sleep",
            Self::Spill { .. } => "copy the sleeper's memory to the disk",
        }
    }

    /// The account of an instance once it is met, given the one that it has.
    fn account(self, had: Account) -> Account {
        let rest = |size: Bytes, there: Bytes| Bytes(size.0.saturating_sub(there.0));
        match self {
            Self::Create { disk } => Account {
                disk: Bytes(METADATA.0 + disk.0 / METADATA_SHARE),
                ..had
            },
            Self::Boot { ram } => awake(ram, ram.size),
            Self::Wake { ram, occupied } => awake(ram, rest(ram.size, occupied)),
            Self::Sleep {
                ram,
                private,
                occupied,
            } => {
                let written = match ram.sharing {
                    Sharing::Shared => Bytes(0),
                    Sharing::Private => private.min(rest(ram.size, occupied)),
                };
                Account {
                    disk: Bytes(STATE.0.saturating_add(written.0)),
                    ..had
                }
            }
            Self::Spill { occupied } => Account {
                disk: Bytes(occupied.0.saturating_add(RECORD.0)),
                ..had
            },
        }
    }
}

/// The account of a guest with a process; `missing` are the bytes of its file without blocks.
fn awake(ram: GuestRam, missing: Bytes) -> Account {
    let all = Bytes(ram.size.0.saturating_add(PROCESS.0));
    let (memory, tmpfs, disk) = match (ram.home, ram.sharing) {
        (Home::Tmpfs, Sharing::Shared | Sharing::Private) => (all, ram.size, Bytes(0)),
        (Home::Disk, Sharing::Private) => (all, Bytes(0), Bytes(0)),
        (Home::Disk, Sharing::Shared) => (PROCESS, Bytes(0), missing),
    };
    Account {
        memory,
        ram: tmpfs,
        disk: Bytes(disk.0.saturating_add(RECORD.0)),
    }
}

/// All accounts. Instances without a promise have none.
#[derive(Debug)]
pub struct Book {
    floors: Floors,
    accounts: BTreeMap<WorkloadId, Account>,
}

impl Book {
    /// An empty one.
    #[must_use]
    pub const fn new(floors: Floors) -> Self {
        Self {
            floors,
            accounts: BTreeMap::new(),
        }
    }

    /// What is kept back.
    #[must_use]
    pub const fn floors(&self) -> Floors {
        self.floors
    }

    /// What all are promised.
    #[must_use]
    pub fn promised(&self) -> Account {
        self.accounts
            .values()
            .fold(Account::default(), |sum, account| sum.plus(*account))
    }

    /// The most memory that may be promised: the share of what there is, and swap, less the floor.
    #[must_use]
    pub fn memory_budget(&self, supply: &Supply) -> Bytes {
        let share = u128::from(supply.memory.0) * u128::from(self.floors.percent) / 100;
        let all = u64::try_from(share)
            .unwrap_or(u64::MAX)
            .saturating_add(supply.swap.0);
        Bytes(all.saturating_sub(self.floors.memory.0))
    }

    /// Promises what `demand` takes.
    ///
    /// # Errors
    /// The first room that is too small; the book is as it was.
    pub fn admit(&mut self, id: WorkloadId, demand: Demand, supply: &Supply) -> Result<(), LedgerError> {
        let account = self.judge(id, demand, supply)?;
        self.set(id, account);
        Ok(())
    }

    /// Whether `demand` could be met.
    ///
    /// # Errors
    /// The first room that is too small.
    pub fn could(&self, id: WorkloadId, demand: Demand, supply: &Supply) -> Result<(), LedgerError> {
        self.judge(id, demand, supply).map(drop)
    }

    fn judge(&self, id: WorkloadId, demand: Demand, supply: &Supply) -> Result<Account, LedgerError> {
        let had = self.accounts.get(&id).copied().unwrap_or_default();
        let wants = demand.account(had);
        let others = self
            .accounts
            .iter()
            .filter(|(other, _)| **other != id)
            .fold(Account::default(), |sum, (_, account)| sum.plus(*account));
        let all = others.plus(wants);
        let doing = demand.doing();
        let budget = self.memory_budget(supply);
        let more_memory = wants.memory > had.memory;
        if more_memory && all.memory > budget {
            return Err(LedgerError::Memory {
                doing,
                need: wants.memory,
                promised: others.memory,
                budget,
            });
        }
        let present = Bytes(supply.available.0.saturating_add(supply.swap_free.0));
        let at_once = Bytes(FIRST.0.saturating_add(self.floors.memory.0));
        if more_memory && present < at_once {
            return Err(LedgerError::MemoryNow {
                doing,
                need: at_once,
                available: present,
            });
        }
        if wants.ram > had.ram && all.ram > supply.ram.total {
            return Err(LedgerError::Ram {
                doing,
                need: wants.ram,
                promised: others.ram,
                total: supply.ram.total,
            });
        }
        let (room, floor, promised) = self.disk_room(wants.disk, others.disk, supply);
        let too_large = matches!(demand, Demand::Create { disk } if disk > supply.disk.total);
        if too_large || wants.disk.0 > room {
            let need = match demand {
                Demand::Create { disk } if too_large => disk,
                _ => wants.disk,
            };
            return Err(LedgerError::Disk {
                doing,
                need,
                promised,
                free: supply.disk.free,
                floor,
            });
        }
        Ok(wants)
    }

    /// How much of the disk there is for who needs `wants` of it; and what is kept from it: the floor, and what
    /// `others` are promised.
    ///
    /// A step that writes nothing but its record has the floor too, which is kept free for that: a sleeper whose
    /// wake takes memory alone wakes on a disk that is nearly full.
    fn disk_room(&self, wants: Bytes, others: Bytes, supply: &Supply) -> (u64, Bytes, Bytes) {
        let (floor, promised) = if wants <= RECORD {
            (Bytes(0), Bytes(0))
        } else {
            (self.floors.disk, others)
        };
        let free = supply.disk.free.0;
        (
            free.saturating_sub(floor.0).saturating_sub(promised.0),
            floor,
            promised,
        )
    }

    /// What was promised of the disk is taken or not needed.
    pub fn landed(&mut self, id: WorkloadId) {
        let account = self.accounts.get(&id).copied().unwrap_or_default();
        self.set(
            id,
            Account {
                disk: Bytes(0),
                ..account
            },
        );
    }

    /// No process is left; the file on tmpfs occupies `resident`.
    pub fn at_rest(&mut self, id: WorkloadId, resident: Bytes) {
        let account = Account {
            memory: resident,
            ram: resident,
            disk: Bytes(0),
        };
        self.set(id, account);
    }

    /// Enters what somebody has already.
    pub fn honour(&mut self, id: WorkloadId, demand: Demand) {
        let account = demand.account(Account::default());
        self.set(
            id,
            Account {
                disk: Bytes(0),
                ..account
            },
        );
    }

    fn set(&mut self, id: WorkloadId, account: Account) {
        if account == Account::default() {
            self.accounts.remove(&id);
        } else {
            self.accounts.insert(id, account);
        }
    }
}

/// What there is too little of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The disk.
    #[error(
        "the disk has too little room to {doing}: it takes {need}, {free} are free, of which {promised} are \
         promised and {floor} are kept free; remove what is not needed, or lower ledger.disk_floor"
    )]
    Disk {
        /// What was to be done.
        doing: &'static str,
        /// What it takes.
        need: Bytes,
        /// What others are about to take.
        promised: Bytes,
        /// What is free.
        free: Bytes,
        /// What is kept free.
        floor: Bytes,
    },
    /// Memory, by what is promised.
    #[error(
        "the host has too little memory to {doing}: it takes {need}, {promised} of {budget} are promised; put \
         instances to sleep or stop them, or raise ledger.memory_percent"
    )]
    Memory {
        /// What was to be done.
        doing: &'static str,
        /// What it takes.
        need: Bytes,
        /// What others are promised.
        promised: Bytes,
        /// The most that may be.
        budget: Bytes,
    },
    /// Memory, by what is there now.
    #[error(
        "the host has too little memory now to {doing}: {available} are available and {need} must be; end what \
         uses it, or lower ledger.memory_floor"
    )]
    MemoryNow {
        /// What was to be done.
        doing: &'static str,
        /// What must be available.
        need: Bytes,
        /// What is.
        available: Bytes,
    },
    /// The tmpfs of guest RAM.
    #[error(
        "the tmpfs for guest memory has too little room to {doing}: it takes {need}, {promised} of {total} are \
         promised; put instances to sleep or stop them, or raise memory.tmpfs_size"
    )]
    Ram {
        /// What was to be done.
        doing: &'static str,
        /// What it takes.
        need: Bytes,
        /// What others are promised.
        promised: Bytes,
        /// All of it.
        total: Bytes,
    },
}

impl Fault for LedgerError {
    fn kind(&self) -> Kind {
        Kind::Exhausted
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Disk { .. } => "LEDGER_DISK",
            Self::Memory { .. } | Self::MemoryNow { .. } => "LEDGER_MEMORY",
            Self::Ram { .. } => "LEDGER_TMPFS",
        }
    }
}

#[cfg(test)]
mod tests;
