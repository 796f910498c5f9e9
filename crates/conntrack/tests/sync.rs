//! Traces of the sync machine: what goes in at which time, and what must come out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use dormouse_conntrack::sync::{Delta, Sight, SyncConfig, SyncEffect, SyncInput, SyncMachine};
use dormouse_model::{Attempt, Epoch, Flow, FlowKey, MonoTime, Observation, Protocol, SightLoss, TcpState};

const CONFIG: SyncConfig = SyncConfig {
    listing_gap_min: Duration::from_millis(100),
    listing_deadline: Duration::from_millis(5_000),
    connect_deadline: Duration::from_millis(1_000),
    retry_delay_first: Duration::from_millis(100),
    retry_delay_max: Duration::from_millis(350),
    changed_while_listing_max: 2,
};

const fn at(millis: u64) -> MonoTime {
    MonoTime::from_boot(Duration::from_millis(millis))
}

fn flow(port: u16) -> Flow {
    let guest: IpAddr = [10, 0, 0, 2].into();
    Flow {
        key: FlowKey {
            protocol: Protocol::Tcp,
            zone: 0,
            source: [10, 0, 0, 1].into(),
            source_port: port,
            destination: guest,
            destination_port: 80,
        },
        responder: guest,
        responder_port: 80,
        tcp_state: Some(TcpState::ESTABLISHED),
    }
}

const fn connect(attempt: u64) -> SyncEffect {
    SyncEffect::Connect {
        attempt: Attempt(attempt),
    }
}

const fn connected(attempt: u64) -> SyncInput {
    SyncInput::Connected {
        attempt: Attempt(attempt),
    }
}

const fn lost(reason: SightLoss) -> SyncEffect {
    SyncEffect::Emit(Observation::SightLost { reason })
}

const fn start(epoch: u64) -> SyncEffect {
    SyncEffect::StartDump { epoch: Epoch(epoch) }
}

const fn stop(epoch: u64) -> SyncEffect {
    SyncEffect::StopDump { epoch: Epoch(epoch) }
}

const fn began(epoch: u64) -> SyncEffect {
    SyncEffect::Emit(Observation::SyncBegan { epoch: Epoch(epoch) })
}

const fn done(epoch: u64) -> SyncEffect {
    SyncEffect::Emit(Observation::SyncDone { epoch: Epoch(epoch) })
}

fn opened(port: u16) -> SyncInput {
    SyncInput::Event(Delta::Opened(flow(port)))
}

fn item(epoch: u64, port: u16) -> SyncInput {
    SyncInput::DumpItem {
        epoch: Epoch(epoch),
        flow: flow(port),
    }
}

const fn complete(epoch: u64) -> SyncInput {
    SyncInput::DumpDone {
        epoch: Epoch(epoch),
        interrupted: false,
    }
}

fn emit_opened(port: u16) -> SyncEffect {
    SyncEffect::Emit(Observation::FlowOpened(flow(port)))
}

fn emit_listed(port: u16) -> SyncEffect {
    SyncEffect::Emit(Observation::FlowListed(flow(port)))
}

/// A machine on the rails.
struct Track(SyncMachine);

impl Track {
    fn new() -> Self {
        Self(SyncMachine::new(CONFIG))
    }

    /// A machine that is in sync since 20 ms, epoch 1, attempt 1; the next listing may start at 120 ms.
    fn synced() -> Self {
        let mut track = Self::new();
        track.step(10, SyncInput::DeadlineReached, &[connect(1)]);
        track.step(11, connected(1), &[began(1), start(1)]);
        track.step(20, complete(1), &[done(1)]);
        track
    }

    #[track_caller]
    fn step(&mut self, millis: u64, input: SyncInput, want: &[SyncEffect]) {
        let mut out = Vec::new();
        self.0.handle(at(millis), input, &mut out);
        assert_eq!(out, want, "{input:?} at {millis} ms");
    }

    #[track_caller]
    fn deadline(&self, millis: Option<u64>) {
        assert_eq!(self.0.next_deadline(), millis.map(at));
    }
}

#[test]
fn subscribes_then_lists_then_streams() {
    let mut track = Track::new();
    assert_eq!(
        track.0.sight(),
        Sight::Blind {
            reason: None,
            since: at(0)
        }
    );
    track.deadline(Some(0));
    track.step(10, SyncInput::DeadlineReached, &[connect(1)]);
    track.step(11, connected(1), &[began(1), start(1)]);
    track.step(12, item(1, 1), &[emit_listed(1)]);
    track.step(13, complete(1), &[done(1)]);
    assert_eq!(
        track.0.sight(),
        Sight::Synced {
            epoch: Epoch(1),
            since: at(13)
        }
    );
    track.deadline(None);
    track.step(14, opened(2), &[emit_opened(2)]);
    let closed = Delta::Closed(flow(2).key);
    track.step(
        15,
        SyncInput::Event(closed),
        &[SyncEffect::Emit(Observation::FlowClosed(flow(2).key))],
    );
}

