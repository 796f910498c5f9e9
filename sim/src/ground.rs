//! What lies under the daemon and outlives it: kernel, host, disk, time, chance, and the truth that the
//! invariants are judged by.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dormouse_instance::machine::{Exit, MemoryImage, Phase, ProcessIdentity, Record, Step};
use dormouse_model::policy::{PolicySetting, StandbyPolicy};
use dormouse_model::{
    Addresses, FailReason, FlowKey, Generation, MonoTime, OnLostMemory, Protocol, TcpState, WallTime,
    WorkloadId,
};
use dormouse_standby::Knock;

use crate::breach::{Breach, Invariant};
use crate::event::{DaemonEvent, Event, Queue, delay};
use crate::host::{Host, Mode};
use crate::kernel::{Fate, Gate, Kernel, Link, Packet};
use crate::random::Random;
use crate::store::Store;
use crate::tally::Tally;
use crate::trace::Trace;

/// Whether faults may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// They may.
    Rough,
    /// They may not: what was begun must come to rest.
    Calm,
}

/// What fails for a while, every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Processes do not end.
    Ends,
    /// Nothing can be written to the store.
    Writes,
    /// Nothing can be written to it, and nothing read.
    WritesAndReads,
    /// And nothing removed from the disk.
    Disk,
}

impl Outage {
    /// Whether `step` fails.
    const fn strikes(self, step: &Step) -> bool {
        match self {
            Self::Ends => matches!(step, Step::LetGo | Step::EndProcess),
            Self::Writes => matches!(step, Step::Write(_)),
            Self::WritesAndReads => matches!(step, Step::Write(_) | Step::ReadBack),
            Self::Disk => matches!(
                step,
                Step::Write(_)
                    | Step::ReadBack
                    | Step::Discard { .. }
                    | Step::RemoveRecord
                    | Step::RemoveFiles
            ),
        }
    }
}

/// What the world knows of a workload, whatever any daemon believes.
#[derive(Debug, Clone)]
pub struct Truth {
    /// Given to it.
    pub addresses: Addresses,
    /// Its policy.
    pub policy: PolicySetting,
    /// Its idle timeout, as the policy says.
    pub idle_timeout: Duration,
    /// Its creation was acknowledged: it may not disappear.
    pub acknowledged: bool,
    /// Somebody asked for its removal.
    pub removal_wanted: bool,
    /// Its process was ended by a fault since it last started.
    pub crashed: bool,
    /// The host rebooted since it last started.
    pub rebooted: bool,
    /// Faults that hit its steps since it last came to rest.
    pub injected: u32,
    /// Until when a caller's hold counts.
    pub held_until: Option<MonoTime>,
    /// Live inbound flows when its sleep's proof began.
    pub live_at_proof: Vec<FlowKey>,
    /// Packets that reached its guest.
    pub delivered: u64,
    /// The image that its durable record names, unless its end was wanted since.
    pub committed: Option<Generation>,
    /// The image that a record may name was discarded, and no record was durable since.
    pub discarded: bool,
    /// Its image was refused for good by whoever loads it.
    pub refused: bool,
    /// A caller asked that it stop, and it has neither slept nor begun since.
    pub stop_wanted: bool,
}

/// How hard each sort of fault blows in one seed, in parts of 1000.
#[derive(Debug, Clone, Copy, Default)]
pub struct Profile {
    /// The event socket cannot be opened.
    pub connect_fails: u64,
    /// A part of a listing fails.
    pub listing_fails: u64,
    /// The engine's task or the observer's is late.
    pub tasks_late: u64,
    /// A knock is lost.
    pub knocks_lost: u64,
    /// A step fails.
    pub steps_fail: u64,
    /// A step takes longer than its deadline.
    pub steps_late: u64,
    /// The event socket fails between the proof of a sleep and its commit, where it matters most.
    pub sight_fails: u64,
}

