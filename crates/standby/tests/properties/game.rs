//! Plays moves on an engine beside the reference and compares after each: every promise of the crate's
//! page that speaks of any sequence of inputs is a check here.

use std::num::NonZeroUsize;
use std::time::Duration;

use dormouse_model::flow::TcpState;
use dormouse_model::policy::PolicySetting;
use dormouse_model::workload::SleepSupport;
use dormouse_model::{
    Attempt, Epoch, Flow, MonoTime, Observation, SleepEnd, StandbyPolicy, WakeEnd, WallTime,
};
use dormouse_standby::{Config, ConfirmAnswer, Effect, Engine, Input, Knock};

use crate::moves::{AFlow, Answer, Change, End, Freshness, Move, WORKLOADS};
use crate::reference::Reference;
use crate::support::{addresses, id, policy, tcp, view};

/// Slots for sleeps and for wakes: fewer than workloads.
pub(crate) const SLOTS: usize = 2;

/// What was wrong, after which move.
pub(crate) type Broken = String;

pub(crate) struct Game {
    pub(crate) engine: Engine,
    pub(crate) reference: Reference,
    pub(crate) now: MonoTime,
    pub(crate) wall: WallTime,
    epoch: Epoch,
    /// Every effect so far, for the comparison of two runs.
    pub(crate) log: Vec<Effect>,
    /// The newest attempt given.
    pub(crate) newest: Attempt,
}

impl Game {
    /// Four running workloads with a policy, blind.
    pub(crate) fn new() -> Self {
        let slots = NonZeroUsize::new(SLOTS).unwrap();
        let config = Config {
            max_sleeps: slots,
            max_wakes: slots,
            ..Config::default()
        };
        Self {
            engine: Engine::new(config),
            reference: Reference::default(),
            now: MonoTime::from_boot(Duration::from_secs(1_000)),
            wall: WallTime::from_unix_nanos(1_800_000_000_000_000_000),
            epoch: Epoch::default(),
            log: Vec::new(),
            newest: Attempt::default(),
        }
    }

    /// Plays `moves`; the first check that fails.
    pub(crate) fn play(moves: &[Move]) -> Result<Self, Broken> {
        let mut game = Self::new();
        for number in 1..=WORKLOADS {
            game.change(number, Change::Nothing)
                .map_err(|broken| format!("at the start: {broken}"))?;
        }
        for (at, step) in moves.iter().enumerate() {
            game.play_one(*step)
                .map_err(|broken| format!("move {at}, {step:?}: {broken}"))?;
        }
        Ok(game)
    }

    pub(crate) fn play_one(&mut self, step: Move) -> Result<(), Broken> {
        match step {
            Move::Pass(time) => self.pass(time),
            Move::NextDeadline => match self.engine.next_deadline() {
                Some(at) => self.pass(at.since(self.now)),
                None => Ok(()),
            },
            Move::Opened(flow) => self.give(Input::Observed(Observation::FlowOpened(flow_of(flow)))),
            Move::Changed(flow) => self.give(Input::Observed(Observation::FlowChanged(flow_of(flow)))),
            Move::Closed(flow) => self.give(Input::Observed(Observation::FlowClosed(flow_of(flow).key))),
            Move::SyncBegan => {
                self.epoch = self.epoch.next();
                self.give(Input::Observed(Observation::SyncBegan { epoch: self.epoch }))
            }
            // The observer lists only while it lists.
            Move::Listed(_) if !self.reference.listing => Ok(()),
            Move::Listed(flow) => self.give(Input::Observed(Observation::FlowListed(flow_of(flow)))),
            Move::SyncDone => self.give(Input::Observed(Observation::SyncDone { epoch: self.epoch })),
            Move::Sync => {
                self.play_one(Move::SyncBegan)?;
                self.play_one(Move::SyncDone)
            }
            Move::SightLost(reason) => self.give(Input::Observed(Observation::SightLost { reason })),
            Move::Knock(who, reply) => {
                let knock = if reply { Knock::Reply } else { Knock::Inbound };
                self.give(Input::Knocked { id: id(who), knock })
            }
            Move::Hold(who) => self.give(Input::Hold { id: id(who) }),
            Move::Change(who, change) => self.change(who, change),
            Move::Gone(who) => self.give(Input::WorkloadGone { id: id(who) }),
            Move::Confirm(who, fresh, answer) => self.confirm(who, fresh, answer),
            Move::Slept(who, fresh, end) => self.slept(who, fresh, end),
            Move::Woke(who, fresh, end) => self.woke(who, fresh, end),
            Move::RecordFailed(who, fresh) => {
                let last = self.reference.workloads.get(&id(who)).map(|it| it.last_record);
                match self.attempt(last, fresh) {
                    Some(attempt) => self.give(Input::RecordFailed { id: id(who), attempt }),
                    None => Ok(()),
                }
            }
            Move::WallStep(forward) => {
                let hour = 3_600_000_000_000;
                let nanos = self.wall.unix_nanos();
                self.wall = WallTime::from_unix_nanos(if forward { nanos + hour } else { nanos - hour });
                Ok(())
            }
            Move::Shutdown => self.give(Input::Shutdown),
        }
    }

