//! The words of traces.

use std::collections::BTreeMap;

use dormouse_model::flow::TcpState;
use dormouse_model::policy::PolicySetting;
use dormouse_model::time::{format_duration, parse_duration};
use dormouse_model::workload::{IdleRecord, SleepSupport};
use dormouse_model::{
    Attempt, Epoch, Flow, MonoTime, Observation, Protocol, SightLoss, SleepEnd, StandbyPolicy, State,
    WakeEnd, WallTime, WorkloadId, WorkloadView,
};
use dormouse_standby::{ConfirmAnswer, Effect, Held, Input, Knock, SightStatus};

use crate::support::{World, id, open, policy, view};

/// A word that means nothing, or a missing one.
type Wrong = String;

/// A trace while it runs.
pub(crate) struct Script {
    world: World,
    began: MonoTime,
    began_wall: WallTime,
    /// Workloads by name, in the order in which they were named first.
    views: BTreeMap<String, WorkloadView>,
    /// The latest attempt of each kind of effect.
    latest: BTreeMap<(&'static str, WorkloadId), Attempt>,
    /// The store.
    records: BTreeMap<WorkloadId, IdleRecord>,
    met: Vec<WorkloadId>,
}

impl Script {
    pub(crate) fn new() -> Self {
        let world = World::new();
        Self {
            began: world.now,
            began_wall: world.wall,
            world,
            views: BTreeMap::new(),
            latest: BTreeMap::new(),
            records: BTreeMap::new(),
            met: Vec::new(),
        }
    }

    /// One line of input; the lines that it brings about.
    pub(crate) fn line(&mut self, line: &str) -> Result<Vec<String>, Wrong> {
        let mut words = line.split_whitespace();
        let at = parse_duration(words.next().ok_or("no time")?).map_err(|error| error.to_string())?;
        let words: Vec<&str> = words.collect();
        let mut said = self.wait_until(self.began.plus(at));
        said.extend(self.give(&words)?);
        Ok(said)
    }

    fn wait_until(&mut self, end: MonoTime) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(next) = self.world.engine.next_deadline().filter(|next| *next <= end) {
            let late = next.since(self.world.now);
            for effect in self.world.pass(late) {
                let at = format_duration(self.world.now.since(self.began));
                said.push(format!("[{at}] {}", self.effect(&effect)));
            }
        }
        self.world.pass(end.since(self.world.now));
        said
    }

    fn give(&mut self, words: &[&str]) -> Result<Vec<String>, Wrong> {
        let (verb, rest) = words.split_first().ok_or("no input")?;
        let input = match *verb {
            "wait" => return Ok(Vec::new()),
            "status" => return Ok(vec![self.status(rest)?]),
            "hold" => return self.hold(rest),
            "restart" => return Ok(self.restart()),
            "clock" => return self.step_clock(rest),
            "change" => self.change(rest)?,
            "gone" => self.gone(rest)?,
            "sync-began" => Input::Observed(Observation::SyncBegan { epoch: epoch(rest)? }),
            "sync-done" => Input::Observed(Observation::SyncDone { epoch: epoch(rest)? }),
            "listed" => Input::Observed(Observation::FlowListed(self.flow(rest)?)),
            "opened" => Input::Observed(Observation::FlowOpened(self.flow(rest)?)),
            "changed" => Input::Observed(Observation::FlowChanged(self.flow(rest)?)),
            "closed" => Input::Observed(Observation::FlowClosed(self.flow(rest)?.key)),
            "lost" => Input::Observed(Observation::SightLost { reason: loss(rest)? }),
            "knock" => {
                let knock = if rest.contains(&"reply") {
                    Knock::Reply
                } else {
                    Knock::Inbound
                };
                Input::Knocked {
                    id: self.id(rest)?,
                    knock,
                }
            }
            "deadline" => Input::DeadlineReached,
            "idle" => self.confirmed(rest, ConfirmAnswer::Idle)?,
            "live" => {
                let flow = self.flow(rest)?;
                self.confirmed(rest, ConfirmAnswer::Live { flows: vec![flow] })?
            }
            "unsure" => self.confirmed(
                rest,
                ConfirmAnswer::Unsure {
                    why: "trace".to_owned(),
                },
            )?,
            "slept" => {
                let (id, attempt) = self.attempt("request_sleep", rest)?;
                Input::SleepEnded {
                    id,
                    attempt,
                    end: sleep_end(rest)?,
                }
            }
            "woke" => {
                let (id, attempt) = self.attempt("request_wake", rest)?;
                Input::WakeEnded {
                    id,
                    attempt,
                    end: wake_end(rest)?,
                }
            }
            "record-failed" => {
                let (id, attempt) = self.attempt("record_idle", rest)?;
                Input::RecordFailed { id, attempt }
            }
            "shutdown" => Input::Shutdown,
            _ => return Err(format!("no input {verb:?}")),
        };
        let effects = self.world.give(input);
        Ok(effects.iter().map(|effect| self.effect(effect)).collect())
    }

