//! Requests to guests at a fixed rate, over connections that stay and connections that are new, and knocks at
//! sleepers at random moments. Every request has a time at which it is due; its latency counts from there, so
//! that a guest that stands still is charged for everything that piled up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::figures::Samples;
use crate::lab::{Guest, TCP_PORT, UDP_PORT, ask, tick};

/// HTTP of the benches' server.
const HTTP_PORT: u16 = 8080;
/// A request without its answer for this long has failed.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same for one that wakes.
const WAKE_DEADLINE: Duration = Duration::from_secs(20);
/// Of so many clients one opens a connection for each request.
const NEW_OF: usize = 5;
/// How many failures are told in full.
const TOLD: usize = 5;

/// What the clients counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Milliseconds from when a request was due to its whole answer.
    pub latency: Samples,
    /// Requests that were not answered.
    pub failed: u64,
    /// Milliseconds from a knock to its answer.
    pub wake: Samples,
    /// Knocks without an answer.
    pub missed: u64,
    /// The first failures.
    pub told: Vec<String>,
}

impl Tally {
    fn tell(&mut self, what: String) {
        if self.told.len() < TOLD {
            self.told.push(what);
        }
    }

    fn add(&mut self, other: Self) {
        self.latency.extend(&other.latency);
        self.wake.extend(&other.wake);
        self.failed += other.failed;
        self.missed += other.missed;
        for what in other.told {
            self.tell(what);
        }
    }
}

/// A guest that sleeps when it is left alone.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// It.
    pub guest: Guest,
    /// Held while a knock waits for its answer. A standby that is forced then would freeze the guest with the
    /// request in it and nobody on the wire to wake it: a caller may want that, and this bench does not.
    pub asking: Mutex<()>,
}

/// Who is asked, and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Guests that are awake.
    pub awake: &'a [Guest],
    /// Guests that sleep when they are left alone.
    pub sleepers: &'a [Sleeper],
    /// Requests a second in total.
    pub rate: u32,
    /// How many clients share them.
    pub clients: usize,
}

/// Runs the load in the namespace of the clients for as long as `work` does; gives what both bring.
pub(crate) fn during<T>(
    lab: &mut crate::lab::Lab,
    plan: Plan<'_>,
    work: impl FnOnce(&mut crate::lab::Lab) -> Result<T>,
) -> Result<(Tally, T)> {
    let total = Mutex::new(Tally::default());
    let over = AtomicBool::new(false);
    let namespaces = (0..plan.clients + plan.sleepers.len())
        .map(|_| lab.clients())
        .collect::<Result<Vec<_>>>()?;
    let done = std::thread::scope(|scope| {
        for (number, namespace) in namespaces.into_iter().enumerate() {
            let (total, over) = (&total, &over);
            scope.spawn(move || {
                let mut tally = Tally::default();
                let ran = namespace.within(|| match number.checked_sub(plan.clients) {
                    None => client(plan, number, over, &mut tally),
                    Some(at) => {
                        if let Some(sleeper) = plan.sleepers.get(at) {
                            waker(sleeper, number as u64 + 1, over, &mut tally);
                        }
                    }
                });
                if let Err(error) = ran {
                    tally.failed += 1;
                    tally.tell(format!("client {number}: {error}"));
                }
                crate::lab::locked_value(total).add(tally);
            });
        }
        let done = work(lab);
        over.store(true, Ordering::Release);
        done
    });
    let tally = std::mem::take(&mut *crate::lab::locked_value(&total));
    Ok((tally, done?))
}

