//! The rivals: QEMU's own ways to put a guest to disk and back. The same kernel, server, RAM and use of
//! it; an initrd of a few lines instead of ours, because a rival has no agent to talk to.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_sys::pidfd::PidFd;
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::json;

use super::qmp::Qmp;
use crate::figures::Samples;
use crate::lab::{COMMAND_PORT, Lab, Links, Parts, TCP_PORT, ask, ask_for_line, ms_between, tick, wait_exit};
use crate::setup::GUEST_MODULES;

const BOOT_DEADLINE: Duration = Duration::from_secs(120);
const MONITOR_DEADLINE: Duration = Duration::from_secs(60);
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// How a rival sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `migrate` of everything to a file, `-incoming` from it.
    FullMigrate,
    /// `savevm` into a qcow2 disk, `-loadvm` from it.
    SaveVm,
}

impl Way {
    pub(super) const ALL: [Self; 2] = [Self::FullMigrate, Self::SaveVm];

    /// Its name in figures.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::FullMigrate => "qemu full migrate",
            Self::SaveVm => "qemu savevm/loadvm",
        }
    }
}

/// One rival guest and what was measured on it.
#[derive(Debug)]
pub(super) struct Rival {
    /// How it sleeps.
    pub way: Way,
    /// Its RAM.
    pub ram_mib: u64,
    /// Milliseconds from the request to the process gone.
    pub saved: Samples,
    /// Milliseconds from the start of the process to the first byte of an answer.
    pub answered: Samples,
    directory: PathBuf,
    kernel: PathBuf,
    accelerator: String,
    address: Ipv4Addr,
    tap: OwnedFd,
    process: Option<Child>,
}

