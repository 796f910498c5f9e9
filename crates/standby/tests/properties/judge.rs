//! The checks after every input.

use dormouse_model::{Attempt, SleepEnd, State, WorkloadId};
use dormouse_standby::{ConfirmAnswer, Effect, Input, Knock, Reason, Status};

use crate::game::{Broken, Game, SLOTS};
use crate::reference::{Sleep, Wake};

/// Fails with what is said unless `holds`.
fn demand(holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Game {
    /// Hands one input to the reference and to the engine, and judges what came of it.
    pub(crate) fn give(&mut self, input: Input) -> Result<(), Broken> {
        let allowed = self.allowed_sleep(&input);
        let interrupted = self.must_interrupt(&input);
        self.tell_reference(&input);
        let mut out = Vec::new();
        self.engine.handle(self.now, self.wall, input, &mut out);
        for effect in &out {
            self.judge_effect(effect, allowed)
                .map_err(|broken| format!("{effect:?}: {broken}"))?;
        }
        if let Some((id, attempt)) = interrupted {
            let cancelled = out.iter().any(|effect| {
                matches!(effect, Effect::CancelSleep { id: who, attempt: which, .. } if (*who, *which) == (id, attempt))
            });
            demand(cancelled, || {
                format!("a packet did not interrupt the sleep of {id}")
            })?;
        }
        self.log.extend(out);
        self.judge_all()
    }

    /// The sleep that this input may bring about: the answer to its own confirm.
    fn allowed_sleep(&self, input: &Input) -> Option<(WorkloadId, Attempt)> {
        let Input::IdleConfirmed {
            id,
            attempt,
            answer: ConfirmAnswer::Idle,
        } = input
        else {
            return None;
        };
        let watched = self.reference.workloads.get(id)?;
        (watched.confirming && watched.confirm == Some(*attempt)).then_some((*id, *attempt))
    }

    /// The sleep that this input must take back at once.
    fn must_interrupt(&self, input: &Input) -> Option<(WorkloadId, Attempt)> {
        let Input::Knocked { id, .. } = input else {
            return None;
        };
        let watched = self.reference.workloads.get(id)?;
        let sleep = watched.sleep.filter(|sleep| !sleep.cancelled)?;
        matches!(watched.view.state, State::Running | State::Sleeping).then_some((*id, sleep.attempt))
    }

    fn tell_reference(&mut self, input: &Input) {
        use dormouse_model::Observation;
        let now = self.now;
        let reference = &mut self.reference;
        match input {
            Input::Observed(observation) => match observation {
                Observation::SyncBegan { .. } => reference.sync_began(),
                Observation::FlowListed(flow) => reference.seen(flow, true, now),
                Observation::SyncDone { .. } => reference.sync_done(now),
                Observation::FlowOpened(flow) | Observation::FlowChanged(flow) => {
                    reference.seen(flow, false, now);
                }
                Observation::FlowClosed(key) => reference.ended(key, now),
                Observation::SightLost { .. } => reference.sight_lost(),
            },
            Input::WorkloadChanged { view, .. } => reference.changed(view.clone(), now),
            Input::WorkloadGone { id } => drop(reference.workloads.remove(id)),
            Input::Knocked { id, knock } => self.tell_knock(*id, *knock),
            Input::IdleConfirmed { id, attempt, answer } => self.tell_confirm(*id, *attempt, answer),
            Input::SleepEnded { id, attempt, end } => {
                if matches!(end, SleepEnd::Gone | SleepEnd::Committed)
                    && let Some(watched) = reference.workloads.get_mut(id)
                    && watched.sleep.is_some_and(|sleep| sleep.attempt == *attempt)
                {
                    // Whoever is connected to it is waiting.
                    watched.packet_waits |= watched.flows() > 0;
                }
                reference.slept(*id, *attempt, end, now);
            }
            Input::WakeEnded { id, attempt, end } => reference.woke(*id, *attempt, end, now),
            Input::Hold { id } => self.tell_hold(*id),
            Input::Shutdown => reference.stopping = true,
            Input::DeadlineReached | Input::RecordFailed { .. } => {}
        }
    }

    fn tell_knock(&mut self, id: WorkloadId, knock: Knock) {
        let now = self.now;
        let Some(watched) = self.reference.workloads.get_mut(&id) else {
            return;
        };
        if knock == Knock::Inbound && (watched.sleep.is_some() || watched.view.state == State::Sleeping) {
            watched.quiet_since = now;
        }
        watched.packet_waits |= watched.sleep.is_some()
            || matches!(
                watched.view.state,
                State::Sleeping | State::Standby | State::Dozing | State::Waking
            );
    }

    fn tell_confirm(&mut self, id: WorkloadId, attempt: Attempt, answer: &ConfirmAnswer) {
        let now = self.now;
        let Some(watched) = self.reference.workloads.get_mut(&id) else {
            return;
        };
        if watched.confirm != Some(attempt) {
            return;
        }
        watched.confirm = None;
        if let ConfirmAnswer::Live { flows } = answer
            && watched.confirming
        {
            for flow in flows {
                self.reference.seen(flow, false, now);
            }
        }
    }

    fn tell_hold(&mut self, id: WorkloadId) {
        let now = self.now;
        let stopping = self.reference.stopping;
        let Some(watched) = self.reference.workloads.get_mut(&id) else {
            return;
        };
        let Some(policy) = watched.view.policy.enabled() else {
            return;
        };
        let holds = matches!(
            watched.view.state,
            State::Running | State::Sleeping | State::Dozing | State::Standby | State::Waking
        );
        if stopping || !holds || watched.view.addresses.is_none() {
            return;
        }
        watched.hold_until = Some(now.plus(policy.idle_timeout()));
        watched.packet_waits |= watched.sleep.is_some() || watched.view.state != State::Running;
    }

    fn judge_effect(
        &mut self,
        effect: &Effect,
        allowed: Option<(WorkloadId, Attempt)>,
    ) -> Result<(), Broken> {
        let (now, stopping) = (self.now, self.reference.stopping);
        let clear = self.reference.clear;
        if let Effect::ConfirmIdle { attempt, .. }
        | Effect::RequestWake { attempt, .. }
        | Effect::RecordIdle { attempt, .. } = effect
        {
            demand(*attempt > self.newest, || {
                format!("an attempt given before: {:?}", self.newest)
            })?;
            self.newest = *attempt;
        }
        let Some(id) = effect.id() else { return Ok(()) };
        let watched = self.reference.workloads.get_mut(&id).ok_or("about nobody")?;
        match effect {
            Effect::ConfirmIdle { attempt, .. } => {
                demand(!stopping, || "while stopping".to_owned())?;
                demand(watched.sleep.is_none() && watched.wake.is_none(), || {
                    "something else runs".to_owned()
                })?;
                demand(clear && watched.covered, || "blind".to_owned())?;
                demand(watched.view.state == State::Running, || {
                    "it does not run".to_owned()
                })?;
                watched.may_sleep(now)?;
                watched.confirm = Some(*attempt);
            }
            Effect::RequestSleep { attempt, .. } => {
                demand(allowed == Some((id, *attempt)), || {
                    "without its confirm".to_owned()
                })?;
                demand(watched.sleep.is_none() && watched.wake.is_none(), || {
                    "something else runs".to_owned()
                })?;
                demand(clear && watched.covered, || "blind".to_owned())?;
                watched.may_sleep(now)?;
                watched.sleep = Some(Sleep::new(*attempt));
            }
            Effect::CancelSleep { attempt, .. } => {
                let sleep = watched.sleep.as_mut().ok_or("no sleep runs")?;
                demand(sleep.attempt == *attempt && !sleep.cancelled, || {
                    "not that one".to_owned()
                })?;
                sleep.cancelled = true;
            }
            Effect::RequestWake { attempt, .. } => {
                demand(!stopping, || "while stopping".to_owned())?;
                demand(watched.wake.is_none() && watched.sleep.is_none(), || {
                    "a second one".to_owned()
                })?;
                demand(watched.sleeps(), || format!("it is {}", watched.view.state))?;
                watched.wake = Some(Wake::new(*attempt));
            }
            Effect::RecordIdle { attempt, record, .. } => {
                watched.last_record = *attempt;
                let claims = record.is_some_and(|record| record.idle_since.is_some());
                demand(!claims || watched.flows() == 0, || "idle with flows".to_owned())?;
            }
            Effect::Announce { status, reason, .. } => {
                let before = watched.announced.replace((*status, *reason));
                demand(before != watched.announced, || "announced twice".to_owned())?;
            }
            Effect::RequestResync | Effect::AnnounceSight { .. } => {}
        }
        Ok(())
    }

    /// What must be so at any time.
    fn judge_all(&mut self) -> Result<(), Broken> {
        let (now, wall) = (self.now, self.wall);
        let (mut sleeps, mut wakes) = (0, 0);
        let (clear, stopping) = (self.reference.clear, self.reference.stopping);
        for (id, watched) in &mut self.reference.workloads {
            let said = self
                .engine
                .status(*id, now, wall)
                .ok_or("the engine forgot one")?;
            let told = || format!("{said:?} of {watched:?}");
            demand(said.active_inbound_count == watched.flows(), || {
                format!("miscounted: {}", told())
            })?;
            demand(
                (said.reason == Reason::ActiveInbound) <= (watched.flows() > 0),
                told,
            )?;
            demand(said.next_standby_at.is_none() || (clear && watched.covered), told)?;
            let confirming = said.reason == Reason::Confirming;
            let sleeping = watched.sleep.is_some_and(|sleep| !sleep.cancelled)
                && matches!(watched.view.state, State::Running | State::Sleeping);
            if confirming || sleeping {
                demand(clear && watched.covered, || {
                    format!("blind, and not taken back: {}", told())
                })?;
                watched
                    .may_sleep(now)
                    .map_err(|why| format!("not taken back although {why}"))?;
            }
            if watched.packet_waits
                && watched.sleeps()
                && watched.sleep.is_none()
                && watched.wake.is_none()
                && !stopping
            {
                demand(said.status == Status::Waking, || {
                    format!("a packet waits in vain: {}", told())
                })?;
            }
            watched.confirming = confirming;
            sleeps += usize::from(confirming) + usize::from(watched.sleep.is_some());
            wakes += usize::from(watched.wake.is_some());
        }
        demand(sleeps <= SLOTS && wakes <= SLOTS, || {
            format!("{sleeps} sleeps and {wakes} wakes at once")
        })?;
        demand(
            stopping
                <= (self.engine.next_deadline().is_none()
                    || !self.engine.is_drained()
                    || self.engine.next_deadline().is_some()),
            String::new,
        )?;
        let census = self.engine.census(now);
        demand(census.workloads == self.reference.workloads.len(), || {
            "a workload too many".to_owned()
        })?;
        demand(
            census.sleeps_in_flight == sleeps && census.wakes_in_flight == wakes,
            || format!("{census:?}"),
        )
    }
}
