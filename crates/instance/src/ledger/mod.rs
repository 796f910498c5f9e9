//! What the host has promised to instances, and what it may still promise: disk, the tmpfs of guest RAM,
//! memory.
//!
//! A guest whose page cannot be written is killed (SIGBUS on a full file system, the kernel's killer
//! without memory), so room is promised before it is needed, and a step that cannot have it does not
//! begin. The table says what is promised when; [`Demand`] is its first column.
//!
//! | step | memory | tmpfs | disk |
//! |---|---|---|---|
//! | create | | | the metadata of the writable disk; its blocks are not promised |
//! | boot on tmpfs | all RAM, and the process | all RAM | |
//! | boot on disk | the process | | all RAM, reserved |
//! | wake of tmpfs | all RAM, and the process | all RAM | |
//! | wake of a spilled file | all RAM (it may dirty it all), and the process | | |
//! | wake of a shared file on disk | the process | | what is not there of it, reserved |
//! | sleep | | | the device state, and what is dirty of a private guest |
//! | spill | | | what the file on tmpfs occupies |
//! | asleep on tmpfs | what the file occupies | the same | |
//!
//! Every step takes a little of the disk besides, for its record. The floor of the disk is kept free for that:
//! a step that takes nothing more is refused only where not even the record fits, so that a sleeper whose wake
//! takes memory alone wakes on a disk that is nearly full.
//!
//! [`book`] decides, [`Ledger`] reads what the host has and asks it. The writable disk of a guest is the
//! exception: it is sparse and may be larger than what is left. A guest that finds it full gets an error
//! from its disk, or waits, as it would on a thin volume; it is not killed.

pub mod book;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_model::{Bytes, WallTime, WorkloadId};
use nix::sys::statvfs::statvfs;

pub use book::{Account, Book, Demand, Floors, LedgerError, Room, Supply};

/// The ledger of a host. Its calls read files of the kernel, which takes tens of microseconds.
#[derive(Debug)]
pub struct Ledger {
    book: Mutex<Book>,
    data: PathBuf,
    ram: PathBuf,
}

/// What a person is told of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// What the host has.
    pub supply: Supply,
    /// What all instances together are promised.
    pub promised: Account,
    /// Most memory that may be promised.
    pub memory_budget: Bytes,
    /// What is kept free.
    pub floors: Floors,
}

impl Ledger {
    /// An empty ledger over the file systems of `data` and of `ram`.
    #[must_use]
    pub fn new(floors: Floors, data: &Path, ram: &Path) -> Self {
        Self {
            book: Mutex::new(Book::new(floors)),
            data: data.to_owned(),
            ram: ram.to_owned(),
        }
    }

    /// Promises `id` what `demand` takes, or says what is missing; nothing has changed then. Nor once `given_up` is
    /// set, which the asker may be while the host is asked what it has.
    ///
    /// # Errors
    /// The first room that is too small.
    pub fn admit(&self, id: WorkloadId, demand: Demand, given_up: &AtomicBool) -> Result<(), LedgerError> {
        let supply = self.supply();
        let mut book = self.book();
        // Under the lock: a settlement that follows the giving up comes after a promise that does not see it.
        if given_up.load(Ordering::Acquire) {
            return Ok(());
        }
        book.admit(id, demand, &supply)
    }

    /// Whether `demand` could be met now, without a promise.
    ///
    /// # Errors
    /// The first room that is too small.
    pub fn could(&self, id: WorkloadId, demand: Demand) -> Result<(), LedgerError> {
        let supply = self.supply();
        self.book().could(id, demand, &supply)
    }

    /// Whether `demand` could be met if nothing else were promised or used.
    ///
    /// # Errors
    /// The first room that is too small even then.
    pub fn ever(&self, demand: Demand) -> Result<(), LedgerError> {
        let supply = self.supply();
        let floors = self.book().floors();
        let empty = |room: Room| Room {
            free: room.total,
            ..room
        };
        let supply = Supply {
            disk: empty(supply.disk),
            ram: empty(supply.ram),
            available: supply.memory,
            swap_free: supply.swap,
            ..supply
        };
        Book::new(floors).could(
            WorkloadId::new(WallTime::from_unix_nanos(0), [0; 10]),
            demand,
            &supply,
        )
    }

