//! `bench connections`: open TCP connections over many sleeps. Half of them stay silent in a cycle, half
//! send while the guest sleeps; they change places every cycle, and after it all are checked.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::v1::MemoryPlacement;

use super::{begin, end};
use crate::figures::{Figures, Row, Samples};
use crate::lab::{Guest, GuestSpec, Lab, Parts, TCP_PORT, tick};
use crate::setup::Need;

const CONNECTIONS: usize = 50;
/// A connection without its answer for this long hangs.
const HUNG: Duration = Duration::from_secs(10);
/// By when after a wake the guest's clock must be right, and how wrong it may be at the most then.
const CLOCK_LIMIT_MS: f64 = 1000.0;
/// A clock that is right to this was set: every sleep is longer.
const CLOCK_RIGHT_MS: f64 = 50.0;

/// One connection and what became of it.
#[derive(Debug)]
struct Line {
    stream: TcpStream,
    alive: bool,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    Reset,
    Hung,
}

/// All that is measured over the cycles.
#[derive(Debug, Default)]
struct Tally {
    echo_asleep: Samples,
    clock_error: Samples,
    clock_right: Samples,
    resets: u64,
    hung: u64,
}

/// Runs `cycles` cycles.
pub(crate) fn run(cycles: usize, json: Option<&Path>) -> Result<ExitCode> {
    let parts = Parts::ready(Need::Guests)?;
    let lab = Lab::start(parts)?;
    let mut figures = begin("connections", &lab)?;
    lab.import_server()?;
    let spec = GuestSpec {
        name: "connections",
        image: "bench:latest",
        ram_mib: 256,
        placement: MemoryPlacement::Unspecified,
        idle: None,
    };
    let guest = lab.run_server(&spec)?;
    let mut lines = open(&lab, &guest)?;
    let mut tally = Tally::default();
    for cycle in 0..cycles {
        one_cycle(&lab, &guest, &mut lines, cycle, &mut tally)?;
        if (cycle + 1).is_multiple_of(20) {
            println!(
                "  {} of {cycles} cycles, {} resets, {} hung",
                cycle + 1,
                tally.resets,
                tally.hung
            );
        }
    }
    drop(lines);
    report(&mut figures, &tally, cycles);
    end(lab, &mut figures, "A.4")?;
    figures.finish(json)
}

fn report(figures: &mut Figures, tally: &Tally, cycles: usize) {
    let row = |case: &str, samples: &Samples| {
        Row::new(case, "ms", samples)
            .param("connections", CONNECTIONS)
            .param("cycles", cycles)
    };
    figures.row(row("echo_of_sender_asleep", &tally.echo_asleep));
    figures.row(row("guest_clock_error", &tally.clock_error));
    figures.row(row("guest_clock_right", &tally.clock_right));
    figures.count("resets", tally.resets);
    figures.count("hung", tally.hung);
    figures.check_count("A.4", "resets", 0);
    figures.check_count("A.4", "hung", 0);
    figures.check("A.4", "cycles", ">= 100", cycles.into(), cycles >= 100);
    let clock = |samples: &Samples| samples.quantile(1.0);
    let what = "guest clock wrong by, after each wake";
    figures.check_at_most("A.4", what, clock(&tally.clock_error), CLOCK_LIMIT_MS, "ms");
    let what = "guest clock right after each wake within";
    figures.check_at_most("A.4", what, clock(&tally.clock_right), CLOCK_LIMIT_MS, "ms");
}

/// Opens the connections, IPv4 and IPv6 in turn, each proven by an echo.
fn open(lab: &Lab, guest: &Guest) -> Result<Vec<Line>> {
    let made = lab.as_client(|| -> Result<Vec<Line>> {
        (0..CONNECTIONS)
            .map(|turn| {
                let to = guest.at(turn, TCP_PORT);
                let stream =
                    TcpStream::connect_timeout(&to, HUNG).with_context(|| format!("connecting to {to}"))?;
                stream.set_nodelay(true).context("setting TCP_NODELAY")?;
                stream
                    .set_write_timeout(Some(HUNG))
                    .context("setting a deadline")?;
                Ok(Line { stream, alive: true })
            })
            .collect()
    })??;
    for (number, line) in made.iter().enumerate() {
        let payload = payload(0, number);
        let outcome = line
            .send(&payload, HUNG)
            .and_then(|()| line.receive(&payload, HUNG));
        anyhow::ensure!(
            outcome.is_ok(),
            "connection {number} does not answer: {outcome:?}"
        );
    }
    Ok(made)
}

/// What connection `number` sends in `cycle`; never the same twice.
fn payload(cycle: usize, number: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(cycle as u64).to_be_bytes());
    bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