fn client(plan: Plan<'_>, number: usize, over: &AtomicBool, tally: &mut Tally) {
    let Some(guest) = plan.awake.get(number % plan.awake.len().max(1)) else {
        return;
    };
    let to = guest.at(number / 2, HTTP_PORT);
    let stays = !number.is_multiple_of(NEW_OF);
    let interval = Duration::from_secs(1) * u32::try_from(plan.clients).unwrap_or(1) / plan.rate.max(1);
    let mut connection = None;
    // The clients' times are spread over the interval.
    let mut due = Instant::now()
        + interval * u32::try_from(number).unwrap_or(0) / u32::try_from(plan.clients).unwrap_or(1).max(1);
    while !over.load(Ordering::Acquire) {
        while let Some(left) = due
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            tick(left);
        }
        match exchange(&mut connection, to, stays) {
            Ok(()) => tally.latency.push(due.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                tally.failed += 1;
                tally.tell(format!(
                    "{to} ({}): {error:#}",
                    if stays { "kept" } else { "new" }
                ));
                connection = None;
            }
        }
        due += interval;
    }
}

/// One request over the connection, which is made when there is none and kept when it `stays`.
fn exchange(connection: &mut Option<TcpStream>, to: SocketAddr, stays: bool) -> Result<()> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&to, DEADLINE).context("connecting")?;
            stream.set_nodelay(true).context("setting TCP_NODELAY")?;
            stream
                .set_read_timeout(Some(DEADLINE))
                .context("setting a deadline")?;
            stream
        }
    };
    let close = if stays { "" } else { "Connection: close\r\n" };
    let request = format!("GET / HTTP/1.1\r\nHost: {to}\r\n{close}\r\n");
    stream.write_all(request.as_bytes()).context("sending")?;
    let mut answer = Vec::new();
    let mut bytes = [0_u8; 1024];
    loop {
        let read = stream.read(&mut bytes).context("waiting for an answer")?;
        ensure!(read > 0, "closed before its answer was whole");
        answer.extend_from_slice(bytes.get(..read).unwrap_or_default());
        if is_whole(&answer)? {
            break;
        }
    }
    if stays {
        *connection = Some(stream);
    }
    Ok(())
}

/// Whether an answer is there up to its last byte.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(false);
    };
    ensure!(head.starts_with("HTTP/1.1 200 "), "answered {head:?}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => Ok(body.len() >= length),
        None => bail!("answered without a length"),
    }
}

/// Knocks at a sleeper, by TCP and UDP in turn, after pauses in which it may or may not have fallen asleep.
fn waker(sleeper: &Sleeper, seed: u64, over: &AtomicBool, tally: &mut Tally) {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut turn = 0_usize;
    let guest = &sleeper.guest;
    while !over.load(Ordering::Acquire) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let until = Instant::now() + Duration::from_millis(100 + random % 1900);
        while !over.load(Ordering::Acquire) && Instant::now() < until {
            tick(Duration::from_millis(20));
        }
        let _asking = crate::lab::locked_value(&sleeper.asking);
        let begun = Instant::now();
        let knocked = if turn.is_multiple_of(2) {
            ask(guest.at(turn / 2, TCP_PORT), b"knock", WAKE_DEADLINE).map(|_| ())
        } else {
            ask_by_datagram(guest.at(turn / 2, UDP_PORT))
        };
        match knocked {
            Ok(()) => tally.wake.push(begun.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                tally.missed += 1;
                tally.tell(format!("{}: {error:#}", guest.name));
            }
        }
        turn += 1;
    }
}

/// One datagram, sent once, and its echo.
fn ask_by_datagram(to: SocketAddr) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("opening a socket")?;
    socket
        .set_read_timeout(Some(WAKE_DEADLINE))
        .context("setting a deadline")?;
    socket.connect(to).context("connecting")?;
    socket.send(b"knock").context("sending")?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer).context("waiting for the echo")?;
    ensure!(
        answer.get(..length) == Some(b"knock".as_slice()),
        "another answer"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_ends() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n").unwrap());
        assert!(!is_whole(format!("{head}bod").as_bytes()).unwrap());
        assert!(is_whole(format!("{head}body").as_bytes()).unwrap());
        assert!(is_whole(b"HTTP/1.1 500 X\r\n\r\n").is_err());
        assert!(is_whole(b"HTTP/1.1 200 OK\r\n\r\nbody").is_err());
    }
}
