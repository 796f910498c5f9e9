//! Dropping the entries of addresses that somebody else will have: the next owner must not inherit flows.
//!
//! One walk of the table finds them, one request an entry drops it, named by its original tuple. The kernel
//! could flush by a filter, but before 5.8 it has none and flushes everything, and for IPv6 its filter
//! compares the wrong way round (see [`list_of_responder`](crate::wire::request::list_of_responder)): it
//! would drop everybody else's.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dormouse_sys::netns::Namespace;
use netlink_sys::Socket;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::link;
use crate::listing::{ListError, ListFilter, list};
use crate::wire::{Body, messages, request};

/// Drops every entry of `namespace` (the caller's own when `None`) in which one of `addresses` sends or
/// answers; returns how many there were. Blocks for about a walk of the table, at most about `patience`.
/// An entry that is made meanwhile may stay: whoever wants none first takes the packets away.
///
/// # Errors
/// See [`ListError`]; then some entries may be left, and age out. Needs `CAP_NET_ADMIN` in the namespace.
pub fn forget(
    namespace: Option<&Namespace>,
    addresses: &HashSet<IpAddr>,
    patience: Duration,
) -> Result<usize, ListError> {
    let began = Instant::now();
    let flows = list(namespace, &ListFilter::Involving(addresses.clone()), patience)?;
    if flows.is_empty() {
        return Ok(0);
    }
    let socket = link::open(namespace)?;
    let mut dropped = 0;
    let numbered = (1_u32..).zip(flows.iter().map(|flow| flow.key).collect::<HashSet<_>>());
    for (sequence, key) in numbered {
        link::ask(&socket, &request::forget(sequence, &key)).map_err(ListError::Ask)?;
        let left = patience
            .checked_sub(began.elapsed())
            .ok_or(ListError::Timeout { waited: patience })?;
        match answer(&socket, sequence, left, patience)? {
            0 => dropped += 1,
            // It ended by itself, or was listed twice.
            nix::libc::ENOENT => {}
            errno => return Err(ListError::Refused(io::Error::from_raw_os_error(errno))),
        }
    }
    Ok(dropped)
}

/// The kernel's answer to one request, as an error number; it comes before the request returns.
fn answer(socket: &Socket, sequence: u32, left: Duration, patience: Duration) -> Result<i32, ListError> {
    // Zero would mean "for ever".
    let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
    setsockopt(
        &socket.as_fd(),
        sockopt::ReceiveTimeout,
        &TimeVal::microseconds(micros),
    )
    .map_err(|error| ListError::Receive(error.into()))?;
    let mut buffer = [0_u8; link::ANSWER_BYTES];
    loop {
        let length = match link::receive(socket, &mut buffer, 0) {
            Ok(Some(length)) => length,
            Ok(None) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ListError::Timeout { waited: patience });
            }
            Err(error) => return Err(ListError::Receive(error)),
        };
        for message in messages(buffer.get(..length).unwrap_or_default()) {
            let message = message?;
            if let Body::Answer { errno } = message.body
                && message.sequence == sequence
            {
                return Ok(errno);
            }
        }
    }
}