impl Profile {
    /// The profile of one seed: some faults blow hard, some not at all.
    #[must_use]
    pub fn draw(random: &mut Random) -> Self {
        let mut blow = |most: u64| {
            if random.chance(700) {
                random.below(most + 1)
            } else {
                0
            }
        };
        Self {
            connect_fails: blow(800),
            listing_fails: blow(300),
            tasks_late: blow(60),
            knocks_lost: blow(400),
            steps_fail: blow(40),
            steps_late: blow(12),
            sight_fails: blow(60),
        }
    }
}

/// Everything but the daemon.
#[derive(Debug)]
pub struct Ground {
    /// Now.
    pub now: MonoTime,
    /// Chance.
    pub random: Random,
    /// What is to come.
    pub queue: Queue,
    /// The kernel.
    pub kernel: Kernel,
    /// Processes and memory.
    pub host: Host,
    /// The disk.
    pub store: Store,
    /// The truth about each workload that was ever made.
    pub truths: BTreeMap<WorkloadId, Truth>,
    /// What happened, in text.
    pub trace: Trace,
    /// What happened, in numbers.
    pub tally: Tally,
    /// The first broken invariant.
    pub breach: Option<Breach>,
    /// Whether faults happen.
    pub weather: Weather,
    /// How hard they blow.
    pub profile: Profile,
    /// What fails for longer, and until when.
    pub outage: Option<(Outage, MonoTime)>,
    /// The number of the daemon that runs, or that ran last.
    pub incarnation: u64,
    /// How many events there were.
    pub events: u64,
    /// Wall time minus time since boot.
    pub wall_offset: Duration,
}

impl Ground {
    /// A host that has just booted.
    #[must_use]
    pub fn new(seed: u64, trace: Trace) -> Self {
        let mut random = Random::new(seed);
        let profile = Profile::draw(&mut random);
        Self {
            now: MonoTime::from_boot(Duration::from_secs(10)),
            profile,
            random,
            queue: Queue::default(),
            kernel: Kernel::default(),
            host: Host::default(),
            store: Store::default(),
            truths: BTreeMap::new(),
            trace,
            tally: Tally::default(),
            breach: None,
            weather: Weather::Rough,
            outage: None,
            incarnation: 0,
            events: 0,
            wall_offset: Duration::from_secs(1_800_000_000),
        }
    }

    /// The wall clock, which may have been set.
    #[must_use]
    pub fn wall(&self) -> WallTime {
        let nanos = self.now.since_boot().saturating_add(self.wall_offset).as_nanos();
        WallTime::from_unix_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Schedules an event.
    pub fn after(&mut self, wait: Duration, event: Event) {
        self.queue.push(self.now.plus(wait), event);
    }

    /// Schedules something for the daemon that runs now.
    pub fn tell_after(&mut self, wait: Duration, event: DaemonEvent) {
        self.after(wait, Event::Daemon(self.incarnation, event));
    }

    /// A fault with this chance, while faults happen.
    pub fn fault(&mut self, per_mille: u64) -> bool {
        match self.weather {
            Weather::Rough => self.random.chance(per_mille),
            Weather::Calm => false,
        }
    }

    /// Whether an outage makes `step` fail.
    #[must_use]
    pub fn is_out(&self, step: &Step) -> bool {
        self.weather == Weather::Rough
            && self
                .outage
                .is_some_and(|(sort, until)| self.now < until && sort.strikes(step))
    }

    /// Notes a line in the trace.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.line(self.now, what);
    }

    /// Says that an invariant is broken. The first one counts.
    pub fn broken(&mut self, invariant: Invariant, what: String) {
        self.note(format_args!("BROKEN {invariant}: {what}"));
        if self.breach.is_none() {
            self.breach = Some(Breach {
                invariant,
                what,
                event: self.events,
            });
        }
    }

    /// A policy that sleeps after `idle_timeout` and ignores one port.
    #[must_use]
    pub fn policy(idle_timeout: Duration) -> PolicySetting {
        StandbyPolicy::new(idle_timeout, Vec::new(), vec![crate::kernel::IGNORED_PORT])
            .map_or(PolicySetting::Disabled, PolicySetting::Enabled)
    }

