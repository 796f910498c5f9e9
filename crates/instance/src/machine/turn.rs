//! Where plans end and where they turn: what interrupts them at a step boundary, what their end
//! makes of the workload, and what happens to it that no plan asked for.

use dormouse_model::{
    FailReason, ImagePart, Lost, MonoTime, OnLostMemory, PartFault, SleepEnd, State, WakeCause, WakeEnd,
};

use super::plan::{Kind, Plan};
use super::{CancelReason, Effect, Exit, Machine, Outcome, Readiness, Rest, StepFailure, Turn, Wait, Wanted};

impl Machine {
    pub(super) fn begin_unsleep(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        if self.process.is_some() {
            self.begin(now, Plan::Unsleep, out);
            return;
        }
        // Nothing to go back to: the process ended while its commit was being tried.
        match (&self.turn, self.exit.take()) {
            (Some(Turn::Stop), _) | (_, Some(Exit::PoweredOff)) => self.begin_stop(now, out),
            // Nobody has to run on, and nothing is missing but the commit.
            (_, Some(Exit::Ended { .. })) if self.is_saved() => self.begin(now, Plan::Recommit, out),
            (_, Some(Exit::Ended { how })) => self.bury(now, FailReason::ProcessEnded { how }, out),
            (_, None) => {
                let what = "a sleep is taken back and no process is known".to_owned();
                self.bury(now, FailReason::Inconsistent { what }, out);
            }
        }
    }

    pub(super) fn begin_stop(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        self.stop_from = match self.state() {
            State::Standby => State::Standby,
            State::Failed => State::Failed,
            State::Stopped => State::Stopped,
            State::Starting
            | State::Initializing
            | State::Running
            | State::Dozing
            | State::Sleeping
            | State::Waking
            | State::Stopping
            | State::Deleting => State::Stopping,
        };
        self.begin(now, Plan::Stop, out);
    }

    /// To `Failed`, with what is left cleaned up.
    pub(super) fn bury(&mut self, now: MonoTime, reason: FailReason, out: &mut Vec<Effect>) {
        let why = reason.to_string();
        let stop_wanted = self.turn == Some(Turn::Stop);
        self.turn = stop_wanted.then_some(Turn::Stop);
        self.ready_by = None;
        self.wake_after = None;
        self.dirty = true;
        self.settle(
            Wanted::Sleep,
            &Outcome::Sleep(SleepEnd::Refused { state: State::Failed }),
            out,
        );
        self.settle(
            Wanted::Wake,
            &Outcome::Wake(WakeEnd::Failed { why: why.clone() }),
            out,
        );
        self.settle(Wanted::Start, &Outcome::Failed { why: why.clone() }, out);
        if !stop_wanted {
            self.settle(Wanted::Stop, &Outcome::Failed { why }, out);
        }
        self.rest = Rest::Failed(reason);
        self.begin(now, Plan::Bury, out);
    }

    /// Remembers what the image was lost by, until the attempt to load it is cleared away; in words.
    pub(super) fn note_loss(&mut self, lost: Lost) -> String {
        let why = FailReason::ImageLost(lost.clone()).to_string();
        self.loss = Some(lost);
        why
    }

    /// How a wake ends whose step `kind` failed.
    pub(super) fn unwoken_by(&mut self, kind: Kind, failure: &StepFailure) -> WakeEnd {
        let why = failure.why().to_owned();
        match failure {
            StepFailure::Passing { .. } | StepFailure::Unwritten { .. } => WakeEnd::StillAsleep { why },
            StepFailure::Untrusted { lost, .. } => WakeEnd::Failed {
                why: self.note_loss((**lost).clone()),
            },
            // Of the host, not of the image.
            StepFailure::Lasting { .. } if kind != Kind::Restore => WakeEnd::StillAsleep { why },
            // Whoever alone can load it will not: by policy that is as good as no image.
            StepFailure::Lasting { .. } if self.settings.on_lost == OnLostMemory::ColdBoot => {
                let lost = Lost::differs(ImagePart::State, PartFault::Refused, why, "");
                WakeEnd::Failed {
                    why: self.note_loss(lost),
                }
            }
            StepFailure::Lasting { .. } => WakeEnd::Failed { why },
        }
    }

