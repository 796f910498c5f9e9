//! A netlink socket for requests: batches, answers, listings. Blocking, with a deadline; it lives
//! on the data plane's thread.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::error::NetworkError;

/// How long one answer may take. The kernel answers in microseconds; what takes longer is somebody
/// else's hold on the routing lock.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How often a listing that the kernel calls inconsistent is asked for again.
const LISTING_ATTEMPTS: u32 = 5;

/// More than the kernel puts into one datagram of a listing (32 KiB).
const BUFFER_BYTES: usize = 64 << 10;

/// Room for a transaction about a hundred thousand workloads.
const SEND_BUFFER_BYTES: usize = 16 << 20;

/// Requests in one datagram: their acknowledgements must fit the socket's receive buffer.
const BATCH_MAX: usize = 64;

const HEADER_BYTES: usize = 16;

/// One request: a netlink message without its header, and how to speak about it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The message type.
    pub(crate) kind: u16,
    /// Flags besides `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// Errors that mean that it is so already.
    pub(crate) tolerated: &'static [i32],
    /// What it does, for errors.
    pub(crate) doing: &'static str,
    /// To what, for errors.
    pub(crate) about: String,
}

impl Request {
    /// This request as a question for all.
    pub(crate) fn listing(mut self) -> Self {
        self.flags = NLM_F_DUMP;
        self
    }

    fn failed(&self, source: io::Error) -> NetworkError {
        NetworkError::Kernel {
            doing: self.doing,
            about: self.about.clone(),
            source,
        }
    }
}

/// One message of the kernel: its type and its body.
pub(crate) type Answer = (u16, Vec<u8>);

/// The socket.
pub(crate) struct RequestSocket {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RequestSocket {
    /// A socket of `protocol` (`NETLINK_ROUTE`, `NETLINK_NETFILTER`) in the thread's namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Kernel {
            doing: "opening a netlink socket of protocol",
            about: protocol.to_string(),
            source,
        };
        let mut socket = netlink_sys::Socket::new(protocol).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        // Acknowledgements without a copy of the request: many fit the receive buffer.
        socket.set_cap_ack(true).map_err(failed)?;
        // A transaction is one datagram, and that of a sweep names every workload.
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES)
            .map_err(|errno| failed(errno.into()))?;
        let seconds = i64::try_from(ANSWER_DEADLINE.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// Carries out `requests` in order; all are tried. Each datagram of up to [`BATCH_MAX`] is one
    /// system call, so that being killed cannot part what is in one.
    ///
    /// # Errors
    /// The first refusal that is not tolerated.
    pub(crate) fn run(&mut self, requests: &[Request]) -> Result<(), NetworkError> {
        let mut result = Ok(());
        for batch in requests.chunks(BATCH_MAX) {
            let done = self.exchange(batch, |request| request.flags | NLM_F_ACK);
            if let (Ok(()), Err(error)) = (&result, done) {
                result = Err(error);
            }
        }
        result
    }

    /// Carries out a transaction whose first and last message are its brackets: those have no answer.
    pub(crate) fn run_bracketed(&mut self, requests: &[Request]) -> Result<(), NetworkError> {
        let brackets = [requests.first(), requests.last()].map(|end| end.map(std::ptr::from_ref));
        let flags = |request: &Request| {
            let inner = !brackets.contains(&Some(std::ptr::from_ref(request)));
            if inner {
                request.flags | NLM_F_ACK
            } else {
                request.flags
            }
        };
        self.exchange(requests, flags).map(|_| ())
    }

    /// Asks for one thing; empty when there is none and the request tolerates that.
    pub(crate) fn get(&mut self, request: &Request) -> Result<Option<Answer>, NetworkError> {
        let exchange = self.exchange(std::slice::from_ref(request), |request| request.flags | NLM_F_ACK)?;
        Ok(exchange.answers.into_iter().next())
    }

    /// Asks for all.
    pub(crate) fn list(&mut self, request: &Request) -> Result<Vec<Answer>, NetworkError> {
        for _ in 0..LISTING_ATTEMPTS {
            let exchange = self.exchange(std::slice::from_ref(request), |request| request.flags)?;
            if !exchange.inconsistent {
                return Ok(exchange.answers);
            }
        }
        let changing = io::Error::other(format!(
            "the table changed during each of {LISTING_ATTEMPTS} listings"
        ));
        Err(request.failed(changing))
    }

    fn exchange(
        &mut self,
        requests: &[Request],
        flags: impl Fn(&Request) -> u16,
    ) -> Result<Exchange, NetworkError> {
        let Some(first_request) = requests.first() else {
            return Ok(Exchange::default());
        };
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        let mut waiting = 0;
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = flags(request) | NLM_F_REQUEST;
            waiting += usize::from(flags & (NLM_F_ACK | NLM_F_DUMP) != 0);
            append(&mut datagram, request, flags, self.sequence);
        }
        self.socket
            .send(&datagram, 0)
            .map_err(|source| first_request.failed(source))?;
        let mut exchange = Exchange::default();
        let mut refused = None;
        while waiting > 0 {
            self.buffer.clear();
            let (_, sender) = self
                .socket
                .recv_from(&mut self.buffer, 0)
                .map_err(|source| first_request.failed(source))?;
            // Who may administer the network may send to this socket as well; only the kernel answers.
            if sender.port_number() != 0 {
                continue;
            }
            for message in messages(&self.buffer) {
                let place = message.sequence.wrapping_sub(first);
                // An answer to an earlier request that was given up.
                let Some(request) = requests.get(place as usize) else {
                    continue;
                };
                exchange.inconsistent |= message.flags & NLM_F_DUMP_INTR != 0;
                let Some(errno) = message.ends() else {
                    exchange.answers.push((message.kind, message.body.to_vec()));
                    continue;
                };
                // A bracket that is answered was refused, and nothing else will be.
                waiting = if flags(request) & (NLM_F_ACK | NLM_F_DUMP) == 0 {
                    0
                } else {
                    waiting - 1
                };
                if errno != 0 && !request.tolerated.contains(&errno) && refused.is_none() {
                    refused = Some(request.failed(io::Error::from_raw_os_error(errno)));
                }
            }
        }
        refused.map_or(Ok(exchange), Err)
    }
}

