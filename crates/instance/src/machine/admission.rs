//! Admission: which requests are accepted, ignored or refused in which state. Policy as data; the
//! acts are in `course.rs`.

use dormouse_model::plant::{Plant, planted};
use dormouse_model::workload::SleepSupport;
use dormouse_model::{MonoTime, SleepEnd, SleepTrigger, State, WakeCause, WakeEnd};

use super::plan::Plan;
use super::{
    Answer, Asker, CancelReason, Effect, Machine, Outcome, Readiness, Refusal, Removal, Request, Rest,
    Ticket, Turn, Wanted,
};

impl Machine {
    /// Takes one request. The answer is immediate; what follows comes as effects, now and later.
    ///
    /// Every ticket that is not refused ends in one [`Effect::Ended`]. [`Request::CancelSleep`]
    /// brings the ticket of the sleep that it means and ends nothing of its own.
    pub fn request(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        request: Request,
        out: &mut Vec<Effect>,
    ) -> Answer {
        let answer = match request {
            Request::Start => self.request_start(now, ticket, out),
            Request::Stop { grace } => {
                let answer = self.request_stop(now, ticket, out);
                if answer == Answer::Accepted {
                    self.grace = grace;
                }
                answer
            }
            Request::Sleep { trigger } => self.request_sleep(now, ticket, trigger, out),
            Request::CancelSleep { why } => self.request_cancel(now, ticket, why, out),
            Request::Wake { cause } => self.request_wake(now, ticket, cause, out),
            Request::Delete { removal } => self.request_delete(now, ticket, removal, out),
        };
        self.publish(out);
        answer
    }

    /// The foreground plan, if one runs.
    pub(super) fn foreground(&self) -> Option<Plan> {
        self.course
            .map(|course| course.plan)
            .filter(|plan| !plan.is_background())
    }

    /// What an end of the workload's life, wanted or not, makes of other requests.
    fn ending(&self) -> Option<Refusal> {
        if self.state() == State::Deleting {
            return Some(Refusal::BeingDeleted);
        }
        match self.turn {
            Some(Turn::Stop | Turn::PoweredOff | Turn::Fail(_)) => Some(Refusal::WrongState(State::Stopping)),
            Some(Turn::Interrupt(_) | Turn::Unwake(_) | Turn::Delete) | None => None,
        }
    }

    fn wrong_state(&self) -> Answer {
        Answer::Refused(Refusal::WrongState(self.state()))
    }

    /// Lets `ticket` wait for `wanted`. Bounded: what does not fit is refused before it is begun.
    fn wait_for(&mut self, ticket: Ticket, wanted: Wanted, answer: Answer) -> Answer {
        let waiting = self.waiters.iter().filter(|(_, other)| *other == wanted).count();
        if waiting >= self.settings.limits.waiters {
            return Answer::Refused(Refusal::Busy);
        }
        self.waiters.push((ticket, wanted));
        answer
    }

    fn at_once(ticket: Ticket, outcome: Outcome, out: &mut Vec<Effect>) -> Answer {
        out.push(Effect::Ended { ticket, outcome });
        Answer::AlreadySo
    }

    fn request_start(&mut self, now: MonoTime, ticket: Ticket, out: &mut Vec<Effect>) -> Answer {
        if let Some(refusal) = self.ending() {
            return Answer::Refused(refusal);
        }
        match (self.foreground(), &self.rest) {
            (None, Rest::Stopped | Rest::Failed(_)) => {
                let answer = self.wait_for(ticket, Wanted::Start, Answer::Accepted);
                if answer == Answer::Accepted {
                    self.begin(now, Plan::Start, out);
                }
                answer
            }
            (Some(Plan::Start), _) => self.wait_for(ticket, Wanted::Start, Answer::AlreadySo),
            (None | Some(Plan::Readopt), Rest::Awake) => match self.readiness {
                Readiness::Booting => self.wait_for(ticket, Wanted::Start, Answer::AlreadySo),
                Readiness::Ready => Self::at_once(ticket, Outcome::Done, out),
            },
            // What an earlier life left is being cleared.
            (Some(Plan::Stop | Plan::Bury), Rest::Stopped | Rest::Failed(_))
                if self.state() != State::Stopping =>
            {
                Answer::Refused(Refusal::Busy)
            }
            (Some(_), _) | (None, Rest::Asleep | Rest::Deleting | Rest::Gone) => self.wrong_state(),
        }
    }

