//! What must hold after every event, and when everything has come to rest.

use dormouse_model::policy::PolicySetting;
use dormouse_model::{State, WorkloadId};
use dormouse_standby::{Reason, Status};

use crate::breach::Invariant;
use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::host::Mode;
use crate::kernel::Gate;

/// After every event.
pub fn after_event(ground: &mut Ground, daemon: &Daemon) {
    let ids: Vec<WorkloadId> = daemon.instances.keys().copied().collect();
    for id in ids {
        ground.one_process(id);
        process_of_running(ground, daemon, id);
        status(ground, daemon, id);
    }
    addresses(ground);
}

/// Published as running, and nothing on its way that says otherwise: its process runs.
fn process_of_running(ground: &mut Ground, daemon: &Daemon, id: WorkloadId) {
    let Some(instance) = daemon.instances.get(&id) else {
        return;
    };
    let running = matches!(instance.machine.state(), State::Running | State::Initializing);
    // A fault that ended it is told a little later.
    let excused = ground.truths.get(&id).is_none_or(|truth| truth.crashed);
    // An adopted one may be paused until its plan has run.
    if !running || excused || instance.is_busy() {
        return;
    }
    let known = instance.machine.process();
    let runs = known.is_some_and(|process| {
        ground
            .host
            .find(process)
            .is_some_and(|found| found.owner == Some(id) && found.mode == Mode::Running)
    });
    if !runs {
        ground.broken(
            Invariant::NeverNoProcess,
            format!("{id} is running as {known:?}, which does not run"),
        );
    }
}

/// A status is there, its reason fits it, and what it counts is what the kernel has.
fn status(ground: &mut Ground, daemon: &Daemon, id: WorkloadId) {
    let Some(snapshot) = daemon.engine.status(id, ground.now, ground.wall()) else {
        return ground.broken(Invariant::StatusExplains, format!("{id} has no status"));
    };
    if !fits(snapshot.status, snapshot.reason) {
        let what = format!("{id} is {} because of {:?}", snapshot.status, snapshot.reason);
        ground.broken(Invariant::StatusExplains, what);
    }
    let Some(truth) = ground.truths.get(&id) else {
        return;
    };
    // What was there before the engine met the workload it learns from the next listing.
    let listed = daemon
        .instances
        .get(&id)
        .is_some_and(|known| daemon.listed_since > Some(known.met));
    let counts = listed && snapshot.eligible && !matches!(snapshot.status, Status::Blind | Status::Error);
    if counts && daemon.is_up_to_date(ground) {
        let live = ground.kernel.live_inbound(&truth.addresses).len();
        if live as u64 != snapshot.active_inbound_count as u64 {
            let what = format!(
                "{id}: the kernel has {live} live inbound flows, the engine knows {}, and nothing is unread",
                snapshot.active_inbound_count
            );
            ground.broken(Invariant::SightIsTrue, what);
        }
    }
}

const fn fits(status: Status, reason: Reason) -> bool {
    match status {
        Status::Active => matches!(reason, Reason::ActiveInbound),
        Status::Asleep => matches!(reason, Reason::Asleep | Reason::Dozing | Reason::WakeGaveUp),
        Status::Waking => {
            matches!(
                reason,
                Reason::Waking | Reason::WaitingToWake | Reason::WakeRetrying
            )
        }
        Status::Blind => matches!(reason, Reason::Blind),
        Status::Error => matches!(reason, Reason::ObserverError),
        Status::Disabled => matches!(reason, Reason::PolicyMissing | Reason::PolicyDisabled),
        Status::Unsupported
        | Status::Ineligible
        | Status::IdleCountdown
        | Status::ReadyForStandby
        | Status::StandbyRequested => !matches!(
            reason,
            Reason::ActiveInbound | Reason::Asleep | Reason::Blind | Reason::ObserverError
        ),
    }
}

fn addresses(ground: &mut Ground) {
    let mut seen = std::collections::BTreeMap::new();
    let mut shared = None;
    for (id, link) in &ground.kernel.links {
        if let Some(other) = seen.insert(link.addresses.ipv4, *id) {
            shared = Some((other, *id, link.addresses.ipv4));
        }
    }
    if let Some((one, other, address)) = shared {
        ground.broken(
            Invariant::AddressesUnique,
            format!("{one} and {other} both have {address}"),
        );
    }
}

/// When nothing has happened for long.
pub fn at_rest(ground: &mut Ground, daemon: &Daemon) {
    for (id, instance) in &daemon.instances {
        let state = instance.machine.state();
        if instance.is_busy() && state != State::Failed {
            ground.broken(Invariant::Settles, format!("{id} is still busy as {state}"));
        }
        rests(ground, *id, state, instance.machine.lost().is_some());
        heard(ground, *id, state);
        sleeps(ground, daemon, *id, state);
    }
    leftovers(ground, daemon);
}

/// What exists of a workload is what its state says.
fn rests(ground: &mut Ground, id: WorkloadId, state: State, cold: bool) {
    let processes = ground.host.of(id).len();
    let gate = ground.kernel.links.get(&id).map(|link| link.gate);
    let memory = ground.host.memory.contains_key(&id);
    let right = match state {
        State::Running | State::Initializing => processes == 1 && gate == Some(Gate::Open) && memory,
        State::Standby => processes == 0 && gate == Some(Gate::Shut) && memory != cold,
        State::Stopped => processes == 0 && gate.is_none() && !memory,
        State::Failed => processes == 0,
        State::Starting
        | State::Dozing
        | State::Sleeping
        | State::Waking
        | State::Stopping
        | State::Deleting => false,
    };
    if !right {
        let what =
            format!("{id} rests as {state} with {processes} processes, link {gate:?}, memory {memory}");
        ground.broken(Invariant::Settles, what);
    }
}

fn heard(ground: &mut Ground, id: WorkloadId, state: State) {
    let parked = ground.kernel.links.get(&id).map_or(0, |link| link.parked.len());
    if parked > 0 {
        ground.broken(
            Invariant::KnocksAreHeard,
            format!("{parked} packets still wait for {id}, which is {state}"),
        );
    }
}

fn sleeps(ground: &mut Ground, daemon: &Daemon, id: WorkloadId, state: State) {
    let enabled = ground
        .truths
        .get(&id)
        .is_some_and(|truth| matches!(truth.policy, PolicySetting::Enabled(_)));
    if enabled && state == State::Running {
        let status = daemon.engine.status(id, ground.now, ground.wall());
        let what = format!(
            "{id} is idle and awake: {:?}",
            status.map(|status| (status.status, status.reason))
        );
        ground.broken(Invariant::IdleSleeps, what);
    }
}

/// Nothing is left of what was removed.
fn leftovers(ground: &mut Ground, daemon: &Daemon) {
    let gone: Vec<WorkloadId> = ground
        .truths
        .keys()
        .filter(|id| !daemon.instances.contains_key(id))
        .copied()
        .collect();
    for id in gone {
        let left = [
            ("processes", !ground.host.of(id).is_empty()),
            ("a link", ground.kernel.links.contains_key(&id)),
            ("memory", ground.host.memory.contains_key(&id)),
            ("files", ground.host.files.contains(&id)),
            ("a record", ground.store.records.contains_key(&id)),
        ];
        for (what, there) in left {
            if there {
                ground.broken(Invariant::Settles, format!("{what} of {id} is left"));
            }
        }
        let lost = ground
            .truths
            .get(&id)
            .is_some_and(|truth| truth.acknowledged && !truth.removal_wanted);
        if lost {
            ground.broken(
                Invariant::NothingLost,
                format!("{id} was acknowledged and is gone"),
            );
        }
    }
}