impl std::fmt::Debug for RequestSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestSocket")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Exchange {
    answers: Vec<Answer>,
    inconsistent: bool,
}

fn append(datagram: &mut Vec<u8>, request: &Request, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER_BYTES + request.body.len()).unwrap_or(u32::MAX);
    datagram.extend_from_slice(&length.to_ne_bytes());
    datagram.extend_from_slice(&request.kind.to_ne_bytes());
    datagram.extend_from_slice(&flags.to_ne_bytes());
    datagram.extend_from_slice(&sequence.to_ne_bytes());
    datagram.extend_from_slice(&[0; 4]);
    datagram.extend_from_slice(&request.body);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

/// One message inside a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

impl Message<'_> {
    /// When this message ends an exchange, the error it reports as a positive number, or 0:
    /// `NLMSG_ERROR` (2) and `NLMSG_DONE` (3) begin with it (include/uapi/linux/netlink.h).
    fn ends(&self) -> Option<i32> {
        if !matches!(self.kind, 2 | 3) {
            return None;
        }
        let code = self
            .body
            .first_chunk()
            .map_or(0, |code| i32::from_ne_bytes(*code));
        // A listing's end carries what its last step returned, which may be a size.
        Some(code.min(0).saturating_neg())
    }
}

/// The messages of a datagram. Total: what does not add up ends the walk.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let (kind, after) = after.split_first_chunk::<2>()?;
        let (flags, after) = after.split_first_chunk::<2>()?;
        let (sequence, _) = after.split_first_chunk::<4>()?;
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes(*kind),
            flags: u16::from_ne_bytes(*flags),
            sequence: u32::from_ne_bytes(*sequence),
            body,
        })
    })
}

/// The error numbers that requests tolerate.
pub(crate) mod tolerate {
    use super::libc;

    /// Nothing.
    pub(crate) const NOTHING: &[i32] = &[];
    /// It exists.
    pub(crate) const EXISTS: &[i32] = &[libc::EEXIST];
    /// It does not exist, nor perhaps does the device that it was on.
    pub(crate) const ABSENT: &[i32] = &[libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::ENXIO];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(body: &[u8]) -> Request {
        Request {
            kind: 24,
            flags: 0,
            body: body.to_vec(),
            tolerated: tolerate::NOTHING,
            doing: "testing",
            about: String::new(),
        }
    }

    #[test]
    fn what_is_appended_is_read_back() {
        let mut datagram = Vec::new();
        append(&mut datagram, &request(&[1, 2, 3]), 5, 7);
        append(&mut datagram, &request(&[]), 1, 8);
        let read: Vec<_> = messages(&datagram).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[0],
            Message {
                kind: 24,
                flags: 5,
                sequence: 7,
                body: &[1, 2, 3]
            }
        );
        assert_eq!(
            read[1],
            Message {
                kind: 24,
                flags: 1,
                sequence: 8,
                body: &[]
            }
        );
    }

    #[test]
    fn ends_are_told_from_answers() {
        let ends = |kind, body: &[u8]| {
            Message {
                kind,
                flags: 0,
                sequence: 0,
                body,
            }
            .ends()
        };
        assert_eq!(ends(24, &[0; 4]), None);
        assert_eq!(ends(2, &(-17_i32).to_ne_bytes()), Some(17));
        assert_eq!(ends(2, &[0; 4]), Some(0));
        assert_eq!(ends(3, &36_i32.to_ne_bytes()), Some(0));
        assert_eq!(ends(3, &[]), Some(0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let walked: usize = messages(&bytes).map(|message| message.body.len() + HEADER_BYTES).sum();
            prop_assert!(walked <= bytes.len());
        }

        #[test]
        fn short_lengths_end_the_walk(length in 0_u32..20) {
            let mut bytes = vec![0_u8; 64];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let _ = messages(&bytes).take(100).count();
        }
    }
}
