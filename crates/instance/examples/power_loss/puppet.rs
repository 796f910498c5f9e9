//! A monitor whose guests have memory and disks that can be told apart; only one that maps memory privately
//! has a process (`private`).
//!
//! Each time a guest runs it has a new *content*: a number that it writes into pages of its memory and of
//! its disk. The device state that is saved has the number too. What is restored must then have one number
//! in all three.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_guest::{Channel, Event, GuestIdentity, Message, Phase};
use dormouse_hypervisor::{
    Abilities, Accelerator, Adopted, Balloon, Deadline, Driver, DriverError, DriverKind, ExitReason, Gone,
    LaunchSpec, Parts, Probe, ProcessIdentity, ProcessRecord, Saved, Sharing, Vm, VmStatus,
};
use dormouse_model::{Bytes, WorkloadId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::private::PrivateMemory;

/// Where a guest writes its content on its disk: within the head that is compared.
const DISK_PAGE: u64 = 4096 * 4;
/// Bytes of device state.
const STATE: usize = 3000;
/// Pids of those without a process, which are of no process of this host: above the kernel's limit of 2^22.
const FIRST_PID: u64 = 1 << 23;

/// What the driver saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sight {
    /// A guest is about to run with this content.
    Runs(WorkloadId, u64),
    /// A guest was loaded: the contents of its state, memory and disk; `None` where they are of no one.
    Loaded(WorkloadId, [Option<u64>; 3]),
}

/// Told of every sight as it happens.
pub(crate) type Witness = Arc<dyn Fn(Sight) + Send + Sync>;

/// The driver.
#[derive(Clone)]
pub(crate) struct Puppet {
    boot_id: String,
    witness: Witness,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    contents: AtomicU64,
    pids: AtomicU64,
    agents: Mutex<JoinSet<()>>,
    living: Mutex<HashMap<u32, Arc<Machine>>>,
}

impl std::fmt::Debug for Puppet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puppet")
            .field("boot_id", &self.boot_id)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(why: &std::io::Error) -> DriverError {
    DriverError::Part {
        part: "puppet",
        why: why.to_string(),
    }
}

impl Puppet {
    /// A driver on a host of this boot.
    pub(crate) fn new(boot_id: &str, witness: Witness) -> Self {
        Self {
            boot_id: boot_id.to_owned(),
            witness,
            shared: Arc::new(Shared {
                contents: AtomicU64::new(1),
                pids: AtomicU64::new(FIRST_PID),
                agents: Mutex::default(),
                living: Mutex::default(),
            }),
        }
    }

    fn make(&self, id: WorkloadId, parts: Parts) -> Result<Arc<Machine>, DriverError> {
        let ram = File::from(parts.ram.file);
        let (private, pid, start_ticks) = match parts.ram.sharing {
            Sharing::Shared => {
                let pid = self.shared.pids.fetch_add(1, Ordering::Relaxed);
                (None, u32::try_from(pid).unwrap_or(u32::MAX), pid)
            }
            Sharing::Private => {
                let private = PrivateMemory::start(&ram, parts.ram.size).map_err(|error| failed(&error))?;
                let pid = private.pid();
                let ticks = dormouse_sys::clock::process_start_ticks(pid).map_err(|error| failed(&error))?;
                (Some(private), pid, ticks)
            }
        };
        let listener = UnixListener::from(parts.agent.listener);
        let disks = parts.disks.into_iter().find(|disk| !disk.readonly);
        let machine = Arc::new(Machine {
            id,
            process: ProcessIdentity {
                pid,
                start_ticks,
                boot_id: self.boot_id.clone(),
            },
            ram,
            private: Mutex::new(private),
            size: parts.ram.size,
            disk: disks.map(|disk| disk.file.into()),
            content: AtomicU64::new(0),
            running: AtomicU64::new(0),
            exit: watch::Sender::new(None),
        });
        lock(&self.shared.agents).spawn(agent(listener, machine.exit.subscribe()));
        lock(&self.shared.living).insert(pid, Arc::clone(&machine));
        Ok(machine)
    }