    /// Sends a packet and lets its consequences follow.
    pub fn send(&mut self, address: std::net::IpAddr, packet: Packet) -> Fate {
        let (id, fate) = self.kernel.send(address, packet);
        self.note(format_args!("packet {packet:?} {fate:?}"));
        match (id, fate) {
            (Some(id), Fate::AtTap) => {
                let wait = self.random.millis(0, 2);
                self.after(wait, Event::GuestReads(id));
            }
            (Some(id), Fate::Parked { first }) => {
                self.tally.parked += 1;
                if first {
                    self.solicit(id);
                }
            }
            (_, Fate::Refused) | (None, _) => self.tally.refused += 1,
        }
        fate
    }

    /// The kernel asks for the neighbour: a knock, unless it is lost on the way.
    pub fn solicit(&mut self, id: WorkloadId) {
        let Some(link) = self.kernel.links.get_mut(&id) else {
            return;
        };
        if link.gate == Gate::Open || link.parked.is_empty() {
            link.soliciting = false;
            return;
        }
        link.soliciting = true;
        let knock = match link.parked.back() {
            Some(Packet::Reply(_)) => Knock::Reply,
            _ => Knock::Inbound,
        };
        self.after(delay::SOLICIT, Event::Solicit(id));
        if self.fault(self.profile.knocks_lost) {
            self.tally.knocks_lost += 1;
            self.note(format_args!("knock lost {id}"));
            if self.random.chance(500) {
                let wait = self.random.millis(1, 20);
                self.tell_after(wait, DaemonEvent::KnocksLost);
            }
            return;
        }
        let copies = if self.fault(100) { 2 } else { 1 };
        for _ in 0..copies {
            let wait = self.random.millis(0, 3);
            self.tell_after(wait, DaemonEvent::Knock(id, knock));
        }
    }

    /// The guest takes what is queued at its tap, if it runs.
    pub fn guest_reads(&mut self, id: WorkloadId) {
        if !self.host.guest_runs(id) {
            return;
        }
        let Some(link) = self.kernel.links.get_mut(&id) else {
            return;
        };
        let packets = std::mem::take(&mut link.ring);
        if let Some(truth) = self.truths.get_mut(&id) {
            truth.delivered += packets.len() as u64;
        }
        for packet in packets {
            self.tally.delivered += 1;
            let (key, answer): (FlowKey, fn(FlowKey, u64) -> Event) = match packet {
                Packet::Syn(key) => (key, Event::HandshakeAnswered),
                Packet::Fin(key) => (key, Event::CloseAnswered),
                Packet::LostSyn(_) | Packet::Data(_) | Packet::Ping | Packet::Reply(_) => continue,
            };
            if let Some(stamp) = self.kernel.flows.get(&key).map(|entry| entry.stamp) {
                let wait = self.random.millis(1, 6);
                self.after(wait, answer(key, stamp));
            }
        }
    }

    /// The guest's answer passes the kernel, which learns the new state.
    pub fn answered(&mut self, key: FlowKey, stamp: u64, state: TcpState, keep: Option<Duration>) {
        let stamp = self.kernel.set_tcp_state(key, stamp, state);
        self.note(format_args!(
            "flow {}:{} state {}",
            key.source, key.source_port, state.0
        ));
        if let (Some(stamp), Some(keep)) = (stamp, keep) {
            self.after(keep, Event::EntryExpires(key, stamp));
        }
    }

    /// How long an entry of this protocol is kept without use.
    #[must_use]
    pub fn keep_of(protocol: Protocol, half_open: bool) -> Option<Duration> {
        match protocol {
            Protocol::Tcp => half_open.then_some(delay::SYN_SENT),
            Protocol::Udp | Protocol::Icmp | Protocol::Other(_) => Some(delay::DATAGRAMS),
        }
    }

