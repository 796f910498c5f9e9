//! The control socket: sends commands, reads answers, remembers the one event that outlives the process.
//!
//! Cancel safe: a command is written by one call or not at all, and what was read stays in the decoder, so
//! the answer to a command whose caller has left is met later and skipped.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::qmp::{Command, Decoder, Event, Message, ShutdownCause, WireError};

/// Why a command has no result.
#[derive(Debug)]
pub(super) enum ClientError {
    /// QEMU said no.
    Refused {
        command: &'static str,
        description: String,
    },
    /// The other end is closed: the process has ended or is about to.
    Closed,
    /// The socket failed.
    Socket(io::Error),
    /// Nonsense was said.
    Wire(WireError),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    last_id: u64,
    shutdown: Option<ShutdownCause>,
}

impl Client {
    /// Connects. The listener may belong to a process that has not started yet: its queue holds us.
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::over(UnixStream::connect(path).await?))
    }

    fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            last_id: 0,
            shutdown: None,
        }
    }

    /// Why the guest or the process is ending, if that was said.
    pub(super) const fn shutdown(&self) -> Option<ShutdownCause> {
        self.shutdown
    }

    /// Sends a command and returns its number, without waiting for anything: QEMU executes them in order.
    pub(super) async fn send(
        &mut self,
        command: Command,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<u64, ClientError> {
        self.last_id += 1;
        let line = command.line(self.last_id);
        let raw: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let parts = [io::IoSlice::new(line.as_bytes())];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let write =
            || sendmsg::<()>(self.stream.as_raw_fd(), &parts, control, flags, None).map_err(io::Error::from);
        let written = self
            .stream
            .async_io(Interest::WRITABLE, write)
            .await
            .map_err(closed_or_failed)?;
        // A line of 200 bytes is taken whole unless the other end has left megabytes unread.
        if written == line.len() {
            Ok(self.last_id)
        } else {
            Err(ClientError::Closed)
        }
    }

    /// Reads until the answer to command number `id`.
    pub(super) async fn answer(&mut self, id: u64, command: Command) -> Result<Value, ClientError> {
        loop {
            match self.next_message().await? {
                Message::Return { id: got, value } if got == Some(id) => return Ok(value),
                Message::Error { id: got, description } if got == Some(id) || got.is_none() => {
                    return Err(ClientError::Refused {
                        command: command.name(),
                        description,
                    });
                }
                // Answers to commands whose callers have left.
                Message::Return { .. } | Message::Error { .. } => {}
                Message::Greeting { .. } | Message::Event(_) => {}
            }
        }
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn execute(&mut self, command: Command) -> Result<Value, ClientError> {
        let id = self.send(command, None).await?;
        self.answer(id, command).await
    }

    /// Reads what is left after the process has ended. From the socket itself: the runtime may not have
    /// noticed yet that there is something.
    pub(super) fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = recv(self.stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            self.decoder.push(buffer.get(..read).unwrap_or_default());
        }
        while let Ok(Some(message)) = self.decoder.next_message() {
            self.note(&message);
        }
    }

    async fn next_message(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Some(message) = self.decoder.next_message().map_err(ClientError::Wire)? {
                self.note(&message);
                return Ok(message);
            }
            self.stream.readable().await.map_err(ClientError::Socket)?;
            let mut buffer = [0; 4096];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(read) => self.decoder.push(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(closed_or_failed(error)),
            }
        }
    }

    /// Keeps what later questions need. The first cause is the true one: the process quits after it.
    fn note(&mut self, message: &Message) {
        match message {
            Message::Event(Event::Shutdown(cause)) => {
                self.shutdown.get_or_insert(*cause);
            }
            Message::Event(Event::Stop | Event::Resume | Event::Other)
            | Message::Greeting { .. }
            | Message::Return { .. }
            | Message::Error { .. } => {}
        }
    }
}

fn closed_or_failed(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
            ClientError::Closed
        }
        _ => ClientError::Socket(error),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
