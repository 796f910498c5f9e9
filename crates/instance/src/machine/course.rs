//! How plans run: steps out, outcomes in, failures, retries.

use dormouse_model::plant::{Plant, planted};
use dormouse_model::{Attempt, FailReason, MonoTime, SleepEnd, State, WakeEnd};

use super::plan::{Kind, OnFailure, Plan};
use super::{
    CancelReason, Course, Done, Effect, Machine, Outcome, Phase, Readiness, Removal, Rest, Step, StepFailure,
    Turn, Wait, Wanted,
};

impl Machine {
    pub(super) fn is_outstanding(&self, number: Attempt) -> bool {
        match self.outstanding() {
            Some(current) => current == number || planted(Plant::StaleAttemptAccepted),
            None => false,
        }
    }

    pub(super) fn begin(&mut self, now: MonoTime, plan: Plan, out: &mut Vec<Effect>) {
        self.begin_at(now, plan, 0, out);
    }

    /// Begins `plan` at its step `at`. What a background plan still waits for is dropped.
    pub(super) fn begin_at(&mut self, now: MonoTime, plan: Plan, at: usize, out: &mut Vec<Effect>) {
        self.leave_background(out);
        self.before_chores(plan);
        match plan {
            Plan::Start | Plan::ColdBoot => {
                self.readiness = Readiness::Booting;
                self.process = None;
                self.shut_until_ready = plan == Plan::ColdBoot;
                // What is in doubt of a sleeper's record stays so until a write of the boot has succeeded.
                self.write_unknown &= plan == Plan::ColdBoot;
                self.wake_after = None;
            }
            Plan::Sleep => {
                self.wake_after = None;
                self.exit = None;
            }
            // A mark of an earlier wake may not have been taken back.
            Plan::Wake => self.wake_after = None,
            Plan::Stop => self.before_stop(out),
            Plan::Delete => self.before_delete(out),
            // None of them goes back to the sleep's own steps, and each may still end asleep.
            Plan::Doubt | Plan::Recommit | Plan::Unsleep => self.keep_interrupt(),
            Plan::LetGo
            | Plan::Spill
            | Plan::Settle
            | Plan::Amend
            | Plan::Forget
            | Plan::Release
            | Plan::Unwake
            | Plan::Revive
            | Plan::Readopt
            | Plan::Leftover
            | Plan::Greet
            | Plan::NoteReady
            | Plan::Bury => {}
        }
        self.course = Some(Course {
            plan,
            at,
            wait: Wait::Retry { at: now },
            failures: 0,
        });
        self.run(now, out);
    }

    fn before_stop(&mut self, out: &mut Vec<Effect>) {
        self.turn = None;
        self.ready_by = None;
        self.wake_after = None;
        let state = self.stop_from;
        self.settle(Wanted::Sleep, &Outcome::Sleep(SleepEnd::Refused { state }), out);
        self.settle(Wanted::Wake, &Outcome::Wake(WakeEnd::Refused { state }), out);
        self.settle(
            Wanted::Start,
            &Outcome::Superseded {
                state: State::Stopped,
            },
            out,
        );
    }

    fn before_delete(&mut self, out: &mut Vec<Effect>) {
        self.turn = None;
        self.ready_by = None;
        self.wake_after = None;
        self.rest = Rest::Deleting;
        let state = State::Deleting;
        self.settle(Wanted::Sleep, &Outcome::Sleep(SleepEnd::Refused { state }), out);
        self.settle(Wanted::Wake, &Outcome::Wake(WakeEnd::Refused { state }), out);
        self.settle(
            Wanted::Start,
            &Outcome::Superseded {
                state: State::Deleting,
            },
            out,
        );
        self.settle(
            Wanted::Stop,
            &Outcome::Superseded {
                state: State::Deleting,
            },
            out,
        );
    }

    /// Runs the current step, passing over those that are not needed.
    fn run(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        while let Some(course) = self.course {
            let Some(&kind) = course.plan.steps().get(course.at) else {
                self.finish(now, course.plan, out);
                return;
            };
            if self.is_needed(course.plan, kind) {
                self.emit(now, kind, out);
                return;
            }
            self.course = Some(Course {
                at: course.at + 1,
                failures: 0,
                ..course
            });
        }
    }

