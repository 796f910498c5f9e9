//! A storm of clients: TCP connections with one echo each, UDP datagrams and pings, half IPv4 and half
//! IPv6, from many sources, all sent within some milliseconds by one thread.
//!
//! Run it in the namespace of the clients; everything is counted and checked, nothing is sent twice by
//! us: whatever is repeated is the kernel's doing and is in [`StormReport::retransmits`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recv, send,
    setsockopt, socket, sockopt,
};

use crate::figures::Samples;
use crate::lab::Retransmits;

/// What is sent, and where to.
#[derive(Debug, Clone)]
pub(crate) struct Storm {
    /// TCP connections, each with one echo of 8 bytes.
    pub tcp: usize,
    /// UDP datagrams.
    pub udp: usize,
    /// Echo requests.
    pub ping: usize,
    /// The target's addresses, IPv4 and IPv6.
    pub to: [IpAddr; 2],
    /// Its TCP echo.
    pub tcp_port: u16,
    /// Its UDP echo.
    pub udp_port: u16,
    /// Where from, IPv4 and IPv6.
    pub sources: [Vec<IpAddr>; 2],
    /// What is not answered after this long is lost.
    pub deadline: Duration,
}

/// What came of it. Times are from the first packet of each connection.
#[derive(Debug, Default)]
pub(crate) struct StormReport {
    /// Milliseconds to connect.
    pub connect: Samples,
    /// Milliseconds to the first byte of the right answer.
    pub first_byte: Samples,
    /// Milliseconds it took to send everything.
    pub sent_ms: f64,
    /// Connections, datagrams and pings without their answer at the deadline.
    pub lost: u64,
    /// Connections that were reset or answered with other bytes; they are lost too.
    pub broken: u64,
    /// What the kernel sent again.
    pub retransmits: Retransmits,
}

/// Where a TCP connection is.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Connecting,
    Asked,
    Over,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    begun: Instant,
    phase: Phase,
}

/// Sockets for datagrams or pings, and which of their numbers came back.
#[derive(Debug)]
struct Datagrams {
    sockets: Vec<OwnedFd>,
    answered: Vec<bool>,
}

/// Names of epoll's tokens: connections come first, then the sockets of datagrams, then of pings.
#[derive(Debug)]
struct Field {
    epoll: Epoll,
    connections: Vec<Connection>,
    udp: Datagrams,
    ping: Datagrams,
}

/// Runs the storm; `begun` is called when the first packet is about to go.
pub(crate) fn run(storm: &Storm, begun: impl FnOnce()) -> Result<StormReport> {
    let mut field = prepare(storm)?;
    let before = Retransmits::now()?;
    let mut report = StormReport::default();
    begun();
    let start = Instant::now();
    fire(storm, &mut field)?;
    report.sent_ms = start.elapsed().as_secs_f64() * 1e3;
    for (token, connection) in field.connections.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLOUT, token as u64);
        field
            .epoll
            .add(&connection.socket, event)
            .context("watching a connection")?;
    }
    let mut open = storm.tcp;
    let mut events = vec![EpollEvent::empty(); 512];
    while start.elapsed() < storm.deadline && (open > 0 || field.udp.missing() + field.ping.missing() > 0) {
        let ready = match field.epoll.wait(&mut events, EpollTimeout::from(100_u8)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("waiting for answers"),
        };
        for event in events.iter().take(ready) {
            open -= field.answer(event.data(), &mut report)?;
        }
    }
    report.lost = (storm.tcp - report.first_byte.len() + field.udp.missing() + field.ping.missing()) as u64;
    report.retransmits = Retransmits::now()?.since(before);
    Ok(report)
}

/// All sockets, bound to their sources, so that the storm itself only sends.
fn prepare(storm: &Storm) -> Result<Field> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("making an epoll")?;
    let source = |turn: usize| {
        let of_family = storm.sources.get(turn % 2)?;
        of_family.get((turn / 2) % of_family.len().max(1)).copied()
    };
    let mut connections = Vec::with_capacity(storm.tcp);
    for turn in 0..storm.tcp {
        let socket = open(SockType::Stream, None, source(turn), family(turn))?;
        // A reset instead of a FIN: nothing is left that would knock at a sleeper later.
        setsockopt(
            &socket,
            sockopt::Linger,
            &linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )
        .context("setting SO_LINGER")?;
        setsockopt(&socket, sockopt::TcpNoDelay, &true).context("setting TCP_NODELAY")?;
        connections.push(Connection {
            socket,
            begun: Instant::now(),
            phase: Phase::Connecting,
        });
    }
    let per_family = storm.sources.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut udp = Datagrams {
        sockets: Vec::new(),
        answered: vec![false; storm.udp],
    };
    let mut ping = Datagrams {
        sockets: Vec::new(),
        answered: vec![false; storm.ping],
    };
    for turn in 0..2 * per_family {
        let target = storm
            .to
            .get(turn % 2)
            .copied()
            .context("a target of both families")?;
        let socket = open(SockType::Datagram, None, source(turn), family(turn))?;
        connect_to(&socket, SocketAddr::new(target, storm.udp_port))?;
        udp.sockets.push(socket);
        let protocol = if turn.is_multiple_of(2) {
            SockProtocol::Icmp
        } else {
            SockProtocol::IcmpV6
        };
        let socket = open(SockType::Datagram, Some(protocol), source(turn), family(turn))?;
        connect_to(&socket, SocketAddr::new(target, 0))?;
        ping.sockets.push(socket);
    }
    for (place, socket) in udp.sockets.iter().chain(&ping.sockets).enumerate() {
        let token = (storm.tcp + place) as u64;
        epoll
            .add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .context("watching a socket")?;
    }
    Ok(Field {
        epoll,
        connections,
        udp,
        ping,
    })
}

