//! The table of the module, row by row; and a property over any order of demands.

use dormouse_model::WallTime;
use dormouse_model::spec::Placement;
use proptest::prelude::*;

use super::*;

const NONE: Bytes = Bytes(0);

fn id(number: u8) -> WorkloadId {
    WorkloadId::new(WallTime::from_unix_nanos(u64::from(number) << 40), [number; 10])
}

fn supply() -> Supply {
    let room = |total: Bytes| Room { total, free: total };
    Supply {
        disk: room(Bytes::gib(10)),
        ram: room(Bytes::gib(4)),
        memory: Bytes::gib(4),
        available: Bytes::gib(3),
        swap: NONE,
        swap_free: NONE,
    }
}

fn ram(placement: Placement, home: Home) -> GuestRam {
    GuestRam {
        home,
        ..GuestRam::fresh(placement, Bytes::gib(1))
    }
    .woken()
}

fn account(memory: Bytes, ram: Bytes, disk: Bytes) -> Account {
    Account { memory, ram, disk }
}

#[test]
fn every_step_takes_what_the_table_says() {
    let (all, size) = (Bytes::mib(1024 + 32), Bytes::gib(1));
    let (there, alone) = (Bytes::mib(100), Bytes::mib(40));
    let tmpfs = ram(Placement::Spill, Home::Tmpfs);
    let spilled = ram(Placement::Spill, Home::Disk);
    let shared = ram(Placement::Disk, Home::Disk);
    for (demand, want) in [
        (
            Demand::Create { disk: Bytes::gib(4) },
            account(NONE, NONE, Bytes::mib(9)),
        ),
        (Demand::Boot { ram: tmpfs }, account(all, size, RECORD)),
        (
            Demand::Boot { ram: shared },
            account(PROCESS, NONE, Bytes::mib(1025)),
        ),
        (
            Demand::Wake {
                ram: tmpfs,
                occupied: there,
            },
            account(all, size, RECORD),
        ),
        (
            Demand::Wake {
                ram: spilled,
                occupied: there,
            },
            account(all, NONE, RECORD),
        ),
        (
            Demand::Wake {
                ram: shared,
                occupied: there,
            },
            account(PROCESS, NONE, Bytes::mib(925)),
        ),
        (
            Demand::Sleep {
                ram: tmpfs,
                private: alone,
                occupied: there,
            },
            account(NONE, NONE, STATE),
        ),
        (
            Demand::Sleep {
                ram: spilled,
                private: alone,
                occupied: there,
            },
            account(NONE, NONE, Bytes::mib(44)),
        ),
        (
            Demand::Sleep {
                ram: spilled,
                private: Bytes(u64::MAX),
                occupied: there,
            },
            account(NONE, NONE, Bytes::mib(928)),
        ),
        (
            Demand::Spill { occupied: there },
            account(NONE, NONE, Bytes::mib(101)),
        ),
    ] {
        let mut book = Book::new(Floors::default());
        book.admit(id(1), demand, &supply()).unwrap();
        assert_eq!(book.promised(), want, "{demand:?}");
    }
}

#[test]
fn what_is_too_much_is_refused_and_changes_nothing() {
    let floors = Floors {
        disk: Bytes::gib(1),
        memory: Bytes::mib(512),
        percent: 100,
    };
    let full = Supply {
        disk: Room {
            free: Bytes::mib(1100),
            ..supply().disk
        },
        ..supply()
    };
    let small_tmpfs = Supply {
        ram: Room {
            total: Bytes::gib(2),
            free: Bytes::gib(2),
        },
        ..supply()
    };
    let used_up = Supply {
        available: Bytes::mib(500),
        ..supply()
    };
    let tmpfs = ram(Placement::Tmpfs, Home::Tmpfs);
    let shared = ram(Placement::Disk, Home::Disk);
    let huge = GuestRam {
        size: Bytes(u64::MAX),
        ..tmpfs
    };
    for (supply, before, demand, code) in [
        // 3 GiB and three processes fit 3.5 GiB less nothing; a fourth does not.
        (supply(), 3, Demand::Boot { ram: tmpfs }, "LEDGER_MEMORY"),
        (supply(), 0, Demand::Boot { ram: huge }, "LEDGER_MEMORY"),
        (small_tmpfs, 2, Demand::Boot { ram: tmpfs }, "LEDGER_TMPFS"),
        (
            used_up,
            0,
            Demand::Wake {
                ram: tmpfs,
                occupied: NONE,
            },
            "LEDGER_MEMORY",
        ),
        (full, 0, Demand::Boot { ram: shared }, "LEDGER_DISK"),
        (
            full,
            0,
            Demand::Spill {
                occupied: Bytes::mib(76),
            },
            "LEDGER_DISK",
        ),
        (full, 0, Demand::Create { disk: Bytes::gib(11) }, "LEDGER_DISK"),
        (
            supply(),
            0,
            Demand::Create {
                disk: Bytes(u64::MAX),
            },
            "LEDGER_DISK",
        ),
    ] {
        let mut book = Book::new(floors);
        for number in 0..before {
            book.honour(id(number), Demand::Boot { ram: tmpfs });
        }
        let promised = book.promised();
        let error = book.admit(id(100), demand, &supply).unwrap_err();
        assert_eq!(error.code(), code, "{demand:?}: {error}");
        assert_eq!(book.promised(), promised);
    }
}

