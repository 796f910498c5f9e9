//! A server for guests in benches and tests: echoes, burns memory on demand, and tells the guest
//! kernel's own counters. One thread and one epoll serve thousands of connections.
//!
//! | port | what |
//! |---|---|
//! | TCP 7000 | echo, backlog 4096 |
//! | UDP 7001 | echo |
//! | TCP 7002 | commands, one a line; each answer ends with a line `ok` or `error: WHY` |
//! | TCP 8080 | HTTP: any GET is answered 200 with a request counter and the uptime |
//!
//! All on IPv4 and IPv6. Commands:
//!
//! - `fill MIB`: takes that much memory, writes pseudo-random bytes into it and keeps it
//! - `touch PAGES_PER_S MIB`: from now on writes so many pages a second, in turn, of so much memory;
//!   0 pages end it
//! - `clock`: CLOCK_REALTIME in nanoseconds
//! - `netstat`: the guest's counters of wrong checksums and overflows, `NAME VALUE` a line
//! - `quit`: ends the server with status 0

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, listen,
    setsockopt, socket, sockopt,
};

const ECHO: u16 = 7000;
const ECHO_DATAGRAMS: u16 = 7001;
const COMMANDS: u16 = 7002;
const HTTP: u16 = 8080;

const BACKLOG: i32 = 4096;
const PAGE: usize = 4096;

/// Unsent bytes of one connection after which it is read no more until its peer takes them.
const MAX_UNSENT: usize = 1 << 20;

/// The longest command line or HTTP head.
const MAX_LINE: usize = 8192;

