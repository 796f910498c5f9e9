//! The machine. Every input changes facts and then calls `settle` for the workloads that it touched;
//! only `settle` and the deadlines turn facts into effects. The diagram is in the crate's page.
//!
//! | file | what |
//! |---|---|
//! | `engine/observe.rs` | flows and gaps |
//! | `engine/change.rs` | workloads that come, change state, go |
//! | `engine/sleep.rs` | confirm, sleep, and what takes them back; holds |
//! | `engine/wake.rs` | knocks and wakes |
//! | `engine/settle.rs` | facts to effects; deadlines |
//! | `engine/report.rs` | statuses and numbers |

mod change;
mod observe;
mod report;
mod settle;
mod sleep;
mod wake;

use dormouse_model::plant::{Plant, planted};
use dormouse_model::{Attempt, MonoTime, WallTime, WorkloadId};

use crate::config::Config;
use crate::counters::Counters;
use crate::deadline::Deadlines;
use crate::effect::Effect;
use crate::index::Index;
use crate::input::Input;
use crate::lane::Lane;
use crate::roster::{Place, Roster};
use crate::sight::Sight;
use crate::workload::Act;

pub use sleep::{Held, HoldError};

/// The standby engine. See the crate's page for what it promises and how to drive it.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    sight: Sight,
    roster: Roster,
    index: Index,
    deadlines: Deadlines,
    sleeps: Lane,
    wakes: Lane,
    /// The last attempt given to anything. One count for all workloads, so that an outcome for a
    /// workload that is gone means nothing to one that comes back under the same id.
    attempts: Attempt,
    resync: Resync,
    counters: Counters,
    /// The latest time met. A shell that hands in an earlier one does not turn time back.
    now: MonoTime,
    stopping: bool,
}

/// When a listing is asked for.
#[derive(Debug, Default)]
struct Resync {
    armed: Option<MonoTime>,
    asked: Option<MonoTime>,
}

/// What every step of one call needs: both clocks and where the effects go.
struct Turn<'a> {
    now: MonoTime,
    wall: WallTime,
    out: &'a mut Vec<Effect>,
}

impl Engine {
    /// An engine that knows nothing and is blind.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let config = config.raised();
        Self {
            config,
            sight: Sight::new(),
            roster: Roster::default(),
            index: Index::default(),
            deadlines: Deadlines::default(),
            sleeps: Lane::new(config.max_sleeps),
            wakes: Lane::new(config.max_wakes),
            attempts: Attempt::default(),
            resync: Resync::default(),
            counters: Counters::default(),
            now: MonoTime::default(),
            stopping: false,
        }
    }

    /// Takes one input and appends what is to be done to `out`, in order.
    ///
    /// `now` decides; `wall` is only recorded and shown. Total: no input, in no order, makes it panic
    /// or puts a workload to sleep that is known to be talked to.
    pub fn handle(&mut self, now: MonoTime, wall: WallTime, input: Input, out: &mut Vec<Effect>) {
        let turn = &mut self.turn(now, wall, out);
        match input {
            Input::Observed(observation) => self.observed(&observation, turn),
            Input::WorkloadChanged { view, record } => self.workload_changed(view, record, turn),
            Input::WorkloadGone { id } => self.workload_gone(id),
            Input::Knocked { id, knock } => self.knocked(id, knock, turn),
            Input::DeadlineReached => self.deadline_reached(turn),
            Input::IdleConfirmed { id, attempt, answer } => self.idle_confirmed(id, attempt, answer, turn),
            Input::SleepEnded { id, attempt, end } => self.sleep_ended(id, attempt, end, turn),
            Input::WakeEnded { id, attempt, end } => self.wake_ended(id, attempt, end, turn),
            Input::RecordFailed { id, attempt } => self.record_failed(id, attempt, turn),
            // Who wants the answer calls the method.
            Input::Hold { id } => drop(self.hold_until_timeout(id, None, turn)),
            Input::Shutdown => self.shut_down(turn),
        }
        self.admit(turn);
    }

    /// When to call again with [`Input::DeadlineReached`] at the latest; `None` when only an input can
    /// change anything. A time that has passed means at once.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.deadlines.first()
    }

    fn turn<'a>(&mut self, now: MonoTime, wall: WallTime, out: &'a mut Vec<Effect>) -> Turn<'a> {
        self.now = self.now.max(now);
        Turn {
            now: self.now,
            wall,
            out,
        }
    }

    fn next_attempt(&mut self) -> Attempt {
        self.attempts = self.attempts.next();
        self.attempts
    }

    /// Ends what is under way for a workload and gives its slot or its place in a queue back.
    fn rest(&mut self, place: Place) {
        let Some(workload) = self.roster.get_mut(place) else {
            return;
        };
        match std::mem::replace(&mut workload.act, Act::Rest) {
            Act::Rest | Act::WakeBackoff { .. } => {}
            Act::SleepQueued { ticket } => self.sleeps.give_up(ticket),
            Act::Confirming { .. } | Act::Sleeping { .. } => self.sleeps.release(place),
            Act::WakeQueued { ticket } => self.wakes.give_up(ticket),
            Act::Waking { .. } => self.wakes.release(place),
        }
    }

    /// Gives free slots to those who wait.
    fn admit(&mut self, turn: &mut Turn<'_>) {
        while let Some(place) = self.sleeps.admit() {
            self.confirm(place, turn);
        }
        while let Some(place) = self.wakes.admit() {
            self.request_wake(place, turn);
        }
    }

    /// The place of the workload whose outcome this is, if `current` says that its attempt still runs;
    /// else the outcome is stale.
    fn outcome(
        &mut self,
        id: WorkloadId,
        attempt: Attempt,
        current: impl FnOnce(&Act) -> Option<Attempt>,
    ) -> Option<Place> {
        let place = self.roster.find(id).filter(|place| {
            let running = self
                .roster
                .get(*place)
                .and_then(|workload| current(&workload.act));
            running.is_some_and(|running| running == attempt || planted(Plant::StaleAttemptAccepted))
        });
        if place.is_none() {
            self.counters.stale_outcomes += 1;
        }
        place
    }
}
