//! A Unix socket that keeps messages apart (`SOCK_SEQPACKET`), for tokio, which has none.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use dormouse_sys::descriptor::{self, Received};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, UnixCredentials, accept4, bind, connect, getsockopt, listen,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 8;

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    descriptor: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the socket at `path`; on a Unix socket that succeeds or fails at once.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let descriptor = new_socket()?;
        connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { descriptor: AsyncFd::new(descriptor)? })
    }

    /// Who is at the other end, as the kernel knows it.
    pub(crate) fn peer(&self) -> io::Result<UnixCredentials> {
        Ok(getsockopt(self.descriptor.get_ref(), sockopt::PeerCredentials)?)
    }

    pub(crate) async fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.descriptor
            .async_io(Interest::WRITABLE, |socket| descriptor::send(socket.as_fd(), frame, descriptors))
            .await
            .map(|_| ())
    }

    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.descriptor
            .async_io(Interest::READABLE, |socket| descriptor::receive(socket.as_fd(), buffer))
            .await
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    descriptor: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Makes the socket at `path`, which must not exist.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let descriptor = new_socket()?;
        bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&descriptor, Backlog::new(BACKLOG)?)?;
        Self::from_descriptor(descriptor)
    }

    /// Takes over a socket that listens already.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = nix::fcntl::fcntl(&descriptor, nix::fcntl::FcntlArg::F_GETFL)?;
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&descriptor, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(Self { descriptor: AsyncFd::new(descriptor)? })
    }

    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        let accepted = self
            .descriptor
            .async_io(Interest::READABLE, |socket| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                Ok(accept4(socket.as_raw_fd(), flags)?)
            })
            .await?;
        let _ = accepted;
        todo!()
    }
}
