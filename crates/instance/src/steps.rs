//! The deeds: one function a step of the lifecycle machine's plans. Each is idempotent, works on clones
//! of the task's handles, and tells what changed; the task takes that over.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse_guest::Message;
use dormouse_hypervisor::{ExitReason, Vm};
use dormouse_keeper::HeldKind;
use dormouse_model::error::chain;
use dormouse_model::{Attempt, Fault, Kind, WorkloadId};
use dormouse_network::{Link, LinkCounters};
use dormouse_store::StoreError;
use dormouse_sys::fault::Side;

use crate::actor::Cut;
use crate::agent::AgentHandle;
use crate::machine::{BootId, Done, Exit, ProcessIdentity, Record, Step, StepFailure};
use crate::memory::{GuestRam, Home};
use crate::record::{InstanceRecord, Remembered};
use crate::rooms::{Layout, Rooms};
use crate::sweep::{remove_instance, remove_tree};
use crate::trust::TrustError;

mod asleep;
mod dues;
pub(crate) mod fault;
mod machine_parts;
mod sleep;

pub(crate) use sleep::drop_earlier_states;

/// Everything of an instance that is not durable. Clones share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    /// The live VMM.
    pub(crate) vm: Option<Arc<dyn Vm>>,
    /// The link.
    pub(crate) link: Option<Link>,
    /// The tap made for the next VMM.
    pub(crate) tap: Option<Arc<OwnedFd>>,
    /// What the link had counted when it was last drained.
    pub(crate) drained: Option<LinkCounters>,
    /// The agent.
    pub(crate) agent: Option<AgentHandle>,
    /// Held by whatever writes the instance's files; see [`StepContext::alone`].
    pub(crate) files: Arc<tokio::sync::Mutex<()>>,
}

/// What a step made or dropped, for the task to take over.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing.
    Nothing,
    /// The link was made or removed.
    Link(Option<Link>),
    /// A tap was made or dropped.
    Tap(Option<OwnedFd>),
    /// The link is empty at this count.
    Drained(LinkCounters),
    /// A VMM boots the guest.
    Started {
        /// Its handle.
        vm: Arc<dyn Vm>,
        /// Its RAM.
        ram: GuestRam,
        /// The name under which its program is kept.
        monitor: String,
    },
    /// A VMM has loaded the guest.
    Restored {
        /// Its handle.
        vm: Arc<dyn Vm>,
        /// Its RAM.
        ram: GuestRam,
        /// A connection to the agent's port that the VMM found when it started.
        agent: Option<std::os::unix::net::UnixStream>,
        /// The name under which its program is kept.
        monitor: String,
    },
    /// No process is left.
    LetGo,
    /// RAM moved.
    Ram(GuestRam),
}

/// How a step went.
#[derive(Debug)]
pub(crate) struct StepReport {
    pub(crate) number: Attempt,
    pub(crate) step: Step,
    pub(crate) outcome: Result<(Done, Change), StepFailure>,
    pub(crate) took: Duration,
}

/// What a step works on.
pub(crate) struct StepContext {
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) remembered: Remembered,
    pub(crate) parts: Parts,
    pub(crate) cut: Arc<Cut>,
}

/// Whether the end of a tap is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TapEnd {
    /// Until the device is gone.
    Awaited,
    /// No: nothing reaches it any more.
    Abandoned,
}

/// Most time between a question to a guest's agent after a wake and its answer.
const GREET_DEADLINE: Duration = Duration::from_secs(5);

/// Most time for a tap's queue to be taken by the guest.
const DRAIN_DEADLINE: Duration = Duration::from_millis(500);

/// A failure with its causes: lasting when trying again cannot help.
pub(crate) fn failure(error: &dyn Fault) -> StepFailure {
    let why = chain(error);
    match error.kind() {
        Kind::Invalid | Kind::NotFound | Kind::Unsupported | Kind::Corrupt | Kind::Denied | Kind::Bug => {
            StepFailure::Lasting { why }
        }
        Kind::Exists
        | Kind::WrongState
        | Kind::Conflict
        | Kind::Exhausted
        | Kind::Unavailable
        | Kind::Timeout
        | Kind::Cancelled => StepFailure::Passing { why },
    }
}

/// A failure of a write of the record: whether it surely changed nothing, as the store says.
fn unwritten(error: &StoreError) -> StepFailure {
    match error {
        StoreError::Full { .. } | StoreError::Commit { .. } => StepFailure::Unwritten { why: chain(error) },
        StoreError::Broken { .. }
        | StoreError::Slow { .. }
        | StoreError::Closed
        | StoreError::Locked { .. }
        | StoreError::Open { .. }
        | StoreError::DatabaseDamaged { .. }
        | StoreError::LayoutNewer { .. }
        | StoreError::RecordNewer { .. }
        | StoreError::Damaged(_)
        | StoreError::KeyUnusable { .. }
        | StoreError::Read { .. }
        | StoreError::Check { .. }
        | StoreError::BackupExists { .. }
        | StoreError::Backup { .. }
        | StoreError::NotSetAside { .. } => failure(error),
    }
}

