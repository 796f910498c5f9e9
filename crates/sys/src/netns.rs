//! Network namespaces: naming one by a file, making one that outlives its maker, and running code
//! inside one without moving the calling thread.
//!
//! A thread enters a namespace for good: the threads here are fresh and end (or stay inside), so no
//! thread of a runtime is ever left in the wrong namespace. Sockets and `/dev/net/tun` descriptors
//! belong to the namespace of the thread that opened them, for as long as they live.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The namespace of the calling thread, as the kernel shows it (`proc_pid_ns(5)`).
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A network namespace, held by a descriptor: it lives at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::open(Path::new(OWN_NAMESPACE))
    }

    /// The namespace that `path` names: a bind mount as made by [`Namespace::create_at`] or by
    /// `ip netns add`, or a file `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When the path cannot be opened. A path that is no namespace is found out on entering it.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let file = File::open(path).map_err(|source| NamespaceError::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { file })
    }

    /// Makes a new, empty namespace and binds it to a new file at `path`, so that it persists until
    /// [`Namespace::remove`], whatever becomes of this process. The directory must exist. The
    /// loopback device of a new namespace is down.
    ///
    /// # Errors
    /// When the file exists, or without the right to make namespaces and mounts; nothing is left.
    pub fn create_at(path: &Path) -> Result<Self, NamespaceError> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| NamespaceError::CreateFile {
                path: path.to_owned(),
                source,
            })?;
        let made = on_fresh_thread("netns-create", || bind_new_namespace(path)).and_then(|made| made);
        if made.is_err() {
            // The mount is the last step, so that what failed left nothing but this file. An error
            // here would hide the first one.
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Takes away the name that [`Namespace::create_at`] gave. The namespace itself goes when the
    /// last process, descriptor and socket in it have gone. A name that is gone already is fine.
    ///
    /// # Errors
    /// When the mount or the file cannot be removed.
    pub fn remove(path: &Path) -> Result<(), NamespaceError> {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: the file is there and nothing is mounted on it.
            Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
            Err(source) => {
                return Err(NamespaceError::Unmount {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NamespaceError::RemoveFile {
                path: path.to_owned(),
                source,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Runs `work` on a fresh thread inside this namespace, waits for it and returns its result.
    /// The calling thread stays where it is and is blocked meanwhile.
    ///
    /// # Errors
    /// When no thread could be started, the namespace could not be entered, or `work` panicked.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        on_fresh_thread("netns-within", || self.enter().map(|()| work())).and_then(|result| result)
    }

    /// Starts a long-lived thread inside this namespace. `work` does not run unless the namespace
    /// was entered; the call returns once it was.
    ///
    /// # Errors
    /// When no thread could be started or the namespace could not be entered.
    pub fn spawn(
        self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>, NamespaceError> {
        let (entered, wait) = std::sync::mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let result = self.enter();
                let inside = result.is_ok();
                // The receiver waits below until this very message.
                let _ = entered.send(result);
                if inside {
                    work();
                }
            })
            .map_err(NamespaceError::Thread)?;
        wait.recv()
            .map_err(|_| NamespaceError::Panicked)
            .and_then(|result| result)?;
        Ok(thread)
    }

    /// Moves the calling thread into the namespace for good.
    fn enter(&self) -> Result<(), NamespaceError> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(NamespaceError::Enter)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the calling thread into a new namespace and binds that to `path`.
fn bind_new_namespace(path: &Path) -> Result<Namespace, NamespaceError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(NamespaceError::Unshare)?;
    let namespace = Namespace::current()?;
    mount(
        Some(OWN_NAMESPACE),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|source| NamespaceError::Mount {
        path: path.to_owned(),
        source,
    })?;
    Ok(namespace)
}

/// Runs `work` on a thread of its own and waits for its result.
fn on_fresh_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, work)
            .map_err(NamespaceError::Thread)?;
        thread.join().map_err(|_| NamespaceError::Panicked)
    })
}

/// What went wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The path could not be opened.
    #[error("opening the network namespace {}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file to bind the namespace to could not be made.
    #[error("making the file {} for a network namespace", .path.display())]
    CreateFile {
        /// Which.
        path: PathBuf,
        /// Why; `AlreadyExists` when the name is taken.
        source: io::Error,
    },
    /// The file could not be removed.
    #[error("removing the file {} of a network namespace", .path.display())]
    RemoveFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace could not be bound to its file.
    #[error("binding a new network namespace to {}", .path.display())]
    Mount {
        /// Which.
        path: PathBuf,
        /// Why.
        source: nix::Error,
    },
    /// The binding could not be undone.
    #[error("unmounting the network namespace {}", .path.display())]
    Unmount {
        /// Which.
        path: PathBuf,
        /// Why.
        source: nix::Error,
    },
    /// No new namespace; `EPERM` without `CAP_SYS_ADMIN`.
    #[error("making a new network namespace")]
    Unshare(#[source] nix::Error),
    /// The namespace could not be entered; `EINVAL` when the file is no network namespace.
    #[error("entering a network namespace")]
    Enter(#[source] nix::Error),
    /// The kernel gave no thread.
    #[error("starting a thread for a network namespace")]
    Thread(#[source] io::Error),
    /// The closure panicked; the panic's text went to standard error.
    #[error("the work inside a network namespace panicked")]
    Panicked,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn inode() -> u64 {
        std::fs::metadata(OWN_NAMESPACE).unwrap().ino()
    }

    /// A new namespace under a name of this test's own, or `None` with the reason printed.
    fn need_namespace(test: &str) -> Option<(PathBuf, Namespace)> {
        let path = std::env::temp_dir().join(format!("dormouse-netns-{test}-{}", std::process::id()));
        match Namespace::create_at(&path) {
            Ok(namespace) => Some((path, namespace)),
            Err(error) => {
                println!("skipped: {test}: {error}");
                None
            }
        }
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let Some((path, namespace)) = need_namespace("within") else {
            return;
        };
        let outside = inode();
        let inside = namespace.within(inode).unwrap();
        assert_ne!(inside, outside);
        assert_eq!(inode(), outside);
        assert_eq!(Namespace::open(&path).unwrap().within(inode).unwrap(), inside);
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let thread = namespace
            .spawn("inside", move || send.send(inode()).unwrap())
            .unwrap();
        assert_eq!(receive.recv().unwrap(), inside);
        thread.join().unwrap();
        Namespace::remove(&path).unwrap();
        assert!(!path.exists());
        Namespace::remove(&path).unwrap();
    }

    #[test]
    fn a_taken_name_is_refused_and_a_panic_is_an_error() {
        let Some((path, namespace)) = need_namespace("taken") else {
            return;
        };
        assert!(matches!(
            Namespace::create_at(&path),
            Err(NamespaceError::CreateFile { .. })
        ));
        let panicked = namespace.within(|| assert!(inode() == 0, "on purpose"));
        assert!(matches!(panicked, Err(NamespaceError::Panicked)));
        Namespace::remove(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_namespace_cannot_be_entered() {
        let file = std::env::temp_dir().join(format!("dormouse-netns-plain-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        let plain = Namespace::open(&file).unwrap();
        assert!(matches!(plain.within(|| ()), Err(NamespaceError::Enter(_))));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(Namespace::open(&file), Err(NamespaceError::Open { .. })));
    }
}
