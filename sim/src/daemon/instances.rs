//! Between engine and lifecycle: requests, effects, outcomes, and what is checked on their way.

use dormouse_instance::machine::{
    Answer, Asker, CancelReason, Effect as LifeEffect, Input as LifeInput, Machine, Outcome, Removal,
    Request, Step, Ticket,
};
use dormouse_model::workload::IdleRecord;
use dormouse_model::{Addresses, Attempt, FailReason, SleepEnd, SleepTrigger, State, WakeEnd, WorkloadId};
use dormouse_standby::{CancelWhy, Effect as EngineEffect, Input as EngineInput};

use super::{CAP, Daemon, Instance, LastRun, Work};
use crate::breach::Invariant;
use crate::event::DaemonEvent;
use crate::ground::Ground;

impl Daemon {
    pub(super) fn engine_input(&mut self, ground: &mut Ground, input: EngineInput) {
        let mut effects = Vec::new();
        let wall = ground.wall();
        self.engine.handle(ground.now, wall, input, &mut effects);
        for effect in effects {
            ground.note(format_args!("engine {effect:?}"));
            self.engine_effect(ground, effect);
        }
        self.note_idle(ground);
    }

    fn engine_effect(&mut self, ground: &mut Ground, effect: EngineEffect) {
        match effect {
            EngineEffect::RequestResync => {
                self.work
                    .push_back(Work::Sync(dormouse_conntrack::SyncInput::ResyncAsked));
            }
            EngineEffect::ConfirmIdle { id, attempt } => {
                self.one_attempt(ground, id, "confirm");
                self.confirm(ground, id, attempt);
            }
            EngineEffect::RequestSleep { id, attempt } => self.request_sleep(ground, id, attempt),
            EngineEffect::CancelSleep { id, attempt, why } => {
                let why = match why {
                    CancelWhy::InboundFlow | CancelWhy::Knock | CancelWhy::Reply => CancelReason::Traffic,
                    CancelWhy::Hold => CancelReason::Held,
                    CancelWhy::Blind => CancelReason::Blind,
                    CancelWhy::NotDue | CancelWhy::Overdue => CancelReason::Changed,
                };
                let ticket = Ticket {
                    asker: Asker::Engine,
                    attempt,
                };
                self.work
                    .push_back(Work::Ask(id, ticket, Request::CancelSleep { why }));
            }
            EngineEffect::RequestWake { id, attempt, cause } => {
                self.one_attempt(ground, id, "wake");
                self.waking.insert(id, attempt);
                if self.waking.len() > CAP {
                    ground.broken(
                        Invariant::CapsHold,
                        format!("{} wakes at a time", self.waking.len()),
                    );
                }
                let ticket = Ticket {
                    asker: Asker::Engine,
                    attempt,
                };
                self.work
                    .push_back(Work::Ask(id, ticket, Request::Wake { cause }));
            }
            EngineEffect::RecordIdle { id, attempt, record } => {
                self.notes.insert(id, (attempt, record));
                let wait = ground.random.millis(1, 8);
                ground.tell_after(wait, DaemonEvent::NoteWritten(id, attempt));
            }
            EngineEffect::Announce { .. } | EngineEffect::AnnounceSight { .. } => {}
        }
    }

    fn one_attempt(&mut self, ground: &mut Ground, id: WorkloadId, what: &str) {
        let other = self.sleeping.get(&id).or_else(|| self.waking.get(&id));
        if let Some(other) = other {
            let text = format!("a {what} of {id} is asked for while attempt {other} has not ended");
            ground.broken(Invariant::OneOutstanding, text);
        }
    }

    fn request_sleep(&mut self, ground: &mut Ground, id: WorkloadId, attempt: Attempt) {
        self.one_attempt(ground, id, "sleep");
        if !self.confirmed.remove(&attempt) {
            let text = format!("attempt {attempt} of {id} was not confirmed idle");
            ground.broken(Invariant::OneOutstanding, text);
        }
        if !self.told_clear {
            ground.broken(
                Invariant::BlindHolds,
                format!("a sleep of {id} is asked for by a blind engine"),
            );
        }
        let held = ground.truths.get(&id).and_then(|truth| truth.held_until);
        if held.is_some_and(|until| ground.now < until) {
            ground.broken(
                Invariant::HoldRespected,
                format!("a sleep of {id} is asked for while it is held"),
            );
        }
        self.sleeping.insert(id, attempt);
        if self.sleeping.len() > CAP {
            ground.broken(
                Invariant::CapsHold,
                format!("{} sleeps at a time", self.sleeping.len()),
            );
        }
        let ticket = Ticket {
            asker: Asker::Engine,
            attempt,
        };
        self.work.push_back(Work::Ask(
            id,
            ticket,
            Request::Sleep {
                trigger: SleepTrigger::Engine,
            },
        ));
    }

