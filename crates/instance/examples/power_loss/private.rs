//! The process of a guest whose memory is mapped privately: what it writes is in pages of its own, as it is
//! under a real monitor, until a sleep writes them back into the file.
//!
//! It is this program again, with the RAM file as its standard input and a socket as its standard output. A
//! request is an offset and a page; the answer is one byte.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use dormouse_model::Bytes;
use dormouse_sys::memory::FileMap;

/// The argument that makes this program such a process.
pub(crate) const ROLE: &str = "private-memory";

const PAGE: usize = 4096;

/// The process; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct PrivateMemory {
    child: Child,
    line: UnixStream,
}

impl PrivateMemory {
    /// Starts it over the first `size` bytes of `ram`.
    pub(crate) fn start(ram: &File, size: Bytes) -> io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        // Whatever became of the file that it was started from.
        let child = Command::new("/proc/self/exe")
            .args([ROLE, &size.0.to_string()])
            .stdin(ram.try_clone()?)
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, line })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a page at `offset` of the guest's memory.
    pub(crate) fn write(&mut self, offset: u64, page: &[u8]) -> io::Result<()> {
        self.line.write_all(&offset.to_le_bytes())?;
        self.line.write_all(page)?;
        self.line.read_exact(&mut [0])
    }
}

impl Drop for PrivateMemory {
    fn drop(&mut self) {
        // One that has ended is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the process does, until the other end of the line is gone.
pub(crate) fn serve(size: Bytes) -> io::Result<()> {
    let ram = io::stdin().as_fd().try_clone_to_owned()?;
    let mut line = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let length = usize::try_from(size.0).map_err(io::Error::other)?;
    let mut memory = FileMap::new(&ram, length, false)?;
    let (mut offset, mut page) = ([0; 8], [0; PAGE]);
    while line.read_exact(&mut offset).is_ok() {
        line.read_exact(&mut page)?;
        let at = usize::try_from(u64::from_le_bytes(offset)).map_err(io::Error::other)?;
        memory.write(at, &page)?;
        line.write_all(&[0])?;
    }
    Ok(())
}
