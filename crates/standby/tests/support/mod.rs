//! An engine with a clock that the test moves, for scenarios and traces.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dormouse_model::flow::TcpState;
use dormouse_model::policy::PolicySetting;
use dormouse_model::workload::{IdleRecord, SleepSupport};
use dormouse_model::{
    Addresses, Attempt, Epoch, Flow, FlowKey, MacAddress, MonoTime, Observation, Protocol, SightLoss,
    SleepEnd, StandbyPolicy, State, WakeEnd, WallTime, WorkloadId, WorkloadView,
};
use dormouse_standby::{
    CancelWhy, Config, ConfirmAnswer, Effect, Engine, Input, Knock, Reason, Status, StatusSnapshot,
};

/// The idle timeout of workloads that do not say otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(300);

/// Seconds as a duration.
pub(crate) const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The id of the workload that tests call `number`.
pub(crate) const fn id(number: u8) -> WorkloadId {
    WorkloadId::from_bits(number as u128)
}

/// Its addresses: 10.0.0.number and fd00::number.
pub(crate) const fn addresses(number: u8) -> Addresses {
    Addresses {
        ipv4: Ipv4Addr::new(10, 0, 0, number),
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number as u16),
        mac: MacAddress([2, 0, 0, 0, 0, number]),
    }
}

/// A policy that ignores nothing.
pub(crate) fn policy(idle_timeout: Duration) -> PolicySetting {
    PolicySetting::Enabled(StandbyPolicy::new(idle_timeout, Vec::new(), Vec::new()).unwrap())
}

/// The workload `number`, running, able to sleep, with a policy of [`TIMEOUT`].
pub(crate) fn view(number: u8) -> WorkloadView {
    WorkloadView {
        id: id(number),
        state: State::Running,
        addresses: Some(addresses(number)),
        sleep_support: SleepSupport::Able,
        policy: policy(TIMEOUT),
    }
}

/// The same in another state.
pub(crate) fn view_in(number: u8, state: State) -> WorkloadView {
    WorkloadView {
        state,
        ..view(number)
    }
}

/// A TCP flow from a client's `port` to port 80 of the workload `number`.
pub(crate) fn tcp(number: u8, port: u16, state: TcpState) -> Flow {
    let guest = IpAddr::V4(addresses(number).ipv4);
    let key = FlowKey {
        protocol: Protocol::Tcp,
        zone: 0,
        source: Ipv4Addr::new(192, 0, 2, 1).into(),
        source_port: port,
        destination: guest,
        destination_port: 80,
    };
    Flow {
        key,
        responder: guest,
        responder_port: 80,
        tcp_state: Some(state),
    }
}

/// An established one.
pub(crate) fn open(number: u8, port: u16) -> Flow {
    tcp(number, port, TcpState::ESTABLISHED)
}

/// An engine and the time.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) now: MonoTime,
    pub(crate) wall: WallTime,
    epoch: Epoch,
}

impl World {
    /// An engine with default settings, 100,000 s after boot, blind. It asks for a listing of its own
    /// accord only once a day, so that tests see the requests that they bring about.
    pub(crate) fn new() -> Self {
        Self::with(Config {
            resync_interval: secs(86_400),
            ..Config::default()
        })
    }

    pub(crate) fn with(config: Config) -> Self {
        Self {
            engine: Engine::new(config),
            now: MonoTime::from_boot(secs(100_000)),
            // 2026-11-20T12:00:00Z.
            wall: WallTime::from_unix_nanos(1_795_176_000_000_000_000),
            epoch: Epoch::default(),
        }
    }

    /// An engine in sight of one idle running workload, number 1, whose countdown has just begun.
    pub(crate) fn watching_one() -> Self {
        let mut world = Self::new();
        world.add(view(1));
        world.sync(&[]);
        world
    }

    /// The wall clock `ago` before now.
    pub(crate) fn wall_before(&self, ago: Duration) -> WallTime {
        WallTime::from_unix_nanos(self.wall.unix_nanos() - u64::try_from(ago.as_nanos()).unwrap())
    }

    /// The wall clock `ahead` after now.
    pub(crate) fn wall_after(&self, ahead: Duration) -> WallTime {
        WallTime::from_unix_nanos(self.wall.unix_nanos() + u64::try_from(ahead.as_nanos()).unwrap())
    }