    /// A sleeper's image is lost and nothing of an attempt to load it is left: what the policy says.
    pub(super) fn lose_image(&mut self, now: MonoTime, lost: Lost, out: &mut Vec<Effect>) {
        match self.settings.on_lost {
            OnLostMemory::StayStopped => self.bury(now, FailReason::ImageLost(lost), out),
            OnLostMemory::ColdBoot => {
                self.image = None;
                self.lost = Some(lost);
                let wanted = self.waits_for(Wanted::Wake);
                let plan = if wanted && !self.owed {
                    Plan::ColdBoot
                } else {
                    // What may be left of the last process ends first.
                    self.wake_after = wanted.then_some(WakeCause::Knock);
                    Plan::Forget
                };
                self.begin(now, plan, out);
            }
        }
    }

    /// Wakes a sleeper: from its image, or without one.
    pub(super) fn begin_wake(&mut self, now: MonoTime, cause: WakeCause, out: &mut Vec<Effect>) {
        let plan = if self.owed {
            // Never two: what is left of the last process ends first, and the wake follows.
            self.wake_after = Some(cause);
            Plan::Leftover
        } else if self.lost.is_some() {
            Plan::ColdBoot
        } else {
            Plan::Wake
        };
        self.begin(now, plan, out);
    }

    fn waits_for(&self, wanted: Wanted) -> bool {
        self.waiters.iter().any(|(_, other)| *other == wanted)
    }

    /// Asks for a turn and takes it at once when no step is outstanding.
    pub(super) fn turn_to(&mut self, now: MonoTime, turn: Turn, out: &mut Vec<Effect>) {
        self.raise(turn);
        let waiting = self.course.is_none_or(|course| match course.wait {
            Wait::Retry { .. } => true,
            Wait::Outcome { .. } => course.plan.is_background(),
        });
        if waiting {
            self.take_turn(now, out);
        } else if matches!(self.turn, Some(Turn::Delete | Turn::Stop | Turn::Fail(_))) {
            self.cut_short(out);
        }
    }

    pub(super) fn raise(&mut self, turn: Turn) {
        if self.turn.as_ref().is_none_or(|known| known.rank() < turn.rank()) {
            self.turn = Some(turn);
        }
    }

    /// At a step boundary, or at rest: goes where the turn says, if it can be taken here.
    pub(super) fn take_turn(&mut self, now: MonoTime, out: &mut Vec<Effect>) -> bool {
        let Some(turn) = self.turn.clone() else {
            return false;
        };
        let foreground = self.foreground();
        let before_commit = foreground == Some(Plan::Sleep)
            && self
                .course
                .is_some_and(|course| course.at < course.plan.steps().len());
        match turn {
            Turn::Delete => self.begin(now, Plan::Delete, out),
            Turn::Stop => match foreground {
                None
                | Some(Plan::Start | Plan::ColdBoot | Plan::Readopt | Plan::Leftover | Plan::Recommit) => {
                    self.begin_stop(now, out);
                }
                Some(Plan::Sleep) if before_commit => {
                    self.undone = SleepEnd::Refused {
                        state: State::Stopping,
                    };
                    self.begin_unsleep(now, out);
                }
                // It stands still already: whoever stops it need not wait until it runs again.
                Some(Plan::Doubt | Plan::Unsleep) if self.stands_still() => self.begin_stop(now, out),
                Some(_) => return false,
            },
            Turn::Fail(reason) => {
                self.turn = None;
                self.bury(now, reason, out);
            }
            Turn::PoweredOff => {
                self.turn = None;
                self.begin_stop(now, out);
            }
            Turn::Unwake(why) => {
                self.turn = None;
                if foreground != Some(Plan::Wake) {
                    return false;
                }
                self.unwoken = WakeEnd::StillAsleep { why };
                self.begin(now, Plan::Unwake, out);
            }
            Turn::Interrupt(_) => {
                if !before_commit {
                    self.turn = None;
                    return false;
                }
                self.undone = SleepEnd::Interrupted;
                self.begin_unsleep(now, out);
            }
        }
        true
    }