#[test]
fn a_delta_beats_a_listed_entry_of_the_same_flow() {
    let mut track = Track::new();
    track.step(10, SyncInput::DeadlineReached, &[connect(1)]);
    track.step(11, connected(1), &[began(1), start(1)]);
    let closed = Delta::Closed(flow(1).key);
    track.step(
        12,
        SyncInput::Event(closed),
        &[SyncEffect::Emit(Observation::FlowClosed(flow(1).key))],
    );
    track.step(13, item(1, 1), &[]);
    track.step(13, item(1, 2), &[emit_listed(2)]);
    track.step(14, complete(1), &[done(1)]);
}

#[test]
fn an_overrun_is_told_first_and_the_socket_is_given_up() {
    let mut track = Track::synced();
    let overrun = [lost(SightLoss::Overrun), SyncEffect::Disconnect, connect(2)];
    track.step(30, SyncInput::Overrun, &overrun);
    // What the old socket still held is older than the loss.
    track.step(30, opened(1), &[]);
    track.step(31, SyncInput::Overrun, &[]);
    // The next listing keeps its distance; deltas go on meanwhile.
    track.step(32, connected(2), &[]);
    track.deadline(Some(120));
    track.step(40, opened(2), &[emit_opened(2)]);
    track.step(119, SyncInput::DeadlineReached, &[]);
    track.step(120, SyncInput::DeadlineReached, &[began(2), start(2)]);
    track.step(130, complete(2), &[done(2)]);
}

#[test]
fn a_loss_during_a_listing_stops_it() {
    for (input, reason) in [
        (SyncInput::Overrun, SightLoss::Overrun),
        (SyncInput::SocketFailed, SightLoss::SocketFailed),
        (SyncInput::Undecodable, SightLoss::Undecodable),
    ] {
        let mut track = Track::new();
        track.step(10, SyncInput::DeadlineReached, &[connect(1)]);
        track.step(11, connected(1), &[began(1), start(1)]);
        track.step(
            20,
            input,
            &[lost(reason), stop(1), SyncEffect::Disconnect, connect(2)],
        );
        track.step(21, item(1, 1), &[]);
        track.step(21, complete(1), &[]);
        track.step(22, connected(2), &[]);
        track.deadline(Some(120));
        track.step(120, SyncInput::DeadlineReached, &[began(2), start(2)]);
        // The same kind of loss again is told again: a listing had begun since.
        let delayed = [lost(reason), stop(2), SyncEffect::Disconnect];
        track.step(121, input, &delayed);
        track.deadline(Some(221));
        track.step(221, SyncInput::DeadlineReached, &[connect(3)]);
    }
}

#[test]
fn scenario_28_a_flow_opened_during_the_outage_is_listed_right_after_the_reconnect() {
    let mut track = Track::synced();
    let failed = [lost(SightLoss::SocketFailed), SyncEffect::Disconnect, connect(2)];
    track.step(1_000, SyncInput::SocketFailed, &failed);
    track.step(1_001, connected(2), &[began(2), start(2)]);
    track.step(1_002, item(2, 7), &[emit_listed(7)]);
    track.step(1_003, complete(2), &[done(2)]);
}

#[test]
fn scenario_29_a_failing_listing_after_the_reconnect_keeps_the_stream() {
    let mut track = Track::synced();
    let failed = [lost(SightLoss::SocketFailed), SyncEffect::Disconnect, connect(2)];
    track.step(1_000, SyncInput::SocketFailed, &failed);
    track.step(1_001, connected(2), &[began(2), start(2)]);
    let failed = SyncInput::DumpFailed { epoch: Epoch(2) };
    track.step(1_002, failed, &[lost(SightLoss::ListingFailed)]);
    assert!(track.0.is_connected());
    track.step(1_003, opened(1), &[emit_opened(1)]);
    track.deadline(Some(1_102));
    track.step(1_102, SyncInput::DeadlineReached, &[began(3), start(3)]);
    let interrupted = SyncInput::DumpDone {
        epoch: Epoch(3),
        interrupted: true,
    };
    track.step(1_103, interrupted, &[lost(SightLoss::ListingFailed)]);
    track.deadline(Some(1_303));
}

