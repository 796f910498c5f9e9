//! The power goes while a store is written: cut points over a logged workload, each replayed as one of the
//! contents that the disk may then hold.
//!
//! `power_loss CUTS SEED` prints `count NAME VALUE` lines. Needs root and `/dev/fuse`.
//!
//! Several writers change keys of their own, one batch after the other, so that commits are grouped; the
//! store is closed and opened meanwhile. A mark goes into the log when a batch was acknowledged. After a
//! replay each writer's keys must be as after its last acknowledged batch, or as after the one that was
//! under way, wholly. The same log without its flushes shows that the harness would see a loss.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use dormouse_disklab::{Change, Disk, Platter};
use dormouse_store::{Batch, Record, RecordKind, Store};
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const WRITERS: u64 = 6;
/// Batches of each writer between two openings.
const BATCHES: u64 = 40;
const OPENINGS: u64 = 4;
/// A mark is a writer's number times this, and the batch's.
const WRITER: u64 = 1 << 32;

#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(uint64, tag = "1")]
    batch: u64,
    #[prost(bytes = "vec", tag = "2")]
    filling: Vec<u8>,
}

impl Record for Note {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 1;
}

/// What a writer's keys hold after its `batch`, by their last letter; batches count from 1.
fn truth(batch: u64) -> BTreeMap<char, u64> {
    let mut keys = BTreeMap::new();
    for batch in 1..=batch {
        keys.insert('a', batch);
        keys.insert('b', batch);
        if batch.is_multiple_of(3) {
            keys.remove(&'c');
        } else {
            keys.insert('c', batch);
        }
    }
    keys
}

fn key(writer: u64, letter: char) -> String {
    format!("{writer}{letter}")
}

fn batch(writer: u64, number: u64) -> Batch {
    // A large one now and then moves the log into the database.
    let size = if number.is_multiple_of(7) { 60_000 } else { 200 };
    let note = |size| Note {
        batch: number,
        filling: vec![u8::try_from(number % 251).unwrap_or(0); size],
    };
    let batch = Batch::new()
        .put(key(writer, 'a').as_str(), &note(size))
        .put(key(writer, 'b').as_str(), &note(10));
    if number.is_multiple_of(3) {
        batch.delete::<Note>(key(writer, 'c').as_str())
    } else {
        batch.put(key(writer, 'c').as_str(), &note(3000))
    }
}

async fn work(disk: &Arc<Disk>) -> Outcome<()> {
    for opening in 0..OPENINGS {
        let store = Store::open(&disk.root().join("records.db")).await?;
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (store, disk) = (store.clone(), Arc::clone(disk));
            writers.spawn(async move {
                for number in opening * BATCHES + 1..=(opening + 1) * BATCHES {
                    store.apply(batch(writer, number)).await?;
                    // Before the next batch is begun: one at most is under way.
                    disk.mark(writer * WRITER + number);
                }
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            });
        }
        while let Some(done) = writers.join_next().await {
            done??;
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Counts {
    cut_points: u64,
    acknowledged_lost: u64,
    half_batches: u64,
    unreadable: u64,
    unsound: u64,
    /// Losses are planted: nobody wants to read of each.
    quiet: bool,
}

/// Opens what survived and compares it with what was acknowledged.
async fn judge(root: &Path, acknowledged: &BTreeMap<u64, u64>, counts: &mut Counts) -> Outcome<()> {
    counts.cut_points += 1;
    let store = match Store::open(&root.join("records.db")).await {
        Ok(store) => store,
        Err(error) => {
            counts.unreadable += 1;
            if !counts.quiet {
                println!(
                    "unreadable: {error}: {:?}",
                    error.source().map(ToString::to_string)
                );
            }
            return Ok(());
        }
    };
    counts.unsound += u64::from(!store.check().await?.is_sound());
    let mut found: BTreeMap<u64, BTreeMap<char, u64>> = BTreeMap::new();
    for (key, note) in store.list::<Note>().await?.records {
        let key = key.to_string();
        let (writer, letter) = key.split_at(key.len() - 1);
        let letter = letter.chars().next().unwrap_or('?');
        found
            .entry(writer.parse()?)
            .or_default()
            .insert(letter, note.batch);
    }
    for writer in 0..WRITERS {
        let last = acknowledged.get(&writer).copied().unwrap_or(0);
        let found = found.remove(&writer).unwrap_or_default();
        if found == truth(last) || found == truth(last + 1) {
            continue;
        }
        let newest = found.values().copied().max().unwrap_or(0);
        if newest < last {
            counts.acknowledged_lost += 1;
        } else {
            counts.half_batches += 1;
        }
    }
    Ok(())
}

/// Replays `log` up to `cuts` points.
async fn replay(log: &[Change], cuts: u64, seed: u64, scratch: &Path, quiet: bool) -> Outcome<Counts> {
    let mut counts = Counts {
        quiet,
        ..Counts::default()
    };
    let (mut platter, mut done) = (Platter::default(), 0);
    let mut acknowledged = BTreeMap::new();
    let length = u64::try_from(log.len())?;
    for cut in 1..=cuts {
        let until = usize::try_from(length * cut / cuts)?;
        for change in log.get(done..until).unwrap_or_default() {
            platter.apply(change);
            if let Change::Mark(mark) = change {
                acknowledged.insert(mark / WRITER, mark % WRITER);
            }
        }
        done = until;
        let after = tempfile::tempdir_in(scratch)?;
        platter
            .survivors(seed.wrapping_mul(1_000_003).wrapping_add(cut))
            .write_to(after.path())?;
        judge(after.path(), &acknowledged, &mut counts).await?;
    }
    Ok(counts)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let cuts: u64 = arguments.next().unwrap_or_else(|| "50".to_owned()).parse()?;
    let seed: u64 = arguments.next().unwrap_or_else(|| "1".to_owned()).parse()?;
    let memory = Path::new("/dev/shm");
    let scratch = if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    };
    let directory = tempfile::tempdir_in(scratch)?;
    let (backing, root) = (directory.path().join("backing"), directory.path().join("disk"));
    std::fs::create_dir(&backing)?;
    std::fs::create_dir(&root)?;
    let disk = Arc::new(Disk::mount(&backing, &root)?);
    work(&disk).await?;
    let log = disk.log();
    drop(disk);
    let counts = replay(&log, cuts, seed, directory.path(), false).await?;
    let careless: Vec<Change> = log.iter().filter(|change| !change.is_flush()).cloned().collect();
    let planted = replay(&careless, cuts.min(50), seed, directory.path(), true).await?;
    let flushes = log.iter().filter(|change| change.is_flush()).count();
    for (name, value) in [
        ("cut_points", counts.cut_points),
        ("acknowledged_lost", counts.acknowledged_lost),
        ("half_batches", counts.half_batches),
        ("unreadable", counts.unreadable),
        ("unsound", counts.unsound),
        ("planted_found", planted.acknowledged_lost + planted.unreadable),
        ("log_changes", u64::try_from(log.len())?),
        ("log_flushes", u64::try_from(flushes)?),
    ] {
        println!("count {name} {value}");
    }
    Ok(())
}
