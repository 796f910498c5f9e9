//! Listings: the whole table or a part of it, once. Blocking; the observer runs them on threads of their
//! own.
//!
//! A listing walks all buckets of the kernel's table whatever it is asked for: 10 ms on an empty one of
//! 262,144 buckets, seconds on a million entries. It is for the start, for after a loss, and for the rare
//! doubt; never for polling.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dormouse_model::{Fault, Flow, Kind};
use dormouse_sys::netns::Namespace;
use netlink_sys::Socket;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::mpsc;

use crate::link::{self, LinkError};
use crate::wire::{Body, WireError, messages, request};

/// The kernel fills at most 32 KiB a message of a listing (`netlink_dump` in net/netlink/af_netlink.c),
/// and only when it is offered as much.
const BUFFER_BYTES: usize = 64 << 10;

/// Which flows are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListFilter {
    /// All.
    All,
    /// Those that this address answers; for IPv4 the kernel filters.
    Responder(IpAddr),
    /// Those that any of these addresses answers. One walk of the table, filtered here.
    Responders(HashSet<IpAddr>),
    /// Those in which any of these addresses sends or answers. Likewise.
    Involving(HashSet<IpAddr>),
}

impl ListFilter {
    fn request(&self, sequence: u32) -> Vec<u8> {
        match self {
            Self::All | Self::Responders(_) | Self::Involving(_) => request::list_all(sequence),
            Self::Responder(address) => request::list_of_responder(sequence, *address),
        }
    }

    fn wants(&self, flow: &Flow) -> bool {
        match self {
            Self::All => true,
            Self::Responder(address) => flow.responder == *address,
            Self::Responders(addresses) => addresses.contains(&flow.responder),
            Self::Involving(addresses) => [flow.responder, flow.key.source, flow.key.destination]
                .iter()
                .any(|address| addresses.contains(address)),
        }
    }
}