    /// Another daemon: it knows nothing but what is recorded.
    fn restart(&mut self) -> Vec<String> {
        self.world.engine = World::new().engine;
        self.met.clear();
        Vec::new()
    }

    fn gone(&mut self, words: &[&str]) -> Result<Input, Wrong> {
        let id = self.id(words)?;
        self.met.retain(|met| *met != id);
        Ok(Input::WorkloadGone { id })
    }

    fn id(&self, words: &[&str]) -> Result<WorkloadId, Wrong> {
        let name = words.first().ok_or("no name")?;
        Ok(self
            .views
            .get(*name)
            .ok_or_else(|| format!("no workload {name:?}"))?
            .id)
    }

    fn attempt(&self, kind: &'static str, words: &[&str]) -> Result<(WorkloadId, Attempt), Wrong> {
        let id = self.id(words)?;
        if let Some(number) = words.iter().find_map(|word| word.strip_prefix('#')) {
            return Ok((id, Attempt(number.parse().map_err(|_| "not an attempt")?)));
        }
        let latest = self
            .latest
            .get(&(kind, id))
            .ok_or_else(|| format!("no {kind} yet"))?;
        Ok((id, *latest))
    }

    fn confirmed(&self, words: &[&str], answer: ConfirmAnswer) -> Result<Input, Wrong> {
        let (id, attempt) = self.attempt("confirm_idle", words)?;
        Ok(Input::IdleConfirmed { id, attempt, answer })
    }

    /// `change NAME [STATE] [timeout=5m] [policy=missing|disabled] [ignore=PORT] [network=none]
    /// [device=passed_through]`: the view as it was, with these parts changed. The first time, and after a
    /// restart, it comes with what was recorded.
    fn change(&mut self, words: &[&str]) -> Result<Input, Wrong> {
        let (name, parts) = words.split_first().ok_or("no name")?;
        let number = u8::try_from(self.views.len() + 1).map_err(|_| "too many workloads")?;
        let mut changed = self.views.get(*name).cloned().unwrap_or_else(|| view(number));
        for part in parts {
            match part.split_once('=') {
                Some(("timeout", text)) => {
                    changed.policy = policy(parse_duration(text).map_err(|error| error.to_string())?);
                }
                Some(("ignore", port)) => {
                    let timeout = changed.policy.enabled().ok_or("no policy")?.idle_timeout();
                    let ports = vec![port.parse().map_err(|_| "not a port")?];
                    let policy = StandbyPolicy::new(timeout, Vec::new(), ports);
                    changed.policy = PolicySetting::Enabled(policy.map_err(|error| error.to_string())?);
                }
                Some(("policy", "missing")) => changed.policy = PolicySetting::Missing,
                Some(("policy", "disabled")) => changed.policy = PolicySetting::Disabled,
                Some(("network", "none")) => changed.addresses = None,
                Some(("device", "passed_through")) => {
                    changed.sleep_support = SleepSupport::DevicePassedThrough;
                }
                Some(_) => return Err(format!("no part {part:?}")),
                None => changed.state = part.parse::<State>().map_err(|error| error.to_string())?,
            }
        }
        self.views.insert((*name).to_owned(), changed.clone());
        let first = !self.met.contains(&changed.id);
        let record = self.records.get(&changed.id).copied().filter(|_| first);
        self.met.push(changed.id);
        Ok(Input::WorkloadChanged {
            view: changed,
            record,
        })
    }

