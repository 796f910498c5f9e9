//! What every holder promises, tried on the one in this process and on a keeper behind its socket;
//! and what only the keeper does.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_keeper::wire::PAGE;
use dormouse_keeper::{
    DescriptorStore, HeldKind, HeldName, Holder, Keeper, KeeperClient, KeeperError, LocalHolder, Notifier,
    ProcessEnd,
};
use dormouse_sys::descriptor;
use dormouse_sys::pidfd::PidFd;
use dormouse_sys::spawn::{Program, spawn};
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
    let manager = Manager::start(&directory.path().join("notify"));
    let notifier = Arc::new(Notifier::to(manager.path.as_os_str()).unwrap());
    check("store", &DescriptorStore::new(notifier, Vec::new()).await).await;
}

/// A service manager that keeps descriptors, as far as the protocol goes.
struct Manager {
    path: PathBuf,
    kept: Arc<Mutex<Vec<(String, OwnedFd)>>>,
}

impl Manager {
    /// Serves until the test's process ends.
    fn start(path: &Path) -> Self {
        let socket = std::os::unix::net::UnixDatagram::bind(path).unwrap();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let shelf = Arc::clone(&kept);
        std::thread::spawn(move || {
            loop {
                let mut bytes = [0; 4096];
                let Ok(received) = descriptor::receive(socket.as_fd(), &mut bytes) else {
                    return;
                };
                let text = String::from_utf8_lossy(&bytes[..received.length]).into_owned();
                let has = |line: &str| text.lines().any(|found| found == line);
                let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
                let mut shelf = shelf.lock().unwrap();
                match name {
                    Some(name) if has("FDSTOREREMOVE=1") => shelf.retain(|(held, _)| held != name),
                    Some(name) if has("FDSTORE=1") => {
                        shelf.extend(received.descriptors.into_iter().map(|one| (name.to_owned(), one)));
                    }
                    // A barrier: what came with it closes here.
                    Some(_) | None => {}
                }
            }
        });
        Self {
            path: path.to_owned(),
            kept,
        }
    }

    /// Runs the test `name` of this program as the unit's next process; what it printed.
    fn next_process(&self, name: &str) -> String {
        let kept = self.kept.lock().unwrap();
        // The newest first, as systemd does.
        let (names, descriptors): (Vec<&str>, Vec<_>) = kept
            .iter()
            .rev()
            .map(|(name, one)| (name.as_str(), one.as_fd()))
            .unzip();
        let text = |text: &str| CString::new(text).unwrap();
        let own = std::env::current_exe().unwrap();
        let (mut output, theirs) = std::io::pipe().unwrap();
        let started = spawn(&Program {
            path: c"/bin/sh",
            arguments: &[
                text("sh"),
                text("-c"),
                text("LISTEN_PID=$$ exec \"$0\" \"$@\""),
                text(own.to_str().unwrap()),
                text("--exact"),
                text(name),
                text("--nocapture"),
            ],
            environment: &[
                text(&format!("LISTEN_FDS={}", names.len())),
                text(&format!("LISTEN_FDNAMES={}", names.join(":"))),
                text(&format!("NOTIFY_SOCKET={}", self.path.display())),
                text("DORMOUSE_TEST_HANDED=1"),
            ],
            descriptors: &descriptors,
            output: theirs.as_fd(),
            identity: None,
            groups: &[],
            cgroups: &[],
            namespaces: &[],
            refuse_fallocate: false,
        })
        .unwrap();
        drop((theirs, kept));
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        // Reaps it.
        drop(started.pidfd.exit());
        said
    }
}

/// Not a test of its own: the next process of the unit in the one below.
#[tokio::test]
async fn handed_over() {
    if std::env::var_os("DORMOUSE_TEST_HANDED").is_none() {
        return;
    }
    let notifier = Arc::new(Notifier::from_environment().unwrap().unwrap());
    let passed = descriptor::take_passed_named().unwrap();
    let store = DescriptorStore::new(notifier, passed).await;
    for entry in store.list().await.unwrap() {
        println!("has {} {:?} {}", entry.name, entry.kind, entry.count);
    }
    let held = store.get(&name("a/pipe")).await.unwrap().unwrap();
    let [first, _] = <[OwnedFd; 2]>::try_from(held.descriptors).unwrap();
    std::fs::File::from(first).write_all(b"from the next").unwrap();
    println!("end {:?}", store.process_end(&name("a/process")).await.unwrap());
    assert!(store.remove(&name("a/pipe")).await.unwrap());
}

#[tokio::test]
async fn a_manager_hands_what_it_keeps_to_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::start(&directory.path().join("notify"));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    {
        let notifier = Arc::new(Notifier::to(manager.path.as_os_str()).unwrap());
        let store = DescriptorStore::new(notifier, Vec::new()).await;
        store
            .put(&name("a/pipe"), HeldKind::Socket, vec![writer.into(), null()])
            .await
            .unwrap();
        let process = PidFd::open(child.id()).unwrap().into_descriptor();
        store
            .put(&name("a/process"), HeldKind::Process, vec![process])
            .await
            .unwrap();
        // A set of two of which a crash left one.
        manager
            .kept
            .lock()
            .unwrap()
            .push(("tap.0.2.half".to_owned(), null()));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let said = manager.next_process("handed_over");
    let (pipe, process) = ("has a/pipe Socket 2\n", "has a/process Process 1\n");
    assert!(said.contains(&format!("{pipe}{process}")), "{said}");
    assert!(!said.contains("half"), "{said}");
    let ends = ["end Some(Signal(9))", "end Some(Unknown)"];
    assert!(ends.iter().any(|end| said.contains(end)), "{said}");
    let left: Vec<String> = manager
        .kept
        .lock()
        .unwrap()
        .iter()
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(left, ["process.0.1.a/process"]);
    // The last copies are gone with the next process and the removal.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the next");
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
    let client = Arc::new(KeeperClient::new(&path, DEADLINE));
    let mut callers = JoinSet::new();
    for number in 0..100 {
        let client = Arc::clone(&client);
        callers.spawn(async move {
            let name = name(&format!("{number}"));
            client.put(&name, HeldKind::Tap, vec![null()]).await.unwrap();
            assert_eq!(client.get(&name).await.unwrap().unwrap().descriptors.len(), 1);
        });
    }
    callers.join_all().await;
    assert_eq!(client.list().await.unwrap().len(), 100);
}
