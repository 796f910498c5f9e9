//! A disk that fails at each of an operation's changes, one after the other: the k-th write, truncation,
//! name or flush finds no room, once or from then on. Then the operation is done, or it is as if it had
//! not been asked for; the daemon serves; and once there is room, it succeeds.
//!
//! The data directory is on a disk of [`dormouse_disklab`]. The long form takes every k until the operation
//! ends untouched; the short form a few of them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1;
use dormouse_client::v1::InstanceState as State;
use dormouse_disklab::{Disk, Fail, Failure, Faults};

use super::bed::{Bed, Picture, Tally, check, code_of};
use super::disk::FULL;
use super::guests::{Verb, small};
use crate::lab::{Parts, tick};

const AREA: &str = "writes";

/// How many of an operation's changes the short form fails.
const FEW: u64 = 6;

/// What undoes, clears or spills in the background has ended after this.
const SETTLES: Duration = Duration::from_secs(20);

/// A disk of the harness's own, mounted where the daemon's data shall be.
pub(super) struct Mounted {
    // Unmounted before the directory goes.
    pub(super) disk: Disk,
    place: tempfile::TempDir,
}

impl Mounted {
    pub(super) fn make() -> Result<Self> {
        let place = tempfile::Builder::new()
            .prefix("dormouse-writes-")
            .tempdir_in("/var/tmp")
            .context("making a mount point")?;
        let (backing, at) = (place.path().join("backing"), place.path().join("data"));
        fs::create_dir(&backing)?;
        fs::create_dir(&at)?;
        let disk = Disk::mount(&backing, &at).context("mounting the disk that fails")?;
        // Nobody replays it.
        disk.set_silent(true);
        Ok(Self { disk, place })
    }

    /// A daemon whose data are there.
    pub(super) fn bed(&self, short: bool, parts: &Parts) -> Result<Bed> {
        let data = self.disk.root().to_string_lossy().into_owned();
        let kernel = parts.kernel().directory.to_string_lossy().into_owned();
        let environment = [
            ("DORMOUSE_DATA_DIRECTORY", data.as_str()),
            ("DORMOUSE_GUEST__KERNEL", kernel.as_str()),
        ];
        let mut bed = Bed::with(short, parts.clone(), &environment)?;
        bed.data = self.disk.root().to_owned();
        fs::write(self.archive(), super::disk::other_image().build())?;
        bed.import_guest_image()?;
        Ok(bed)
    }

    /// An image to import, on another disk.
    pub(super) fn archive(&self) -> std::path::PathBuf {
        self.place.path().join("other.tar")
    }
}

/// Why it cannot run here.
pub(super) fn lacking() -> Option<&'static str> {
    (!Path::new("/dev/fuse").exists()).then_some("no /dev/fuse")
}

/// One operation.
pub(super) struct Operation {
    pub(super) name: &'static str,
    /// What there must be, on a disk that works.
    pub(super) ready: fn(&Bed) -> Result<()>,
    /// The operation, with all that it does in the background.
    pub(super) work: fn(&Bed, &Path) -> Result<()>,
}

/// All that write.
pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "import",
        ready: |_| Ok(()),
        work: |bed, archive| bed.lab.import(archive),
    },
    Operation {
        name: "create",
        ready: |_| Ok(()),
        work: |bed, _| {
            let made = bed.create(v1::CreateInstanceRequest {
                start: false,
                ..spilling()
            })?;
            bed.until(&made.id, &[State::Stopped]).map(drop)
        },
    },
    Operation {
        name: "start",
        ready: |bed| {
            let made = bed.create(v1::CreateInstanceRequest {
                start: false,
                ..spilling()
            })?;
            bed.until(&made.id, &[State::Stopped]).map(drop)
        },
        work: |bed, _| {
            bed.ask(Verb::Start, NAME, "")?;
            bed.until(NAME, &[State::Running]).map(drop)
        },
    },
    Operation {
        name: "standby",
        ready: running,
        work: |bed, _| {
            bed.ask(Verb::Standby, NAME, "")?;
            bed.until(NAME, &[State::Standby]).map(drop)
        },
    },
    Operation {
        name: "wake",
        ready: |bed| {
            running(bed)?;
            bed.ask(Verb::Standby, NAME, "")?;
            spilled(bed)
        },
        work: |bed, _| {
            bed.ask(Verb::Wake, NAME, "")?;
            bed.until(NAME, &[State::Running]).map(drop)
        },
    },
    Operation {
        name: "delete",
        ready: |bed| {
            running(bed)?;
            bed.ask(Verb::Standby, NAME, "")?;
            spilled(bed)
        },
        work: |bed, _| bed.remove(NAME),
    },
];

