//! Putting a VMM together: disks, descriptors, launch, restore, and its end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use dormouse_cgroup::Entrance;
use dormouse_hypervisor::{
    BootPart, Deadline, DiskPart, LaunchSpec, OpenError, Parts, ProgramPart, RamPart, SocketPart, TRANSLATION,
};
use dormouse_keeper::HeldKind;
use dormouse_model::error::chain;
use dormouse_model::{Bytes, ImagePart, Lost, PartFault};
use dormouse_sys::pidfd::PidFd;
use dormouse_sys::spawn::{CgroupEntrance, Identity};
use nix::sys::signal::Signal;

use super::{
    Change, Outcome, StepContext, TapEnd, blocking, distrust, failure, file_failure, give, missing, open_log,
};
use crate::agent::{DISK_SERIAL, ROOT_SERIAL};
use crate::machine::{Done, Kept, MemoryImage, StepFailure};
use crate::memory::files::sync_directory;
use crate::memory::{GuestRam, Home, MemoryError, Sharing};
use crate::sweep::remove_tree;
use crate::trust::TrustError;
use crate::trust::check::Check;
use crate::trust::manifest::MonitorPart;

/// Most time for a process to launch or to load a guest.
const PROCESS: std::time::Duration = std::time::Duration::from_secs(55);

/// How often, and after which pause, a group is looked at until its killed processes are gone.
const EMPTY_TRIES: u32 = 200;
const EMPTY_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// How often, and after which pause, the removal of a group is tried whose processes are gone.
const GONE_TRIES: u32 = 50;
const GONE_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// How long a wake goes before background reading: until its guest has answered, usually.
pub(super) const WAKE: std::time::Duration = std::time::Duration::from_millis(500);

impl StepContext {
    /// Makes the folders and the writable disk; a disk that exists is kept.
    pub(super) async fn prepare_disks(self) -> Outcome {
        let id = self.remembered.view.id;
        let layout = self.rooms.layout.clone();
        let (uid, size) = (self.remembered.uid, self.remembered.view.spec.disk);
        let had_one = self.remembered.view.started_at.is_some();
        self.alone(move || {
            for folder in [layout.instance(id), layout.sockets(id)] {
                fs::create_dir_all(&folder).map_err(|error| file_failure("making", &folder, &error))?;
            }
            let disk = layout.disk(id);
            if !has_disk(&disk, had_one)? {
                make_disk(&disk, size)?;
                // The names of what a sleep of it will flush: once, here, where nobody waits for milliseconds.
                let folder = layout.instance(id);
                for folder in [folder.parent().unwrap_or(&folder), &folder] {
                    sync_directory(folder).map_err(|error| failure(&error))?;
                }
            }
            give(&disk, uid)
        })
        .await
        .map(super::plain)
    }

    /// Boots the guest in a new process.
    pub(super) async fn launch(self) -> Outcome {
        let view = &self.remembered.view;
        let ram = GuestRam::fresh(view.memory.placement, view.memory.size);
        let files = self.rooms.layout.images();
        let (id, uid) = (view.id, self.remembered.uid);
        let file = self
            .alone(move || files.create(id, &ram, uid).map_err(|error| failure(&error)))
            .await?;
        let boot = self
            .rooms
            .boot
            .as_ref()
            .map_err(|why| StepFailure::Lasting { why: why.clone() })?;
        let (monitor, program) = self.own_program().await?;
        let mut parts = self.parts(file, ram)?;
        parts.program = program;
        parts.boot = Some(BootPart {
            kernel: open(&boot.kernel)?,
            initrd: Some(open(&boot.initrd)?),
            command_line: boot.command_line.clone(),
        });
        let vm = self
            .rooms
            .driver
            .launch(&self.machine(), parts, Deadline::now() + PROCESS)
            .await
            .map_err(|error| failure(&error))?;
        let vm = Arc::from(vm);
        self.hold_process(&vm);
        Ok((
            Done::Process(super::identity_of(vm.process())),
            Change::Started { vm, ram, monitor },
        ))
    }

