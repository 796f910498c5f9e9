//! The executor: what each step does to the world, when it ends, and how it may fail.

use std::time::Duration;

use dormouse_instance::machine::{Done, Exit, Input as LifeInput, MemoryImage, Phase, Step, StepFailure};
use dormouse_model::{Attempt, Generation, ImagePart, Lost, MonoTime, PartFault, WorkloadId};

use super::{BarrierFor, Daemon, Deed, Work};
use crate::breach::Invariant;
use crate::event::{DaemonEvent, Event};
use crate::ground::Ground;
use crate::host::Mode;
use crate::kernel::Gate;

impl Daemon {
    /// Takes a step in. Steps of one workload run one after the other; the background ones beside them.
    pub(super) fn begin_deed(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        number: Attempt,
        step: Step,
        deadline: MonoTime,
    ) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let deed = Deed {
            number,
            step,
            deadline,
        };
        if matches!(deed.step, Step::Spill { .. } | Step::Settle { .. } | Step::Greet) {
            let wait = ground.random.millis(5, 900);
            ground.tell_after(wait, DaemonEvent::AsideEnds(id, number));
            instance.aside = Some(deed);
            return;
        }
        // A proof that was given up is dropped: its barrier will not come back.
        if instance
            .deeds
            .front()
            .is_some_and(|head| matches!(head.step, Step::Prove))
        {
            instance.deeds.pop_front();
            instance.busy = false;
        }
        instance.deeds.push_back(deed);
        self.start_deed(ground, id);
    }

    fn start_deed(&mut self, ground: &mut Ground, id: WorkloadId) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if instance.busy {
            return;
        }
        let Some(deed) = instance.deeds.front().cloned() else {
            return;
        };
        instance.busy = true;
        let number = deed.number;
        if deed.step == Step::Prove {
            return self.prove(ground, id, number);
        }
        // An engine's sleep was measured by its confirm.
        if deed.step == Step::Shut && !instance.engine_sleep {
            instance.confirmed_passed = ground.kernel.links.get(&id).map_or(0, |link| link.passed);
        }
        let after_proof = matches!(deed.step, Step::Pause | Step::Save { .. });
        if after_proof && ground.fault(ground.profile.sight_fails) {
            self.socket_fails(ground);
        }
        let mut wait = duration_of(ground, &deed.step);
        if ground.fault(ground.profile.steps_late) {
            ground.tally.steps_late += 1;
            inject(ground, id);
            wait = deed.deadline.since(ground.now) + ground.random.millis(1, 2_000);
        }
        ground.tell_after(wait, DaemonEvent::DeedEnds(id, number));
    }

    fn prove(&mut self, ground: &mut Ground, id: WorkloadId, number: Attempt) {
        if let Some(truth) = ground.truths.get_mut(&id) {
            truth.live_at_proof = ground.kernel.live_inbound(&truth.addresses);
        }
        if !self.ask_barrier(ground, BarrierFor::Prove(id, number)) {
            let failure = StepFailure::Passing {
                why: "blind".to_owned(),
            };
            self.finish_deed(ground, id, number, Err(failure));
        }
    }

    /// The current deed is over.
    pub(super) fn deed_ends(&mut self, ground: &mut Ground, id: WorkloadId, number: Attempt) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let Some(deed) = instance
            .deeds
            .front()
            .filter(|deed| deed.number == number)
            .cloned()
        else {
            return;
        };
        let result = if ground.is_out(&deed.step) || ground.fault(ground.profile.steps_fail) {
            ground.tally.steps_failed += 1;
            inject(ground, id);
            self.fail(ground, id, &deed.step)
        } else {
            self.apply(ground, id, &deed.step)
        };
        self.finish_deed(ground, id, number, result);
    }

    fn finish_deed(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        number: Attempt,
        result: Result<Done, StepFailure>,
    ) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if instance.deeds.front().is_none_or(|deed| deed.number != number) {
            return;
        }
        instance.deeds.pop_front();
        instance.busy = false;
        if let Some(last) = &mut instance.last_run
            && last.number == number
        {
            last.over = true;
        }
        let input = match result {
            Ok(done) => LifeInput::StepDone { number, done },
            Err(failure) => LifeInput::StepFailed { number, failure },
        };
        self.work.push_back(Work::Life(id, input));
        self.start_deed(ground, id);
    }

    pub(super) fn aside_ends(&mut self, ground: &mut Ground, id: WorkloadId, number: Attempt) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let Some(deed) = instance.aside.take_if(|deed| deed.number == number) else {
            return;
        };
        if let Some(last) = &mut instance.last_run
            && last.number == number
        {
            last.over = true;
        }
        let failed = ground.fault(50);
        let result = if failed {
            Err(broken())
        } else {
            self.apply(ground, id, &deed.step)
        };
        let input = match result {
            Ok(done) => LifeInput::StepDone { number, done },
            Err(failure) => LifeInput::StepFailed { number, failure },
        };
        self.work.push_back(Work::Life(id, input));
    }

    /// The proof's barrier came back through the engine's own queue.
    pub(super) fn prove_returned(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        number: Attempt,
        clear: bool,
    ) {
        let passed = ground.kernel.links.get(&id).map(|link| link.passed);
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let result = match passed {
            Some(passed) if clear && passed == instance.confirmed_passed => Ok(Done::Plain),
            Some(_) if clear => Ok(Done::Traffic),
            Some(_) | None => Err(StepFailure::Passing {
                why: "blind".to_owned(),
            }),
        };
        ground.note(format_args!("{id} proof {number}: {result:?}"));
        self.finish_deed(ground, id, number, result);
    }

    /// A fault makes the step fail; what it would have done is done or not.
    fn fail(&mut self, ground: &mut Ground, id: WorkloadId, step: &Step) -> Result<Done, StepFailure> {
        let happens = match step {
            Step::Write(_) | Step::RemoveRecord => {
                ground.tally.writes_unknown += 1;
                if let Step::Write(record) = step
                    && ground.random.chance(400)
                {
                    ground.write_doubtful(id, record.clone());
                    false
                } else {
                    ground.random.chance(500)
                }
            }
            // A driver cleans up what it could not start.
            Step::Launch | Step::Restore { .. } => false,
            _ => ground.random.chance(500),
        };
        if happens {
            let _ = self.apply(ground, id, step);
        }
        let loads = matches!(step, Step::Restore { .. } | Step::Verify { .. });
        let lasting = loads && ground.random.chance(100);
        let why = "a fault".to_owned();
        if loads && ground.random.chance(300) {
            ground.tally.images_lost += 1;
            let lost = Lost::plain(ImagePart::State, PartFault::Digest);
            return Err(StepFailure::untrusted(lost));
        }
        if lasting {
            refuse(ground, id);
        }
        Err(if lasting {
            StepFailure::Lasting { why }
        } else {
            StepFailure::Passing { why }
        })
    }

    /// Does what the step says.
    pub(super) fn apply(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        step: &Step,
    ) -> Result<Done, StepFailure> {
        match step {
            Step::Write(record) => {
                self.check_commit(ground, id, &record.phase);
                ground.write(id, record.clone());
            }
            Step::ReadBack => return read_back(ground, id),
            Step::Discard { generation } => discard(ground, id, *generation),
            Step::PrepareDisks => {
                ground.host.files.insert(id);
            }
            Step::AttachLink => ground.attach(id),
            Step::MakeTap => {
                let link = ground.kernel.links.get_mut(&id).ok_or_else(broken)?;
                link.tap = true;
            }
            Step::Launch => return self.launch(ground, id),
            Step::Open => return open(ground, id),
            Step::Shut => {
                if let Some(link) = ground.kernel.links.get_mut(&id) {
                    link.gate = Gate::Shut;
                }
            }
            Step::Drain => ground.guest_reads(id),
            // Answered by its barrier.
            Step::Prove | Step::Greet => {}
            Step::Pause => return done_if(ground.host.pause(id)),
            Step::Save { generation } => {
                let live = !ground.host.of(id).is_empty();
                let image = ground.host.save(id, *generation).filter(|_| live);
                return image.map(Done::Image).ok_or_else(broken);
            }
            Step::LetGo | Step::EndProcess => self.end_process(ground, id, step.name()),
            Step::Spill { image } => {
                let image = ground.host.spill(id, *image).ok_or_else(broken)?;
                ground.tally.spills += 1;
                return Ok(Done::Image(image));
            }
            Step::Settle { image } | Step::Verify { image } => return settle(ground, id, *image),
            Step::DropResident => {
                if let Some(memory) = ground.host.memory.get_mut(&id) {
                    memory.resident = None;
                }
            }
            Step::Restore { image } => return self.restore(ground, id, *image),
            Step::Resume => return done_if(ground.resume(id)),
            Step::Shutdown { .. } => return shut_down(ground, id),
            Step::ReleaseLink => {
                ground.kernel.links.remove(&id);
            }
            Step::DropMemory => {
                ground.host.memory.remove(&id);
            }
            Step::RemoveFiles => {
                ground.host.files.remove(&id);
            }
            Step::RemoveRecord => {
                ground.store.records.remove(&id);
                ground.store.limbo.remove(&id);
            }
            Step::FreeAddresses => self.free_addresses(id),
        }
        Ok(Done::Plain)
    }

    fn restore(
        &mut self,
        ground: &mut Ground,
        id: WorkloadId,
        image: MemoryImage,
    ) -> Result<Done, StepFailure> {
        let process = ground.restore(id, image).map_err(|why| {
            refuse(ground, id);
            StepFailure::Lasting { why }
        })?;
        self.forget_crash(ground, id);
        Ok(Done::Process(process))
    }

    fn launch(&mut self, ground: &mut Ground, id: WorkloadId) -> Result<Done, StepFailure> {
        ground.host.new_memory(id);
        let process = ground
            .host
            .spawn(ground.now, Some(id), Mode::Running)
            .ok_or_else(broken)?;
        ground.one_process(id);
        self.forget_crash(ground, id);
        let wait = ground.random.millis(50, 600);
        ground.tell_after(wait, DaemonEvent::Ready(id, process));
        Ok(Done::Process(process))
    }

    /// A new process: what happened to the one before explains nothing any more.
    fn forget_crash(&mut self, ground: &mut Ground, id: WorkloadId) {
        if let Some(truth) = ground.truths.get_mut(&id) {
            (truth.crashed, truth.rebooted, truth.refused) = (false, false, false);
        }
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.exit_expected = false;
        }
    }

    fn end_process(&mut self, ground: &mut Ground, id: WorkloadId, why: &str) {
        ground.drop_tap(id, why);
        for process in ground.host.end(id) {
            // A watcher of the process may still report what was done on purpose.
            if ground.random.chance(500) {
                let how = Exit::Ended {
                    how: "signal 9".to_owned(),
                };
                let wait = ground.random.millis(0, 5);
                ground.tell_after(wait, DaemonEvent::Exited(id, process, how));
            }
            if ground.random.chance(300) {
                ground.host.reuse(ground.now, process.pid);
            }
        }
    }

    /// The engine's sleep commits: no flow that its proof could see may be alive.
    fn check_commit(&mut self, ground: &mut Ground, id: WorkloadId, phase: &Phase) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let commits = matches!(phase, Phase::Standby { .. })
            && instance.machine.state() == dormouse_model::State::Sleeping
            && instance.engine_sleep;
        let Some(truth) = ground.truths.get(&id).filter(|_| commits) else {
            return;
        };
        if let Some(key) = truth.live_at_proof.first() {
            let what = format!(
                "{id} is put to sleep with {} live inbound flows, one from {} port {}",
                truth.live_at_proof.len(),
                key.source,
                key.source_port
            );
            ground.broken(Invariant::NoFalseSleep, what);
        }
    }
}

