//! A driver without processes, for tests of whatever drives drivers. It passes the conformance suite; it
//! takes the same parts as a real one, writes beats to the console, and holds the sockets open while its
//! machine lives. What it cannot show is memory.
//!
//! Faults are planted from outside: a call that fails, a call that hangs until its deadline, a machine that
//! crashes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_model::Bytes;
use tokio::sync::watch;

use crate::accelerator::Accelerator;
use crate::error::DriverError;
use crate::parts::{LaunchSpec, Parts};
use crate::payload::letter;
use crate::port::{Abilities, Adopted, Balloon, Deadline, Driver, DriverKind, Probe, Saved, Vm, VmStatus};
use crate::process::{ExitReason, Gone, ProcessIdentity, ProcessRecord, prove};

/// The calls that a fault can be planted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// [`Driver::launch`].
    Launch,
    /// [`Driver::restore`].
    Restore,
    /// [`Driver::adopt`].
    Adopt,
    /// [`Vm::pause`].
    Pause,
    /// [`Vm::resume`].
    Resume,
    /// [`Vm::snapshot`].
    Snapshot,
    /// [`Vm::kill`].
    Kill,
}

/// What a planted fault does to the next call of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// It fails and changes nothing.
    Fail,
    /// It does nothing until its deadline, and fails then.
    Hang,
    /// The machine crashes meanwhile: signal 6.
    Crash,
}

/// The driver; clones share their machines, which live on when a clone is dropped.
#[derive(Debug, Clone, Default)]
pub struct FakeDriver(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    machines: BTreeMap<u32, Arc<Machine>>,
    troubles: Vec<(Call, Trouble)>,
    boot: u32,
}

/// A machine; its `Vm`s come and go.
#[derive(Debug)]
struct Machine {
    identity: ProcessIdentity,
    inner: Mutex<Inner>,
    exit: watch::Sender<Option<ExitReason>>,
}

#[derive(Debug)]
struct Inner {
    running: bool,
    beats: u64,
    ram: Bytes,
    /// Closed at the end, as by a process.
    parts: Option<Parts>,
}

/// How long a call on a machine may hang.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is read of a state. What follows the number of beats is not looked at.
const MOST_STATE: u64 = 1 << 20;
/// Begins a state that this driver wrote.
pub const MAGIC: &[u8; 8] = b"DMFAKE01";

/// Poison means that a test panicked; its message is the one to see.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeDriver {
    /// A driver without machines.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next call of this kind go wrong. Several are kept, in order.
    pub fn plant(&self, call: Call, trouble: Trouble) {
        lock(&self.0).troubles.push((call, trouble));
    }

    /// Ends the machine with this pid, as its guest or the kernel would.
    pub fn end(&self, pid: u32, reason: ExitReason) {
        let machine = lock(&self.0).machines.get(&pid).cloned();
        if let Some(machine) = machine {
            machine.end(reason);
        }
    }

    /// The host reboots: no machine survives, and none is known any more.
    pub fn reboot(&self) {
        let mut world = lock(&self.0);
        for machine in world.machines.values() {
            machine.end(ExitReason::Unknown);
        }
        world.machines.clear();
        world.boot += 1;
    }

    /// The machines that live, by pid, and whether each runs.
    #[must_use]
    pub fn living(&self) -> Vec<(ProcessIdentity, VmStatus)> {
        let world = lock(&self.0);
        let all = world
            .machines
            .values()
            .map(|machine| (machine.identity.clone(), machine.status()));
        all.filter(|(_, status)| !matches!(status, VmStatus::Exited(_)))
            .collect()
    }

    fn trouble(&self, call: Call) -> Option<Trouble> {
        let mut world = lock(&self.0);
        let at = world.troubles.iter().position(|(planted, _)| *planted == call)?;
        Some(world.troubles.remove(at).1)
    }

    fn make(&self, parts: Parts, beats: u64, running: bool) -> Box<dyn Vm> {
        let mut world = lock(&self.0);
        let pid = world.machines.last_key_value().map_or(1000, |(last, _)| last + 1);
        let identity = ProcessIdentity {
            pid,
            start_ticks: u64::from(pid) * 10,
            boot_id: format!("fake-boot-{}", world.boot),
        };
        let ram = parts.ram.size;
        let inner = Mutex::new(Inner {
            running,
            beats,
            ram,
            parts: Some(parts),
        });
        let machine = Arc::new(Machine {
            identity,
            inner,
            exit: watch::Sender::new(None),
        });
        world.machines.insert(pid, Arc::clone(&machine));
        drop(world);
        machine.beat();
        Box::new(FakeVm {
            machine,
            driver: self.clone(),
        })
    }
}

