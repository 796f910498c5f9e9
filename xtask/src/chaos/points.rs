//! The harness's end of the fault points: who reaches which, and who is held there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a daemon may take to say its line; it has written it before it waits.
const LINE_DEADLINE: Duration = Duration::from_secs(2);

/// A process that waits at a fault point. Dropping it lets the process go on, if it lives.
#[derive(Debug)]
pub(crate) struct Held {
    stream: UnixStream,
}

impl Held {
    /// Lets the process go on.
    pub(crate) fn release(mut self) {
        // It may have been killed where it waits.
        let _ = self.stream.write_all(&[0]);
    }
}

/// The point that somebody is to be held at.
#[derive(Debug)]
struct Armed {
    name: String,
    /// How often it is passed first.
    skip: u32,
}

#[derive(Debug, Default)]
struct State {
    armed: Option<Armed>,
    held: Option<Held>,
    reached: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The listening end. Everybody who reaches a point goes on at once, unless that point is armed.
#[derive(Debug)]
pub(crate) struct Points {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Points {
    /// Listens at `path`.
    pub(crate) fn listen(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fault points".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    if serving.ended.load(Ordering::Acquire) {
                        return;
                    }
                    // One that was killed while it told its name needs no answer.
                    let _ = stream.map(|stream| reached(&serving, stream));
                }
            })
            .context("starting a thread")?;
        Ok(Self {
            path: path.to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    /// Has whoever reaches `name` (`save/before`) the next time but `skip` be held there.
    pub(crate) fn arm(&self, name: &str, skip: u32) {
        let mut state = self.shared.state();
        state.held = None;
        state.armed = Some(Armed {
            name: name.to_owned(),
            skip,
        });
    }

    /// Holds nobody any more.
    pub(crate) fn disarm(&self) {
        let mut state = self.shared.state();
        state.armed = None;
        if let Some(held) = state.held.take() {
            held.release();
        }
    }

    /// Waits until somebody is held, or `ended` says that nobody will be.
    pub(crate) fn wait(&self, deadline: Duration, ended: impl Fn() -> bool) -> Option<Held> {
        let begun = Instant::now();
        let mut state = self.shared.state();
        loop {
            if let Some(held) = state.held.take() {
                return Some(held);
            }
            // What ended may have reached the point as its last act: that was looked at above.
            if begun.elapsed() > deadline || ended() {
                state.armed = None;
                return state.held.take();
            }
            let waited = self.shared.changed.wait_timeout(state, Duration::from_millis(20));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How often each point was reached.
    pub(crate) fn reached(&self) -> BTreeMap<String, u64> {
        self.shared.state().reached.clone()
    }
}

impl Drop for Points {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.disarm();
        // The thread waits for one more connection.
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Somebody has reached a point: holds it there, or lets it go on.
fn reached(shared: &Shared, stream: UnixStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LINE_DEADLINE))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let name = line.split_whitespace().next().unwrap_or_default();
    let mut state = shared.state();
    *state.reached.entry(name.to_owned()).or_default() += 1;
    let held = Held { stream };
    match &mut state.armed {
        Some(armed) if armed.name == name && armed.skip > 0 => armed.skip -= 1,
        Some(armed) if armed.name == name => {
            state.armed = None;
            state.held = Some(held);
            shared.changed.notify_all();
            return Ok(());
        }
        Some(_) | None => {}
    }
    drop(state);
    held.release();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn reach(path: &Path, name: &str) -> UnixStream {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(format!("{name} someone\n").as_bytes()).unwrap();
        stream
    }

    #[test]
    fn only_the_armed_point_holds_and_only_once() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("faults.sock");
        let points = Points::listen(&path).unwrap();
        let mut byte = [0];
        reach(&path, "save/before").read_exact(&mut byte).unwrap();
        points.arm("save/before", 1);
        reach(&path, "save/after").read_exact(&mut byte).unwrap();
        reach(&path, "save/before").read_exact(&mut byte).unwrap();
        let mut waiting = reach(&path, "save/before");
        let held = points.wait(Duration::from_secs(5), || false).unwrap();
        waiting.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!(waiting.read_exact(&mut byte).is_err());
        held.release();
        waiting.set_read_timeout(None).unwrap();
        waiting.read_exact(&mut byte).unwrap();
        assert!(points.wait(Duration::from_secs(5), || true).is_none());
        assert_eq!(points.reached()["save/before"], 3);
    }
}