/// A failure to look at an image, or what is wrong with it.
pub(crate) fn distrust(error: TrustError) -> StepFailure {
    match error {
        TrustError::Lost(lost) => StepFailure::untrusted(lost),
        other @ (TrustError::File { .. } | TrustError::CutShort { .. }) => failure(&other),
    }
}

/// A failure of a file operation.
pub(crate) fn file_failure(doing: &str, path: &Path, error: &io::Error) -> StepFailure {
    StepFailure::Passing {
        why: format!("{doing} {}: {error}", path.display()),
    }
}

fn missing(what: &str) -> StepFailure {
    StepFailure::Lasting {
        why: format!("there is no {what}"),
    }
}

type Outcome = Result<(Done, Change), StepFailure>;

const PLAIN: Outcome = Ok((Done::Plain, Change::Nothing));

impl StepContext {
    /// Runs `step` between its two fault points, once the ledger has promised what it takes.
    pub(crate) async fn run(self, step: Step) -> Outcome {
        let dues = dues::Dues::of(&self, &step);
        dues.promise().await?;
        let (name, id) = (fault::name(&step), self.remembered.view.id);
        fault::reach(name, Side::Before, id).await;
        let outcome = self.perform(step).await;
        fault::reach(name, Side::After, id).await;
        dues.settle(&outcome);
        outcome
    }

    async fn perform(self, step: Step) -> Outcome {
        match step {
            Step::Write(record) => self.write(record).await,
            Step::ReadBack => self.read_back().await,
            Step::PrepareDisks => self.prepare_disks().await,
            Step::AttachLink => self.attach_link().await,
            Step::MakeTap => self.make_tap().await,
            Step::Launch => unless_cut(&Arc::clone(&self.cut), self.launch()).await,
            Step::Open => self.link()?.open().await.map(plain).map_err(|e| failure(&e)),
            Step::Shut => self.link()?.shut().await.map(plain).map_err(|e| failure(&e)),
            Step::Drain => self.drain().await,
            Step::Prove => self.prove().await,
            Step::Pause => self.vm()?.pause().await.map(plain).map_err(|e| failure(&e)),
            Step::Save { generation } => self.save(generation).await,
            Step::Discard { generation } => self.discard(generation).await,
            Step::LetGo => self.end_process(TapEnd::Abandoned).await,
            Step::EndProcess => self.end_process(TapEnd::Awaited).await,
            Step::Spill { image } => self.spill(image).await,
            Step::DropResident => self.drop_resident().await,
            Step::Settle { image } => self.settle(image).await,
            Step::Verify { image } => self.verify(image).await,
            Step::Restore { image } => unless_cut(&Arc::clone(&self.cut), self.restore(image)).await,
            Step::Resume => {
                self.rooms.background.precedence.claim(machine_parts::WAKE);
                self.vm()?.resume().await.map(plain).map_err(|e| failure(&e))
            }
            Step::Greet => self.greet().await,
            Step::Shutdown { grace } => self.shutdown(grace).await,
            Step::ReleaseLink => self.release_link().await,
            Step::DropMemory => self.drop_memory().await,
            Step::RemoveFiles => self.remove_files().await,
            Step::RemoveRecord => self.remove_record().await,
            // The registry gives them back when the task has ended.
            Step::FreeAddresses => PLAIN,
        }
    }