    fn run(&self, machine: &Machine) -> Result<(), DriverError> {
        if machine.running.swap(1, Ordering::AcqRel) == 1 {
            return Ok(());
        }
        let content = self.shared.contents.fetch_add(1, Ordering::Relaxed);
        (self.witness)(Sight::Runs(machine.id, content));
        machine.write(content).map_err(|error| failed(&error))
    }

    fn vm(&self, machine: Arc<Machine>) -> Box<dyn Vm> {
        Box::new(PuppetVm {
            driver: self.clone(),
            machine,
        })
    }
}

#[derive(Debug)]
struct Machine {
    id: WorkloadId,
    process: ProcessIdentity,
    ram: File,
    /// Of a guest that maps its memory privately, until its end.
    private: Mutex<Option<PrivateMemory>>,
    size: Bytes,
    disk: Option<File>,
    content: AtomicU64,
    running: AtomicU64,
    exit: watch::Sender<Option<ExitReason>>,
}

impl Machine {
    fn ram_pages(&self) -> [u64; 3] {
        [0, self.size.0 / 2, self.size.0 - 4096]
    }

    /// A page of this content of this guest.
    fn page(&self, content: u64) -> Vec<u8> {
        let mut page = format!("{} {content:020} ", self.id).into_bytes();
        page.resize(4096, u8::try_from(content % 255 + 1).unwrap_or(1));
        page
    }

    fn write(&self, content: u64) -> std::io::Result<()> {
        self.content.store(content, Ordering::Release);
        let page = self.page(content);
        let mut private = lock(&self.private);
        for at in self.ram_pages() {
            match private.as_mut() {
                Some(private) => private.write(at, &page)?,
                None => self.ram.write_all_at(&page, at)?,
            }
        }
        drop(private);
        if let Some(disk) = &self.disk {
            disk.write_all_at(&page, DISK_PAGE)?;
        }
        Ok(())
    }

    /// The content that pages of a file have in common.
    fn read(&self, file: &File, places: &[u64]) -> Option<u64> {
        let mut found = None;
        for at in places {
            let mut page = vec![0; 4096];
            file.read_exact_at(&mut page, *at).ok()?;
            let text = String::from_utf8_lossy(&page).into_owned();
            let mut words = text.split(' ');
            let content = words.nth(1)?.parse().ok()?;
            if page != self.page(content) || found.is_some_and(|other| other != content) {
                return None;
            }
            found = Some(content);
        }
        found
    }

    fn end(&self) {
        drop(lock(&self.private).take());
        self.exit.send_replace(Some(ExitReason::Signal(9)));
    }
}

#[derive(Debug)]
struct PuppetVm {
    driver: Puppet,
    machine: Arc<Machine>,
}

#[async_trait]
impl Driver for Puppet {
    fn kind(&self) -> DriverKind {
        DriverKind::Fake
    }

    async fn probe(&self) -> Result<Probe, DriverError> {
        Ok(Probe {
            version: "1".to_owned(),
            program: None,
            accelerator: Accelerator::Emulation {
                why: "nothing is executed".to_owned(),
            },
            can: Abilities {
                sleep: true,
                private_ram: true,
                balloon: false,
            },
        })
    }

    async fn launch(&self, spec: &LaunchSpec, parts: Parts, _: Deadline) -> Result<Box<dyn Vm>, DriverError> {
        let machine = self.make(spec.id, parts)?;
        self.run(&machine)?;
        Ok(self.vm(machine))
    }

    async fn restore(
        &self,
        spec: &LaunchSpec,
        parts: Parts,
        state: OwnedFd,
        _: Deadline,
    ) -> Result<Box<dyn Vm>, DriverError> {
        let machine = self.make(spec.id, parts)?;
        let mut bytes = Vec::new();
        File::from(state)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(&error))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let content = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        let whole =
            content.is_some_and(|content| bytes == machine.page(content).get(..STATE).unwrap_or_default());
        let disk = machine
            .disk
            .as_ref()
            .and_then(|disk| machine.read(disk, &[DISK_PAGE]));
        let ram = machine.read(&machine.ram, &machine.ram_pages());
        let contents = [content.filter(|_| whole), ram, disk];
        (self.witness)(Sight::Loaded(spec.id, contents));
        machine.content.store(content.unwrap_or(0), Ordering::Release);
        Ok(self.vm(machine))
    }

    async fn adopt(&self, _: &ProcessRecord, _: Deadline) -> Result<Adopted, DriverError> {
        Ok(Adopted::Gone(Gone::Ended))
    }
}

