//! Tap devices: an Ethernet interface of the kernel whose other end is a descriptor.
//!
//! A device made here is not persistent: it lives as long as somebody holds a descriptor of it, and
//! takes its routes, neighbours and queue along when the last one closes. It belongs to the network
//! namespace of the thread that makes it (include/uapi/linux/if_tun.h, drivers/net/tun.c).

#![allow(
    unsafe_code,
    reason = "ioctls of /dev/net/tun and membarrier; each block has its proof"
)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_char, c_int, c_short, sock_filter, sock_fprog};

/// Longest name of an interface: `IFNAMSIZ` without the NUL byte that ends it.
pub const NAME_MAX_BYTES: usize = libc::IFNAMSIZ - 1;

/// Size of `struct virtio_net_hdr_mrg_rxbuf`, the header of every device that speaks virtio 1.
pub const VNET_HEADER_BYTES: c_int = 12;

const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF`; the macro in if_tun.h says `int`, what is passed is a `struct ifreq`.
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<c_int>()),
    libc::ifreq
);
nix::ioctl_read_bad!(
    /// `TUNGETIFF`; says `unsigned int` likewise and fills a `struct ifreq`.
    tun_get_iff,
    nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()),
    libc::ifreq
);
nix::ioctl_write_ptr!(
    /// `TUNATTACHFILTER`.
    tun_attach_filter,
    b'T',
    213,
    sock_fprog
);
nix::ioctl_write_ptr!(
    /// `TUNSETVNETHDRSZ`.
    tun_set_vnet_header_size,
    b'T',
    216,
    c_int
);

/// Makes the tap `name` in the calling thread's network namespace and returns its only descriptor:
/// non-blocking, closed on exec, frames preceded by a virtio header of [`VNET_HEADER_BYTES`].
/// Offloads are left as they are: whoever reads the frames knows what its guest takes.
///
/// Of what the kernel sends to this device only unicast frames for `guest` get into the queue;
/// neighbour discovery, multicast and broadcast are dropped (and counted as dropped), so that
/// nothing but traffic for the guest ever waits here.
///
/// # Errors
/// When the name is no interface's name, is taken, or without `CAP_NET_ADMIN`. Nothing is left.
pub fn create(name: &str, guest: [u8; 6]) -> Result<OwnedFd, TapError> {
    let request = request(name)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .map_err(TapError::Open)?;
    // SAFETY: the descriptor is open and the request lives through the call, which only reads it
    // and writes the name back into it: `ifreq` is what TUNSETIFF copies in both directions.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }.map_err(|source| TapError::Create {
        name: name.to_owned(),
        source,
    })?;
    let header_bytes = VNET_HEADER_BYTES;
    // SAFETY: the descriptor is open and the kernel reads one int, which outlives the call.
    unsafe { tun_set_vnet_header_size(file.as_raw_fd(), &raw const header_bytes) }.map_err(|source| {
        TapError::HeaderSize {
            name: name.to_owned(),
            source,
        }
    })?;
    let mut filter = unicast_only(guest);
    let program = sock_fprog {
        len: FILTER_LENGTH,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open; the program and its `len` instructions live through the call,
    // and the kernel copies them.
    unsafe { tun_attach_filter(file.as_raw_fd(), &raw const program) }.map_err(|source| {
        TapError::Filter {
            name: name.to_owned(),
            source,
        }
    })?;
    Ok(file.into())
}

/// The name of the device that `tap` is a descriptor of, in the device's namespace. A device that
/// was deleted has no name any more.
///
/// # Errors
/// `EBADFD` when the device is gone, `ENOTTY` when the descriptor is no tap's.
pub fn name(tap: BorrowedFd<'_>) -> io::Result<String> {
    let mut answer = request("any").map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open and the kernel fills the request, which outlives the call.
    unsafe { tun_get_iff(tap.as_raw_fd(), &raw mut answer) }?;
    let letters = answer.ifr_name.iter().take_while(|&&letter| letter != 0);
    Ok(letters
        .filter_map(|&letter| u8::try_from(letter).ok())
        .map(char::from)
        .collect())
}

/// `IFF_TUN_EXCL`, so that a device that exists is never joined. The field is a signed short and
/// the flag is its top bit.
#[allow(
    clippy::cast_possible_truncation,
    reason = "all flags of if_tun.h fit 16 bits, as the field does"
)]
const NEW_TAP_FLAGS: c_short = ((libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL)
    .cast_unsigned() as u16)
    .cast_signed();

/// The request for a new device.
fn request(name: &str) -> Result<libc::ifreq, TapError> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX_BYTES;
    // The kernel's own rule (dev_valid_name), and '%', which it would take for a pattern.
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if !fits || !plain || matches!(name, "." | "..") {
        return Err(TapError::Name {
            name: name.to_owned(),
        });
    }
    let mut ifr_name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (slot, byte) in ifr_name.iter_mut().zip(name.bytes()) {
        // c_char is signed on some machines; ASCII is the same either way.
        *slot = c_char::try_from(byte).map_err(|_| TapError::Name {
            name: name.to_owned(),
        })?;
    }
    Ok(libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: NEW_TAP_FLAGS,
        },
    })
}

const FILTER_LENGTH: u16 = 6;

/// Classic BPF (Documentation/networking/filter.rst): pass a frame whose destination is `guest`.
fn unicast_only(guest: [u8; 6]) -> [sock_filter; FILTER_LENGTH as usize] {
    let [a, b, c, d, e, f] = guest;
    let high = u32::from_be_bytes([a, b, c, d]);
    let low = u32::from(u16::from_be_bytes([e, f]));
    let load = libc::BPF_LD | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a code is 16 bits wide; the constants are ints in C"
    )]
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    [
        instruction(load | libc::BPF_W, 0, 0, 0),
        instruction(equal, 0, 3, high),
        instruction(load | libc::BPF_H, 0, 0, 4),
        instruction(equal, 0, 1, low),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

/// Waits until every packet that was under way in the kernel when this was called has been
/// delivered, queued or dropped: the network stack handles a packet inside one RCU read section,
/// and `MEMBARRIER_CMD_GLOBAL` returns after all such sections that were open have closed
/// (membarrier(2)). Blocks for some milliseconds; not for an async thread.
///
/// # Errors
/// `ENOSYS` on a kernel without the call, `EINVAL` with `nohz_full` processors.
pub fn packets_in_flight_settled() -> io::Result<()> {
    let no_flags: c_int = 0;
    // SAFETY: membarrier takes two integers (and a third that is ignored) and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, no_flags, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What went wrong while making a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name that an interface may have.
    #[error("{name:?} cannot name an interface: use 1 to {NAME_MAX_BYTES} plain ASCII characters")]
    Name {
        /// What was given.
        name: String,
    },
    /// The control device could not be opened.
    #[error("opening {DEVICE}")]
    Open(#[source] io::Error),
    /// The device could not be made; `EBUSY` or `EINVAL` when the name is taken.
    #[error("making the tap {name}")]
    Create {
        /// Which.
        name: String,
        /// Why.
        source: nix::Error,
    },
    /// The header's size was refused.
    #[error("setting the virtio header size of the tap {name}")]
    HeaderSize {
        /// Which.
        name: String,
        /// Why.
        source: nix::Error,
    },
    /// The filter was refused.
    #[error("attaching the filter of the tap {name}")]
    Filter {
        /// Which.
        name: String,
        /// Why.
        source: nix::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Namespace;
    use std::os::fd::AsFd;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "sixteen-letters-", "a b", "a/b", "a:b", "dm%d", "..", "é"] {
            assert!(matches!(request(name), Err(TapError::Name { .. })), "{name:?}");
        }
        assert!(request("dmt0123456789").is_ok());
        assert!(request("fifteen-letters").is_ok());
    }

    #[test]
    fn the_filter_compares_the_whole_address() {
        let filter = unicast_only([0x02, 0xd0, 1, 2, 3, 4]);
        assert_eq!((filter[1].k, filter[3].k), (0x02d0_0102, 0x0304));
        // Both jumps on a difference land on the last instruction, which drops.
        assert_eq!(1 + 1 + usize::from(filter[1].jf), filter.len() - 1);
        assert_eq!(3 + 1 + usize::from(filter[3].jf), filter.len() - 1);
        assert_eq!(filter[filter.len() - 1].k, 0);
    }

    #[test]
    fn a_tap_lives_as_long_as_its_descriptor() {
        let path = std::env::temp_dir().join(format!("dormouse-tap-{}", std::process::id()));
        let namespace = match Namespace::create_at(&path) {
            Ok(namespace) => namespace,
            Err(error) => {
                println!("skipped: a_tap_lives_as_long_as_its_descriptor: {error}");
                return;
            }
        };
        let exists = |name: &str| nix::net::if_::if_nametoindex(name).is_ok();
        namespace
            .within(|| {
                let tap = create("dmtap", [2, 0, 0, 0, 0, 1]).unwrap();
                assert!(exists("dmtap"));
                assert_eq!(super::name(tap.as_fd()).unwrap(), "dmtap");
                assert!(matches!(create("dmtap", [0; 6]), Err(TapError::Create { .. })));
                drop(tap);
                assert!(!exists("dmtap"));
                packets_in_flight_settled().unwrap();
            })
            .unwrap();
        Namespace::remove(&path).unwrap();
    }
}
