//! `test hostile`: input that nobody sends by mistake, against a private daemon. Each case states the code
//! that it must be refused with; the daemon must serve afterwards, and nothing may be left.
//!
//! | area | what |
//! |---|---|
//! | `images` | archives, documents, layers, entries, amounts |
//! | `requests` | names, sizes, texts, policies, prefixes, tokens |
//! | `flags` | flags of the command line, keys of the configuration |
//! | `sockets` | garbage at the API's socket and at the keeper's |
//! | `states` | each verb in each state in which it is wrong |
//! | `damaged` | what may be asked of an instance whose record is not to be read |
//! | `monitor` | a virtual machine monitor that answers wrong, or not |
//! | `agent` | a guest that speaks nonsense |
//! | `ends` | monitors that hang, daemons that are told twice or killed again and again |
//! | `netlink` | datagrams that no kernel sends, and messages of others than the kernel |
//! | `disk` | a disk that fills up, until a few blocks are left; one from which no program runs |
//! | `writes` | a disk that fails at each change of an operation |
//! | `slow` | a disk whose writes and flushes take their time |
//!
//! No guest runs: the virtual machine monitor is a script.

mod agent;
mod archive;
mod bed;
mod damaged;
mod disk;
mod ends;
mod flags;
mod guests;
mod images;
mod monitor;
mod netlink;
mod requests;
mod slow;
mod sockets;
mod states;
mod writes;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::figures::Figures;
use crate::lab::Parts;
use crate::setup::Need;
use bed::{Bed, Tally};

/// An area: its name, keys of its daemon's configuration, its cases.
type Area = (
    &'static str,
    &'static [(&'static str, &'static str)],
    fn(&mut Bed) -> Result<()>,
);

/// All areas.
const AREAS: &[Area] = &[
    ("images", &images::LIMITS, images::run),
    ("requests", &[], requests::run),
    ("flags", &[], flags::run),
    ("sockets", &[], sockets::run),
    ("states", &[], states::run),
    ("damaged", &[], damaged::run),
    ("monitor", &[], monitor::run),
    ("agent", &[], agent::run),
    ("netlink", &[], netlink::run),
    ("ends", &[], ends::run),
];

/// An area that makes its own bed.
type OwnBed = (&'static str, fn(bool, &Parts) -> Result<Tally>);

/// Those whose daemon has its data on a disk of the case's own.
const DISKS: &[OwnBed] = &[("disk", disk::run), ("writes", writes::run), ("slow", slow::run)];

/// Runs all areas, or with `only` those whose names have it in them; prints and writes the counts.
pub(crate) fn run(short: bool, only: Option<&str>, json: Option<&Path>) -> Result<ExitCode> {
    bed::need_root()?;
    let begun = Instant::now();
    let parts = Parts::scripted(Need::Guests)?;
    let mut tally = Tally::default();
    for (name, environment, area) in AREAS {
        if only.is_none_or(|only| name.contains(only)) {
            println!("{name}");
            let mut bed = Bed::with(short, parts.clone(), environment)?;
            area(&mut bed)?;
            finish(bed, &mut tally)?;
        }
    }
    for (name, area) in DISKS {
        if only.is_none_or(|only| name.contains(only)) {
            println!("{name}");
            tally.take(area(short, &parts)?);
        }
    }
    report(&tally, begun, json)
}

/// Ends a bed; what it leaves on the machine is a failed case.
fn finish(bed: Bed, tally: &mut Tally) -> Result<()> {
    let Bed { lab, tally: own, .. } = bed;
    tally.take(own);
    let left = lab.end()?;
    let fault = (!left.is_empty()).then(|| left.join("; "));
    tally.note("leftovers", "a daemon of hostile cases leaves nothing", fault);
    Ok(())
}

fn report(tally: &Tally, begun: Instant, json: Option<&Path>) -> Result<ExitCode> {
    let mut figures = Figures::begin("test hostile", "none");
    println!("{:12} {:>6} {:>6}", "area", "cases", "ok");
    for (area, counts) in &tally.areas {
        println!("{area:12} {:>6} {:>6}", counts.cases, counts.ok);
        figures.count(&format!("{area}_cases"), counts.cases);
        figures.count(&format!("{area}_ok"), counts.ok);
        figures.count("cases", counts.cases);
        figures.count("wrong", counts.cases - counts.ok);
    }
    for skipped in &tally.skipped {
        println!("skipped: {skipped}");
    }
    figures.count("skipped", tally.skipped.len() as u64);
    figures.count("seconds", begun.elapsed().as_secs());
    figures.check_count("B.5", "wrong", 0);
    figures.finish(json)
}