    fn is_needed(&self, plan: Plan, kind: Kind) -> bool {
        match (plan, kind) {
            (Plan::Start, Kind::EndProcess | Kind::DropMemory) => self.dirty,
            // A caller's sleep does not ask whether there was traffic.
            (Plan::Sleep, Kind::Prove) => self.trigger.yields_to_traffic(),
            // An image that is gone already need not go again for a sleep that saved none.
            (Plan::Unsleep, Kind::WriteRunning | Kind::Discard) => {
                self.write_unknown && self.discarded != Some(self.record.generation)
            }
            (Plan::Unwake, Kind::UnmarkConsumed) => self.write_unknown,
            (Plan::Wake, Kind::Verify) => self.image.is_some_and(|image| image.boot != self.settings.boot),
            (_, Kind::WriteImage) => self
                .image
                .is_some_and(|image| self.record.phase != Phase::Standby { image }),
            (_, Kind::WriteCold) => self.write_unknown || !matches!(self.record.phase, Phase::Cold { .. }),
            (Plan::Stop, Kind::Shutdown) => self.process.is_some(),
            (Plan::Stop, Kind::WriteStopped) => self.record.phase != Phase::Stopped,
            (Plan::Delete, Kind::Shutdown) => self.process.is_some() && self.removal == Removal::Graceful,
            (_, _) => true,
        }
    }

    fn emit(&mut self, now: MonoTime, kind: Kind, out: &mut Vec<Effect>) {
        if self.has_only_its_image() {
            return self.begin(now, Plan::Recommit, out);
        }
        let Some(step) = self.step_of(kind) else {
            // Only a plan that began without its process or image: the records contradict themselves.
            let what = "a step has no process or image to work on".to_owned();
            self.course = None;
            self.bury(now, FailReason::Inconsistent { what }, out);
            return;
        };
        if kind == Kind::Resume && self.course.is_some_and(|course| course.plan == Plan::Unsleep) {
            // From here on the guest may have run: what was saved is of before.
            self.image = None;
        }
        self.number = self.number.next();
        let deadline = now.plus(self.settings.limits.of(kind, self.grace));
        let number = self.number;
        if let Some(course) = &mut self.course {
            course.wait = Wait::Outcome { number, deadline };
        }
        out.push(Effect::Run {
            number,
            step,
            deadline,
        });
    }

    /// The step of this kind with its parameters; `None` when what it needs does not exist.
    fn step_of(&mut self, kind: Kind) -> Option<Step> {
        Some(match kind {
            Kind::WriteStarting => self.write(Phase::Starting),
            Kind::WriteRunning | Kind::MarkConsumed => {
                let (process, readiness) = (self.process?, self.readiness);
                self.write(Phase::Running { process, readiness })
            }
            Kind::UnmarkConsumed if self.lost.is_some() => {
                let lost = self.lost.clone()?;
                self.write(Phase::Cold { lost })
            }
            Kind::Commit | Kind::UnmarkConsumed | Kind::WriteImage => {
                let image = self.image?;
                self.write(Phase::Standby { image })
            }
            Kind::WriteCold => {
                let lost = self.lost.clone()?;
                self.write(Phase::Cold { lost })
            }
            Kind::WriteSpilled => {
                let image = self.spilled?;
                self.write(Phase::Standby { image })
            }
            Kind::ReadBack => Step::ReadBack,
            Kind::WriteStopping => self.write(Phase::Stopping),
            Kind::WriteStopped => self.write(Phase::Stopped),
            Kind::WriteDeleting => self.write(Phase::Deleting),
            Kind::WriteFailed => match &self.rest {
                Rest::Failed(reason) => self.write(Phase::Failed {
                    reason: reason.clone(),
                }),
                Rest::Stopped | Rest::Awake | Rest::Asleep | Rest::Deleting | Rest::Gone => return None,
            },
            Kind::PrepareDisks => Step::PrepareDisks,
            Kind::AttachLink => Step::AttachLink,
            Kind::MakeTap => Step::MakeTap,
            Kind::Launch => Step::Launch,
            Kind::Open => Step::Open,
            Kind::Shut => Step::Shut,
            Kind::Drain => Step::Drain,
            Kind::Prove => Step::Prove,
            Kind::Pause => Step::Pause,
            Kind::Save => {
                self.record.generation = self.record.generation.next();
                Step::Save {
                    generation: self.record.generation,
                }
            }
            Kind::Discard => Step::Discard {
                generation: self.record.generation,
            },
            Kind::LetGo => Step::LetGo,
            Kind::Spill => Step::Spill { image: self.image? },
            Kind::DropResident => Step::DropResident,
            Kind::Settle => Step::Settle { image: self.image? },
            Kind::Verify => Step::Verify { image: self.image? },
            Kind::Restore => Step::Restore { image: self.image? },
            Kind::Resume => Step::Resume,
            Kind::Greet => Step::Greet,
            Kind::Shutdown => Step::Shutdown { grace: self.grace },
            Kind::EndProcess => Step::EndProcess,
            Kind::ReleaseLink => Step::ReleaseLink,
            Kind::DropMemory => Step::DropMemory,
            Kind::RemoveFiles => Step::RemoveFiles,
            Kind::RemoveRecord => Step::RemoveRecord,
            Kind::FreeAddresses => Step::FreeAddresses,
        })
    }

