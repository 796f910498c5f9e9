//! Ends of a lab's daemon and keeper, and starts after them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_sys::pidfd::PidFd;
use nix::sys::signal::Signal;

use super::footprint::locked;
use super::{Lab, ms_between, tick, wait_exit};

/// How long a second daemon may take to be refused.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(20);

/// How a daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndOfDaemon {
    /// SIGTERM.
    Asked,
    /// SIGKILL.
    Killed,
}

/// One restart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restarted {
    /// Milliseconds from the signal to the next daemon's first answer.
    pub gap_ms: f64,
    /// Milliseconds from the start of the process to that.
    pub serving_ms: f64,
}

impl Lab {
    /// Ends the daemon.
    pub(crate) fn end_daemon(&mut self, how: EndOfDaemon) -> Result<()> {
        self.client = None;
        match how {
            EndOfDaemon::Asked => self.footprint.stop_daemon(),
            EndOfDaemon::Killed => self.footprint.kill_daemon(),
        }
    }

    /// Tells the daemon to end, and `pause` later once more; how it ended, and how long that took from the second.
    pub(crate) fn end_daemon_twice(&mut self, pause: Duration) -> Result<(ExitStatus, Duration)> {
        self.client = None;
        let child = locked(&self.footprint.daemon).take();
        let mut child = child.context("there is no daemon to end")?;
        let daemon = PidFd::open(child.id()).context("opening the daemon")?;
        let tell = || {
            daemon
                .signal(Signal::SIGTERM)
                .context("telling the daemon to end")
        };
        tell()?;
        let first = wait_exit(&daemon, pause);
        let told = Instant::now();
        if first.is_err() {
            tell()?;
        }
        let ended = wait_exit(&daemon, REFUSAL_DEADLINE);
        if ended.is_err() {
            child.kill().context("killing the daemon")?;
        }
        let status = child.wait().context("waiting for the daemon")?;
        ensure!(first.is_err(), "it ended at the first signal with {status}");
        Ok((status, ended?.saturating_duration_since(told)))
    }

    /// Ends the daemon and starts the next; returns when it answers.
    pub(crate) fn restart_daemon(&mut self, how: EndOfDaemon) -> Result<Restarted> {
        let begun = Instant::now();
        self.end_daemon(how)?;
        let started = Instant::now();
        self.start_daemon()?;
        let serving = Instant::now();
        Ok(Restarted {
            gap_ms: ms_between(begun, serving),
            serving_ms: ms_between(started, serving),
        })
    }

    /// Copies the daemons' log to where the lab's end leaves it.
    pub(crate) fn keep_log(&self, to: &Path) -> Result<()> {
        fs::copy(self.log(), to)
            .map(drop)
            .with_context(|| format!("copying the log to {}", to.display()))
    }

    /// The keeper of descriptors; `None` while there is none.
    pub(crate) fn keeper(&self) -> Option<u32> {
        let socket = self.footprint.run.join("keeper.sock");
        let wanted = format!("dormouse-keeper\0{}\0", socket.display());
        let entries = fs::read_dir("/proc").ok()?;
        entries.flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&arguments)
                .ends_with(&wanted)
                .then_some(pid)
        })
    }

    /// Kills the keeper; `false` when there was none.
    pub(crate) fn kill_keeper(&self) -> Result<bool> {
        let Some(pid) = self.keeper() else {
            return Ok(false);
        };
        let keeper = PidFd::open(pid).context("opening the keeper")?;
        keeper.signal(Signal::SIGKILL).context("killing the keeper")?;
        wait_exit(&keeper, Duration::from_secs(5)).context("the keeper")?;
        Ok(true)
    }

    /// Waits for a keeper; whether one came.
    pub(crate) fn await_keeper(&self, deadline: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < deadline {
            if self.keeper().is_some() {
                return true;
            }
            tick(Duration::from_millis(20));
        }
        false
    }

    /// Starts another daemon over the same data; how it ended, and what it said.
    pub(crate) fn second_daemon(&self) -> Result<(ExitStatus, String)> {
        let path = self.footprint.data.join("second.log");
        let log = File::create(&path).context("making a log")?;
        let mut child = Command::new(&self.parts.daemon)
            .arg("--config")
            .arg(self.config())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting a second daemon")?;
        let process = PidFd::open(child.id()).context("opening the second daemon")?;
        let ended = wait_exit(&process, REFUSAL_DEADLINE);
        if ended.is_err() {
            child.kill().context("killing the second daemon")?;
        }
        let status = child.wait().context("waiting for the second daemon")?;
        ensure!(ended.is_ok(), "a second daemon of the same data was not refused");
        Ok((status, fs::read_to_string(&path).unwrap_or_default()))
    }
}
