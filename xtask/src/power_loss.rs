//! `test power-loss`: the store and standby commits over a disk whose writes are logged, replayed with
//! writes reordered and cut between flushes. The harnesses are the examples `power_loss` of the rooms that
//! they try; this reads what they count.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::build::workspace;
use crate::figures::Figures;
use crate::setup;

/// The rooms that have a harness, and the share of the cut points that each gets, of a hundred.
const ROOMS: [(&str, u64); 2] = [("store", 50), ("instance", 50)];

/// Counts that must be 0, in whichever room they are counted.
const ZERO: [&str; 6] = [
    "acknowledged_lost",
    "believed_wrong",
    "unreadable",
    "half_batches",
    "unsound",
    "unexplained",
];

/// What this machine lacks for it.
pub(crate) fn lacking() -> Option<&'static str> {
    if !setup::is_root() {
        Some("not root")
    } else if !Path::new("/dev/fuse").exists() {
        Some("no /dev/fuse")
    } else if setup::find_program("nft").is_none() {
        Some("no nft; cargo xtask setup --install")
    } else {
        None
    }
}

/// Runs `cuts` cut points from `seed`.
pub(crate) fn run(cuts: u64, seed: u64, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(why) = lacking() {
        bail!("power-loss cannot run: {why}");
    }
    let mut figures = Figures::begin("power-loss", "none");
    let mut totals: BTreeMap<String, u64> = BTreeMap::new();
    for (room, share) in ROOMS {
        println!("{room}: {} cut points", cuts * share / 100);
        for (name, value) in harness(room, cuts * share / 100, seed)? {
            figures.count(&format!("{room}_{name}"), value);
            *totals.entry(name).or_default() += value;
        }
    }
    let total = |name: &str| totals.get(name).copied().unwrap_or(0);
    figures.count("cut_points", total("cut_points"));
    figures.check(
        "B.6",
        "cut points",
        &format!(">= {cuts}"),
        total("cut_points").into(),
        total("cut_points") >= cuts,
    );
    for name in ZERO {
        figures.count(name, total(name));
        figures.check_count("B.6", name, 0);
    }
    // A harness that sees nothing when nothing is ever flushed sees nothing at all.
    let planted = total("planted_found");
    figures.count("planted_found", planted);
    figures.check(
        "B.6",
        "losses found in a log without flushes",
        "> 0",
        planted.into(),
        planted > 0,
    );
    let believed = total("believed");
    figures.check(
        "B.6",
        "snapshots that survived and were loaded",
        "> 0",
        believed.into(),
        believed > 0,
    );
    figures.finish(json)
}

/// Runs the harness of a room and reads its `count NAME VALUE` lines; shows all others.
fn harness(room: &str, cuts: u64, seed: u64) -> Result<Vec<(String, u64)>> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(workspace())
        .args(["run", "--quiet", "--package", &format!("dormouse-{room}")])
        .args([
            "--example",
            "power_loss",
            "--",
            &cuts.to_string(),
            &seed.to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let output = child.stdout.take().context("the harness has no output")?;
    let mut counts = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading the harness")?;
        match line.strip_prefix("count ").and_then(|rest| rest.split_once(' ')) {
            Some((name, value)) => counts.push((name.to_owned(), value.parse().context("reading a count")?)),
            None => println!("  {line}"),
        }
    }
    let status = child.wait().context("waiting for the harness")?;
    if !status.success() || counts.is_empty() {
        bail!("the harness of {room} did not run to its end: {status}");
    }
    Ok(counts)
}
