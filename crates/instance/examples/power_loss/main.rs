//! The power goes while instances are made, put to sleep, woken and removed: cut points over a logged
//! workload, each replayed as one of the contents that the disk may then hold, and a manager recovered on it.
//!
//! `power_loss CUTS SEED` prints `count NAME VALUE` lines. Needs root, `/dev/fuse`, nft and ip.
//!
//! Guests are puppets (`puppet`): each time one runs it writes a new number into its memory and its disk, so
//! that the harness knows what a snapshot must hold. Half of the cuts are reboots: another boot id, and what
//! was on tmpfs is gone. The others are crashes of the disk's file system alone, which is mounted anew: what
//! was on tmpfs is as it was.
//!
//! What must survive: memory on tmpfs a crash, settled memory on disk a reboot too. Memory that its sleep left
//! on disk and nobody has settled yet is refused with a reason, or whole.
//!
//! | count | is |
//! |---|---|
//! | `acknowledged_lost` | an instance, standby or removal that was acknowledged and is not so |
//! | `believed_wrong` | a snapshot loaded of which state, memory or disk is not that of its standby, or of which the guest has run since |
//! | `unreadable` | a disk on which no manager starts |
//! | `unexplained` | an instance that is not as it was acknowledged, without a reason |
//! | `believed`, `refused` | snapshots loaded, and those refused with a reason |

mod judge;
mod private;
mod puppet;
mod workload;
mod world;

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dormouse_disklab::{Change, Disk, Platter};
use dormouse_model::Bytes;

use judge::{Counts, Knowledge, judge};
use workload::Deed;
use world::World;

/// Whatever goes wrong with the harness itself.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The boot after a cut that is a reboot: no kernel's.
const LATER_BOOT: &str = "11111111-1111-4111-8111-111111111111";

/// A disk that was written, and what was known at each of its marks.
struct Recording {
    log: Vec<Change>,
    deeds: Vec<Deed>,
}

async fn record(world: &World, scratch: &Path, boot_id: &str) -> Outcome<Recording> {
    let directory = tempfile::tempdir_in(scratch)?;
    let (backing, root) = (directory.path().join("backing"), directory.path().join("disk"));
    std::fs::create_dir(&backing)?;
    std::fs::create_dir(&root)?;
    let disk = Arc::new(Disk::mount(&backing, &root)?);
    for folder in ["data", "data/instances", "ram"] {
        std::fs::create_dir(root.join(folder))?;
    }
    // As the daemon does before anything else.
    for folder in ["", "data"] {
        File::open(root.join(folder))?.sync_all()?;
    }
    let deeds = Arc::new(Mutex::new(Vec::new()));
    workload::run(world, &disk, boot_id, &deeds).await?;
    let log = disk.log();
    let deeds = std::mem::take(&mut *deeds.lock().map_err(|_| "poisoned")?);
    Ok(Recording { log, deeds })
}

async fn replay(
    world: &World,
    recording: &Recording,
    scratch: &Path,
    cuts: u64,
    seed: u64,
    reboot: bool,
    counts: &mut Counts,
) -> Outcome<()> {
    let this_boot = dormouse_sys::clock::boot_id()?;
    let boot_id = if reboot { LATER_BOOT } else { &this_boot };
    let (mut platter, mut done) = (Platter::default(), 0);
    let mut known = Knowledge::default();
    let length = u64::try_from(recording.log.len())?;
    for cut in 1..=cuts {
        let until = usize::try_from(length * cut / cuts)?;
        for change in recording.log.get(done..until).unwrap_or_default() {
            platter.apply(change);
            if let Change::Mark(mark) = change
                && let Some(deed) = recording.deeds.get(usize::try_from(*mark)?)
            {
                known.learn(deed);
            }
        }
        done = until;
        let mut tree = platter.survivors(seed.wrapping_mul(1_000_003).wrapping_add(cut));
        tree.replace(
            Path::new("ram"),
            if reboot { None } else { Some(platter.current()) },
        );
        let directory = tempfile::tempdir_in(scratch)?;
        let (backing, root) = (directory.path().join("backing"), directory.path().join("disk"));
        std::fs::create_dir(&backing)?;
        std::fs::create_dir(&root)?;
        let disk = Disk::mount_tree(&tree, &backing, &root)?;
        disk.set_silent(true);
        judge(world, disk.root(), boot_id, &known, reboot, counts).await?;
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [private::ROLE, size] => Ok(private::serve(Bytes(size.parse()?))?),
        [cuts, seed] => tokio::runtime::Runtime::new()?.block_on(cut(cuts.parse()?, seed.parse()?)),
        _ => Err("power_loss CUTS SEED".into()),
    }
}

async fn cut(cuts: u64, seed: u64) -> Outcome<()> {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    };
    let directory = tempfile::tempdir_in(base)?;
    let scratch = directory.path();
    let world = World::make(scratch).await?;
    let mut counts = Counts::default();
    let boot_id = dormouse_sys::clock::boot_id()?;
    let outcome = async {
        for reboot in [true, false] {
            let recording = record(&world, scratch, &boot_id).await?;
            replay(
                &world,
                &recording,
                scratch,
                cuts.div_ceil(2),
                seed,
                reboot,
                &mut counts,
            )
            .await?;
            counts.log_changes += u64::try_from(recording.log.len())?;
            // The same without flushes: the harness sees what is lost.
            let careless = Recording {
                log: recording
                    .log
                    .iter()
                    .filter(|change| !change.is_flush())
                    .cloned()
                    .collect(),
                deeds: recording.deeds,
            };
            let mut planted = Counts {
                quiet: true,
                ..Counts::default()
            };
            replay(
                &world,
                &careless,
                scratch,
                cuts.div_ceil(8).clamp(5, 20),
                seed,
                reboot,
                &mut planted,
            )
            .await?;
            counts.planted_found += planted.acknowledged_lost + planted.unreadable + planted.unexplained;
        }
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    };
    let outcome = outcome.await;
    world.end().await?;
    outcome?;
    counts.print();
    Ok(())
}