fn main() -> ExitCode {
    match Server::start().and_then(Server::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "dormouse-testserver: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Service {
    Echo,
    Commands,
    Http,
}

struct Connection {
    stream: TcpStream,
    service: Service,
    input: Vec<u8>,
    unsent: Vec<u8>,
    /// The peer ended its side, or we are done: close when everything is sent.
    closing: bool,
}

struct Server {
    epoll: Epoll,
    listeners: HashMap<u64, (TcpListener, Service)>,
    datagrams: HashMap<u64, UdpSocket>,
    connections: HashMap<u64, Connection>,
    began: Instant,
    requests: u64,
    memory: Vec<Vec<u8>>,
    toucher: Arc<Toucher>,
    quit: bool,
}

/// The names under which descriptors wait in epoll.
fn cookie(descriptor: &impl AsFd) -> u64 {
    u64::try_from(descriptor.as_fd().as_raw_fd()).unwrap_or(u64::MAX)
}

impl Server {
    fn start() -> io::Result<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let toucher = Arc::new(Toucher::default());
        let for_thread = Arc::clone(&toucher);
        std::thread::Builder::new()
            .name("toucher".to_owned())
            .spawn(move || for_thread.run())?;
        let mut server = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            listeners: HashMap::new(),
            datagrams: HashMap::new(),
            connections: HashMap::new(),
            began: Instant::now(),
            requests: 0,
            memory: Vec::new(),
            toucher,
            quit: false,
        };
        for (port, service) in [
            (ECHO, Service::Echo),
            (COMMANDS, Service::Commands),
            (HTTP, Service::Http),
        ] {
            for family in [AddressFamily::Inet6, AddressFamily::Inet] {
                server.listen(family, port, service)?;
            }
        }
        for family in [AddressFamily::Inet6, AddressFamily::Inet] {
            server.listen_datagrams(family, ECHO_DATAGRAMS)?;
        }
        Ok(server)
    }

    fn listen(&mut self, family: AddressFamily, port: u16, service: Service) -> io::Result<()> {
        let Some(socket) = bound(family, SockType::Stream, port)? else {
            return Ok(());
        };
        listen(&socket, Backlog::new(BACKLOG)?)?;
        self.epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, cookie(&socket)))?;
        self.listeners.insert(cookie(&socket), (socket.into(), service));
        Ok(())
    }

    fn listen_datagrams(&mut self, family: AddressFamily, port: u16) -> io::Result<()> {
        let Some(socket) = bound(family, SockType::Datagram, port)? else {
            return Ok(());
        };
        // As much as the kernel gives: a burst waits here while an emulated processor comes round.
        let _limited = setsockopt(&socket, sockopt::RcvBuf, &(4 << 20));
        let _not_privileged = setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20));
        let socket = UdpSocket::from(socket);
        self.epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, cookie(&socket)))?;
        self.datagrams.insert(cookie(&socket), socket);
        Ok(())
    }

    fn serve(mut self) -> io::Result<()> {
        let mut ready = vec![EpollEvent::empty(); 512];
        while !self.quit {
            let count = match self.epoll.wait(&mut ready, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in ready.iter().take(count) {
                let name = event.data();
                if self.listeners.contains_key(&name) {
                    self.accept(name)?;
                } else if let Some(socket) = self.datagrams.get(&name) {
                    echo_datagrams(socket);
                } else {
                    self.talk(name);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, name: u64) -> io::Result<()> {
        while let Some((listener, service)) = self.listeners.get(&name) {
            // No more wait, or this one is gone again, or there is no descriptor for it now.
            let Ok((stream, _)) = listener.accept() else {
                return Ok(());
            };
            stream.set_nonblocking(true)?;
            let connection = Connection {
                stream,
                service: *service,
                input: Vec::new(),
                unsent: Vec::new(),
                closing: false,
            };
            let edges =
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            let name = cookie(&connection.stream);
            self.epoll.add(&connection.stream, EpollEvent::new(edges, name))?;
            self.connections.insert(name, connection);
            self.talk(name);
        }
        Ok(())
    }

    /// Reads, answers and writes all that goes without waiting; drops a connection that is done.
    fn talk(&mut self, name: u64) {
        let Some(mut connection) = self.connections.remove(&name) else {
            return;
        };
        let mut alive = true;
        while alive {
            let room = connection.unsent.len() < MAX_UNSENT && !connection.closing;
            let read = if room { connection.read() } else { Ok(0) };
            match read {
                Ok(count) => {
                    self.answer(&mut connection);
                    let before = connection.unsent.len();
                    alive = connection.write().is_ok();
                    // Without progress either way there is nothing to do until the next edge.
                    if count == 0 && connection.unsent.len() == before {
                        break;
                    }
                }
                Err(_) => alive = false,
            }
        }
        if alive && !(connection.closing && connection.unsent.is_empty()) {
            self.connections.insert(name, connection);
        }
    }

    fn answer(&mut self, connection: &mut Connection) {
        match connection.service {
            Service::Echo => connection.unsent.append(&mut connection.input),
            Service::Http => self.answer_http(connection),
            Service::Commands => {
                while let Some(line) = take_through(&mut connection.input, b"\n") {
                    let answer = self.command(String::from_utf8_lossy(&line).trim());
                    connection.unsent.extend_from_slice(answer.as_bytes());
                }
            }
        }
        if connection.input.len() > MAX_LINE {
            connection.closing = true;
        }
    }

    fn answer_http(&mut self, connection: &mut Connection) {
        while let Some(head) = take_through(&mut connection.input, b"\r\n\r\n") {
            self.requests += 1;
            let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let keep = head.contains("http/1.1") && !head.contains("connection: close");
            let uptime = self.began.elapsed().as_millis();
            let body = format!("request {} uptime_ms {uptime}\n", self.requests);
            let (status, body) = if head.starts_with("get ") {
                ("200 OK", body)
            } else {
                ("405 Method Not Allowed", String::new())
            };
            let connection_header = if keep { "keep-alive" } else { "close" };
            let text = format!(
                "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection_header}\r\n\r\n{body}",
                body.len()
            );
            connection.unsent.extend_from_slice(text.as_bytes());
            connection.closing |= !keep;
        }
    }

    fn command(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| text.parse::<usize>().ok();
        let done = "ok\n".to_owned();
        match words[..] {
            ["fill", mib] => match number(mib) {
                Some(mib) => {
                    self.memory.push(noise(mib << 20));
                    done
                }
                None => "error: fill MIB\n".to_owned(),
            },
            ["touch", pages, mib] => match (number(pages), number(mib)) {
                (Some(pages), Some(mib)) => {
                    self.toucher.set(pages, mib);
                    done
                }
                _ => "error: touch PAGES_PER_S MIB\n".to_owned(),
            },
            ["clock"] => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                format!("{}\nok\n", now.as_nanos())
            }
            ["netstat"] => counters() + "ok\n",
            ["quit"] => {
                self.quit = true;
                done
            }
            _ => "error: fill MIB | touch PAGES_PER_S MIB | clock | netstat | quit\n".to_owned(),
        }
    }
}

impl Connection {
    /// Reads what there is, up to a bound; 0 when there is nothing now.
    fn read(&mut self) -> io::Result<usize> {
        let mut buffer = [0_u8; 1 << 14];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.closing = true;
                Ok(0)
            }
            Ok(count) => {
                self.input
                    .extend_from_slice(buffer.get(..count).unwrap_or_default());
                Ok(count)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A bound non-blocking socket; `None` where the family is switched off.
fn bound(family: AddressFamily, kind: SockType, port: u16) -> io::Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let Ok(socket) = socket(family, kind, flags, None) else {
        return Ok(None);
    };
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let address: Box<dyn SockaddrLike> = if family == AddressFamily::Inet6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        Box::new(SockaddrIn6::from(std::net::SocketAddrV6::new(
            std::net::Ipv6Addr::UNSPECIFIED,
            port,
            0,
            0,
        )))
    } else {
        Box::new(SockaddrIn::from(std::net::SocketAddrV4::new(
            std::net::Ipv4Addr::UNSPECIFIED,
            port,
        )))
    };
    match bind(socket.as_raw_fd(), address.as_ref()) {
        Ok(()) => Ok(Some(socket)),
        Err(nix::errno::Errno::EADDRNOTAVAIL | nix::errno::Errno::EAFNOSUPPORT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0_u8; 1 << 16];
    while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
        // A full send buffer loses it, as any datagram may be lost.
        let _lost = socket.send_to(buffer.get(..count).unwrap_or_default(), peer);
    }
}

/// Removes and returns the bytes up to and with `end`.
fn take_through(input: &mut Vec<u8>, end: &[u8]) -> Option<Vec<u8>> {
    let at = input.windows(end.len()).position(|window| window == end)?;
    Some(input.drain(..at + end.len()).collect())
}

/// Bytes that do not compress, by Marsaglia's xorshift.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0_u8; length];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for (byte, random) in chunk.iter_mut().zip(state.to_le_bytes()) {
            *byte = random;
        }
    }
    bytes
}