    fn write(&mut self, phase: Phase) -> Step {
        self.phase_before = Some(std::mem::replace(&mut self.record.phase, phase));
        Step::Write(self.record.clone())
    }

    pub(super) fn current(&self) -> Option<(Course, Kind)> {
        let course = self.course?;
        let kind = *course.plan.steps().get(course.at)?;
        Some((course, kind))
    }

    pub(super) fn step_done(&mut self, now: MonoTime, done: Done, out: &mut Vec<Effect>) {
        let Some((course, kind)) = self.current() else {
            return;
        };
        if let Err(failure) = self.absorb(kind, done) {
            self.step_failed(now, &failure, out);
            return;
        }
        // Only while a write is outstanding is it in doubt which of the two is recorded.
        self.phase_before = None;
        self.course = Some(Course {
            at: course.at + 1,
            failures: 0,
            ..course
        });
        if !self.take_turn(now, out) {
            self.run(now, out);
        }
    }

    /// Keeps what a step brought.
    fn absorb(&mut self, kind: Kind, done: Done) -> Result<(), StepFailure> {
        match (kind, done) {
            (Kind::Launch | Kind::Restore, Done::Process(process)) => self.process = Some(process),
            (Kind::Save, Done::Image(image)) if image.generation == self.record.generation => {
                self.image = Some(image);
            }
            (Kind::Spill, Done::Image(image)) => self.spilled = Some(image),
            (Kind::Settle | Kind::Verify, Done::Image(image))
                if self
                    .image
                    .is_some_and(|known| known.generation == image.generation) =>
            {
                self.image = Some(image);
            }
            (Kind::ReadBack, Done::Recorded(record)) => self.read_back(&record),
            (Kind::Discard, Done::Plain) => self.discarded(),
            (Kind::WriteSpilled, Done::Plain) => {
                self.image = self.spilled.take();
                self.write_unknown = false;
            }
            // Unless meanwhile a caller joined who wants it whatever arrives.
            (Kind::Prove, Done::Traffic) if self.trigger.yields_to_traffic() => {
                self.raise(Turn::Interrupt(CancelReason::Traffic));
            }
            (Kind::Commit, Done::Plain) => self.committed(),
            (Kind::MarkConsumed, Done::Plain) => {
                // Until the guest runs the mark can be taken back.
                self.write_unknown = self.turn.is_some();
            }
            // Writes keep their order: after one that is durable nobody asks for those before it.
            (
                Kind::UnmarkConsumed
                | Kind::WriteRunning
                | Kind::WriteImage
                | Kind::WriteCold
                | Kind::WriteStopping
                | Kind::WriteStopped
                | Kind::WriteFailed,
                Done::Plain,
            ) => self.write_unknown = false,
            (Kind::LetGo | Kind::EndProcess, Done::Plain) => (self.process, self.owed) = (None, false),
            (
                Kind::Launch
                | Kind::Restore
                | Kind::Save
                | Kind::Spill
                | Kind::Settle
                | Kind::Verify
                | Kind::ReadBack,
                Done::Plain | Done::Process(_) | Done::Image(_) | Done::Traffic | Done::Recorded(_),
            ) => {
                return Err(StepFailure::Lasting {
                    why: "the step answered something else".to_owned(),
                });
            }
            (_, _) => {}
        }
        Ok(())
    }

