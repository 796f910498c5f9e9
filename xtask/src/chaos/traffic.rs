//! Traffic that goes on through every kill: numbered datagrams, pings, a long TCP connection and new ones
//! to each guest. Every one of them must be answered, unless every holder of its queue was killed: whoever
//! kills a VMM says so, and what was under way to it is forgiven.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_sys::netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, connect, recv, send,
    socket,
};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::lab::{Guest, TCP_PORT, UDP_PORT, tick};

/// Between two rounds of one guest's traffic.
const BEAT: Duration = Duration::from_millis(40);
/// Every so many beats a new connection is made.
const NEW_CONNECTION_BEATS: u64 = 20;
/// By when an answer must have come, once the guest runs and nothing hinders it.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// What traffic saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Datagrams, pings, messages on the long connection and new connections that were begun.
    pub begun: u64,
    /// Those that nobody answered and nobody excused.
    pub lost: u64,
    /// Those whose guest was killed.
    pub forgiven: u64,
}

/// What one guest's traffic shares with the harness.
#[derive(Debug, Default)]
struct Shared {
    paused: AtomicBool,
    ended: AtomicBool,
    /// Counted up when everything under way is forgiven.
    epoch: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<(Way, u64), Instant>,
    tally: Tally,
}

/// How a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Datagram,
    Ping,
    Long,
    New,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, way: Way, number: u64) {
        let mut state = self.state();
        state.tally.begun += 1;
        state.waiting.insert((way, number), Instant::now());
    }

    fn answered(&self, way: Way, number: u64) {
        self.state().waiting.remove(&(way, number));
    }

    /// What can never be answered any more: its connection broke.
    fn broken(&self, way: Way, epoch: u64) {
        let mut state = self.state();
        if self.epoch.load(Ordering::Acquire) == epoch {
            let before = state.waiting.len();
            state.waiting.retain(|(other, _), _| *other != way);
            // The connection itself counts when nothing was under way on it.
            state.tally.lost += (before - state.waiting.len()).max(1) as u64;
        }
    }
}

/// The traffic to one guest. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Begins, in the namespace of the clients; `long` adds the connection that stays, which holds a guest
    /// awake.
    pub(crate) fn begin(guest: &Guest, clients: &Arc<Namespace>, long: bool) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        let (steady, fresh) = (Arc::clone(&shared), Arc::clone(&shared));
        let (guest_of_steady, guest_of_fresh) = (guest.clone(), guest.clone());
        let namespace = Arc::clone(clients);
        threads.push(spawn(namespace, move || {
            Steady::run(&steady, &guest_of_steady, long)
        })?);
        threads.push(spawn(Arc::clone(clients), move || {
            new_connections(&fresh, &guest_of_fresh)
        })?);
        Ok(Self { shared, threads })
    }

    /// Begins nothing new until [`Self::resume`].
    pub(crate) fn pause(&self) {
        self.shared.paused.store(true, Ordering::Release);
    }

    /// Goes on.
    pub(crate) fn resume(&self) {
        self.shared.paused.store(false, Ordering::Release);
    }

    /// Forgives everything under way: its guest was killed.
    pub(crate) fn forgive(&self) {
        let mut state = self.shared.state();
        self.shared.epoch.fetch_add(1, Ordering::AcqRel);
        state.tally.forgiven += state.waiting.len() as u64;
        state.waiting.clear();
    }

    /// How many messages wait for their answers.
    pub(crate) fn under_way(&self) -> usize {
        self.shared.state().waiting.len()
    }

    /// What waits for longer than `deadline` is lost. To be called while the guest could answer.
    pub(crate) fn give_up(&self, deadline: Duration) -> Vec<String> {
        let mut state = self.shared.state();
        let late: Vec<(Way, u64)> = state
            .waiting
            .iter()
            .filter(|(_, begun)| begun.elapsed() >= deadline)
            .map(|(key, _)| *key)
            .collect();
        for key in &late {
            state.waiting.remove(key);
        }
        state.tally.lost += late.len() as u64;
        late.iter()
            .map(|(way, number)| format!("{way:?} {number}"))
            .collect()
    }

    /// What was seen so far.
    pub(crate) fn tally(&self) -> Tally {
        self.shared.state().tally
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(
    clients: Arc<Namespace>,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let body = move || match clients.within(work) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("xtask: traffic: {error:#}"),
        Err(error) => eprintln!("xtask: traffic: {error}"),
    };
    std::thread::Builder::new()
        .name("traffic".to_owned())
        .spawn(body)
        .context("starting a thread")
}

/// Datagrams, pings and the long connection.
struct Steady<'a> {
    shared: &'a Shared,
    guest: &'a Guest,
    datagrams: [UdpSocket; 2],
    pings: [OwnedFd; 2],
    long: Option<TcpStream>,
    /// What was read of the next message on the long connection.
    partial: Vec<u8>,
    number: u64,
    epoch: u64,
}

