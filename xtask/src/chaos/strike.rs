//! Killing, by pidfd, and nobody else than the lab's own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_sys::pidfd::PidFd;
use nix::sys::signal::Signal;

use super::gather::{self, Role, Site};
use super::schedule::Target;
use super::thing::{Census, Kind, Thing};
use crate::lab::{Lab, wait_exit};

/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Who was killed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Struck {
    /// Whether the daemon was.
    pub daemon: bool,
    /// Whether the keeper was.
    pub keeper: bool,
    /// The mark of the instance whose VMM was.
    pub vmm: Option<String>,
}

/// The processes of the lab that could be killed.
#[derive(Debug)]
pub(crate) struct Aim {
    roles: BTreeMap<u32, Role>,
}

impl Aim {
    /// Looks who is there.
    pub(crate) fn take(site: &Site) -> Self {
        Self {
            roles: gather::processes(site, &mut Census::default()),
        }
    }

    fn pid(&self, wanted: impl Fn(&Role) -> bool) -> Option<u32> {
        self.roles
            .iter()
            .find(|(_, role)| wanted(role))
            .map(|(pid, _)| *pid)
    }

    /// Whether the keeper is there.
    pub(crate) fn has_keeper(&self) -> bool {
        self.pid(|role| *role == Role::Keeper).is_some()
    }

    /// Whether the daemon holds the tap of this name.
    pub(crate) fn daemon_holds(&self, tap: &str) -> bool {
        let mut census = Census::default();
        if let Some(pid) = self.pid(|role| *role == Role::Daemon) {
            gather::descriptors(pid, "daemon", &mut census);
        }
        census.of(&Thing::new(Kind::Descriptor, format!("daemon tap {tap}"))) > 0
    }

    /// The mark of the VMM to kill: that of `subject` if it has one, or any of `others`.
    pub(crate) fn vmm(&self, subject: Option<&str>, others: &[String]) -> Option<String> {
        let lives = |mark: &str| self.pid(|role| *role == Role::Vmm(mark.to_owned())).is_some();
        let own = subject.filter(|mark| lives(mark)).map(str::to_owned);
        own.or_else(|| others.iter().find(|mark| lives(mark)).cloned())
    }

    /// Kills the target; `vmm` is the mark of the VMM that is meant. Returns once they are gone.
    pub(crate) fn strike(&self, target: Target, vmm: Option<&str>, lab: &mut Lab) -> Result<Struck> {
        let (daemon, keeper, process) = match target {
            Target::Daemon => (true, false, false),
            Target::Keeper => (false, true, false),
            Target::Vmm => (false, false, true),
            Target::All => (true, true, true),
        };
        let mut struck = Struck::default();
        let mut aimed = Vec::new();
        let mut aim = |wanted: bool, is: &dyn Fn(&Role) -> bool| -> bool {
            let pid = if wanted { self.pid(is) } else { None };
            // One that has ended meanwhile needs no kill.
            let process = pid.and_then(|pid| PidFd::open(pid).ok());
            let found = process.is_some();
            aimed.extend(process);
            found
        };
        struck.daemon = aim(daemon, &|role| *role == Role::Daemon);
        struck.keeper = aim(keeper, &|role| *role == Role::Keeper);
        let of_mark = |role: &Role| vmm.is_some_and(|mark| *role == Role::Vmm(mark.to_owned()));
        if aim(process, &of_mark) {
            struck.vmm = vmm.map(str::to_owned);
        }
        for process in &aimed {
            process.signal(Signal::SIGKILL).context("killing")?;
        }
        for process in &aimed {
            wait_exit(process, GONE)?;
        }
        if struck.daemon {
            // It is dead: this reaps it.
            lab.kill_daemon()?;
        }
        Ok(struck)
    }
}
