//! Requests for one instance: handed to its task, and what became of them.

use std::sync::Arc;
use std::time::Duration;

use dormouse_model::{Attempt, MonoTime, SleepEnd, SleepTrigger, State, WakeCause, WakeEnd, WorkloadId};
use tokio::sync::oneshot;

use super::Instances;
use super::preflight::Verb;
use super::seat::{Handed, Seat};
use crate::actor::{Asked, Command, verb};
use crate::error::InstanceError;
use crate::machine::{Answer, CancelReason, Outcome, Refusal, Removal, Request};
use crate::view::InstanceView;

impl Instances {
    /// Hands a request to the instance's task: in the call itself where the inbox has room, so that a sleep
    /// and the cancel that means it keep their order whoever runs their futures.
    fn ask(
        &self,
        id: WorkloadId,
        request: Request,
        attempt: Option<Attempt>,
        at: MonoTime,
    ) -> impl Future<Output = Result<Asked, InstanceError>> + Send + use<> {
        let (reply, asked) = oneshot::channel();
        let command = Command::Ask {
            request,
            attempt,
            at,
            reply,
        };
        let handed = self.with_seat(id, |seat, raise| seat.hand(command, raise));
        let shared = Arc::clone(&self.shared);
        async move {
            match handed {
                Some(Handed::Done) => {}
                Some(Handed::Full(inbox, command)) => {
                    inbox.send(command).await.map_err(|_| shared.gone(id))?;
                }
                Some(Handed::Gone) | None => return Err(shared.gone(id)),
            }
            asked.await.map_err(|_| shared.gone(id))
        }
    }

    /// Asks and waits for the outcome. The view is the last one even when the instance is gone by then.
    async fn ask_and_wait(
        &self,
        id: WorkloadId,
        request: Request,
    ) -> Result<(Outcome, InstanceView), InstanceError> {
        let view = self.watch(id)?;
        let at = self.shared.rooms.clock.now();
        let asked = self.ask(id, request, None, at).await?;
        if let Answer::Refused(refusal) = asked.answer {
            return Err(InstanceError::Refused {
                verb: verb(&request),
                name: view.borrow().spec.name.clone(),
                refusal,
            });
        }
        // The task ends without an outcome only when the daemon goes down.
        let outcome = asked.outcome.await.map_err(|_| InstanceError::ShuttingDown)?;
        let now = view.borrow().clone();
        Ok((outcome, now))
    }

    /// The outcome of a caller's request as a result.
    fn settle(
        verb: &'static str,
        outcome: Outcome,
        view: InstanceView,
    ) -> Result<InstanceView, InstanceError> {
        let name = view.spec.name.clone();
        let failed = |why| {
            Err(InstanceError::Failed {
                verb,
                name: name.clone(),
                why,
            })
        };
        match outcome {
            Outcome::Done | Outcome::Sleep(SleepEnd::Committed) | Outcome::Wake(WakeEnd::Running) => Ok(view),
            Outcome::Failed { why }
            | Outcome::Sleep(SleepEnd::Failed { why })
            | Outcome::Wake(WakeEnd::StillAsleep { why } | WakeEnd::Failed { why }) => failed(why),
            Outcome::Sleep(SleepEnd::Interrupted) => Err(InstanceError::Interrupted { name }),
            Outcome::Sleep(SleepEnd::Gone) | Outcome::Wake(WakeEnd::Gone) => Err(InstanceError::NotFound {
                key: view.id.to_string(),
            }),
            Outcome::Superseded { state }
            | Outcome::Sleep(SleepEnd::Refused { state })
            | Outcome::Wake(WakeEnd::Refused { state }) => {
                Err(InstanceError::Overtaken { verb, name, state })
            }
        }
    }