impl<'a> Steady<'a> {
    fn run(shared: &'a Shared, guest: &'a Guest, with_long: bool) -> Result<()> {
        let mut steady = Self {
            shared,
            guest,
            datagrams: [
                datagrams(guest.at(0, UDP_PORT))?,
                datagrams(guest.at(1, UDP_PORT))?,
            ],
            pings: [pings(guest.addresses[0])?, pings(guest.addresses[1])?],
            long: None,
            partial: Vec::new(),
            number: 0,
            epoch: shared.epoch.load(Ordering::Acquire),
        };
        while !shared.ended.load(Ordering::Acquire) {
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != steady.epoch {
                (steady.epoch, steady.long) = (epoch, None);
            }
            if !shared.paused.load(Ordering::Acquire) {
                steady.send(with_long);
            }
            steady.receive();
            tick(BEAT);
        }
        Ok(())
    }

    /// One of each, IPv4 and IPv6 in turn.
    fn send(&mut self, with_long: bool) {
        self.number += 1;
        let (number, turn) = (self.number, usize::from(self.number.is_multiple_of(2)));
        let bytes = number.to_be_bytes();
        // A message counts once it is sent: a socket that is full for now sends none.
        if let Some(socket) = self.datagrams.get(turn) {
            self.shared.begin(Way::Datagram, number);
            if socket.send(&bytes).is_err() {
                self.shared.answered(Way::Datagram, number);
            }
        }
        if let Some(socket) = self.pings.get(turn)
            && number.is_multiple_of(5)
        {
            // ICMP_ECHO, ICMPV6_ECHO_REQUEST; identifier and checksum are the kernel's to fill in.
            let mut echo = vec![if turn == 0 { 8 } else { 128 }, 0, 0, 0, 0, 0];
            echo.extend(u16::try_from(number % 65_536).unwrap_or(0).to_be_bytes());
            echo.extend(bytes);
            self.shared.begin(Way::Ping, number);
            if send(socket.as_raw_fd(), &echo, MsgFlags::MSG_DONTWAIT).is_err() {
                self.shared.answered(Way::Ping, number);
            }
        }
        if !with_long {
            return;
        }
        if self.long.is_none() {
            self.open_long();
        }
        if let Some(stream) = &mut self.long {
            self.shared.begin(Way::Long, number);
            if stream.write_all(&bytes).is_err() {
                self.shared.broken(Way::Long, self.epoch);
                self.long = None;
            }
        }
    }

    fn open_long(&mut self) {
        let to = self.guest.at(0, TCP_PORT);
        let Ok(stream) = TcpStream::connect_timeout(&to, ANSWER_DEADLINE) else {
            return;
        };
        if stream.set_nonblocking(true).is_ok() && stream.set_nodelay(true).is_ok() {
            self.partial.clear();
            self.long = Some(stream);
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; 2048];
        for socket in &self.datagrams {
            // An error of ICMP is told once, by the next call, and is no answer.
            for _ in 0..64 {
                match socket.recv(&mut bytes) {
                    Ok(8) => self.shared.answered(Way::Datagram, number_at(&bytes, 0)),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {}
                }
            }
        }
        for socket in &self.pings {
            for _ in 0..64 {
                match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                    Ok(16) => self.shared.answered(Way::Ping, number_at(&bytes, 8)),
                    Err(Errno::EAGAIN) => break,
                    Ok(_) | Err(_) => {}
                }
            }
        }
        let Some(stream) = &mut self.long else { return };
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(count) => {
                    self.partial.extend(bytes.iter().take(count));
                    while self.partial.len() >= 8 {
                        self.shared.answered(Way::Long, number_at(&self.partial, 0));
                        self.partial.drain(..8);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Ended by the guest, which nobody asked to.
        self.shared.broken(Way::Long, self.epoch);
        self.long = None;
    }
}

/// A number in a message.
fn number_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

fn datagrams(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).context("opening a socket")?;
    socket
        .connect(to)
        .with_context(|| format!("connecting to {to}"))?;
    socket
        .set_nonblocking(true)
        .context("making a socket not block")?;
    Ok(socket)
}

fn pings(to: IpAddr) -> Result<OwnedFd> {
    let open = |family, protocol| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, Some(protocol));
    let socket = match to {
        IpAddr::V4(to) => {
            let socket =
                open(AddressFamily::Inet, SockProtocol::Icmp).context("opening a socket for pings")?;
            let [a, b, c, d] = to.octets();
            connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).context("aiming pings")?;
            socket
        }
        IpAddr::V6(to) => {
            let socket =
                open(AddressFamily::Inet6, SockProtocol::IcmpV6).context("opening a socket for pings")?;
            let to = std::net::SocketAddrV6::new(to, 0, 0, 0);
            connect(socket.as_raw_fd(), &SockaddrIn6::from(to)).context("aiming pings")?;
            socket
        }
    };
    Ok(socket)
}

/// New connections, one after the other, each with one echo.
fn new_connections(shared: &Shared, guest: &Guest) -> Result<()> {
    let mut number = 0;
    while !shared.ended.load(Ordering::Acquire) {
        tick(BEAT);
        number += 1;
        if shared.paused.load(Ordering::Acquire) || number % NEW_CONNECTION_BEATS != 0 {
            continue;
        }
        let epoch = shared.epoch.load(Ordering::Acquire);
        let to = guest.at(
            usize::try_from(number / NEW_CONNECTION_BEATS).unwrap_or(0),
            TCP_PORT,
        );
        shared.begin(Way::New, number);
        match crate::lab::ask(to, &number.to_be_bytes(), ANSWER_DEADLINE) {
            Ok(_) => shared.answered(Way::New, number),
            Err(_) => shared.broken(Way::New, epoch),
        }
    }
    Ok(())
}
