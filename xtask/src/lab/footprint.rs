//! Everything that a lab leaves on the machine, and how it goes away: known from three names only, so
//! that it can be removed at any moment, also by the thread that hears Ctrl-C.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dormouse_client::{Client, HostAddress, v1};
use dormouse_sys::netns::Namespace;
use dormouse_sys::pidfd::PidFd;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::{tick, wait_exit};

/// How long the daemon may take to end when asked.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How long removing all instances through the API may take.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// Set once the interrupting thread removes everything and ends the process.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Labs that live, for Ctrl-C.
static LIVING: Mutex<Vec<Arc<Footprint>>> = Mutex::new(Vec::new());

/// What a lab makes, by name.
#[derive(Debug)]
pub(crate) struct Footprint {
    /// On disk: images, disks, records, logs.
    pub data: PathBuf,
    /// Sockets, mounts, names of network namespaces.
    pub run: PathBuf,
    /// The user ids of its VMMs; nobody else on the machine has them.
    pub uids: Range<u32>,
    /// The daemon, while there is one.
    pub daemon: Mutex<Option<Child>>,
    /// Settings of the host that were changed, and what they were.
    pub settings: Mutex<Vec<(PathBuf, String)>>,
}

/// The value, also when a thread panicked with it: removing must go on.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Footprint {
    /// Names everything after this process, and has Ctrl-C remove it.
    pub(crate) fn claim(uids: u32) -> Result<Arc<Self>> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("dormouse-lab-{}-{number}", std::process::id());
        // Above the default range of the daemon, chosen by the process id.
        let first = if uids <= 64 {
            0x1000_0000 + (std::process::id() % 100_000) * 1024 + (number % 16) * 64
        } else {
            0x2000_0000 + (std::process::id() % 8192) * 0x1_0000
        };
        let footprint = Arc::new(Self {
            data: Path::new("/var/tmp").join(&name),
            run: Path::new("/run").join(&name),
            uids: first..first + uids,
            daemon: Mutex::new(None),
            settings: Mutex::new(Vec::new()),
        });
        for directory in [&footprint.data, &footprint.run] {
            fs::create_dir(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        locked(&LIVING).push(Arc::clone(&footprint));
        Ok(footprint)
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("dormoused.sock")
    }

    /// The file that names a network namespace of ours.
    pub(crate) fn namespace(&self, name: &str) -> PathBuf {
        self.run.join(format!("dm-{name}"))
    }

    /// Removes everything, as far as it is there; says what could not be removed.
    pub(crate) fn remove(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut note = |what: &str, outcome: Result<()>| {
            if let Err(error) = outcome {
                problems.push(format!("{what}: {error:#}"));
            }
        };
        for (path, value) in locked(&self.settings).drain(..) {
            let what = format!("setting {} back to {value}", path.display());
            note(&what, fs::write(&path, &value).map_err(Into::into));
        }
        note("removing the instances", self.delete_instances());
        note("stopping the daemon", self.stop_daemon());
        note("ending what runs still", self.end_processes());
        note("removing control groups", self.remove_groups());
        for name in ["host", "client"] {
            note(
                "removing a namespace",
                Namespace::remove(&self.namespace(name)).map_err(Into::into),
            );
        }
        note("unmounting", self.unmount());
        for directory in [&self.run, &self.data] {
            let gone = match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                Ok(()) | Err(_) => Ok(()),
            };
            note(&format!("removing {}", directory.display()), gone);
        }
        locked(&LIVING).retain(|other| !std::ptr::eq(Arc::as_ptr(other), self));
        problems
    }

    /// What is left on the machine of this lab, a line each; empty after a good removal.
    pub(crate) fn census(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = self
            .mounts()?
            .iter()
            .map(|path| format!("mount {}", path.display()))
            .collect();
        left.extend(
            self.processes()
                .into_iter()
                .map(|(pid, what)| format!("process {pid}: {what}")),
        );
        left.extend(
            self.groups()?
                .iter()
                .map(|path| format!("control group {}", path.display())),
        );
        for directory in [&self.run, &self.data] {
            if directory.exists() {
                left.push(format!("directory {}", directory.display()));
            }
        }
        Ok(left)
    }

    /// Through the API, when the daemon is there to do it.
    fn delete_instances(&self) -> Result<()> {
        if !self.daemon_lives() || !self.socket().exists() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("a runtime")?;
        let work = async {
            let client = Client::connect(&HostAddress::Unix(self.socket())).await?;
            let list = client
                .instances()
                .list_instances(v1::ListInstancesRequest::default())
                .await;
            for instance in list
                .map_err(dormouse_client::ClientError::from)?
                .into_inner()
                .instances
            {
                let request = v1::DeleteInstanceRequest {
                    instance: instance.id,
                    force: true,
                    ..Default::default()
                };
                client
                    .instances()
                    .delete_instance(request)
                    .await
                    .map_err(dormouse_client::ClientError::from)?;
            }
            anyhow::Ok(())
        };
        runtime.block_on(async { tokio::time::timeout(DELETE_DEADLINE, work).await })?
    }

    fn daemon_lives(&self) -> bool {
        let mut daemon = locked(&self.daemon);
        daemon
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGTERM, and SIGKILL to a daemon that does not listen.
    pub(crate) fn stop_daemon(&self) -> Result<()> {
        let Some(mut child) = locked(&self.daemon).take() else {
            return Ok(());
        };
        if let Some(status) = child.try_wait().context("looking at the daemon")? {
            bail!("the daemon had ended by itself with {status}");
        }
        let daemon = PidFd::open(child.id()).context("opening the daemon")?;
        daemon
            .signal(Signal::SIGTERM)
            .context("telling the daemon to end")?;
        let ended = wait_exit(&daemon, STOP_DEADLINE);
        if ended.is_err() {
            child.kill().context("killing the daemon")?;
        }
        let status = child.wait().context("waiting for the daemon")?;
        match ended {
            Ok(_) if status.success() => Ok(()),
            Ok(_) => bail!("the daemon ended with {status}"),
            Err(_) => bail!("the daemon did not end within {STOP_DEADLINE:?} and was killed"),
        }
    }

    /// Kills the daemon as a crash would, leaving everything else.
    pub(crate) fn kill_daemon(&self) -> Result<()> {
        let Some(mut child) = locked(&self.daemon).take() else {
            bail!("there is no daemon to kill")
        };
        child.kill().context("killing the daemon")?;
        child.wait().context("waiting for the daemon").map(drop)
    }

    /// Processes that are this lab's: VMMs by their user id, others by a path of ours in their
    /// arguments or environment.
    fn processes(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        let names = [
            self.run.to_string_lossy().into_owned(),
            self.data.to_string_lossy().into_owned(),
        ];
        let own = std::process::id();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let Ok(owner) = entry.metadata().map(|metadata| metadata.uid()) else {
                continue;
            };
            let read = |file: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let arguments = read("cmdline");
            let environment = read("environ");
            let named = names
                .iter()
                .any(|name| arguments.contains(name) || environment.contains(name));
            let zombie = arguments.is_empty();
            if pid != own && !zombie && (self.uids.contains(&owner) || named) {
                found.push((pid, arguments.chars().take(100).collect()));
            }
        }
        found
    }

    fn end_processes(&self) -> Result<()> {
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            let alive = self.processes();
            if alive.is_empty() {
                return Ok(());
            }
            for (pid, _) in &alive {
                if let Ok(process) = PidFd::open(*pid) {
                    // It may have ended meanwhile.
                    let _ = process.signal(Signal::SIGKILL);
                    let _ = wait_exit(&process, Duration::from_secs(2));
                }
            }
            if Instant::now() > deadline {
                bail!("these do not end: {alive:?}");
            }
        }
    }

    /// Mounts in our directories, and namespaces there, the deepest first.
    fn mounts(&self) -> Result<Vec<PathBuf>> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
        let mut found: Vec<PathBuf> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(|path| PathBuf::from(path.replace("\\040", " ")))
            .filter(|path| path.starts_with(&self.run) || path.starts_with(&self.data))
            .collect();
        found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        Ok(found)
    }

    fn unmount(&self) -> Result<()> {
        for path in self.mounts()? {
            match umount2(&path, MntFlags::MNT_DETACH) {
                // One above it took it along, or the daemon did meanwhile.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(errno) => return Err(errno).with_context(|| format!("unmounting {}", path.display())),
            }
        }
        Ok(())
    }

    /// The control groups of the lab's daemon, the deepest first: its own bears the FNV-1a hash of the data
    /// directory's path, in whichever hierarchy it chose.
    pub(crate) fn groups(&self) -> Result<Vec<PathBuf>> {
        let bytes = self.data.as_os_str().as_encoded_bytes().iter();
        let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let name = format!("dormouse-{hash:08x}");
        let text = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
        let mut found: Vec<PathBuf> = text
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .filter_map(|line| line.split(' ').nth(4))
            .map(|at| Path::new(at).join(&name))
            .filter(|path| path.is_dir())
            .collect();
        let mut looked = 0;
        while let Some(directory) = found.get(looked).cloned() {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(folders.map(|entry| entry.path()));
            looked += 1;
        }
        found.reverse();
        Ok(found)
    }

    fn remove_groups(&self) -> Result<()> {
        for group in self.groups()? {
            let deadline = Instant::now() + Duration::from_secs(2);
            // Busy until the kernel has reaped the last process.
            while let Err(error) = fs::remove_dir(&group) {
                if error.kind() == std::io::ErrorKind::NotFound {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(error).with_context(|| format!("removing {}", group.display()));
                }
                tick(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

/// Blocks for good once the process is being ended: what the main thread's work fails with then is the
/// removal's doing, and returning would end the process before it is complete.
pub(crate) fn leave_to_interrupt() {
    while INTERRUPTED.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// Has Ctrl-C and SIGTERM remove every lab before this process ends.
#[allow(
    clippy::exit,
    reason = "the main thread may be blocked anywhere; nothing of it must go on"
)]
pub(crate) fn watch_interrupts() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt()).context("listening for Ctrl-C")?,
            signal(SignalKind::terminate()).context("listening for SIGTERM")?,
        )
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        INTERRUPTED.store(true, Ordering::Release);
        let living = locked(&LIVING).clone();
        if !living.is_empty() {
            eprintln!("xtask: interrupted; removing what was made");
        }
        for footprint in living {
            for problem in footprint.remove() {
                eprintln!("xtask: {problem}");
            }
        }
        std::process::exit(130);
    };
    std::thread::Builder::new()
        .name("interrupts".to_owned())
        .spawn(wait)
        .context("starting a thread")
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_counted_and_goes() {
        if !crate::setup::is_root() {
            println!("skipped: what_was_made_is_counted_and_goes: not root");
            return;
        }
        let footprint = Footprint::claim(64).unwrap();
        drop(Namespace::create_at(&footprint.namespace("host")).unwrap());
        let left = footprint.census().unwrap();
        assert!(left.iter().any(|line| line.starts_with("mount ")), "{left:?}");
        assert!(left.iter().any(|line| line.starts_with("directory ")), "{left:?}");
        assert_eq!(footprint.remove(), Vec::<String>::new());
        assert_eq!(footprint.census().unwrap(), Vec::<String>::new());
        assert_eq!(footprint.remove(), Vec::<String>::new());
    }
}