/// The guest of all cases.
pub(super) const NAME: &str = "writes";

/// Its memory goes to the disk when it sleeps.
fn spilling() -> v1::CreateInstanceRequest {
    v1::CreateInstanceRequest {
        placement: v1::MemoryPlacement::Spill.into(),
        ..small(NAME)
    }
}

fn running(bed: &Bed) -> Result<()> {
    let made = bed.create(spilling())?;
    bed.until(&made.id, &[State::Running])?;
    // The scripted monitor touches no memory, and nothing is spilled of what was never touched.
    let memory = resident(bed, &made.id).context("the guest has no memory on tmpfs")?;
    let file = fs::File::options().write(true).open(&memory)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 300 << 10], 1 << 20)
        .with_context(|| format!("dirtying {}", memory.display()))
}

/// The file of the guest's memory on tmpfs.
fn resident(bed: &Bed, id: &str) -> Option<std::path::PathBuf> {
    let mut open = vec![bed.lab.run_directory().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().ok()?);
            if kind.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(id)
                && entry.file_name().to_string_lossy().contains(".ram")
            {
                return Some(path);
            }
        }
    }
    None
}

/// Waits until the memory of the sleeper is on disk alone.
fn spilled(bed: &Bed) -> Result<()> {
    let id = bed.instance(NAME)?.id;
    let begun = Instant::now();
    while resident(bed, &id).is_some() {
        ensure!(begun.elapsed() < SETTLES, "the spill does not end");
        tick(Duration::from_millis(5));
    }
    Ok(())
}

/// Every operation, with a disk that fails once, and with one that goes on failing.
pub(crate) fn run(short: bool, parts: &Parts) -> Result<Tally> {
    let mut tally = Tally::default();
    if let Some(why) = lacking() {
        tally.skip(AREA, "all", why);
        return Ok(tally);
    }
    let mounted = Mounted::make()?;
    let mut bed = mounted.bed(short, parts)?;
    for lasting in [false, true] {
        for operation in OPERATIONS {
            let begun = Instant::now();
            match swept(&mut bed, &mounted, operation, lasting) {
                Ok(places) => println!(
                    "  {} {}: {places} places in {:.1} s",
                    operation.name,
                    series(lasting),
                    begun.elapsed().as_secs_f64()
                ),
                Err(error) => {
                    mounted.disk.set_faults(Faults::default());
                    let name = format!("{} {}", operation.name, series(lasting));
                    bed.tally.note(AREA, &name, Some(format!("{error:#}")));
                    let _gone = bed.remove(NAME);
                    let _removed = bed.remove_image("other:1");
                }
            }
        }
    }
    super::finish(bed, &mut tally)?;
    Ok(tally)
}

const fn series(lasting: bool) -> &'static str {
    if lasting {
        "from a change on"
    } else {
        "at one change"
    }
}

/// Fails one change after the other; returns at how many.
fn swept(bed: &mut Bed, mounted: &Mounted, operation: &Operation, lasting: bool) -> Result<u64> {
    let step = if bed.short {
        stride(bed, mounted, operation)?
    } else {
        1
    };
    let (mut place, mut places) = (1, 0);
    loop {
        let touched = attempt(bed, mounted, operation, place, lasting)?;
        if !touched {
            return Ok(places);
        }
        places += 1;
        place += step;
    }
}

/// How far apart the changes are that the short form fails.
fn stride(bed: &Bed, mounted: &Mounted, operation: &Operation) -> Result<u64> {
    let baseline = bed.picture()?;
    (operation.ready)(bed)?;
    let before = mounted.disk.tally().calls;
    (operation.work)(bed, &mounted.archive())?;
    let calls = mounted.disk.tally().calls - before;
    cleared(bed, &baseline)?;
    Ok((calls / FEW).max(1))
}

