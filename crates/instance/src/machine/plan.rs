//! The plans, as data: which steps in which order, and what a failure of each means.
//!
//! A point of no return lies between two plans, never inside one: `Sleep` ends with its commit and
//! `LetGo` only rolls forward; `Wake` ends with the consumed mark and `Revive` only rolls forward.
//! What may still be undone is therefore visible in the type.

use std::time::Duration;

use dormouse_model::plant::{Plant, planted};

/// A step in a plan's table: a [`super::Step`] before its parameters are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    WriteStarting,
    WriteRunning,
    Commit,
    WriteSpilled,
    /// The image as it was settled or verified.
    WriteImage,
    /// Asleep without an image.
    WriteCold,
    MarkConsumed,
    /// Takes back a consumed mark of which nobody knows whether it is durable.
    UnmarkConsumed,
    /// Finds out what the record says after a commit of which nobody knows.
    ReadBack,
    WriteStopping,
    WriteStopped,
    WriteFailed,
    WriteDeleting,
    PrepareDisks,
    AttachLink,
    MakeTap,
    Launch,
    Open,
    Shut,
    Drain,
    Prove,
    Pause,
    Save,
    /// Makes an image that a record may name one that nobody can load.
    Discard,
    LetGo,
    Spill,
    DropResident,
    Settle,
    Verify,
    Restore,
    Resume,
    Greet,
    Shutdown,
    EndProcess,
    ReleaseLink,
    DropMemory,
    RemoveFiles,
    RemoveRecord,
    FreeAddresses,
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Plan {
    /// `Stopped` or `Failed` to a running process.
    Start,
    /// `Running` to the commit.
    Sleep,
    /// From a commit of which nobody knows whether it was made: the record is read, and it goes on to `LetGo` or
    /// to `Unsleep`. The guest stays paused.
    Doubt,
    /// Its process ended before anybody knew of the commit: the image is whole, and the commit is all that it lacks.
    Recommit,
    /// Back from `Sleep` to `Running`.
    Unsleep,
    /// From the commit to `Standby`.
    LetGo,
    /// In `Standby`, in the background: memory goes to disk.
    Spill,
    /// In `Standby`, in the background: memory on disk is made to outlive this boot, or shown to have
    /// outlived the last one.
    Settle,
    /// In `Standby`, in the background: the record names the image again, of which nobody knows what it says.
    Amend,
    /// In `Standby`: the image is lost and its files go.
    Forget,
    /// `Standby` without an image to a process that boots; the link stays shut until the guest is ready.
    ColdBoot,
    /// The guest of a cold boot is ready: what waits for it is let go.
    Release,
    /// `Standby` to the consumed mark.
    Wake,
    /// Back from `Wake` to `Standby`.
    Unwake,
    /// From the consumed mark to `Running`.
    Revive,
    /// In `Running`, after a restart of the daemon: the process may be paused and shut.
    Readopt,
    /// In `Standby`, after a restart of the daemon or after all tries: a process may be left of a sleep that had
    /// not let go or of a wake that had not consumed.
    Leftover,
    /// In `Running`, in the background: the agent is told the time.
    Greet,
    /// In `Running`, in the background: the record learns that the guest is ready, or that it runs when nobody
    /// knows what the record says.
    NoteReady,
    /// To `Stopped`.
    Stop,
    /// In `Failed`: what is left is cleaned up.
    Bury,
    /// To nothing.
    Delete,
}

/// What a failed step means for its plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// The plan is taken back.
    Undo,
    /// Try again after a pause; after the last try the workload has failed.
    RetryThenFail,
    /// Try again after a pause; after the last try it is a sleeper all the same, who owes this step: it is tried
    /// again later, and before the next wake.
    RetryThenOwe,
    /// Try again after a pause, which grows to its limit and no further: to give up would be to lose a guest. Who
    /// waits is told after as many tries as others have; a stop or a removal ends it when the try under way has ended,
    /// at that step's deadline at the latest.
    Persist,
    /// Try again after a pause; after the last try go on with the next step.
    RetryThenSkip,
    /// Try again after a pause; after the last try stop there, until somebody asks again.
    RetryThenRest,
    /// Go on with the next step.
    Skip,
    /// The plan ends here; nothing depends on it.
    Abandon,
}