    /// The shell's own note of the link's counters: taken when the engine sees a workload fall idle.
    fn note_idle(&mut self, ground: &Ground) {
        for (id, instance) in &mut self.instances {
            let idle = self
                .engine
                .status(*id, ground.now, ground.wall())
                .is_some_and(|status| status.active_inbound_count == 0 && status.idle_since.is_some());
            if !idle {
                instance.idle_passed = None;
            } else if instance.idle_passed.is_none() {
                instance.idle_passed = ground.kernel.links.get(id).map(|link| link.passed);
            }
        }
    }

    pub(super) fn note_written(&mut self, ground: &mut Ground, id: WorkloadId, attempt: Attempt) {
        let Some((newest, record)) = self.notes.get(&id).copied() else {
            return;
        };
        if newest != attempt {
            return;
        }
        self.notes.remove(&id);
        if ground.fault(30) {
            self.work
                .push_back(Work::Engine(EngineInput::RecordFailed { id, attempt }));
        } else {
            ground.store.note(id, record);
        }
    }

    pub(super) fn life_input(&mut self, ground: &mut Ground, id: WorkloadId, input: LifeInput) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        match &input {
            LifeInput::StepDone { .. } | LifeInput::Knock | LifeInput::Deadline => {}
            LifeInput::StepFailed { .. } | LifeInput::ProcessExited { .. } | LifeInput::GuestReady { .. } => {
                ground.note(format_args!("{id} {input:?}"));
            }
        }
        let mut effects = Vec::new();
        let before = instance.machine.late_outcomes();
        instance.machine.handle(ground.now, input, &mut effects);
        ground.tally.late_outcomes += instance.machine.late_outcomes() - before;
        self.life_effects(ground, id, effects, None);
    }

    pub(super) fn ask(&mut self, ground: &mut Ground, id: WorkloadId, ticket: Ticket, request: Request) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return self.refused(id, ticket, request, None);
        };
        let mut effects = Vec::new();
        let engine_sleep = ticket.asker == Asker::Engine && matches!(request, Request::Sleep { .. });
        let state = instance.machine.state();
        let answer = instance
            .machine
            .request(ground.now, ticket, request, &mut effects);
        ground.note(format_args!(
            "{id} asked {request:?} by {ticket:?} in {state}: {answer:?}"
        ));
        if !matches!(answer, Answer::Refused(_))
            && request
                == (Request::Sleep {
                    trigger: SleepTrigger::Caller,
                })
        {
            instance.insisting.push(ticket);
        }
        match (answer, request) {
            (Answer::Accepted, Request::Sleep { .. }) => instance.engine_sleep = engine_sleep,
            // From here on a caller wants it.
            (Answer::AlreadySo, Request::Sleep { .. }) if !engine_sleep => instance.engine_sleep = false,
            (Answer::Accepted | Answer::AlreadySo, Request::Delete { .. }) => {
                if let Some(truth) = ground.truths.get_mut(&id) {
                    truth.removal_wanted = true;
                }
            }
            (Answer::Refused(_), _) => self.refused(id, ticket, request, Some(state)),
            (Answer::Accepted | Answer::AlreadySo, _) => {}
        }
        self.life_effects(ground, id, effects, None);
    }

    /// What a refusal is to the engine, which counts on one end for each attempt.
    fn refused(&mut self, id: WorkloadId, ticket: Ticket, request: Request, state: Option<State>) {
        if ticket.asker != Asker::Engine {
            return;
        }
        let attempt = ticket.attempt;
        match request {
            Request::Sleep { .. } => {
                let end = state.map_or(SleepEnd::Gone, |state| SleepEnd::Refused { state });
                self.end_sleep(id, attempt, end);
            }
            Request::Wake { .. } => {
                let end = state.map_or(WakeEnd::Gone, |state| WakeEnd::Refused { state });
                self.end_wake(id, attempt, end);
            }
            Request::CancelSleep { .. } | Request::Start | Request::Stop { .. } | Request::Delete { .. } => {}
        }
    }

    fn end_sleep(&mut self, id: WorkloadId, attempt: Attempt, end: SleepEnd) {
        if self.sleeping.get(&id) == Some(&attempt) {
            self.sleeping.remove(&id);
        }
        self.work
            .push_back(Work::Engine(EngineInput::SleepEnded { id, attempt, end }));
    }

    fn end_wake(&mut self, id: WorkloadId, attempt: Attempt, end: WakeEnd) {
        if self.waking.get(&id) == Some(&attempt) {
            self.waking.remove(&id);
        }
        self.work
            .push_back(Work::Engine(EngineInput::WakeEnded { id, attempt, end }));
    }

    pub(super) fn life_effects(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        effects: Vec<LifeEffect>,
        note: Option<IdleRecord>,
    ) {
        for effect in effects {
            match effect {
                LifeEffect::Run {
                    number,
                    step,
                    deadline,
                } => {
                    ground.note(format_args!("{id} run {number} {step}"));
                    self.check_run(ground, id, number, &step, deadline);
                    self.begin_deed(ground, id, number, step, deadline);
                }
                LifeEffect::CutShort { number } => self.cut_short(ground, id, number),
                LifeEffect::Publish { state, reason } => {
                    self.publish(ground, id, state, reason.as_ref());
                    if let Some(view) = self.view(ground, id) {
                        let input = EngineInput::WorkloadChanged { view, record: note };
                        self.work.push_back(Work::Engine(input));
                    }
                }
                LifeEffect::Ended { ticket, outcome } => self.ended(ground, id, ticket, outcome),
                LifeEffect::Gone => {
                    ground.tally.removed += 1;
                    self.instances.remove(&id);
                    self.work
                        .push_back(Work::Engine(EngineInput::WorkloadGone { id }));
                }
            }
        }
    }

    /// One step at a time: the last one ended, or its deadline came, or it ran in the background.
    fn check_run(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        number: Attempt,
        step: &Step,
        deadline: dormouse_model::MonoTime,
    ) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let background = matches!(
            step,
            Step::Spill { .. } | Step::Settle { .. } | Step::Greet | Step::DropResident | Step::Write(_)
        );
        let run = LastRun {
            number,
            deadline,
            over: false,
            background,
        };
        if let Some(last) = instance.last_run.replace(run)
            && !last.over
            && ground.now < last.deadline
        {
            let text = format!("{id} begins {step} while step {} has not ended", last.number);
            ground.broken(Invariant::OneOutstanding, text);
        }
        let commits = matches!(step, Step::Write(record)
            if matches!(record.phase, dormouse_instance::machine::Phase::Standby { .. }))
            && instance.machine.state() == State::Sleeping;
        if commits && instance.engine_sleep && !self.told_clear {
            ground.broken(
                Invariant::BlindHolds,
                format!("a blind engine's sleep of {id} commits"),
            );
        }
    }

    fn cut_short(&mut self, ground: &mut Ground, id: WorkloadId, number: Attempt) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        ground.note(format_args!("{id} cut short {number}"));
        if let Some(last) = &mut instance.last_run
            && last.number == number
            && last.background
        {
            last.over = true;
        }
        if instance.aside.as_ref().is_some_and(|deed| deed.number == number) {
            instance.aside = None;
        } else if instance
            .deeds
            .front()
            .is_some_and(|deed| matches!(deed.step, Step::Shutdown { .. }))
        {
            ground.tell_after(std::time::Duration::ZERO, DaemonEvent::DeedEnds(id, number));
        }
    }

    fn publish(&mut self, ground: &mut Ground, id: WorkloadId, state: State, reason: Option<&FailReason>) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        ground.note(format_args!(
            "{id} is {state}{}",
            reason.map(|r| format!(": {r}")).unwrap_or_default()
        ));
        if let Some(before) = instance.published
            // Another reason is told too.
            && before != state
            && !before.may_become(state)
        {
            ground.broken(
                Invariant::StatesFollowTable,
                format!("{id} goes from {before} to {state}"),
            );
        }
        instance.published = Some(state);
        if matches!(state, State::Running | State::Standby | State::Stopped)
            && let Some(truth) = ground.truths.get_mut(&id)
        {
            truth.injected = 0;
        }
        if !matches!(state, State::Running | State::Sleeping) {
            // The engine forgets a confirm of what cannot sleep.
            self.confirming.remove(&id);
        }
        if let Some(reason) = reason {
            ground.tally.failed += 1;
            explain(ground, id, reason);
        }
    }

    fn ended(&mut self, ground: &mut Ground, id: WorkloadId, ticket: Ticket, outcome: Outcome) {
        ground.note(format_args!("{id} ended {ticket:?} {outcome:?}"));
        let engine = ticket.asker == Asker::Engine;
        let insisted = self.instances.get_mut(&id).is_some_and(|instance| {
            let before = instance.insisting.len();
            instance.insisting.retain(|other| *other != ticket);
            before != instance.insisting.len()
        });
        match outcome {
            Outcome::Sleep(end) => {
                if insisted && end == SleepEnd::Interrupted {
                    let what = format!("{id}'s sleep was taken back, and a caller wanted it");
                    ground.broken(Invariant::CallersSleepRuns, what);
                }
                match end {
                    SleepEnd::Committed => ground.tally.sleeps += 1,
                    SleepEnd::Interrupted => ground.tally.interrupted += 1,
                    SleepEnd::Failed { .. } => ground.tally.sleeps_failed += 1,
                    SleepEnd::Gone | SleepEnd::Refused { .. } => {}
                }
                if engine {
                    self.end_sleep(id, ticket.attempt, end);
                }
            }
            Outcome::Wake(end) => {
                match end {
                    WakeEnd::Running => ground.tally.wakes += 1,
                    WakeEnd::StillAsleep { .. } => ground.tally.wakes_failed += 1,
                    WakeEnd::Failed { .. } | WakeEnd::Gone | WakeEnd::Refused { .. } => {}
                }
                if engine {
                    self.end_wake(id, ticket.attempt, end);
                }
            }
            Outcome::Done => {
                let creates = self
                    .instances
                    .get(&id)
                    .is_some_and(|known| known.creation == Some(ticket));
                if let Some(truth) = ground.truths.get_mut(&id).filter(|_| creates) {
                    truth.acknowledged = true;
                }
            }
            // A creation is all or nothing.
            Outcome::Failed { .. } => {
                if self
                    .instances
                    .get(&id)
                    .is_some_and(|known| known.creation == Some(ticket))
                {
                    self.call(
                        id,
                        Request::Delete {
                            removal: Removal::Forced,
                        },
                    );
                }
            }
            Outcome::Superseded { .. } => {}
        }
    }

    /// A caller asks something.
    pub fn call(&mut self, id: WorkloadId, request: Request) -> Ticket {
        self.tickets = self.tickets.next();
        let ticket = Ticket {
            asker: Asker::Caller,
            attempt: self.tickets,
        };
        self.work.push_back(Work::Ask(id, ticket, request));
        ticket
    }

    /// A caller asks that a workload stay awake.
    pub fn hold(&mut self, ground: &mut Ground, id: WorkloadId) {
        let (now, wall) = (ground.now, ground.wall());
        let before = self.engine.status(id, now, wall);
        self.engine_input(ground, EngineInput::Hold { id });
        let counts = before.is_some_and(|status| status.eligible)
            && self
                .instances
                .get(&id)
                .is_some_and(|known| known.machine.state() == State::Running);
        if let Some(truth) = ground.truths.get_mut(&id).filter(|_| counts) {
            truth.held_until = Some(now.plus(truth.idle_timeout));
            ground.tally.holds += 1;
        }
        self.settle(ground);
    }

    /// Takes addresses for a new workload.
    pub fn allocate(&mut self, ground: &mut Ground, id: WorkloadId) -> Option<Addresses> {
        let addresses = self.pool.allocate().ok()?;
        self.owned.insert(id, addresses);
        if let Some(other) = ground.kernel.route(addresses.ipv4.into()) {
            let what = format!(
                "{id} gets {} while the link of {other} still has it",
                addresses.ipv4
            );
            ground.broken(Invariant::AddressesUnique, what);
        }
        Some(addresses)
    }

    /// Begins a new workload.
    pub fn create(&mut self, ground: &mut Ground, id: WorkloadId) {
        ground.tally.created += 1;
        self.instances.insert(
            id,
            Instance::new(Machine::new(Self::settings(ground, id)), ground.now),
        );
        let ticket = self.call(id, Request::Start);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.creation = Some(ticket);
            instance.published = Some(State::Stopped);
        }
        self.settle(ground);
    }

    /// Works off what callers asked.
    pub fn serve(&mut self, ground: &mut Ground) {
        self.settle(ground);
    }

    pub(super) fn free_addresses(&mut self, id: WorkloadId) {
        if let Some(addresses) = self.owned.remove(&id) {
            // Taken since it was given or claimed: the pool refuses only what is not of it.
            drop(self.pool.release(addresses));
        }
    }
}

/// Nothing fails without a fault that explains it.
fn explain(ground: &mut Ground, id: WorkloadId, reason: &FailReason) {
    let Some(truth) = ground.truths.get(&id) else {
        return;
    };
    let explained = match reason {
        FailReason::ProcessEnded { .. } => truth.crashed,
        FailReason::HostRebooted => truth.rebooted,
        FailReason::StartFailed { .. } | FailReason::WakeFailed { .. } | FailReason::ImageLost(_) => {
            truth.injected > 0 || truth.crashed || truth.rebooted || truth.discarded
        }
        // A simulated process that is there answers.
        FailReason::NotAnswering { .. } => false,
        // All tries of a step were spent.
        FailReason::Inconsistent { .. } => truth.injected >= super::LIMITS.tries || truth.rebooted,
    };
    if !explained {
        ground.broken(
            Invariant::NothingLost,
            format!("{id} is failed ({reason}) and nothing explains it"),
        );
    }
}