/// One operation whose change number `place` fails; whether any did.
fn attempt(
    bed: &mut Bed,
    mounted: &Mounted,
    operation: &Operation,
    place: u64,
    lasting: bool,
) -> Result<bool> {
    let name = format!("{} {} ({place})", operation.name, series(lasting));
    let baseline = bed.picture()?;
    (operation.ready)(bed).with_context(|| format!("making ready for {name}"))?;
    let before = bed.picture()?;
    let failed = mounted.disk.tally().failed;
    mounted.disk.set_faults(Faults {
        fail: Some(if lasting {
            Fail::from(place, Failure::Full)
        } else {
            Fail::once(place, Failure::Full)
        }),
        ..Faults::default()
    });
    let outcome = (operation.work)(bed, &mounted.archive());
    let serves = bed.instances().map(drop);
    if operation.name == "standby" && outcome.is_ok() {
        // The spill goes on in the background, and meets the fault there.
        hit_or_spilled(bed, mounted, failed);
    }
    let touched = mounted.disk.tally().failed > failed;
    mounted.disk.set_faults(Faults::default());
    let judged = serves
        .context("the daemon does not serve")
        .and_then(|()| judge(bed, operation, &outcome, &before, &mounted.archive()))
        .and_then(|()| cleared(bed, &baseline));
    if judged.is_err() {
        let _gone = bed.remove(NAME);
        let _removed = bed.remove_image("other:1");
    }
    let fault = judged.err().map(|error| format!("{error:#}"));
    bed.tally.note(AREA, &name, fault);
    Ok(touched)
}

fn hit_or_spilled(bed: &Bed, mounted: &Mounted, failed: u64) {
    let Ok(id) = bed.instance(NAME).map(|found| found.id) else {
        return;
    };
    let begun = Instant::now();
    while mounted.disk.tally().failed == failed && resident(bed, &id).is_some() && begun.elapsed() < SETTLES {
        tick(Duration::from_millis(5));
    }
}

/// What came of it: done, or as before and done when it is asked for again.
fn judge(
    bed: &Bed,
    operation: &Operation,
    outcome: &Result<()>,
    before: &Picture,
    archive: &Path,
) -> Result<()> {
    if let Some(fault) = check(FULL, outcome) {
        anyhow::bail!("{fault}");
    }
    if outcome.is_ok() {
        return Ok(());
    }
    // A removal that began goes on when it is asked for again: what it has removed stays so. A start that
    // failed says why.
    let same = || -> Result<bool> {
        Ok(match operation.name {
            "delete" => true,
            "start" => bed
                .instances()?
                .iter()
                .all(|instance| instance.state() == State::Stopped || instance.state_reason.len() > 8),
            "standby" => {
                let now = bed.picture()?;
                now == *before || now.is_after_an_unwritten_sleep(before)
            }
            _ => bed.picture()? == *before,
        })
    };
    let begun = Instant::now();
    while !same()? {
        ensure!(
            begun.elapsed() < SETTLES,
            "after {} it left: {}",
            outcome
                .as_ref()
                .err()
                .map_or_else(String::new, |error| format!("{error:#}")),
            before.difference(&bed.picture()?)
        );
        tick(Duration::from_millis(10));
    }
    again(bed, operation, archive)
}

/// The same with room on the disk. While what failed is being cleared, it may be busy.
fn again(bed: &Bed, operation: &Operation, archive: &Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        match (operation.work)(bed, archive) {
            Err(error) if code_of(&error) == "INSTANCE_BUSY" && begun.elapsed() < SETTLES => {
                tick(Duration::from_millis(10));
            }
            Err(error) if operation.name == "delete" && code_of(&error) == "INSTANCE_NOT_FOUND" => {
                return Ok(());
            }
            outcome => return outcome.context("once there was room"),
        }
    }
}

/// Removes what the operation made; then nothing is left of it.
fn cleared(bed: &Bed, baseline: &Picture) -> Result<()> {
    if bed.instance(NAME).is_ok() {
        bed.remove(NAME)?;
    }
    let _none = bed.remove_image("other:1");
    let begun = Instant::now();
    loop {
        let now = bed.picture()?;
        if now == *baseline {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < SETTLES,
            "it leaked: {}",
            baseline.difference(&now)
        );
        tick(Duration::from_millis(10));
    }
}