    fn request_stop(&mut self, now: MonoTime, ticket: Ticket, out: &mut Vec<Effect>) -> Answer {
        if self.state() == State::Deleting {
            return Answer::Refused(Refusal::BeingDeleted);
        }
        match (self.foreground(), &self.rest) {
            (None, Rest::Stopped) => Self::at_once(ticket, Outcome::Done, out),
            (Some(Plan::Stop), _) => self.wait_for(ticket, Wanted::Stop, Answer::AlreadySo),
            (_, _) if self.turn == Some(Turn::Stop) => self.wait_for(ticket, Wanted::Stop, Answer::AlreadySo),
            (None | Some(_), _) => {
                let answer = self.wait_for(ticket, Wanted::Stop, Answer::Accepted);
                if answer == Answer::Accepted {
                    self.turn_to(now, Turn::Stop, out);
                }
                answer
            }
        }
    }

    fn request_sleep(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        trigger: SleepTrigger,
        out: &mut Vec<Effect>,
    ) -> Answer {
        match self.settings.sleep_support {
            SleepSupport::Able => {}
            other @ (SleepSupport::DriverCannot | SleepSupport::DevicePassedThrough) => {
                return Answer::Refused(Refusal::CannotSleep(other));
            }
        }
        if let Some(refusal) = self.ending() {
            return Answer::Refused(refusal);
        }
        match (self.foreground(), &self.rest) {
            (None, Rest::Awake) if self.readiness == Readiness::Ready => {
                let answer = self.wait_for(ticket, Wanted::Sleep, Answer::Accepted);
                if answer == Answer::Accepted {
                    self.trigger = trigger;
                    self.begin(now, Plan::Sleep, out);
                }
                answer
            }
            // A sleep that is being taken back does not become another one's.
            (Some(Plan::Sleep), _) if self.turn.is_some() => Answer::Refused(Refusal::Busy),
            (Some(Plan::Doubt | Plan::Recommit | Plan::Unsleep), _) => Answer::Refused(Refusal::Busy),
            (Some(Plan::Sleep), _) => {
                let answer = self.wait_for(ticket, Wanted::Sleep, Answer::AlreadySo);
                // Now somebody wants it whatever arrives.
                if answer == Answer::AlreadySo && !trigger.yields_to_traffic() {
                    self.trigger = trigger;
                }
                answer
            }
            (Some(Plan::LetGo), _) => self.wait_for(ticket, Wanted::Sleep, Answer::AlreadySo),
            (None | Some(Plan::Leftover | Plan::Forget), Rest::Asleep) => {
                Self::at_once(ticket, Outcome::Sleep(SleepEnd::Committed), out)
            }
            (None | Some(_), _) => self.wrong_state(),
        }
    }

    fn request_cancel(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        why: CancelReason,
        out: &mut Vec<Effect>,
    ) -> Answer {
        let waits = self.waiters.contains(&(ticket, Wanted::Sleep));
        match self.foreground() {
            Some(Plan::Sleep) if waits => {
                let own = ticket.asker == Asker::Caller;
                if own || self.trigger.yields_to_traffic() {
                    self.turn_to(now, Turn::Interrupt(why), out);
                    return Answer::Accepted;
                }
                self.keep_wake(why);
                Answer::Refused(Refusal::Committed)
            }
            // It is taken back, or what was committed is followed by a wake.
            Some(Plan::Doubt | Plan::Recommit | Plan::Unsleep) if waits => {
                self.keep_wake(why);
                Answer::AlreadySo
            }
            Some(Plan::LetGo) if waits => {
                if planted(Plant::CancelAfterCommitHonoured) {
                    self.begin(now, Plan::Unsleep, out);
                    return Answer::Accepted;
                }
                self.keep_wake(why);
                Answer::Refused(Refusal::Committed)
            }
            Some(_) | None => Answer::Refused(Refusal::NotUnderWay),
        }
    }

