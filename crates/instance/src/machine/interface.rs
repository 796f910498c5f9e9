//! What goes into the lifecycle machine and what comes out: requests and their answers, inputs,
//! steps, effects.

use std::fmt;
use std::time::Duration;

use dormouse_model::workload::SleepSupport;
use dormouse_model::{
    Attempt, FailReason, Fault, Generation, Kind, Lost, MonoTime, SleepEnd, SleepTrigger, State, WakeCause,
    WakeEnd,
};

use super::record::{MemoryImage, ProcessIdentity, Record};

/// Who asks. Each asker numbers its own attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asker {
    /// The standby engine.
    Engine,
    /// A caller of the API.
    Caller,
}

/// Names one request. A request that is not refused ends in exactly one [`Effect::Ended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Who asked.
    pub asker: Asker,
    /// The asker's number for it, unique among its requests to this workload.
    pub attempt: Attempt,
}

/// Whether a deletion asks the guest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Removal {
    /// A running guest gets a short grace to end by itself.
    Graceful,
    /// The process is killed at once.
    Forced,
}

/// Why a sleep is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelReason {
    /// Traffic was seen: a sleep that went too far to be taken back is followed by a wake.
    Traffic,
    /// A caller wants it awake: likewise.
    Held,
    /// Sight was lost, so that nobody can say that it is idle; no wake follows.
    Blind,
    /// The policy or the workload changed; no wake follows.
    Changed,
}

impl CancelReason {
    /// Whether a cancel that came after the commit is followed by a wake.
    #[must_use]
    pub const fn wakes_after(self) -> bool {
        match self {
            Self::Traffic | Self::Held => true,
            Self::Blind | Self::Changed => false,
        }
    }
}

/// Something that a caller or the engine wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// `Stopped` or `Failed` to `Running`.
    Start,
    /// To `Stopped`; a memory image is dropped.
    Stop {
        /// How long the guest has before it is killed.
        grace: Duration,
    },
    /// `Running` to `Standby`.
    Sleep {
        /// Who wants it, which decides whether traffic takes it back.
        trigger: SleepTrigger,
    },
    /// Takes back the sleep whose ticket comes with this request; makes no ticket of its own.
    CancelSleep {
        /// Why.
        why: CancelReason,
    },
    /// `Standby` to `Running`.
    Wake {
        /// Why.
        cause: WakeCause,
    },
    /// Removes the workload, in any state.
    Delete {
        /// Whether the guest is asked first.
        removal: Removal,
    },
}

/// What became of a request, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It will be done or ended otherwise; [`Effect::Ended`] says so.
    Accepted,
    /// It is so, or is being done already: idempotent success. [`Effect::Ended`] still comes, in the
    /// same call when it is so already.
    AlreadySo,
    /// It will not be done; nothing follows.
    Refused(Refusal),
}

/// Why a request is refused: policy, as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The state does not allow it.
    #[error("the instance is {0}")]
    WrongState(State),
    /// It is being removed.
    #[error("the instance is being deleted")]
    BeingDeleted,
    /// The driver or a device cannot sleep.
    #[error("the instance cannot sleep: {}", cannot_sleep(*.0))]
    CannotSleep(SleepSupport),
    /// A cancel came after the commit, or to a sleep that a caller wants whatever arrives: it runs to
    /// its end, and a wake follows where the reason wants one.
    #[error("the sleep can no longer be taken back")]
    Committed,
    /// A cancel named a sleep that is not under way.
    #[error("no such sleep is under way")]
    NotUnderWay,
    /// A sleep is being taken back, or too many requests wait for this workload.
    #[error("the instance is busy")]
    Busy,
}

const fn cannot_sleep(support: SleepSupport) -> &'static str {
    match support {
        SleepSupport::Able => "it can",
        SleepSupport::DriverCannot => "its driver cannot save this guest's devices",
        SleepSupport::DevicePassedThrough => "a passed-through device cannot be saved",
    }
}

impl Fault for Refusal {
    fn kind(&self) -> Kind {
        match self {
            Self::WrongState(_) | Self::BeingDeleted | Self::Committed => Kind::WrongState,
            Self::CannotSleep(_) => Kind::Unsupported,
            Self::NotUnderWay => Kind::Conflict,
            Self::Busy => Kind::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::WrongState(_) => "INSTANCE_WRONG_STATE",
            Self::BeingDeleted => "INSTANCE_BEING_DELETED",
            Self::CannotSleep(_) => "INSTANCE_CANNOT_SLEEP",
            Self::Committed => "INSTANCE_SLEEP_COMMITTED",
            Self::NotUnderWay => "INSTANCE_NO_SUCH_SLEEP",
            Self::Busy => "INSTANCE_BUSY",
        }
    }
}

