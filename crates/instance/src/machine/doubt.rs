//! A commit of which nobody knows whether it was made, and a guest that stands still meanwhile.
//!
//! ```text
//!  Sleep ── COMMIT: unknown ──▶ Doubt ──┬─ the record says so ──▶ LetGo
//!                           read back   └─ it does not, or nobody can read it
//!                                             │
//!                                             ▼
//!                        (no process: Recommit ──▶ LetGo)
//!                                             │
//!                                             ▼
//!                        Unsleep: write Running ──┬─ written ──────────────────▶ resume, open
//!                                                 └─ not: discard the image ──▶ resume, open, write it later
//! ```
//!
//! A record that can be read and says something else may still come to say it: the disk may bring back what
//! it seemed to have refused. So the guest runs only once a later record is durable, or the image that the
//! commit may name can be loaded by nobody. The image that goes is one of the guest that stands here whole;
//! should the daemon end before the record is written and the commit come back, the next one finds an image
//! that is lost, and never two that can be believed.

use dormouse_model::{MonoTime, SleepEnd, WakeEnd};

use super::plan::{Kind, Plan};
use super::{Effect, Machine, Outcome, Phase, Record, StepFailure, Turn, Wanted};

impl Machine {
    /// Nobody knows of the commit: the guest stays paused until the record was read.
    pub(super) fn begin_doubt(&mut self, now: MonoTime, out: &mut Vec<Effect>) {
        self.write_unknown = true;
        self.begin(now, Plan::Doubt, out);
    }

    /// The commit is durable: it won over whatever wanted the sleep back.
    pub(super) fn committed(&mut self) {
        self.write_unknown = false;
        self.keep_interrupt();
    }

    /// Whether the image of the sleep that is under way is whole.
    pub(super) fn is_saved(&self) -> bool {
        self.image
            .is_some_and(|image| image.generation == self.record.generation)
    }

    /// Whether a sleep is being taken back whose process ended before it ran on: all that is left is what was saved.
    pub(super) fn has_only_its_image(&self) -> bool {
        let back = self.course.is_some_and(|course| course.plan == Plan::Unsleep);
        back && self.process.is_none() && self.is_saved()
    }

    /// Who wanted the sleep back wants it awake once it has slept.
    pub(super) fn keep_interrupt(&mut self) {
        if let Some(Turn::Interrupt(why)) = self.turn {
            self.turn = None;
            self.keep_wake(why);
        }
    }

    /// What the record says.
    pub(super) fn read_back(&mut self, record: &Record) {
        let (recorded, known) = (record.phase.image(), self.image);
        if recorded
            .zip(known)
            .is_some_and(|(recorded, known)| recorded.generation == known.generation)
        {
            self.committed();
        }
    }

    /// The image that the record may name is gone: the guest may run.
    pub(super) fn discarded(&mut self) {
        self.image = None;
        self.discarded = Some(self.record.generation);
        if let Some(process) = self.process {
            let readiness = self.readiness;
            self.record.phase = Phase::Running { process, readiness };
        }
    }

    /// Whether a guest stands still and a stop need not wait for it to run on: it has not run since it was saved
    /// and what it waits for is not done yet, or every try to have it run on was spent. Where the next step has it
    /// run on it is rather asked to end than killed.
    pub(super) fn stands_still(&self) -> bool {
        let Some((course, kind)) = self.current() else {
            return false;
        };
        match course.plan {
            Plan::Doubt => true,
            Plan::Unsleep if matches!(kind, Kind::WriteRunning | Kind::Discard) => self.write_unknown,
            Plan::Unsleep => course.failures >= course.plan.tries(kind, &self.settings.limits),
            Plan::Start
            | Plan::Sleep
            | Plan::Recommit
            | Plan::LetGo
            | Plan::Spill
            | Plan::Settle
            | Plan::Amend
            | Plan::Forget
            | Plan::ColdBoot
            | Plan::Release
            | Plan::Wake
            | Plan::Unwake
            | Plan::Revive
            | Plan::Readopt
            | Plan::Leftover
            | Plan::Greet
            | Plan::NoteReady
            | Plan::Stop
            | Plan::Bury
            | Plan::Delete => false,
        }
    }

    /// Tells who waits that it takes longer than anybody should wait for: a guest that stands still, or a commit that
    /// alone is missing.
    pub(super) fn tell_who_waits(&mut self, failure: &StepFailure, out: &mut Vec<Effect>) {
        let why = failure.why().to_owned();
        let end = SleepEnd::Failed { why: why.clone() };
        self.settle(Wanted::Sleep, &Outcome::Sleep(end), out);
        let end = WakeEnd::StillAsleep { why };
        self.settle(Wanted::Wake, &Outcome::Wake(end), out);
    }
}