    /// Loads `image` into a new process; the guest stays paused.
    pub(super) async fn restore(self, image: MemoryImage) -> Outcome {
        self.rooms.background.precedence.claim(WAKE);
        let view = &self.remembered.view;
        let home = match image.kept {
            Kept::Resident { .. } => Home::Tmpfs,
            Kept::Spilled { .. } => Home::Disk,
        };
        let ram = GuestRam { home, ..view.memory }.woken();
        let (layout, id, boot) = (self.rooms.layout.clone(), view.id, self.rooms.boot());
        let (sound, file) = blocking(move || {
            let file = layout.images().open(id, &ram).map_err(unopened)?;
            let check = Check {
                layout: &layout,
                id,
                image,
                boot,
            };
            let sound = check.parts(&file).map_err(distrust)?;
            Ok((sound, file))
        })
        .await?;
        self.check_monitor(&sound.monitor)?;
        let (state, monitor) = (sound.state, sound.monitor.kept);
        let program = self.kept_program(&monitor).await?;
        let mut parts = self.parts(file, ram)?;
        parts.program = program;
        let agent = connect_early(&parts.agent.path);
        let vm = self
            .rooms
            .driver
            .restore(&self.machine(), parts, state, Deadline::now() + PROCESS)
            .await
            .map_err(|error| failure(&error))?;
        let vm = Arc::from(vm);
        self.hold_process(&vm);
        Ok((
            Done::Process(super::identity_of(vm.process())),
            Change::Restored {
                vm,
                ram,
                agent,
                monitor,
            },
        ))
    }

    /// Who would save the guest now.
    pub(super) fn monitor_part(&self) -> MonitorPart {
        MonitorPart {
            driver: self.rooms.driver.kind().as_str().to_owned(),
            version: self.rooms.probe.version.clone(),
            kept: self.remembered.view.monitor.clone(),
            translation: TRANSLATION,
        }
    }

    /// Device state is loaded by the driver, and over the translation, that it was saved by.
    fn check_monitor(&self, saved: &MonitorPart) -> Result<(), StepFailure> {
        const PART: ImagePart = ImagePart::Monitor;
        let lost = |fault, found: &str, wanted: &str| {
            StepFailure::untrusted(Lost::differs(PART, fault, found, wanted))
        };
        let driver = self.rooms.driver.kind().as_str();
        if saved.driver != driver {
            return Err(lost(PartFault::Unsupported, driver, &saved.driver));
        }
        if saved.translation != TRANSLATION {
            let (known, wanted) = (TRANSLATION.to_string(), saved.translation.to_string());
            return Err(lost(PartFault::Version, &known, &wanted));
        }
        let version = &self.rooms.probe.version;
        if saved.kept.is_empty() && saved.version != *version {
            return Err(lost(PartFault::Version, version, &saved.version));
        }
        Ok(())
    }

    /// The host's program, kept from now on, and its name; nothing of a driver without one.
    async fn own_program(&self) -> Result<(String, Option<ProgramPart>), StepFailure> {
        let Some(source) = self.rooms.probe.program.clone() else {
            return Ok((String::new(), None));
        };
        let kept = Arc::clone(&self.rooms.kept);
        blocking(move || {
            let name = kept.keep(&source).map_err(|error| failure(&error))?;
            let part = kept.open(&name).map_err(|error| failure(&error))?;
            Ok((name, Some(part)))
        })
        .await
    }

    /// The program that saved an image.
    async fn kept_program(&self, name: &str) -> Result<Option<ProgramPart>, StepFailure> {
        if name.is_empty() {
            return Ok(None);
        }
        let (kept, name) = (Arc::clone(&self.rooms.kept), name.to_owned());
        blocking(move || {
            kept.open(&name).map(Some).map_err(|error| match error {
                OpenError::Lost(lost) => StepFailure::untrusted(lost),
                // Nothing is said of the image: the next wake looks again.
                OpenError::File(error) => StepFailure::Passing { why: chain(&error) },
            })
        })
        .await
    }

    fn machine(&self) -> LaunchSpec {
        let view = &self.remembered.view;
        LaunchSpec {
            id: view.id,
            vcpus: view.spec.vcpus,
            mac: Some(view.addresses.mac),
        }
    }