    /// Remembers that somebody wants it awake once it has slept.
    pub(super) fn keep_wake(&mut self, why: CancelReason) {
        match why {
            CancelReason::Traffic => self.wake_after = Some(WakeCause::Knock),
            CancelReason::Held => self.wake_after = Some(WakeCause::Caller),
            CancelReason::Blind | CancelReason::Changed => {}
        }
    }

    fn request_wake(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        cause: WakeCause,
        out: &mut Vec<Effect>,
    ) -> Answer {
        if let Some(refusal) = self.ending() {
            return Answer::Refused(refusal);
        }
        match (self.foreground(), &self.rest) {
            (None, Rest::Asleep) => {
                let answer = self.wait_for(ticket, Wanted::Wake, Answer::Accepted);
                if answer == Answer::Accepted {
                    self.begin_wake(now, cause, out);
                }
                answer
            }
            (Some(Plan::Wake), _) if planted(Plant::DoubleWake) => {
                self.begin(now, Plan::Wake, out);
                self.wait_for(ticket, Wanted::Wake, Answer::Accepted)
            }
            (Some(Plan::Wake | Plan::Revive | Plan::ColdBoot | Plan::Release), _) => {
                self.wait_for(ticket, Wanted::Wake, Answer::AlreadySo)
            }
            // It is on its way, or sleeps first when its process ends before it runs on.
            (Some(Plan::Unsleep), _) => {
                let answer = self.wait_for(ticket, Wanted::Wake, Answer::AlreadySo);
                if answer == Answer::AlreadySo {
                    self.wake_after = Some(cause);
                }
                answer
            }
            (None, Rest::Awake) if self.shut_until_ready => {
                self.wait_for(ticket, Wanted::Wake, Answer::AlreadySo)
            }
            (Some(Plan::Sleep), _) => {
                let answer = self.wait_for(ticket, Wanted::Wake, Answer::Accepted);
                if answer == Answer::Accepted {
                    self.wake_during_sleep(now, cause, out);
                }
                answer
            }
            (Some(Plan::Doubt | Plan::Recommit | Plan::LetGo | Plan::Leftover | Plan::Forget), _) => {
                let answer = self.wait_for(ticket, Wanted::Wake, Answer::Accepted);
                if answer == Answer::Accepted {
                    self.wake_after = Some(cause);
                }
                answer
            }
            (None | Some(Plan::Readopt), Rest::Awake) => {
                Self::at_once(ticket, Outcome::Wake(WakeEnd::Running), out)
            }
            (Some(Plan::Unwake), _) => Answer::Refused(Refusal::Busy),
            (None | Some(_), _) => self.wrong_state(),
        }
    }

    fn wake_during_sleep(&mut self, now: MonoTime, cause: WakeCause, out: &mut Vec<Effect>) {
        if self.trigger.yields_to_traffic() {
            let why = match cause {
                WakeCause::Knock => CancelReason::Traffic,
                WakeCause::Caller => CancelReason::Held,
            };
            self.turn_to(now, Turn::Interrupt(why), out);
        } else {
            self.wake_after = Some(cause);
        }
    }

    fn request_delete(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        removal: Removal,
        out: &mut Vec<Effect>,
    ) -> Answer {
        if self.rest == Rest::Gone {
            return Self::at_once(ticket, Outcome::Done, out);
        }
        let under_way = self.foreground() == Some(Plan::Delete) || self.turn == Some(Turn::Delete);
        let answer = if under_way {
            Answer::AlreadySo
        } else {
            Answer::Accepted
        };
        let answer = self.wait_for(ticket, Wanted::Delete, answer);
        if let Answer::Refused(_) = answer {
            return answer;
        }
        if !under_way {
            self.removal = removal;
            if self.rest == Rest::Deleting {
                self.begin(now, Plan::Delete, out);
            } else {
                self.turn_to(now, Turn::Delete, out);
            }
        } else if removal == Removal::Forced && self.removal == Removal::Graceful {
            self.removal = removal;
            self.cut_short(out);
        }
        answer
    }
}
