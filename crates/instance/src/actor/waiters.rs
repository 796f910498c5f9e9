//! Who waits for the end of which request.

use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::machine::{Answer, Outcome, Request, Ticket};

/// The askers whose requests have not ended.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<Ticket, oneshot::Sender<Outcome>>);

impl Waiters {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Enters an asker whose request was answered, and returns where its outcome will come; closed when
    /// nothing follows.
    pub(super) fn enter(
        &mut self,
        ticket: Ticket,
        request: Request,
        answer: Answer,
    ) -> oneshot::Receiver<Outcome> {
        let (sender, outcome) = oneshot::channel();
        match (request, answer) {
            // It brings the ticket of the sleep that it means, whose asker goes on waiting.
            (Request::CancelSleep { .. }, _) | (_, Answer::Refused(_)) => {}
            (_, Answer::Accepted | Answer::AlreadySo) => {
                self.0.insert(ticket, sender);
            }
        }
        outcome
    }

    /// Tells the asker of this request how it ended.
    pub(super) fn tell(&mut self, ticket: Ticket, outcome: Outcome) {
        if let Some(waiter) = self.0.remove(&ticket) {
            // Nobody may be waiting any more.
            drop(waiter.send(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Asker, CancelReason, Refusal};
    use dormouse_model::{Attempt, SleepEnd, SleepTrigger};

    #[test]
    fn a_cancel_does_not_take_the_place_of_the_sleep_that_it_means() {
        let mut waiters = Waiters::default();
        let ticket = Ticket {
            asker: Asker::Engine,
            attempt: Attempt(7),
        };
        let sleep = Request::Sleep {
            trigger: SleepTrigger::Engine,
        };
        let mut slept = waiters.enter(ticket, sleep, Answer::Accepted);
        let why = CancelReason::Traffic;
        let mut cancelled = waiters.enter(ticket, Request::CancelSleep { why }, Answer::Accepted);
        waiters.tell(ticket, Outcome::Sleep(SleepEnd::Interrupted));
        assert_eq!(slept.try_recv(), Ok(Outcome::Sleep(SleepEnd::Interrupted)));
        assert_eq!(cancelled.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn nothing_follows_a_refusal() {
        let mut waiters = Waiters::default();
        let ticket = Ticket {
            asker: Asker::Caller,
            attempt: Attempt(1),
        };
        let mut outcome = waiters.enter(ticket, Request::Start, Answer::Refused(Refusal::Busy));
        assert_eq!(outcome.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