impl Plan {
    /// The steps, in order.
    pub(super) fn steps(self) -> &'static [Kind] {
        match self {
            // Whatever an earlier life or an interrupted start left is cleared first.
            Self::Start => &[
                Kind::WriteStarting,
                Kind::EndProcess,
                Kind::DropMemory,
                Kind::PrepareDisks,
                Kind::AttachLink,
                Kind::MakeTap,
                Kind::Launch,
                Kind::WriteRunning,
                Kind::Open,
            ],
            Self::Sleep => sleep_steps(),
            Self::Doubt => &[Kind::ReadBack],
            Self::Recommit => &[Kind::Commit],
            // The record first: after a commit of unknown outcome it may say `Standby`, also when it was read and
            // said something else, because a disk that failed may bring the commit back. When it cannot be written
            // either, the image goes: what cannot be loaded cannot be believed beside the guest.
            Self::Unsleep => &[Kind::WriteRunning, Kind::Discard, Kind::Resume, Kind::Open],
            Self::LetGo => let_go_steps(),
            // The link outlives a daemon but not a reboot; a link that is there is left as it is.
            Self::Readopt => &[Kind::AttachLink, Kind::Resume, Kind::Open],
            Self::Leftover => &[Kind::LetGo, Kind::AttachLink],
            Self::Spill => &[Kind::Spill, Kind::WriteSpilled, Kind::DropResident],
            Self::Settle => &[Kind::Settle, Kind::WriteImage],
            Self::Amend => &[Kind::UnmarkConsumed],
            Self::Forget => &[Kind::WriteCold, Kind::LetGo, Kind::DropMemory, Kind::AttachLink],
            // The link is there, with what is parked at it.
            Self::ColdBoot => &[
                Kind::WriteCold,
                Kind::DropMemory,
                Kind::PrepareDisks,
                Kind::AttachLink,
                Kind::MakeTap,
                Kind::Launch,
                Kind::WriteRunning,
            ],
            Self::Release => &[Kind::Open],
            Self::Wake => wake_steps(),
            // The record first again: a crash between the two finds a sleeper with a leftover process,
            // not a process that ended.
            Self::Unwake => &[Kind::UnmarkConsumed, Kind::LetGo],
            Self::Revive => revive_steps(),
            Self::Greet => &[Kind::Greet],
            Self::NoteReady => &[Kind::WriteRunning],
            Self::Stop => &[
                Kind::WriteStopping,
                Kind::Shutdown,
                Kind::EndProcess,
                Kind::ReleaseLink,
                Kind::DropMemory,
                Kind::WriteStopped,
            ],
            Self::Bury => &[
                Kind::WriteFailed,
                Kind::EndProcess,
                Kind::ReleaseLink,
                Kind::DropMemory,
            ],
            Self::Delete => delete_steps(),
        }
    }

    /// Whether a request may begin its own plan at once, without waiting for this one's step.
    pub(super) const fn is_background(self) -> bool {
        match self {
            Self::Spill | Self::Settle | Self::Amend | Self::Greet | Self::NoteReady => true,
            Self::Start
            | Self::Sleep
            | Self::Doubt
            | Self::Recommit
            | Self::Unsleep
            | Self::LetGo
            | Self::Forget
            | Self::ColdBoot
            | Self::Release
            | Self::Wake
            | Self::Unwake
            | Self::Revive
            | Self::Readopt
            | Self::Leftover
            | Self::Stop
            | Self::Bury
            | Self::Delete => false,
        }
    }

    /// How often `step` is tried.
    pub(super) const fn tries(self, step: Kind, limits: &Limits) -> u32 {
        match self {
            Self::Doubt => limits.tries.div_ceil(2),
            Self::Unsleep if matches!(step, Kind::WriteRunning) => limits.tries.div_ceil(2),
            Self::Start
            | Self::Sleep
            | Self::Recommit
            | Self::Unsleep
            | Self::LetGo
            | Self::Spill
            | Self::Settle
            | Self::Amend
            | Self::Forget
            | Self::ColdBoot
            | Self::Release
            | Self::Wake
            | Self::Unwake
            | Self::Revive
            | Self::Readopt
            | Self::Leftover
            | Self::Greet
            | Self::NoteReady
            | Self::Stop
            | Self::Bury
            | Self::Delete => limits.tries,
        }
    }

    /// What a failure of `step` means.
    pub(super) const fn on_failure(self, step: Kind) -> OnFailure {
        match self {
            Self::Start | Self::Sleep | Self::Wake | Self::ColdBoot => OnFailure::Undo,
            // A record that says that it runs, of a process that is ended next, at worst makes the next daemon call
            // it failed. To give its image up now, for a disk that cannot be written, would lose it for sure.
            Self::Unwake if matches!(step, Kind::UnmarkConsumed) => OnFailure::RetryThenSkip,
            // A sleeper without a link is not heard when it is knocked for; its image is as good as before, and the
            // wake that somebody asks for makes the link.
            Self::Leftover if matches!(step, Kind::AttachLink) => OnFailure::RetryThenSkip,
            // By policy it sleeps on, whatever of this cannot be done: the boot that follows does it again.
            Self::Forget if !matches!(step, Kind::LetGo) => OnFailure::RetryThenSkip,
            // What was committed is kept: a process that cannot be ended now is ended later.
            Self::LetGo | Self::Unwake | Self::Leftover | Self::Forget if matches!(step, Kind::LetGo) => {
                OnFailure::RetryThenOwe
            }
            // What cannot be read may be written, and the other way round.
            Self::Doubt => OnFailure::RetryThenSkip,
            Self::Recommit => OnFailure::Persist,
            Self::Unsleep if matches!(step, Kind::WriteRunning) => OnFailure::RetryThenSkip,
            Self::Unsleep if matches!(step, Kind::Discard) => OnFailure::Persist,
            // The record names the disk: what is left on tmpfs only takes room.
            Self::Spill if matches!(step, Kind::DropResident) => OnFailure::RetryThenSkip,
            Self::Unsleep
            | Self::LetGo
            | Self::Forget
            | Self::Release
            | Self::Unwake
            | Self::Revive
            | Self::Readopt
            | Self::Leftover => OnFailure::RetryThenFail,
            Self::Spill | Self::Settle | Self::Amend | Self::Greet | Self::NoteReady => OnFailure::Abandon,
            // The kill comes next.
            Self::Stop | Self::Delete if matches!(step, Kind::Shutdown) => OnFailure::Skip,
            Self::Stop => OnFailure::RetryThenFail,
            Self::Bury => OnFailure::RetryThenSkip,
            Self::Delete => OnFailure::RetryThenRest,
        }
    }
}

