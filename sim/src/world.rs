//! One run of one seed: the loop that takes what comes next, and when the weather turns.

use std::time::Duration;

use dormouse_model::{MonoTime, TcpState};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::actors::{Actors, Ask, Mix};
use crate::audit;
use crate::breach::{Breach, Invariant};
use crate::daemon::{Capacities, Daemon};
use crate::event::{Event, delay};
use crate::ground::{Ground, Weather};
use crate::tally::Tally;
use crate::trace::{Keep, Trace};

/// How one run is made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The seed that everything comes from.
    pub seed: u64,
    /// How many acts of clients, callers and faults.
    pub steps: u64,
    /// Whether the trace is kept.
    pub keep: Keep,
}

/// How one run went.
#[derive(Debug)]
pub struct Outcome {
    /// What happened, counted.
    pub tally: Tally,
    /// The first broken invariant.
    pub breach: Option<Breach>,
    /// The trace, if it was kept.
    pub trace: String,
}

/// Quiet time after the last act, in which everything must come to rest: longer than the slowest
/// timeout of the world plus the longest idle timeout and all backoffs.
const CALM: Duration = Duration::from_secs(90);

/// No instant has more deadlines: a machine that keeps one that has passed would spin.
const DEADLINES_MAX: u32 = 1_000;

/// No run has more events: a bound for a world that keeps itself busy.
const EVENTS_MAX: u64 = 200_000;

#[derive(Debug)]
struct World {
    ground: Ground,
    daemon: Option<Daemon>,
    actors: Actors,
    capacities: Capacities,
    pool: Ipv4Net,
    prefix: Ipv6Net,
    steps_left: u64,
    calm_until: Option<MonoTime>,
}

/// Runs one seed.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    let mut ground = Ground::new(plan.seed, Trace::new(plan.keep));
    let mix = Mix::draw(&mut ground);
    let capacities = Capacities {
        channel: *ground.random.pick(&[8, 24, 64, 1024]).unwrap_or(&64),
        socket: *ground.random.pick(&[8, 24, 64, 1024]).unwrap_or(&64),
    };
    // A small pool: addresses come back soon.
    let (Ok(pool), Ok(prefix)) = (Ipv4Net::new([10, 0, 0, 0].into(), 29), "fd00:64::/48".parse()) else {
        return Outcome {
            tally: ground.tally,
            breach: None,
            trace: String::new(),
        };
    };
    let mut world = World {
        ground,
        daemon: None,
        actors: Actors::new(mix),
        capacities,
        pool,
        prefix,
        steps_left: plan.steps,
        calm_until: None,
    };
    world.start_daemon();
    world.ground.after(Duration::ZERO, Event::Act);
    world.run();
    let mut tally = world.ground.tally;
    tally.events = world.ground.events;
    Outcome {
        tally,
        breach: world.ground.breach,
        trace: world.ground.trace.text().to_owned(),
    }
}

impl World {
    fn run(&mut self) {
        let mut deadlines = 0;
        while self.ground.breach.is_none() {
            self.ground.events += 1;
            if self.ground.events > EVENTS_MAX {
                let what = "the world does not come to rest".to_owned();
                self.ground.broken(Invariant::Settles, what);
                return;
            }
            let event_at = self.ground.queue.next_at();
            let deadline = self.daemon.as_ref().and_then(Daemon::next_deadline);
            let next = match (event_at, deadline) {
                (Some(event), Some(deadline)) => event.min(deadline),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return self.end(),
            };
            if self.calm_until.is_some_and(|until| next > until) {
                return self.end();
            }
            if deadline.is_some_and(|deadline| event_at.is_none_or(|event| deadline <= event)) {
                deadlines = if next > self.ground.now { 0 } else { deadlines + 1 };
                if deadlines > DEADLINES_MAX {
                    let what = format!("a deadline at {:?} stays in the past", next.since_boot());
                    self.ground.broken(Invariant::Settles, what);
                    return;
                }
                self.ground.now = self.ground.now.max(next);
                if let Some(daemon) = &mut self.daemon {
                    daemon.deadlines(&mut self.ground);
                }
            } else if let Some((at, event)) = self.ground.queue.pop() {
                self.ground.now = self.ground.now.max(at);
                self.take(event);
            }
            if let Some(daemon) = &mut self.daemon {
                daemon.poll_socket(&mut self.ground);
                audit::after_event(&mut self.ground, daemon);
            }
        }
    }