    fn pass(&mut self, time: Duration) -> Result<(), Broken> {
        let end = self.now.plus(time);
        for _ in 0..10_000 {
            let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) else {
                self.step_to(end);
                return Ok(());
            };
            self.step_to(at);
            self.give(Input::DeadlineReached)?;
            if self.engine.next_deadline().is_some_and(|next| next <= self.now) {
                return Err("a deadline that was reached is still there".to_owned());
            }
        }
        Err("deadlines without end".to_owned())
    }

    fn step_to(&mut self, to: MonoTime) {
        let step = to.since(self.now);
        self.now = self.now.plus(step);
        let nanos = u64::try_from(step.as_nanos()).unwrap();
        self.wall = WallTime::from_unix_nanos(self.wall.unix_nanos() + nanos);
    }

    pub(crate) fn change(&mut self, who: u8, change: Change) -> Result<(), Broken> {
        let mut changed = self
            .reference
            .workloads
            .get(&id(who))
            .map_or_else(|| view(who), |it| it.view.clone());
        let timeout = changed
            .policy
            .enabled()
            .map_or(Duration::from_secs(60), StandbyPolicy::idle_timeout);
        match change {
            Change::State(state) => changed.state = state,
            Change::Timeout(seconds) => changed.policy = policy(Duration::from_secs(seconds)),
            Change::PolicyOff => changed.policy = PolicySetting::Disabled,
            Change::IgnorePort => {
                let policy = StandbyPolicy::new(timeout, Vec::new(), vec![9]).unwrap();
                changed.policy = PolicySetting::Enabled(policy);
            }
            Change::NetworkOff => changed.addresses = None,
            Change::NetworkOn => changed.addresses = Some(addresses(who)),
            Change::DriverCannot => changed.sleep_support = SleepSupport::DriverCannot,
            Change::Able => changed.sleep_support = SleepSupport::Able,
            Change::Nothing => {}
        }
        self.give(Input::WorkloadChanged {
            view: changed,
            record: None,
        })
    }

    /// The attempt that an answer names; `None` when nothing was asked.
    fn attempt(&self, asked: Option<Attempt>, fresh: Freshness) -> Option<Attempt> {
        let asked = asked?;
        Some(match fresh {
            Freshness::Fresh => asked,
            Freshness::Late => Attempt(asked.0.saturating_sub(1)),
            Freshness::Invented => Attempt(asked.0 + 1_000_000),
        })
    }

    fn confirm(&mut self, who: u8, fresh: Freshness, answer: Answer) -> Result<(), Broken> {
        let asked = self.reference.workloads.get(&id(who)).and_then(|it| it.confirm);
        let Some(attempt) = self.attempt(asked, fresh) else {
            return Ok(());
        };
        let answer = match answer {
            Answer::Idle => ConfirmAnswer::Idle,
            Answer::Live => ConfirmAnswer::Live {
                flows: vec![tcp(who, 77, TcpState::ESTABLISHED)],
            },
            Answer::Unsure => ConfirmAnswer::Unsure {
                why: "game".to_owned(),
            },
        };
        self.give(Input::IdleConfirmed {
            id: id(who),
            attempt,
            answer,
        })
    }

    fn slept(&mut self, who: u8, fresh: Freshness, end: End) -> Result<(), Broken> {
        let asked = self
            .reference
            .workloads
            .get(&id(who))
            .and_then(|it| it.sleep)
            .map(|sleep| sleep.attempt);
        let Some(attempt) = self.attempt(asked, fresh) else {
            return Ok(());
        };
        let end = match end {
            End::Done => SleepEnd::Committed,
            End::Interrupted => SleepEnd::Interrupted,
            End::Failed => SleepEnd::Failed {
                why: "game".to_owned(),
            },
            End::Gone => SleepEnd::Gone,
            End::Refused(state) => SleepEnd::Refused { state },
        };
        self.give(Input::SleepEnded {
            id: id(who),
            attempt,
            end,
        })
    }

    fn woke(&mut self, who: u8, fresh: Freshness, end: End) -> Result<(), Broken> {
        let asked = self
            .reference
            .workloads
            .get(&id(who))
            .and_then(|it| it.wake)
            .map(|wake| wake.attempt);
        let Some(attempt) = self.attempt(asked, fresh) else {
            return Ok(());
        };
        let end = match end {
            End::Done => WakeEnd::Running,
            End::Interrupted => WakeEnd::StillAsleep {
                why: "game".to_owned(),
            },
            End::Failed => WakeEnd::Failed {
                why: "game".to_owned(),
            },
            End::Gone => WakeEnd::Gone,
            End::Refused(state) => WakeEnd::Refused { state },
        };
        self.give(Input::WakeEnded {
            id: id(who),
            attempt,
            end,
        })
    }
}

/// The flow that a move speaks of. Over a published port the key names the host, whoever answers.
fn flow_of(flow: AFlow) -> Flow {
    let mut made = tcp(flow.who, flow.port, TcpState(flow.state));
    if flow.published {
        made.key.destination = [198, 51, 100, 1].into();
        // One of the ports is ignored by the policy that ignores one.
        made.responder_port = if flow.port == 3 { 9 } else { 80 };
    }
    made
}
