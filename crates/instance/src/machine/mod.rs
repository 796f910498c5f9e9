//! The lifecycle machine: one a workload, pure. It owns the state, and it alone accepts, ignores or
//! refuses.
//!
//! ```text
//!                     ┌───────────────────────────────── Start ──────────────────────────────────┐
//!   Stopped ─ start ─▶│ record, clear, disks, link, tap, launch, record, open                     │
//!      ▲              └──────────────┬─────────────────────────────────────────────────────┬──────┘
//!      │ stop                        ▼                                                     │ failed
//!  ┌───┴──── Stop ────┐        Initializing ── agent ready ──▶ Running ◀─────────────┐     ▼
//!  │ record, shutdown,│◀───────────┴────────────────────────────┤                    │   Failed
//!  │ end, link, memory│                                   sleep │        ┌─ Unsleep ─┴──────┐
//!  │ record           │                                         ▼        │ (record), resume,│
//!  └──────────────────┘                       ┌─────── Sleep ───────┐    │ open             │
//!      ▲                                      │ shut, drain, prove, │───▶└──────────────────┘
//!      │                                      │ pause, save, COMMIT │ traffic, cancel, failure
//!      │ stop                                 └──────────┬──────────┘
//!      │                                                 ▼ no way back
//!      │                                      ┌─ LetGo ──┴──────────┐
//!      ├──────────────── Standby ◀────────────│ process and tap end │ or are owed
//!                         ▲  │ wake           └─────────────────────┘
//!         ┌─ Unwake ─┐    │  ▼
//!         │ (record),│────┘ ┌───────── Wake ──────────┐  no way back   ┌──── Revive ───┐
//!         │ let go   │◀─────│ tap, restore, CONSUMED  │───────────────▶│ resume, open  │──▶ Running
//!         └──────────┘      └─────────────────────────┘                └───────────────┘
//! ```
//!
//! A box is a [`plan`](self): steps that run one after the other, each with a number. What is not in
//! a box is at rest. From everywhere a process may end (to `Failed`) and a delete may come (to
//! `Deleting`, whose plan removes process, link, memory, files, record, addresses, in this order).
//!
//! **Stopped**: no process, no memory image, no link. Also a workload that was never started.
//!
//! **Starting**: the record says so before anything is made, so a crash leaves nothing unknown; a
//! start that a crash interrupted is begun again from its first step, after what it left is cleared.
//!
//! **Initializing**: the process is recorded, packets pass, the guest boots. It is not put to sleep.
//!
//! **Running**: the record names the process by pid, start time and boot. In the background the
//! agent is told the time after a wake, and the record learns that the guest was ready.
//!
//! **Sleeping**: packets park from its first step on. Up to the commit every failure, and traffic
//! unless a caller wanted this sleep, leads back to `Running`. Traffic at a sleep that runs to its
//! commit is kept and wakes it right after. The commit is one durable write; when nobody knows
//! whether it happened, the record is read, and before the guest may run again a record that says
//! `Running` is written or the image goes (`doubt.rs`).
//!
//! **Standby**: no process. In the background the memory may move from tmpfs to disk; a wake drops
//! that and takes what the record says is the truth. **Committed means kept**: where the process of the
//! sleep, or of a wake that was taken back, cannot be ended, it is a sleeper all the same, who owes that
//! end. It is tried again in the background (`chores.rs`) and before the next wake, which begins only
//! when nothing is left that has the image; until then packets wait and a wake is answered with the
//! reason.
//!
//! **Waking**: the image is loaded into a paused guest. Until it is marked consumed, durably, every
//! failure leads back to `Standby`; from then on the image is never loaded again, and what fails is
//! `Failed`.
//!
//! **Stopping**: the guest is asked, then killed. A stop from `Standby` or `Failed` has no guest to
//! ask and publishes the state that it began in until it ends; when not even its record can be written it
//! is what it was.
//!
//! **Failed**: with its reason; the process is ended and the link removed. Start, stop and delete work.
//!
//! **Deleting**: runs to its end; when a step keeps failing it rests there, and goes on later or when it is
//! asked for again.
//!
//! **Lost images**: an image that a step finds to be other than what was saved is never loaded. The
//! attempt is cleared away (`Unwake`); then, by policy, the workload is `Failed` with the part that is
//! wrong, or it sleeps on without an image (`Forget`) and its next wake boots it (`ColdBoot`):
//!
//! ```text
//!  Standby ── wake ──▶ Wake ── untrusted ──▶ Unwake ──┬─ stay-stopped ──▶ Bury ──▶ Failed
//!     │ └─ Settle ── untrusted ───────────────────────┤
//!     │                                               └─ cold-boot ──▶ Forget ──▶ Standby, no image
//!     └─ no image: wake ──▶ ColdBoot ──▶ Initializing ── ready ──▶ Release ──▶ Running
//! ```
//!
//! What waits at the link of a cold boot stays parked until its guest is ready. A daemon that starts
//! meanwhile opens the link at once, as that of any guest that boots.
//!
//! **Settled memory**: memory on disk is good for the boot in which it was written. In the background it is
//! flushed and its digest recorded (`Settle`), from when on it outlives a reboot; after one it is compared
//! with that digest once, in the background (`Settle` again) or at the latest before the wake (`Verify`).
//!
//! Numbers: an outcome counts only while its step is the outstanding one. Late outcomes are counted
//! and ignored. One step is outstanding at a time; a background step that is cut short no longer is.