/// Why a listing failed. Nothing can be concluded from the part that came.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// No socket could be opened in the namespace.
    #[error("cannot open a socket to list connections")]
    Open(#[from] LinkError),
    /// The request could not be sent.
    #[error("cannot ask the kernel for its connections")]
    Ask(#[source] io::Error),
    /// Receiving failed.
    #[error("cannot receive the kernel's connections")]
    Receive(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refused to list its connections")]
    Refused(#[source] io::Error),
    /// An entry could not be read.
    #[error("cannot read a listed connection")]
    Undecodable(#[from] WireError),
    /// The table changed its shape meanwhile.
    #[error("the listing of connections was interrupted by a change of the kernel's table")]
    Interrupted,
    /// The time was over.
    #[error("the listing of connections was not complete after {waited:?}")]
    Timeout {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The thread that listed died.
    #[error("the listing of connections was given up")]
    GivenUp,
}

impl Fault for ListError {
    fn kind(&self) -> Kind {
        match self {
            Self::Open(cause) => cause.kind(),
            Self::Ask(cause) | Self::Receive(cause) | Self::Refused(cause) => match cause.kind() {
                io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Unavailable,
            },
            Self::Undecodable(_) => Kind::Corrupt,
            Self::Interrupted | Self::GivenUp => Kind::Unavailable,
            Self::Timeout { .. } => Kind::Timeout,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Open(cause) => cause.code(),
            Self::Ask(_) => "OBSERVER_LIST_ASK",
            Self::Receive(_) => "OBSERVER_LIST_RECEIVE",
            Self::Refused(_) => "OBSERVER_LIST_REFUSED",
            Self::Undecodable(_) => "OBSERVER_LIST_UNDECODABLE",
            Self::Interrupted => "OBSERVER_LIST_INTERRUPTED",
            Self::Timeout { .. } => "OBSERVER_LIST_TIMEOUT",
            Self::GivenUp => "OBSERVER_LIST_GIVEN_UP",
        }
    }
}

/// Lists the tracked flows of `namespace` (the caller's own when `None`) that `filter` wants. Blocks
/// until the kernel has sent all, at most about `patience`.
///
/// A flow may be listed twice, and one that ends meanwhile may be missing.
///
/// # Errors
/// See [`ListError`]; needs `CAP_NET_ADMIN` in the namespace.
pub fn list(
    namespace: Option<&Namespace>,
    filter: &ListFilter,
    patience: Duration,
) -> Result<Vec<Flow>, ListError> {
    let mut listing = Listing::open(namespace, filter.clone(), patience)?;
    let mut flows = Vec::new();
    while listing.more(&mut flows)? == Progress::More {}
    Ok(flows)
}

/// How far a listing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Done,
}

/// A listing under way.
#[derive(Debug)]
pub(crate) struct Listing {
    socket: Socket,
    filter: ListFilter,
    buffer: Vec<u8>,
    began: Instant,
    patience: Duration,
    interrupted: bool,
}

/// A socket carries one listing, so one number does.
const SEQUENCE: u32 = 1;

impl Listing {
    pub(crate) fn open(
        namespace: Option<&Namespace>,
        filter: ListFilter,
        patience: Duration,
    ) -> Result<Self, ListError> {
        let socket = link::open(namespace)?;
        link::ask(&socket, &filter.request(SEQUENCE)).map_err(ListError::Ask)?;
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self {
            socket,
            filter,
            buffer,
            began: Instant::now(),
            patience,
            interrupted: false,
        })
    }

    /// Waits for one datagram of the listing and appends its flows.
    pub(crate) fn more(&mut self, flows: &mut Vec<Flow>) -> Result<Progress, ListError> {
        let length = self.receive()?;
        let datagram = self.buffer.get(..length).ok_or(WireError::Truncated {
            slot: self.buffer.len(),
        })?;
        for message in messages(datagram) {
            let message = message?;
            self.interrupted |= message.interrupted;
            match message.body {
                Body::Entry(flow) | Body::Made(flow) => {
                    if self.filter.wants(&flow) {
                        flows.push(flow);
                    }
                }
                Body::Answer { errno: 0 } | Body::Gone(_) | Body::Other => {}
                Body::Answer { errno } => {
                    return Err(ListError::Refused(io::Error::from_raw_os_error(errno)));
                }
                Body::Done { errno: 0 } if self.interrupted => return Err(ListError::Interrupted),
                Body::Done { errno: 0 } => return Ok(Progress::Done),
                Body::Done { errno } => return Err(ListError::Refused(io::Error::from_raw_os_error(errno))),
                Body::Overrun => {
                    return Err(ListError::Receive(io::Error::from_raw_os_error(
                        nix::libc::ENOBUFS,
                    )));
                }
            }
        }
        Ok(Progress::More)
    }

    fn receive(&mut self) -> Result<usize, ListError> {
        loop {
            let timeout = || ListError::Timeout {
                waited: self.patience,
            };
            let left = self
                .patience
                .checked_sub(self.began.elapsed())
                .ok_or_else(timeout)?;
            // Zero would mean "for ever".
            let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
            setsockopt(
                &self.socket.as_fd(),
                sockopt::ReceiveTimeout,
                &TimeVal::microseconds(micros),
            )
            .map_err(|error| ListError::Receive(error.into()))?;
            match link::receive(&self.socket, &mut self.buffer, nix::libc::MSG_TRUNC) {
                Ok(Some(length)) => return Ok(length),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timeout()),
                Err(error) => return Err(ListError::Receive(error)),
            }
        }
    }
}

/// What a listing's thread hands over.
#[derive(Debug)]
pub(crate) enum Chunk {
    Flows(Vec<Flow>),
    End(Result<(), ListError>),
}

/// Lists everything into `chunks` until the end or until nobody wants it any more.
pub(crate) fn list_into(namespace: Option<&Namespace>, patience: Duration, chunks: &mpsc::Sender<Chunk>) {
    let result = Listing::open(namespace, ListFilter::All, patience).and_then(|mut listing| {
        loop {
            let mut flows = Vec::with_capacity(256);
            let progress = listing.more(&mut flows)?;
            if !flows.is_empty() && chunks.blocking_send(Chunk::Flows(flows)).is_err() {
                return Err(ListError::GivenUp);
            }
            if progress == Progress::Done {
                return Ok(());
            }
        }
    });
    // Nobody listens after `GivenUp`.
    let _ = chunks.blocking_send(Chunk::End(result));
}