fn sleep_steps() -> &'static [Kind] {
    // Planted: the process is let go first and the record follows.
    if planted(Plant::RecordAfterEffect) {
        return &[
            Kind::Shut,
            Kind::Drain,
            Kind::Prove,
            Kind::Pause,
            Kind::Save,
            Kind::LetGo,
            Kind::Commit,
        ];
    }
    &[
        Kind::Shut,
        Kind::Drain,
        Kind::Prove,
        Kind::Pause,
        Kind::Save,
        Kind::Commit,
    ]
}

fn let_go_steps() -> &'static [Kind] {
    if planted(Plant::RecordAfterEffect) {
        return &[];
    }
    &[Kind::LetGo]
}

fn wake_steps() -> &'static [Kind] {
    if planted(Plant::ConsumedMarkAfterResume) {
        return &[Kind::Verify, Kind::WriteImage, Kind::MakeTap, Kind::Restore];
    }
    // The first two only once a boot, and only when the background had not come that far.
    &[
        Kind::Verify,
        Kind::WriteImage,
        Kind::MakeTap,
        Kind::Restore,
        Kind::MarkConsumed,
    ]
}

fn revive_steps() -> &'static [Kind] {
    if planted(Plant::ConsumedMarkAfterResume) {
        return &[Kind::Resume, Kind::MarkConsumed, Kind::Open];
    }
    &[Kind::Resume, Kind::Open]
}