    /// Hands in one input; what it brought about.
    pub(crate) fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.engine.handle(self.now, self.wall, input, &mut out);
        out
    }

    pub(crate) fn observe(&mut self, observation: Observation) -> Vec<Effect> {
        self.give(Input::Observed(observation))
    }

    pub(crate) fn add(&mut self, view: WorkloadView) -> Vec<Effect> {
        self.give(Input::WorkloadChanged { view, record: None })
    }

    pub(crate) fn add_recorded(&mut self, view: WorkloadView, record: IdleRecord) -> Vec<Effect> {
        self.give(Input::WorkloadChanged {
            view,
            record: Some(record),
        })
    }

    pub(crate) fn state(&mut self, number: u8, state: State) -> Vec<Effect> {
        self.add(view_in(number, state))
    }

    /// A whole listing.
    pub(crate) fn sync(&mut self, flows: &[Flow]) -> Vec<Effect> {
        self.epoch = self.epoch.next();
        let epoch = self.epoch;
        let mut out = self.observe(Observation::SyncBegan { epoch });
        for flow in flows {
            out.extend(self.observe(Observation::FlowListed(*flow)));
        }
        out.extend(self.observe(Observation::SyncDone { epoch }));
        out
    }

    pub(crate) fn lose_sight(&mut self, reason: SightLoss) -> Vec<Effect> {
        self.observe(Observation::SightLost { reason })
    }

    pub(crate) fn opened(&mut self, flow: Flow) -> Vec<Effect> {
        self.observe(Observation::FlowOpened(flow))
    }

    pub(crate) fn changed(&mut self, flow: Flow) -> Vec<Effect> {
        self.observe(Observation::FlowChanged(flow))
    }

    pub(crate) fn closed(&mut self, flow: Flow) -> Vec<Effect> {
        self.observe(Observation::FlowClosed(flow.key))
    }

    pub(crate) fn knock(&mut self, number: u8) -> Vec<Effect> {
        self.give(Input::Knocked {
            id: id(number),
            knock: Knock::Inbound,
        })
    }

    pub(crate) fn confirmed(&mut self, number: u8, attempt: Attempt, answer: ConfirmAnswer) -> Vec<Effect> {
        self.give(Input::IdleConfirmed {
            id: id(number),
            attempt,
            answer,
        })
    }

    pub(crate) fn sleep_ended(&mut self, number: u8, attempt: Attempt, end: SleepEnd) -> Vec<Effect> {
        self.give(Input::SleepEnded {
            id: id(number),
            attempt,
            end,
        })
    }

    pub(crate) fn wake_ended(&mut self, number: u8, attempt: Attempt, end: WakeEnd) -> Vec<Effect> {
        self.give(Input::WakeEnded {
            id: id(number),
            attempt,
            end,
        })
    }

    /// Lets `time` pass. Deadlines on the way are reached at their time, and late by nothing.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let end = self.now.plus(time);
        let mut out = Vec::new();
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.step_to(at);
            let fired = self.give(Input::DeadlineReached);
            assert!(
                self.engine.next_deadline().is_none_or(|next| next > self.now),
                "a deadline that was reached is still there: {fired:?}"
            );
            out.extend(fired);
        }
        self.step_to(end);
        out
    }

    fn step_to(&mut self, to: MonoTime) {
        let step = to.since(self.now);
        self.now = self.now.plus(step);
        self.wall = self.wall_after(step);
    }

    pub(crate) fn status(&self, number: u8) -> StatusSnapshot {
        self.engine
            .status(id(number), self.now, self.wall)
            .expect("the workload is known")
    }

    /// Asserts the status and its reason.
    pub(crate) fn check(&self, number: u8, status: Status, reason: Reason) {
        let said = self.status(number);
        assert_eq!((said.status, said.reason), (status, reason), "{said:?}");
    }

    /// Lets the rest of the countdown pass; the attempt of the confirm that follows.
    pub(crate) fn until_confirm(&mut self, number: u8) -> Attempt {
        let left = self
            .status(number)
            .countdown_remaining
            .expect("it is in countdown");
        let effects = self.pass(left);
        confirm_of(&effects, number).unwrap_or_else(|| panic!("no confirm in {effects:?}"))
    }

    /// Lets the rest of the countdown pass and confirms; the attempt of the sleep that follows.
    pub(crate) fn until_sleep(&mut self, number: u8) -> Attempt {
        let attempt = self.until_confirm(number);
        let effects = self.confirmed(number, attempt, ConfirmAnswer::Idle);
        assert_eq!(sleep_of(&effects, number), Some(attempt), "{effects:?}");
        attempt
    }

    /// The same, and the sleep commits.
    pub(crate) fn until_asleep(&mut self, number: u8) {
        let attempt = self.until_sleep(number);
        self.state(number, State::Sleeping);
        self.state(number, State::Standby);
        self.sleep_ended(number, attempt, SleepEnd::Committed);
        self.check(number, Status::Asleep, Reason::Asleep);
    }
}

/// The attempt of the confirm of `number` among `effects`.
pub(crate) fn confirm_of(effects: &[Effect], number: u8) -> Option<Attempt> {
    effects.iter().find_map(|effect| match effect {
        Effect::ConfirmIdle { id: who, attempt } if *who == id(number) => Some(*attempt),
        _ => None,
    })
}

/// The attempt of the sleep of `number` among `effects`.
pub(crate) fn sleep_of(effects: &[Effect], number: u8) -> Option<Attempt> {
    effects.iter().find_map(|effect| match effect {
        Effect::RequestSleep { id: who, attempt } if *who == id(number) => Some(*attempt),
        _ => None,
    })
}

/// The attempt of the wake of `number` among `effects`.
pub(crate) fn wake_of(effects: &[Effect], number: u8) -> Option<Attempt> {
    effects.iter().find_map(|effect| match effect {
        Effect::RequestWake { id: who, attempt, .. } if *who == id(number) => Some(*attempt),
        _ => None,
    })
}

/// Why the sleep of `number` is taken back among `effects`.
pub(crate) fn cancel_of(effects: &[Effect], number: u8) -> Option<CancelWhy> {
    effects.iter().find_map(|effect| match effect {
        Effect::CancelSleep { id: who, why, .. } if *who == id(number) => Some(*why),
        _ => None,
    })
}

/// The records of `number` among `effects`, with their attempts.
pub(crate) fn records_of(effects: &[Effect], number: u8) -> Vec<(Attempt, Option<IdleRecord>)> {
    let record = |effect: &Effect| match effect {
        Effect::RecordIdle {
            id: who,
            attempt,
            record,
        } if *who == id(number) => Some((*attempt, *record)),
        _ => None,
    };
    effects.iter().filter_map(record).collect()
}

/// The last record of `number` among `effects`; panics without one.
pub(crate) fn last_record(effects: &[Effect], number: u8) -> Option<IdleRecord> {
    records_of(effects, number)
        .last()
        .unwrap_or_else(|| panic!("no record in {effects:?}"))
        .1
}