#[test]
fn delays_double_up_to_the_longest_and_start_over_after_a_sync() {
    let mut track = Track::new();
    track.step(0, SyncInput::DeadlineReached, &[connect(1)]);
    let failed = |attempt| SyncInput::ConnectFailed {
        attempt: Attempt(attempt),
    };
    let first = [lost(SightLoss::SocketFailed), SyncEffect::Disconnect, connect(2)];
    track.step(0, failed(1), &first);
    let mut now = 0;
    for (attempt, delay) in [(2, 100), (3, 200), (4, 350), (5, 350)] {
        track.step(now, failed(attempt), &[SyncEffect::Disconnect]);
        now += delay;
        track.deadline(Some(now));
        track.step(now, SyncInput::DeadlineReached, &[connect(attempt + 1)]);
    }
    track.step(now, connected(6), &[began(1), start(1)]);
    track.step(now, complete(1), &[done(1)]);
    let again = [lost(SightLoss::SocketFailed), SyncEffect::Disconnect, connect(7)];
    track.step(now, SyncInput::SocketFailed, &again);
}

#[test]
fn connecting_and_listing_have_deadlines() {
    let mut track = Track::new();
    track.step(0, SyncInput::DeadlineReached, &[connect(1)]);
    track.deadline(Some(1_000));
    let late = [lost(SightLoss::SocketFailed), SyncEffect::Disconnect, connect(2)];
    track.step(1_000, SyncInput::DeadlineReached, &late);
    track.step(1_001, connected(1), &[]);
    track.step(1_002, connected(2), &[began(1), start(1)]);
    track.deadline(Some(6_002));
    track.step(
        6_002,
        SyncInput::DeadlineReached,
        &[lost(SightLoss::ListingFailed), stop(1)],
    );
    // It took five seconds, so the next may begin after five more.
    track.deadline(Some(11_002));
}

#[test]
fn a_listing_under_too_many_changes_is_given_up() {
    let mut track = Track::new();
    track.step(10, SyncInput::DeadlineReached, &[connect(1)]);
    track.step(11, connected(1), &[began(1), start(1)]);
    track.step(12, opened(1), &[emit_opened(1)]);
    track.step(12, opened(2), &[emit_opened(2)]);
    track.step(12, opened(2), &[emit_opened(2)]);
    track.step(
        12,
        opened(3),
        &[lost(SightLoss::ListingFailed), stop(1), emit_opened(3)],
    );
}

#[test]
fn asks_for_a_listing_are_coalesced_and_spaced() {
    let mut track = Track::synced();
    track.step(50, SyncInput::ResyncAsked, &[]);
    track.step(60, SyncInput::ResyncAsked, &[]);
    track.deadline(Some(120));
    track.step(120, SyncInput::DeadlineReached, &[began(2), start(2)]);
    // Asked while one runs: that one began too early to be the answer.
    track.step(125, SyncInput::ResyncAsked, &[]);
    track.step(130, complete(2), &[done(2)]);
    track.deadline(Some(230));
    track.step(230, SyncInput::DeadlineReached, &[began(3), start(3)]);
    track.step(240, complete(3), &[done(3)]);
    track.deadline(None);
    track.step(900, SyncInput::ResyncAsked, &[began(4), start(4)]);
}

#[test]
fn a_full_queue_ends_sight_and_is_told_when_there_is_room() {
    let mut track = Track::synced();
    track.step(500, SyncInput::QueueFull, &[SyncEffect::Disconnect]);
    assert!(track.0.waits_for_room());
    let blind = Sight::Blind {
        reason: Some(SightLoss::ConsumerSlow),
        since: at(500),
    };
    assert_eq!(track.0.sight(), blind);
    track.deadline(None);
    track.step(501, opened(1), &[]);
    track.step(502, SyncInput::QueueFull, &[]);
    track.step(503, SyncInput::ResyncAsked, &[]);
    track.step(600, SyncInput::QueueRoom, &[lost(SightLoss::ConsumerSlow)]);
    track.deadline(Some(600));
    track.step(600, SyncInput::DeadlineReached, &[connect(2)]);
    track.step(601, connected(2), &[began(2), start(2)]);
}

#[test]
fn inputs_out_of_place_do_nothing() {
    let mut track = Track::synced();
    track.step(30, SyncInput::QueueRoom, &[]);
    track.step(30, connected(1), &[]);
    track.step(30, SyncInput::ConnectFailed { attempt: Attempt(1) }, &[]);
    track.step(30, item(1, 1), &[]);
    track.step(30, complete(1), &[]);
    track.step(30, SyncInput::DumpFailed { epoch: Epoch(1) }, &[]);
    track.step(30, SyncInput::DeadlineReached, &[]);
    assert_eq!(
        track.0.sight(),
        Sight::Synced {
            epoch: Epoch(1),
            since: at(20)
        }
    );
}