    /// The descriptors of a VMM over the RAM in `file`.
    fn parts(&self, file: File, ram: GuestRam) -> Result<Parts, StepFailure> {
        let view = &self.remembered.view;
        let (layout, id, uid) = (&self.rooms.layout, view.id, self.remembered.uid);
        let tap = self.parts.tap.as_ref().ok_or_else(|| missing("tap"))?;
        let tap = tap
            .try_clone()
            .map_err(|error| file_failure("duplicating", Path::new("tap"), &error))?;
        let sharing = match ram.sharing {
            Sharing::Shared => dormouse_hypervisor::Sharing::Shared,
            Sharing::Private => dormouse_hypervisor::Sharing::Private,
        };
        let root = self.rooms.images.root_file_system(&view.image_digest);
        let group = self
            .rooms
            .cgroups
            .group(&id.mark())
            .map_err(|error| failure(&error))?;
        let entrance = match group.entrance().map_err(|error| failure(&error))? {
            Entrance::Directory(directory) => CgroupEntrance::Directory(directory.into()),
            Entrance::Members(members) => CgroupEntrance::Members(members.into()),
        };
        Ok(Parts {
            program: None,
            ram: RamPart {
                file: file.into(),
                size: ram.size,
                sharing,
            },
            boot: None,
            disks: vec![
                DiskPart {
                    file: open(&root)?,
                    readonly: true,
                    serial: ROOT_SERIAL.to_owned(),
                },
                DiskPart {
                    file: open_writable(&layout.disk(id))?,
                    readonly: false,
                    serial: DISK_SERIAL.to_owned(),
                },
            ],
            tap: Some(tap),
            control: listen(&layout.control_socket(id))?,
            agent: listen(&layout.agent_socket(id))?,
            console: open_log(&layout.console_log(id))?.into(),
            log: open_log(&layout.vmm_log(id))?.into(),
            identity: Some(Identity { uid, gid: uid }),
            cgroups: vec![entrance],
            namespaces: vec![self.vmm_namespace()?],
        })
    }

    fn vmm_namespace(&self) -> Result<OwnedFd, StepFailure> {
        let namespace = self.rooms.vmm_namespace.as_fd().try_clone_to_owned();
        namespace.map_err(|error| file_failure("duplicating", Path::new("network namespace"), &error))
    }

    /// Has a new VMM's pidfd kept, by which a later daemon learns how it ended.
    fn hold_process(&self, vm: &Arc<dyn dormouse_hypervisor::Vm>) {
        if let Ok(process) = PidFd::open(vm.process().pid) {
            self.hold("process", HeldKind::Process, process.into_descriptor());
        }
    }

    /// Ends the process and drops the tap. Whatever else sits in the instance's group is ended too:
    /// a launch that was cut short may have left a process that nobody has a handle of.
    pub(super) async fn end_process(self, tap: TapEnd) -> Outcome {
        if let Some(vm) = &self.parts.vm {
            vm.kill().await.map_err(|error| failure(&error))?;
        }
        let group = self
            .rooms
            .cgroups
            .group(&self.remembered.view.id.mark())
            .map_err(|error| failure(&error))?;
        let members = group.members().map_err(|error| failure(&error))?;
        if !members.is_empty() {
            end_members(&group, &members).await?;
        }
        self.let_keeper_go();
        // Nothing of a process stays in the kernel: ten thousand sleepers have no group and no socket.
        remove_group(&group).await;
        // A launch makes it again.
        let sockets = self.rooms.layout.sockets(self.remembered.view.id);
        remove_tree(&sockets).map_err(|error| file_failure("removing", &sockets, &error))?;
        if let Some(link) = &self.parts.link {
            let ended = match tap {
                TapEnd::Awaited => link.drop_tap().await,
                TapEnd::Abandoned => link.abandon_tap().await,
            };
            ended.map_err(|error| failure(&error))?;
        }
        Ok((Done::Plain, Change::LetGo))
    }
}

/// Removes the group of a process that is gone. The kernel may call it busy for a moment; one that stays is
/// looked at again by the next daemon, and used again by the next launch.
async fn remove_group(group: &dormouse_cgroup::Group) {
    for _ in 1..GONE_TRIES {
        if group.remove(1, |_| ()).is_ok() {
            return;
        }
        tokio::time::sleep(GONE_PAUSE).await;
    }
    if let Err(error) = group.remove(1, |_| ()) {
        tracing::warn!(error = %chain(&error), "a control group is left");
    }
}

