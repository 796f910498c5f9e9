//! Knocks: the kernel asks who the neighbour of a sleeper is, because packets wait for it.
//!
//! The kernel repeats its question every second for as long as packets wait, so a knock that is
//! lost on the way comes again; and when the socket overflows, the neighbour table is listed.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_model::WorkloadId;
use dormouse_sys::netns::Namespace;
use dormouse_sys::socket::{FilterInstruction, attach_filter, enlarge_receive_buffer};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::kernel::Waiting;
use crate::netlink::messages;
use crate::request::RTM_GETNEIGH;

/// `RTNLGRP_NEIGH` (include/uapi/linux/rtnetlink.h).
const NEIGHBOUR_GROUP: u32 = 3;

/// Room for some ten thousand questions: a scan of all sleepers at once.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Somebody wants a sleeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Knock {
    /// Whom.
    pub workload: WorkloadId,
    /// At which of its addresses.
    pub address: IpAddr,
}

/// Knocks that nobody has taken yet: at most one a workload, so the queue is bounded by the number
/// of links and cannot overflow. A second knock for the same workload says nothing new.
#[derive(Debug, Default)]
pub(crate) struct Knocks {
    pending: Mutex<Pending>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    queue: VecDeque<Knock>,
    queued: BTreeSet<WorkloadId>,
    closed: bool,
}

impl Knocks {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing here can panic half-way.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a knock, unless one of the same workload waits already.
    pub(crate) fn push(&self, knock: Knock) {
        let mut pending = self.lock();
        if pending.queued.insert(knock.workload) {
            pending.queue.push_back(knock);
            self.more.notify_one();
        }
    }

    /// Says that no knock will come any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }
}

/// The knocks, for the one who wakes workloads.
#[derive(Debug)]
pub struct KnockStream {
    pub(crate) knocks: Arc<Knocks>,
}

impl KnockStream {
    /// The next knock; `None` when the data plane's task has ended. Safe to cancel.
    pub async fn next(&mut self) -> Option<Knock> {
        loop {
            {
                let mut pending = self.knocks.lock();
                if let Some(knock) = pending.queue.pop_front() {
                    pending.queued.remove(&knock.workload);
                    return Some(knock);
                }
                if pending.closed {
                    return None;
                }
            }
            self.knocks.more.notified().await;
        }
    }
}

/// The socket on which the kernel asks.
pub(crate) struct Listener {
    socket: TokioSocket,
    parking: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("parking", &self.parking)
            .finish_non_exhaustive()
    }
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Questions for these addresses.
    Asked(Vec<IpAddr>),
    /// The socket overflowed: list the table.
    Lost,
}

impl Listener {
    /// Listens in the configured namespace for questions on the parking device. Must be called
    /// inside a tokio runtime.
    pub(crate) fn open(config: &NetworkConfig, parking: u32) -> Result<Self, NetworkError> {
        let namespace = config
            .namespace
            .as_deref()
            .map_or_else(Namespace::current, Namespace::open)?;
        let failed = |source| NetworkError::Kernel {
            doing: "listening for knocks on",
            about: config.parking_device(),
            source,
        };
        let runtime = Handle::current();
        // A socket stays in the namespace that it was made in.
        let open = move || {
            let _inside = runtime.enter();
            open_socket()
        };
        let socket = namespace.within(open)?.map_err(failed)?;
        Ok(Self {
            socket,
            parking,
            buffer: Vec::with_capacity(32 << 10),
        })
    }

    /// Waits for the next questions. Safe to cancel.
    pub(crate) async fn next(&mut self) -> io::Result<Heard> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer).await {
                Ok(sender) if sender.port_number() == 0 => {}
                // Who may administer the network may send to the group as well; only the kernel knocks.
                Ok(_) => continue,
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(Heard::Lost),
                Err(error) => return Err(error),
            }
            let asked = questions(&self.buffer, self.parking);
            if !asked.is_empty() {
                return Ok(Heard::Asked(asked));
            }
        }
    }
}

fn open_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    enlarge_receive_buffer(inner.as_fd(), RECEIVE_BUFFER_BYTES)?;
    attach_filter(inner.as_fd(), &only_questions())?;
    inner.bind_auto()?;
    inner.add_membership(NEIGHBOUR_GROUP)?;
    Ok(socket)
}

/// Classic BPF over a netlink message: the group also carries every change of every neighbour of the
/// host. The type is at byte 4, in the host's order; the load takes it for network order.
fn only_questions() -> [FilterInstruction; 4] {
    let instruction = |code, jump_false, operand| FilterInstruction {
        code,
        jump_true: 0,
        jump_false,
        operand,
    };
    let wanted = u16::from_be_bytes(RTM_GETNEIGH.to_ne_bytes());
    [
        instruction(0x28, 0, 4),                 // ldh [4]
        instruction(0x15, 1, u32::from(wanted)), // jeq wanted, else skip one
        instruction(0x06, 0, u32::MAX),          // ret all
        instruction(0x06, 0, 0),                 // ret nothing
    ]
}

/// The addresses that a datagram asks for on the parking device.
#[must_use]
pub fn questions(datagram: &[u8], parking: u32) -> Vec<IpAddr> {
    messages(datagram)
        .filter(|message| message.kind == RTM_GETNEIGH)
        .filter_map(|message| Waiting::read(message.body, parking))
        .map(|entry| entry.address)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn knock(workload: u128) -> Knock {
        Knock {
            workload: WorkloadId::from_bits(workload),
            address: IpAddr::from([10, 0, 0, 1]),
        }
    }

    #[tokio::test]
    async fn a_workload_knocks_once_until_it_is_heard() {
        let knocks = Arc::new(Knocks::default());
        let mut stream = KnockStream {
            knocks: Arc::clone(&knocks),
        };
        for workload in [1, 2, 1, 1, 2] {
            knocks.push(knock(workload));
        }
        assert_eq!(stream.next().await, Some(knock(1)));
        knocks.push(knock(1));
        assert_eq!(stream.next().await, Some(knock(2)));
        assert_eq!(stream.next().await, Some(knock(1)));
        knocks.push(knock(3));
        knocks.close();
        assert_eq!(
            stream.next().await,
            Some(knock(3)),
            "what came before the end is delivered"
        );
        assert_eq!(stream.next().await, None);
        assert_eq!(stream.next().await, None);
    }

    /// A question as kernel 6.18 sent it for an IPv4 address on device 3.
    #[test]
    fn only_questions_on_the_parking_device_count() {
        let mut datagram = Vec::new();
        for (kind, device) in [(30_u16, 3_u32), (28, 3), (30, 4)] {
            datagram.extend(36_u32.to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            datagram.extend([2, 0, 0, 0]);
            datagram.extend(device.to_ne_bytes());
            datagram.extend([1, 0, 0, 1]);
            datagram.extend([8, 0, 1, 0, 10, 78, 0, 2]);
        }
        assert_eq!(questions(&datagram, 3), [IpAddr::from([10, 78, 0, 2])]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_heard_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let mut datagram = Vec::new();
            datagram.extend(u32::try_from(16 + bytes.len()).unwrap().to_ne_bytes());
            datagram.extend([30, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            datagram.extend(bytes);
            let _ = questions(&datagram, 3);
        }
    }
}
