//! The shell around [`Life`]: one loop over the port, the reaper and the deadline.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_guest::{Channel, Event, Exit, GuestIdentity, Message, STALL_LIMIT};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::life::{Effect, Input, Life};
use crate::port::Port;
use crate::uevent::Uevents;
use crate::workload::{self, EXIT_RECORD_LENGTH};
use crate::{boot, say};

/// What the loop watches, as epoll's cookie.
const PORT: u64 = 1;
const REAPER: u64 = 2;

struct Agent {
    began: Instant,
    life: Life,
    channel: Channel,
    port: Port,
    epoll: Epoll,
    uevents: Uevents,
    /// The reader's end of the reaper's pipe, once there is something to reap.
    exits: Option<fs::File>,
    oom_kills_before: u64,
    /// Since when a frame is half read.
    partial_since: Option<Instant>,
    off: bool,
}

/// Comes up, serves until the power is to go off, and returns then.
pub(crate) fn run() -> Result<()> {
    let uevents = boot::come_up()?;
    let port = Port::open(&uevents)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make the loop")?;
    let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    epoll
        .add(port.as_fd(), EpollEvent::new(edges, PORT))
        .context("watch the agent's port")?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let identity = GuestIdentity {
        boot_id: boot_id.trim().to_owned(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut agent = Agent {
        began: Instant::now(),
        life: Life::new(),
        channel: Channel::guest(identity),
        port,
        epoll,
        uevents,
        exits: None,
        oom_kills_before: 0,
        partial_since: None,
        off: false,
    };
    agent.serve()
}

impl Agent {
    fn serve(&mut self) -> Result<()> {
        // What came before the loop watched has no edge any more.
        self.talk()?;
        while !self.off {
            let mut ready = [EpollEvent::empty(); 4];
            let count = match self.epoll.wait(&mut ready, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("wait for something to do"),
            };
            let cookies = ready.get(..count).unwrap_or_default();
            if cookies.iter().any(|event| event.data() == REAPER) {
                self.read_exits()?;
            }
            self.talk()?;
            self.feed(Input::Woke)?;
            if self.channel.unacknowledged() == 0 {
                self.feed(Input::Acknowledged)?;
            }
        }
        Ok(())
    }

    /// Until the nearest deadline: the life's, or that of a half-read frame.
    fn timeout(&self) -> EpollTimeout {
        let now = Instant::now();
        let life = self
            .life
            .next_deadline()
            .map(|at| (self.began + at).saturating_duration_since(now));
        let stall = self
            .partial_since
            .map(|at| (at + STALL_LIMIT).saturating_duration_since(now));
        let nearest = [life, stall].into_iter().flatten().min();
        nearest.map_or(EpollTimeout::NONE, |left| {
            // Rounded up, or the last millisecond would spin.
            EpollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(EpollTimeout::MAX)
        })
    }

    /// Reads and writes the port and acts on what was said.
    fn talk(&mut self) -> Result<()> {
        let mut events = Vec::new();
        self.port.exchange(&mut self.channel, &mut events)?;
        if self
            .partial_since
            .is_some_and(|since| since.elapsed() >= STALL_LIMIT)
        {
            self.channel.abandon_partial(&mut events);
            self.partial_since = None;
        }
        for event in events {
            match event {
                Event::Message { sequence, message } => self.feed(Input::Told { sequence, message })?,
                Event::Refused(error) | Event::Problem(error) => say(format_args!("{error}")),
                Event::Greeted { .. } | Event::Opened { .. } => {}
            }
        }
        match (self.channel.is_partial(), self.partial_since) {
            (true, None) => self.partial_since = Some(Instant::now()),
            (true, Some(_)) => {}
            (false, _) => self.partial_since = None,
        }
        self.port.flush(&mut self.channel)
    }

    fn feed(&mut self, input: Input) -> Result<()> {
        let mut effects = Vec::new();
        self.life.handle(self.began.elapsed(), input, &mut effects);
        self.channel.set_phase(self.life.phase());
        for effect in effects {
            self.act(effect)?;
        }
        Ok(())
    }

    fn act(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::SetUp(boot) => {
                self.oom_kills_before = workload::oom_kills();
                let outcome = boot::carry_out(&boot, &self.uevents);
                if matches!(outcome, Input::Started { .. }) {
                    self.start_reaper()?;
                }
                return self.feed(outcome);
            }
            Effect::Say(message) => self.say(&message),
            Effect::SetClock { request, unix_nanos } => {
                let result = dormouse_sys::guest::set_wall_clock(unix_nanos).context("set the clock");
                self.answer(request, result);
            }
            Effect::Reseed { request, seed } => self.answer(request, boot::reseed(&seed)),
            Effect::Pong { nonce } => {
                let unix_nanos = dormouse_sys::guest::wall_clock().unwrap_or(0);
                self.say(&Message::Pong { nonce, unix_nanos });
            }
            Effect::Signal { pid, signal } => {
                // It may have ended meanwhile; its exit is on the reaper's pipe then.
                if let Err(error) = dormouse_sys::guest::send_signal(pid, signal) {
                    say(format_args!(
                        "cannot send signal {signal} to the workload: {error}"
                    ));
                }
            }
            Effect::KillAll => kill_all(),
            Effect::PowerOff => {
                kill_all();
                self.off = true;
            }
        }
        self.port.flush(&mut self.channel)
    }

    fn say(&mut self, message: &Message) {
        if let Message::Exited { exit, .. } = message {
            // A hint for a daemon that was away; anybody can write to the console.
            match exit {
                Exit::Code(code) => say(format_args!("workload exited with status {code}")),
                Exit::Signal {
                    signal,
                    out_of_memory,
                } => {
                    let why = if *out_of_memory { ", out of memory" } else { "" };
                    say(format_args!("workload was ended by signal {signal}{why}"));
                }
            }
        }
        // Full only when a daemon asked hundreds of things and read no answer; it has deadlines.
        if let Err(error) = self.channel.send(message) {
            say(format_args!("{error}"));
        }
    }

    fn answer(&mut self, request: u64, result: Result<()>) {
        let problem = result
            .err()
            .map_or_else(String::new, |error| format!("{error:#}"));
        self.say(&Message::Done { request, problem });
    }

    fn start_reaper(&mut self) -> Result<()> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("make the reaper's pipe")?;
        let reader = fs::File::from(reader);
        nix::fcntl::fcntl(&reader, nix::fcntl::F_SETFL(OFlag::O_NONBLOCK))
            .context("open the reaper's pipe")?;
        self.epoll
            .add(reader.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, REAPER))
            .context("watch the reaper")?;
        std::thread::Builder::new()
            .name("reaper".to_owned())
            .stack_size(1 << 16)
            .spawn(move || workload::reap(writer))
            .context("start the reaper")?;
        self.exits = Some(reader);
        Ok(())
    }

    fn read_exits(&mut self) -> Result<()> {
        let mut record = [0_u8; EXIT_RECORD_LENGTH];
        loop {
            let Some(exits) = &mut self.exits else {
                return Ok(());
            };
            match exits.read_exact(&mut record) {
                Ok(()) => {
                    let (pid, exit) = workload::read_exit(record, self.oom_kills_before);
                    self.feed(Input::Ended { pid, exit })?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // No processes are left.
                Err(_) => {
                    if let Some(exits) = self.exits.take() {
                        let _gone = self.epoll.delete(exits.as_fd());
                    }
                }
            }
        }
    }
}

/// Kills every process but this one: signals to -1 spare the caller, and the kernel's own are immune.
fn kill_all() {
    let _none = kill(Pid::from_raw(-1), Signal::SIGKILL);
}
