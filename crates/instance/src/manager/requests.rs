//! Requests for one instance: handed to its task, and what became of them.

use std::time::Duration;

use dormouse_model::{Attempt, MonoTime, SleepEnd, SleepTrigger, State, WakeCause, WakeEnd, WorkloadId};
use tokio::sync::oneshot;

use super::Instances;
use crate::actor::{Asked, Command, verb};
use crate::error::InstanceError;
use crate::machine::{Answer, CancelReason, Outcome, Refusal, Removal, Request};
use crate::view::InstanceView;

impl Instances {
    async fn ask(
        &self,
        id: WorkloadId,
        request: Request,
        attempt: Option<Attempt>,
        at: MonoTime,
    ) -> Result<Asked, InstanceError> {
        let entry = self.entry(id)?;
        let (reply, asked) = oneshot::channel();
        let gone = || InstanceError::NotFound { key: id.to_string() };
        let command = Command::Ask {
            request,
            attempt,
            at,
            reply,
        };
        entry.inbox.send(command).await.map_err(|_| gone())?;
        asked.await.map_err(|_| gone())
    }

    /// Asks and waits for the outcome.
    async fn ask_and_wait(&self, id: WorkloadId, request: Request) -> Result<Outcome, InstanceError> {
        let name = self.view(id)?.spec.name;
        let at = self.shared.rooms.clock.now();
        let asked = self.ask(id, request, None, at).await?;
        if let Answer::Refused(refusal) = asked.answer {
            return Err(InstanceError::Refused {
                verb: verb(&request),
                name,
                refusal,
            });
        }
        // The task ends without an outcome only when the daemon goes down.
        asked.outcome.await.map_err(|_| InstanceError::ShuttingDown)
    }

    /// The outcome of a caller's request as a result.
    fn settle(
        &self,
        id: WorkloadId,
        verb: &'static str,
        outcome: Outcome,
    ) -> Result<InstanceView, InstanceError> {
        let view = self.view(id)?;
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
            Outcome::Sleep(SleepEnd::Gone) | Outcome::Wake(WakeEnd::Gone) => {
                Err(InstanceError::NotFound { key: id.to_string() })
            }
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
        tokio::select! {
            outcome = asked.outcome => {
                let outcome = outcome.map_err(|_| InstanceError::ShuttingDown)?;
                self.settle(id, "start", outcome)
            }
            found = view.wait_for(awake) => match found {
                Ok(view) => Ok(view.clone()),
                Err(_) => Err(InstanceError::NotFound { key: id.to_string() }),
            },
        }
    }

    /// Stops an instance; `grace` is the instance's own when not given.
    ///
    /// # Errors
    /// When its state does not allow it.
    pub async fn stop(&self, id: WorkloadId, grace: Option<Duration>) -> Result<InstanceView, InstanceError> {
        let grace = grace.unwrap_or(self.view(id)?.spec.stop_timeout);
        let outcome = self.ask_and_wait(id, Request::Stop { grace }).await?;
        self.settle(id, "stop", outcome)
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
        let outcome = self.ask_and_wait(id, Request::Sleep { trigger }).await?;
        self.settle(id, "standby", outcome)
    }

    /// Wakes an instance for a caller; returns once it runs and its packets are released.
    ///
    /// # Errors
    /// When its state does not allow it or it failed.
    pub async fn wake(&self, id: WorkloadId) -> Result<InstanceView, InstanceError> {
        let outcome = self
            .ask_and_wait(
                id,
                Request::Wake {
                    cause: WakeCause::Caller,
                },
            )
            .await?;
        self.settle(id, "wake", outcome)
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
            Ok(Outcome::Failed { why }) => {
                let name = view.borrow().spec.name.clone();
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

    /// The engine's sleep, under its attempt.
    pub async fn engine_sleep(&self, id: WorkloadId, attempt: Attempt) -> SleepEnd {
        let request = Request::Sleep {
            trigger: SleepTrigger::Engine,
        };
        match self
            .engine_ask(id, request, attempt, self.shared.rooms.clock.now())
            .await
        {
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

    /// The engine's wake, under its attempt; `at` is when the packet knocked.
    pub async fn engine_wake(
        &self,
        id: WorkloadId,
        attempt: Attempt,
        cause: WakeCause,
        at: MonoTime,
    ) -> WakeEnd {
        match self.engine_ask(id, Request::Wake { cause }, attempt, at).await {
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

    /// The engine takes a sleep of its own back.
    pub async fn engine_cancel(&self, id: WorkloadId, attempt: Attempt, why: CancelReason) {
        let now = self.shared.rooms.clock.now();
        // The sleep's own outcome tells what became of it.
        drop(
            self.ask(id, Request::CancelSleep { why }, Some(attempt), now)
                .await,
        );
    }

    async fn engine_ask(
        &self,
        id: WorkloadId,
        request: Request,
        attempt: Attempt,
        at: MonoTime,
    ) -> Result<Outcome, Option<Refusal>> {
        let asked = self.ask(id, request, Some(attempt), at).await.map_err(|_| None)?;
        if let Answer::Refused(refusal) = asked.answer {
            return Err(Some(refusal));
        }
        asked.outcome.await.map_err(|_| None)
    }

    /// Tells an instance's machine that a packet waits; coalesces, so a full inbox loses nothing that
    /// the kernel does not repeat within a second.
    pub fn knock(&self, id: WorkloadId) {
        if let Ok(entry) = self.entry(id) {
            drop(entry.inbox.try_send(Command::Knock));
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
            Ok(Err(_)) if deleted => Ok(None),
            Ok(Err(_)) => Err(InstanceError::NotFound {
                key: name.to_string(),
            }),
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