fn family(turn: usize) -> AddressFamily {
    if turn.is_multiple_of(2) {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn open(
    kind: SockType,
    protocol: Option<SockProtocol>,
    from: Option<IpAddr>,
    family: AddressFamily,
) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, kind, flags, protocol).context("opening a socket")?;
    if let Some(from) = from {
        if protocol.is_none() {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
                .context("setting IP_BIND_ADDRESS_NO_PORT")?;
        }
        bind(
            socket.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(from, 0)),
        )
        .with_context(|| format!("binding to {from}"))?;
    }
    Ok(socket)
}

fn connect_to(socket: &OwnedFd, to: SocketAddr) -> Result<()> {
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("connecting to {to}")),
    }
}

/// Sends everything, the kinds mixed as evenly as their numbers allow.
fn fire(storm: &Storm, field: &mut Field) -> Result<()> {
    let most = storm.tcp.max(storm.udp).max(storm.ping);
    // How many of `all` are due once `turn` of `most` turns are over.
    let due = |all: usize, turn: usize| (turn + 1) * all / most.max(1);
    let (mut tcp, mut udp, mut ping) = (0, 0, 0);
    for turn in 0..most {
        while tcp < due(storm.tcp, turn) {
            let target = storm
                .to
                .get(tcp % 2)
                .copied()
                .context("a target of both families")?;
            let connection = field.connections.get_mut(tcp).context("a connection")?;
            connection.begun = Instant::now();
            // A refusal may come before the call returns; the connection is then found broken.
            let _ = connect_to(&connection.socket, SocketAddr::new(target, storm.tcp_port));
            tcp += 1;
        }
        while udp < due(storm.udp, turn) {
            field.udp.send(udp, &number_bytes(udp))?;
            udp += 1;
        }
        while ping < due(storm.ping, turn) {
            // ICMP_ECHO, ICMPV6_ECHO_REQUEST; identifier and checksum are the kernel's to fill in.
            let kind = if ping.is_multiple_of(2) { 8 } else { 128 };
            let mut echo = vec![kind, 0, 0, 0, 0, 0];
            echo.extend(u16::try_from(ping).unwrap_or(u16::MAX).to_be_bytes());
            echo.extend(number_bytes(ping));
            field.ping.send(ping, &echo)?;
            ping += 1;
        }
    }
    Ok(())
}

fn number_bytes(number: usize) -> [u8; 8] {
    (number as u64).to_be_bytes()
}

impl Datagrams {
    fn missing(&self) -> usize {
        self.answered.iter().filter(|answered| !**answered).count()
    }

    /// Sends `bytes` by the socket whose turn it is. A port that is closed is told by an error of a later
    /// call, in place of which nothing is sent: that datagram is lost, and counted as such.
    fn send(&self, number: usize, bytes: &[u8]) -> Result<()> {
        let socket = self
            .sockets
            .get(number % self.sockets.len().max(1))
            .context("a socket")?;
        match send(socket.as_raw_fd(), bytes, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH) => Ok(()),
            Err(errno) => Err(errno).context("sending a datagram"),
        }
    }

    /// Takes all that came; the last 8 bytes of each are its number.
    fn take(&mut self, socket: usize) -> Result<()> {
        let socket = self.sockets.get(socket).context("a socket")?;
        let mut bytes = [0_u8; 256];
        loop {
            match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(length) => {
                    let tail = bytes
                        .get(length.saturating_sub(8)..length)
                        .and_then(|tail| tail.try_into().ok());
                    let number = tail
                        .map(u64::from_be_bytes)
                        .and_then(|number| usize::try_from(number).ok());
                    if let Some(answered) = number.and_then(|number| self.answered.get_mut(number)) {
                        *answered = true;
                    }
                }
                Err(Errno::EAGAIN) => return Ok(()),
                // The port may be closed for a moment: what is not answered is counted as lost.
                Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH) => {}
                Err(errno) => return Err(errno).context("receiving a datagram"),
            }
        }
    }
}

impl Field {
    /// Handles what is ready; returns how many connections are over by it.
    fn answer(&mut self, token: u64, report: &mut StormReport) -> Result<usize> {
        let token = usize::try_from(token).context("a token")?;
        let Some(past) = token.checked_sub(self.connections.len()) else {
            return self.advance(token, report);
        };
        match past.checked_sub(self.udp.sockets.len()) {
            None => self.udp.take(past)?,
            Some(past) => self.ping.take(past)?,
        }
        Ok(0)
    }

