//! Netlink sockets of a namespace: the subscribed one that events come on, and plain ones for requests.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use dormouse_model::{Bytes, Fault, Kind};
use dormouse_sys::netns::{Namespace, NamespaceError};
use dormouse_sys::socket::{ReceiveBufferRule, enlarge_receive_buffer};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_CONNTRACK_NEW`, `_UPDATE`, `_DESTROY` (include/uapi/linux/netfilter/nfnetlink.h).
const GROUPS: [u32; 3] = [1, 2, 3];

/// Room for the answer to one request: an entry, or an error with the request repeated.
pub(crate) const ANSWER_BYTES: usize = 4096;

/// What the event socket is watched for. An overrun needs no watch of its own: it only happens while
/// something is queued. (And `AsyncFd::try_io` takes no mixed interest: it finds the socket never ready.)
pub(crate) const INTEREST: Interest = Interest::READABLE;

/// Why a netlink socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace could not be entered.
    #[error("cannot enter the network namespace to observe")]
    Namespace(#[source] NamespaceError),
    /// No socket.
    #[error("cannot open a netfilter netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused the subscription.
    #[error("cannot subscribe to connection tracking events")]
    Subscribe(#[source] io::Error),
}

impl Fault for LinkError {
    fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Unavailable,
            Self::Socket(cause) | Self::Subscribe(cause) => match cause.kind() {
                io::ErrorKind::PermissionDenied => Kind::Denied,
                io::ErrorKind::Unsupported => Kind::Unsupported,
                _ => Kind::Unavailable,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "OBSERVER_NAMESPACE",
            Self::Socket(_) => "OBSERVER_SOCKET",
            Self::Subscribe(_) => "OBSERVER_SUBSCRIBE",
        }
    }
}

/// Opens a netfilter netlink socket in `namespace`, the caller's own when `None`.
pub(crate) fn open(namespace: Option<&Namespace>) -> Result<Socket, LinkError> {
    let made = match namespace {
        Some(namespace) => namespace
            .within(|| Socket::new(NETLINK_NETFILTER))
            .map_err(LinkError::Namespace)?,
        None => Socket::new(NETLINK_NETFILTER),
    };
    made.map_err(LinkError::Socket)
}

/// Sends `request` to the kernel.
pub(crate) fn ask(socket: &Socket, request: &[u8]) -> io::Result<()> {
    socket.send_to(request, &SocketAddr::new(0, 0), 0).map(|_| ())
}

/// Receives one datagram of the kernel into `buffer`; `None` when it was somebody else's. Returns its whole
/// length with `MSG_TRUNC` among `flags`. Who may administer the network may send to any netlink socket, so
/// an answer is only one when it comes from port 0 (netlink(7)).
pub(crate) fn receive(socket: &Socket, mut buffer: &mut [u8], flags: i32) -> io::Result<Option<usize>> {
    let (length, sender) = socket.recv_from(&mut buffer, flags)?;
    Ok((sender.port_number() == 0).then_some(length))
}

/// A socket that the kernel sends events to, not yet watched by a runtime.
#[derive(Debug)]
pub(crate) struct Subscribed {
    socket: Socket,
    /// The buffer as the kernel accounts it, in bytes.
    pub(crate) buffer: usize,
    /// Whether it is as large as asked.
    pub(crate) rule: ReceiveBufferRule,
}

/// Opens a socket in `namespace` and subscribes it. Blocking, for less than a millisecond.
///
/// Room is left here for a filter in the kernel: `dormouse_sys::socket::attach_filter`, before the
/// subscription, letting answers of type `NLMSG_ERROR` through.
pub(crate) fn subscribe(namespace: Option<&Namespace>, buffer: Bytes) -> Result<Subscribed, LinkError> {
    let mut socket = open(namespace)?;
    socket.set_non_blocking(true).map_err(LinkError::Socket)?;
    // A socket that is not bound gets no events, and nobody says so.
    socket.bind_auto().map_err(LinkError::Subscribe)?;
    let asked = usize::try_from(buffer.0).unwrap_or(usize::MAX);
    let (rule, buffer) = enlarge_receive_buffer(socket.as_fd(), asked).map_err(LinkError::Socket)?;
    for group in GROUPS {
        socket.add_membership(group).map_err(LinkError::Subscribe)?;
    }
    Ok(Subscribed { socket, buffer, rule })
}

/// A subscribed socket under a runtime's watch.
#[derive(Debug)]
pub(crate) struct Link {
    socket: AsyncFd<Socket>,
}

impl Link {
    /// Puts `subscribed` under the watch of the current runtime.
    pub(crate) fn watch(subscribed: Subscribed) -> io::Result<Self> {
        #[allow(
            deprecated,
            reason = "the successor is unsafe; its condition holds: a `Socket` keeps one descriptor open for life"
        )]
        let socket = AsyncFd::with_interest(subscribed.socket, INTEREST)?;
        Ok(Self { socket })
    }

    pub(crate) const fn socket(&self) -> &AsyncFd<Socket> {
        &self.socket
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    /// Sends a request on this very socket, so that the answer queues behind the events.
    pub(crate) fn ask(&self, request: &[u8]) -> io::Result<()> {
        ask(self.socket.get_ref(), request)
    }
}
