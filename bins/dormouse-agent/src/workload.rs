//! Starting the workload and reaping what ends.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use dormouse_guest::{Boot, Exit};
use dormouse_sys::guest::{Credentials, start_as};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, wait};

use crate::account::Account;
use crate::say;

/// Open files that a workload may have: what the kernel allows at most (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;

/// Where programs are looked up when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of one exit on the reaper's pipe: the process, then whether a signal ended it, then the
/// status or signal. Writes of this size are never torn (`PIPE_BUF`).
pub(crate) const EXIT_RECORD_LENGTH: usize = 6;

/// Why a program did not start, as a status: what shells say.
pub(crate) struct NotStarted {
    pub(crate) code: u8,
    pub(crate) problem: String,
}

/// Starts the workload. Its output goes to the console, which the VMM writes to a file, so that it
/// never waits for a reader.
pub(crate) fn start(boot: &Boot, account: &Account) -> Result<u32, NotStarted> {
    let failed = |code, problem| NotStarted { code, problem };
    let (program, arguments) = boot
        .arguments
        .split_first()
        .ok_or_else(|| failed(127, "there is no program to start".to_owned()))?;
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES) {
        say(format_args!("cannot raise the limit of open files: {errno}"));
    }
    let directory = if boot.working_directory.is_empty() {
        "/"
    } else {
        &boot.working_directory
    };
    fs::create_dir_all(directory).map_err(|error| {
        failed(
            126,
            format!("cannot make the working directory {directory}: {error}"),
        )
    })?;
    let (out, err) = console(account).map_err(|error| failed(126, format!("{error:#}")))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    command.env_clear().envs(environment(boot, account));
    let credentials = Credentials {
        uid: account.uid,
        gid: account.gid,
        groups: account.groups.clone(),
    };
    start_as(&mut command, &credentials);
    let child = command.spawn().map_err(|error| {
        let code = if error.kind() == ErrorKind::NotFound {
            127
        } else {
            126
        };
        failed(code, format!("cannot start {program:?}: {error}"))
    })?;
    // The reaper waits for it; dropping a `Child` neither waits nor kills.
    Ok(child.id())
}

/// The image's environment and what every program expects.
fn environment(boot: &Boot, account: &Account) -> Vec<(String, String)> {
    let mut variables = boot.environment.clone();
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOME", &account.home),
        ("HOSTNAME", &boot.hostname),
    ] {
        if !variables.iter().any(|(known, _)| known == name) {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables
}

/// The kernel's console, twice, with line endings left alone and owned by the workload's user, so
/// that opening `/dev/stdout` by name works for it.
fn console(account: &Account) -> Result<(Stdio, Stdio)> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let name = active.split_whitespace().next_back().unwrap_or("console");
    let path = format!("/dev/{name}");
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&path)
        .with_context(|| format!("open {path} for the workload's output"))?;
    if let Ok(mut settings) = tcgetattr(&file) {
        cfmakeraw(&mut settings);
        let _cooked = tcsetattr(&file, SetArg::TCSANOW, &settings);
    }
    let _not_owned = std::os::unix::fs::chown(&path, Some(account.uid), Some(account.gid));
    let second = file.try_clone().context("open the console twice")?;
    Ok((Stdio::from(file), Stdio::from(second)))
}

/// Reaps until there are no processes, and writes a record for each that ended. For a thread of its
/// own: it blocks.
pub(crate) fn reap(records: OwnedFd) {
    let mut records = fs::File::from(records);
    loop {
        let (pid, by_signal, value) = match wait() {
            Ok(WaitStatus::Exited(pid, code)) => (pid, 0, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 1, signal as i32),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        let [a, b, c, d] = pid.as_raw().to_ne_bytes();
        let record = [
            a,
            b,
            c,
            d,
            by_signal,
            u8::try_from(value & 0xff).unwrap_or(u8::MAX),
        ];
        if records.write_all(&record).is_err() {
            return;
        }
    }
}

/// Reads a record of [`reap`].
pub(crate) fn read_exit(record: [u8; EXIT_RECORD_LENGTH], oom_kills_before: u64) -> (u32, Exit) {
    let [a, b, c, d, by_signal, value] = record;
    let pid = u32::from_ne_bytes([a, b, c, d]);
    if by_signal == 0 {
        return (pid, Exit::Code(value));
    }
    // The kernel kills for want of memory by SIGKILL and counts it; which process it was, only its
    // log says. A kill of somebody else at the same time is taken for ours, and near enough.
    let killed = i32::from(value) == libc::SIGKILL;
    (
        pid,
        Exit::Signal {
            signal: value,
            out_of_memory: killed && oom_kills() > oom_kills_before,
        },
    )
}

/// How often the kernel has killed for want of memory since it booted.
pub(crate) fn oom_kills() -> u64 {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}