impl Line {
    fn send(&self, payload: &[u8], deadline: Duration) -> Result<(), Outcome> {
        self.stream
            .set_write_timeout(Some(deadline))
            .map_err(|_| Outcome::Hung)?;
        (&self.stream).write_all(payload).map_err(|error| outcome(&error))
    }

    fn receive(&self, payload: &[u8], deadline: Duration) -> Result<(), Outcome> {
        // A time-out of zero would mean none.
        let deadline = deadline.max(Duration::from_millis(1));
        self.stream
            .set_read_timeout(Some(deadline))
            .map_err(|_| Outcome::Hung)?;
        let mut answer = vec![0; payload.len()];
        (&self.stream)
            .read_exact(&mut answer)
            .map_err(|error| outcome(&error))?;
        // Other bytes than were sent: the connection is of no more use than a reset one.
        if answer == payload {
            Ok(())
        } else {
            Err(Outcome::Reset)
        }
    }
}

fn outcome(error: &std::io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Hung,
        _ => Outcome::Reset,
    }
}

impl Tally {
    /// Looks at the guest's clock until it is right, or should have been.
    fn note_clock(&mut self, lab: &Lab, guest: &Guest, woken: Instant) -> Result<()> {
        loop {
            let error_ms = clock_error_ms(lab, guest)?;
            let since_ms = woken.elapsed().as_secs_f64() * 1e3;
            if error_ms <= CLOCK_RIGHT_MS || since_ms > 2.0 * CLOCK_LIMIT_MS {
                self.clock_error.push(error_ms);
                self.clock_right.push(since_ms);
                return Ok(());
            }
            tick(Duration::from_millis(10));
        }
    }

    fn note(&mut self, line: &mut Line, outcome: Result<(), Outcome>) {
        match outcome.err().unwrap_or(Outcome::Answered) {
            Outcome::Answered => return,
            Outcome::Reset => self.resets += 1,
            Outcome::Hung => self.hung += 1,
        }
        // Counted once; it takes no further part.
        line.alive = false;
    }
}

fn one_cycle(lab: &Lab, guest: &Guest, lines: &mut [Line], cycle: usize, tally: &mut Tally) -> Result<()> {
    lab.nap(guest)?;
    // Every tenth sleep is longer than the clock may be wrong.
    tick(if cycle % 10 == 9 {
        Duration::from_secs(2)
    } else {
        Duration::from_millis(100)
    });
    let is_sender = |number: usize| (number / 2 + cycle).is_multiple_of(2);
    let begun = Instant::now();
    for (number, line) in lines
        .iter_mut()
        .enumerate()
        .filter(|(number, _)| is_sender(*number))
    {
        if line.alive {
            let sent = line.send(&payload(cycle + 1, number), HUNG);
            tally.note(line, sent);
        }
    }
    for (number, line) in lines
        .iter_mut()
        .enumerate()
        .filter(|(number, _)| is_sender(*number))
    {
        if line.alive {
            let left = HUNG.saturating_sub(begun.elapsed());
            let answered = line.receive(&payload(cycle + 1, number), left);
            if answered.is_ok() {
                tally.echo_asleep.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            tally.note(line, answered);
        }
    }
    tally.note_clock(lab, guest, begun)?;
    for (number, line) in lines
        .iter_mut()
        .enumerate()
        .filter(|(number, _)| !is_sender(*number))
    {
        if line.alive {
            let payload = payload(cycle + 1, number);
            let outcome = line
                .send(&payload, HUNG)
                .and_then(|()| line.receive(&payload, HUNG));
            tally.note(line, outcome);
        }
    }
    Ok(())
}

/// How far the guest's wall clock is from ours, at most: the time that asking took is on its side.
fn clock_error_ms(lab: &Lab, guest: &Guest) -> Result<f64> {
    let now = || dormouse_sys::clock::unix_nanos().context("reading the clock");
    let before = now()?;
    let answer = lab.command(guest, "clock", Duration::from_secs(10))?;
    let after = now()?;
    let guest_nanos: u64 = answer
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .with_context(|| format!("the guest's clock says {answer:?}"))?;
    Ok(distance_ms(guest_nanos, before, after))
}

/// The distance of `at` from the span between `before` and `after`, all in nanoseconds.
fn distance_ms(at: u64, before: u64, after: u64) -> f64 {
    before.saturating_sub(at).max(at.saturating_sub(after)) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_within_the_question_is_right() {
        assert!(distance_ms(150, 100, 200) < 1e-12);
        assert!((distance_ms(4_000_000, 5_000_000, 6_000_000) - 1.0).abs() < 1e-12);
        assert!((distance_ms(8_000_000, 5_000_000, 6_000_000) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn payloads_differ_by_cycle_and_connection() {
        assert_ne!(payload(1, 2), payload(2, 1));
        assert_ne!(payload(0, 1), payload(0, 2));
    }
}
