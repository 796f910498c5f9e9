//! Socket options and receive calls that the standard library lacks: forced receive buffers, classic BPF
//! filters, and receiving many netlink messages with one system call.

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

/// How a receive buffer was enlarged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveBufferRule {
    /// `SO_RCVBUFFORCE`: the size asked for, whatever net.core.rmem_max says.
    Forced,
    /// `SO_RCVBUF`: at most net.core.rmem_max.
    Capped,
}

/// Enlarges the receive buffer of `socket` to `bytes`, past the system's limit where we may
/// (`CAP_NET_ADMIN`), else up to it. Returns the rule used and the size that the kernel now accounts,
/// which is twice the size granted (socket(7)).
///
/// # Errors
/// When the descriptor is no socket.
pub fn enlarge_receive_buffer(
    socket: BorrowedFd<'_>,
    bytes: usize,
) -> io::Result<(ReceiveBufferRule, usize)> {
    // The kernel doubles the number in an int.
    let bytes = bytes.min(i32::MAX as usize / 2);
    let rule = match setsockopt(&socket, sockopt::RcvBufForce, &bytes) {
        Ok(()) => ReceiveBufferRule::Forced,
        Err(nix::Error::EPERM) => {
            setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
            ReceiveBufferRule::Capped
        }
        Err(error) => return Err(error.into()),
    };
    Ok((rule, getsockopt(&socket, sockopt::RcvBuf)?))
}

/// One instruction of a classic BPF program (`struct sock_filter` in include/uapi/linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilterInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Attaches a classic BPF program (`SO_ATTACH_FILTER`): the kernel queues for `socket` only what the
/// program accepts. A program attached before is replaced.
///
/// # Errors
/// `InvalidInput` when the program is empty or has more than 4096 instructions; `EINVAL` when the kernel
/// refuses it.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &[FilterInstruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if length == 0 || length > 4096 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut instructions: Vec<libc::sock_filter> = program
        .iter()
        .map(|one| libc::sock_filter {
            code: one.code,
            jt: one.jump_true,
            jf: one.jump_false,
            k: one.operand,
        })
        .collect();
    let program = libc::sock_fprog {
        len: length,
        filter: instructions.as_mut_ptr(),
    };
    set_option(socket, libc::SO_ATTACH_FILTER, &program)
}

/// Removes the classic BPF program of `socket` (`SO_DETACH_FILTER`).
///
/// # Errors
/// `NotFound` when there is none.
pub fn detach_filter(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SO_DETACH_FILTER, &0_i32)
}

/// Sets a `SOL_SOCKET` option whose value is the plain struct `value`.
fn set_option<T: Copy>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the pointer and length describe the live value `value`; the kernel only reads from it, and
    // from the instructions that a `sock_fprog` points to, which the caller keeps alive over this call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Most messages that one call of [`NetlinkReceiver::receive`] takes.
pub const RECEIVE_MESSAGES_MAX: usize = SLOTS as usize;

/// The same as the kernel counts it.
const SLOTS: libc::c_uint = 64;

/// One datagram that arrived on a netlink socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetlinkDatagram<'a> {
    /// Its bytes, as many as the slot held.
    pub bytes: &'a [u8],
    /// The port id of the sender; 0 is the kernel.
    pub sender_port: u32,
    /// Whether it was longer than a slot, so that its end is lost.
    pub truncated: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Arrival {
    length: usize,
    sender_port: u32,
    truncated: bool,
}

/// Memory for receiving many netlink datagrams with one `recvmmsg`; allocated once.
#[derive(Debug)]
pub struct NetlinkReceiver {
    storage: Vec<u8>,
    slot_bytes: usize,
    arrivals: [Arrival; RECEIVE_MESSAGES_MAX],
    count: usize,
}

impl NetlinkReceiver {
    /// Memory for [`RECEIVE_MESSAGES_MAX`] datagrams of up to `slot_bytes` each (at least 64).
    #[must_use]
    pub fn new(slot_bytes: usize) -> Self {
        let slot_bytes = slot_bytes.max(64);
        Self {
            storage: vec![0; slot_bytes.saturating_mul(RECEIVE_MESSAGES_MAX)],
            slot_bytes,
            arrivals: [Arrival::default(); RECEIVE_MESSAGES_MAX],
            count: 0,
        }
    }