mod admission;
mod chores;
mod course;
mod doubt;
mod interface;
mod plan;
mod record;
mod resting;
#[cfg(test)]
mod tests;
mod turn;

use std::time::Duration;

use dormouse_model::workload::SleepSupport;
use dormouse_model::{
    Attempt, FailReason, Generation, Lost, MonoTime, OnLostMemory, SleepEnd, SleepTrigger, State, WakeCause,
    WakeEnd,
};

pub use interface::{
    Answer, Asker, CancelReason, Done, Effect, Exit, Input, Outcome, Refusal, Removal, Request, Step,
    StepFailure, Ticket,
};
pub use plan::Limits;
pub use record::{BootId, Expected, Kept, MemoryImage, Phase, ProcessIdentity, Readiness, Record, Settled};
pub use resting::Residue;

use plan::Plan;

use crate::adoption::{self, Decision, Facts, Unfinished};

/// What does not change over a workload's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Deadlines and caps.
    pub limits: Limits,
    /// Whether driver and devices can sleep.
    pub sleep_support: SleepSupport,
    /// Whether a resident image moves to disk in `Standby`.
    pub spill: SpillPolicy,
    /// What follows when an image is lost.
    pub on_lost: OnLostMemory,
    /// This boot of the host.
    pub boot: BootId,
}

/// Whether memory on tmpfs goes to disk while its guest sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpillPolicy {
    /// It stays: swap or zram takes its pages.
    Stay,
    /// It goes, in the background.
    Spill,
}

/// Where the machine is when no foreground plan runs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rest {
    Stopped,
    Awake,
    Asleep,
    Failed(FailReason),
    /// A removal that gave up, until later or until it is asked for again.
    Deleting,
    Gone,
}

/// A plan under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Course {
    plan: Plan,
    /// Index of the current step in the plan's table.
    at: usize,
    wait: Wait,
    /// How often the current step failed.
    failures: u32,
}

/// What a course waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The outcome of the step with this number.
    Outcome { number: Attempt, deadline: MonoTime },
    /// The time of the next try.
    Retry { at: MonoTime },
}

/// Where a course goes at its next step boundary, instead of on. Later ones outrank earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    /// Back from a sleep, unless the commit wins.
    Interrupt(CancelReason),
    /// Back from a wake: its process is gone.
    Unwake(String),
    /// Powered off by its guest.
    PoweredOff,
    Fail(FailReason),
    Stop,
    Delete,
}

impl Turn {
    const fn rank(&self) -> u8 {
        match self {
            Self::Interrupt(_) => 0,
            Self::Unwake(_) => 1,
            Self::PoweredOff => 2,
            Self::Fail(_) => 3,
            Self::Stop => 4,
            Self::Delete => 5,
        }
    }
}

/// What a waiting ticket waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Start,
    Stop,
    Sleep,
    Wake,
    Delete,
}

