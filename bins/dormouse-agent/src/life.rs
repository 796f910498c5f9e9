//! What the agent decides, apart from doing it.
//!
//! ```text
//!            Boot               started                  ended
//!  Waiting ────────▶ Booting ───────────▶ Running ──────────────────▶ Ending ──▶ (power off)
//!     │                 │                    │ Shutdown                 ▲  acknowledged,
//!     │                 │                    ▼          ended           │  or EXIT_LINGER passed
//!     │                 │                Stopping ──────────────────────┤
//!     │                 │         ──grace passed──▶ Killing ───────────┤
//!     │ Shutdown        └─ failed ──────────────────────────────────────┤
//!     └─────────────────────────────────────────────────────────────────┘
//! ```

use std::time::Duration;

use dormouse_guest::{Boot, Exit, Message, Phase};

/// How long the guest stays up for a daemon that is away to learn how the workload ended.
pub(crate) const EXIT_LINGER: Duration = Duration::from_secs(5);

/// Longest grace that is honoured.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// The signal that asks a workload to end when its image names none.
const SIGTERM: u32 = 15;

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// The daemon said something.
    Told { sequence: u64, message: Message },
    /// The boot steps are through and this is the workload's process.
    Started { pid: u32 },
    /// A boot step failed.
    BootFailed { step: &'static str, problem: String },
    /// The workload's program could not be started: a status as a shell would give, and why.
    NotStarted { code: u8, problem: String },
    /// A process ended and was reaped.
    Ended { pid: u32, exit: Exit },
    /// The daemon has acknowledged everything.
    Acknowledged,
    /// The deadline may have passed.
    Woke,
}

/// What to do about it, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Carry out the boot; answer with `Started`, `BootFailed` or `NotStarted`.
    SetUp(Box<Boot>),
    /// Queue a message for the daemon.
    Say(Message),
    /// Set the clock and answer the request.
    SetClock { request: u64, unix_nanos: u64 },
    /// Reseed the kernel and answer the request.
    Reseed { request: u64, seed: [u8; 32] },
    /// Answer a ping with the time of answering.
    Pong { nonce: u64 },
    /// Send a signal to the workload's process.
    Signal { pid: u32, signal: u32 },
    /// Kill every process but this one.
    KillAll,
    /// Kill what is left, write back, power off.
    PowerOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Booting {
        stop_signal: u32,
    },
    Running {
        pid: u32,
        stop_signal: u32,
    },
    Stopping {
        pid: u32,
        kill_at: Duration,
    },
    /// The kill is reaped within moments; a process that the kernel cannot end does not keep the
    /// power on.
    Killing {
        pid: u32,
        off_at: Duration,
    },
    Ending {
        off_at: Duration,
    },
    Off,
}

/// The machine. Times are since the agent started, by a clock that stands still in a sleep.
#[derive(Debug)]
pub(crate) struct Life {
    state: State,
}