/// A memory file that cannot be opened: gone, or of another length, it is lost.
fn unopened(error: MemoryError) -> StepFailure {
    const PART: ImagePart = ImagePart::Memory;
    match error {
        MemoryError::Size { want, found, .. } => {
            StepFailure::untrusted(Lost::differs(PART, PartFault::Size, found.0, want.0))
        }
        MemoryError::Open { path, source } => distrust(TrustError::of(PART, &path, source)),
        other @ (MemoryError::Make { .. } | MemoryError::Remove { .. } | MemoryError::Reserve { .. }) => {
            failure(&other)
        }
    }
}

/// Whether there is a writable disk. One that cannot be looked at is not made anew, which would replace it; nor
/// is one that a guest has written to and that is gone: an empty one in its place would be another's.
fn has_disk(disk: &Path, had_one: bool) -> Result<bool, StepFailure> {
    let there = disk
        .try_exists()
        .map_err(|error| file_failure("looking at", disk, &error))?;
    if had_one && !there {
        let why = format!("its writable disk {} is gone: put it back", disk.display());
        return Err(StepFailure::Lasting { why });
    }
    Ok(there)
}

/// Makes the writable disk under another name first: one that a crash left half made is not taken for it.
fn make_disk(disk: &Path, size: Bytes) -> Result<(), StepFailure> {
    let partial = disk.with_extension("partial");
    remove_leftover(&partial)?;
    dormouse_image::disk::create_empty(&partial, size).map_err(|error| failure(&error))?;
    // Its content before its name: after a power loss a disk that is there is a file system.
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .map_err(|error| file_failure("synchronising", &partial, &error))?;
    fs::rename(&partial, disk).map_err(|error| file_failure("naming", disk, &error))?;
    let folder = disk.parent().unwrap_or(disk);
    sync_directory(folder).map_err(|error| failure(&error))
}

fn remove_leftover(path: &Path) -> Result<(), StepFailure> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_failure("removing", path, &error)),
    }
}

fn open(path: &Path) -> Result<OwnedFd, StepFailure> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|error| file_failure("opening", path, &error))
}

fn open_writable(path: &Path) -> Result<OwnedFd, StepFailure> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|error| file_failure("opening", path, &error))
}

/// Binds a socket for a VMM to listen on; replaces one that an earlier VMM left.
fn listen(path: &Path) -> Result<SocketPart, StepFailure> {
    remove_leftover(path)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| file_failure("making", folder, &error))?;
    }
    let listener = UnixListener::bind(path).map_err(|error| file_failure("binding", path, &error))?;
    Ok(SocketPart {
        listener: listener.into(),
        path: path.to_owned(),
    })
}

/// Ends the processes of a group by descriptor, and waits until it is empty.
async fn end_members(group: &dormouse_cgroup::Group, members: &[i32]) -> Result<(), StepFailure> {
    for pid in members.iter().filter_map(|pid| u32::try_from(*pid).ok()) {
        // Gone meanwhile is what is wanted.
        if let Ok(process) = PidFd::open(pid) {
            drop(process.signal(Signal::SIGKILL));
        }
    }
    for _ in 0..EMPTY_TRIES {
        if group.members().map_err(|error| failure(&error))?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(EMPTY_PAUSE).await;
    }
    Err(StepFailure::Passing {
        why: format!("processes are left in {}", group.path().display()),
    })
}

/// Connects to a socket that nobody has accepted from yet; without it the guest is only told later.
fn connect_early(path: &Path) -> Option<std::os::unix::net::UnixStream> {
    let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_once() {
        let scratch = tempfile::tempdir().unwrap();
        let disk = scratch.path().join("disk.ext4");
        assert_eq!(has_disk(&disk, false), Ok(false));
        assert!(matches!(has_disk(&disk, true), Err(StepFailure::Lasting { .. })));
        fs::write(&disk, "x").unwrap();
        assert_eq!(has_disk(&disk, true), Ok(true));
        // What cannot be looked at may be there.
        let hidden = disk.join("disk.ext4");
        for had_one in [false, true] {
            let looked = has_disk(&hidden, had_one);
            assert!(matches!(looked, Err(StepFailure::Passing { .. })), "{looked:?}");
        }
    }
}