/// Writes pages at a rate, in a thread of its own.
#[derive(Default)]
struct Toucher {
    /// Pages a second and mebibytes.
    wanted: Mutex<(usize, usize)>,
    changed: Condvar,
    written: AtomicU64,
}

/// How often a second the toucher writes its share.
const BEATS: usize = 100;

impl Toucher {
    fn set(&self, pages_per_second: usize, mib: usize) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = (pages_per_second, mib);
        self.changed.notify_all();
    }

    fn run(&self) {
        let (mut memory, mut at) = (Vec::new(), 0_usize);
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pages_per_second, mib) = *wanted;
            if pages_per_second == 0 || mib == 0 {
                memory = Vec::new();
                wanted = self.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if memory.len() != mib << 20 {
                memory = noise(mib << 20);
            }
            let pages = memory.len() / PAGE;
            for _ in 0..pages_per_second.div_ceil(BEATS) {
                let count = self.written.fetch_add(1, Ordering::Relaxed);
                if let Some(slot) = memory
                    .get_mut((at % pages) * PAGE..)
                    .and_then(|rest| rest.first_chunk_mut())
                {
                    *slot = count.to_le_bytes();
                }
                at = at.wrapping_add(1);
            }
            let beat = Duration::from_secs(1) / u32::try_from(BEATS).unwrap_or(1);
            wanted = match self.changed.wait_timeout(wanted, beat) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// The counters that benches look at, from the kernel's tables of them.
fn counters() -> String {
    const WANTED: [&str; 14] = [
        "Tcp.InCsumErrors",
        "Tcp.RetransSegs",
        "Tcp.InErrs",
        "Udp.InCsumErrors",
        "Udp.InErrors",
        "Udp.RcvbufErrors",
        "Icmp.InCsumErrors",
        "TcpExt.ListenOverflows",
        "TcpExt.ListenDrops",
        "TcpExt.SyncookiesSent",
        "TcpExt.TCPSynRetrans",
        "Udp6InCsumErrors",
        "Udp6RcvbufErrors",
        "Icmp6InCsumErrors",
    ];
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut found: Vec<(String, String)> = Vec::new();
    for table in [read("/proc/net/snmp"), read("/proc/net/netstat")] {
        let lines: Vec<&str> = table.lines().collect();
        for pair in lines.chunks(2) {
            let [names, values] = pair else { continue };
            let Some((prefix, names)) = names.split_once(':') else {
                continue;
            };
            let values = values.split_once(':').map_or("", |(_, values)| values);
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                found.push((format!("{prefix}.{name}"), value.to_owned()));
            }
        }
    }
    for line in read("/proc/net/snmp6").lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(value)) = (words.next(), words.next()) {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    let wanted = found
        .into_iter()
        .filter(|(name, _)| WANTED.contains(&name.as_str()));
    wanted.map(|(name, value)| format!("{name} {value}\n")).collect()
}