impl Life {
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Waiting,
        }
    }

    /// What the daemon is told in greetings.
    pub(crate) const fn phase(&self) -> Phase {
        match self.state {
            State::Waiting => Phase::Waiting,
            State::Booting { .. } => Phase::Booting,
            State::Running { .. } => Phase::Running,
            State::Stopping { .. } | State::Killing { .. } | State::Ending { .. } | State::Off => {
                Phase::Ending
            }
        }
    }

    /// When to come back with [`Input::Woke`].
    pub(crate) const fn next_deadline(&self) -> Option<Duration> {
        match self.state {
            State::Waiting | State::Booting { .. } | State::Running { .. } | State::Off => None,
            State::Stopping { kill_at: at, .. }
            | State::Killing { off_at: at, .. }
            | State::Ending { off_at: at } => Some(at),
        }
    }

    /// Takes one input; total in every state.
    pub(crate) fn handle(&mut self, now: Duration, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Told { sequence, message } => self.told(now, sequence, message, effects),
            Input::Started { pid } => {
                if let State::Booting { stop_signal } = self.state {
                    self.state = State::Running { pid, stop_signal };
                    effects.push(Effect::Say(Message::Ready { pid }));
                }
            }
            Input::BootFailed { step, problem } => {
                if let State::Booting { .. } = self.state {
                    self.end(
                        now,
                        Message::BootFailed {
                            step: step.to_owned(),
                            problem,
                        },
                        effects,
                    );
                }
            }
            Input::NotStarted { code, problem } => {
                if let State::Booting { .. } = self.state {
                    self.end(
                        now,
                        Message::Exited {
                            exit: Exit::Code(code),
                            problem,
                        },
                        effects,
                    );
                }
            }
            Input::Ended { pid, exit } => match self.state {
                State::Running { pid: ours, .. }
                | State::Stopping { pid: ours, .. }
                | State::Killing { pid: ours, .. }
                    if ours == pid =>
                {
                    self.end(
                        now,
                        Message::Exited {
                            exit,
                            problem: String::new(),
                        },
                        effects,
                    );
                }
                // An orphan that we inherited.
                State::Waiting
                | State::Booting { .. }
                | State::Running { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Ending { .. }
                | State::Off => {}
            },
            Input::Acknowledged => {
                if let State::Ending { .. } = self.state {
                    self.power_off(effects);
                }
            }
            Input::Woke => self.woke(now, effects),
        }
    }

    fn told(&mut self, now: Duration, sequence: u64, message: Message, effects: &mut Vec<Effect>) {
        match message {
            Message::Boot(boot) => match self.state {
                State::Waiting => {
                    self.state = State::Booting {
                        stop_signal: boot.stop_signal,
                    };
                    effects.push(Effect::SetUp(boot));
                }
                // A daemon that does not know that its predecessor booted us.
                State::Running { pid, .. } => effects.push(Effect::Say(Message::Ready { pid })),
                State::Booting { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Ending { .. }
                | State::Off => {}
            },
            Message::ClockSet { unix_nanos } => effects.push(Effect::SetClock {
                request: sequence,
                unix_nanos,
            }),
            Message::Reseed { seed } => effects.push(Effect::Reseed {
                request: sequence,
                seed,
            }),
            Message::Ping { nonce } => effects.push(Effect::Pong { nonce }),
            Message::Shutdown { grace_millis } => self.shut_down(now, grace_millis, effects),
            // The channel lets none of these through.
            Message::Ready { .. }
            | Message::Exited { .. }
            | Message::BootFailed { .. }
            | Message::Done { .. }
            | Message::Pong { .. } => {}
        }
    }

    fn shut_down(&mut self, now: Duration, grace_millis: u64, effects: &mut Vec<Effect>) {
        let kill_at = now.saturating_add(Duration::from_millis(grace_millis).min(MAX_GRACE));
        match self.state {
            State::Waiting | State::Booting { .. } => self.power_off(effects),
            State::Running { pid, stop_signal } => {
                self.state = State::Stopping { pid, kill_at };
                let signal = if stop_signal == 0 { SIGTERM } else { stop_signal };
                effects.push(Effect::Signal { pid, signal });
            }
            // Asked again: the earlier deadline holds, so that impatience helps and patience cannot
            // undo what was promised to somebody else.
            State::Stopping {
                pid,
                kill_at: earlier,
            } => {
                self.state = State::Stopping {
                    pid,
                    kill_at: earlier.min(kill_at),
                };
            }
            State::Killing { .. } | State::Ending { .. } | State::Off => {}
        }
    }

    fn woke(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        match self.state {
            State::Stopping { pid, kill_at } if now >= kill_at => {
                self.state = State::Killing {
                    pid,
                    off_at: now.saturating_add(EXIT_LINGER),
                };
                effects.push(Effect::KillAll);
            }
            State::Killing { off_at, .. } | State::Ending { off_at } if now >= off_at => {
                self.power_off(effects);
            }
            State::Waiting
            | State::Booting { .. }
            | State::Running { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Ending { .. }
            | State::Off => {}
        }
    }

    fn end(&mut self, now: Duration, last: Message, effects: &mut Vec<Effect>) {
        self.state = State::Ending {
            off_at: now.saturating_add(EXIT_LINGER),
        };
        effects.push(Effect::Say(last));
    }

    fn power_off(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Off;
        effects.push(Effect::PowerOff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_guest::Disk;

    fn boot() -> Message {
        Message::Boot(Box::new(Boot {
            hostname: "web".to_owned(),
            network: None,
            arguments: vec!["/bin/true".to_owned()],
            environment: Vec::new(),
            working_directory: String::new(),
            user: String::new(),
            stop_signal: 0,
            root: Disk::Device("/dev/vda".to_owned()),
            overlay: None,
            seed: [0; 32],
            unix_nanos: 0,
        }))
    }

    fn told(message: Message) -> Input {
        Input::Told { sequence: 1, message }
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs a trace of inputs at seconds 1, 2, 3 …; returns the effects of each.
    fn trace(life: &mut Life, inputs: Vec<Input>) -> Vec<Vec<Effect>> {
        let step = |(n, input)| {
            let mut effects = Vec::new();
            life.handle(SECOND * n, input, &mut effects);
            effects
        };
        (1..).zip(inputs).map(step).collect()
    }

    #[test]
    fn a_workload_that_ends_by_itself() {
        let mut life = Life::new();
        let ended = |pid| Input::Ended {
            pid,
            exit: Exit::Code(3),
        };
        let effects = trace(
            &mut life,
            vec![
                told(boot()),
                Input::Started { pid: 7 },
                Input::Acknowledged,
                ended(8),
                ended(7),
                Input::Acknowledged,
            ],
        );
        assert!(matches!(effects[0][..], [Effect::SetUp(_)]));
        assert_eq!(effects[1], [Effect::Say(Message::Ready { pid: 7 })]);
        assert_eq!(effects[2], []);
        assert_eq!(effects[3], [], "an orphan's end is not the workload's");
        let exited = Message::Exited {
            exit: Exit::Code(3),
            problem: String::new(),
        };
        assert_eq!(effects[4], [Effect::Say(exited)]);
        assert_eq!(effects[5], [Effect::PowerOff]);
        assert_eq!(life.next_deadline(), None);
    }

    #[test]
    fn power_goes_off_without_a_daemon() {
        let mut life = Life::new();
        let failed = Input::BootFailed {
            step: "root",
            problem: "no disk".to_owned(),
        };
        trace(&mut life, vec![told(boot()), failed]);
        assert_eq!(life.phase(), Phase::Ending);
        assert_eq!(life.next_deadline(), Some(SECOND * 2 + EXIT_LINGER));
        let mut effects = Vec::new();
        life.handle(SECOND * 6, Input::Woke, &mut effects);
        assert_eq!(effects, [], "too early");
        life.handle(SECOND * 7, Input::Woke, &mut effects);
        assert_eq!(effects, [Effect::PowerOff]);
    }

    #[test]
    fn a_shutdown_asks_then_kills_then_cuts() {
        let mut life = Life::new();
        let shutdown = |grace_millis| told(Message::Shutdown { grace_millis });
        let effects = trace(
            &mut life,
            vec![
                told(boot()),
                Input::Started { pid: 7 },
                shutdown(9_000),
                shutdown(2_000),
                shutdown(60_000),
            ],
        );
        assert_eq!(effects[2], [Effect::Signal { pid: 7, signal: 15 }]);
        assert_eq!(effects[4], []);
        assert_eq!(
            life.next_deadline(),
            Some(SECOND * 6),
            "the earliest promise holds"
        );
        let mut effects = Vec::new();
        life.handle(SECOND * 6, Input::Woke, &mut effects);
        assert_eq!(effects, [Effect::KillAll]);
        effects.clear();
        life.handle(SECOND * 6 + EXIT_LINGER, Input::Woke, &mut effects);
        assert_eq!(effects, [Effect::PowerOff]);
    }

    #[test]
    fn requests_are_served_in_every_phase_and_a_second_boot_starts_nothing() {
        let mut life = Life::new();
        let effects = trace(
            &mut life,
            vec![
                told(Message::ClockSet { unix_nanos: 5 }),
                told(boot()),
                told(boot()),
                Input::Started { pid: 7 },
                told(boot()),
                told(Message::Reseed { seed: [1; 32] }),
                told(Message::Ping { nonce: 4 }),
            ],
        );
        assert_eq!(
            effects[0],
            [Effect::SetClock {
                request: 1,
                unix_nanos: 5
            }]
        );
        assert_eq!(effects[2], []);
        assert_eq!(effects[4], [Effect::Say(Message::Ready { pid: 7 })]);
        assert_eq!(
            effects[5],
            [Effect::Reseed {
                request: 1,
                seed: [1; 32]
            }]
        );
        assert_eq!(effects[6], [Effect::Pong { nonce: 4 }]);
    }
}
