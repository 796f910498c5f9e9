//! The driver.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use dormouse_sys::clock;
use tokio::sync::OnceCell;

use super::probe;
use super::start::{Plan, start};
use super::translate::Execution;
use super::vm::QemuVm;
use crate::accelerator::Accelerator;
use crate::error::DriverError;
use crate::kept::ProgramSource;
use crate::metrics::{self, Step};
use crate::parts::{Identity, LaunchSpec, Parts};
use crate::port::{Abilities, Adopted, Deadline, Driver, DriverKind, Probe, Vm};
use crate::process::{Found, Gone, ProcessRecord, Watched};

/// How guests are to be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AcceleratorChoice {
    /// KVM where a guest is seen to execute, else emulation.
    #[default]
    Auto,
    /// KVM, untested.
    Kvm,
    /// Emulation.
    Emulation,
}

/// What the driver is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuConfig {
    /// The program. Where KVM works and a build with `-microvm` at its end is there, that one starts in
    /// two thirds of the time; it cannot emulate.
    pub program: PathBuf,
    /// How guests are executed.
    pub accelerator: AcceleratorChoice,
    /// Whether QEMU restricts its own system calls (`-sandbox`); costs a millisecond.
    pub sandbox: bool,
    /// Whom the probe's guest runs as: one of those that machines will run as, since `/dev/kvm` may open
    /// for us and not for them.
    pub probe_identity: Option<Identity>,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            program: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            accelerator: AcceleratorChoice::Auto,
            sandbox: true,
            probe_identity: None,
        }
    }
}

/// The driver; clones share what was probed.
#[derive(Debug, Clone)]
pub struct QemuDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: QemuConfig,
    probed: OnceCell<(Probe, Execution)>,
}

impl QemuDriver {
    /// A driver for the program of `config`; nothing is looked at yet.
    #[must_use]
    pub fn new(config: QemuConfig) -> Self {
        Self(Arc::new(Inner {
            config,
            probed: OnceCell::new(),
        }))
    }

    async fn probed(&self) -> Result<&(Probe, Execution), DriverError> {
        self.0.probed.get_or_try_init(|| self.look()).await
    }

    async fn look(&self) -> Result<(Probe, Execution), DriverError> {
        let config = &self.0.config;
        let version = probe::version(&config.program).await?;
        let accelerator = match config.accelerator {
            AcceleratorChoice::Kvm => Accelerator::Kvm,
            AcceleratorChoice::Emulation => Accelerator::Emulation {
                why: "so configured".into(),
            },
            AcceleratorChoice::Auto => probe::accelerator(&config.program, config.probe_identity).await,
        };
        let execution = match accelerator {
            Accelerator::Kvm => Execution::Kvm,
            Accelerator::Emulation { .. } => Execution::Emulation {
                tsc_khz: tsc_khz().await?,
            },
        };
        tracing::info!(%version, %accelerator, program = %config.program.display(), "qemu probed");
        let can = Abilities {
            sleep: true,
            private_ram: true,
            balloon: true,
        };
        Ok((
            Probe {
                program: Some(ProgramSource {
                    version: version.clone(),
                    data: probe::data_directories(&config.program).await?,
                    modules: probe::modules(&config.program),
                    program: config.program.clone(),
                }),
                version,
                accelerator,
                can,
            },
            execution,
        ))
    }

    async fn make(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        state: Option<OwnedFd>,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError> {
        let config = &self.0.config;
        let execution = tokio::time::timeout_at(deadline, self.probed())
            .await
            .map_err(|_| DriverError::Deadline {
                doing: "probe the host",
            })??
            .1;
        let groups = match execution {
            Execution::Kvm => probe::kvm_group().into_iter().collect(),
            Execution::Emulation { .. } => Vec::new(),
        };
        let program = config.program.clone();
        let (spec, sandbox) = (spec.clone(), config.sandbox);
        let plan = Plan {
            program,
            spec,
            parts,
            state,
            execution,
            sandbox,
            groups,
        };
        Ok(Box::new(QemuVm::new(start(plan, deadline).await?)))
    }
}

/// Measured on a thread that may block.
async fn tsc_khz() -> Result<u64, DriverError> {
    let doing = "measure the time stamp counter";
    tokio::task::spawn_blocking(clock::tsc_khz)
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|source| DriverError::Io { doing, source })
}

fn count<T>(step: Step, begun: Instant, result: Result<T, DriverError>) -> Result<T, DriverError> {
    metrics::step(DriverKind::Qemu, step, begun.elapsed(), result.is_ok());
    result
}

#[async_trait]
impl Driver for QemuDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu
    }

    async fn probe(&self) -> Result<Probe, DriverError> {
        Ok(self.probed().await?.0.clone())
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError> {
        let begun = Instant::now();
        count(Step::Launch, begun, self.make(spec, parts, None, deadline).await)
    }

    async fn restore(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        state: OwnedFd,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError> {
        let begun = Instant::now();
        count(
            Step::Restore,
            begun,
            self.make(spec, parts, Some(state), deadline).await,
        )
    }

    async fn adopt(&self, record: &ProcessRecord, deadline: Deadline) -> Result<Adopted, DriverError> {
        let begun = Instant::now();
        let fail = |source| DriverError::Io {
            doing: "look for the recorded process",
            source,
        };
        let process = match Watched::find(&record.identity).map_err(fail)? {
            Found::Live(process) => process,
            Found::Gone(gone) => return Ok(Adopted::Gone(gone)),
        };
        match QemuVm::adopt(process, record.control.clone(), deadline).await {
            // It ended while we spoke.
            Err(DriverError::Ended { .. }) => Ok(Adopted::Gone(Gone::Ended)),
            other => count(Step::Adopt, begun, other).map(|vm| Adopted::Live(Box::new(vm))),
        }
    }
}
