//! A disk that fills up, at every write: an operation is done, or it is as if it had not been asked for. And
//! one that is mounted so that no program runs from it.
//!
//! The data directory is a small tmpfs of the case's own. Before an operation so much of it is filled that
//! only a few blocks are left, one more each time, so that each of its writes is once the first that finds
//! no room; and the ledger has no floor then, or it would refuse before.

#![allow(
    clippy::too_many_lines,
    clippy::semicolon_if_nothing_returned,
    reason = "a function is a table of cases"
)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1;
use dormouse_client::v1::InstanceState as State;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use super::archive::Image;
use super::bed::{Bed, Tally, check};
use super::guests::{Verb, small};
use crate::lab::Parts;

const AREA: &str = "disk";

/// The size of the disk.
const SIZE: &str = "96m";
/// Blocks of 4 KiB that are left, at the steps of a sweep.
const LEFT: &[u64] = &[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768,
    1024,
];
/// The same of the short form.
const FEW: &[u64] = &[0, 1, 4, 16, 64, 256, 1024];

/// What a full disk may be called, by who meets it.
pub(super) const FULL: &str = "OK|IMAGE_DISK_FULL|LEDGER_DISK|STORE_FULL|STORE_BROKEN|STORE_COMMIT_FAILED|\
                    IMAGE_INDEX_FAILED|INSTANCE_FAILED";

/// A small disk, unmounted at the end.
struct Disk {
    place: tempfile::TempDir,
}