    /// Starts a stopped or failed instance; returns once its process runs.
    ///
    /// # Errors
    /// When its state does not allow it or the start failed.
    pub async fn start(&self, id: WorkloadId) -> Result<InstanceView, InstanceError> {
        let mut view = self.watch(id)?;
        let name = view.borrow().spec.name.clone();
        self.can(Verb::Start, id).await?;
        let at = self.shared.rooms.clock.now();
        let asked = self.ask(id, Request::Start, None, at).await?;
        if let Answer::Refused(refusal) = asked.answer {
            return Err(InstanceError::Refused {
                verb: "start",
                name,
                refusal,
            });
        }
        // The outcome waits until the guest is ready; a caller need not.
        let awake = |view: &InstanceView| matches!(view.state, State::Initializing | State::Running);
        let last = view.clone();
        tokio::select! {
            outcome = asked.outcome => {
                let outcome = outcome.map_err(|_| InstanceError::ShuttingDown)?;
                let now = last.borrow().clone();
                Self::settle("start", outcome, now)
            }
            found = view.wait_for(awake) => match found {
                Ok(view) => Ok(view.clone()),
                Err(_) => Err(self.shared.gone(id)),
            },
        }
    }

    /// Stops an instance; `grace` is the instance's own when not given.
    ///
    /// # Errors
    /// When its state does not allow it.
    pub async fn stop(&self, id: WorkloadId, grace: Option<Duration>) -> Result<InstanceView, InstanceError> {
        let grace = grace.unwrap_or(self.view(id)?.spec.stop_timeout);
        let (outcome, view) = self.ask_and_wait(id, Request::Stop { grace }).await?;
        Self::settle("stop", outcome, view)
    }

    /// Puts an instance to sleep for a caller; returns once it is durable and its process is gone.
    ///
    /// # Errors
    /// When its state does not allow it, it failed, or traffic took a yielding one back.
    pub async fn standby(
        &self,
        id: WorkloadId,
        trigger: SleepTrigger,
    ) -> Result<InstanceView, InstanceError> {
        self.can(Verb::Standby, id).await?;
        let (outcome, view) = self.ask_and_wait(id, Request::Sleep { trigger }).await?;
        Self::settle("standby", outcome, view)
    }

    /// Wakes an instance for a caller; returns once it runs and its packets are released.
    ///
    /// # Errors
    /// When its state does not allow it or it failed.
    pub async fn wake(&self, id: WorkloadId) -> Result<InstanceView, InstanceError> {
        let cause = WakeCause::Caller;
        self.can(Verb::Wake, id).await?;
        let (outcome, view) = self.ask_and_wait(id, Request::Wake { cause }).await?;
        Self::settle("wake", outcome, view)
    }

