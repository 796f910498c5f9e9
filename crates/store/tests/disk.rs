//! What only a store on disk promises: it is there after a restart and after a kill, it has one
//! owner, and it refuses what is newer.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_model::Fault as _;
use dormouse_store::sqlite::{Options, SqliteBackend};
use dormouse_store::{Batch, Record, RecordKind, Store, StoreError};

#[derive(Clone, PartialEq, prost::Message)]
struct Mark {
    #[prost(uint64, tag = "1")]
    number: u64,
}

impl Record for Mark {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 1;
}

/// Where the child of [`no_acknowledged_record_is_lost_by_a_kill`] keeps its store.
const CHILD: &str = "DORMOUSE_STORE_TEST_CHILD";

#[tokio::test]
async fn records_outlive_the_process_that_wrote_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    let store = Store::open(&path).await.unwrap();
    store.put("a", &Mark { number: 1 }).await.unwrap();
    drop(store);
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.get::<Mark>("a").await.unwrap(), Some(Mark { number: 1 }));
    assert!(store.check().await.unwrap().is_sound());
}

#[tokio::test]
async fn a_second_owner_is_refused_and_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    let first = Store::open(&path).await.unwrap();
    let error = Store::open(&path).await.unwrap_err();
    assert_eq!(error.code(), "STORE_LOCKED");
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(first);
    Store::open(&path).await.unwrap();
}

#[tokio::test]
async fn a_newer_layout_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    drop(Store::open(&path).await.unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(&path).await.unwrap_err();
    assert!(
        matches!(error, StoreError::LayoutNewer { found: 99, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    let text = "certainly not a database, and longer than its header would be: ".repeat(4);
    std::fs::write(&path, &text).unwrap();
    let error = Store::open(&path).await.unwrap_err();
    assert_eq!(error.code(), "STORE_DAMAGED");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let error = Store::open(&directory.path().join("absent/records.db"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "STORE_OPEN_FAILED");
}

#[tokio::test]
async fn the_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("records.db")).await.unwrap();
    store.put("a", &Mark { number: 1 }).await.unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", entry.path().display());
    }
}

#[tokio::test]
async fn a_full_queue_makes_callers_wait() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        queue: 1,
        group: 2,
        deadline: Duration::from_secs(60),
    };
    let backend = SqliteBackend::open(&directory.path().join("records.db"), options)
        .await
        .unwrap();
    let store = Store::on(backend);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50_u64 {
        let store = store.clone();
        tasks.spawn(async move { store.put(number.to_string().as_str(), &Mark { number }).await });
    }
    for outcome in tasks.join_all().await {
        outcome.unwrap();
    }
    assert_eq!(store.list::<Mark>().await.unwrap().records.len(), 50);
}

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn child_that_commits_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = Store::open(Path::new(&path)).await.unwrap();
    for number in 0.. {
        let batch = Batch::new()
            .put(format!("{number:08}").as_str(), &Mark { number })
            .put(format!("{number:08}-twin").as_str(), &Mark { number });
        store.apply(batch).await.unwrap();
        println!("acknowledged {number}");
    }
}

#[tokio::test]
async fn no_acknowledged_record_is_lost_by_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    for kill_after in [0, 1, 7, 40] {
        let path = directory.path().join(format!("{kill_after}.db"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_commits_until_it_is_killed", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = 0;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The rest of the pipe after the kill counts too: it was acknowledged before.
        for line in lines.by_ref() {
            // The harness's own `test NAME ... ` shares the first line.
            let line = line.unwrap();
            let Some((_, number)) = line.split_once("acknowledged ") else {
                continue;
            };
            acknowledged = number.parse::<u64>().unwrap() + 1;
            if acknowledged > kill_after {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged > kill_after, "the child ended by itself");

        let store = Store::open(&path).await.unwrap();
        let marks = store.list::<Mark>().await.unwrap();
        assert_eq!(marks.damaged, []);
        let pairs = marks.records.len() as u64 / 2;
        assert_eq!(marks.records.len() % 2, 0, "half a batch is there");
        assert!(pairs >= acknowledged, "{acknowledged} acknowledged, {pairs} kept");
        for (at, (_, mark)) in (0..).zip(&marks.records) {
            assert_eq!(mark.number, at / 2);
        }
    }
}