/// Flushes memory, or compares it.
fn settle(ground: &mut Ground, id: WorkloadId, image: MemoryImage) -> Result<Done, StepFailure> {
    match ground.host.settle(id, image) {
        Ok(image) => Ok(Done::Image(image)),
        Err(lost) => {
            ground.tally.images_lost += 1;
            Err(StepFailure::untrusted(lost))
        }
    }
}

/// What can be read of the record.
fn read_back(ground: &Ground, id: WorkloadId) -> Result<Done, StepFailure> {
    let stored = ground.store.records.get(&id).ok_or_else(broken)?;
    Ok(Done::Recorded(Box::new(stored.life.clone())))
}

/// Whoever reads of this image does not find it.
fn discard(ground: &mut Ground, id: WorkloadId, generation: Generation) {
    if let Some(memory) = ground.host.memory.get_mut(&id)
        && memory.device_state.is_some_and(|(saved, _)| saved == generation)
    {
        memory.device_state = None;
    }
    ground.tally.discarded += 1;
    if let Some(truth) = ground.truths.get_mut(&id) {
        (truth.discarded, truth.committed) = (true, None);
    }
}

fn done_if(done: bool) -> Result<Done, StepFailure> {
    if done { Ok(Done::Plain) } else { Err(broken()) }
}