    pub(super) fn step_failed(&mut self, now: MonoTime, failure: &StepFailure, out: &mut Vec<Effect>) {
        let Some((course, kind)) = self.current() else {
            return;
        };
        let unknown = !matches!(failure, StepFailure::Unwritten { .. });
        // A note of readiness that may be missing is made again.
        let again = !unknown || course.plan == Plan::NoteReady;
        if again && let Some(before) = self.phase_before.take() {
            self.record.phase = before;
        }
        self.write_unknown |= unknown
            && matches!(
                kind,
                Kind::WriteSpilled | Kind::WriteImage | Kind::WriteCold | Kind::UnmarkConsumed
            );
        // Nobody asks for the proof any more once a caller joined who wants this sleep whatever arrives.
        let rule = if kind == Kind::Prove && !self.trigger.yields_to_traffic() {
            OnFailure::Skip
        } else {
            course.plan.on_failure(kind)
        };
        match rule {
            OnFailure::Undo => self.undo(now, course.plan, kind, failure, out),
            OnFailure::Skip => {
                self.course = Some(Course {
                    at: course.at + 1,
                    failures: 0,
                    ..course
                });
                if !self.take_turn(now, out) {
                    self.run(now, out);
                }
            }
            OnFailure::Abandon => {
                self.course = None;
                if let StepFailure::Untrusted { lost, .. } = failure {
                    self.lose_image(now, (**lost).clone(), out);
                } else {
                    self.put_off(now);
                }
            }
            OnFailure::RetryThenFail
            | OnFailure::RetryThenOwe
            | OnFailure::RetryThenSkip
            | OnFailure::RetryThenRest
            | OnFailure::Persist => {
                let failures = course.failures.saturating_add(1);
                let spent = failures >= course.plan.tries(kind, &self.settings.limits);
                if spent && rule != OnFailure::Persist {
                    return self.give_up(now, course, rule, failure, out);
                }
                self.retry(now, Course { failures, ..course }, out);
                if spent {
                    self.tell_who_waits(failure, out);
                }
            }
        }
    }

    /// Waits for the next try, or turns.
    fn retry(&mut self, now: MonoTime, course: Course, out: &mut Vec<Effect>) {
        let limits = &self.settings.limits;
        let pause = limits.retry_pause.saturating_mul(1 << course.failures.min(16));
        let wait = Wait::Retry {
            at: now.plus(pause.min(limits.retry_pause_max)),
        };
        self.course = Some(Course { wait, ..course });
        self.take_turn(now, out);
    }

    fn give_up(
        &mut self,
        now: MonoTime,
        course: Course,
        rule: OnFailure,
        failure: &StepFailure,
        out: &mut Vec<Effect>,
    ) {
        let why = failure.why().to_owned();
        match rule {
            OnFailure::RetryThenRest => {
                self.course = None;
                self.settle(Wanted::Delete, &Outcome::Failed { why }, out);
                self.put_off(now);
            }
            OnFailure::RetryThenOwe => self.owe(now, course.plan, why, out),
            OnFailure::RetryThenFail if self.stops_at_rest() => self.unstop(now, why, out),
            OnFailure::RetryThenFail => {
                let reason = if matches!(course.plan, Plan::Unwake | Plan::Revive) {
                    FailReason::WakeFailed { why }
                } else {
                    FailReason::Inconsistent { what: why }
                };
                if matches!(self.turn, Some(Turn::Delete | Turn::Stop)) {
                    self.raise(Turn::Stop);
                    self.take_turn_anyway(now, out);
                } else {
                    self.bury(now, reason, out);
                }
            }
            OnFailure::RetryThenSkip
            | OnFailure::Undo
            | OnFailure::Skip
            | OnFailure::Abandon
            | OnFailure::Persist => {
                self.course = Some(Course {
                    at: course.at + 1,
                    failures: 0,
                    ..course
                });
                if !self.take_turn(now, out) {
                    self.run(now, out);
                }
            }
        }
    }

