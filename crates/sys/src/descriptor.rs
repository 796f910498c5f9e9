//! Passing descriptors: over Unix sockets (`SCM_RIGHTS`, unix(7)) and from the service manager
//! (`sd_listen_fds(3)`).

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// Most descriptors that go with one message. The kernel takes 253 (`SCM_MAX_FD`); nobody here needs
/// more than a few.
pub const MAX_DESCRIPTORS: usize = 16;

/// The number of the first descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
const LISTEN_FIRST: RawFd = 3;

/// Sends `bytes` with copies of `descriptors` in one message; the caller keeps its own. Returns how
/// many bytes were taken: all of them on a socket that keeps messages apart.
///
/// # Errors
/// `InvalidInput` for no bytes (a stream would lose the descriptors) or too many descriptors;
/// `WouldBlock` when the socket is non-blocking and full; else what `sendmsg(2)` says.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(sent)
}

/// A message that came with descriptors.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes at the beginning of the buffer that the message filled; 0 when the peer has closed.
    pub length: usize,
    /// What came with them, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one message into `buffer`.
///
/// # Errors
/// `InvalidData` when the message was longer than the buffer or had more than [`MAX_DESCRIPTORS`];
/// what of it arrived is closed again. `WouldBlock` when the socket is non-blocking and empty; else
/// what `recvmsg(2)` says.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let cut = message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let mut received = Received {
        length: message.bytes,
        descriptors: Vec::new(),
    };
    for part in message.cmsgs()? {
        let ControlMessageOwned::ScmRights(passed) = part else {
            continue;
        };
        for raw in passed {
            // SAFETY: the kernel has just made this descriptor for us in answer to recvmsg; nothing
            // else in the process knows its number.
            received.descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }
    // Only now, so that what did arrive is owned, and closed by this return.
    if cut {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(received)
}

/// Takes the descriptors that a service manager has passed to this process (`LISTEN_PID`,
/// `LISTEN_FDS`), in its order, closed on exec from now on. Empty without any, and from the second
/// call on.
///
/// # Errors
/// `InvalidData` when the variables are set for us and make no sense; `EBADF` when a descriptor that
/// they promise is not open.
pub fn take_passed() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let read = |name: &str| std::env::var(name).ok();
    let Some(count) = passed_count(read("LISTEN_PID"), read("LISTEN_FDS"), std::process::id())? else {
        return Ok(Vec::new());
    };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let mut passed = Vec::new();
    for raw in LISTEN_FIRST..LISTEN_FIRST + count {
        // SAFETY: the manager's protocol gives us descriptors 3 to 3 + count for our own, and the
        // flag above lets each be taken once. One that is not open is only borrowed to ask.
        let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: as above; it is open, or the line before had failed.
        passed.push(unsafe { OwnedFd::from_raw_fd(raw) });
    }
    Ok(passed)
}

/// A descriptor of our own for what number `raw` is open on: how a program takes what its command line
/// names by number. Closed on exec; the number itself stays open.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn inherited(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the kernel checks the number and makes a new descriptor; nothing is closed, so whoever owns
    // `raw` keeps it.
    let copy = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// How many descriptors were passed to the process `own`; `None` when none were, or to another one.
fn passed_count(pid: Option<String>, count: Option<String>, own: u32) -> io::Result<Option<RawFd>> {
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(None);
    };
    let pid: u32 = pid
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if pid != own {
        return Ok(None);
    }
    match count.parse() {
        Ok(count) if (0..=1024).contains(&count) => Ok(Some(count)),
        Ok(_) | Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn descriptors_arrive_with_their_message() {
        for kind in [SockType::SeqPacket, SockType::Stream] {
            let (ours, theirs) = pair(kind);
            let (mut reader, writer) = io::pipe().unwrap();
            assert_eq!(send(ours.as_fd(), b"here", &[writer.as_fd()]).unwrap(), 4);
            drop(writer);
            let mut buffer = [0; 16];
            let received = receive(theirs.as_fd(), &mut buffer).unwrap();
            assert_eq!(&buffer[..received.length], b"here");
            let [passed] = <[OwnedFd; 1]>::try_from(received.descriptors).unwrap();
            let flags = fcntl(&passed, FcntlArg::F_GETFD).unwrap();
            assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
            File::from(passed).write_all(b"through").unwrap();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "through");
        }
    }

    #[test]
    fn a_message_without_descriptors_is_a_message() {
        let (ours, theirs) = pair(SockType::SeqPacket);
        send(ours.as_fd(), b"a", &[]).unwrap();
        let mut buffer = [0; 16];
        let received = receive(theirs.as_fd(), &mut buffer).unwrap();
        assert_eq!((received.length, received.descriptors.len()), (1, 0));
        drop(ours);
        assert_eq!(receive(theirs.as_fd(), &mut buffer).unwrap().length, 0);
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let (ours, _theirs) = pair(SockType::SeqPacket);
        let null = File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(
            send(ours.as_fd(), b"a", &many).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            send(ours.as_fd(), b"", &many[..1]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        send(ours.as_fd(), b"a", &many[..MAX_DESCRIPTORS]).unwrap();
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_and_leaks_nothing() {
        let (ours, theirs) = pair(SockType::SeqPacket);
        let (mut reader, writer) = io::pipe().unwrap();
        send(ours.as_fd(), b"longer than the buffer", &[writer.as_fd()]).unwrap();
        drop(writer);
        let error = receive(theirs.as_fd(), &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        // The end of the pipe is seen only when no copy of the writer is left.
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn what_the_service_manager_says() {
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(passed_count(None, None, 7).unwrap(), None);
        assert_eq!(passed_count(text("7"), None, 7).unwrap(), None);
        assert_eq!(passed_count(text("8"), text("1"), 7).unwrap(), None);
        assert_eq!(passed_count(text("7"), text("2"), 7).unwrap(), Some(2));
        for count in ["", "-1", "x", "99999"] {
            assert!(passed_count(text("7"), text(count), 7).is_err(), "{count}");
        }
        assert!(passed_count(text("x"), text("1"), 7).is_err());
    }
}
