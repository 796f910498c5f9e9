//! The simulated host: processes with pids that come back, memory files, one boot after another.
//!
//! The truth about memory is a version a workload: it grows whenever the guest runs. A device state
//! remembers the version that it belongs to; loading it over another one is the fault that the
//! consumed mark exists to prevent.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_instance::machine::{BootId, Expected, Kept, MemoryImage, ProcessIdentity, Settled};
use dormouse_model::{Digest, Generation, ImagePart, Lost, MonoTime, PartFault, WorkloadId};

/// What a VMM's processors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Stopped.
    Paused,
    /// They run.
    Running,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// When it began, in clock ticks after boot.
    pub start_ticks: u64,
    /// Whose VMM it is; `None` for somebody else's process.
    pub owner: Option<WorkloadId>,
    /// What it does.
    pub mode: Mode,
    /// Whether its guest has said ready.
    pub ready: bool,
}

/// Whether a file would survive a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// It would.
    Yes,
    /// Some of it would.
    No,
}

/// What a power loss makes of a file that was not flushed: no version of it.
pub const TORN: u64 = u64::MAX;

/// The digest of a version.
fn digest(version: u64) -> Digest {
    let mut bytes = [0; 32];
    for (byte, value) in bytes.iter_mut().zip(version.to_be_bytes()) {
        *byte = value;
    }
    Digest(bytes)
}

/// The memory of one workload, wherever it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Grows whenever the guest runs.
    pub version: u64,
    /// The inode of the file on tmpfs; its content is always the newest version.
    pub resident: Option<u64>,
    /// The version in the file on disk, and whether it was flushed.
    pub disk: Option<(u64, Flushed)>,
    /// The inode of that file.
    pub disk_inode: u64,
    /// The device state: its generation and the version that it belongs to.
    pub device_state: Option<(Generation, u64)>,
    /// Whether the process maps the disk file privately.
    pub private: bool,
}

/// The host.
#[derive(Debug)]
pub struct Host {
    /// This boot.
    pub boot: BootId,
    /// All processes that matter.
    pub processes: BTreeMap<u32, Process>,
    /// All memory.
    pub memory: BTreeMap<WorkloadId, Memory>,
    /// Workloads that have disks and directories.
    pub files: BTreeSet<WorkloadId>,
    next_pid: u32,
    inodes: u64,
    /// When the last process of each pid began.
    last_start: BTreeMap<u32, u64>,
}

/// How many pids there are: few, so that they come back soon.
const PIDS: u32 = 24;

/// How many processes of others there are at most.
const STRANGERS: usize = 8;

impl Default for Host {
    fn default() -> Self {
        Self {
            boot: BootId(1),
            processes: BTreeMap::new(),
            memory: BTreeMap::new(),
            files: BTreeSet::new(),
            next_pid: 0,
            inodes: 0,
            last_start: BTreeMap::new(),
        }
    }
}

impl Host {
    /// Starts a process. Pids go round, as the kernel's do.
    pub fn spawn(&mut self, now: MonoTime, owner: Option<WorkloadId>, mode: Mode) -> Option<ProcessIdentity> {
        let pid = (0..PIDS)
            .map(|step| 1 + (self.next_pid + step) % PIDS)
            .find(|pid| !self.processes.contains_key(pid))?;
        self.next_pid = pid;
        let start_ticks = self.start_ticks(now, pid);
        self.processes.insert(
            pid,
            Process {
                start_ticks,
                owner,
                mode,
                ready: false,
            },
        );
        Some(ProcessIdentity {
            pid,
            start_ticks,
            boot: self.boot,
        })
    }

    /// A stranger takes exactly this pid, if it is free: what a long-running host does sooner or later.
    pub fn reuse(&mut self, now: MonoTime, pid: u32) {
        if !self.processes.contains_key(&pid) {
            let start_ticks = self.start_ticks(now, pid);
            let stranger = Process {
                start_ticks,
                owner: None,
                mode: Mode::Running,
                ready: false,
            };
            self.processes.insert(pid, stranger);
        }
        // Strangers end too.
        let strangers = self
            .processes
            .iter()
            .filter(|(_, process)| process.owner.is_none());
        let oldest = strangers
            .clone()
            .min_by_key(|(_, process)| process.start_ticks)
            .map(|(pid, _)| *pid);
        if strangers.count() > STRANGERS
            && let Some(oldest) = oldest
        {
            self.processes.remove(&oldest);
        }
    }

    /// A pid comes back in another tick: the kernel goes through all others first.
    fn start_ticks(&mut self, now: MonoTime, pid: u32) -> u64 {
        let ticks = u64::try_from(now.since_boot().as_millis() / 10).unwrap_or(u64::MAX);
        let start = self
            .last_start
            .get(&pid)
            .map_or(ticks, |last| ticks.max(last + 1));
        self.last_start.insert(pid, start);
        start
    }

    /// The processes of a workload.
    #[must_use]
    pub fn of(&self, id: WorkloadId) -> Vec<ProcessIdentity> {
        let boot = self.boot;
        self.processes
            .iter()
            .filter(|(_, process)| process.owner == Some(id))
            .map(|(pid, process)| ProcessIdentity {
                pid: *pid,
                start_ticks: process.start_ticks,
                boot,
            })
            .collect()
    }

    /// The process with this identity.
    pub fn find(&mut self, identity: ProcessIdentity) -> Option<&mut Process> {
        let boot = self.boot;
        self.processes
            .get_mut(&identity.pid)
            .filter(|process| process.start_ticks == identity.start_ticks && identity.boot == boot)
    }

