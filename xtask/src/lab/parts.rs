//! What a lab is built of: programs, the guest's kernel, settings of its daemon.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::build;
use crate::setup::{self, GuestKernel, Need};

/// What a lab is made of.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(super) kernel: GuestKernel,
    pub(super) daemon: PathBuf,
    pub(super) agent: PathBuf,
    pub(super) server: PathBuf,
    /// Keys of the daemon's configuration beside those that the lab writes.
    pub(super) environment: Vec<(String, String)>,
}

impl Parts {
    /// Installs and builds what is missing, saying what.
    pub(crate) fn ready(need: Need) -> Result<Self> {
        Self::with_guests(need, "release", build::binaries)
    }

    /// The daemon that `build` makes, and what runs inside guests.
    fn with_guests(need: Need, what: &str, build: fn() -> Result<PathBuf>) -> Result<Self> {
        ensure!(setup::is_root(), "guests, namespaces and taps take root");
        let kernel = setup::ensure_ready(need)?;
        println!("building ({what})");
        let programs = build()?;
        let guest = build::guest_binaries()?;
        Ok(Self {
            kernel,
            daemon: programs.join("dormoused"),
            agent: guest.agent,
            server: guest.server,
            environment: Vec::new(),
        })
    }

    /// The same for a harness whose guests are scripted: nothing is built that runs inside one.
    pub(crate) fn scripted(need: Need) -> Result<Self> {
        ensure!(setup::is_root(), "namespaces and taps take root");
        let kernel = setup::ensure_ready(need)?;
        let programs = build::harness_binaries()?;
        Ok(Self {
            kernel,
            daemon: programs.join("dormoused"),
            agent: programs.join("dormouse-agent"),
            server: PathBuf::new(),
            environment: Vec::new(),
        })
    }

    /// Sets a key of the daemon's configuration by its variable.
    pub(crate) fn set(&mut self, variable: &str, value: &str) {
        self.environment.push((variable.to_owned(), value.to_owned()));
    }

    /// The daemon's program.
    pub(crate) fn daemon(&self) -> &Path {
        &self.daemon
    }

    /// The same with a daemon that has fault points, built beside the others: no release binary has them.
    pub(crate) fn planted(need: Need) -> Result<Self> {
        Self::with_guests(need, "release, with fault points", build::planted_binaries)
    }

    /// The kernel that guests boot.
    pub(crate) fn kernel(&self) -> &GuestKernel {
        &self.kernel
    }

    /// The server that benches talk to, linked statically.
    pub(crate) fn server(&self) -> &Path {
        &self.server
    }
}

/// What a lab has that others do not.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// User ids for VMMs.
    pub uids: u32,
    /// The program that stands in for QEMU; emulation is assumed of it.
    pub monitor: Option<PathBuf>,
    /// The address pools, when not the daemon's own.
    pub ipv4_pool: Option<String>,
}

impl Settings {
    /// Those of most labs.
    pub(crate) const USUAL: Self = Self {
        uids: 64,
        monitor: None,
        ipv4_pool: None,
    };
}
