//! `test corruption`: sleepers whose files and records were changed behind their backs, by seed. Each must be
//! refused with a reason, and none that was left alone may be.
//!
//! ```text
//!  seal (the real one) ─▶ records and files of a batch of sleepers ─▶ one change each, but for the controls
//!       ─▶ a daemon's recovery over them, in the same boot or another ─▶ a wake of each ─▶ judged
//! ```
//!
//! Everything is the real code but the driver, which has no processes. A sleeper that gets a machine was
//! accepted, whatever anybody says.

mod bed;
mod change;
mod random;
mod sleeper;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::figures::{Figures, Row, Samples};
use bed::{Bed, Verdict};
use change::{Case, Crossing};
use random::Random;

/// Sleepers that one recovery brings back.
const BATCH: usize = 50;
/// One of so many is left alone.
const CONTROL_EACH: usize = 10;
/// The line of the issue that this shows.
const LINE: &str = "B.3";

/// What became of all cases.
#[derive(Debug, Default)]
struct Tally {
    /// How often each sort of change was refused with each reason.
    refused: BTreeMap<(&'static str, &'static str), BTreeMap<String, u64>>,
    cases: u64,
    accepted: u64,
    unexplained: u64,
    controls: u64,
    controls_refused: u64,
    strays: u64,
    check_millis: Samples,
}

/// Runs `cases` cases from `seed` on.
pub(crate) fn run(cases: usize, seed: u64, json: Option<&Path>) -> Result<ExitCode> {
    if !crate::setup::is_root() {
        println!("skipped: corruption: not root");
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting a runtime")?;
    let tally = runtime.block_on(all(cases, seed))?;
    report(&tally, cases, json)
}

async fn all(cases: usize, seed: u64) -> Result<Tally> {
    let bed = Bed::make().await?;
    let mut tally = Tally::default();
    let mut batch = 0;
    let outcome = loop {
        let left = cases.saturating_sub(usize::try_from(tally.cases).unwrap_or(usize::MAX));
        if left == 0 {
            break Ok(());
        }
        let mut random = Random::new(seed.wrapping_add(batch));
        // A record of a newer version stops a daemon as a whole: it gets one of its own now and then.
        let alone = batch % 20 == 19;
        let crossing = match batch % 3 {
            0 => Crossing::None,
            1 => Crossing::Reboot,
            _ => Crossing::Transfer,
        };
        if let Err(error) = one_batch(&bed, batch, crossing, alone, left, &mut random, &mut tally).await {
            break Err(error.context(format!("batch {batch} of seed {seed}")));
        }
        batch += 1;
        if batch % 20 == 0 {
            println!("{} of {cases}", tally.cases);
        }
    };
    bed.remove().await?;
    outcome.map(|()| tally)
}

async fn one_batch(
    bed: &Bed,
    number: u64,
    crossing: Crossing,
    alone: bool,
    left: usize,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<()> {
    let cases: Vec<Option<Case>> = if alone {
        vec![Some(Case::NEWER_RECORD)]
    } else {
        let mut cases: Vec<_> = (0..BATCH)
            .map(|at| (at % CONTROL_EACH != 0).then(|| Case::draw(crossing, random)))
            .collect();
        // The last of the run is smaller.
        let mut room = left;
        cases.retain(|case| {
            let keep = case.is_none() || room > 0;
            room = room.saturating_sub(usize::from(case.is_some() && keep));
            keep
        });
        cases
    };
    let judged = bed.judge(number, crossing, &cases, random).await?;
    tally.strays += judged.strays;
    tally.check_millis.extend(&judged.check_millis);
    for (case, verdict) in cases.iter().zip(judged.verdicts) {
        match (case, verdict) {
            (None, Verdict::Accepted) => tally.controls += 1,
            (None, Verdict::Refused(why) | Verdict::Unexplained(why)) => {
                println!("a control was refused: {why}");
                tally.controls += 1;
                tally.controls_refused += 1;
            }
            (Some(case), Verdict::Refused(why)) => {
                tally.cases += 1;
                let reasons = tally.refused.entry((case.part(), case.kind())).or_default();
                *reasons.entry(why).or_default() += 1;
            }
            (Some(case), Verdict::Accepted) => {
                println!("accepted: {} {} after {crossing:?}", case.part(), case.kind());
                tally.cases += 1;
                tally.accepted += 1;
            }
            (Some(case), Verdict::Unexplained(why)) => {
                println!("no reason: {} {}: {why}", case.part(), case.kind());
                tally.cases += 1;
                tally.unexplained += 1;
            }
        }
    }
    Ok(())
}

fn report(tally: &Tally, cases: usize, json: Option<&Path>) -> Result<ExitCode> {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["part", "kind", "refused", "reasons"]);
    let mut figures = Figures::begin("corruption", "none");
    for ((part, kind), reasons) in &tally.refused {
        let refused: u64 = reasons.values().sum();
        let named: Vec<_> = reasons
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        table.add_row([
            (*part).to_owned(),
            (*kind).to_owned(),
            refused.to_string(),
            named.join(", "),
        ]);
        figures.count(&format!("refused_{part}_{kind}"), refused);
        figures.count("refused", refused);
    }
    println!("{table}");
    for (name, value) in [
        ("cases", tally.cases),
        ("accepted", tally.accepted),
        ("unexplained", tally.unexplained),
        ("controls", tally.controls),
        ("controls_refused", tally.controls_refused),
        ("strays", tally.strays),
    ] {
        figures.count(name, value);
    }
    figures.row(Row::new("check_before_wake", "ms", &tally.check_millis));
    figures.check_count(LINE, "refused", cases as u64);
    for none in ["accepted", "unexplained", "controls_refused", "strays"] {
        figures.check_count(LINE, none, 0);
    }
    figures.finish(json)
}
