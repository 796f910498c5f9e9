//! Telling a service manager how we are, and giving it descriptors to keep: datagrams of lines on the socket
//! named by `NOTIFY_SOCKET` (`sd_notify(3)`).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::SocketAddr;
use std::time::Duration;

use dormouse_sys::descriptor;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// Most time for the manager to take a message: its socket is full only when it hangs.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News<'a> {
    /// The start is over.
    Ready,
    /// The end has begun.
    Stopping,
    /// A state for people, one line.
    Status(&'a str),
    /// We are alive.
    Watchdog,
    /// The descriptor beside this message is to be kept under this name, also when it hangs up or fails: a
    /// tap whose device is gone and a process that ended are still ours to let go of.
    Store(&'a str),
    /// What is kept under this name is to be closed.
    Remove(&'a str),
    /// The pipe beside this message is to be closed when all messages before it are handled.
    Barrier,
}

/// The lines of a message.
#[must_use]
pub fn message(news: &[News<'_>]) -> String {
    let mut lines = Vec::new();
    for one in news {
        match one {
            News::Ready => lines.push("READY=1".to_owned()),
            News::Stopping => lines.push("STOPPING=1".to_owned()),
            News::Status(text) => lines.push(format!("STATUS={}", text.replace('\n', " "))),
            News::Watchdog => lines.push("WATCHDOG=1".to_owned()),
            News::Store(name) => lines.push(format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0")),
            News::Remove(name) => lines.push(format!("FDSTOREREMOVE=1\nFDNAME={name}")),
            News::Barrier => lines.push("BARRIER=1".to_owned()),
        }
    }
    lines.join("\n")
}

/// The way to the manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
}

impl Notifier {
    /// The manager that `NOTIFY_SOCKET` names; `None` when there is none. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the variable is set and its socket cannot be used.
    pub fn from_environment() -> io::Result<Option<Self>> {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(address) if !address.is_empty() => Self::to(&address).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// The manager at `address`: a path, or an abstract name after `@`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When nobody has that socket.
    pub fn to(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = std::os::unix::net::UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixDatagram::from_std(socket)?,
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the manager is gone, or does not take it within [`DEADLINE`].
    pub async fn say(&self, news: &[News<'_>]) -> io::Result<()> {
        self.send(news, &[]).await
    }

    /// Has a descriptor kept. The manager keeps one only for a unit with `FileDescriptorStoreMax=`, and does
    /// not answer: [`Notifier::settled`] says only that it has read this.
    ///
    /// # Errors
    /// As [`Notifier::say`].
    pub async fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&[News::Store(name)], &[descriptor]).await
    }

    /// Waits until the manager has handled everything that was said.
    ///
    /// # Errors
    /// As [`Notifier::say`].
    pub async fn settled(&self) -> io::Result<()> {
        let (ours, theirs) = io::pipe()?;
        let theirs = OwnedFd::from(theirs);
        self.send(&[News::Barrier], &[theirs.as_fd()]).await?;
        drop(theirs);
        let mut ours = pipe::Receiver::from_owned_fd(OwnedFd::from(ours))?;
        // Nothing is ever written: the end comes when the manager closes its copy.
        timeout(DEADLINE, ours.read_u8()).await.map_or_else(
            |_| Err(io::ErrorKind::TimedOut.into()),
            |read| match read {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            },
        )
    }

    async fn send(&self, news: &[News<'_>], beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = message(news);
        let send = || descriptor::send(self.socket.as_fd(), text.as_bytes(), beside);
        let sent = timeout(DEADLINE, self.socket.async_io(Interest::WRITABLE, send)).await;
        sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .map(drop)
    }
}

/// How often a manager that watches us wants to hear that we are alive: half of `WATCHDOG_USEC`; `None` when
/// it does not watch this process.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0)?;
    Some(Duration::from_micros(micros) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_protocol() {
        for (news, want) in [
            (&[News::Ready, News::Status("a\nb")][..], "READY=1\nSTATUS=a b"),
            (&[News::Stopping], "STOPPING=1"),
            (&[News::Watchdog], "WATCHDOG=1"),
            (&[News::Store("x.tap")], "FDSTORE=1\nFDNAME=x.tap\nFDPOLL=0"),
            (&[News::Remove("x.tap")], "FDSTOREREMOVE=1\nFDNAME=x.tap"),
            (&[News::Barrier], "BARRIER=1"),
        ] {
            assert_eq!(message(news), want);
        }
    }

    #[tokio::test]
    async fn addresses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        assert!(Notifier::to(path.as_os_str()).is_err(), "nobody has it");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        notifier.say(&[News::Ready]).await.unwrap();
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        assert_eq!(
            Notifier::to(OsStr::new("vsock:2:3")).unwrap_err().kind(),
            io::ErrorKind::Unsupported
        );
        let name = format!("@dormouse-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let manager = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::to(OsStr::new(&name)).unwrap();
        notifier.say(&[News::Stopping]).await.unwrap();
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1");
    }
}
