//! The engine alone, with workloads of one's own: a loop, a clock and executors are all that it needs.
//!
//! Here the clock is simulated and the executors answer at once, so that an hour passes in no time:
//! `cargo run -p dormouse-standby --example embed`. A real shell differs in three places, marked below.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dormouse_model::flow::TcpState;
use dormouse_model::policy::{PolicyError, PolicySetting};
use dormouse_model::workload::SleepSupport;
use dormouse_model::{
    Addresses, Epoch, Flow, FlowKey, MacAddress, MonoTime, Observation, Protocol, SleepEnd, StandbyPolicy,
    State, WakeEnd, WallTime, WorkloadId, WorkloadView,
};
use dormouse_standby::{Config, ConfirmAnswer, Effect, Engine, Input, Knock};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);

fn main() -> Result<(), PolicyError> {
    let web = WorkloadView {
        id: WorkloadId::from_bits(7),
        state: State::Running,
        addresses: Some(Addresses {
            ipv4: GUEST,
            ipv6: Ipv6Addr::LOCALHOST,
            mac: MacAddress([2, 0, 0, 0, 0, 7]),
        }),
        sleep_support: SleepSupport::Able,
        policy: PolicySetting::Enabled(StandbyPolicy::new(
            Duration::from_secs(300),
            Vec::new(),
            Vec::new(),
        )?),
    };
    let id = web.id;
    let mut shell = Shell::new();

    // Tell of the workload first and list after: a listing speaks for those who were known when it began.
    shell.give(Input::WorkloadChanged {
        view: web,
        record: None,
    });
    shell.give(Input::Observed(Observation::SyncBegan { epoch: Epoch(1) }));
    shell.give(Input::Observed(Observation::SyncDone { epoch: Epoch(1) }));

    // Somebody connects for a minute; then nobody does for an hour.
    shell.give(Input::Observed(Observation::FlowOpened(connection())));
    shell.pass(Duration::from_secs(60));
    shell.give(Input::Observed(Observation::FlowClosed(connection().key)));
    shell.pass(Duration::from_secs(3_600));

    // A packet for the sleeper.
    shell.give(Input::Knocked {
        id,
        knock: Knock::Inbound,
    });
    shell.pass(Duration::from_secs(60));
    if let Some(status) = shell.engine.status(id, shell.now, shell.wall) {
        println!(
            "{} because {}: {:?} left",
            status.status, status.reason, status.countdown_remaining
        );
    }
    Ok(())
}

/// The task that owns the engine.
struct Shell {
    engine: Engine,
    now: MonoTime,
    wall: WallTime,
}

impl Shell {
    fn new() -> Self {
        Self {
            engine: Engine::new(Config::default()),
            // A real shell reads CLOCK_BOOTTIME and CLOCK_REALTIME before each call.
            now: MonoTime::from_boot(Duration::from_secs(10_000)),
            wall: WallTime::from_unix_nanos(1_795_176_000_000_000_000),
        }
    }

    /// One input, and everything that follows from it.
    fn give(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.engine.handle(self.now, self.wall, input, &mut effects);
            // A real shell hands the effects to executors and gets the outcomes from a queue, later.
            inputs.extend(effects.drain(..).filter_map(|effect| self.execute(effect)));
        }
    }

    /// Lets time pass, deadline by deadline. A real shell waits for the next deadline or the next input,
    /// whichever comes first, and lets a deadline that has passed go first.
    fn pass(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while let Some(at) = self.engine.next_deadline().filter(|at| *at <= end) {
            self.set_clock(at);
            self.give(Input::DeadlineReached);
        }
        self.set_clock(end);
    }

    fn set_clock(&mut self, to: MonoTime) {
        let step = u64::try_from(to.since(self.now).as_nanos()).unwrap_or(u64::MAX);
        self.now = to;
        self.wall = WallTime::from_unix_nanos(self.wall.unix_nanos().saturating_add(step));
    }

    /// Does what is asked, and says how it ended.
    fn execute(&self, effect: Effect) -> Option<Input> {
        println!("{}  {effect:?}", self.wall);
        match effect {
            Effect::ConfirmIdle { id, attempt } => Some(Input::IdleConfirmed {
                id,
                attempt,
                answer: ConfirmAnswer::Idle,
            }),
            Effect::RequestSleep { id, attempt } => Some(Input::SleepEnded {
                id,
                attempt,
                end: SleepEnd::Committed,
            }),
            Effect::RequestWake { id, attempt, .. } => Some(Input::WakeEnded {
                id,
                attempt,
                end: WakeEnd::Running,
            }),
            // Nothing to take back here, nothing to write to, nobody to tell, and the listing was whole.
            Effect::CancelSleep { .. }
            | Effect::RecordIdle { .. }
            | Effect::Announce { .. }
            | Effect::AnnounceSight { .. }
            | Effect::RequestResync => None,
        }
    }
}

fn connection() -> Flow {
    let guest = IpAddr::V4(GUEST);
    let key = FlowKey {
        protocol: Protocol::Tcp,
        zone: 0,
        source: Ipv4Addr::new(192, 0, 2, 1).into(),
        source_port: 40_000,
        destination: guest,
        destination_port: 80,
    };
    Flow {
        key,
        responder: guest,
        responder_port: 80,
        tcp_state: Some(TcpState::ESTABLISHED),
    }
}
