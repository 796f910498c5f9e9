//! The process, from parts to its first answer.
//!
//! ```text
//!  connect to the listener ─▶ write the first commands ─▶ spawn ─▶ read the answers
//!  (its queue holds us)       (they wait in the socket)            (QEMU has loaded and listens)
//! ```
//! No round trip waits for another, and nothing polls: when the process is up, the questions are there.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use dormouse_sys::spawn::{FIRST_DESCRIPTOR, Program, SpawnError, Started, spawn};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::qmp::{Command, RunState};
use super::translate::{Execution, arguments};
use crate::error::DriverError;
use crate::layout::{DiskLayout, Layout, Purpose};
use crate::parts::{BootPart, Identity, LaunchSpec, Parts, Sharing};
use crate::port::Deadline;
use crate::process::Watched;

/// What to start.
pub(super) struct Plan {
    pub(super) program: PathBuf,
    pub(super) spec: LaunchSpec,
    pub(super) parts: Parts,
    /// The state to load, or nothing to boot.
    pub(super) state: Option<OwnedFd>,
    pub(super) execution: Execution,
    pub(super) sandbox: bool,
    /// The group that may open `/dev/kvm`, when that is needed.
    pub(super) groups: Vec<u32>,
}

/// What was started: the guest runs, or is loaded and paused.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) process: Watched,
    pub(super) client: Client,
    pub(super) control: PathBuf,
}

/// Starts it. Cancel safe: what was made is killed.
pub(super) async fn start(plan: Plan, deadline: Deadline) -> Result<Up, DriverError> {
    let doing = if plan.state.is_some() {
        "load the device state"
    } else {
        "launch the machine"
    };
    check(&plan)?;
    if deadline <= Deadline::now() {
        return Err(DriverError::Deadline { doing });
    }
    let control = plan.parts.control.path.clone();
    let late = |_| DriverError::Deadline { doing };
    let mut first = tokio::time::timeout_at(deadline, ask_early(&control))
        .await
        .map_err(late)??;
    let log = Log::open(plan.parts.log.as_fd()).map_err(|source| DriverError::Io { doing, source })?;
    let want = if plan.state.is_some() {
        RunState::Paused
    } else {
        RunState::Running
    };
    let newborn = tokio::task::spawn_blocking(move || spawn_monitor(&plan))
        .await
        .map_err(|error| DriverError::Io {
            doing,
            source: io::Error::other(error),
        })??;
    let process = newborn
        .watch()
        .map_err(|source| DriverError::Io { doing, source })?;
    let answered = tokio::time::timeout_at(deadline, first.until(want))
        .await
        .map_err(late)?;
    match answered {
        Ok(()) => {
            newborn.keep();
            Ok(Up {
                process,
                client: first.client,
                control,
            })
        }
        Err(error) => Err(explain(doing, error, &process, &log).await),
    }
}

/// The conversation that was begun before there was a process.
struct First {
    client: Client,
    capabilities: u64,
    status: u64,
}

async fn ask_early(control: &Path) -> Result<First, DriverError> {
    let doing = "connect to the control socket";
    let mut client = Client::connect(control)
        .await
        .map_err(|source| DriverError::Socket { doing, source })?;
    let sent = async {
        let capabilities = client.send(Command::Capabilities, None).await?;
        let status = client.send(Command::QueryStatus, None).await?;
        Ok::<_, ClientError>((capabilities, status))
    };
    match sent.await {
        Ok((capabilities, status)) => Ok(First {
            client,
            capabilities,
            status,
        }),
        Err(error) => Err(of_client(doing, error)),
    }
}

impl First {
    async fn until(&mut self, want: RunState) -> Result<(), ClientError> {
        self.client
            .answer(self.capabilities, Command::Capabilities)
            .await?;
        let mut answer = self.client.answer(self.status, Command::QueryStatus).await?;
        loop {
            match run_state(&answer)? {
                // The load occupies the thread that would answer: this turns at most a few times.
                RunState::Loading => answer = self.client.execute(Command::QueryStatus).await?,
                got if got == want => return Ok(()),
                got @ (RunState::Running | RunState::Paused | RunState::Ended) => {
                    let description = format!("it is {got:?} and should be {want:?}");
                    return Err(ClientError::Refused {
                        command: Command::QueryStatus.name(),
                        description,
                    });
                }
            }
        }
    }
}

/// Reads a run state out of an answer.
pub(super) fn run_state(answer: &Value) -> Result<RunState, ClientError> {
    RunState::parse(answer).map_err(|name| ClientError::Refused {
        command: Command::QueryStatus.name(),
        description: format!("its run state is {name}"),
    })
}