    /// Removes an instance in any state; returns when its name and addresses are free. Removing one
    /// that is gone succeeds.
    ///
    /// # Errors
    /// When something of it could not be removed; asking again goes on there.
    pub async fn delete(&self, id: WorkloadId, removal: Removal) -> Result<(), InstanceError> {
        let Ok(mut view) = self.watch(id) else {
            return Ok(());
        };
        match self.ask_and_wait(id, Request::Delete { removal }).await {
            Ok((Outcome::Failed { why }, view)) => {
                let name = view.spec.name;
                return Err(InstanceError::Failed {
                    verb: "delete",
                    name,
                    why,
                });
            }
            Ok(_) | Err(InstanceError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        // The task is gone when its end of the view closes; the registry forgets it right after.
        while view.changed().await.is_ok() {}
        self.shared.forget(id);
        Ok(())
    }

    /// The engine's sleep, under its attempt. Asked for by the call, not by the first poll.
    pub fn engine_sleep(
        &self,
        id: WorkloadId,
        attempt: Attempt,
    ) -> impl Future<Output = SleepEnd> + Send + use<> {
        let trigger = SleepTrigger::Engine;
        let asked = self.engine_ask(
            id,
            Request::Sleep { trigger },
            attempt,
            self.shared.rooms.clock.now(),
        );
        async move {
            match asked.await {
                Ok(Outcome::Sleep(end)) => end,
                Ok(Outcome::Superseded { state }) => SleepEnd::Refused { state },
                Ok(Outcome::Failed { why }) => SleepEnd::Failed { why },
                Ok(Outcome::Done | Outcome::Wake(_)) | Err(None) => SleepEnd::Gone,
                Err(Some(Refusal::WrongState(state))) => SleepEnd::Refused { state },
                Err(Some(refusal)) => SleepEnd::Failed {
                    why: refusal.to_string(),
                },
            }
        }
    }

    /// The engine's wake, under its attempt; `at` is when the packet knocked. Asked for by the call.
    pub fn engine_wake(
        &self,
        id: WorkloadId,
        attempt: Attempt,
        cause: WakeCause,
        at: MonoTime,
    ) -> impl Future<Output = WakeEnd> + Send + use<> {
        let asked = self.engine_ask(id, Request::Wake { cause }, attempt, at);
        async move {
            match asked.await {
                Ok(Outcome::Wake(end)) => end,
                Ok(Outcome::Superseded { state }) => WakeEnd::Refused { state },
                Ok(Outcome::Failed { why }) => WakeEnd::StillAsleep { why },
                Ok(Outcome::Done | Outcome::Sleep(_)) | Err(None) => WakeEnd::Gone,
                Err(Some(Refusal::WrongState(state))) => WakeEnd::Refused { state },
                Err(Some(refusal)) => WakeEnd::StillAsleep {
                    why: refusal.to_string(),
                },
            }
        }
    }

    /// The engine takes a sleep of its own back. Asked for by the call: it follows the sleep that it means.
    pub fn engine_cancel(
        &self,
        id: WorkloadId,
        attempt: Attempt,
        why: CancelReason,
    ) -> impl Future<Output = ()> + Send + use<> {
        let now = self.shared.rooms.clock.now();
        let asked = self.ask(id, Request::CancelSleep { why }, Some(attempt), now);
        // The sleep's own outcome tells what became of it.
        async move { drop(asked.await) }
    }

    fn engine_ask(
        &self,
        id: WorkloadId,
        request: Request,
        attempt: Attempt,
        at: MonoTime,
    ) -> impl Future<Output = Result<Outcome, Option<Refusal>>> + Send + use<> {
        let asked = self.ask(id, request, Some(attempt), at);
        async move {
            let asked = asked.await.map_err(|_| None)?;
            if let Answer::Refused(refusal) = asked.answer {
                return Err(Some(refusal));
            }
            asked.outcome.await.map_err(|_| None)
        }
    }

    /// Tells an instance's machine that a packet waits; coalesces, so a full inbox loses nothing that
    /// the kernel does not repeat within a second.
    pub fn knock(&self, id: WorkloadId) {
        // To one at rest a knock says nothing that the engine does not hear: it sends the wake.
        if let Some(Seat::Taken(task)) = self.shared.registry().entries.get(&id) {
            drop(task.inbox.try_send(Command::Knock));
        }
    }

    /// Waits until an instance is in one of `states`, or gone when `deleted` says that this is wanted.
    /// `None` means gone.
    ///
    /// # Errors
    /// When the time is up; and as soon as it failed, or is gone without that being wanted.
    pub async fn wait(
        &self,
        id: WorkloadId,
        states: &[State],
        deleted: bool,
        limit: Duration,
    ) -> Result<Option<InstanceView>, InstanceError> {
        let mut view = self.watch(id)?;
        let name = view.borrow().spec.name.clone();
        let hopeless =
            |now: &InstanceView| now.state == State::Failed && !states.contains(&State::Failed) && !deleted;
        let settled = |now: &InstanceView| states.contains(&now.state) || hopeless(now);
        let found = tokio::time::timeout(limit, view.wait_for(settled))
            .await
            .map(|found| found.map(|v| v.clone()));
        match found {
            Ok(Ok(now)) if hopeless(&now) => Err(InstanceError::Failed {
                verb: "wait",
                name,
                why: now.reason,
            }),
            Ok(Ok(now)) => Ok(Some(now)),
            Ok(Err(_)) => match self.shared.gone(id) {
                InstanceError::NotFound { .. } if deleted => {
                    self.shared.forget(id);
                    Ok(None)
                }
                gone => Err(gone),
            },
            Err(_) => {
                let state = self.view(id).map_or(State::Deleting, |now| now.state);
                Err(InstanceError::WaitElapsed {
                    name: name.to_string(),
                    state,
                    waited_secs: limit.as_secs(),
                })
            }
        }
    }
}
