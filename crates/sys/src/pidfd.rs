//! Processes by descriptor: a pidfd names one process for ever, a pid names whoever has it now.
//!
//! `pidfd_open(2)`, `pidfd_send_signal(2)`, `waitid(2)` with `P_PIDFD`, and for processes that are not
//! our children the `PIDFD_GET_INFO` request of include/uapi/linux/pidfd.h (exit status since Linux 6.15).

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called exit with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It is gone; its parent was told how and this kernel does not tell us.
    Unknown,
}

/// A process, held by descriptor. Readable (`poll`, epoll) once the process has ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has `pid` now. Whether that is the one meant is for the caller to prove
    /// (compare its start time after opening).
    ///
    /// # Errors
    /// `ESRCH` when there is none, `EINVAL` when `pid` is a thread or out of range.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let raw = RawFd::try_from(got).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us and nobody else knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw) }))
    }

    /// Takes over a descriptor that is known to be a pidfd: made by [`crate::spawn`] or received from
    /// a process that holds it for us. Any other descriptor only makes the calls fail.
    #[must_use]
    pub const fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The descriptor, to be handed on.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// A second descriptor of the same process.
    ///
    /// # Errors
    /// When the table of descriptors is full.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends `signal`. Whether it arrives in time for anything is shown by the exit alone.
    ///
    /// # Errors
    /// `ESRCH` when the process has been reaped, `EPERM` without the right.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: the pidfd is open, and the kernel accepts a null siginfo and fills in its own.
        let got = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                no_info,
                0,
            )
        };
        if got == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// A copy of the process's descriptor `number` (`pidfd_getfd(2)`): the same open file, closed on exec.
    ///
    /// # Errors
    /// `EBADF` when it has none of that number, `EPERM` without the right to trace it, `ESRCH` when it has
    /// ended.
    pub fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let raw = RawFd::try_from(got).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us and nobody else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    /// How the process ended, or `None` while it lives. Reaps it when it is our child. The status is
    /// given once on kernels before 6.15 and to parents only: keep the first answer.
    ///
    /// # Errors
    /// When the descriptor is no pidfd.
    pub fn exit(&self) -> io::Result<Option<Exit>> {
        let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::ZERO)? == 0 {
            return Ok(None);
        }
        match waitid(
            Id::PIDFd(self.0.as_fd()),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
        ) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Exit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Exit::Signal(signal as i32))),
            // Its leader ended and another thread has not yet.
            Ok(
                WaitStatus::StillAlive
                | WaitStatus::Stopped(..)
                | WaitStatus::Continued(_)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_),
            ) => Ok(None),
            Err(nix::errno::Errno::ECHILD) => Ok(Some(self.exit_of_stranger())),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The exit of a process that somebody else reaps.
    fn exit_of_stranger(&self) -> Exit {
        let mut info = PidFdInfo {
            mask: PIDFD_INFO_EXIT,
            ..PidFdInfo::default()
        };
        // SAFETY: the request carries the size of this struct and the kernel writes no more than that.
        let got = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if got != 0 || info.mask & PIDFD_INFO_EXIT == 0 {
            return Exit::Unknown;
        }
        match (libc::WIFEXITED(info.exit_code), libc::WIFSIGNALED(info.exit_code)) {
            (true, _) => Exit::Code(libc::WEXITSTATUS(info.exit_code)),
            (_, true) => Exit::Signal(libc::WTERMSIG(info.exit_code)),
            (false, false) => Exit::Unknown,
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `PIDFD_INFO_EXIT`.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(0xFF, 11, struct pidfd_info)` for the first published size, 64 bytes.
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

/// `struct pidfd_info` as first published.
#[repr(C)]
#[derive(Default)]
struct PidFdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    credentials: [u32; 8],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidFdInfo>() == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn wait_end(pidfd: &PidFd) -> Exit {
        let mut wanted = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut wanted, 10_000_u16).unwrap(),
            1,
            "the process ends within ten seconds"
        );
        pidfd.exit().unwrap().unwrap()
    }

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaped through the pidfd")]
    fn the_end_of_a_child_is_told() {
        for (script, want) in [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal(9))] {
            let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pidfd = PidFd::open(child.id()).unwrap();
            assert_eq!(wait_end(&pidfd), want, "{script}");
        }
    }

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaped through the pidfd")]
    fn a_living_process_has_no_exit_and_takes_signals() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert_eq!(pidfd.exit().unwrap(), None);
        pidfd.signal(Signal::SIGTERM).unwrap();
        assert_eq!(wait_end(&pidfd), Exit::Signal(15));
        assert!(pidfd.signal(Signal::SIGTERM).is_err(), "reaped");
    }

    #[test]
    fn a_stranger_is_seen_to_end() {
        // The shell's child is not ours: its exit is known on new kernels, unknown on others.
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait $!; read done"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(output), &mut line).unwrap();
        let pidfd = PidFd::open(line.trim().parse().unwrap()).unwrap();
        assert_eq!(pidfd.exit().unwrap(), None);
        pidfd.signal(Signal::SIGKILL).unwrap();
        let got = wait_end(&pidfd);
        assert!(matches!(got, Exit::Signal(9) | Exit::Unknown), "{got:?}");
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }

    #[test]
    #[allow(clippy::zombie_processes, reason = "reaped through the pidfd")]
    fn a_descriptor_of_another_process_is_the_same_file() {
        let (mut reader, writer) = io::pipe().unwrap();
        let child = Command::new("sleep").arg("60").stdout(writer).spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        let copy = match pidfd.descriptor(1) {
            Ok(copy) => copy,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                println!("skipped: a_descriptor_of_another_process_is_the_same_file: may not trace");
                pidfd.signal(Signal::SIGKILL).unwrap();
                wait_end(&pidfd);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(
            pidfd.descriptor(999).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        pidfd.signal(Signal::SIGKILL).unwrap();
        wait_end(&pidfd);
        // The child's end is closed; ours keeps the pipe open.
        io::Write::write_all(&mut std::fs::File::from(copy), b"x").unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn no_such_process() {
        assert_eq!(
            PidFd::open(u32::MAX).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
        assert!(PidFd::open(4_000_000).is_err());
    }
}
