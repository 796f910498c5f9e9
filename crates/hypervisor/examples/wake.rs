//! Measures sleeps and wakes of the tiny guest, or of a kernel: `wake [KERNEL [INITRD]]`. Prints the
//! median and the worst of eleven for each size of RAM, in milliseconds.

use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_hypervisor::parts::Identity;
use dormouse_hypervisor::qemu::{AcceleratorChoice, QemuConfig, QemuDriver};
use dormouse_hypervisor::{
    BootPart, Deadline, Driver, LaunchSpec, Parts, RamPart, Sharing, SocketPart, payload,
};
use dormouse_model::{Bytes, WorkloadId};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 11;
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=t panic=-1";

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = tempfile::tempdir_in("/dev/shm")?;
    let accelerator = match std::env::var("ACCELERATOR").as_deref() {
        Ok("auto") => AcceleratorChoice::Auto,
        Ok("kvm") => AcceleratorChoice::Kvm,
        _ => AcceleratorChoice::Emulation,
    };
    let driver = QemuDriver::new(QemuConfig {
        accelerator,
        ..QemuConfig::default()
    });
    let probe = driver.probe().await?;
    println!("qemu {} by {}", probe.version, probe.accelerator);
    println!(
        "{:>8}  {:>15} {:>15} {:>15} {:>15}",
        "MiB", "save", "gone", "loaded", "resumed"
    );
    for mib in [256, 1024, 4096] {
        let bench = Bench {
            directory: directory.path().to_owned(),
            arguments: arguments.clone(),
            ram: Bytes::mib(mib),
        };
        bench.measure(&driver).await?;
    }
    Ok(())
}

struct Bench {
    directory: PathBuf,
    arguments: Vec<String>,
    ram: Bytes,
}

impl Bench {
    fn parts(&self) -> Outcome<Parts> {
        let path = |name: &str| self.directory.join(name);
        let socket = |name: &str| -> Outcome<SocketPart> {
            let _ = std::fs::remove_file(path(name));
            Ok(SocketPart {
                listener: UnixListener::bind(path(name))?.into(),
                path: path(name),
            })
        };
        let ram = open(&path("ram"))?;
        ram.set_len(self.ram.0)?;
        let kernel: OwnedFd = match self.arguments.first() {
            Some(kernel) => File::open(kernel)?.into(),
            None => {
                std::fs::write(path("kernel"), payload::guest(1_000_000))?;
                File::open(path("kernel"))?.into()
            }
        };
        let initrd = self
            .arguments
            .get(1)
            .map(File::open)
            .transpose()?
            .map(OwnedFd::from);
        let log = || File::options().append(true).create(true).open(path("log"));
        Ok(Parts {
            program: None,
            ram: RamPart {
                file: ram.into(),
                size: self.ram,
                sharing: Sharing::Shared,
            },
            boot: Some(BootPart {
                kernel,
                initrd,
                command_line: COMMAND_LINE.into(),
            }),
            disks: Vec::new(),
            tap: None,
            control: socket("qmp")?,
            agent: socket("agent")?,
            console: File::options()
                .append(true)
                .create(true)
                .open(path("console"))?
                .into(),
            log: log()?.into(),
            identity: nix::unistd::geteuid().is_root().then_some(Identity {
                uid: 61_234,
                gid: 61_234,
            }),
            cgroups: Vec::new(),
            namespaces: Vec::new(),
        })
    }

    async fn measure(&self, driver: &QemuDriver) -> Outcome {
        let _ = std::fs::remove_file(self.directory.join("ram"));
        let spec = LaunchSpec {
            id: WorkloadId::from_bits(1),
            vcpus: 1,
            mac: None,
        };
        let deadline = || Deadline::now() + Duration::from_secs(30);
        let mut vm = driver.launch(&spec, self.parts()?, deadline()).await?;
        if !self.arguments.is_empty() {
            // A kernel takes a while to boot, and nobody tells us when it has.
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            let mut lap = Instant::now();
            let mut note = |column: &mut Vec<f64>| {
                column.push(lap.elapsed().as_secs_f64() * 1e3);
                lap = Instant::now();
            };
            let [save, gone, loaded, resumed] = &mut times;
            vm.pause().await?;
            vm.snapshot(open(&self.directory.join("state"))?.into()).await?;
            note(save);
            vm.kill().await?;
            note(gone);
            let (parts, state) = (self.parts()?, File::open(self.directory.join("state"))?);
            vm = driver.restore(&spec, parts, state.into(), deadline()).await?;
            note(loaded);
            vm.resume().await?;
            note(resumed);
        }
        vm.kill().await?;
        print!("{:>8}", self.ram.as_mib());
        for column in &mut times {
            column.sort_by(f64::total_cmp);
            let median = column.get(ROUNDS / 2).copied().unwrap_or_default();
            print!(
                "  {median:>6.1} /{:>6.1}",
                column.last().copied().unwrap_or_default()
            );
        }
        println!();
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}