    /// What was promised of the disk has been taken, or is not needed any more.
    pub fn landed(&self, id: WorkloadId) {
        self.book().landed(id);
    }

    /// The instance has no process any more, and its file on tmpfs occupies `resident`.
    pub fn at_rest(&self, id: WorkloadId, resident: Bytes) {
        self.book().at_rest(id, resident);
    }

    /// The process of an earlier daemon runs on: what it was promised holds, whatever there is.
    pub fn honour(&self, id: WorkloadId, demand: Demand) {
        self.book().honour(id, demand);
    }

    /// Everything at a glance.
    #[must_use]
    pub fn statement(&self) -> Statement {
        let supply = self.supply();
        let book = self.book();
        Statement {
            supply,
            promised: book.promised(),
            memory_budget: book.memory_budget(&supply),
            floors: book.floors(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change of the book is one insert or remove: a panic elsewhere leaves it whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn supply(&self) -> Supply {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Supply {
            disk: room(&self.data),
            ram: room(&self.ram),
            memory: field(&meminfo, "MemTotal"),
            available: field(&meminfo, "MemAvailable"),
            swap: field(&meminfo, "SwapTotal"),
            swap_free: field(&meminfo, "SwapFree"),
        }
    }
}

/// The room of the file system at `path`. One that cannot be asked has none: no promise is made on it.
fn room(path: &Path) -> Room {
    statvfs(path).map_or_else(
        |_| Room::default(),
        |found| Room {
            total: Bytes(found.blocks().saturating_mul(found.fragment_size())),
            free: Bytes(found.blocks_available().saturating_mul(found.fragment_size())),
        },
    )
}

/// A field of /proc/meminfo, which counts in KiB (proc_meminfo(5)).
fn field(text: &str, name: &str) -> Bytes {
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    Bytes(kib.saturating_mul(1024))
}

/// Bytes of memory that the process has alone (`RssAnon` of proc_pid_status(5)), swapped out or not (`VmSwap`):
/// of a guest whose RAM is mapped privately, at least what it has dirtied. Unknown is everything.
#[must_use]
pub fn private_bytes(pid: u32) -> Bytes {
    std::fs::read_to_string(format!("/proc/{pid}/status")).map_or(Bytes(u64::MAX), |text| {
        let [resident, swapped] = ["RssAnon", "VmSwap"].map(|name| field(&text, name).0);
        Bytes(resident.saturating_add(swapped))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_something() {
        let scratch = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(Floors::default(), scratch.path(), scratch.path());
        let statement = ledger.statement();
        assert!(statement.supply.disk.total > Bytes(0) && statement.supply.memory > Bytes(0));
        assert_eq!(statement.promised, Account::default());
        assert!(private_bytes(std::process::id()) < Bytes::gib(100));
        assert_eq!(private_bytes(u32::MAX), Bytes(u64::MAX));
    }

    #[test]
    fn who_was_given_up_is_promised_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let id = WorkloadId::new(WallTime::from_unix_nanos(0), [0; 10]);
        let demand = Demand::Spill { occupied: Bytes(1) };
        for given_up in [false, true] {
            let ledger = Ledger::new(Floors::NONE, scratch.path(), scratch.path());
            let answer = ledger.admit(id, demand, &AtomicBool::new(given_up));
            assert_eq!(answer, Ok(()));
            let promised = ledger.statement().promised;
            assert_eq!(promised == Account::default(), given_up);
        }
    }

    #[test]
    fn a_file_system_that_is_not_there_has_no_room() {
        assert_eq!(room(Path::new("/nonexistent")), Room::default());
    }
}