    fn undo(&mut self, now: MonoTime, plan: Plan, kind: Kind, failure: &StepFailure, out: &mut Vec<Effect>) {
        let why = failure.why().to_owned();
        let unknown = !matches!(failure, StepFailure::Unwritten { .. });
        if self.turn == Some(Turn::Delete) {
            self.take_turn(now, out);
            return;
        }
        match plan {
            Plan::Sleep => {
                self.undone = if matches!(self.turn, Some(Turn::Interrupt(_))) {
                    SleepEnd::Interrupted
                } else {
                    SleepEnd::Failed { why }
                };
                if unknown && kind == Kind::Commit {
                    self.begin_doubt(now, out);
                } else {
                    self.begin_unsleep(now, out);
                }
            }
            Plan::Wake => {
                self.write_unknown |= unknown && kind == Kind::MarkConsumed;
                self.unwoken = self.unwoken_by(kind, failure);
                self.begin(now, Plan::Unwake, out);
            }
            Plan::ColdBoot if self.turn == Some(Turn::Stop) => self.begin_stop(now, out),
            Plan::ColdBoot => {
                self.write_unknown |= unknown && kind == Kind::WriteRunning;
                self.unwoken = match failure {
                    StepFailure::Passing { .. } | StepFailure::Unwritten { .. } => {
                        WakeEnd::StillAsleep { why }
                    }
                    StepFailure::Lasting { .. } | StepFailure::Untrusted { .. } => WakeEnd::Failed { why },
                };
                self.begin(now, Plan::Unwake, out);
            }
            // Nothing was made yet: it is `Stopped` as before.
            Plan::Start if kind == Kind::WriteStarting => {
                self.settle(Wanted::Start, &Outcome::Failed { why }, out);
                self.begin_stop(now, out);
            }
            Plan::Start if self.turn == Some(Turn::Stop) => self.begin_stop(now, out),
            Plan::Start => self.bury(now, FailReason::StartFailed { why }, out),
            // No other plan's failures are undone.
            Plan::Doubt
            | Plan::Recommit
            | Plan::Unsleep
            | Plan::LetGo
            | Plan::Spill
            | Plan::Settle
            | Plan::Amend
            | Plan::Forget
            | Plan::Release
            | Plan::Unwake
            | Plan::Revive
            | Plan::Readopt
            | Plan::Leftover
            | Plan::Greet
            | Plan::NoteReady
            | Plan::Stop
            | Plan::Bury
            | Plan::Delete => {}
        }
    }

    pub(super) fn deadline(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        match self.course.map(|course| course.wait) {
            Some(Wait::Outcome { deadline, .. }) if deadline <= now => {
                let why = "no answer before the deadline".to_owned();
                self.step_failed(now, &StepFailure::Passing { why }, out);
            }
            Some(Wait::Retry { at }) if at <= now => match self.current() {
                Some((_, kind)) => self.emit(now, kind, out),
                None => self.run(now, out),
            },
            Some(Wait::Outcome { .. } | Wait::Retry { .. }) => {}
            None => self.chore_due(now, out),
        }
        if self.ready_by.is_some_and(|by| by <= now) {
            self.ready_by = None;
            let why = "the guest was not ready in time".to_owned();
            self.turn_to(now, Turn::Fail(FailReason::StartFailed { why }), out);
        }
    }

    pub(super) fn cut_short(&self, out: &mut Vec<Effect>) {
        if let Some(number) = self.outstanding() {
            out.push(Effect::CutShort { number });
        }
    }

    /// Ends every ticket that waits for `wanted`.
    pub(super) fn settle(&mut self, wanted: Wanted, outcome: &Outcome, out: &mut Vec<Effect>) {
        self.waiters.retain(|(ticket, waits_for)| {
            if *waits_for == wanted {
                out.push(Effect::Ended {
                    ticket: *ticket,
                    outcome: outcome.clone(),
                });
            }
            *waits_for != wanted
        });
    }

    /// Publishes the state if it changed. A guest that powers itself off while it falls asleep or
    /// wakes is published as running in between, because the table of states has no other way.
    pub(super) fn publish(&mut self, out: &mut Vec<Effect>) {
        let (state, reason) = (self.state(), self.fail_reason().cloned());
        if self.published == (state, reason.clone()) || self.rest == Rest::Gone {
            return;
        }
        let before = self.published.0;
        if !before.may_become(state) && before.may_become(State::Running) && State::Running.may_become(state)
        {
            out.push(Effect::Publish {
                state: State::Running,
                reason: None,
            });
        }
        self.published = (state, reason.clone());
        out.push(Effect::Publish { state, reason });
    }

    pub(super) fn publish_anew(&mut self, out: &mut Vec<Effect>) {
        let (state, reason) = (self.state(), self.fail_reason().cloned());
        self.published = (state, reason.clone());
        out.push(Effect::Publish { state, reason });
    }
}