/// How an accepted request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A sleep did.
    Sleep(SleepEnd),
    /// A wake did.
    Wake(WakeEnd),
    /// A start (the guest is ready), a stop or a removal is done.
    Done,
    /// A start, a stop or a removal failed.
    Failed {
        /// The chain of causes.
        why: String,
    },
    /// A stop or a removal came in between.
    Superseded {
        /// The state that it led to.
        state: State,
    },
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off.
    PoweredOff,
    /// Anything else.
    Ended {
        /// Such as `signal 9`, `exit 1`.
        how: String,
    },
}

/// What a step brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Nothing to tell.
    Plain,
    /// [`Step::Launch`] and [`Step::Restore`]: the process.
    Process(ProcessIdentity),
    /// [`Step::Save`], [`Step::Spill`], [`Step::Settle`] and [`Step::Verify`]: the image as it is now.
    Image(MemoryImage),
    /// [`Step::Prove`]: there was traffic after all.
    Traffic,
    /// [`Step::ReadBack`]: what the record says.
    Recorded(Box<Record>),
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepFailure {
    /// The same step may succeed later.
    Passing {
        /// The chain of causes.
        why: String,
    },
    /// A write that surely changed nothing, on a full disk for instance: what was recorded before still is.
    Unwritten {
        /// The chain of causes.
        why: String,
    },
    /// It will never succeed: a missing binary, a request that makes no sense.
    Lasting {
        /// The chain of causes.
        why: String,
    },
    /// The image is not what was saved: it must never be loaded.
    Untrusted {
        /// Which part, and what is wrong with it.
        lost: Box<Lost>,
        /// The same in words.
        why: String,
    },
}

impl StepFailure {
    /// The failure of a step that found an image to be lost.
    #[must_use]
    pub fn untrusted(lost: Lost) -> Self {
        Self::Untrusted {
            why: lost.to_string(),
            lost: Box::new(lost),
        }
    }

    /// The chain of causes.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Passing { why }
            | Self::Unwritten { why }
            | Self::Lasting { why }
            | Self::Untrusted { why, .. } => why,
        }
    }
}

/// Everything but requests that can change a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A step succeeded.
    StepDone {
        /// Its number, from [`Effect::Run`].
        number: Attempt,
        /// What it brought.
        done: Done,
    },
    /// A step failed. For a write this means: nobody knows whether it is durable, unless it is
    /// [`StepFailure::Unwritten`].
    StepFailed {
        /// Its number.
        number: Attempt,
        /// Why.
        failure: StepFailure,
    },
    /// A process of the workload ended. Reported after the step that brought the process.
    ProcessExited {
        /// Which.
        process: ProcessIdentity,
        /// How.
        how: Exit,
    },
    /// The agent of the guest in this process says ready.
    GuestReady {
        /// Which process.
        process: ProcessIdentity,
    },
    /// A packet waits for the workload.
    Knock,
    /// [`super::Machine::next_deadline`] has come.
    Deadline,
}