    fn end(&mut self) {
        if let Some(daemon) = &self.daemon {
            audit::at_rest(&mut self.ground, daemon);
        }
    }

    fn take(&mut self, event: Event) {
        let ground = &mut self.ground;
        match event {
            Event::Act => self.act(),
            Event::GuestReads(id) => ground.guest_reads(id),
            Event::HandshakeAnswered(key, stamp) => {
                ground.answered(key, stamp, TcpState::ESTABLISHED, None);
            }
            Event::CloseAnswered(key, stamp) => {
                ground.answered(key, stamp, TcpState::TIME_WAIT, Some(delay::TIME_WAIT));
            }
            Event::EntryExpires(key, stamp) => {
                if ground.kernel.expire(key, stamp) {
                    ground.note(format_args!(
                        "flow {}:{} is forgotten",
                        key.source, key.source_port
                    ));
                }
            }
            Event::EntryForgotten(key) => {
                let stamp = ground.kernel.flows.get(&key).map(|entry| entry.stamp);
                if let Some(stamp) = stamp {
                    ground.kernel.expire(key, stamp);
                }
            }
            Event::Solicit(id) => ground.solicit(id),
            Event::DaemonStarts => {
                if self.daemon.is_none() {
                    self.start_daemon();
                }
            }
            Event::Daemon(incarnation, event) => {
                if let Some(daemon) = self.daemon.as_mut().filter(|_| incarnation == ground.incarnation) {
                    daemon.take(ground, event);
                }
            }
        }
    }

    fn act(&mut self) {
        if self.steps_left == 0 {
            return self.calm();
        }
        self.steps_left -= 1;
        self.actors.tidy(&self.ground);
        match self.actors.act(&mut self.ground, self.daemon.as_mut()) {
            Ask::Nothing => {}
            Ask::Kill(pause) => self.kill(pause),
            Ask::Reboot => {
                self.kill(Duration::from_secs(2));
                self.ground.reboot();
            }
        }
        // Bursts and pauses: the pauses are what lets anybody fall asleep.
        let wait = match self.ground.random.below(10) {
            0..=4 => self.ground.random.millis(0, 10),
            5..=7 => self.ground.random.millis(1, 200),
            8 => self.ground.random.millis(100, 2_000),
            _ => self.ground.random.millis(500, 8_000),
        };
        self.ground.after(wait, Event::Act);
    }

    /// No fault from here on, and nobody asks for anything.
    fn calm(&mut self) {
        self.ground.note(format_args!("calm"));
        self.ground.weather = Weather::Calm;
        self.capacities = Capacities {
            channel: 100_000,
            socket: 100_000,
        };
        if let Some(daemon) = &mut self.daemon {
            daemon.channel_capacity = self.capacities.channel;
            daemon.socket_capacity = self.capacities.socket;
        }
        if let Some(socket) = &mut self.ground.kernel.socket {
            socket.capacity = self.capacities.socket;
        }
        self.actors.leave(&mut self.ground);
        self.ground.after(Duration::ZERO, Event::DaemonStarts);
        self.calm_until = Some(self.ground.now.plus(CALM));
    }

    fn kill(&mut self, pause: Duration) {
        if let Some(daemon) = self.daemon.take() {
            let incarnation = self.ground.incarnation;
            self.ground.note(format_args!("daemon {incarnation} is killed"));
            self.ground.tally.daemon_kills += 1;
            daemon.killed(&mut self.ground);
            self.ground.after(pause, Event::DaemonStarts);
        }
    }

    fn start_daemon(&mut self) {
        self.ground.incarnation += 1;
        let incarnation = self.ground.incarnation;
        self.ground.note(format_args!("daemon {incarnation} starts"));
        self.daemon = Daemon::start(&mut self.ground, self.capacities, self.pool, self.prefix);
    }
}