    /// `NAME PORT [udp] [STATE-NUMBER or name] [via=HOST-PORT] [to=GUEST-PORT]`.
    fn flow(&self, words: &[&str]) -> Result<Flow, Wrong> {
        let who = self.id(words)?;
        let number = (1..=u8::MAX)
            .find(|number| id(*number) == who)
            .ok_or("not a workload of ours")?;
        let port = words
            .iter()
            .find_map(|word| word.parse().ok())
            .ok_or("no client port")?;
        let mut flow = open(number, port);
        for word in words {
            let state = match *word {
                "syn_sent" => TcpState::SYN_SENT,
                "time_wait" => TcpState::TIME_WAIT,
                "close" => TcpState::CLOSE,
                _ => TcpState::ESTABLISHED,
            };
            if state != TcpState::ESTABLISHED {
                flow.tcp_state = Some(state);
            }
            if *word == "udp" {
                flow.key.protocol = Protocol::Udp;
                flow.tcp_state = None;
            }
            if let Some(port) = word.strip_prefix("via=") {
                flow.key.destination = [198, 51, 100, 1].into();
                flow.key.destination_port = port.parse().map_err(|_| "not a port")?;
            }
            if let Some(port) = word.strip_prefix("to=") {
                flow.responder_port = port.parse().map_err(|_| "not a port")?;
                flow.key.destination_port = flow.responder_port;
            }
        }
        Ok(flow)
    }

    fn hold(&mut self, words: &[&str]) -> Result<Vec<String>, Wrong> {
        let id = self.id(words)?;
        let mut out = Vec::new();
        let answer = match self
            .world
            .engine
            .hold(self.world.now, self.world.wall, id, &mut out)
        {
            Ok(held) => format!("= {}", self.held(held)),
            Err(error) => format!("= {error}"),
        };
        let mut said = vec![answer];
        said.extend(out.iter().map(|effect| self.effect(effect)));
        Ok(said)
    }

    fn held(&self, held: Held) -> String {
        match held {
            Held::Awake { until } => format!("awake until {}", self.since(until)),
            Held::ComesBack { until } => format!("comes back, awake until {}", self.since(until)),
            Held::NothingToHold => "nothing to hold".to_owned(),
        }
    }

    /// `clock +5m`, `clock -5m`: the wall clock steps.
    fn step_clock(&mut self, words: &[&str]) -> Result<Vec<String>, Wrong> {
        let word = words.first().ok_or("no step")?;
        let (sign, text) = word.split_at(1);
        let step = parse_duration(text).map_err(|error| error.to_string())?;
        self.world.wall = match sign {
            "+" => self.world.wall_after(step),
            "-" => self.world.wall_before(step),
            _ => return Err("a step begins with + or -".to_owned()),
        };
        Ok(Vec::new())
    }

    fn status(&self, words: &[&str]) -> Result<String, Wrong> {
        let name = words.first().ok_or("no name")?;
        let view = self.views.get(*name).ok_or("no such workload")?;
        let status = self.world.engine.describe(view, self.world.now, self.world.wall);
        let left = status
            .countdown_remaining
            .map_or_else(|| "-".to_owned(), format_duration);
        let count = status.active_inbound_count;
        Ok(format!(
            "= {} ({}) flows={count} left={left}",
            status.status, status.reason
        ))
    }

    /// The time of a trace that a wall time is.
    fn since(&self, wall: WallTime) -> String {
        if wall >= self.began_wall {
            format_duration(wall.since(self.began_wall))
        } else {
            format!("-{}", format_duration(self.began_wall.since(wall)))
        }
    }

    fn name(&self, id: WorkloadId) -> &str {
        self.views
            .iter()
            .find(|(_, view)| view.id == id)
            .map_or("?", |(name, _)| name)
    }

