//! What a careful person would write down while watching: who is known, what is seen, what is under way.
//! Much simpler than the engine, and made differently: a listing builds a second set that is swapped in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dormouse_model::workload::SleepSupport;
use dormouse_model::{Attempt, Flow, FlowKey, MonoTime, SleepEnd, State, WakeEnd, WorkloadId, WorkloadView};
use dormouse_standby::{Reason, Status};

/// A sleep that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sleep {
    pub(crate) attempt: Attempt,
    pub(crate) cancelled: bool,
    /// Its state has said `Standby` meanwhile.
    seen_asleep: bool,
}

impl Sleep {
    pub(crate) const fn new(attempt: Attempt) -> Self {
        Self {
            attempt,
            cancelled: false,
            seen_asleep: false,
        }
    }
}

/// A wake that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wake {
    pub(crate) attempt: Attempt,
    /// Its state has said so meanwhile.
    seen_awake: bool,
}

impl Wake {
    pub(crate) const fn new(attempt: Attempt) -> Self {
        Self {
            attempt,
            seen_awake: false,
        }
    }
}

/// One workload as watched.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) view: WorkloadView,
    /// Flows known, and those that the running listing has brought.
    known: BTreeSet<FlowKey>,
    listed: BTreeSet<FlowKey>,
    /// Whether a complete listing began after its addresses or filters became what they are.
    pub(crate) covered: bool,
    /// Whether the running listing began after that.
    covered_by_running: bool,
    /// No sleep may be asked for before this: the last traffic, or its coming, plus its timeout.
    pub(crate) quiet_since: MonoTime,
    pub(crate) hold_until: Option<MonoTime>,
    /// The last confirm asked for, until it is answered, and whether the engine still waits for it.
    pub(crate) confirm: Option<Attempt>,
    pub(crate) confirming: bool,
    pub(crate) sleep: Option<Sleep>,
    pub(crate) wake: Option<Wake>,
    /// A packet came while it was on its way to sleep and nothing has made it moot.
    pub(crate) packet_waits: bool,
    pub(crate) announced: Option<(Status, Reason)>,
    pub(crate) last_record: Attempt,
}

impl Watched {
    pub(crate) fn new(view: WorkloadView, now: MonoTime) -> Self {
        Self {
            view,
            known: BTreeSet::new(),
            listed: BTreeSet::new(),
            covered: false,
            covered_by_running: false,
            quiet_since: now,
            hold_until: None,
            confirm: None,
            confirming: false,
            sleep: None,
            wake: None,
            packet_waits: false,
            announced: None,
            last_record: Attempt::default(),
        }
    }

    /// How many flows hold it awake.
    pub(crate) fn flows(&self) -> usize {
        self.known.union(&self.listed).count()
    }

    fn timeout(&self) -> Duration {
        self.view
            .policy
            .enabled()
            .map_or(Duration::MAX, |policy| policy.idle_timeout())
    }

    /// Whether a sleep may be under way at `now`, as far as it alone is concerned.
    pub(crate) fn may_sleep(&self, now: MonoTime) -> Result<(), String> {
        let quiet = now.since(self.quiet_since);
        if self.flows() > 0 {
            Err(format!("{} flows are known", self.flows()))
        } else if self.view.policy.enabled().is_none() || self.view.addresses.is_none() {
            Err("it has no policy or no network".to_owned())
        } else if quiet < self.timeout() {
            Err(format!("quiet for {quiet:?} of {:?}", self.timeout()))
        } else if self.hold_until.is_some_and(|until| until > now) {
            Err("it is held awake".to_owned())
        } else {
            Ok(())
        }
    }

    fn knows(&self, key: &FlowKey) -> bool {
        self.known.contains(key) || self.listed.contains(key)
    }

    fn forget_flows(&mut self) {
        self.known.clear();
        self.listed.clear();
    }

