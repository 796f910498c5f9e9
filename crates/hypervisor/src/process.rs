//! The identity of a monitor's process, and watching it end.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use dormouse_model::plant::{Plant, planted};
use dormouse_sys::clock;
use dormouse_sys::pidfd::{Exit, PidFd};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;

use crate::error::DriverError;
use crate::port::Deadline;

/// Names one process for ever: pids are reused, start times within one boot are not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// The pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The kernel's name of that boot.
    pub boot_id: String,
}

/// What is recorded of a machine so that a later daemon can adopt it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessRecord {
    /// The process.
    pub identity: ProcessIdentity,
    /// Where its control socket is bound.
    pub control: PathBuf,
}

/// Why a recorded process is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gone {
    /// No process has its pid, or it has ended.
    Ended,
    /// Another process has its pid now.
    PidReused,
    /// The host has booted since.
    Rebooted,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended => "the process has ended",
            Self::PidReused => "another process has its pid",
            Self::Rebooted => "the host has rebooted",
        })
    }
}

/// Decides whether the process that was found under a recorded pid is the recorded one. Pure.
///
/// # Errors
/// Why it is not.
pub fn prove(recorded: &ProcessIdentity, found: &ProcessIdentity) -> Result<(), Gone> {
    if planted(Plant::AdoptByPidAlone) && recorded.pid == found.pid {
        return Ok(());
    }
    if recorded.boot_id != found.boot_id {
        return Err(Gone::Rebooted);
    }
    if (recorded.pid, recorded.start_ticks) != (found.pid, found.start_ticks) {
        return Err(Gone::PidReused);
    }
    Ok(())
}

/// How a machine ended. Closed, because each is a label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestPoweredOff,
    /// The guest rebooted, which ends the machine; a launch makes the next.
    GuestRebooted,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The monitor was asked to end.
    Asked,
    /// A signal ended the process: 9 is ours or the kernel's for want of memory, 7 a full file system
    /// under RAM.
    Signal(i32),
    /// The process ended itself with this code.
    Code(i32),
    /// It is gone and nobody can say how.
    Unknown,
}

impl ExitReason {
    /// The label on metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GuestPoweredOff => "guest_powered_off",
            Self::GuestRebooted => "guest_rebooted",
            Self::GuestPanicked => "guest_panicked",
            Self::Asked => "asked",
            Self::Signal(_) => "signal",
            Self::Code(_) => "code",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestPoweredOff => f.write_str("the guest powered off"),
            Self::GuestRebooted => f.write_str("the guest rebooted"),
            Self::GuestPanicked => f.write_str("the guest panicked"),
            Self::Asked => f.write_str("it was asked to"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Unknown => f.write_str("nobody knows how"),
        }
    }
}

impl From<Exit> for ExitReason {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self::Code(code),
            Exit::Signal(number) => Self::Signal(number),
            Exit::Unknown => Self::Unknown,
        }
    }
}

/// A monitor's process, held by descriptor. Dropping it lets a living process be.
#[derive(Debug)]
pub(crate) struct Watched {
    identity: ProcessIdentity,
    pidfd: AsyncFd<PidFd>,
    exit: OnceLock<Exit>,
}

/// Watches the descriptor. The newer constructor is unsafe because a foreign type could close or swap what
/// it registered; a [`PidFd`] owns one descriptor from birth to drop.
#[allow(deprecated, reason = "the successor needs unsafe, which this crate forbids")]
fn register(pidfd: PidFd) -> io::Result<AsyncFd<PidFd>> {
    AsyncFd::new(pidfd)
}

/// What [`Watched::find`] found.
pub(crate) enum Found {
    Live(Watched),
    Gone(Gone),
}

impl Watched {
    /// Watches a process of ours that was just started and cannot have been reaped.
    pub(crate) fn started(pid: u32, pidfd: PidFd) -> io::Result<Self> {
        let identity = ProcessIdentity {
            pid,
            start_ticks: clock::process_start_ticks(pid)?,
            boot_id: clock::boot_id()?,
        };
        Ok(Self {
            identity,
            pidfd: register(pidfd)?,
            exit: OnceLock::new(),
        })
    }