/// The lifecycle machine of one workload. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    settings: Settings,
    rest: Rest,
    course: Option<Course>,
    turn: Option<Turn>,
    /// What was last handed to a write.
    record: Record,
    /// What the one before it said.
    phase_before: Option<Phase>,
    /// The number of the last step.
    number: Attempt,
    /// The process that is the workload now.
    process: Option<ProcessIdentity>,
    /// How it ended, when it ended by itself while a step was outstanding.
    exit: Option<Exit>,
    readiness: Readiness,
    /// When a booting guest must be ready.
    ready_by: Option<MonoTime>,
    /// The image that is the workload, or that is being made.
    image: Option<MemoryImage>,
    /// The image as it will be once the record says that it spilled.
    spilled: Option<MemoryImage>,
    /// Of a sleeper without an image: why it has none.
    lost: Option<Lost>,
    /// Why the image that an attempt was to load is lost, until the attempt is cleared away.
    loss: Option<Lost>,
    /// Whether the link opens only when the guest is ready: of a cold boot.
    shut_until_ready: bool,
    trigger: SleepTrigger,
    /// How the sleep that is being undone ends.
    undone: SleepEnd,
    /// How the wake that is being undone ends.
    unwoken: WakeEnd,
    /// Whether a write that would end the old phase may or may not be durable.
    write_unknown: bool,
    /// Of which generation the image is gone that a record of unknown outcome may name.
    discarded: Option<Generation>,
    /// Of a sleeper: whether a process or a tap of it may be left, which no try could end.
    owed: bool,
    /// When a chore that failed is begun again, and how often it was.
    chore_at: Option<MonoTime>,
    chore_failures: u32,
    /// How often one was begun that may be left undone.
    chores_begun: u32,
    /// Whether something of an earlier life may be left for a start to clear.
    dirty: bool,
    wake_after: Option<WakeCause>,
    grace: Duration,
    removal: Removal,
    /// Where the stop that is under way began.
    stop_from: State,
    waiters: Vec<(Ticket, Wanted)>,
    published: (State, Option<FailReason>),
    late_outcomes: u64,
}