    /// Takes what is queued on `socket`, without waiting, and returns how many datagrams came. They
    /// replace those of the call before.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is queued; `ENOBUFS` when the kernel dropped messages for want of
    /// buffer, once a loss and before what is still queued.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.count = 0;
        // SAFETY: all of these are C structs of integers and pointers, for which zero bytes are valid.
        let mut addresses: [libc::sockaddr_nl; RECEIVE_MESSAGES_MAX] = unsafe { mem::zeroed() };
        // SAFETY: likewise.
        let mut vectors: [libc::iovec; RECEIVE_MESSAGES_MAX] = unsafe { mem::zeroed() };
        // SAFETY: likewise.
        let mut headers: [libc::mmsghdr; RECEIVE_MESSAGES_MAX] = unsafe { mem::zeroed() };
        let slots = self.storage.chunks_exact_mut(self.slot_bytes);
        for (((header, vector), address), slot) in headers
            .iter_mut()
            .zip(&mut vectors)
            .zip(&mut addresses)
            .zip(slots)
        {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            header.msg_hdr.msg_iov = std::ptr::from_mut(vector);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = ADDRESS_BYTES;
        }
        // SAFETY: each header points to its own address, vector and slot of `storage`, all of which live
        // and stay put until the call returns; lengths are those of the memory pointed to; the time-out
        // may be null.
        let result = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                SLOTS,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        for ((arrival, header), address) in self.arrivals.iter_mut().zip(&headers).zip(&addresses).take(count)
        {
            *arrival = Arrival {
                length: (header.msg_len as usize).min(self.slot_bytes),
                sender_port: address.nl_pid,
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
        }
        self.count = count.min(RECEIVE_MESSAGES_MAX);
        Ok(self.count)
    }

    /// The datagrams of the last [`receive`](Self::receive), in the order of arrival.
    pub fn datagrams(&self) -> impl Iterator<Item = NetlinkDatagram<'_>> {
        let slots = self.storage.chunks_exact(self.slot_bytes);
        self.arrivals
            .iter()
            .zip(slots)
            .take(self.count)
            .map(|(arrival, slot)| NetlinkDatagram {
                bytes: slot.get(..arrival.length).unwrap_or(slot),
                sender_port: arrival.sender_port,
                truncated: arrival.truncated,
            })
    }
}

/// The size of a netlink address.
const ADDRESS_BYTES: libc::socklen_t = 12;
const _: () = assert!(mem::size_of::<libc::sockaddr_nl>() == ADDRESS_BYTES as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    /// `ret` with a constant (include/uapi/linux/bpf_common.h): how many bytes to accept.
    const RETURN: u16 = 0x06;

    fn accept(bytes: u32) -> [FilterInstruction; 1] {
        [FilterInstruction {
            code: RETURN,
            operand: bytes,
            ..FilterInstruction::default()
        }]
    }

    #[test]
    fn many_datagrams_come_with_one_call() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut receiver = NetlinkReceiver::new(64);
        let empty = receiver.receive(ours.as_fd()).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        for text in ["one", "", "three"] {
            theirs.send(text.as_bytes()).unwrap();
        }
        theirs.send(&[7; 65]).unwrap();
        assert_eq!(receiver.receive(ours.as_fd()).unwrap(), 4);
        let got: Vec<_> = receiver
            .datagrams()
            .map(|d| (d.bytes.to_vec(), d.truncated))
            .collect();
        assert_eq!(
            got,
            [
                (b"one".to_vec(), false),
                (Vec::new(), false),
                (b"three".to_vec(), false),
                (vec![7; 64], true),
            ]
        );
    }

    #[test]
    fn a_filter_decides_what_is_queued() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut receiver = NetlinkReceiver::new(64);
        assert_eq!(
            attach_filter(ours.as_fd(), &[]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        attach_filter(ours.as_fd(), &accept(2)).unwrap();
        theirs.send(b"cut").unwrap();
        receiver.receive(ours.as_fd()).unwrap();
        assert_eq!(receiver.datagrams().next().unwrap().bytes, b"cu");
        detach_filter(ours.as_fd()).unwrap();
        theirs.send(b"whole").unwrap();
        receiver.receive(ours.as_fd()).unwrap();
        assert_eq!(receiver.datagrams().next().unwrap().bytes, b"whole");
        assert_eq!(
            detach_filter(ours.as_fd()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_buffer_grows() {
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        let (_, granted) = enlarge_receive_buffer(ours.as_fd(), 64 << 10).unwrap();
        assert!(granted >= 64 << 10, "{granted}");
    }
}