    /// A process ends by itself or by a fault. Its tap goes with it; the daemon learns of it later.
    pub fn process_ends(&mut self, id: WorkloadId, how: &Exit) {
        let taps = self.kernel.links.get_mut(&id);
        if let Some(link) = taps {
            link.tap = false;
            link.ring.clear();
        }
        for process in self.host.end(id) {
            self.note(format_args!("process {} of {id} ends: {how:?}", process.pid));
            let wait = self.random.millis(0, 30);
            self.tell_after(wait, DaemonEvent::Exited(id, process, how.clone()));
            if self.random.chance(500) {
                self.host.reuse(self.now, process.pid);
            }
        }
    }

    /// Whether nothing else can be believed than that `process` is the workload: whatever the record may say
    /// names it, or an image that nobody can load.
    #[must_use]
    pub fn is_recorded(&self, id: WorkloadId, process: ProcessIdentity) -> bool {
        let loadable = self.host.memory.get(&id).and_then(|memory| memory.device_state);
        let harmless = |phase: &Phase| match phase {
            Phase::Running {
                process: recorded, ..
            } => *recorded == process,
            Phase::Standby { image } => loadable.is_none_or(|(generation, _)| generation != image.generation),
            Phase::Stopped
            | Phase::Starting
            | Phase::Cold { .. }
            | Phase::Stopping
            | Phase::Failed { .. }
            | Phase::Deleting => false,
        };
        self.store.records.contains_key(&id)
            && self.store.possible(id).all(|stored| harmless(&stored.life.phase))
    }

    /// A write ended: this is what is on disk.
    pub fn write(&mut self, id: WorkloadId, life: Record) {
        let Some(truth) = self.truths.get(&id) else { return };
        let addresses = truth.addresses;
        let taken = self
            .store
            .records
            .iter()
            .find(|(other, stored)| **other != id && stored.addresses == addresses);
        if let Some((other, _)) = taken {
            let what = format!("records of {other} and {id} both name {}", addresses.ipv4);
            self.broken(Invariant::AddressesUnique, what);
        }
        self.keep_committed(id, &life.phase);
        self.store.write(id, addresses, life);
    }

    /// A write failed, and the disk may bring it back.
    pub fn write_doubtful(&mut self, id: WorkloadId, life: Record) {
        if let Some(truth) = self.truths.get(&id) {
            self.store.doubtful(id, truth.addresses, life);
        }
    }

    /// What was committed is given up only when its end is wanted or it is lost.
    fn keep_committed(&mut self, id: WorkloadId, phase: &Phase) {
        let there = self.host.memory.get(&id).and_then(|memory| memory.device_state);
        let Some(truth) = self.truths.get_mut(&id) else {
            return;
        };
        truth.discarded = false;
        let stop_wanted = truth.stop_wanted;
        if let Some(image) = phase.image() {
            truth.committed = Some(image.generation);
            return;
        }
        let committed = truth.committed.take();
        let Phase::Failed { reason } = phase else { return };
        let lost = match reason {
            FailReason::ImageLost(_) => true,
            FailReason::WakeFailed { .. } => truth.refused,
            FailReason::ProcessEnded { .. }
            | FailReason::HostRebooted
            | FailReason::StartFailed { .. }
            | FailReason::NotAnswering { .. }
            | FailReason::Inconsistent { .. } => false,
        };
        if let Some(generation) = committed
            && there.is_some_and(|(saved, _)| saved == generation)
            && !lost
            && !stop_wanted
        {
            let what = format!("{id} slept as generation {generation} and is given up: {reason}");
            self.broken(Invariant::CommittedKept, what);
        }
    }