impl Drop for Rival {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended; there is nobody to tell.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Builds the rivals' initrd.
pub(super) fn build_initrd(parts: &Parts, out: &Path) -> Result<()> {
    let busybox = crate::setup::find_program("busybox").context("there is no busybox")?;
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "mod", "tmp"] {
        archive.entry(directory, 0o040_755, &[], (0, 0));
    }
    // Without it the first process has no output before devtmpfs is mounted.
    archive.entry("dev/console", 0o020_600, &[], (5, 1));
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    archive.entry("bin/busybox", 0o100_755, &read(&busybox)?, (0, 0));
    archive.entry("bin/testserver", 0o100_755, &read(parts.server())?, (0, 0));
    let mut load = String::new();
    for module in GUEST_MODULES {
        for name in [(*module).to_owned(), module.replace('_', "-")] {
            let path = parts.kernel().modules().join(format!("{name}.ko"));
            if path.is_file() {
                archive.entry(&format!("mod/{module}.ko"), 0o100_644, &read(&path)?, (0, 0));
                load += &format!("$b insmod /mod/{module}.ko\n");
                break;
            }
        }
    }
    let init = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t proc proc /proc\n$b mount -t sysfs sysfs /sys\n\
         $b mount -t devtmpfs dev /dev\n{load}\
         for word in $($b cat /proc/cmdline); do case $word in own=*) own=${{word#own=}};; \
         gateway=*) gateway=${{word#gateway=}};; esac; done\n\
         $b ip link set lo up\n$b ip addr add $own/30 dev eth0\n$b ip link set eth0 up\n\
         $b ip route add default via $gateway\nulimit -n 65536\nexec /bin/testserver\n"
    );
    archive.entry("init", 0o100_755, init.as_bytes(), (0, 0));
    archive.entry("TRAILER!!!", 0, &[], (0, 0));
    let file = File::create(out).with_context(|| format!("making {}", out.display()))?;
    let mut encoder = GzEncoder::new(file, Compression::fast());
    encoder
        .write_all(&archive.bytes)
        .and_then(|()| encoder.finish())
        .context("writing the rivals' initrd")?;
    Ok(())
}

/// A cpio archive of the kind "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, contents: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let links = 1;
        self.bytes.extend(b"070701");
        let (number, size, length) = (self.entries, contents.len(), name.len() + 1);
        let (major, minor) = device;
        let fields = format!(
            "{number:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}\
             {length:08x}{:08x}",
            0, 0, 0, 0, 0, 0
        );
        self.bytes.extend(fields.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

impl Rival {
    /// Boots a rival in the data plane, fills a third of its RAM, and leaves it asleep. `number` tells
    /// rivals apart.
    pub(super) fn boot(lab: &Lab, parts: &Parts, way: Way, ram_mib: u64, number: u8) -> Result<Self> {
        let directory = lab.disk_directory().join(format!("rival-{number}"));
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let mac = [0x02, 0xd1, 0, 0, 0, number];
        let name = format!("rv{number}");
        let address = Ipv4Addr::new(10, 97, number, 2);
        let tap = lab.in_data_plane(|| -> Result<OwnedFd> {
            let tap = dormouse_sys::tap::create(&name, mac)?;
            let links = Links::open()?;
            links.add_address(&name, IpAddr::V4(Ipv4Addr::new(10, 97, number, 1)), 30)?;
            links.up(&name)?;
            links.add_neighbour(&name, IpAddr::V4(address), mac)?;
            Ok(tap)
        })??;
        // QEMU inherits it under the same number; it stays ours, so the device outlives each process.
        fcntl(&tap, FcntlArg::F_SETFD(FdFlag::empty())).context("keeping the tap over exec")?;
        let accelerator = lab.info()?.accelerator;
        let mut rival = Self {
            way,
            ram_mib,
            saved: Samples::default(),
            answered: Samples::default(),
            directory,
            kernel: parts.kernel().image(),
            accelerator,
            address,
            tap,
            process: None,
        };
        if way == Way::SaveVm {
            rival.make_disk()?;
        }
        rival.first_boot(lab, number)?;
        Ok(rival)
    }

    fn make_disk(&self) -> Result<()> {
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(self.disk())
            .arg("64M")
            .output()
            .context("starting qemu-img")?;
        ensure!(
            output.status.success(),
            "qemu-img: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn first_boot(&mut self, lab: &Lab, number: u8) -> Result<()> {
        let khz = dormouse_sys::clock::tsc_khz().context("measuring the time stamp counter")?;
        let append = format!(
            "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 tsc_early_khz={khz} tsc=reliable no_timer_check \
             random.trust_cpu=on own={} gateway=10.97.{number}.1",
            self.address
        );
        let initrd = lab.disk_directory().join("rival-initrd.gz");
        let boot = [
            "-kernel",
            &self.kernel.to_string_lossy(),
            "-initrd",
            &initrd.to_string_lossy(),
            "-append",
            &append,
        ]
        .map(str::to_owned);
        self.spawn(lab, &boot, Stdio::null())?;
        let (to, begun) = (SocketAddr::new(self.address.into(), TCP_PORT), Instant::now());
        while let Err(error) = lab.as_client(|| ask(to, b"awake?", Duration::from_secs(1)))? {
            if begun.elapsed() > BOOT_DEADLINE {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                return Err(error).with_context(|| format!("the rival did not boot\n{log}"));
            }
            tick(Duration::from_millis(100));
        }
        let (to, line) = (
            SocketAddr::new(self.address.into(), COMMAND_PORT),
            format!("fill {}", self.ram_mib / 3),
        );
        lab.as_client(|| ask_for_line(to, &line, BOOT_DEADLINE))?
            .context("filling the rival's RAM")?;
        self.sleep()
    }

    fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn monitor(&self) -> PathBuf {
        self.directory.join("qmp")
    }

    fn spawn(&mut self, lab: &Lab, more: &[String], input: Stdio) -> Result<()> {
        let _ = fs::remove_file(self.monitor());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .context("opening the rival's log")?;
        let (accelerator, model) = match self.accelerator.as_str() {
            "kvm" => ("kvm", "host"),
            _ => ("tcg", "max"),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-smp",
                "1",
                "-accel",
                accelerator,
            ])
            .args([
                "-cpu",
                model,
                "-m",
                &format!("{}M", self.ram_mib),
                "-M",
                "microvm,acpi=on",
            ])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-netdev", &format!("tap,id=n0,fd={}", self.tap.as_raw_fd())])
            .args([
                "-device",
                &format!("virtio-net-device,netdev=n0,mac={}", self.mac()),
            ])
            .arg("-chardev")
            .arg(format!(
                "file,id=ser,path={},append=on",
                self.directory.join("serial").display()
            ))
            .args(["-serial", "chardev:ser"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", self.monitor().display()));
        if self.way == Way::SaveVm {
            command.arg("-drive").arg(format!(
                "id=d0,if=none,format=qcow2,file={}",
                self.disk().display()
            ));
            command.args(["-device", "virtio-blk-device,drive=d0"]);
        }
        command.args(more).stdin(input).stdout(Stdio::null()).stderr(log);
        let child = lab
            .in_data_plane(move || command.spawn())?
            .context("starting the rival")?;
        self.process = Some(child);
        Ok(())
    }

    fn mac(&self) -> String {
        format!("02:d1:00:00:00:{:02x}", self.address.octets()[2])
    }

    /// Request to process gone.
    pub(super) fn sleep(&mut self) -> Result<()> {
        let mut qmp = Qmp::connect(&self.monitor(), MONITOR_DEADLINE)?;
        if self.way == Way::FullMigrate {
            // The default of 128 MiB/s is for networks.
            qmp.ask("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))?;
        }
        let mut child = self.process.take().context("the rival is not awake")?;
        let process = PidFd::open(child.id()).context("opening the rival's process")?;
        let asked = Instant::now();
        let outcome = self.save(&mut qmp).and_then(|()| {
            // It may hang up before it answers.
            let _ = qmp.ask("quit", json!({}));
            wait_exit(&process, MONITOR_DEADLINE)
        });
        if outcome.is_err() {
            child.kill().context("killing the rival")?;
        }
        child.wait().context("waiting for the rival")?;
        self.saved.push(ms_between(
            asked,
            outcome.with_context(|| format!("the rival {:?} asleep", self.way))?,
        ));
        Ok(())
    }

    fn save(&self, qmp: &mut Qmp) -> Result<()> {
        match self.way {
            Way::FullMigrate => {
                let state = File::create(self.state()).context("making the rival's state file")?;
                qmp.ask("stop", json!({}))?;
                qmp.give("state", state.as_fd())?;
                qmp.ask("migrate", json!({ "uri": "fd:state" }))?;
                qmp.until("query-migrate", "status", "completed")
            }
            Way::SaveVm => {
                let said = qmp.ask("human-monitor-command", json!({ "command-line": "savevm nap" }))?;
                match said.as_str() {
                    Some("") => Ok(()),
                    _ => bail!("savevm: {said}"),
                }
            }
        }
    }

    /// Start of the process to the first byte of an answer.
    pub(super) fn wake(&mut self, lab: &Lab, turn: usize) -> Result<()> {
        let (more, input) = match self.way {
            Way::FullMigrate => {
                let state = File::open(self.state()).context("opening the rival's state file")?;
                (["-incoming", "fd:0"].map(str::to_owned), Stdio::from(state))
            }
            Way::SaveVm => (["-loadvm", "nap"].map(str::to_owned), Stdio::null()),
        };
        let begun = Instant::now();
        self.spawn(lab, &more, input)?;
        let mut qmp = Qmp::connect(&self.monitor(), MONITOR_DEADLINE)?;
        match self.way {
            Way::FullMigrate => {
                qmp.until("query-migrate", "status", "completed")?;
                qmp.ask("cont", json!({}))?;
            }
            Way::SaveVm => qmp.until("query-status", "status", "running")?,
        }
        let to = SocketAddr::new(self.address.into(), TCP_PORT);
        let answer = lab.as_client(|| ask(to, &(turn as u64).to_be_bytes(), ANSWER_DEADLINE))?;
        let answer = answer.with_context(|| format!("waking the rival {:?}", self.way))?;
        self.answered
            .push(ms_between(begun, answer.begun) + answer.first_byte_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_one_that_cpio_reads() {
        let mut archive = Archive::default();
        archive.entry("bin", 0o040_755, &[], (0, 0));
        archive.entry("bin/x", 0o100_755, b"hello", (0, 0));
        archive.entry("TRAILER!!!", 0, &[], (0, 0));
        assert_eq!(archive.bytes.len() % 4, 0);
        let Some(cpio) = crate::setup::find_program("cpio") else {
            println!("skipped: the_archive_is_one_that_cpio_reads: no cpio");
            return;
        };
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.cpio");
        fs::write(&path, &archive.bytes).unwrap();
        let list = Command::new(cpio)
            .arg("-itv")
            .stdin(File::open(&path).unwrap())
            .output()
            .unwrap();
        assert!(list.status.success(), "{list:?}");
        let text = String::from_utf8(list.stdout).unwrap();
        assert!(
            text.lines().count() == 2 && text.contains("bin/x") && text.contains(" 5 "),
            "{text}"
        );
    }
}