/// Says why a start failed, best of all in the monitor's own words.
async fn explain(doing: &'static str, error: ClientError, process: &Watched, log: &Log) -> DriverError {
    if !matches!(error, ClientError::Closed) {
        return of_client(doing, error);
    }
    // The socket closes a moment before the process is gone.
    let soon = Deadline::now() + std::time::Duration::from_secs(1);
    match tokio::time::timeout_at(soon, process.ended()).await {
        Ok(exit) => DriverError::Ended {
            doing,
            reason: exit.into(),
            said: log.tail(),
        },
        Err(_) => of_client(doing, error),
    }
}

/// A client's error in the words of the port.
pub(super) fn of_client(doing: &'static str, error: ClientError) -> DriverError {
    match error {
        ClientError::Refused { command, description } => DriverError::Refused {
            doing,
            command,
            description,
        },
        ClientError::Closed => DriverError::Socket {
            doing,
            source: io::ErrorKind::ConnectionAborted.into(),
        },
        ClientError::Socket(source) => DriverError::Socket { doing, source },
        ClientError::Wire(wire) => DriverError::Protocol {
            doing,
            what: wire.to_string(),
        },
    }
}

/// What the types of the parts cannot say.
fn check(plan: &Plan) -> Result<(), DriverError> {
    let fail = |part, why: &str| {
        Err(DriverError::Part {
            part,
            why: why.to_owned(),
        })
    };
    let parts = &plan.parts;
    if plan.spec.vcpus == 0 {
        return fail("specification", "it has no processors");
    }
    if parts.tap.is_some() != plan.spec.mac.is_some() {
        return fail("tap", "a tap and a MAC address come together or not at all");
    }
    if parts.boot.is_none() && plan.state.is_none() {
        return fail("boot part", "a launch needs a kernel");
    }
    for disk in &parts.disks {
        let letters = disk
            .serial
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if disk.serial.is_empty() || disk.serial.len() > 20 || !letters {
            return fail("disk", "its serial is not 1 to 20 letters, digits and dashes");
        }
    }
    Ok(())
}

/// Makes the process; blocks for about a millisecond. The parts are closed here on return.
fn spawn_monitor(plan: &Plan) -> Result<Newborn, DriverError> {
    let doing = "prepare the parts";
    let io_error = |source| DriverError::Io { doing, source };
    give_ram(plan)?;
    let console = write_only(plan.parts.console.as_fd(), true).map_err(io_error)?;
    let mut numbers = Numbers::default();
    let layout = lay_out(plan, console.as_fd(), &mut numbers);
    let name = plan.program.as_os_str().as_bytes();
    let kept = plan.parts.program.as_ref().map(|part| {
        let program = numbers.take(part.program.as_fd());
        let modules = numbers.take(part.modules.as_fd());
        (Layout::path(program), Layout::path(modules), &part.data)
    });
    let mut words = arguments(&plan.spec, &layout, plan.execution, plan.sandbox);
    let mut environment = Vec::new();
    if let Some((_, modules, data)) = &kept {
        // Started from elsewhere it finds neither beside itself.
        environment.push(format!("QEMU_MODULE_DIR={modules}"));
        for directory in *data {
            words.extend(["-L".to_owned(), directory.display().to_string()]);
        }
    }
    let mut argv = Vec::with_capacity(words.len() + 1);
    for word in std::iter::once(name.to_vec()).chain(words.into_iter().map(String::into_bytes)) {
        let nul = |_| DriverError::Part {
            part: "command line",
            why: "it has a NUL byte".into(),
        };
        argv.push(CString::new(word).map_err(nul)?);
    }
    let path = match &kept {
        // By its descriptor: its user has no way to where it is kept.
        Some((program, ..)) => CString::new(program.as_str()).unwrap_or_default(),
        None => argv.first().cloned().unwrap_or_default(),
    };
    let environment: Vec<CString> = environment
        .into_iter()
        .filter_map(|variable| CString::new(variable).ok())
        .collect();
    let namespaces: Vec<_> = plan.parts.namespaces.iter().map(AsFd::as_fd).collect();
    let started = spawn(&Program {
        path: &path,
        arguments: &argv,
        environment: &environment,
        descriptors: &numbers.0,
        output: plan.parts.log.as_fd(),
        identity: plan.parts.identity,
        groups: &plan.groups,
        cgroups: &plan.parts.cgroups,
        namespaces: &namespaces,
        refuse_fallocate: plan.parts.ram.sharing == Sharing::Private,
    });
    Newborn::new(started)
}