    /// What an effect looks like, remembered for the inputs that answer it.
    fn effect(&mut self, effect: &Effect) -> String {
        let verb = effect.name();
        match effect {
            Effect::RequestResync => verb.to_owned(),
            Effect::ConfirmIdle { id, attempt } | Effect::RequestSleep { id, attempt } => {
                self.latest.insert((verb, *id), *attempt);
                format!("{verb} {} #{attempt}", self.name(*id))
            }
            Effect::CancelSleep { id, attempt, why } => format!("{verb} {} #{attempt} {why}", self.name(*id)),
            Effect::RequestWake { id, attempt, cause } => {
                self.latest.insert((verb, *id), *attempt);
                format!("{verb} {} #{attempt} {cause:?}", self.name(*id)).to_lowercase()
            }
            Effect::RecordIdle { id, attempt, record } => {
                self.latest.insert((verb, *id), *attempt);
                let Some(record) = record else {
                    self.records.remove(id);
                    return format!("{verb} {} #{attempt} erase", self.name(*id));
                };
                self.records.insert(*id, *record);
                let mut text = format!("{verb} {} #{attempt}", self.name(*id));
                let parts = [
                    ("idle", record.idle_since),
                    ("last", record.last_inbound),
                    ("hold", record.hold_until),
                ];
                for (part, wall) in parts {
                    if let Some(wall) = wall {
                        text.push_str(&format!(" {part}={}", self.since(wall)));
                    }
                }
                text
            }
            Effect::Announce { id, status, reason } => {
                format!("{verb} {} {status} ({reason})", self.name(*id))
            }
            Effect::AnnounceSight {
                sight: SightStatus::Clear { epoch },
            } => format!("{verb} clear {epoch}"),
            Effect::AnnounceSight {
                sight: SightStatus::Blind { loss },
            } => {
                format!("{verb} blind {}", loss.map_or("-", SightLoss::as_str))
            }
        }
    }
}

fn epoch(words: &[&str]) -> Result<Epoch, Wrong> {
    let number = words
        .first()
        .and_then(|word| word.parse().ok())
        .ok_or("no epoch")?;
    Ok(Epoch(number))
}

fn loss(words: &[&str]) -> Result<SightLoss, Wrong> {
    let losses = [
        SightLoss::Overrun,
        SightLoss::SocketFailed,
        SightLoss::Undecodable,
        SightLoss::ListingFailed,
        SightLoss::ConsumerSlow,
    ];
    let word = words.first().ok_or("no reason")?;
    losses
        .into_iter()
        .find(|loss| loss.as_str() == *word)
        .ok_or_else(|| format!("no loss {word:?}"))
}

fn refused(words: &[&str]) -> Option<State> {
    words
        .iter()
        .find_map(|word| word.strip_prefix("refused=")?.parse().ok())
}

fn sleep_end(words: &[&str]) -> Result<SleepEnd, Wrong> {
    if let Some(state) = refused(words) {
        return Ok(SleepEnd::Refused { state });
    }
    match words.last() {
        Some(&"committed") => Ok(SleepEnd::Committed),
        Some(&"interrupted") => Ok(SleepEnd::Interrupted),
        Some(&"failed") => Ok(SleepEnd::Failed {
            why: "trace".to_owned(),
        }),
        Some(&"gone") => Ok(SleepEnd::Gone),
        Some(_) | None => Err("no end of a sleep".to_owned()),
    }
}

fn wake_end(words: &[&str]) -> Result<WakeEnd, Wrong> {
    if let Some(state) = refused(words) {
        return Ok(WakeEnd::Refused { state });
    }
    match words.last() {
        Some(&"running") => Ok(WakeEnd::Running),
        Some(&"asleep") => Ok(WakeEnd::StillAsleep {
            why: "trace".to_owned(),
        }),
        Some(&"failed") => Ok(WakeEnd::Failed {
            why: "trace".to_owned(),
        }),
        Some(&"gone") => Ok(WakeEnd::Gone),
        Some(_) | None => Err("no end of a wake".to_owned()),
    }
}