    /// Its filters or addresses changed: what is known is not all.
    pub(crate) fn uncover(&mut self) {
        self.covered = false;
        self.covered_by_running = false;
    }

    pub(crate) fn sleeps(&self) -> bool {
        matches!(self.view.state, State::Standby | State::Dozing)
    }
}

/// Everything watched.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) workloads: BTreeMap<WorkloadId, Watched>,
    /// Since the last loss a listing was completed.
    pub(crate) clear: bool,
    pub(crate) listing: bool,
    pub(crate) stopping: bool,
}

impl Reference {
    /// Who answers `flow`, with a policy that is switched on, and whether it is held awake.
    fn responder(&self, flow: &Flow) -> Option<(WorkloadId, bool)> {
        self.workloads.values().find_map(|it| {
            let policy = it.view.policy.enabled()?;
            let both = it.view.addresses?.both();
            both.contains(&flow.responder)
                .then(|| (it.view.id, flow.holds_awake(flow.responder, policy)))
        })
    }

    /// Drops a key wherever it is.
    pub(crate) fn ended(&mut self, key: &FlowKey, now: MonoTime) {
        for watched in self.workloads.values_mut() {
            if watched.known.remove(key) | watched.listed.remove(key) {
                watched.quiet_since = now;
            }
        }
    }

    pub(crate) fn seen(&mut self, flow: &Flow, from_listing: bool, now: MonoTime) {
        let listing = self.listing;
        let Some((id, holds)) = self.responder(flow) else {
            return;
        };
        let before = self.workloads.get(&id).is_some_and(|it| it.knows(&flow.key));
        if !holds || !before {
            // Over, or moved from one responder to another.
            self.ended(&flow.key, now);
        }
        let Some(watched) = self.workloads.get_mut(&id).filter(|_| holds) else {
            return;
        };
        let none = watched.flows() == 0;
        if listing {
            watched.listed.insert(flow.key);
        }
        if !from_listing || !listing {
            watched.known.insert(flow.key);
        }
        watched.quiet_since = now;
        watched.packet_waits |= none && watched.sleep.is_some();
    }

    pub(crate) fn sync_began(&mut self) {
        self.listing = true;
        for watched in self.workloads.values_mut() {
            // A listing that is abandoned leaves what it brought, which is true all the same.
            watched.known.append(&mut watched.listed);
            watched.covered_by_running = true;
        }
    }

    pub(crate) fn sync_done(&mut self, now: MonoTime) {
        if !std::mem::take(&mut self.listing) {
            return;
        }
        self.clear = true;
        for watched in self.workloads.values_mut() {
            let before = watched.flows();
            watched.known = std::mem::take(&mut watched.listed);
            if before > 0 && watched.known.is_empty() {
                watched.quiet_since = now;
            }
            watched.covered |= watched.covered_by_running;
        }
    }

    pub(crate) fn sight_lost(&mut self) {
        self.clear = false;
        self.listing = false;
        for watched in self.workloads.values_mut() {
            watched.known.append(&mut watched.listed);
            watched.covered_by_running = false;
        }
    }

    /// A view arrives.
    pub(crate) fn changed(&mut self, view: WorkloadView, now: MonoTime) {
        let Some(watched) = self.workloads.get_mut(&view.id) else {
            self.workloads.insert(view.id, Watched::new(view, now));
            return;
        };
        let before = std::mem::replace(&mut watched.view, view);
        let after = watched.view.clone();
        watched.view.state = before.state;
        if before.addresses != after.addresses || after.policy.enabled().is_none() {
            watched.forget_flows();
        }
        let filters =
            |view: &WorkloadView| view.policy.enabled().map(|policy| policy.ignore_ports().to_vec());
        if before.addresses != after.addresses || filters(&before) != filters(&after) {
            watched.uncover();
        }
        if after.policy.enabled().is_none() {
            watched.hold_until = None;
        }
        let able = |view: &WorkloadView| {
            let able = view.sleep_support == SleepSupport::Able;
            able && view.policy.enabled().is_some() && view.addresses.is_some()
        };
        if !able(&before) && able(&after) {
            watched.quiet_since = now;
        }
        if before.state != after.state {
            self.moved(after.id, after.state, now);
        }
    }

