//! On a disk that is full, fails or cannot be written: an error with a code, nothing changed, and the
//! store goes on when the disk does. Without root and `/dev/fuse` these are skipped.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use dormouse_disklab::{Call, Disk, Fail, Failure, Faults, Platter};
use dormouse_model::Fault as _;
use dormouse_store::{Batch, Record, RecordKind, Store};

#[derive(Clone, PartialEq, prost::Message)]
struct Blob {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "vec", tag = "2")]
    bytes: Vec<u8>,
}

impl Record for Blob {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 1;
}

fn blob(number: u64, size: usize) -> Blob {
    Blob {
        number,
        bytes: vec![u8::try_from(number % 251).unwrap(); size],
    }
}

struct Bench {
    // Dropped first: unmounts what the directory holds.
    disk: Disk,
    _directory: tempfile::TempDir,
}

fn need(test: &str) -> Option<Bench> {
    let directory = tempfile::tempdir().unwrap();
    let (backing, root) = (directory.path().join("backing"), directory.path().join("disk"));
    fs::create_dir(&backing).unwrap();
    fs::create_dir(&root).unwrap();
    match Disk::mount(&backing, &root) {
        Ok(disk) => Some(Bench {
            disk,
            _directory: directory,
        }),
        Err(error) => {
            println!("skipped: {test}: mounting by /dev/fuse: {error}");
            None
        }
    }
}

impl Bench {
    fn database(&self) -> PathBuf {
        self.disk.root().join("records.db")
    }

    fn fails(&self, fail: Fail) {
        self.disk.set_faults(Faults {
            fail: Some(fail),
            ..Faults::default()
        });
    }
}

/// What must be there.
type Truth = BTreeMap<String, u64>;

async fn found(store: &Store) -> Truth {
    let listing = store.list::<Blob>().await.unwrap();
    assert_eq!(listing.damaged, []);
    let numbers = listing
        .records
        .into_iter()
        .map(|(key, blob)| (key.to_string(), blob.number));
    numbers.collect()
}

/// Faults of every sort at the first calls of a commit.
fn fails() -> Vec<Fail> {
    let mut all = Vec::new();
    for failure in [Failure::Full, Failure::Io, Failure::ReadOnly] {
        for only in [None, Some(Call::Data), Some(Call::Flush)] {
            for at in 1..=8 {
                for lasting in [false, true] {
                    all.push(Fail {
                        at,
                        failure,
                        lasting,
                        only,
                    });
                }
            }
        }
    }
    all
}

#[tokio::test]
async fn a_commit_that_fails_changes_nothing_and_the_next_works() {
    let Some(bench) = need("a_commit_that_fails") else {
        return;
    };
    let mut store = Store::open(&bench.database()).await.unwrap();
    let mut truth = Truth::new();
    let mut failed = 0;
    for (number, fail) in (0_u64..).zip(fails()) {
        // Large ones too, so that the log is moved into the database now and then, under faults too.
        let size = if number % 3 == 0 { 700_000 } else { 100 };
        bench.fails(fail);
        // What the last failure left unknown should the process end before the disk works again.
        let mut perhaps = None;
        for name in ["a", "b"] {
            let batch = Batch::new()
                .put(name, &blob(number, size))
                .put(format!("twin-{name}").as_str(), &blob(number, 10));
            match store.apply(batch).await {
                Ok(()) => {
                    truth.insert(name.to_owned(), number);
                    truth.insert(format!("twin-{name}"), number);
                    perhaps = None;
                }
                Err(error) => {
                    failed += 1;
                    perhaps = perhaps.or_else(|| (error.code() == "STORE_BROKEN").then_some(name));
                    let known = ["STORE_FULL", "STORE_BROKEN", "STORE_COMMIT_FAILED"];
                    assert!(known.contains(&error.code()), "{fail:?}: {error}: {error:?}");
                }
            }
            assert_eq!(found(&store).await, truth, "{fail:?}");
        }
        if number % 5 == 0 {
            // A daemon that ends while its disk fails.
            drop(store);
            bench.disk.set_faults(Faults::default());
            store = Store::open(&bench.database()).await.unwrap();
            let found = found(&store).await;
            if found != truth {
                // The whole of it or nothing.
                let name = perhaps.unwrap();
                truth.insert(name.to_owned(), number);
                truth.insert(format!("twin-{name}"), number);
            }
            assert_eq!(found, truth, "{fail:?}, reopened");
        }
        bench.disk.set_faults(Faults::default());
        store.put("after", &blob(number, 10)).await.unwrap();
        truth.insert("after".to_owned(), number);
        assert_eq!(found(&store).await, truth, "{fail:?}, afterwards");
    }
    assert!(failed > 50, "only {failed} commits failed");
    assert!(store.check().await.unwrap().is_sound());
    drop(store);
    let store = Store::open(&bench.database()).await.unwrap();
    assert_eq!(found(&store).await, truth);
}

