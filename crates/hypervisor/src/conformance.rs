//! What every driver must do, as named checks. They run on the fake in unit tests and on the real program
//! where it can run; a defect found in one driver becomes a check for all.
//!
//! The guest is [`crate::payload`]: its console shows whether it executes, and whether its memory and
//! processor were what they had been.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use dormouse_model::{Bytes, WorkloadId};

use crate::error::DriverError;
use crate::parts::{BootPart, Identity, LaunchSpec, Parts, RamPart, Sharing, SocketPart};
use crate::payload;
use crate::port::{Adopted, Deadline, Driver, Vm, VmStatus};
use crate::process::{ExitReason, Gone, ProcessRecord};

/// Where the checks run: a driver, and a directory for the files of its machines.
#[derive(Debug)]
pub struct Stand {
    /// The driver under test.
    pub driver: Box<dyn Driver>,
    /// An empty directory with a short path; the caller removes it.
    pub directory: PathBuf,
    /// Whom the machines run as.
    pub identity: Option<Identity>,
    /// Turns of the guest's loop a beat: some milliseconds' worth.
    pub iterations: u32,
}

/// How a driver failed a check.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A file of the stand failed: no fault of the driver.
    #[error("the stand itself failed")]
    Stand(#[from] io::Error),
    /// A call failed that must not.
    #[error("a call failed")]
    Call(#[from] DriverError),
    /// Something was otherwise than it must be.
    #[error("{0}")]
    Broken(String),
}

type Verdict<T = ()> = Result<T, Violation>;

/// RAM of the guest: the least that takes firmware and payload.
const RAM: Bytes = Bytes::mib(32);

/// How long anything may take that is not itself about time.
const PATIENCE: Duration = Duration::from_secs(20);

fn soon() -> Deadline {
    Deadline::now() + PATIENCE
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(Violation::Broken(otherwise()))
    }
}

impl Stand {
    fn spec() -> LaunchSpec {
        LaunchSpec {
            id: WorkloadId::from_bits(1),
            vcpus: 1,
            mac: None,
        }
    }

    fn path(&self, what: &str) -> PathBuf {
        self.directory.join(what)
    }

