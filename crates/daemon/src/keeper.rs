//! Where keepers of descriptors come from: one that runs, or one that is started here. A keeper outlives the
//! daemon, so it gets a session of its own and nothing that would end with us.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_keeper::{Holder as _, KeeperClient, KeeperError, Reached, Source};
use dormouse_sys::pidfd::PidFd;
use nix::sys::signal::Signal;
use tonic::async_trait;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a keeper that was started is asked whether it listens, and after which pause.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The keeper's name as the kernel knows it (`/proc/PID/comm`, at most 15 bytes).
const COMM: &str = "dormouse-keeper";

/// The keeper of a run directory.
#[derive(Debug)]
pub struct KeeperSource {
    run: PathBuf,
    socket: PathBuf,
    /// Keepers started here that were not seen to end: reaped when the next is looked for, where the watch
    /// over the one in use did not.
    started: Mutex<Vec<Child>>,
    /// The one in use.
    process: Mutex<Option<PidFd>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holds one value that is replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KeeperSource {
    /// The keeper whose socket is `keeper.sock` in `run`.
    #[must_use]
    pub fn new(run: &Path) -> Self {
        Self {
            run: run.to_owned(),
            socket: run.join("keeper.sock"),
            started: Mutex::default(),
            process: Mutex::default(),
        }
    }

    /// A client that was answered, and the keeper's process.
    async fn ask(&self) -> Result<Reached, KeeperError> {
        let client = KeeperClient::new(&self.socket, PATIENCE);
        client.list().await?;
        let process = match client.process().await.map(PidFd::open) {
            Some(Ok(process)) => {
                // It is still there on the same connection: the number has not gone to another process.
                client.list().await?;
                Some(process)
            }
            Some(Err(_)) | None => None,
        };
        *locked(&self.process) = process.as_ref().and_then(|process| process.try_clone().ok());
        Ok(Reached {
            holder: Arc::new(client),
            process,
        })
    }

    /// Ends a keeper that does not answer. What it keeps is in our hands too, or in a VMM's.
    async fn end(&self) {
        let known = locked(&self.process).take();
        let process = match known {
            Some(process) => Some(process),
            None => self.listener().await,
        };
        let Some(process) = process else {
            tracing::warn!(socket = %self.socket.display(), "a keeper that does not answer is not found");
            return;
        };
        match process.signal(Signal::SIGKILL) {
            Ok(()) => tracing::warn!("a keeper that did not answer was ended"),
            Err(error) => tracing::debug!(%error, "ending a keeper"),
        }
    }

    /// Who listens on the socket, when that is a keeper. With a socket of a service manager it is not, and
    /// the manager has a watchdog of its own.
    async fn listener(&self) -> Option<PidFd> {
        let connect = tokio::net::UnixStream::connect(&self.socket);
        let stream = tokio::time::timeout(PATIENCE, connect).await.ok()?.ok()?;
        let pid = stream.peer_cred().ok()?.pid()?;
        let process = PidFd::open(u32::try_from(pid).ok()?).ok()?;
        // Read after opening: what has this name now is what was opened.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim_end() == COMM).then_some(process)
    }

    /// Starts the keeper that lies beside the daemon.
    fn start(&self) -> io::Result<()> {
        let program = std::env::current_exe()?.with_file_name("dormouse-keeper");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.run.join("keeper.log"))?;
        // It makes a session of its own: a terminal's signals, and a supervisor's to our group, pass it by.
        let child = Command::new(&program)
            .arg(&self.socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // The directory that we were started in may be unmounted one day.
            .current_dir("/")
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
        tracing::info!(pid = child.id(), "keeper started");
        locked(&self.started).push(child);
        Ok(())
    }

    /// Reaps the keepers that have ended.
    fn reap(&self) {
        // An error says that the watch over its process has reaped it.
        locked(&self.started).retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    fn one_starts(&self) -> bool {
        self.reap();
        !locked(&self.started).is_empty()
    }
}

#[async_trait]
impl Source for KeeperSource {
    async fn reach(&self, replace: bool) -> Result<Reached, KeeperError> {
        self.reap();
        if replace {
            self.end().await;
        }
        let absent = match self.ask().await {
            Ok(reached) => return Ok(reached),
            Err(error @ (KeeperError::Absent { .. } | KeeperError::Broken { .. })) => error,
            Err(KeeperError::Slow { .. }) => {
                self.end().await;
                return self.begin().await;
            }
            Err(error) => return Err(error),
        };
        tracing::debug!(%absent, "starting a keeper");
        self.begin().await
    }
}

impl KeeperSource {
    /// Starts one and waits until it answers.
    async fn begin(&self) -> Result<Reached, KeeperError> {
        self.start().map_err(|source| KeeperError::Absent {
            path: self.socket.clone(),
            source,
        })?;
        for _ in 1..TRIES {
            match self.ask().await {
                Ok(reached) => return Ok(reached),
                Err(error) if !self.one_starts() => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        self.ask().await
    }
}