fn delete_steps() -> &'static [Kind] {
    if planted(Plant::AddressFreedBeforeRemoval) {
        return &[
            Kind::WriteDeleting,
            Kind::Shutdown,
            Kind::FreeAddresses,
            Kind::EndProcess,
            Kind::ReleaseLink,
            Kind::DropMemory,
            Kind::RemoveFiles,
            Kind::RemoveRecord,
        ];
    }
    &[
        Kind::WriteDeleting,
        Kind::Shutdown,
        Kind::EndProcess,
        Kind::ReleaseLink,
        Kind::DropMemory,
        Kind::RemoveFiles,
        Kind::RemoveRecord,
        Kind::FreeAddresses,
    ]
}

/// How long the machine waits, and how often it tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a step that only talks to the kernel or the VMM.
    pub step: Duration,
    /// For a write of the record.
    pub write: Duration,
    /// For [`super::Step::Prove`]: the barrier has no reply after an overrun.
    pub prove: Duration,
    /// For launching, restoring and saving.
    pub process: Duration,
    /// For making or removing disks.
    pub files: Duration,
    /// For comparing memory before a wake.
    pub verify: Duration,
    /// For copying or settling memory in the background, behind that of all other sleepers.
    pub settle: Duration,
    /// From the launch until the guest must be ready.
    pub ready: Duration,
    /// A graceful removal's grace, and a stop's that the daemon finds begun.
    pub removal_grace: Duration,
    /// The pause before the first retry; doubles with each.
    pub retry_pause: Duration,
    /// The longest pause between tries.
    pub retry_pause_max: Duration,
    /// How often a step is tried; half as often one for which a guest stands still.
    pub tries: u32,
    /// The pause before a chore of the background that failed is begun again; doubles with each failure.
    pub chore_pause: Duration,
    /// The longest such pause.
    pub chore_pause_max: Duration,
    /// How often a chore is begun again that the workload is whole without, until something else happens to it.
    pub chore_tries: u32,
    /// How many requests may wait for one workload; more are refused as busy.
    pub waiters: usize,
}

impl Limits {
    /// Values for a host with slow disks and emulated guests.
    pub const DEFAULT: Self = Self {
        step: Duration::from_secs(10),
        write: Duration::from_secs(20),
        prove: Duration::from_secs(2),
        process: Duration::from_secs(60),
        files: Duration::from_secs(300),
        verify: Duration::from_secs(600),
        settle: Duration::from_secs(6 * 3600),
        ready: Duration::from_secs(300),
        removal_grace: Duration::from_secs(2),
        retry_pause: Duration::from_millis(50),
        retry_pause_max: Duration::from_secs(30),
        tries: 8,
        chore_pause: Duration::from_secs(1),
        chore_pause_max: Duration::from_secs(600),
        chore_tries: 16,
        waiters: 32,
    };

    /// How long `kind` may take; `grace` is what a shutdown grants.
    pub(super) const fn of(&self, kind: Kind, grace: Duration) -> Duration {
        match kind {
            Kind::WriteStarting
            | Kind::WriteRunning
            | Kind::Commit
            | Kind::WriteSpilled
            | Kind::WriteImage
            | Kind::WriteCold
            | Kind::MarkConsumed
            | Kind::UnmarkConsumed
            | Kind::WriteStopping
            | Kind::WriteStopped
            | Kind::WriteFailed
            | Kind::WriteDeleting
            | Kind::ReadBack
            | Kind::RemoveRecord => self.write,
            Kind::AttachLink
            | Kind::MakeTap
            | Kind::Open
            | Kind::Shut
            | Kind::Drain
            | Kind::Pause
            | Kind::Discard
            | Kind::LetGo
            | Kind::DropResident
            | Kind::Resume
            | Kind::Greet
            | Kind::EndProcess
            | Kind::ReleaseLink
            | Kind::DropMemory
            | Kind::FreeAddresses => self.step,
            Kind::Prove => self.prove,
            Kind::Launch | Kind::Save | Kind::Restore => self.process,
            Kind::PrepareDisks | Kind::RemoveFiles => self.files,
            Kind::Verify => self.verify,
            Kind::Spill | Kind::Settle => self.settle,
            Kind::Shutdown => self.step.saturating_add(grace),
        }
    }
}