    /// After a plan gave up: what is wanted of a workload in an unknown condition is its end.
    pub(super) fn take_turn_anyway(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        if self.turn == Some(Turn::Delete) {
            self.begin(now, Plan::Delete, out);
        } else {
            self.begin_stop(now, out);
        }
    }

    pub(super) fn finish(&mut self, now: MonoTime, plan: Plan, out: &mut Vec<Effect>) {
        match plan {
            Plan::Sleep | Plan::Recommit => return self.begin(now, Plan::LetGo, out),
            Plan::Doubt if self.write_unknown => return self.begin_unsleep(now, out),
            Plan::Doubt => return self.begin(now, Plan::LetGo, out),
            Plan::Wake => {
                self.image = None;
                return self.begin(now, Plan::Revive, out);
            }
            Plan::Start | Plan::Unsleep | Plan::Revive | Plan::Readopt | Plan::ColdBoot | Plan::Release => {
                self.awake(now, plan, out);
            }
            Plan::LetGo | Plan::Leftover | Plan::Unwake | Plan::Forget => self.asleep(now, plan, out),
            Plan::Spill | Plan::Settle | Plan::Amend | Plan::Greet | Plan::NoteReady => {
                self.course = None;
                self.next_chore_after(now, plan, out);
            }
            Plan::Stop => {
                self.course = None;
                self.rest = Rest::Stopped;
                self.dirty = false;
                self.owed = false;
                self.process = None;
                (self.image, self.lost, self.discarded) = (None, None, None);
                self.settle(Wanted::Stop, &Outcome::Done, out);
            }
            Plan::Bury => {
                self.course = None;
                self.process = None;
                (self.image, self.lost, self.discarded) = (None, None, None);
                self.publish(out);
                self.take_turn(now, out);
            }
            Plan::Delete => {
                self.course = None;
                self.rest = Rest::Gone;
                self.settle(Wanted::Delete, &Outcome::Done, out);
                out.push(Effect::Gone);
            }
        }
        self.publish(out);
    }

    /// A plan ended with a guest that runs.
    fn awake(&mut self, now: MonoTime, plan: Plan, out: &mut Vec<Effect>) {
        self.course = None;
        self.rest = Rest::Awake;
        (self.image, self.lost) = (None, None);
        self.dirty = true;
        self.wake_after = None;
        let boots = matches!(plan, Plan::Start | Plan::ColdBoot);
        if boots && self.readiness == Readiness::Booting {
            self.ready_by = Some(now.plus(self.settings.limits.ready));
        }
        if plan != Plan::ColdBoot {
            self.shut_until_ready = false;
        }
        let undone = self.undone.clone();
        self.settle(Wanted::Sleep, &Outcome::Sleep(undone), out);
        if !self.shut_until_ready {
            self.settle(Wanted::Wake, &Outcome::Wake(WakeEnd::Running), out);
        }
        if self.readiness == Readiness::Ready {
            self.settle(Wanted::Start, &Outcome::Done, out);
        }
        self.publish(out);
        if self.take_turn(now, out) {
            return;
        }
        match (plan, self.readiness) {
            (Plan::Revive, _) => self.begin(now, Plan::Greet, out),
            (Plan::ColdBoot, Readiness::Ready) => self.begin(now, Plan::Release, out),
            (Plan::Start | Plan::Release, Readiness::Ready) => self.begin(now, Plan::NoteReady, out),
            // Nothing is new to anybody, but what could not be written has to be.
            (_, Readiness::Ready | Readiness::Booting) => self.put_off(now),
        }
    }

