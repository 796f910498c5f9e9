//! The sync machine against a model of the kernel: a table, a bounded event queue with the kernel's own
//! rule of congestion, listings that walk the table while it changes, and a consumer.
//!
//! The property: whenever the consumer has been told that it is in sync, and nothing is on its way to it,
//! it knows exactly the kernel's table.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use dormouse_conntrack::sync::{Delta, SyncConfig, SyncEffect, SyncInput, SyncMachine};
use dormouse_model::{Attempt, Epoch, Flow, FlowKey, MonoTime, Observation, Protocol, TcpState};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestError, TestRunner};

/// Keys of the model's table; each is a bucket of its own.
const KEYS: u16 = 5;
/// Events that the model's socket holds.
const EVENTS_MAX: usize = 6;

fn flow(key: u16, state: u8) -> Flow {
    let guest: IpAddr = [10, 0, 0, 2].into();
    Flow {
        key: FlowKey {
            protocol: Protocol::Tcp,
            zone: 0,
            source: [10, 0, 0, 1].into(),
            source_port: key,
            destination: guest,
            destination_port: 80,
        },
        responder: guest,
        responder_port: 80,
        tcp_state: Some(TcpState(state)),
    }
}

/// A step of the world.
#[derive(Debug, Clone)]
enum Step {
    Set { key: u16, state: u8 },
    Drop { key: u16 },
    Read,
    ListBucket,
    DeliverListed,
    FailListing { interrupted: bool },
    AnswerConnect { succeeds: bool },
    BreakSocket,
    Garble,
    AskResync,
    Flush,
    QueueFull,
    QueueRoom,
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..KEYS, 1..4_u8).prop_map(|(key, state)| Step::Set { key, state }),
        6 => (0..KEYS).prop_map(|key| Step::Drop { key }),
        16 => Just(Step::Read),
        12 => Just(Step::ListBucket),
        12 => Just(Step::DeliverListed),
        1 => any::<bool>().prop_map(|interrupted| Step::FailListing { interrupted }),
        8 => prop::bool::weighted(0.9).prop_map(|succeeds| Step::AnswerConnect { succeeds }),
        1 => Just(Step::BreakSocket),
        1 => Just(Step::Garble),
        1 => Just(Step::AskResync),
        10 => Just(Step::Flush),
        1 => Just(Step::QueueFull),
        4 => Just(Step::QueueRoom),
        8 => (0..300_u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

/// A netlink socket as the kernel treats it (net/netlink/af_netlink.c): when the queue is full the
/// message is lost, an error is left for the next read, and everything more is lost without a further
/// error until the queue has been read empty.
#[derive(Debug, Default)]
struct Socket {
    queue: VecDeque<Delta>,
    congested: bool,
    error: bool,
}

impl Socket {
    fn deliver(&mut self, delta: Delta) {
        if self.congested {
            return;
        }
        if self.queue.len() >= EVENTS_MAX {
            self.congested = true;
            self.error = true;
            return;
        }
        self.queue.push_back(delta);
    }

    fn read(&mut self) -> Option<SyncInput> {
        if std::mem::take(&mut self.error) {
            return Some(SyncInput::Overrun);
        }
        let read = self.queue.pop_front();
        if self.queue.is_empty() {
            self.congested = false;
        }
        read.map(SyncInput::Event)
    }
}

#[derive(Debug)]
struct Listing {
    epoch: Epoch,
    next_bucket: u16,
    read: VecDeque<Flow>,
}

#[derive(Debug, Default)]
struct Consumer {
    table: BTreeMap<u16, u8>,
    synced: bool,
}

impl Consumer {
    fn take(&mut self, observation: Observation) {
        match observation {
            Observation::SyncBegan { .. } => {
                self.table.clear();
                self.synced = false;
            }
            Observation::FlowListed(flow)
            | Observation::FlowOpened(flow)
            | Observation::FlowChanged(flow) => {
                self.table.insert(flow.key.source_port, flow.tcp_state.unwrap().0);
            }
            Observation::FlowClosed(key) => {
                self.table.remove(&key.source_port);
            }
            Observation::SyncDone { .. } => self.synced = true,
            Observation::SightLost { .. } => self.synced = false,
        }
    }
}

#[derive(Debug)]
struct World {
    now: MonoTime,
    machine: SyncMachine,
    table: BTreeMap<u16, u8>,
    socket: Option<Socket>,
    connecting: Option<Attempt>,
    listing: Option<Listing>,
    batch: Vec<Observation>,
    consumer: Consumer,
    syncs: u32,
}

impl World {
    fn new() -> Self {
        let config = SyncConfig {
            listing_gap_min: Duration::from_millis(50),
            listing_deadline: Duration::from_millis(2_000),
            connect_deadline: Duration::from_millis(500),
            retry_delay_first: Duration::from_millis(20),
            retry_delay_max: Duration::from_millis(200),
            changed_while_listing_max: 4,
        };
        Self {
            now: MonoTime::default(),
            machine: SyncMachine::new(config),
            table: BTreeMap::new(),
            socket: None,
            connecting: None,
            listing: None,
            batch: Vec::new(),
            consumer: Consumer::default(),
            syncs: 0,
        }
    }

    fn handle(&mut self, input: SyncInput) {
        let mut effects = Vec::new();
        self.machine.handle(self.now, input, &mut effects);
        for effect in effects {
            match effect {
                SyncEffect::Connect { attempt } => {
                    self.socket = None;
                    self.connecting = Some(attempt);
                }
                SyncEffect::Disconnect => self.socket = None,
                SyncEffect::StartDump { epoch } => {
                    self.listing = Some(Listing {
                        epoch,
                        next_bucket: 0,
                        read: VecDeque::new(),
                    });
                }
                SyncEffect::StopDump { .. } => self.listing = None,
                SyncEffect::Emit(observation) => {
                    if let Observation::SyncDone { .. } = observation {
                        self.syncs += 1;
                    }
                    self.batch.push(observation);
                }
            }
        }
    }

    fn change(&mut self, delta: Delta) {
        if let Some(socket) = &mut self.socket {
            socket.deliver(delta);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Set { key, state } => {
                let delta = if self.table.insert(key, state).is_none() {
                    Delta::Opened(flow(key, state))
                } else {
                    Delta::Changed(flow(key, state))
                };
                self.change(delta);
            }
            Step::Drop { key } => {
                if self.table.remove(&key).is_some() {
                    self.change(Delta::Closed(flow(key, 0).key));
                }
            }
            Step::Read => {
                if let Some(input) = self.socket.as_mut().and_then(Socket::read) {
                    self.handle(input);
                }
            }
            Step::ListBucket => {
                if let Some(listing) = self.listing.as_mut().filter(|one| one.next_bucket < KEYS) {
                    let key = listing.next_bucket;
                    listing.next_bucket += 1;
                    listing
                        .read
                        .extend(self.table.get(&key).map(|&state| flow(key, state)));
                }
            }
            Step::DeliverListed => self.deliver_listed(),
            Step::FailListing { interrupted } => self.fail_listing(interrupted),
            Step::AnswerConnect { succeeds } => self.answer_connect(succeeds),
            Step::BreakSocket => self.handle(SyncInput::SocketFailed),
            Step::Garble => {
                if self
                    .socket
                    .as_mut()
                    .and_then(|socket| socket.queue.pop_front())
                    .is_some()
                {
                    self.handle(SyncInput::Undecodable);
                }
            }
            Step::AskResync => self.handle(SyncInput::ResyncAsked),
            Step::Flush => {
                for observation in self.batch.drain(..) {
                    self.consumer.take(observation);
                }
            }
            Step::QueueFull => {
                self.batch.clear();
                self.handle(SyncInput::QueueFull);
            }
            Step::QueueRoom => self.handle(SyncInput::QueueRoom),
            Step::Wait { millis } => {
                self.now = self.now.plus(Duration::from_millis(millis));
                self.handle(SyncInput::DeadlineReached);
            }
        }
    }

    fn fail_listing(&mut self, interrupted: bool) {
        if let Some(Listing { epoch, .. }) = self.listing.take() {
            self.handle(if interrupted {
                SyncInput::DumpDone { epoch, interrupted }
            } else {
                SyncInput::DumpFailed { epoch }
            });
        }
    }

    fn answer_connect(&mut self, succeeds: bool) {
        if let Some(attempt) = self.connecting.take() {
            if succeeds && self.machine.awaits_connection(attempt) {
                self.socket = Some(Socket::default());
                self.handle(SyncInput::Connected { attempt });
            } else {
                self.handle(SyncInput::ConnectFailed { attempt });
            }
        }
    }

    fn deliver_listed(&mut self) {
        let Some(listing) = &mut self.listing else { return };
        let epoch = listing.epoch;
        if let Some(flow) = listing.read.pop_front() {
            self.handle(SyncInput::DumpItem { epoch, flow });
        } else if listing.next_bucket == KEYS {
            self.listing = None;
            self.handle(SyncInput::DumpDone {
                epoch,
                interrupted: false,
            });
        }
    }

    /// Whether nothing is on its way to the consumer.
    fn is_level(&self) -> bool {
        self.batch.is_empty()
            && self
                .socket
                .as_ref()
                .is_none_or(|s| s.queue.is_empty() && !s.error)
    }

    fn check(&self) -> TestCaseResult {
        // A loss not yet told is only possible before the flush that tells it.
        if self.consumer.synced && self.is_level() && self.machine.is_connected() {
            prop_assert_eq!(&self.consumer.table, &self.table);
        }
        Ok(())
    }

    /// No more faults: it must come to sync and stay level.
    fn settle(&mut self) -> TestCaseResult {
        for _ in 0..400 {
            for step in [
                Step::AnswerConnect { succeeds: true },
                Step::QueueRoom,
                Step::Read,
                Step::ListBucket,
                Step::DeliverListed,
                Step::Flush,
                Step::Wait { millis: 10 },
            ] {
                self.step(&step);
            }
            self.check()?;
        }
        prop_assert!(self.consumer.synced, "never in sync again: {:?}", self.machine);
        prop_assert!(self.is_level());
        prop_assert_eq!(&self.consumer.table, &self.table);
        Ok(())
    }
}

fn live_through(steps: &[Step]) -> TestCaseResult {
    let mut world = World::new();
    for step in steps {
        world.step(step);
        world.check()?;
        if let Some(deadline) = world.machine.next_deadline() {
            // A deadline that is due must not stay due once it was handled.
            world.handle(SyncInput::DeadlineReached);
            let next = world.machine.next_deadline();
            prop_assert!(
                deadline > world.now || next.is_none_or(|next| next > world.now),
                "{next:?}"
            );
        }
    }
    world.settle()
}

fn run(cases: u32) -> Result<(), TestError<Vec<Step>>> {
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner.run(&prop::collection::vec(step(), 0..120), |steps| {
        live_through(&steps)
    })
}

#[test]
fn a_synced_consumer_knows_the_kernels_table() {
    if let Err(error) = run(1_500) {
        panic!("{error}");
    }
}

/// Without this the property could hold because nothing ever syncs.
#[test]
fn a_quiet_world_syncs_once() {
    let mut world = World::new();
    world.settle().unwrap();
    assert_eq!(world.syncs, 1);
}

#[cfg(feature = "plant")]
#[test]
fn planted_faults_are_found() {
    use dormouse_model::plant::{Plant, plant};
    for fault in [Plant::NoResyncAfterReconnect, Plant::QueueFullDroppedSilently] {
        plant(Some(fault));
        let found = run(1_500).is_err();
        plant(None);
        assert!(found, "{} goes unnoticed", fault.as_str());
    }
}