    fn file(&self, what: &str) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path(what))
    }

    fn socket(&self, what: &str) -> io::Result<SocketPart> {
        let path = self.path(what);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        Ok(SocketPart {
            listener: UnixListener::bind(&path)?.into(),
            path,
        })
    }

    /// Parts of a machine; its RAM and console are those that it had before.
    fn parts(&self) -> io::Result<Parts> {
        let ram = self.file("ram")?;
        ram.set_len(RAM.0)?;
        let kernel = self.file("kernel")?;
        kernel.write_all_at(&payload::guest(self.iterations), 0)?;
        std::fs::set_permissions(
            self.path("kernel"),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )?;
        let console = File::options()
            .append(true)
            .create(true)
            .open(self.path("console"))?;
        let boot = BootPart {
            kernel: kernel.into(),
            initrd: None,
            command_line: String::new(),
        };
        Ok(Parts {
            program: None,
            ram: RamPart {
                file: ram.into(),
                size: RAM,
                sharing: Sharing::Shared,
            },
            boot: Some(boot),
            disks: Vec::new(),
            tap: None,
            control: self.socket("qmp")?,
            agent: self.socket("agent")?,
            console: console.into(),
            log: File::options()
                .append(true)
                .create(true)
                .open(self.path("log"))?
                .into(),
            identity: self.identity,
            cgroups: Vec::new(),
            namespaces: Vec::new(),
        })
    }

    /// A new machine with a new RAM and console.
    async fn launch(&self) -> Verdict<Box<dyn Vm>> {
        for what in ["ram", "console", "state"] {
            match std::fs::remove_file(self.path(what)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(self.driver.launch(&Self::spec(), self.parts()?, soon()).await?)
    }

    async fn restore(&self, sharing: Sharing) -> Result<Box<dyn Vm>, Violation> {
        let mut parts = self.parts()?;
        parts.ram.sharing = sharing;
        let state: OwnedFd = File::open(self.path("state"))?.into();
        Ok(self.driver.restore(&Self::spec(), parts, state, soon()).await?)
    }

    async fn snapshot(&self, vm: &dyn Vm) -> Verdict {
        let saved = vm.snapshot(self.file("state")?.into()).await?;
        let length = self.file("state")?.metadata()?.len();
        ensure(saved.state.0 > 0 && saved.state.0 == length, || {
            format!("{} were said to be saved, the file has {length}", saved.state)
        })
    }

    fn beats(&self) -> Verdict<u64> {
        let console = std::fs::read(self.path("console"))?;
        payload::count_beats(&console)
            .map_err(|good| Violation::Broken(format!("the guest went wrong after beat {good}")))
    }

    /// Waits until the guest has beaten since.
    async fn beats_on(&self, vm: &dyn Vm) -> Verdict {
        let (before, deadline) = (self.beats()?, soon());
        while self.beats()? < before + 2 {
            let status = vm.inspect().await?;
            ensure(status == VmStatus::Running, || {
                format!("it is {status:?} and should run")
            })?;
            ensure(Deadline::now() < deadline, || {
                format!("the guest stands after beat {before}")
            })?;
        }
        Ok(())
    }

    /// The machine is paused and its guest does nothing.
    async fn rests(&self, vm: &dyn Vm) -> Verdict {
        let before = self.beats()?;
        for _ in 0..20 {
            let status = vm.inspect().await?;
            ensure(status == VmStatus::Paused, || {
                format!("it is {status:?} and should be paused")
            })?;
        }
        let after = self.beats()?;
        ensure(before == after, || {
            format!("a paused guest beat {} times", after - before)
        })
    }

    fn record(&self, vm: &dyn Vm) -> ProcessRecord {
        ProcessRecord {
            identity: vm.process().clone(),
            control: self.path("qmp"),
        }
    }

    async fn adopt(&self, record: &ProcessRecord) -> Verdict<Result<Box<dyn Vm>, Gone>> {
        Ok(match self.driver.adopt(record, soon()).await? {
            Adopted::Live(vm) => Ok(vm),
            Adopted::Gone(gone) => Err(gone),
        })
    }

    /// Nobody holds the control socket any more: no process is left.
    async fn nothing_left(&self) -> Verdict {
        let deadline = soon();
        while UnixStream::connect(self.path("qmp")).is_ok() {
            ensure(Deadline::now() < deadline, || "a process is left".into())?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

/// Ends a machine and wants to see it gone.
async fn end(stand: &Stand, vm: &dyn Vm) -> Verdict {
    let reason = vm.kill().await?;
    ensure(reason == ExitReason::Signal(9), || {
        format!("killed, it ended by: {reason}")
    })?;
    stand.nothing_left().await
}

fn must_fail<T>(result: Result<T, Violation>, what: &str) -> Verdict<DriverError> {
    match result {
        Ok(_) => Err(Violation::Broken(format!("{what} succeeded"))),
        Err(Violation::Call(error)) => Ok(error),
        Err(other) => Err(other),
    }
}

mod checks;

pub use checks::Check;

/// Runs every check; the driver conforms when all verdicts are good.
pub async fn run(stand: &Stand) -> Vec<(Check, Result<(), Violation>)> {
    let mut verdicts = Vec::with_capacity(Check::ALL.len());
    for check in Check::ALL {
        verdicts.push((check, check.run(stand).await));
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeDriver;

    #[tokio::test]
    async fn the_fake_conforms() {
        let directory = tempfile::tempdir().unwrap();
        let stand = Stand {
            driver: Box::new(FakeDriver::new()),
            directory: directory.path().to_owned(),
            identity: None,
            iterations: 1,
        };
        for (check, verdict) in run(&stand).await {
            if let Err(violation) = verdict {
                panic!("{}: {}", check.name(), dormouse_model::error::chain(&violation));
            }
        }
    }
}