impl Disk {
    fn make() -> Result<Self> {
        let place = tempfile::Builder::new()
            .prefix("dormouse-full-")
            .tempdir_in("/var/tmp")
            .context("making a mount point")?;
        let options = format!("size={SIZE},mode=0700");
        mount(
            Some("dormouse-full"),
            place.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("mounting a small disk")?;
        Ok(Self { place })
    }

    fn filler(&self) -> PathBuf {
        self.place.path().join("filler")
    }

    /// Lets programs of it run, or none.
    fn execution(&self, allowed: bool) -> Result<()> {
        let flags = if allowed {
            MsFlags::MS_REMOUNT
        } else {
            MsFlags::MS_REMOUNT | MsFlags::MS_NOEXEC
        };
        let options = format!("size={SIZE},mode=0700");
        mount(
            None::<&str>,
            self.place.path(),
            None::<&str>,
            flags,
            Some(options.as_str()),
        )
        .context("mounting the small disk otherwise")
    }

    /// Fills it until `blocks` are left.
    fn leave(&self, blocks: u64) -> Result<()> {
        self.free()?;
        let found = statvfs(self.place.path())?;
        let count = found.blocks_available().saturating_sub(blocks);
        let mut file = File::create(self.filler())?;
        let zeros = vec![0_u8; 1 << 20];
        let mut bytes = count * found.fragment_size();
        while bytes > 0 {
            let part = usize::try_from(bytes).unwrap_or(zeros.len()).min(zeros.len());
            file.write_all(zeros.get(..part).unwrap_or_default())?;
            bytes -= part as u64;
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The mount point is removed after this, and says so when it cannot be.
        let _busy = umount2(self.place.path(), MntFlags::MNT_DETACH);
    }
}

/// All operations, in a bed of its own.
pub(crate) fn run(short: bool, parts: &Parts) -> Result<Tally> {
    let disk = Disk::make()?;
    let mut tally = Tally::default();
    let data = disk.place.path().to_string_lossy().into_owned();
    let kernel = parts.kernel().directory.to_string_lossy().into_owned();
    for (floor, sweep) in [("1GiB", false), ("0MiB", true)] {
        let environment = [
            ("DORMOUSE_DATA_DIRECTORY", data.as_str()),
            ("DORMOUSE_GUEST__KERNEL", kernel.as_str()),
            ("DORMOUSE_LEDGER__DISK_FLOOR", floor),
        ];
        let mut bed = Bed::with(short, parts.clone(), &environment)?;
        bed.data = disk.place.path().to_owned();
        let outcome = if sweep {
            unexecuted(&mut bed, &disk).and_then(|()| swept(&mut bed, &disk))
        } else {
            floored(&mut bed)
        };
        if let Err(error) = outcome {
            bed.tally
                .note(AREA, "the cases themselves", Some(format!("{error:#}")));
        }
        super::finish(bed, &mut tally)?;
    }
    Ok(tally)
}

/// A disk that is not full, but too full to promise anything of it.
fn floored(bed: &mut Bed) -> Result<()> {
    // An image is small: what it takes is not asked of the ledger.
    bed.import_guest_image()?;
    bed.case(AREA, "creation below the floor", "LEDGER_DISK", |bed| {
        bed.create(small("floored"))
    })
}

/// Monitors run from the data directory: where none can, nothing is begun that needs one.
fn unexecuted(bed: &mut Bed, disk: &Disk) -> Result<()> {
    const WANT: &str = "DRIVER_KEEP_NOEXEC";
    bed.import_guest_image()?;
    let mut stopped = small("stopped");
    stopped.start = false;
    bed.create(stopped)?;
    bed.asleep("asleep")?;
    bed.running("awake")?;
    disk.execution(false)?;
    bed.case(AREA, "creation where no monitor runs", WANT, |bed| {
        bed.create(small("new"))
    })?;
    bed.case(AREA, "start where no monitor runs", WANT, |bed| {
        bed.ask(Verb::Start, "stopped", "")
    })?;
    bed.case(AREA, "wake where no monitor runs", WANT, |bed| {
        bed.ask(Verb::Wake, "asleep", "")
    })?;
    bed.case(AREA, "standby where no monitor runs", "OK", |bed| {
        bed.ask(Verb::Standby, "awake", "")
    })?;
    bed.case(AREA, "the doctor's word on it", "OK", |bed| {
        let checks = bed.lab.call(|client| async move {
            let request = v1::DoctorRequest {};
            Ok(client.system().doctor(request).await?.into_inner().checks)
        })?;
        let said = checks.iter().find(|check| check.name == "programs");
        let said = said.context("it does not look")?;
        ensure!(
            said.status() == v1::CheckStatus::Failed,
            "it says {}",
            said.detail
        );
        Ok(())
    })?;
    disk.execution(true)?;
    for name in ["asleep", "awake"] {
        bed.case(
            AREA,
            &format!("wake of {name} where monitors run again"),
            "OK",
            |bed| bed.ask(Verb::Wake, name, ""),
        )?;
        bed.remove(name)?;
    }
    bed.remove("stopped")
}

fn swept(bed: &mut Bed, disk: &Disk) -> Result<()> {
    let steps = if bed.short { FEW } else { LEFT };
    for &blocks in steps {
        attempt(
            bed,
            disk,
            "import",
            blocks,
            |_| Ok(()),
            |bed| {
                let place =
                    Path::new("/var/tmp").join(format!("dormouse-hostile-{}.tar", std::process::id()));
                fs::write(&place, other_image().build())?;
                let outcome = bed.lab.import(&place);
                fs::remove_file(&place)?;
                outcome
            },
        )?;
        // What came of an import that succeeded.
        let _none = bed.remove_image("other:1");
        attempt(
            bed,
            disk,
            "create",
            blocks,
            |_| Ok(()),
            |bed| {
                let made = bed.create(small("full"))?;
                let now = bed.until(&made.id, &[State::Running, State::Failed])?;
                ensure!(
                    now.state() == State::Running || now.state_reason.len() > 8,
                    "failed without a reason"
                );
                Ok(())
            },
        )?;
        attempt(bed, disk, "standby", blocks, awake, |bed| {
            bed.ask(Verb::Standby, "full", "")
        })?;
        attempt(
            bed,
            disk,
            "wake",
            blocks,
            |bed| {
                awake(bed)?;
                bed.ask(Verb::Standby, "full", "")
            },
            |bed| bed.ask(Verb::Wake, "full", ""),
        )?;
        attempt(bed, disk, "delete", blocks, awake, |bed| bed.remove("full"))?;
    }
    Ok(())
}

fn awake(bed: &Bed) -> Result<()> {
    bed.running("full").map(drop)
}

pub(super) fn other_image() -> Image {
    Image {
        index: Box::new(|index| {
            index["manifests"][0]["annotations"] =
                serde_json::json!({ "org.opencontainers.image.ref.name": "other:1" });
        }),
        config: Box::new(|config| config["config"]["Env"] = serde_json::json!(["OTHER=1"])),
        ..Image::default()
    }
}

/// One operation on a disk with `blocks` left. What `before` makes is removed afterwards.
fn attempt(
    bed: &mut Bed,
    disk: &Disk,
    what: &str,
    blocks: u64,
    before: impl FnOnce(&Bed) -> Result<()>,
    work: impl FnOnce(&Bed) -> Result<()>,
) -> Result<()> {
    before(bed).with_context(|| format!("making ready for {what}"))?;
    let states = |bed: &Bed| -> Result<Vec<(String, State)>> {
        Ok(bed
            .instances()?
            .into_iter()
            .map(|instance| (instance.name.clone(), instance.state()))
            .collect())
    };
    let (at_first, pictured) = (states(bed)?, bed.picture()?);
    disk.leave(blocks)?;
    let outcome = work(bed);
    disk.free()?;
    let mut fault = check(FULL, &outcome);
    if fault.is_none() && outcome.is_err() {
        let now = states(bed)?;
        if now != at_first {
            // A created instance whose start failed stays, with its reason.
            let explained = bed
                .instances()?
                .iter()
                .all(|instance| instance.state() != State::Failed || instance.state_reason.len() > 8);
            // A removal stays where it was, and goes on when it is asked for again, below.
            let stays = what == "delete" || what == "create" && explained;
            if !stays {
                fault = Some(format!(
                    "was {at_first:?} and is {now:?} after {:#}",
                    outcome.err().unwrap_or_else(|| anyhow::anyhow!("nothing"))
                ));
            }
        } else if what == "import" && bed.picture()? != pictured {
            fault = Some(format!("left behind: {}", pictured.difference(&bed.picture()?)));
        }
    }
    bed.tally
        .note(AREA, &format!("{what} with {blocks} blocks left"), fault);
    if bed.instance("full").is_ok() {
        bed.remove("full")?;
    }
    Ok(())
}