#[async_trait]
impl Vm for PuppetVm {
    fn process(&self) -> &ProcessIdentity {
        &self.machine.process
    }

    async fn pause(&self) -> Result<(), DriverError> {
        self.machine.running.store(0, Ordering::Release);
        // As a real monitor does: its disks are drained and flushed.
        if let Some(disk) = &self.machine.disk {
            disk.sync_data().map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    async fn resume(&self) -> Result<(), DriverError> {
        self.driver.run(&self.machine)
    }

    async fn snapshot(&self, into: OwnedFd) -> Result<Saved, DriverError> {
        let content = self.machine.content.load(Ordering::Acquire);
        let page = self.machine.page(content);
        File::from(into)
            .write_all(page.get(..STATE).unwrap_or_default())
            .map_err(|error| failed(&error))?;
        Ok(Saved {
            state: Bytes(STATE as u64),
        })
    }

    async fn stop(&self, _: Duration) -> Result<ExitReason, DriverError> {
        self.kill().await
    }

    async fn kill(&self) -> Result<ExitReason, DriverError> {
        self.machine.end();
        lock(&self.driver.shared.living).remove(&self.machine.process.pid);
        Ok(ExitReason::Signal(9))
    }

    async fn inspect(&self) -> Result<VmStatus, DriverError> {
        Ok(match *self.machine.exit.borrow() {
            Some(reason) => VmStatus::Exited(reason),
            None if self.machine.running.load(Ordering::Acquire) == 1 => VmStatus::Running,
            None => VmStatus::Paused,
        })
    }

    async fn exited(&self) -> ExitReason {
        let mut exit = self.machine.exit.subscribe();
        match exit.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(ExitReason::Unknown),
            Err(_) => ExitReason::Unknown,
        }
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        None
    }
}

/// The agent in a guest: says yes to everything, until its machine has ended.
async fn agent(listener: UnixListener, mut exit: watch::Receiver<Option<ExitReason>>) {
    let ended = async {
        // A sender that is gone is an end too.
        let _ = exit.wait_for(Option::is_some).await;
    };
    let served = async {
        listener.set_nonblocking(true).ok()?;
        let listener = tokio::net::UnixListener::from_std(listener).ok()?;
        let mut channel = Channel::guest(GuestIdentity {
            boot_id: "puppet".to_owned(),
            release: "1".to_owned(),
        });
        loop {
            let (mut stream, _) = listener.accept().await.ok()?;
            channel.connected();
            converse(&mut channel, &mut stream).await;
            channel.disconnected();
        }
        #[allow(unreachable_code, reason = "gives the block its type")]
        Some(())
    };
    tokio::select! {
        () = ended => {}
        _ = served => {}
    }
}

async fn converse(channel: &mut Channel, stream: &mut tokio::net::UnixStream) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        while !channel.outgoing().is_empty() {
            match stream.write(channel.outgoing()).await {
                Ok(count) => channel.wrote(count),
                Err(_) => return,
            }
        }
        let Ok(count @ 1..) = stream.read(&mut buffer).await else {
            return;
        };
        let mut events = Vec::new();
        channel.receive(buffer.get(..count).unwrap_or_default(), &mut events);
        for event in events {
            let Event::Message { sequence, message } = event else {
                continue;
            };
            let answer = if matches!(message, Message::Boot(_)) {
                channel.set_phase(Phase::Running);
                Message::Ready { pid: 1 }
            } else {
                Message::Done {
                    request: sequence,
                    problem: String::new(),
                }
            };
            // A channel that is full drops its peer, which greets again.
            let _ = channel.send(&answer);
        }
    }
}