/// A disk below its floor: what writes a record only goes on, what takes room is refused.
#[test]
fn a_disk_that_is_nearly_full_lets_sleepers_wake_whose_wake_takes_no_room() {
    let (size, none, all) = (Bytes::gib(1), NONE, Bytes::gib(1));
    let with = |free| Supply {
        disk: Room {
            free,
            ..supply().disk
        },
        ..supply()
    };
    let tmpfs = ram(Placement::Spill, Home::Tmpfs);
    let spilled = ram(Placement::Spill, Home::Disk);
    let shared = ram(Placement::Disk, Home::Disk);
    let wake = |ram, occupied| Demand::Wake { ram, occupied };
    let sleep = |ram| Demand::Sleep {
        ram,
        private: NONE,
        occupied: NONE,
    };
    for (free, others, demand, admitted) in [
        (Bytes::mib(500), none, wake(tmpfs, none), true),
        (Bytes::mib(500), none, wake(spilled, none), true),
        // What others are about to take is not theirs to wait for.
        (Bytes::mib(500), Bytes::mib(900), wake(spilled, none), true),
        (RECORD, none, wake(spilled, none), true),
        (Bytes(RECORD.0 - 1), none, wake(spilled, none), false),
        // Every block of its file is there, or none.
        (Bytes::mib(500), none, wake(shared, all), true),
        (Bytes::mib(500), none, wake(shared, none), false),
        (Bytes::mib(500), none, Demand::Boot { ram: tmpfs }, true),
        (Bytes::mib(500), none, Demand::Boot { ram: shared }, false),
        (Bytes::mib(500), none, sleep(tmpfs), false),
        (Bytes::mib(500), none, Demand::Spill { occupied: RECORD }, false),
        (Bytes::mib(500), none, Demand::Create { disk: size }, false),
        // The floor is above what others are promised, too.
        (Bytes::mib(1500), Bytes::mib(500), sleep(tmpfs), false),
        (Bytes::mib(1600), Bytes::mib(500), sleep(tmpfs), true),
    ] {
        let mut book = Book::new(Floors::default());
        book.set(id(1), account(NONE, NONE, others));
        let asked = book.admit(id(2), demand, &with(free));
        let code = asked.as_ref().map_err(Fault::code);
        let want = if admitted { Ok(&()) } else { Err("LEDGER_DISK") };
        assert_eq!(code, want, "{demand:?} with {free} free and {others} promised");
    }
}

#[test]
fn a_sleeper_gives_back_what_it_was_promised() {
    let mut book = Book::new(Floors::default());
    let tmpfs = ram(Placement::Spill, Home::Tmpfs);
    book.admit(id(1), Demand::Boot { ram: tmpfs }, &supply()).unwrap();
    let sleep = Demand::Sleep {
        ram: tmpfs,
        private: NONE,
        occupied: Bytes::mib(90),
    };
    book.admit(id(1), sleep, &supply()).unwrap();
    assert_eq!(book.promised().disk, STATE);
    book.at_rest(id(1), Bytes::mib(90));
    assert_eq!(book.promised(), account(Bytes::mib(90), Bytes::mib(90), NONE));
    book.admit(
        id(1),
        Demand::Spill {
            occupied: Bytes::mib(90),
        },
        &supply(),
    )
    .unwrap();
    book.at_rest(id(1), NONE);
    assert_eq!(book.promised(), Account::default());
    assert!(book.accounts.is_empty(), "a sleeper on disk costs no account");
}

#[test]
fn less_is_always_admitted() {
    // A host that lost memory since, or whose floors were raised, must still let guests sleep.
    let mut book = Book::new(Floors {
        memory: Bytes::gib(100),
        ..Floors::default()
    });
    let tmpfs = ram(Placement::Spill, Home::Tmpfs);
    book.honour(id(1), Demand::Boot { ram: tmpfs });
    let sleep = Demand::Sleep {
        ram: tmpfs,
        private: NONE,
        occupied: NONE,
    };
    book.admit(id(1), sleep, &supply()).unwrap();
}

proptest! {
    /// Whatever is asked in whatever order, what was admitted fits: memory the budget, tmpfs its size.
    #[test]
    fn what_is_admitted_fits(
        steps in proptest::collection::vec((0_u8..6, 0_u8..5, 1_u64..4096), 1..80),
    ) {
        let mut book = Book::new(Floors::default());
        let supply = supply();
        for (who, what, mib) in steps {
            let size = Bytes::mib(mib);
            let fresh = GuestRam::fresh(Placement::Spill, size);
            let spilled = GuestRam { home: Home::Disk, ..fresh }.woken();
            let _refused = match what {
                0 => book.admit(id(who), Demand::Boot { ram: fresh }, &supply),
                1 => book.admit(id(who), Demand::Wake { ram: spilled, occupied: NONE }, &supply),
                2 => book.admit(id(who), Demand::Spill { occupied: size }, &supply),
                3 => {
                    book.landed(id(who));
                    Ok(())
                }
                _ => {
                    book.at_rest(id(who), NONE);
                    Ok(())
                }
            };
            let promised = book.promised();
            prop_assert!(promised.memory <= book.memory_budget(&supply));
            prop_assert!(promised.ram <= supply.ram.total);
            // Records of wakes and starts come out of the floor.
            let records = 6 * RECORD.0;
            prop_assert!(promised.disk.0 <= supply.disk.free.0 - book.floors().disk.0 + records);
        }
    }
}