    /// Runs file work on the blocking pool, alone among the instance's: a step that was given up leaves its
    /// work running there, and two copies of memory at once would make a third that nobody took. What does
    /// not write must not come through here: a wake does not wait for the copy that it cut short.
    pub(crate) async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
    ) -> Result<T, StepFailure> {
        let guard = Arc::clone(&self.parts.files).lock_owned().await;
        blocking(move || {
            let outcome = work();
            drop(guard);
            outcome
        })
        .await
    }

    pub(crate) fn vm(&self) -> Result<&Arc<dyn Vm>, StepFailure> {
        self.parts.vm.as_ref().ok_or_else(|| missing("process"))
    }

    fn link(&self) -> Result<Link, StepFailure> {
        let made = || self.rooms.network.link(self.remembered.view.id);
        self.parts
            .link
            .clone()
            .or_else(made)
            .ok_or_else(|| missing("link"))
    }

    async fn write(mut self, record: Record) -> Outcome {
        self.remembered.life = record;
        let id = self.remembered.view.id;
        self.rooms
            .store
            .put(id, &self.remembered.to_record())
            .await
            .map(plain)
            .map_err(|error| unwritten(&error))
    }

    async fn remove_record(self) -> Outcome {
        self.rooms
            .store
            .delete::<InstanceRecord>(self.remembered.view.id)
            .await
            .map(plain)
            .map_err(|error| failure(&error))
    }

    async fn attach_link(self) -> Outcome {
        let link = self.attached().await?;
        Ok((Done::Plain, Change::Link(Some(link))))
    }

    /// The link; made unless it is there, perhaps by a step whose report came too late.
    async fn attached(&self) -> Result<Link, StepFailure> {
        if let Ok(link) = self.link() {
            return Ok(link);
        }
        let view = &self.remembered.view;
        let attached = self.rooms.network.attach(view.id, view.addresses).await;
        attached.map_err(|error| failure(&error))
    }

    async fn make_tap(self) -> Outcome {
        let tap = self
            .attached()
            .await?
            .make_tap()
            .await
            .map_err(|error| failure(&error))?;
        let copy = tap
            .try_clone()
            .map_err(|error| file_failure("duplicating", Path::new("tap"), &error))?;
        self.hold("tap", HeldKind::Tap, copy);
        Ok((Done::Plain, Change::Tap(Some(tap))))
    }

    /// Has a descriptor kept for the next daemon. Does not wait until it is: the guest's own process holds
    /// its tap, and a daemon that finds none kept takes a copy there.
    pub(crate) fn hold(&self, what: &str, kind: HeldKind, descriptor: OwnedFd) {
        if let Some(name) = Rooms::held_name(self.remembered.view.id, what) {
            self.rooms.custodian.hold(name, kind, descriptor);
        }
    }

    /// Has everything of this instance let go of. Does not wait until it is: what a keeper holds of a tap
    /// keeps neither the device, which is deleted by number, nor its name.
    pub(crate) fn let_keeper_go(&self) {
        for what in Rooms::HELD {
            if let Some(name) = Rooms::held_name(self.remembered.view.id, what) {
                self.rooms.custodian.release(name);
            }
        }
    }

    async fn drain(self) -> Outcome {
        let counters = self
            .link()?
            .drained(DRAIN_DEADLINE)
            .await
            .map_err(|error| failure(&error))?;
        Ok((Done::Plain, Change::Drained(counters)))
    }

    async fn prove(self) -> Outcome {
        let counters = match self.parts.drained {
            Some(counters) => counters,
            None => self.link()?.counters().await.map_err(|error| failure(&error))?,
        };
        match self
            .rooms
            .proof
            .nothing_arrived(self.remembered.view.id, counters)
            .await
        {
            Ok(true) => PLAIN,
            Ok(false) => Ok((Done::Traffic, Change::Nothing)),
            Err(why) => Err(StepFailure::Passing { why }),
        }
    }

    async fn greet(self) -> Outcome {
        let Some(agent) = &self.parts.agent else {
            return Err(missing("agent"));
        };
        let passing = |why| StepFailure::Passing { why };
        // The task of the agent fills the time in when the message goes out.
        agent
            .ask(Message::ClockSet { unix_nanos: 0 }, GREET_DEADLINE)
            .await
            .map_err(passing)?;
        let seed = self.rooms.random().map_err(|error| StepFailure::Passing {
            why: format!("no random bytes for the guest: {error}"),
        })?;
        agent
            .ask(Message::Reseed { seed }, GREET_DEADLINE)
            .await
            .map_err(passing)?;
        PLAIN
    }

    async fn shutdown(self, grace: Duration) -> Outcome {
        let (Some(vm), Some(agent)) = (&self.parts.vm, &self.parts.agent) else {
            return PLAIN;
        };
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        agent.tell(Message::Shutdown { grace_millis }).await;
        // A guest that ends in time is all that is wished; the kill comes next in any case. The
        // agent needs a moment beyond the grace to kill what is left and power off.
        let ended = tokio::time::timeout(grace.saturating_add(Duration::from_secs(2)), vm.exited());
        tokio::select! {
            _ = ended => {}
            () = self.cut.wished() => {}
        }
        PLAIN
    }

    async fn release_link(self) -> Outcome {
        let id = self.remembered.view.id;
        // Without a handle there was no record of a link: the sweep at start took what was left.
        let link = self.parts.link.clone().or_else(|| self.rooms.network.link(id));
        if let Some(link) = link {
            link.remove().await.map_err(|error| failure(&error))?;
        }
        // After the link: no packet makes an entry again.
        let addresses = self.remembered.view.addresses;
        if let Err(why) = self.rooms.proof.forget_flows(addresses).await {
            tracing::warn!(instance_id = %id, why, "tracked connections are left to age out");
        }
        Ok((Done::Plain, Change::Link(None)))
    }

    async fn drop_memory(self) -> Outcome {
        let id = self.remembered.view.id;
        let files = self.rooms.layout.images();
        let folder = self.rooms.layout.instance(id);
        self.alone(move || {
            for home in [Home::Tmpfs, Home::Disk] {
                files.drop_image(id, home).map_err(|error| failure(&error))?;
            }
            remove_matching(&folder, is_of_memory)
        })
        .await
        .map(plain)
    }

    async fn remove_files(self) -> Outcome {
        let id = self.remembered.view.id;
        let (folder, sockets) = (self.rooms.layout.instance(id), self.rooms.layout.sockets(id));
        let group = self
            .rooms
            .cgroups
            .group(&id.mark())
            .map_err(|error| failure(&error))?;
        self.alone(move || {
            // Without a reason to be busy: every process of the group was waited for.
            group.remove(1, |_| ()).map_err(|error| failure(&error))?;
            remove_tree(&sockets).map_err(|error| file_failure("removing", &sockets, &error))?;
            remove_instance(&folder).map_err(|error| file_failure("removing", &folder, &error))
        })
        .await
        .map(plain)
    }
}

