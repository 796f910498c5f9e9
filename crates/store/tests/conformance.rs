//! What every backend promises, tried on each.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_store::record::{self, DamageReason};
use dormouse_store::sqlite::{Options, SqliteBackend};
use dormouse_store::{Backend, Batch, Key, Record, RecordKind, Rows, Store, StoreError};

/// A record of version 1.
#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(string, tag = "1")]
    text: String,
}

impl Record for Note {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 1;
}

/// The same kind as a newer program writes it.
#[derive(Clone, PartialEq, prost::Message)]
struct NewNote {
    #[prost(string, tag = "1")]
    text: String,
}

impl Record for NewNote {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 2;
}

/// Another kind.
#[derive(Clone, PartialEq, prost::Message)]
struct Mark {
    #[prost(uint64, tag = "1")]
    number: u64,
}

impl Record for Mark {
    const KIND: RecordKind = RecordKind::Host;
    const VERSION: u8 = 1;
}

fn note(text: &str) -> Note {
    Note {
        text: text.to_owned(),
    }
}

/// A store and a second view on its bytes; it moves nothing out of the way while that is said.
#[derive(Debug, Clone)]
struct Shared(std::sync::Arc<dyn Backend>, std::sync::Arc<AtomicBool>);

#[async_trait::async_trait]
impl Backend for Shared {
    async fn read(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.read(kind, key).await
    }
    async fn read_all(&self, kind: RecordKind) -> Result<Rows, StoreError> {
        self.0.read_all(kind).await
    }
    async fn commit(&self, changes: Vec<dormouse_store::backend::Change>) -> Result<(), StoreError> {
        self.0.commit(changes).await
    }
    async fn set_aside(&self, damaged: Vec<(dormouse_store::Damage, Vec<u8>)>) -> Result<(), StoreError> {
        if self.1.load(Ordering::Acquire) {
            let source = std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
            return Err(StoreError::Full { source });
        }
        self.0.set_aside(damaged).await
    }
    async fn aside(&self, kind: RecordKind) -> Result<Vec<dormouse_store::Damage>, StoreError> {
        self.0.aside(kind).await
    }
    async fn read_aside(&self, kind: RecordKind, key: Key) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.read_aside(kind, key).await
    }

    async fn check(&self) -> Result<dormouse_store::Report, StoreError> {
        self.0.check().await
    }
    async fn discard(&self, kind: RecordKind, key: Key) -> Result<bool, StoreError> {
        self.0.discard(kind, key).await
    }
    async fn back_up(&self, to: &std::path::Path) -> Result<dormouse_store::Tally, StoreError> {
        self.0.back_up(to).await
    }
}

async fn raw(shared: &Shared, key: &str, value: Vec<u8>) {
    let change = dormouse_store::backend::Change {
        kind: RecordKind::Test,
        key: Key::from(key),
        value: Some(value),
    };
    shared.commit(vec![change]).await.unwrap();
}

async fn backends(directory: &tempfile::TempDir) -> Vec<(&'static str, Shared)> {
    let sqlite = SqliteBackend::open(&directory.path().join("records.db"), Options::default())
        .await
        .unwrap();
    vec![
        (
            "memory",
            Shared(
                std::sync::Arc::new(dormouse_store::memory::MemoryBackend::default()),
                std::sync::Arc::default(),
            ),
        ),
        (
            "sqlite",
            Shared(std::sync::Arc::new(sqlite), std::sync::Arc::default()),
        ),
    ]
}

#[tokio::test]
async fn records_are_kept_by_kind_and_key() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared);
        assert_eq!(store.get::<Note>("a").await.unwrap(), None, "{name}");
        store.put("b", &note("two")).await.unwrap();
        store.put("a", &note("one")).await.unwrap();
        store.put("a", &Mark { number: 7 }).await.unwrap();
        store.put("b", &note("zwei")).await.unwrap();
        assert_eq!(
            store.get::<Note>("b").await.unwrap(),
            Some(note("zwei")),
            "{name}"
        );
        assert_eq!(
            store.get::<Mark>("a").await.unwrap(),
            Some(Mark { number: 7 }),
            "{name}"
        );
        let listing = store.list::<Note>().await.unwrap();
        assert_eq!(
            listing.records,
            [(Key::from("a"), note("one")), (Key::from("b"), note("zwei"))],
            "{name}"
        );
        assert_eq!(listing.damaged, [], "{name}");
        store.delete::<Note>("a").await.unwrap();
        store.delete::<Note>("a").await.unwrap();
        assert_eq!(store.get::<Note>("a").await.unwrap(), None, "{name}");
        assert_eq!(
            store.get::<Mark>("a").await.unwrap(),
            Some(Mark { number: 7 }),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_batch_is_applied_in_order() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared);
        store.apply(Batch::new()).await.unwrap();
        let batch = Batch::new()
            .put("a", &note("first"))
            .delete::<Note>("a")
            .put("a", &note("last"))
            .put("m", &Mark { number: 1 })
            .put("gone", &note("x"))
            .delete::<Note>("gone");
        store.apply(batch).await.unwrap();
        assert_eq!(
            store.get::<Note>("a").await.unwrap(),
            Some(note("last")),
            "{name}"
        );
        assert_eq!(store.get::<Note>("gone").await.unwrap(), None, "{name}");
        assert_eq!(
            store.get::<Mark>("m").await.unwrap(),
            Some(Mark { number: 1 }),
            "{name}"
        );
    }
}