/// QEMU opens the file behind the descriptor again, with the rights of its user.
fn give_ram(plan: &Plan) -> Result<(), DriverError> {
    let file = &plan.parts.ram.file;
    let fail = |source| DriverError::Io {
        doing: "give the RAM file to the monitor's user",
        source,
    };
    let found = File::from(file.try_clone().map_err(fail)?)
        .metadata()
        .map_err(fail)?;
    if found.len() < plan.parts.ram.size.0 {
        let why = format!("it has {} bytes, fewer than the guest's RAM", found.len());
        return Err(DriverError::Part {
            part: "RAM file",
            why,
        });
    }
    match plan.parts.identity {
        Some(Identity { uid, gid }) if (found.uid(), found.gid()) != (uid, gid) => {
            fchown(file, Some(uid), Some(gid)).map_err(fail)
        }
        Some(_) | None => Ok(()),
    }
}

/// The descriptors in the order of their numbers in the new process.
#[derive(Default)]
struct Numbers<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Numbers<'a> {
    fn take(&mut self, descriptor: BorrowedFd<'a>) -> i32 {
        self.0.push(descriptor);
        FIRST_DESCRIPTOR + i32::try_from(self.0.len() - 1).unwrap_or(i32::MAX)
    }
}

fn lay_out<'a>(plan: &'a Plan, console: BorrowedFd<'a>, numbers: &mut Numbers<'a>) -> Layout {
    let parts = &plan.parts;
    Layout {
        ram: numbers.take(parts.ram.file.as_fd()),
        ram_size: parts.ram.size,
        sharing: parts.ram.sharing,
        control: numbers.take(parts.control.listener.as_fd()),
        agent: numbers.take(parts.agent.listener.as_fd()),
        console: numbers.take(console),
        tap: parts.tap.as_ref().map(|tap| numbers.take(tap.as_fd())),
        disks: (parts.disks.iter())
            .map(|disk| DiskLayout {
                number: numbers.take(disk.file.as_fd()),
                readonly: disk.readonly,
                serial: disk.serial.clone(),
            })
            .collect(),
        purpose: match (&plan.state, &parts.boot) {
            (Some(state), _) => Purpose::Restore {
                state: numbers.take(state.as_fd()),
            },
            (None, Some(boot)) => boot_purpose(boot, numbers),
            // Refused by `check`.
            (None, None) => Purpose::Restore { state: -1 },
        },
    }
}

fn boot_purpose<'a>(boot: &'a BootPart, numbers: &mut Numbers<'a>) -> Purpose {
    Purpose::Boot {
        kernel: numbers.take(boot.kernel.as_fd()),
        initrd: boot.initrd.as_ref().map(|initrd| numbers.take(initrd.as_fd())),
        command_line: boot.command_line.clone(),
    }
}

/// The same file opened for writing alone: QEMU takes from a descriptor set only what is opened exactly
/// as it wants.
pub(super) fn write_only(file: BorrowedFd<'_>, append: bool) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    let appends = flags.contains(OFlag::O_APPEND);
    if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY && (appends || !append) {
        return file.try_clone_to_owned();
    }
    let path = Layout::path(file.as_raw_fd());
    Ok(File::options().write(true).append(append).open(path)?.into())
}

/// A process that is killed unless it is kept: a start that fails or is dropped leaves nothing.
pub(super) struct Newborn {
    started: Option<Started>,
}

impl Newborn {
    pub(super) fn new(started: Result<Started, SpawnError>) -> Result<Self, DriverError> {
        started
            .map(|started| Self {
                started: Some(started),
            })
            .map_err(DriverError::Start)
    }

    pub(super) fn watch(&self) -> io::Result<Watched> {
        let started = self.started.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Watched::started(started.pid, started.pidfd.try_clone()?)
    }

    fn keep(mut self) {
        self.started = None;
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        let Some(started) = &self.started else { return };
        // It may have ended by itself.
        let _ = started.pidfd.signal(Signal::SIGKILL);
        let mut ended = [PollFd::new(started.pidfd.as_fd(), PollFlags::POLLIN)];
        // A killed process is gone in 20 ms; one that hangs in the kernel is left behind after a second.
        if matches!(poll(&mut ended, 1_000_u16), Ok(1)) {
            let _ = started.pidfd.exit();
        }
    }
}

/// The end of the monitor's log, from where it stood before the start.
struct Log {
    file: File,
    from: u64,
}

impl Log {
    fn open(log: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::open(Layout::path(log.as_raw_fd()))?;
        let from = file.metadata()?.len();
        Ok(Self { file, from })
    }

    /// The last lines, at most 400 bytes, in one line.
    fn tail(&self) -> String {
        let mut buffer = [0; 400];
        let end = self.file.metadata().map_or(0, |data| data.len());
        let start = end.saturating_sub(buffer.len() as u64).max(self.from);
        let read = self.file.read_at(&mut buffer, start).unwrap_or(0);
        let text = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default());
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }
}