impl Machine {
    fn status(&self) -> VmStatus {
        match *self.exit.borrow() {
            Some(reason) => VmStatus::Exited(reason),
            None if lock(&self.inner).running => VmStatus::Running,
            None => VmStatus::Paused,
        }
    }

    fn end(&self, reason: ExitReason) {
        lock(&self.inner).parts = None;
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(reason);
            first
        });
    }

    /// One sign of life of a running guest.
    fn beat(&self) {
        let mut inner = lock(&self.inner);
        if !inner.running {
            return;
        }
        inner.beats += 1;
        let next = [letter(inner.beats)];
        if let Some(parts) = &inner.parts {
            // A console that is full or gone does not stop a guest.
            let _ = nix::unistd::write(&parts.console, &next);
        }
    }

    fn set_running(&self, doing: &'static str, running: bool) -> Result<(), DriverError> {
        self.alive(doing)?;
        let before = std::mem::replace(&mut lock(&self.inner).running, running);
        if running && !before {
            self.beat();
        }
        Ok(())
    }

    fn alive(&self, doing: &'static str) -> Result<(), DriverError> {
        match *self.exit.borrow() {
            Some(reason) => Err(DriverError::Ended {
                doing,
                reason,
                said: String::new(),
            }),
            None => Ok(()),
        }
    }

    async fn ended(&self) -> ExitReason {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(ExitReason::Unknown),
            // The sender lives in `self`.
            Err(_) => ExitReason::Unknown,
        }
    }
}

