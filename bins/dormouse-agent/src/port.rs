//! The virtio-serial port to the daemon.
//!
//! What the driver (drivers/char/virtio_console.c) does with a non-blocking port: `read` returns 0
//! while the host side is closed and `EAGAIN` while it is open and silent; `write` returns `EAGAIN`
//! while the host side is closed; `poll` always says hang-up while it is closed. The last would make
//! a loop spin, so the loop watches edges: the driver wakes its pollers whenever the host side opens
//! or closes, data comes, or room appears.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_guest::{Channel, Event, PORT_NAME};

use crate::uevent::Uevents;

const PORTS: &str = "/sys/class/virtio-ports";

/// The VMM announces the port after a round trip with the driver; a busy host may take a while.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);

/// The open port.
pub(crate) struct Port {
    file: File,
}

impl Port {
    /// Waits for the port and opens it.
    pub(crate) fn open(uevents: &Uevents) -> Result<Self> {
        let path = uevents.wait_for("the agent's virtio-serial port", APPEARS_WITHIN, find)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self { file })
    }

    /// For the loop to watch.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Reads and writes all that goes without waiting.
    pub(crate) fn exchange(&mut self, channel: &mut Channel, events: &mut Vec<Event>) -> Result<()> {
        let mut buffer = vec![0_u8; 1 << 16];
        loop {
            match self.file.read(&mut buffer) {
                // Nobody is there: half-read and half-written frames will not be continued.
                Ok(0) => {
                    channel.disconnected();
                    return Ok(());
                }
                Ok(count) => channel.receive(buffer.get(..count).unwrap_or_default(), events),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read the agent's port"),
            }
        }
        self.flush(channel)
    }

    /// Writes what waits and goes without waiting.
    pub(crate) fn flush(&mut self, channel: &mut Channel) -> Result<()> {
        while !channel.outgoing().is_empty() {
            match self.file.write(channel.outgoing()) {
                Ok(count) => channel.wrote(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("write the agent's port"),
            }
        }
        Ok(())
    }
}

/// The device node of the port with our name: numbers follow the order of discovery and say nothing.
fn find() -> Result<Option<PathBuf>> {
    let Ok(ports) = fs::read_dir(PORTS) else {
        return Ok(None);
    };
    for port in ports.flatten() {
        let named = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        let node = PathBuf::from("/dev").join(port.file_name());
        if named.trim() == PORT_NAME && node.exists() {
            return Ok(Some(node));
        }
    }
    Ok(None)
}