    /// A sleep of ours ended.
    pub(crate) fn slept(&mut self, id: WorkloadId, attempt: Attempt, end: &SleepEnd, now: MonoTime) {
        let Some(watched) = self.workloads.get_mut(&id) else {
            return;
        };
        let Some(sleep) = watched.sleep.take_if(|sleep| sleep.attempt == attempt) else {
            return;
        };
        let state = watched.view.state;
        let ran = matches!(state, State::Running | State::Sleeping);
        let state = match end {
            SleepEnd::Committed if ran && !sleep.seen_asleep => State::Standby,
            SleepEnd::Committed => state,
            SleepEnd::Interrupted | SleepEnd::Failed { .. } if state == State::Sleeping => State::Running,
            SleepEnd::Interrupted | SleepEnd::Failed { .. } => state,
            SleepEnd::Refused { state } => *state,
            SleepEnd::Gone => {
                self.workloads.remove(&id);
                return;
            }
        };
        self.moved(id, state, now);
    }

    /// A wake of ours ended.
    pub(crate) fn woke(&mut self, id: WorkloadId, attempt: Attempt, end: &WakeEnd, now: MonoTime) {
        let Some(watched) = self.workloads.get_mut(&id) else {
            return;
        };
        let Some(wake) = watched.wake.take_if(|wake| wake.attempt == attempt) else {
            return;
        };
        let state = watched.view.state;
        let older = !wake.seen_awake && matches!(state, State::Standby | State::Dozing | State::Waking);
        let asleep = |state: State| matches!(state, State::Standby | State::Dozing);
        let state = match end {
            WakeEnd::Running => {
                watched.quiet_since = now;
                // What came after it ran and fell asleep again is still there.
                watched.packet_waits &= wake.seen_awake;
                if older { State::Running } else { state }
            }
            WakeEnd::Failed { .. } => {
                watched.packet_waits = false;
                if older { State::Failed } else { state }
            }
            WakeEnd::Refused { state } if !asleep(*state) => *state,
            // Tried again by itself, or given up until the next knock.
            WakeEnd::StillAsleep { .. } | WakeEnd::Refused { .. } => {
                watched.packet_waits = false;
                watched.view.state = if state == State::Waking {
                    State::Standby
                } else {
                    state
                };
                return;
            }
            WakeEnd::Gone => {
                self.workloads.remove(&id);
                return;
            }
        };
        self.moved(id, state, now);
    }

    /// A workload is in another state.
    pub(crate) fn moved(&mut self, id: WorkloadId, state: State, now: MonoTime) {
        let Some(watched) = self.workloads.get_mut(&id) else {
            return;
        };
        let ran = matches!(watched.view.state, State::Running | State::Sleeping);
        watched.view.state = state;
        if let Some(sleep) = &mut watched.sleep {
            sleep.seen_asleep |= state == State::Standby;
        }
        if let Some(wake) = &mut watched.wake {
            wake.seen_awake |= matches!(state, State::Running | State::Initializing);
        }
        match state {
            State::Running | State::Sleeping => {
                if !ran {
                    watched.quiet_since = now;
                }
            }
            State::Standby | State::Dozing | State::Waking => {}
            State::Stopped
            | State::Starting
            | State::Initializing
            | State::Stopping
            | State::Failed
            | State::Deleting => watched.hold_until = None,
        }
        // Delivered, or without anybody to deliver to; unless a sleep of the engine's runs, whose end
        // decides.
        if watched.sleep.is_none()
            && !matches!(
                state,
                State::Sleeping | State::Standby | State::Dozing | State::Waking
            )
        {
            watched.packet_waits = false;
        }
    }
}
