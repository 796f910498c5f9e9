//! Where an instance is: with a task of its own while something goes on, at rest without one.
//!
//! ```text
//!            hand over, watch
//!  Resting ───────────────────▶ Taken
//!     ▲                           │ nothing outstanding, nothing timed, nobody watches,
//!     └───────────────────────────┘ nothing in the inbox and nobody who could still put something in
//! ```
//!
//! A sleeper costs what it is: its machine and its view. The state has one owner at any time: the task, or
//! the seat. Both moves are made under the registry's lock, and a task's inbox is reached through its seat
//! alone: so when the lock is held and the inbox is empty and has no other sender, nothing is under way to
//! it, and what comes next finds the instance at rest and brings its task up again. Nothing is lost.

use std::sync::{Arc, Weak};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// Where an instance is. `C` is what its task is told, `V` what it publishes, `R` what rests.
#[derive(Debug)]
pub(super) enum Seat<C, V, R> {
    /// It has a task.
    Taken(Task<C, V>),
    /// It has none.
    Resting(Box<R>),
    /// It is being moved; only while the lock is held.
    Moving,
}

/// How a task is reached.
#[derive(Debug)]
pub(super) struct Task<C, V> {
    /// The one sender that outlives a call.
    pub(super) inbox: mpsc::Sender<C>,
    /// The task owns what it publishes: without it, it has ended.
    pub(super) view: Weak<watch::Sender<V>>,
}

impl<C, V> Task<C, V> {
    /// One that has ended.
    pub(super) fn ended() -> Self {
        Self {
            inbox: mpsc::channel(1).0,
            view: Weak::new(),
        }
    }
}

/// What became of something that was handed over.
#[derive(Debug)]
pub(super) enum Handed<C> {
    /// It is in the inbox.
    Done,
    /// The inbox is full: to be sent by whoever can wait.
    Full(mpsc::Sender<C>, C),
    /// The task has ended.
    Gone,
}

impl<C, V, R> Seat<C, V, R> {
    /// The task, brought up by `raise` when the instance rests.
    fn task(&mut self, raise: impl FnOnce(Box<R>) -> Task<C, V>) -> Option<&Task<C, V>> {
        *self = match std::mem::replace(self, Self::Moving) {
            Self::Resting(rested) => Self::Taken(raise(rested)),
            other => other,
        };
        match self {
            Self::Taken(task) => Some(task),
            Self::Resting(_) | Self::Moving => None,
        }
    }

    /// Hands `command` to the task.
    pub(super) fn hand(&mut self, command: C, raise: impl FnOnce(Box<R>) -> Task<C, V>) -> Handed<C> {
        let Some(task) = self.task(raise) else {
            return Handed::Gone;
        };
        match task.inbox.try_send(command) {
            Ok(()) => Handed::Done,
            Err(TrySendError::Full(command)) => Handed::Full(task.inbox.clone(), command),
            Err(TrySendError::Closed(_)) => Handed::Gone,
        }
    }

    /// What the task publishes, from now on; `None` when it has ended.
    pub(super) fn watch(&mut self, raise: impl FnOnce(Box<R>) -> Task<C, V>) -> Option<watch::Receiver<V>> {
        let publisher = self.task(raise)?.view.upgrade()?;
        Some(publisher.subscribe())
    }