#[tokio::test]
async fn unusable_keys_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared);
        for length in [0, Key::MAX_LENGTH + 1] {
            let key = Key::new(vec![b'x'; length]);
            let error = store.put(key.clone(), &note("a")).await.unwrap_err();
            assert!(
                matches!(error, StoreError::KeyUnusable { length: got } if got == length),
                "{name}"
            );
            assert!(
                matches!(store.get::<Note>(key).await, Err(StoreError::KeyUnusable { .. })),
                "{name}"
            );
        }
        store
            .put(Key::new(vec![0; Key::MAX_LENGTH]), &note("a"))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_a_scan_shows_can_be_read_once_more_by_its_number() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared.clone());
        store.put("a", &note("")).await.unwrap();
        store.put("c", &note("three")).await.unwrap();
        raw(&shared, "b", vec![1, 2]).await;
        let mut seen = Vec::new();
        let see = |number, key, record: Note| seen.push((number, key, record));
        let scan = store.scan(see).await.unwrap();
        let sound = [(0, Key::from("a"), note("")), (2, Key::from("c"), note("three"))];
        assert_eq!(seen, sound, "{name}");
        assert_eq!(scan.damaged.len(), 1, "{name}");
        let again: Vec<_> = (0..4).map(|number| scan.get(number)).collect();
        let wanted = [Some(note("")), None, Some(note("three")), None];
        assert_eq!(again, wanted, "{name}");
    }
}

#[tokio::test]
async fn a_damaged_record_that_cannot_be_moved_hides_no_other() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared.clone());
        store.put("a", &note("one")).await.unwrap();
        raw(&shared, "short", vec![1, 2]).await;
        shared.1.store(true, Ordering::Release);
        let stays = store.list::<Note>().await.unwrap();
        shared.1.store(false, Ordering::Release);
        let moved = store.list::<Note>().await.unwrap();
        assert_eq!(stays, moved, "{name}");
        assert_eq!((stays.records.len(), stays.damaged.len()), (1, 1), "{name}");
        assert_eq!(store.check().await.unwrap().set_aside.len(), 1, "{name}");
    }
}

#[tokio::test]
async fn one_damaged_record_does_not_hide_the_others() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared.clone());
        store.put("a", &note("one")).await.unwrap();
        store.put("z", &note("last")).await.unwrap();
        raw(&shared, "flipped", {
            let mut bytes = record::encode(&Key::from("flipped"), &note("x"));
            bytes[2] ^= 1;
            bytes
        })
        .await;
        raw(&shared, "short", vec![1, 2]).await;
        raw(&shared, "strayed", record::encode(&Key::from("a"), &note("one"))).await;

        let error = store.get::<Note>("flipped").await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged(_)), "{name}: {error}");
        assert_eq!(store.check().await.unwrap().damaged.len(), 3, "{name}");
        // Twice: what was set aside stays in the report.
        for _ in 0..2 {
            let listing = store.list::<Note>().await.unwrap();
            let keys: Vec<String> = listing.records.iter().map(|(key, _)| key.to_string()).collect();
            assert_eq!(keys, ["a", "z"], "{name}");
            let damaged: Vec<(String, DamageReason)> = listing
                .damaged
                .iter()
                .map(|damage| (damage.key.to_string(), damage.reason))
                .collect();
            let want = [
                ("flipped".to_owned(), DamageReason::Checksum),
                ("short".to_owned(), DamageReason::Short),
                ("strayed".to_owned(), DamageReason::Checksum),
            ];
            assert_eq!(damaged, want, "{name}");
        }
        // Never silently absent, and gone when somebody says so.
        assert!(
            matches!(store.get::<Note>("flipped").await, Err(StoreError::Damaged(_))),
            "{name}"
        );
        let report = store.check().await.unwrap();
        assert_eq!(
            (report.sound, report.damaged.len(), report.set_aside.len()),
            (2, 0, 3),
            "{name}"
        );
        assert!(!report.is_sound(), "{name}");
        for key in ["flipped", "short", "strayed"] {
            store.delete::<Note>(key).await.unwrap();
        }
        assert!(store.check().await.unwrap().is_sound(), "{name}");
    }
}

#[tokio::test]
async fn a_newer_record_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared);
        store.put("new", &NewNote { text: "n".to_owned() }).await.unwrap();
        let error = store.get::<Note>("new").await.unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::RecordNewer {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{name}: {error}"
        );
        assert!(
            matches!(store.list::<Note>().await, Err(StoreError::RecordNewer { .. })),
            "{name}"
        );
        assert_eq!(store.list::<NewNote>().await.unwrap().records.len(), 1, "{name}");
        // The other way round is what upgrades are for.
        store.put("old", &note("o")).await.unwrap();
        assert_eq!(store.list::<NewNote>().await.unwrap().records.len(), 2, "{name}");
    }
}

#[tokio::test]
async fn many_callers_at_once() {
    let directory = tempfile::tempdir().unwrap();
    for (name, shared) in backends(&directory).await {
        let store = Store::on(shared);
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..64_u64 {
            let store = store.clone();
            tasks.spawn(async move {
                for step in 0..8 {
                    store
                        .put(format!("{task}").as_str(), &Mark { number: step })
                        .await
                        .unwrap();
                    let seen = store.get::<Mark>(format!("{task}").as_str()).await.unwrap();
                    assert_eq!(seen, Some(Mark { number: step }), "a caller reads what it wrote");
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(store.list::<Mark>().await.unwrap().records.len(), 64, "{name}");
    }
}