/// One act of a plan. Idempotent: after a crash it may run again. The executor runs the steps of one
/// workload one after the other, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Replace the durable record; done when it is on disk. Writes of a workload keep their order
    /// even when the machine gave up waiting for one.
    Write(Record),
    /// Read the durable record, behind every write of this workload that was handed on before.
    ReadBack,
    /// Make the writable disk.
    PrepareDisks,
    /// Make the workload's link: routes to the parking device, nothing open. A link that is there
    /// already, with what is parked, is taken over as it is, open or shut.
    AttachLink,
    /// Make the tap that lives as long as somebody holds its descriptor; and the link, where it could not be made
    /// earlier.
    MakeTap,
    /// Start a process that boots the guest.
    Launch,
    /// Let packets to the tap and release what is parked.
    Open,
    /// Stop packets: from here on they park.
    Shut,
    /// Wait until the guest has taken what was queued at its tap.
    Drain,
    /// Show that nothing arrived: the observer's barrier came back without loss and the link's
    /// counters have not moved since idle began.
    Prove,
    /// Stop the guest's processors.
    Pause,
    /// Save device state, and what else of memory is not in the RAM file, as this generation.
    Save {
        /// The generation to write.
        generation: Generation,
    },
    /// Remove device state and manifest of this generation, which a record may name: from here on nobody can
    /// load it.
    Discard {
        /// The generation to remove.
        generation: Generation,
    },
    /// End the process, wait until nothing of the workload lives, drop its tap. The link stays shut.
    LetGo,
    /// Copy the resident RAM file to disk and make the copy durable.
    Spill {
        /// What to copy.
        image: MemoryImage,
    },
    /// Drop the resident RAM file: the record says that the disk is the truth.
    DropResident,
    /// Make sure, in the background, that memory on disk outlives this boot: flush it and take its digest;
    /// or, when it was settled in an earlier boot, compare it with its digest.
    Settle {
        /// Of which image.
        image: MemoryImage,
    },
    /// Compare memory that an earlier boot settled with its digest, before it is loaded.
    Verify {
        /// Of which image.
        image: MemoryImage,
    },
    /// Compare every other part of this image with what was saved, start a process and load the image
    /// into it; the guest stays paused.
    Restore {
        /// What to load.
        image: MemoryImage,
    },
    /// Start the guest's processors; harmless when they run.
    Resume,
    /// Tell the agent what changed while the guest slept: the time.
    Greet,
    /// Ask the guest to end and wait for it.
    Shutdown {
        /// How long the guest has.
        grace: Duration,
    },
    /// Kill everything of the workload, wait until nothing of it lives, drop its tap.
    EndProcess,
    /// Remove the link: routes, parked packets, neighbour entries.
    ReleaseLink,
    /// Remove memory image and device state, wherever they are.
    DropMemory,
    /// Remove disks, sockets, logs, directories, the cgroup.
    RemoveFiles,
    /// Remove the durable record; done when that is on disk.
    RemoveRecord,
    /// Give name and addresses back. The allocator lives in memory and is rebuilt from records, so
    /// this comes after the record is gone: an address is never in two records.
    FreeAddresses,
}

impl Step {
    /// The name in logs, spans and metric labels.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Write(_) => "write",
            Self::ReadBack => "read_back",
            Self::PrepareDisks => "prepare_disks",
            Self::AttachLink => "attach_link",
            Self::MakeTap => "make_tap",
            Self::Launch => "launch",
            Self::Open => "open",
            Self::Shut => "shut",
            Self::Drain => "drain",
            Self::Prove => "prove",
            Self::Pause => "pause",
            Self::Save { .. } => "save",
            Self::Discard { .. } => "discard",
            Self::LetGo => "let_go",
            Self::Spill { .. } => "spill",
            Self::DropResident => "drop_resident",
            Self::Settle { .. } => "settle",
            Self::Verify { .. } => "verify",
            Self::Restore { .. } => "restore",
            Self::Resume => "resume",
            Self::Greet => "greet",
            Self::Shutdown { .. } => "shutdown",
            Self::EndProcess => "end_process",
            Self::ReleaseLink => "release_link",
            Self::DropMemory => "drop_memory",
            Self::RemoveFiles => "remove_files",
            Self::RemoveRecord => "remove_record",
            Self::FreeAddresses => "free_addresses",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Run this step and report its number.
    Run {
        /// Its number; only the outcome with the newest number counts.
        number: Attempt,
        /// The step.
        step: Step,
        /// When the machine stops waiting. The executor gives up a little earlier and says so.
        deadline: MonoTime,
    },
    /// The step may end early. A background step ([`Step::Spill`], [`Step::Settle`], [`Step::Greet`]) is dropped and
    /// no longer awaited: what follows must not wait for it.
    CutShort {
        /// Which.
        number: Attempt,
    },
    /// The published state changed.
    Publish {
        /// To this.
        state: State,
        /// With this reason, exactly when it is `Failed`.
        reason: Option<FailReason>,
    },
    /// A request ended.
    Ended {
        /// Which.
        ticket: Ticket,
        /// How.
        outcome: Outcome,
    },
    /// The workload is removed and the machine may be dropped.
    Gone,
}

impl Effect {
    /// The name in logs, spans and metric labels.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::CutShort { .. } => "cut_short",
            Self::Publish { .. } => "publish",
            Self::Ended { .. } => "ended",
            Self::Gone => "gone",
        }
    }
}
