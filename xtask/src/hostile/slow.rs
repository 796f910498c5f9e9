//! A slow disk: every write and every flush takes its time. Nothing fails of it, and who asks for something
//! else is answered meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_disklab::Faults;

use super::bed::{Bed, Tally};
use super::writes::{Mounted, NAME, OPERATIONS, Operation, lacking};
use crate::lab::{Parts, tick};

const AREA: &str = "slow";

/// How slow: the time of a write and of a flush, and whether the short form has it.
const PACES: &[(Duration, Duration, bool)] = &[
    (Duration::from_millis(20), Duration::from_millis(100), true),
    (Duration::from_millis(5), Duration::from_millis(400), false),
    (Duration::from_millis(80), Duration::from_millis(80), false),
];

/// A question that needs no disk is answered within this, whatever the disk does.
const ANSWERED: Duration = Duration::from_secs(2);

/// Every operation at every pace.
pub(crate) fn run(short: bool, parts: &Parts) -> Result<Tally> {
    let mut tally = Tally::default();
    if let Some(why) = lacking() {
        tally.skip(AREA, "all", why);
        return Ok(tally);
    }
    let mounted = Mounted::make()?;
    let mut bed = mounted.bed(short, parts)?;
    for &(write_delay, flush_delay, in_short) in PACES {
        if short && !in_short {
            continue;
        }
        let faults = Faults {
            write_delay,
            flush_delay,
            ..Faults::default()
        };
        for operation in OPERATIONS {
            let name = format!(
                "{} with {write_delay:?} a write and {flush_delay:?} a flush",
                operation.name
            );
            let begun = Instant::now();
            let outcome = slowly(&bed, &mounted, operation, faults);
            mounted.disk.set_faults(Faults::default());
            println!("  {name}: {:.1} s", begun.elapsed().as_secs_f64());
            bed.tally
                .note(AREA, &name, outcome.err().map(|error| format!("{error:#}")));
            let _none = bed.remove(NAME);
            let _none = bed.remove_image("other:1");
        }
    }
    super::finish(bed, &mut tally)?;
    Ok(tally)
}

/// The operation on a slow disk, while somebody asks what there is.
fn slowly(bed: &Bed, mounted: &Mounted, operation: &Operation, faults: Faults) -> Result<()> {
    (operation.ready)(bed).context("making ready")?;
    mounted.disk.set_faults(faults);
    let archive = mounted.archive();
    let (outcome, slowest) = std::thread::scope(|threads| -> Result<_> {
        let working = threads.spawn(|| (operation.work)(bed, &archive));
        let mut slowest = Duration::ZERO;
        while !working.is_finished() {
            let asked = Instant::now();
            bed.instances().context("asking meanwhile")?;
            slowest = slowest.max(asked.elapsed());
            tick(Duration::from_millis(20));
        }
        let outcome = working
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
        Ok((outcome, slowest))
    })?;
    outcome?;
    ensure!(
        slowest < ANSWERED,
        "a question meanwhile was answered after {slowest:?}"
    );
    Ok(())
}
