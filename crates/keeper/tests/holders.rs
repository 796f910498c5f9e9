//! What every holder promises, tried on the one in this process and on a keeper behind its socket;
//! and what only the keeper does.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use dormouse_keeper::wire::PAGE;
use dormouse_keeper::{
    HeldKind, HeldName, Holder, Keeper, KeeperClient, KeeperError, LocalHolder, ProcessEnd,
};
use dormouse_sys::pidfd::PidFd;
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(10);

fn name(text: &str) -> HeldName {
    text.parse().unwrap()
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// A keeper that serves while the set lives.
fn serve(path: &Path) -> JoinSet<()> {
    let keeper = Keeper::listen(path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run());
    tasks
}

/// Runs `check` on each holder.
async fn on_each(check: impl AsyncFn(&'static str, &dyn Holder)) {
    check("local", &LocalHolder::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let _serving = serve(&path);
    check("keeper", &KeeperClient::new(&path, DEADLINE)).await;
}

#[tokio::test]
async fn what_is_kept_is_the_thing_itself() {
    on_each(async |holder, held| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        held.put(&name("a/pipe"), HeldKind::Socket, vec![writer.into(), null()])
            .await
            .unwrap();
        let copy = held.get(&name("a/pipe")).await.unwrap().unwrap();
        assert_eq!(
            (copy.kind, copy.descriptors.len()),
            (HeldKind::Socket, 2),
            "{holder}"
        );
        let [writer, _] = <[OwnedFd; 2]>::try_from(copy.descriptors).unwrap();
        let mut writer = std::fs::File::from(writer);
        writer.write_all(b"x").unwrap();
        drop(writer);
        // Had the holder given its own away, the pipe would end here.
        assert!(held.remove(&name("a/pipe")).await.unwrap(), "{holder}");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x", "{holder}");
        assert!(!held.remove(&name("a/pipe")).await.unwrap(), "{holder}");
        assert!(held.get(&name("a/pipe")).await.unwrap().is_none(), "{holder}");
    })
    .await;
}

#[tokio::test]
async fn a_second_put_replaces_the_first() {
    on_each(async |holder, held| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        held.put(&name("a"), HeldKind::Tap, vec![writer.into()])
            .await
            .unwrap();
        held.put(&name("a"), HeldKind::File, vec![null()]).await.unwrap();
        assert_eq!(
            reader.read(&mut [0; 1]).unwrap(),
            0,
            "{holder}: the first is closed"
        );
        assert_eq!(
            held.get(&name("a")).await.unwrap().unwrap().kind,
            HeldKind::File,
            "{holder}"
        );
    })
    .await;
}

#[tokio::test]
async fn long_lists_are_whole_and_in_order() {
    on_each(async |holder, held| {
        assert_eq!(held.list().await.unwrap(), [], "{holder}");
        let mut want = Vec::new();
        for number in 0..2 * PAGE {
            let text = format!("{number:04}");
            held.put(&name(&text), HeldKind::Tap, vec![null()]).await.unwrap();
            want.push(text);
        }
        let got: Vec<String> = held
            .list()
            .await
            .unwrap()
            .iter()
            .map(|entry| entry.name.to_string())
            .collect();
        assert_eq!(got, want, "{holder}");
    })
    .await;
}

#[tokio::test]
async fn wrong_counts_are_refused() {
    on_each(async |holder, held| {
        for count in [0, 17] {
            let many = (0..count).map(|_| null()).collect();
            let error = held.put(&name("a"), HeldKind::Tap, many).await.unwrap_err();
            assert!(
                matches!(error, KeeperError::CountUnusable { .. }),
                "{holder}: {error}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_process_is_told() {
    on_each(async |holder, held| {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line; kill -9 $$"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = PidFd::open(child.id()).unwrap().into_descriptor();
        held.put(&name("p"), HeldKind::Process, vec![pidfd])
            .await
            .unwrap();
        assert_eq!(
            held.process_end(&name("p")).await.unwrap(),
            Some(ProcessEnd::Alive),
            "{holder}"
        );
        child.wait().unwrap();
        let end = held.process_end(&name("p")).await.unwrap().unwrap();
        assert!(
            matches!(end, ProcessEnd::Signal(9) | ProcessEnd::Unknown),
            "{holder}: {end:?}"
        );
        assert_eq!(held.process_end(&name("absent")).await.unwrap(), None, "{holder}");
        held.put(&name("t"), HeldKind::Tap, vec![null()]).await.unwrap();
        assert!(held.process_end(&name("t")).await.is_err(), "{holder}");
    })
    .await;
}

#[tokio::test]
async fn what_is_kept_outlives_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let _serving = serve(&path);
    let first = KeeperClient::new(&path, DEADLINE);
    first.put(&name("a"), HeldKind::Tap, vec![null()]).await.unwrap();
    drop(first);
    let second = KeeperClient::new(&path, DEADLINE);
    assert_eq!(second.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_client_finds_a_keeper_that_was_restarted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let client = KeeperClient::new(&path, DEADLINE);
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, KeeperError::Absent { .. }), "{error}");
    let mut serving = serve(&path);
    client.put(&name("a"), HeldKind::Tap, vec![null()]).await.unwrap();
    serving.shutdown().await;
    // The socket that the first one left is replaced; what it kept is gone with it.
    let _serving = serve(&path);
    assert_eq!(client.list().await.unwrap(), []);
}

#[tokio::test]
async fn one_socket_has_one_keeper() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let _serving = serve(&path);
    assert!(matches!(Keeper::listen(&path), Err(KeeperError::Taken { .. })));
}

#[tokio::test]
async fn a_keeper_that_is_silent_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    // Listens and never accepts.
    let _keeper = Keeper::listen(&path).unwrap();
    let client = KeeperClient::new(&path, Duration::from_millis(20));
    let error = client.list().await.unwrap_err();
    assert!(matches!(error, KeeperError::Slow { .. }), "{error}");
}

#[tokio::test]
async fn many_callers_share_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keeper.sock");
    let _serving = serve(&path);
    let client = std::sync::Arc::new(KeeperClient::new(&path, DEADLINE));
    let mut callers = JoinSet::new();
    for number in 0..100 {
        let client = std::sync::Arc::clone(&client);
        callers.spawn(async move {
            let name = name(&format!("{number}"));
            client.put(&name, HeldKind::Tap, vec![null()]).await.unwrap();
            assert_eq!(client.get(&name).await.unwrap().unwrap().descriptors.len(), 1);
        });
    }
    callers.join_all().await;
    assert_eq!(client.list().await.unwrap().len(), 100);
}
