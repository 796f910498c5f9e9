//! The real program, with the tiny guest. Skipped where there is no QEMU.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_hypervisor::conformance::{self, Stand};
use dormouse_hypervisor::memory::write_back_private;
use dormouse_hypervisor::qemu::{AcceleratorChoice, QemuConfig, QemuDriver};
use dormouse_hypervisor::{
    Accelerator, BootPart, Deadline, DiskPart, Driver, ExitReason, KeptPrograms, LaunchSpec, Parts, RamPart,
    Sharing, SocketPart, Vm, VmStatus, payload,
};
use dormouse_model::{Bytes, MacAddress, WorkloadId};
use dormouse_sys::netns::Namespace;
use dormouse_sys::spawn::{CgroupEntrance, Identity};

const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// The program, or why not.
fn need_qemu(name: &str) -> bool {
    let there = Path::new(PROGRAM).exists();
    if !there {
        println!("skipped: {name}: {PROGRAM} does not exist");
    }
    there
}

/// A user without rights, where we may change to one.
fn identity() -> Option<Identity> {
    nix::unistd::geteuid().is_root().then_some(Identity {
        uid: 61_234,
        gid: 61_234,
    })
}

fn driver(accelerator: AcceleratorChoice) -> QemuDriver {
    QemuDriver::new(QemuConfig {
        accelerator,
        probe_identity: identity(),
        ..QemuConfig::default()
    })
}

