//! Waiting for devices: the kernel announces each on a netlink socket, so nobody polls.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The multicast group of the kernel's own announcements (include/linux/netlink.h has 2 for udev's).
const KERNEL_GROUP: u32 = 1;

/// Announcements of devices that appear, change or go.
pub(crate) struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Listens from here on.
    pub(crate) fn listen() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .context("open the socket of device announcements")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))
            .context("listen to device announcements")?;
        Ok(Self { socket })
    }

    /// Asks `find` now and after every announcement until it finds something.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = find()? {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what} did not appear within {} s", limit.as_secs());
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(
                &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
                timeout,
            ) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => self.drain(),
                Err(errno) => return Err(errno).context("wait for device announcements"),
            }
        }
    }

    /// Takes what is queued; what it says is read from sysfs instead, which cannot be lost.
    fn drain(&self) {
        let mut buffer = [0_u8; 8192];
        while recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_ok_and(|n| n > 0) {}
    }
}