/// Does what was planted, before the call does anything.
async fn suffer(
    trouble: Option<Trouble>,
    doing: &'static str,
    deadline: Deadline,
    machine: Option<&Machine>,
) -> Result<(), DriverError> {
    match (trouble, machine) {
        (None, _) => Ok(()),
        (Some(Trouble::Fail), _) => Err(DriverError::Refused {
            doing,
            command: "planted",
            description: "a planted fault".into(),
        }),
        (Some(Trouble::Hang), _) => {
            tokio::time::sleep_until(deadline).await;
            Err(DriverError::Deadline { doing })
        }
        (Some(Trouble::Crash), Some(machine)) => {
            machine.end(ExitReason::Signal(6));
            machine.alive(doing)
        }
        (Some(Trouble::Crash), None) => Err(DriverError::Ended {
            doing,
            reason: ExitReason::Signal(6),
            said: "a planted crash".into(),
        }),
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    async fn probe(&self) -> Result<Probe, DriverError> {
        Ok(Probe {
            version: "0.0.0".into(),
            program: None,
            accelerator: Accelerator::Emulation {
                why: "nothing is executed".into(),
            },
            can: Abilities {
                sleep: true,
                private_ram: true,
                balloon: true,
            },
        })
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError> {
        let doing = "launch the machine";
        suffer(self.trouble(Call::Launch), doing, deadline, None).await?;
        check(doing, spec, &parts, deadline)?;
        if parts.boot.is_none() {
            return Err(DriverError::Part {
                part: "boot part",
                why: "a launch needs a kernel".into(),
            });
        }
        Ok(self.make(parts, 0, true))
    }

    async fn restore(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        state: OwnedFd,
        deadline: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError> {
        let doing = "load the device state";
        suffer(self.trouble(Call::Restore), doing, deadline, None).await?;
        check(doing, spec, &parts, deadline)?;
        let mut bytes = Vec::new();
        File::from(state)
            .take(MOST_STATE)
            .read_to_end(&mut bytes)
            .map_err(|source| DriverError::Io { doing, source })?;
        let Some(beats) = bytes
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.first_chunk::<8>().copied())
        else {
            let said = "the state is not one of ours".to_owned();
            return Err(DriverError::Ended {
                doing,
                reason: ExitReason::Code(1),
                said,
            });
        };
        Ok(self.make(parts, u64::from_le_bytes(beats), false))
    }

    async fn adopt(&self, record: &ProcessRecord, deadline: Deadline) -> Result<Adopted, DriverError> {
        suffer(self.trouble(Call::Adopt), "adopt the machine", deadline, None).await?;
        let (machine, boot) = {
            let world = lock(&self.0);
            (world.machines.get(&record.identity.pid).cloned(), world.boot)
        };
        if record.identity.boot_id != format!("fake-boot-{boot}") {
            return Ok(Adopted::Gone(Gone::Rebooted));
        }
        let Some(machine) = machine else {
            return Ok(Adopted::Gone(Gone::Ended));
        };
        if let Err(gone) = prove(&record.identity, &machine.identity) {
            return Ok(Adopted::Gone(gone));
        }
        if matches!(machine.status(), VmStatus::Exited(_)) {
            return Ok(Adopted::Gone(Gone::Ended));
        }
        Ok(Adopted::Live(Box::new(FakeVm {
            machine,
            driver: self.clone(),
        })))
    }
}

fn check(
    doing: &'static str,
    spec: &LaunchSpec,
    parts: &Parts,
    deadline: Deadline,
) -> Result<(), DriverError> {
    if deadline <= Deadline::now() {
        return Err(DriverError::Deadline { doing });
    }
    if parts.tap.is_some() != spec.mac.is_some() {
        return Err(DriverError::Part {
            part: "tap",
            why: "a tap and a MAC address come together".into(),
        });
    }
    Ok(())
}

/// A handle of a machine.
#[derive(Debug)]
struct FakeVm {
    machine: Arc<Machine>,
    driver: FakeDriver,
}

impl FakeVm {
    async fn suffer(&self, call: Call, doing: &'static str) -> Result<(), DriverError> {
        self.machine.alive(doing)?;
        let trouble = self.driver.trouble(call);
        suffer(trouble, doing, Deadline::now() + PATIENCE, Some(&self.machine)).await
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn process(&self) -> &ProcessIdentity {
        &self.machine.identity
    }

    async fn pause(&self) -> Result<(), DriverError> {
        let doing = "pause the machine";
        self.suffer(Call::Pause, doing).await?;
        self.machine.set_running(doing, false)
    }

    async fn resume(&self) -> Result<(), DriverError> {
        let doing = "resume the machine";
        self.suffer(Call::Resume, doing).await?;
        self.machine.set_running(doing, true)
    }

    async fn snapshot(&self, into: OwnedFd) -> Result<Saved, DriverError> {
        let doing = "save the device state";
        self.suffer(Call::Snapshot, doing).await?;
        self.machine.set_running(doing, false)?;
        let beats = lock(&self.machine.inner).beats;
        let fail = |source| DriverError::Io { doing, source };
        let mut file = File::from(into);
        file.set_len(0).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        file.write_all(&[*MAGIC, beats.to_le_bytes()].concat())
            .map_err(fail)?;
        // A real snapshot takes time: whoever kills meanwhile gets a turn.
        tokio::task::yield_now().await;
        self.machine.alive(doing)?;
        Ok(Saved { state: Bytes(16) })
    }

    async fn stop(&self, _grace: Duration) -> Result<ExitReason, DriverError> {
        self.machine.end(ExitReason::Asked);
        Ok(self.machine.ended().await)
    }

    async fn kill(&self) -> Result<ExitReason, DriverError> {
        let trouble = self.driver.trouble(Call::Kill);
        suffer(trouble, "kill the monitor", Deadline::now() + PATIENCE, None).await?;
        self.machine.end(ExitReason::Signal(9));
        Ok(self.machine.ended().await)
    }

    async fn inspect(&self) -> Result<VmStatus, DriverError> {
        self.machine.beat();
        Ok(self.machine.status())
    }

    async fn exited(&self) -> ExitReason {
        self.machine.ended().await
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        Some(self)
    }
}

#[async_trait]
impl Balloon for FakeVm {
    async fn set_target(&self, target: Bytes) -> Result<(), DriverError> {
        self.machine.alive("set the balloon")?;
        lock(&self.machine.inner).ram = target;
        Ok(())
    }

    async fn actual(&self) -> Result<Bytes, DriverError> {
        self.machine.alive("read the balloon")?;
        Ok(lock(&self.machine.inner).ram)
    }
}

#[cfg(test)]
#[path = "fake_tests.rs"]
mod tests;