fn open(ground: &mut Ground, id: WorkloadId) -> Result<Done, StepFailure> {
    let wait = ground.random.millis(0, 2);
    ground.after(wait, Event::GuestReads(id));
    done_if(ground.kernel.open(id))
}

/// The guest ends in time, or does not listen.
fn shut_down(ground: &mut Ground, id: WorkloadId) -> Result<Done, StepFailure> {
    if ground.random.chance(300) || !ground.host.guest_runs(id) {
        return Err(broken());
    }
    ground.process_ends(id, &Exit::PoweredOff);
    Ok(Done::Plain)
}

fn broken() -> StepFailure {
    StepFailure::Passing {
        why: "a fault".to_owned(),
    }
}

/// Whoever loads the image will never do so.
fn refuse(ground: &mut Ground, id: WorkloadId) {
    if let Some(truth) = ground.truths.get_mut(&id) {
        truth.refused = true;
    }
}

fn inject(ground: &mut Ground, id: WorkloadId) {
    if let Some(truth) = ground.truths.get_mut(&id) {
        truth.injected += 1;
    }
}

/// How long a step takes, without a fault.
fn duration_of(ground: &mut Ground, step: &Step) -> Duration {
    let (least, most) = match step {
        Step::Write(_) | Step::RemoveRecord | Step::ReadBack => (2, 6),
        Step::Launch | Step::Restore { .. } => (10, 60),
        Step::PrepareDisks | Step::RemoveFiles => (1, 30),
        Step::Save { .. } | Step::LetGo | Step::EndProcess | Step::ReleaseLink => (1, 15),
        Step::Shutdown { .. } => (5, 300),
        Step::Verify { .. } => (1, 400),
        Step::AttachLink
        | Step::MakeTap
        | Step::Open
        | Step::Shut
        | Step::Drain
        | Step::Prove
        | Step::Pause
        | Step::Spill { .. }
        | Step::Settle { .. }
        | Step::Discard { .. }
        | Step::DropResident
        | Step::Resume
        | Step::Greet
        | Step::DropMemory
        | Step::FreeAddresses => (0, 2),
    };
    ground.random.millis(least, most)
}