/// The kernel forgets a failed flush: what was acknowledged after one must not rest on it.
#[tokio::test]
async fn what_is_acknowledged_after_a_failed_flush_survives_the_power() {
    let Some(bench) = need("what_is_acknowledged_after_a_failed_flush") else {
        return;
    };
    let store = Store::open(&bench.database()).await.unwrap();
    let mut truth = Truth::new();
    for round in 0..6_u64 {
        bench.fails(Fail {
            only: Some(Call::Flush),
            ..Fail::once(1 + round % 2, Failure::Io)
        });
        for number in 0..4 {
            let name = format!("{round}-{number}");
            if store.put(name.as_str(), &blob(number, 3000)).await.is_ok() {
                truth.insert(name, number);
            }
        }
    }
    bench.disk.set_faults(Faults::default());
    let mut platter = Platter::default();
    bench.disk.log().iter().for_each(|change| platter.apply(change));
    for seed in 0..40 {
        let after = tempfile::tempdir().unwrap();
        platter.survivors(seed).write_to(after.path()).unwrap();
        let store = Store::open(&after.path().join("records.db")).await.unwrap();
        assert_eq!(found(&store).await, truth, "seed {seed}");
    }
}

#[tokio::test]
async fn an_opening_that_fails_changes_nothing() {
    let Some(bench) = need("an_opening_that_fails") else {
        return;
    };
    let mut truth = Truth::new();
    let mut failed = 0;
    for (number, fail) in (0_u64..).zip(fails()) {
        bench.fails(fail);
        match Store::open(&bench.database()).await {
            Ok(store) => {
                bench.disk.set_faults(Faults::default());
                assert_eq!(found(&store).await, truth, "{fail:?}");
            }
            Err(error) => {
                failed += 1;
                let known = ["STORE_FULL", "STORE_OPEN_FAILED", "STORE_BROKEN"];
                assert!(known.contains(&error.code()), "{fail:?}: {error}: {error:?}");
            }
        }
        bench.disk.set_faults(Faults::default());
        let store = Store::open(&bench.database()).await.unwrap();
        assert_eq!(found(&store).await, truth, "{fail:?}, afterwards");
        store.put("a", &blob(number, 50_000)).await.unwrap();
        truth.insert("a".to_owned(), number);
        // Now and then a log is left behind, as by a kill.
        if number % 2 == 0 {
            bench.fails(Fail::from(1, Failure::Io));
            drop(store);
        }
    }
    assert!(failed > 10, "only {failed} openings failed");
}

#[tokio::test]
async fn a_full_disk_is_an_error_until_there_is_room() {
    let Some(bench) = need("a_full_disk") else { return };
    let store = Store::open(&bench.database()).await.unwrap();
    store.put("kept", &blob(1, 10)).await.unwrap();
    let used = bench.disk.tally().used_bytes;
    bench.disk.set_faults(Faults {
        quota_bytes: Some(used + 100_000),
        ..Faults::default()
    });
    let error = store.put("big", &blob(2, 400_000)).await.unwrap_err();
    assert_eq!(error.code(), "STORE_FULL", "{error:?}");
    assert_eq!(found(&store).await, Truth::from([("kept".to_owned(), 1)]));
    store.put("small", &blob(3, 10)).await.unwrap();
    let backup = bench.disk.root().join("copy.db");
    bench.disk.set_faults(Faults {
        quota_bytes: Some(bench.disk.tally().used_bytes + 8192),
        ..Faults::default()
    });
    let error = store.back_up(&backup).await.unwrap_err();
    assert_eq!(error.code(), "STORE_FULL", "{error:?}");
    assert!(!backup.exists());
    assert!(!bench.disk.root().join("copy.db.part").exists());
    bench.disk.set_faults(Faults::default());
    store.put("big", &blob(2, 400_000)).await.unwrap();
    store.back_up(&backup).await.unwrap();
    assert_eq!(found(&store).await.len(), 3);
}
