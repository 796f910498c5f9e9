//! However a game went, it must not have broken anything: left in peace, everybody falls asleep; knocked
//! at, everybody wakes.

use dormouse_model::workload::SleepSupport;
use dormouse_model::{SleepEnd, State, WakeEnd, WorkloadId, WorkloadView};
use dormouse_standby::{ConfirmAnswer, Input, Knock};

use crate::game::{Broken, Game};
use crate::moves::{Move, WORKLOADS};
use crate::support::{addresses, id, policy, secs};

impl Game {
    /// Ends the game well, or says what is stuck.
    pub(crate) fn end_well(&mut self) -> Result<(), Broken> {
        self.end_what_runs()?;
        if self.reference.stopping {
            return if self.engine.is_drained() {
                Ok(())
            } else {
                Err("not drained".to_owned())
            };
        }
        for number in 1..=WORKLOADS {
            let view = WorkloadView {
                id: id(number),
                state: State::Running,
                addresses: Some(addresses(number)),
                sleep_support: SleepSupport::Able,
                policy: policy(secs(60)),
            };
            self.give(Input::WorkloadChanged { view, record: None })?;
        }
        self.end_what_runs()?;
        self.play_one(Move::Sync)?;
        self.fall_asleep()?;
        self.wake_up()
    }

    fn ids(&self) -> Vec<WorkloadId> {
        self.reference.workloads.keys().copied().collect()
    }

    fn end_what_runs(&mut self) -> Result<(), Broken> {
        // The end of one lets another begin.
        for _ in 0..100 {
            let mut quiet = true;
            for id in self.ids() {
                let Some(watched) = self.reference.workloads.get(&id) else {
                    continue;
                };
                let (sleep, wake) = (watched.sleep, watched.wake);
                if let Some(sleep) = sleep {
                    quiet = false;
                    let end = SleepEnd::Interrupted;
                    self.give(Input::SleepEnded {
                        id,
                        attempt: sleep.attempt,
                        end,
                    })?;
                }
                if let Some(wake) = wake {
                    quiet = false;
                    self.give(Input::WakeEnded {
                        id,
                        attempt: wake.attempt,
                        end: WakeEnd::Running,
                    })?;
                }
            }
            if quiet {
                return Ok(());
            }
        }
        Err("ends lead to beginnings for ever".to_owned())
    }

    fn fall_asleep(&mut self) -> Result<(), Broken> {
        for _ in 0..1_000 {
            if self
                .reference
                .workloads
                .values()
                .all(|it| it.sleeps() && it.sleep.is_none())
            {
                return Ok(());
            }
            let mut idle = true;
            for id in self.ids() {
                let Some(watched) = self.reference.workloads.get(&id) else {
                    continue;
                };
                let (confirm, sleep) = (watched.confirm.filter(|_| watched.confirming), watched.sleep);
                if let Some(attempt) = confirm {
                    idle = false;
                    self.give(Input::IdleConfirmed {
                        id,
                        attempt,
                        answer: ConfirmAnswer::Idle,
                    })?;
                } else if let Some(sleep) = sleep {
                    idle = false;
                    self.give(Input::SleepEnded {
                        id,
                        attempt: sleep.attempt,
                        end: SleepEnd::Committed,
                    })?;
                }
            }
            if idle {
                if self.engine.next_deadline().is_none() {
                    return Err(format!("nobody will ever sleep: {:?}", self.reference.workloads));
                }
                self.play_one(Move::NextDeadline)?;
            }
        }
        Err(format!(
            "not asleep after a thousand steps: {:?}",
            self.reference.workloads
        ))
    }

    fn wake_up(&mut self) -> Result<(), Broken> {
        for id in self.ids() {
            self.give(Input::Knocked {
                id,
                knock: Knock::Inbound,
            })?;
        }
        let mut failed_once = false;
        for _ in 0..1_000 {
            if self
                .reference
                .workloads
                .values()
                .all(|it| it.view.state == State::Running)
            {
                return Ok(());
            }
            let waking = self
                .reference
                .workloads
                .iter()
                .find_map(|(id, it)| Some((*id, it.wake?)));
            match waking {
                Some((id, wake)) => {
                    let why = "ending".to_owned();
                    let end = if failed_once {
                        WakeEnd::Running
                    } else {
                        WakeEnd::StillAsleep { why }
                    };
                    failed_once = true;
                    self.give(Input::WakeEnded {
                        id,
                        attempt: wake.attempt,
                        end,
                    })?;
                }
                None if self.engine.next_deadline().is_none() => return Err("nobody wakes".to_owned()),
                None => self.play_one(Move::NextDeadline)?,
            }
        }
        Err("not awake after a thousand steps".to_owned())
    }
}