impl Machine {
    /// A workload that has never run. Nothing is recorded until it is started.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            rest: Rest::Stopped,
            course: None,
            turn: None,
            record: Record::NEW,
            number: Attempt(0),
            process: None,
            exit: None,
            readiness: Readiness::Booting,
            ready_by: None,
            image: None,
            spilled: None,
            lost: None,
            loss: None,
            shut_until_ready: false,
            trigger: SleepTrigger::Engine,
            undone: SleepEnd::Interrupted,
            unwoken: WakeEnd::Gone,
            phase_before: None,
            write_unknown: false,
            discarded: None,
            owed: false,
            chore_at: None,
            chore_failures: 0,
            chores_begun: 0,
            dirty: false,
            wake_after: None,
            grace: settings.limits.removal_grace,
            removal: Removal::Forced,
            stop_from: State::Stopped,
            waiters: Vec::new(),
            published: (State::Stopped, None),
            late_outcomes: 0,
        }
    }

    /// The workload of `record` in a daemon that has just started, given what is on the host.
    /// Publishes its state, and finishes or takes back what the last daemon left half done.
    #[must_use]
    pub fn recover(
        settings: Settings,
        record: Record,
        facts: &Facts,
        now: MonoTime,
        out: &mut Vec<Effect>,
    ) -> Self {
        let decision = adoption::decide(&record, facts, settings.on_lost);
        let mut machine = Self {
            record,
            dirty: true,
            ..Self::new(settings)
        };
        match decision {
            // What a life that ended may have left goes; nothing is written when nothing changed.
            Decision::Rest => machine.begin_at(now, Plan::Stop, 1, out),
            Decision::Adopt { process, readiness } => {
                machine.rest = Rest::Awake;
                machine.process = Some(process);
                machine.readiness = readiness;
                if readiness == Readiness::Booting {
                    machine.ready_by = Some(now.plus(settings.limits.ready));
                }
                machine.begin(now, Plan::Readopt, out);
            }
            Decision::KeepAsleep { image } => {
                machine.rest = Rest::Asleep;
                machine.image = Some(image);
                // Only a guest that was ready is put to sleep.
                machine.readiness = Readiness::Ready;
                machine.begin(now, Plan::Leftover, out);
            }
            Decision::KeepCold { lost } => {
                machine.rest = Rest::Asleep;
                machine.lost = Some(lost);
                machine.readiness = Readiness::Ready;
                machine.begin(now, Plan::Forget, out);
            }
            Decision::Finish(Unfinished::Start) => machine.begin(now, Plan::Start, out),
            Decision::Finish(Unfinished::Stop) => {
                machine.stop_from = State::Stopping;
                machine.begin_at(now, Plan::Stop, 1, out);
            }
            Decision::Finish(Unfinished::Burial(reason)) => {
                machine.rest = Rest::Failed(reason);
                machine.begin_at(now, Plan::Bury, 1, out);
            }
            Decision::Finish(Unfinished::Delete) => {
                machine.rest = Rest::Deleting;
                machine.begin_at(now, Plan::Delete, 1, out);
            }
            Decision::Fail(reason) => machine.bury(now, reason, out),
        }
        machine.publish_anew(out);
        machine
    }

    /// Takes one input. Total: an input that does not fit is counted and ignored.
    pub fn handle(&mut self, now: MonoTime, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::StepDone { number, done } => {
                if self.is_outstanding(number) {
                    self.step_done(now, done, out);
                } else {
                    self.late_outcomes += 1;
                }
            }
            Input::StepFailed { number, failure } => {
                if self.is_outstanding(number) {
                    self.step_failed(now, &failure, out);
                } else {
                    self.late_outcomes += 1;
                }
            }
            Input::ProcessExited { process, how } => {
                if self.process == Some(process) {
                    self.process_exited(now, how, out);
                } else {
                    self.late_outcomes += 1;
                }
            }
            Input::GuestReady { process } => {
                if self.process == Some(process) {
                    self.guest_ready(now, out);
                } else {
                    self.late_outcomes += 1;
                }
            }
            Input::Knock => self.knocked(now, out),
            Input::Deadline => self.deadline(now, out),
        }
        self.publish(out);
    }

    /// When [`Input::Deadline`] is due; `None` while nothing is waited for.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        let course = self.course.map(|course| match course.wait {
            Wait::Outcome { deadline, .. } => deadline,
            Wait::Retry { at } => at,
        });
        [course, self.ready_by, self.chore_at].into_iter().flatten().min()
    }

    /// The state as others see it: a pure function of the machine's own.
    #[must_use]
    pub fn state(&self) -> State {
        if self.turn == Some(Turn::Delete) {
            return State::Deleting;
        }
        match self.course.map(|course| course.plan) {
            Some(Plan::Start) => State::Starting,
            Some(Plan::Sleep | Plan::Doubt | Plan::Recommit | Plan::Unsleep | Plan::LetGo) => State::Sleeping,
            Some(Plan::Wake | Plan::Unwake | Plan::Revive | Plan::ColdBoot) => State::Waking,
            Some(Plan::Stop) => self.stop_from,
            Some(Plan::Delete) => State::Deleting,
            Some(Plan::Bury) => State::Failed,
            Some(
                Plan::Readopt
                | Plan::Release
                | Plan::Greet
                | Plan::NoteReady
                | Plan::Leftover
                | Plan::Forget
                | Plan::Spill
                | Plan::Settle
                | Plan::Amend,
            )
            | None => self.resting_state(),
        }
    }

    const fn resting_state(&self) -> State {
        match &self.rest {
            Rest::Stopped => State::Stopped,
            Rest::Awake => match self.readiness {
                Readiness::Booting => State::Initializing,
                Readiness::Ready => State::Running,
            },
            Rest::Asleep => State::Standby,
            Rest::Failed(_) => State::Failed,
            Rest::Deleting | Rest::Gone => State::Deleting,
        }
    }

    /// Why it is `Failed`; `None` in every other state.
    #[must_use]
    pub fn fail_reason(&self) -> Option<&FailReason> {
        match &self.rest {
            Rest::Failed(reason) => Some(reason).filter(|_| self.state() == State::Failed),
            Rest::Stopped | Rest::Awake | Rest::Asleep | Rest::Deleting | Rest::Gone => None,
        }
    }

    /// The process that is the workload now, if one is known.
    #[must_use]
    pub const fn process(&self) -> Option<ProcessIdentity> {
        self.process
    }

    /// The image that is the workload, or is being made.
    #[must_use]
    pub const fn image(&self) -> Option<MemoryImage> {
        self.image
    }

    /// Why a sleeper has no image; `None` when it has one, or is no sleeper.
    #[must_use]
    pub const fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// What was last handed to a write.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// How many outcomes and reports came that no longer counted.
    #[must_use]
    pub const fn late_outcomes(&self) -> u64 {
        self.late_outcomes
    }

    /// The outstanding step's number.
    #[must_use]
    pub fn outstanding(&self) -> Option<Attempt> {
        self.course.and_then(|course| match course.wait {
            Wait::Outcome { number, .. } => Some(number),
            Wait::Retry { .. } => None,
        })
    }

    /// Whether the record may say `Standby` from now on: the last sleep cannot be taken back.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.course.is_some_and(|course| course.plan == Plan::LetGo)
    }
}