    /// One step of a connection.
    fn advance(&mut self, token: usize, report: &mut StormReport) -> Result<usize> {
        let connection = self.connections.get_mut(token).context("a connection")?;
        let elapsed_ms = connection.begun.elapsed().as_secs_f64() * 1e3;
        let raw = connection.socket.as_raw_fd();
        let want = number_bytes(token);
        let over = match connection.phase {
            Phase::Connecting => match send(raw, &want, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {
                    report.connect.push(elapsed_ms);
                    connection.phase = Phase::Asked;
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, token as u64);
                    self.epoll
                        .modify(connection.socket.as_fd(), &mut event)
                        .context("watching for an answer")?;
                    false
                }
                Err(Errno::EAGAIN) => false,
                Err(_) => true,
            },
            Phase::Asked => {
                let mut bytes = [0_u8; 16];
                match recv(raw, &mut bytes, MsgFlags::empty()) {
                    Ok(length) if bytes.get(..length) == Some(&want[..]) => {
                        report.first_byte.push(elapsed_ms);
                        self.epoll
                            .delete(connection.socket.as_fd())
                            .context("forgetting a connection")?;
                        connection.phase = Phase::Over;
                        return Ok(1);
                    }
                    Err(Errno::EAGAIN) => false,
                    Ok(_) | Err(_) => true,
                }
            }
            Phase::Over => false,
        };
        if over {
            report.broken += 1;
            connection.phase = Phase::Over;
            self.epoll
                .delete(connection.socket.as_fd())
                .context("forgetting a connection")?;
        }
        Ok(usize::from(over))
    }
}

/// Raises the limit of open files to what a storm takes.
pub(crate) fn allow_sockets(count: u64) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    if soft >= count {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count))
        .map_err(io::Error::from)
        .with_context(|| format!("raising the limit of open files to {count}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{HOST, join_namespaces, sources};
    use dormouse_sys::netns::Namespace;
    use std::net::{Ipv6Addr, TcpListener, UdpSocket};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Two namespaces joined by a veth pair; `None`, with the reason printed, where that cannot be had.
    fn need_namespaces(test: &str) -> Option<[(std::path::PathBuf, Namespace); 2]> {
        let make = |name: &str| {
            let path = std::env::temp_dir().join(format!("dm-storm-{test}-{name}-{}", std::process::id()));
            Namespace::create_at(&path).map(|namespace| (path, namespace))
        };
        match (make("server"), make("client")) {
            (Ok(server), Ok(client)) => Some([server, client]),
            (Err(error), _) | (_, Err(error)) => {
                println!("skipped: {test}: {error}");
                None
            }
        }
    }

    /// A plain echo server for TCP and UDP on port 7000 of both families, until told to stop.
    fn echo(stop: &AtomicBool) {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7000)).unwrap();
        let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7000)).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut bytes = [0; 64];
                while !stop.load(Ordering::Acquire) {
                    if let Ok((length, from)) = udp.recv_from(&mut bytes) {
                        udp.send_to(&bytes[..length], from).unwrap();
                    }
                }
            });
            // The client keeps its connections until all are answered.
            let mut open = Vec::new();
            while !stop.load(Ordering::Acquire) {
                let Ok((mut stream, _)) = listener.accept() else {
                    continue;
                };
                let mut bytes = [0; 8];
                stream.set_nonblocking(false).unwrap();
                io::Read::read_exact(&mut stream, &mut bytes).unwrap();
                io::Write::write_all(&mut stream, &bytes).unwrap();
                open.push(stream);
            }
        });
    }

    #[test]
    fn a_storm_at_an_awake_server_loses_nothing() {
        let Some([(server_path, server), (client_path, client)]) = need_namespaces("storm") else {
            return;
        };
        join_namespaces(&server, &client).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let thread = server.spawn("echo", move || echo(&until)).unwrap();
        let storm = Storm {
            tcp: 60,
            udp: 40,
            ping: 20,
            to: HOST,
            tcp_port: 7000,
            udp_port: 7000,
            sources: sources(),
            deadline: Duration::from_secs(10),
        };
        let mut began = false;
        let report = client.within(|| run(&storm, || began = true)).unwrap().unwrap();
        // A port that nobody serves: every connection breaks, and is lost.
        let closed = Storm {
            tcp_port: 9,
            udp_port: 9,
            deadline: Duration::from_secs(2),
            ..storm
        };
        let refused = client.within(|| run(&closed, || ())).unwrap().unwrap();
        stop.store(true, Ordering::Release);
        thread.join().unwrap();
        for path in [server_path, client_path] {
            Namespace::remove(&path).unwrap();
        }
        assert!(began);
        assert_eq!(
            (report.lost, report.broken, report.retransmits.syn),
            (0, 0, 0),
            "{report:?}"
        );
        assert_eq!((report.connect.len(), report.first_byte.len()), (60, 60));
        assert_eq!((refused.lost, refused.broken), (100, 60), "{refused:?}");
    }
}
