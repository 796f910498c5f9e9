//! What is wished for is kept by whoever is there, also after the keeper was lost.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_keeper::{
    Custodian, HeldKind, HeldName, Holder as _, Keeper, KeeperClient, KeeperError, Reached, Source,
};
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(10);
/// What a keeper that hangs is given; short, and only used where one does.
const SHORT: Duration = Duration::from_millis(30);

fn name(text: &str) -> HeldName {
    text.parse().unwrap()
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// Keepers in this process, one after the other on one socket.
#[derive(Debug)]
struct Keepers {
    path: PathBuf,
    patience: Duration,
    serving: Mutex<JoinSet<()>>,
    reached: Mutex<Vec<bool>>,
}

impl Keepers {
    fn new(path: &Path, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            path: path.to_owned(),
            patience,
            serving: Mutex::default(),
            reached: Mutex::default(),
        })
    }

    fn kill(&self) {
        *self.serving.lock().unwrap() = JoinSet::new();
    }
}

#[async_trait]
impl Source for Keepers {
    async fn reach(&self, replace: bool) -> Result<Reached, KeeperError> {
        self.reached.lock().unwrap().push(replace);
        if replace {
            self.kill();
        }
        if self.serving.lock().unwrap().is_empty() {
            let _left = std::fs::remove_file(&self.path);
            self.serving
                .lock()
                .unwrap()
                .spawn(Keeper::listen(&self.path)?.run());
        }
        let holder = Arc::new(KeeperClient::new(&self.path, self.patience));
        Ok(Reached {
            holder,
            process: None,
        })
    }
}

/// Looks at what the keeper has until it is `want`.
async fn has(path: &Path, want: &[&str]) {
    let looked = tokio::time::timeout(DEADLINE, async {
        loop {
            let client = KeeperClient::new(path, DEADLINE);
            let names: Vec<String> = match client.list().await {
                Ok(entries) => entries.iter().map(|entry| entry.name.to_string()).collect(),
                Err(_) => Vec::new(),
            };
            if names == want {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(looked.await.is_ok(), "never had {want:?}");
}

#[tokio::test]
async fn a_lost_keeper_has_a_successor_that_is_told_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let keepers = Keepers::new(&path, DEADLINE);
    let (custodian, task) = Custodian::new(Arc::clone(&keepers) as Arc<dyn Source>);
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    custodian.hold(name("a/tap"), HeldKind::Tap, null());
    custodian.hold(name("b/tap"), HeldKind::Tap, null());
    assert!(custodian.first_reached(DEADLINE).await);
    has(&path, &["a/tap", "b/tap"]).await;
    keepers.kill();
    // Its end is not watched here; the next wish finds out.
    custodian.hold(name("c/tap"), HeldKind::Tap, null());
    has(&path, &["a/tap", "b/tap", "c/tap"]).await;
    custodian.settled();
    custodian.release(name("b/tap"));
    has(&path, &["a/tap", "c/tap"]).await;
    assert!(custodian.get(&name("a/tap")).await.is_some());
    assert_eq!(custodian.status().losses, 1);
}

#[tokio::test]
async fn what_an_earlier_daemon_left_goes_when_nobody_wants_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let keepers = Keepers::new(&path, DEADLINE);
    keepers.reach(false).await.unwrap();
    let earlier = KeeperClient::new(&path, DEADLINE);
    for left in ["a/tap", "b/tap"] {
        earlier
            .put(&name(left), HeldKind::Tap, vec![null()])
            .await
            .unwrap();
    }
    let (custodian, task) = Custodian::new(Arc::clone(&keepers) as Arc<dyn Source>);
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    assert!(custodian.first_reached(DEADLINE).await);
    let held = custodian.get(&name("b/tap")).await.unwrap();
    custodian.hold_all(name("b/tap"), held.kind, held.descriptors);
    custodian.settled();
    has(&path, &["b/tap"]).await;
}

#[tokio::test]
async fn a_keeper_that_hangs_blocks_nobody_and_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let keepers = Keepers::new(&path, SHORT);
    let (custodian, task) = Custodian::new(Arc::clone(&keepers) as Arc<dyn Source>);
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    assert!(custodian.first_reached(DEADLINE).await);
    // From now on nobody accepts: what replaces the keeper is a socket that hangs.
    keepers.kill();
    let _left = std::fs::remove_file(&path);
    let hanging = tokio::net::UnixListener::bind(&path).unwrap();
    keepers.serving.lock().unwrap().spawn(async move {
        while hanging.local_addr().is_ok() {
            std::future::pending::<()>().await;
        }
    });
    let begun = std::time::Instant::now();
    for number in 0..100 {
        custodian.hold(name(&format!("{number:02}/tap")), HeldKind::Tap, null());
    }
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    let want: Vec<String> = (0..100).map(|number| format!("{number:02}/tap")).collect();
    let want: Vec<&str> = want.iter().map(String::as_str).collect();
    has(&path, &want).await;
}