    /// Makes a link, shut.
    pub fn attach(&mut self, id: WorkloadId) {
        let Some(truth) = self.truths.get(&id) else { return };
        let addresses = truth.addresses;
        let owner = self
            .kernel
            .route(addresses.ipv4.into())
            .filter(|other| *other != id);
        if let Some(other) = owner {
            let what = format!(
                "{id} gets {} while the link of {other} still has it",
                addresses.ipv4
            );
            self.broken(Invariant::AddressesUnique, what);
        }
        self.kernel.links.entry(id).or_insert_with(|| Link {
            addresses,
            gate: Gate::Shut,
            parked: std::collections::VecDeque::new(),
            ring: std::collections::VecDeque::new(),
            tap: false,
            passed: 0,
            soliciting: false,
        });
    }

    /// Packets that die with a tap that a plan dropped: none may be there.
    pub fn drop_tap(&mut self, id: WorkloadId, why: &str) {
        let Some(link) = self.kernel.links.get_mut(&id) else {
            return;
        };
        link.tap = false;
        let lost = link.ring.len();
        link.ring.clear();
        // Whoever stops or removes a workload, or finds it failed, wants its packets no more.
        let over = why != "let_go"
            || self
                .truths
                .get(&id)
                .is_none_or(|truth| truth.removal_wanted || truth.crashed || truth.discarded);
        if lost > 0 && !over {
            self.broken(
                Invariant::NoPacketLost,
                format!("{lost} packets died with the tap of {id}: {why}"),
            );
        }
    }

    /// A guest begins to run on.
    pub fn resume(&mut self, id: WorkloadId) -> bool {
        let paused: Vec<ProcessIdentity> = self.host.of(id);
        let was_paused = paused
            .iter()
            .any(|identity| self.host.find(*identity).is_some_and(|p| p.mode == Mode::Paused));
        let runs = self.host.run(id);
        if was_paused {
            for process in paused {
                if !self.is_recorded(id, process) {
                    let phase = self
                        .store
                        .records
                        .get(&id)
                        .map(|stored| stored.life.phase.clone());
                    let what = format!("pid {} of {id} runs and the record says {phase:?}", process.pid);
                    self.broken(Invariant::RecordsFirst, what);
                }
            }
        }
        let wait = self.random.millis(0, 2);
        self.after(wait, Event::GuestReads(id));
        runs
    }

    /// Loads an image into a process that stays paused.
    ///
    /// # Errors
    /// When the image is not there.
    pub fn restore(&mut self, id: WorkloadId, image: MemoryImage) -> Result<ProcessIdentity, String> {
        if image.boot != self.host.boot {
            let what = format!("memory of {id} of an earlier boot is loaded and was never compared");
            self.broken(Invariant::NothingUntrusted, what);
        }
        let right = self.host.load(id, image)?;
        if !right {
            let what = format!(
                "generation {} of {id} is loaded and its guest has run since",
                image.generation
            );
            self.broken(Invariant::ImageLoadedOnce, what);
        }
        let process = self
            .host
            .spawn(self.now, Some(id), Mode::Paused)
            .ok_or("no pid is free")?;
        if let Some(process) = self.host.find(process) {
            process.ready = true;
        }
        self.one_process(id);
        Ok(process)
    }

    /// Looks that there are no two processes of a workload.
    pub fn one_process(&mut self, id: WorkloadId) {
        let count = self.host.of(id).len();
        if count > 1 {
            self.broken(
                Invariant::NeverTwoProcesses,
                format!("{id} has {count} processes"),
            );
        }
    }

    /// What becomes of a workload whose memory is lost: half of them are booted.
    #[must_use]
    pub const fn on_lost(id: WorkloadId) -> OnLostMemory {
        if id.bits().is_multiple_of(2) {
            OnLostMemory::ColdBoot
        } else {
            OnLostMemory::StayStopped
        }
    }

    /// The host loses power and comes back.
    pub fn reboot(&mut self) {
        self.note(format_args!("the host reboots"));
        self.tally.reboots += 1;
        self.kernel.reboot();
        let random = &mut self.random;
        self.host.reboot(|| random.chance(500));
        for truth in self.truths.values_mut() {
            truth.rebooted = true;
        }
    }
}