/// Drops `making` when it is cut short. What it made is then ended with it, or by the step that empties the
/// instance's group.
async fn unless_cut(cut: &Cut, making: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        outcome = making => outcome,
        () = cut.wished() => Err(StepFailure::Passing {
            why: "it was cut short".to_owned(),
        }),
    }
}

fn plain<T>(_value: T) -> (Done, Change) {
    (Done::Plain, Change::Nothing)
}

/// Runs work that changes no file on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
) -> Result<T, StepFailure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| StepFailure::Passing {
            why: error.to_string(),
        })?
}

/// Whether a file of an instance's folder is memory, or belongs to an image of it.
fn is_of_memory(name: &str) -> bool {
    ["state.", "manifest.", "memory.ram"]
        .iter()
        .any(|beginning| name.starts_with(beginning))
}

/// Whether [`Step::DropMemory`] would find something. What cannot be looked at may be there. Blocking.
pub(crate) fn has_memory(layout: &Layout, id: WorkloadId) -> bool {
    if layout.images().path(id, Home::Tmpfs).exists() {
        return true;
    }
    match fs::read_dir(layout.instance(id)) {
        Ok(mut entries) => entries
            .any(|entry| entry.map_or(true, |entry| entry.file_name().to_str().is_some_and(is_of_memory))),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Removes the files of `folder` whose names match; a folder that is gone has none.
fn remove_matching(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<(), StepFailure> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_failure("listing", folder, &error)),
    };
    for entry in entries {
        let path = entry
            .map_err(|error| file_failure("listing", folder, &error))?
            .path();
        if path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(&matches)
        {
            match fs::remove_file(&path) {
                Ok(()) => {}
                // Removed by who else was asked to.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(file_failure("removing", &path, &error)),
            }
        }
    }
    Ok(())
}

/// Opens a file for appending that only its owner reads.
pub(crate) fn open_log(path: &Path) -> Result<File, StepFailure> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
        .map_err(|error| file_failure("opening", path, &error))
}

/// Gives `path` to a VMM's user.
pub(crate) fn give(path: &Path, uid: u32) -> Result<(), StepFailure> {
    chown(path, Some(uid), Some(uid)).map_err(|error| file_failure("giving away", path, &error))
}

/// The identity of a process in the machine's words.
pub(crate) fn identity_of(process: &dormouse_hypervisor::ProcessIdentity) -> ProcessIdentity {
    ProcessIdentity {
        pid: process.pid,
        start_ticks: process.start_ticks,
        boot: boot_of(&process.boot_id),
    }
}

/// A boot id's bits: the kernel writes it as a UUID.
pub(crate) fn boot_of(text: &str) -> BootId {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    BootId(u128::from_str_radix(&digits, 16).unwrap_or(0))
}

/// The end of a process in the machine's words.
pub(crate) fn exit_of(reason: &ExitReason) -> Exit {
    match reason {
        ExitReason::GuestPoweredOff => Exit::PoweredOff,
        ExitReason::GuestRebooted
        | ExitReason::GuestPanicked
        | ExitReason::Asked
        | ExitReason::Signal(_)
        | ExitReason::Code(_)
        | ExitReason::Unknown => Exit::Ended {
            how: reason.to_string(),
        },
    }
}