    /// Whether the workload's guest runs.
    #[must_use]
    pub fn guest_runs(&self, id: WorkloadId) -> bool {
        self.processes
            .values()
            .any(|process| process.owner == Some(id) && process.mode == Mode::Running)
    }

    /// A guest begins or goes on: memory changes.
    pub fn run(&mut self, id: WorkloadId) -> bool {
        let mut any = false;
        for process in self
            .processes
            .values_mut()
            .filter(|process| process.owner == Some(id))
        {
            any = true;
            if process.mode == Mode::Paused {
                process.mode = Mode::Running;
                self.memory.entry(id).or_default().version += 1;
            }
        }
        any
    }

    /// Stops a guest's processors.
    pub fn pause(&mut self, id: WorkloadId) -> bool {
        let mut any = false;
        for process in self
            .processes
            .values_mut()
            .filter(|process| process.owner == Some(id))
        {
            any = true;
            process.mode = Mode::Paused;
        }
        any
    }

    /// Ends every process of a workload.
    pub fn end(&mut self, id: WorkloadId) -> Vec<ProcessIdentity> {
        let ended = self.of(id);
        self.processes.retain(|_, process| process.owner != Some(id));
        ended
    }

    /// A fresh memory for a guest that boots.
    pub fn new_memory(&mut self, id: WorkloadId) {
        self.inodes += 1;
        let version = self.memory.get(&id).map_or(0, |memory| memory.version) + 1;
        let memory = Memory {
            version,
            resident: Some(self.inodes),
            ..Memory::default()
        };
        self.memory.insert(id, memory);
    }

    /// Saves device state, and private memory with it. `None` when there is nothing to save.
    pub fn save(&mut self, id: WorkloadId, generation: Generation) -> Option<MemoryImage> {
        let boot = self.boot;
        let memory = self.memory.get_mut(&id)?;
        memory.device_state = Some((generation, memory.version));
        let kept = if memory.private {
            memory.disk = Some((memory.version, Flushed::No));
            Kept::Spilled {
                inode: memory.disk_inode,
            }
        } else {
            Kept::Resident {
                inode: memory.resident?,
            }
        };
        Some(MemoryImage {
            generation,
            boot,
            kept,
            expected: Expected::default(),
            settled: Settled::Open,
        })
    }

    /// Copies memory to a new file on disk, with its digest.
    pub fn spill(&mut self, id: WorkloadId, image: MemoryImage) -> Option<MemoryImage> {
        self.inodes += 1;
        let inode = self.inodes;
        let memory = self.memory.get_mut(&id)?;
        memory.resident?;
        memory.disk = Some((memory.version, Flushed::Yes));
        memory.disk_inode = inode;
        Some(MemoryImage {
            kept: Kept::Spilled { inode },
            settled: Settled::At(digest(memory.version)),
            ..image
        })
    }

    /// Flushes memory on disk and takes its digest, or compares it with the digest of an earlier boot.
    ///
    /// # Errors
    /// When it is not what it was.
    pub fn settle(&mut self, id: WorkloadId, image: MemoryImage) -> Result<MemoryImage, Lost> {
        let lost = |fault| Lost::plain(ImagePart::Memory, fault);
        let memory = self.memory.get_mut(&id).ok_or_else(|| lost(PartFault::Missing))?;
        let (version, _) = memory.disk.ok_or_else(|| lost(PartFault::Missing))?;
        let found = digest(version);
        match image.settled {
            Settled::Open => memory.disk = Some((version, Flushed::Yes)),
            Settled::At(wanted) if wanted == found => {}
            Settled::At(_) => return Err(lost(PartFault::Digest)),
        }
        Ok(MemoryImage {
            boot: self.boot,
            kept: Kept::Spilled {
                inode: memory.disk_inode,
            },
            settled: Settled::At(found),
            ..image
        })
    }

    /// Whether an image can be loaded, and whether doing so is right. `Err` is what a driver would
    /// refuse; `Ok(false)` is what only the world knows: the guest has run since.
    ///
    /// # Errors
    /// When the image is not there.
    pub fn load(&mut self, id: WorkloadId, image: MemoryImage) -> Result<bool, String> {
        let boot = self.boot;
        let memory = self.memory.get_mut(&id).ok_or("no memory")?;
        let (generation, version) = memory.device_state.ok_or("no device state")?;
        if generation != image.generation {
            return Err(format!("device state {generation}, wanted {}", image.generation));
        }
        let held = match image.kept {
            Kept::Resident { inode } if memory.resident == Some(inode) && boot == image.boot => {
                memory.private = false;
                memory.version
            }
            Kept::Resident { .. } => return Err("the memory file is another one".to_owned()),
            Kept::Spilled { inode } if boot == image.boot && memory.disk_inode != inode => {
                return Err("the memory file is another one".to_owned());
            }
            Kept::Spilled { .. } => {
                memory.private = true;
                memory.resident = None;
                memory.disk.ok_or("no memory file on disk")?.0
            }
        };
        // What is loaded from disk is that version, whatever ran since.
        let right = held == version && memory.version == version;
        Ok(right)
    }

    /// The host loses power and comes back: processes and tmpfs are gone, and of the files that were not
    /// flushed those are torn that `tears` says.
    pub fn reboot(&mut self, mut tears: impl FnMut() -> bool) {
        self.boot = BootId(self.boot.0 + 1);
        self.processes.clear();
        for memory in self.memory.values_mut() {
            memory.resident = None;
            if let Some((version, Flushed::No)) = memory.disk {
                let left = if tears() { TORN } else { version };
                memory.disk = Some((left, Flushed::Yes));
            }
        }
    }
}
