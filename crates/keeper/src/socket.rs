//! Frames and descriptors on a Unix stream.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use dormouse_sys::descriptor::{self, MAX_DESCRIPTORS};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::wire::MAX_FRAME;

/// Bytes of a frame's length.
const HEADER: usize = 4;

/// A frame with what came beside it.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) frame: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A connection. Its ends take turns: whoever has sent a frame waits for one.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
}

impl Connection {
    pub(crate) const fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }

    /// The user at the other end, as the kernel knows it.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(self.stream.peer_cred()?.uid())
    }

    /// Sends a frame. When it fails the stream is of no use any more.
    pub(crate) async fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(frame);
        let mut rest = bytes.as_slice();
        // They go with the first byte and never again.
        let mut beside = descriptors;
        while !rest.is_empty() {
            let send = || descriptor::send(self.stream.as_fd(), rest, beside);
            let sent = self.stream.async_io(Interest::WRITABLE, send).await?;
            rest = rest.get(sent..).unwrap_or_default();
            beside = &[];
        }
        Ok(())
    }

    /// Receives a frame; `None` when the other end has closed between frames.
    pub(crate) async fn receive(&self) -> io::Result<Option<Frame>> {
        let mut descriptors = Vec::new();
        let mut header = [0; HEADER];
        if !self.fill(&mut header, &mut descriptors).await? {
            return Ok(None);
        }
        let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut frame = vec![0; length];
        if !self.fill(&mut frame, &mut descriptors).await? && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(Frame { frame, descriptors }))
    }

    /// Fills `buffer`; `false` when the stream has ended before its first byte.
    async fn fill(&self, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let receive = || descriptor::receive(self.stream.as_fd(), rest);
            let received = self.stream.async_io(Interest::READABLE, receive).await?;
            if received.length == 0 {
                let inside = filled > 0;
                return if inside {
                    Err(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(false)
                };
            }
            filled += received.length;
            descriptors.extend(received.descriptors);
            if descriptors.len() > MAX_DESCRIPTORS {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(filled > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[tokio::test]
    async fn frames_keep_their_borders_and_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Connection::new(a), Connection::new(b));
        let descriptor = null();
        a.send(b"one", &[descriptor.as_fd()]).await.unwrap();
        a.send(b"", &[]).await.unwrap();
        a.send(b"three", &[descriptor.as_fd(), descriptor.as_fd()])
            .await
            .unwrap();
        drop(a);
        for (frame, count) in [(b"one".as_slice(), 1), (b"", 0), (b"three", 2)] {
            let received = b.receive().await.unwrap().unwrap();
            assert_eq!(
                (received.frame.as_slice(), received.descriptors.len()),
                (frame, count)
            );
        }
        assert!(b.receive().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_frame_larger_than_the_socket_arrives_whole() {
        let (a, b) = UnixStream::pair().unwrap();
        nix::sys::socket::setsockopt(&a, nix::sys::socket::sockopt::SndBuf, &4096).unwrap();
        let (a, b) = (Connection::new(a), Connection::new(b));
        let frame = vec![7; MAX_FRAME];
        let descriptor = null();
        let beside = [descriptor.as_fd()];
        let (sent, received) = tokio::join!(a.send(&frame, &beside), b.receive());
        sent.unwrap();
        let received = received.unwrap().unwrap();
        assert_eq!((received.frame == frame, received.descriptors.len()), (true, 1));
    }

    #[tokio::test]
    async fn cuts_and_lies_are_errors() {
        for (bytes, want) in [
            (vec![1, 0], io::ErrorKind::UnexpectedEof),
            (vec![5, 0, 0, 0, b'a'], io::ErrorKind::UnexpectedEof),
            (vec![5, 0, 0, 0], io::ErrorKind::UnexpectedEof),
            (vec![0xff, 0xff, 0xff, 0xff], io::ErrorKind::InvalidData),
        ] {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(&bytes).await.unwrap();
            drop(a);
            assert_eq!(
                Connection::new(b).receive().await.unwrap_err().kind(),
                want,
                "{bytes:?}"
            );
        }
    }
}