    /// Looks for the recorded process. The descriptor is opened before the start time is read: what is
    /// proven is then what is held.
    pub(crate) fn find(recorded: &ProcessIdentity) -> io::Result<Found> {
        let boot_id = clock::boot_id()?;
        if boot_id != recorded.boot_id {
            return Ok(Found::Gone(Gone::Rebooted));
        }
        let pidfd = match PidFd::open(recorded.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {
                return Ok(Found::Gone(Gone::Ended));
            }
            Err(error) => return Err(error),
        };
        let start_ticks = match clock::process_start_ticks(recorded.pid) {
            Ok(ticks) => ticks,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Gone(Gone::Ended)),
            Err(error) => return Err(error),
        };
        let found = ProcessIdentity {
            pid: recorded.pid,
            start_ticks,
            boot_id,
        };
        if let Err(gone) = prove(recorded, &found) {
            return Ok(Found::Gone(gone));
        }
        // Ended and not yet reaped still has a pid and a start time.
        if pidfd.exit()?.is_some() {
            return Ok(Found::Gone(Gone::Ended));
        }
        Ok(Found::Live(Self {
            identity: found,
            pidfd: register(pidfd)?,
            exit: OnceLock::new(),
        }))
    }

    pub(crate) const fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// How it ended, or `None` while it lives.
    pub(crate) fn exit(&self) -> Option<Exit> {
        if let Some(known) = self.exit.get() {
            return Some(*known);
        }
        // A descriptor that cannot be asked is no proof of an end.
        let exit = self.pidfd.get_ref().exit().ok().flatten()?;
        // Two may have asked at once and the second was told less: the first answer stays.
        Some(*self.exit.get_or_init(|| exit))
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Exit {
        loop {
            if let Some(exit) = self.exit() {
                return exit;
            }
            match self.pidfd.readable().await {
                // A reader that saw the descriptor ready too early asks again.
                Ok(mut ready) if self.exit().is_none() => ready.clear_ready(),
                Ok(_) => {}
                // The runtime is being shut down.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn kill(&self, deadline: Deadline) -> Result<Exit, DriverError> {
        if let Some(exit) = self.exit() {
            return Ok(exit);
        }
        match self.pidfd.get_ref().signal(Signal::SIGKILL) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(source) => {
                return Err(DriverError::Io {
                    doing: "kill the monitor",
                    source,
                });
            }
        }
        tokio::time::timeout_at(deadline, self.ended())
            .await
            .map_err(|_| DriverError::Deadline {
                doing: "kill the monitor",
            })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A child that has ended and that nobody asked about would stay in the process table.
        let _ = self.exit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(pid: u32, start_ticks: u64, boot_id: &str) -> ProcessIdentity {
        ProcessIdentity {
            pid,
            start_ticks,
            boot_id: boot_id.into(),
        }
    }

    #[test]
    fn only_the_same_process_is_ours() {
        let ours = identity(7, 100, "a");
        for (found, want) in [
            (identity(7, 100, "a"), Ok(())),
            (identity(7, 101, "a"), Err(Gone::PidReused)),
            (identity(8, 100, "a"), Err(Gone::PidReused)),
            (identity(7, 100, "b"), Err(Gone::Rebooted)),
        ] {
            assert_eq!(prove(&ours, &found), want, "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_process_is_found_killed_and_gone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let watched = Watched::started(child.id(), PidFd::open(child.id()).unwrap()).unwrap();
        let mut record = watched.identity().clone();
        assert!(matches!(Watched::find(&record).unwrap(), Found::Live(_)));
        record.start_ticks += 1;
        assert!(matches!(
            Watched::find(&record).unwrap(),
            Found::Gone(Gone::PidReused)
        ));
        record.boot_id = "another".into();
        assert!(matches!(
            Watched::find(&record).unwrap(),
            Found::Gone(Gone::Rebooted)
        ));
        let deadline = Deadline::now() + std::time::Duration::from_secs(10);
        let (killed, seen) = tokio::join!(watched.kill(deadline), watched.ended());
        assert_eq!((killed.unwrap(), seen), (Exit::Signal(9), Exit::Signal(9)));
        assert_eq!(watched.kill(deadline).await.unwrap(), Exit::Signal(9), "again");
        assert!(matches!(
            Watched::find(watched.identity()).unwrap(),
            Found::Gone(Gone::Ended)
        ));
        let _ = child.wait();
    }
}