    /// Takes the instance back from its task, if it is as the picture above says. `inbox` is the task's end
    /// and `view` what it publishes.
    pub(super) fn rest(
        &mut self,
        inbox: &mpsc::Receiver<C>,
        view: &Arc<watch::Sender<V>>,
        rested: impl FnOnce() -> Box<R>,
    ) -> bool {
        let ours = match self {
            Self::Taken(task) => task.view.as_ptr() == Arc::as_ptr(view),
            Self::Resting(_) | Self::Moving => false,
        };
        let still =
            ours && inbox.is_empty() && inbox.sender_strong_count() == 1 && view.receiver_count() == 0;
        if still {
            *self = Self::Resting(rested());
        }
        still
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What rests: what the task had heard.
    type Heard = Vec<u32>;
    type TestSeat = Seat<u32, usize, Heard>;

    const INBOX: usize = 3;

    struct Occupant {
        inbox: mpsc::Receiver<u32>,
        view: Arc<watch::Sender<usize>>,
        heard: Heard,
    }

    #[derive(Debug, Clone)]
    enum Act {
        /// Somebody hands something over; waits with its sender when the inbox is full.
        Hand,
        /// One who waited gets through, or gives up.
        Through,
        GiveUp,
        /// The task takes the next thing.
        Take,
        /// The task would rest.
        Rest,
        Watch,
        Unwatch,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Hand),
            2 => Just(Act::Through),
            1 => Just(Act::GiveUp),
            4 => Just(Act::Take),
            4 => Just(Act::Rest),
            1 => Just(Act::Watch),
            1 => Just(Act::Unwatch),
        ]
    }

    #[derive(Default)]
    struct World {
        occupants: Vec<Occupant>,
        watchers: Vec<watch::Receiver<usize>>,
        waiting: Vec<(mpsc::Sender<u32>, u32)>,
        given_up: Vec<u32>,
    }

    #[allow(clippy::boxed_local, reason = "what a seat hands out")]
    fn raise(rested: Box<Heard>, occupants: &mut Vec<Occupant>) -> Task<u32, usize> {
        let (sender, inbox) = mpsc::channel(INBOX);
        let view = Arc::new(watch::Sender::new(0));
        let task = Task {
            inbox: sender,
            view: Arc::downgrade(&view),
        };
        occupants.push(Occupant {
            inbox,
            view,
            heard: *rested,
        });
        task
    }

    impl World {
        fn step(&mut self, seat: &mut TestSeat, act: &Act, next: &mut u32) {
            match act {
                Act::Hand => {
                    *next += 1;
                    let occupants = &mut self.occupants;
                    match seat.hand(*next, |rested| raise(rested, occupants)) {
                        Handed::Done => {}
                        Handed::Full(sender, command) => self.waiting.push((sender, command)),
                        Handed::Gone => panic!("a seat is never without its instance"),
                    }
                }
                Act::Through => {
                    if let Some((sender, command)) = self.waiting.pop()
                        && let Err(TrySendError::Full(command)) = sender.try_send(command)
                    {
                        self.waiting.push((sender, command));
                    }
                }
                Act::GiveUp => self
                    .given_up
                    .extend(self.waiting.pop().map(|(_, command)| command)),
                Act::Take => {
                    if let Some(occupant) = self.occupants.last_mut()
                        && let Ok(command) = occupant.inbox.try_recv()
                    {
                        occupant.heard.push(command);
                    }
                }
                Act::Rest => self.rest(seat),
                Act::Watch => {
                    let occupants = &mut self.occupants;
                    let watcher = seat.watch(|rested| raise(rested, occupants));
                    self.watchers.extend(watcher);
                }
                Act::Unwatch => drop(self.watchers.pop()),
            }
        }

        fn rest(&mut self, seat: &mut TestSeat) {
            let Some(mut occupant) = self.occupants.pop() else {
                return;
            };
            let heard = std::mem::take(&mut occupant.heard);
            let copy = heard.clone();
            if seat.rest(&occupant.inbox, &occupant.view, || Box::new(copy)) {
                assert!(self.waiting.is_empty() && self.watchers.is_empty());
            } else {
                occupant.heard = heard;
                self.occupants.push(occupant);
            }
        }
    }

    proptest! {
        /// Whatever the order of handing over, waiting, giving up, watching and resting: there is one owner,
        /// and all that was handed over arrives once.
        #[test]
        fn nothing_is_lost_and_nobody_is_doubled(acts in prop::collection::vec(act(), 0..200)) {
            let mut seat: TestSeat = Seat::Resting(Box::default());
            let (mut world, mut next) = (World::default(), 0);
            for act in &acts {
                world.step(&mut seat, act, &mut next);
                prop_assert!(world.occupants.len() <= 1);
                prop_assert_eq!(matches!(seat, Seat::Resting(_)), world.occupants.is_empty());
            }
            // Everybody gets through in the end, and it comes to rest.
            world.watchers.clear();
            while !matches!(seat, Seat::Resting(_)) {
                for act in [Act::Through, Act::Take, Act::Rest] {
                    world.step(&mut seat, &act, &mut next);
                }
            }
            let Seat::Resting(heard) = seat else { unreachable!() };
            let mut all: Vec<u32> = heard.iter().chain(&world.given_up).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..=next).collect::<Vec<_>>());
        }
    }
}