fn stand(directory: &Path, driver: QemuDriver) -> Stand {
    Stand {
        driver: Box::new(driver),
        directory: directory.to_owned(),
        identity: identity(),
        iterations: 50_000,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_conforms() {
    if !need_qemu("qemu_conforms") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let stand = stand(directory.path(), driver(AcceleratorChoice::Emulation));
    let mut failed = Vec::new();
    for check in conformance::Check::ALL {
        let begun = Instant::now();
        let verdict = check.run(&stand).await;
        println!("{:>6} ms  {}", begun.elapsed().as_millis(), check.name());
        if let Err(violation) = verdict {
            failed.push(format!(
                "{}: {}",
                check.name(),
                dormouse_model::error::chain(&violation)
            ));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn the_probe_answers() {
    if !need_qemu("the_probe_answers") {
        return;
    }
    let begun = Instant::now();
    let driver = driver(AcceleratorChoice::Auto);
    let probe = driver.probe().await.unwrap();
    println!(
        "{} by {} after {:?}",
        probe.version,
        probe.accelerator,
        begun.elapsed()
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(driver.probe().await.unwrap(), probe, "the first answer is kept");
    if let Accelerator::Emulation { why } = probe.accelerator {
        assert!(!why.is_empty());
    }
}

/// A machine with every device that we give: its files, and the parts for a launch or a restore.
struct Full {
    directory: tempfile::TempDir,
    network: Namespace,
}

const MAC: MacAddress = MacAddress([2, 0xd0, 0, 0, 0, 7]);
const RAM: Bytes = Bytes::mib(64);

impl Full {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let network = Namespace::create_at(&directory.path().join("net")).unwrap();
        Self { directory, network }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, size: u64) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(name))
            .unwrap();
        if file.metadata().unwrap().len() < size {
            file.set_len(size).unwrap();
        }
        file
    }

    fn socket(&self, name: &str) -> SocketPart {
        let _ = std::fs::remove_file(self.path(name));
        let path = self.path(name);
        SocketPart {
            listener: UnixListener::bind(&path).unwrap().into(),
            path,
        }
    }

    fn parts(&self, sharing: Sharing) -> Parts {
        std::fs::write(self.path("kernel"), payload::guest(50_000)).unwrap();
        let kernel = File::open(self.path("kernel")).unwrap();
        let tap = self
            .network
            .within(|| dormouse_sys::tap::create("dmhv0", MAC.0))
            .unwrap()
            .unwrap();
        self.file("root", 1 << 20);
        Parts {
            program: None,
            ram: RamPart {
                file: self.file("ram", RAM.0).into(),
                size: RAM,
                sharing,
            },
            boot: Some(BootPart {
                kernel: kernel.into(),
                initrd: None,
                command_line: "a b".into(),
            }),
            disks: vec![
                DiskPart {
                    file: File::open(self.path("root")).unwrap().into(),
                    readonly: true,
                    serial: "root".into(),
                },
                DiskPart {
                    file: self.file("data", 1 << 20).into(),
                    readonly: false,
                    serial: "data".into(),
                },
            ],
            tap: Some(tap),
            control: self.socket("qmp"),
            agent: self.socket("agent"),
            // Opened for reading too: the driver opens it again as QEMU wants it.
            console: self.file("console", 0).into(),
            log: File::options()
                .append(true)
                .create(true)
                .open(self.path("log"))
                .unwrap()
                .into(),
            identity: identity(),
            cgroups: vec![CgroupEntrance::Members(self.file("procs", 0).into())],
            namespaces: vec![File::open(self.path("net")).unwrap().into()],
        }
    }

    fn beats(&self) -> u64 {
        payload::count_beats(&std::fs::read(self.path("console")).unwrap()).unwrap()
    }

    /// Asking the machine something takes as long as a round trip: no sleep is needed.
    async fn beats_on(&self, vm: &dyn Vm) {
        let (before, deadline) = (self.beats(), soon());
        while self.beats() < before + 2 {
            assert_eq!(vm.inspect().await.unwrap(), VmStatus::Running);
            assert!(Deadline::now() < deadline, "the guest stands");
        }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        Namespace::remove(&self.path("net")).unwrap();
    }
}

fn soon() -> Deadline {
    Deadline::now() + Duration::from_secs(20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_sleeps_and_wakes() {
    if !need_qemu("every_device_sleeps_and_wakes") {
        return;
    }
    if identity().is_none() {
        println!("skipped: every_device_sleeps_and_wakes: making a network namespace needs root");
        return;
    }
    let full = Full::new();
    let driver = driver(AcceleratorChoice::Emulation);
    let spec = LaunchSpec {
        id: WorkloadId::from_bits(7),
        vcpus: 2,
        mac: Some(MAC),
    };
    // Every machine is started from a kept program, in a folder where its user cannot look.
    let shelf = tempfile::tempdir().unwrap();
    let kept = KeptPrograms::new(shelf.path().join("vmm"));
    let source = driver.probe().await.unwrap().program.unwrap();
    let name = kept.keep(&source).unwrap();
    let parts = |sharing| Parts {
        program: Some(kept.open(&name).unwrap()),
        ..full.parts(sharing)
    };
    let mut vm = driver
        .launch(&spec, parts(Sharing::Shared), soon())
        .await
        .unwrap();
    let program = std::fs::read_link(format!("/proc/{}/exe", vm.process().pid)).unwrap();
    assert!(program.starts_with(shelf.path()), "{}", program.display());
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.process().pid)).unwrap();
    for want in [
        "Uid:\t61234\t61234\t61234\t61234",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(want), "{want} is not in {status}");
    }
    let network = std::fs::read_link(format!("/proc/{}/ns/net", vm.process().pid)).unwrap();
    assert_ne!(network, std::fs::read_link("/proc/self/ns/net").unwrap());
    // The agent's port is connected before and after.
    let _agent = UnixStream::connect(full.path("agent")).unwrap();
    assert_eq!(vm.balloon().unwrap().actual().await.unwrap(), RAM);
    let mut mapped = Sharing::Shared;
    // Shared state wakes privately, and private state shared: one set of devices.
    for sharing in [
        Sharing::Shared,
        Sharing::Private,
        Sharing::Private,
        Sharing::Shared,
    ] {
        full.beats_on(&*vm).await;
        vm.snapshot(full.file("state", 0).into()).await.unwrap();
        if mapped == Sharing::Private {
            // What a private machine changed goes back before its process does.
            let ram = full.file("ram", 0);
            let written = write_back_private(vm.process(), ram.as_fd(), RAM).unwrap();
            println!("written back: {written:?}");
        }
        mapped = sharing;
        assert_eq!(vm.kill().await.unwrap(), ExitReason::Signal(9));
        let state = File::open(full.path("state")).unwrap();
        vm = driver
            .restore(&spec, parts(sharing), state.into(), soon())
            .await
            .unwrap();
        assert_eq!(vm.inspect().await.unwrap(), VmStatus::Paused);
        vm.resume().await.unwrap();
        let _agent = UnixStream::connect(full.path("agent")).unwrap();
    }
    full.beats_on(&*vm).await;
    assert_eq!(vm.stop(Duration::ZERO).await.unwrap(), ExitReason::Asked);
    let log = std::fs::read_to_string(full.path("log")).unwrap();
    println!("the log: {log}");
}