    /// A plan ended with a sleeper.
    pub(super) fn asleep(&mut self, now: MonoTime, plan: Plan, out: &mut Vec<Effect>) {
        self.course = None;
        self.rest = Rest::Asleep;
        self.discarded = None;
        if plan == Plan::Unwake {
            self.wake_after = None;
            if let Some(lost) = self.loss.take() {
                return self.lose_image(now, lost, out);
            }
            let unwoken = self.unwoken.clone();
            if let WakeEnd::Failed { why } = unwoken {
                return self.bury(now, FailReason::WakeFailed { why }, out);
            }
            self.settle(Wanted::Wake, &Outcome::Wake(unwoken), out);
        }
        self.settle(Wanted::Sleep, &Outcome::Sleep(SleepEnd::Committed), out);
        self.publish(out);
        if self.take_turn(now, out) {
            return;
        }
        // Whoever waits for a wake is never left waiting for a sleeper.
        let waited_for = self.waits_for(Wanted::Wake).then_some(WakeCause::Caller);
        if let Some(cause) = self.wake_after.or(waited_for) {
            return self.begin_wake(now, cause, out);
        }
        if plan == Plan::Leftover && self.lost.is_some() && !self.owed {
            // What could not go while a process had it.
            let steps = Plan::Forget.steps();
            let at = steps.iter().position(|kind| *kind == Kind::DropMemory);
            return self.begin_at(now, Plan::Forget, at.unwrap_or_default(), out);
        }
        if self.owed {
            // It was tried as often as can be a moment ago.
            self.put_off(now);
        } else {
            self.next_chore_after(now, plan, out);
        }
    }

    pub(super) fn process_exited(&mut self, now: MonoTime, how: Exit, out: &mut Vec<Effect>) {
        self.process = None;
        let text = match &how {
            Exit::PoweredOff => "powered off".to_owned(),
            Exit::Ended { how } => how.clone(),
        };
        self.exit = Some(how.clone());
        let ended = match how {
            Exit::PoweredOff => Turn::PoweredOff,
            Exit::Ended { how } => Turn::Fail(FailReason::ProcessEnded { how }),
        };
        let turn = match self.current() {
            Some((course, kind)) => match course.plan {
                Plan::Start | Plan::ColdBoot => Turn::Fail(FailReason::StartFailed {
                    why: format!("the process ended: {text}"),
                }),
                // State and memory are complete: the process is not needed any more.
                Plan::Sleep if matches!(kind, Kind::Commit | Kind::LetGo) => return,
                Plan::Doubt | Plan::Recommit => return,
                // It has not run on, and nobody has discarded what was saved of it.
                Plan::Unsleep
                    if kind == Kind::WriteRunning && self.is_saved() && ended != Turn::PoweredOff =>
                {
                    return;
                }
                Plan::Sleep
                | Plan::Unsleep
                | Plan::Readopt
                | Plan::Release
                | Plan::Greet
                | Plan::NoteReady => ended,
                Plan::Wake => Turn::Unwake(format!("the process ended: {text}")),
                Plan::Revive if ended == Turn::PoweredOff => ended,
                Plan::Revive => Turn::Fail(FailReason::WakeFailed {
                    why: format!("the process ended: {text}"),
                }),
                // It was to end.
                Plan::LetGo
                | Plan::Leftover
                | Plan::Forget
                | Plan::Unwake
                | Plan::Stop
                | Plan::Bury
                | Plan::Delete => return,
                Plan::Spill | Plan::Settle | Plan::Amend => return,
            },
            None => match self.rest {
                Rest::Awake => ended,
                Rest::Stopped | Rest::Asleep | Rest::Failed(_) | Rest::Deleting | Rest::Gone => return,
            },
        };
        self.turn_to(now, turn, out);
    }

    pub(super) fn guest_ready(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        if self.readiness == Readiness::Ready {
            return;
        }
        self.readiness = Readiness::Ready;
        self.ready_by = None;
        if self.rest == Rest::Awake {
            self.settle(Wanted::Start, &Outcome::Done, out);
            self.publish(out);
            if self.course.is_none() {
                let plan = if self.shut_until_ready {
                    Plan::Release
                } else {
                    Plan::NoteReady
                };
                self.begin(now, plan, out);
            }
        }
    }

    pub(super) fn knocked(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        match self.foreground() {
            Some(Plan::Sleep) if self.trigger.yields_to_traffic() => {
                self.turn_to(now, Turn::Interrupt(CancelReason::Traffic), out);
            }
            // Kept; whoever sees the knock in `Standby` is the engine.
            Some(Plan::Sleep | Plan::Doubt | Plan::Recommit | Plan::Unsleep | Plan::LetGo) => {
                self.wake_after = Some(WakeCause::Knock);
            }
            Some(_) | None => {}
        }
    }
}
