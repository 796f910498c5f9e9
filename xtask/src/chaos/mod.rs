//! `chaos`: kills the daemon, the keeper and VMMs in the middle of everything, and counts what is left.
//!
//! ```text
//!  schedule ──▶ act ──▶ fault point reached, or its time has come ──▶ strike (SIGKILL by pidfd)
//!     ▲                                                                   │
//!     └── ledger judges ◀── census ◀── quiet ◀── start the daemon again ◀─┘
//! ```
//!
//! The [`schedule`] is a pure function of its seed. The [`ledger`] knows what was
//! acknowledged and judges what the API lists after each restart. The census counts what is on the
//! machine ([`gather`]) and compares it with what the listing explains ([`expect`]). Traffic goes on all
//! the while ([`traffic`]); who may have lost a packet is in there.

mod acts;
mod api;
mod course;
mod expect;
pub(crate) mod gather;
mod leak;
mod ledger;
mod points;
mod schedule;
mod strike;
mod thing;
mod traffic;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::figures::{Figures, Row};
use crate::lab::{Lab, Parts, Settings, tick};
use crate::setup::Need;
use course::{Counted, Course};
use expect::Listing;
use gather::Site;
use points::Points;
use thing::{Census, Difference, Kind};

/// How long something may outlive the act that it belonged to before it counts as leaked.
const QUIET_DEADLINE: Duration = Duration::from_secs(15);

/// How often a point is waited for that an act did not reach: packets may have taken the act back.
const ATTEMPTS: u32 = 3;
/// Fewer kills than this are a short run, with fewer guests.
const SHORT: u32 = 50;

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// How many kills.
    pub kills: u32,
    /// Of the schedule.
    pub seed: u64,
    /// A kind of leak, or `all`: no kills, only this.
    pub plant_leak: Option<String>,
}

/// Runs it.
pub(crate) fn run(request: &Request, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(kinds) = &request.plant_leak {
        return plant_leaks(&kinds_of(kinds)?, json);
    }
    let kills = schedule::schedule(request.seed, request.kills);
    println!("seed {}, {} kills", request.seed, kills.len());
    let scratch = tempfile::tempdir().context("making a directory for the harness")?;
    let points = Points::listen(&scratch.path().join("faults.sock"))?;
    let ground = Ground::prepare(Some(&scratch.path().join("faults.sock")))?;
    let mut figures = crate::bench::begin("chaos", &ground.lab)?;
    let guests = if request.kills < SHORT { 2 } else { 3 };
    let mut course = Course::begin(ground, points, scratch, guests)?;
    let ran = go(&mut course, &kills);
    let log = crate::build::release_directory().join("../chaos.log");
    course.keep_log(&log);
    println!("the daemons' log is in {}", log.display());
    ran.with_context(|| format!("seed {}", request.seed))?;
    let (counted, ground, reached) = course.into_parts();
    report(&mut figures, &counted, &reached, kills.len());
    crate::bench::end(ground.lab, &mut figures, "B.1")?;
    figures.finish(json)
}

/// Every kill, and the end.
fn go(course: &mut Course, kills: &[schedule::Kill]) -> Result<()> {
    let mut due: VecDeque<(schedule::Kill, u32)> = kills.iter().map(|kill| (*kill, 1)).collect();
    let mut number = 0;
    while let Some((kill, attempt)) = due.pop_front() {
        number += 1;
        let (line, reached) = course
            .kill(&kill)
            .with_context(|| format!("kill {number}: {kill}"))?;
        println!("  {number:3}/{} {line}", kills.len());
        if !reached && attempt < ATTEMPTS {
            due.push_back((kill, attempt + 1));
        } else if !reached {
            course.counted.missed.push(kill.to_string());
        }
    }
    course.end()
}

/// Whether the release daemon, if one was built, does not know of fault points.
fn release_is_clean() -> Option<bool> {
    let bytes = std::fs::read(crate::build::release_directory().join("dormoused")).ok()?;
    let word = dormouse_sys::fault::SOCKET_VARIABLE.as_bytes();
    Some(!bytes.windows(word.len()).any(|window| window == word))
}

fn report(figures: &mut Figures, counted: &Counted, reached: &BTreeMap<String, u64>, kills: usize) {
    for (name, lines) in [
        ("leaked", &counted.leaked),
        ("doubled", &counted.doubled),
        ("lost", &counted.lost),
        ("points_missed", &counted.missed),
        ("calls_refused", &counted.refused),
    ] {
        for line in lines {
            println!("{name}: {line}");
        }
        figures.count(name, lines.len() as u64);
    }
    for (target, count) in &counted.kills {
        figures.count("kills", *count);
        figures.count(&format!("kills_{}", target.as_str()), *count);
    }
    figures.count("points_reached", reached.len() as u64);
    figures.count("daemon_starts_refused", counted.starts_refused);
    figures.count("taps_not_held", counted.taps_not_held);
    figures.count("keepers_not_back", counted.keepers_not_back);
    figures.count("messages", counted.messages);
    figures.count("messages_forgiven", counted.forgiven);
    figures.row(Row::new("restart_until_serving", "ms", &counted.restarts));
    figures.row(Row::new("restart_until_quiet", "ms", &counted.settled));
    for name in [
        "leaked",
        "doubled",
        "lost",
        "points_missed",
        "calls_refused",
        "daemon_starts_refused",
        "taps_not_held",
        "keepers_not_back",
    ] {
        figures.check_count("B.1", name, 0);
    }
    let (got, want) = (figures.counted("kills"), kills as u64);
    figures.check("B.1", "kills", &format!(">= {want}"), got.into(), got >= want);
    if let Some(clean) = release_is_clean() {
        let what = "the release daemon has no fault points";
        figures.check("B.1", what, "true", clean.into(), clean);
    }
}

/// The kinds that a word on the command line means.
fn kinds_of(word: &str) -> Result<Vec<Kind>> {
    if word == "all" {
        return Ok(Kind::ALL.to_vec());
    }
    let found = Kind::ALL.into_iter().find(|kind| kind.as_str() == word);
    let known = || Kind::ALL.map(Kind::as_str).join(", ");
    found
        .map(|kind| vec![kind])
        .with_context(|| format!("{word} is none of all, {}", known()))
}

/// A lab whose daemon was killed and started again, with what it had when it was first idle.
struct Ground {
    lab: Lab,
    site: Site,
    house: Census,
}

impl Ground {
    /// Starts a daemon with fault points for the first time.
    fn prepare(faults: Option<&Path>) -> Result<Self> {
        let mut lab = Lab::prepare(Parts::planted(Need::Guests)?, &Settings::USUAL)?;
        if let Some(socket) = faults {
            lab.listen_for_faults(socket);
        }
        let before = gather::census(&lab.site())?;
        lab.start_daemon()?;
        let site = lab.site();
        let house = gather::census(&site)?;
        let strangers = expect::strangers(&site, &before, &house);
        if !strangers.is_empty() {
            bail!("an idle daemon has made what it is not known to make: {strangers:?}");
        }
        Ok(Self { lab, site, house })
    }

    /// Counts until what is there is what the API lists, or until that has been awaited for long enough.
    /// Lines that `known` has are passed over.
    fn settle(&self, known: impl Fn(&str) -> bool) -> Result<(Listing, Difference)> {
        let begun = Instant::now();
        loop {
            let before = api::listing(&self.lab)?;
            let found = gather::census(&self.site)?;
            let listing = api::listing(&self.lab)?;
            let mut difference = thing::compare(&expect::expected(&self.site, &self.house, &listing), &found);
            difference.retain(|thing| !known(&thing.to_string()));
            let calm = before == listing && listing.is_calm();
            if (calm && difference.is_empty()) || begun.elapsed() > QUIET_DEADLINE {
                return Ok((listing, difference));
            }
            tick(Duration::from_millis(50));
        }
    }
}

/// Makes one leak of each of `kinds`, one after the other; each must be found, and nothing else.
fn plant_leaks(kinds: &[Kind], json: Option<&Path>) -> Result<ExitCode> {
    let mut figures = Figures::begin("chaos-leaks", "none");
    let mut ground = Ground::prepare(None)?;
    ground.lab.import_server()?;
    api::create(&ground.lab, "resting")?;
    ground.lab.kill_daemon()?;
    ground.lab.start_daemon()?;
    let (_, difference) = ground.settle(|_| false)?;
    if !difference.is_empty() {
        bail!("before any leak was made: {:?}", difference.lines());
    }
    for kind in kinds {
        let leak = leak::plant(*kind, &mut ground.lab, &ground.site)
            .with_context(|| format!("planting a {}", kind.as_str()))?;
        let listing = api::listing(&ground.lab)?;
        let found = gather::census(&ground.site)?;
        let expected = expect::expected(&ground.site, &ground.house, &listing);
        let difference = thing::compare(&expected, &found);
        let exact = Difference {
            leaked: vec![leak.thing.clone()],
            ..Difference::default()
        };
        let ok = difference == exact;
        println!(
            "  {}: {}",
            leak.thing,
            if ok { "found" } else { "NOT FOUND ALONE" }
        );
        if !ok {
            println!("    {:?}", difference.lines());
        }
        figures.count("planted", 1);
        figures.count("found", u64::from(ok));
        leak.take_back(&mut ground.lab, &ground.site)
            .with_context(|| format!("taking a {} back", kind.as_str()))?;
        let (_, after) = ground.settle(|_| false)?;
        if !after.is_empty() {
            bail!("after the leak was taken back: {:?}", after.lines());
        }
    }
    figures.check_count("B.1", "found", kinds.len() as u64);
    crate::bench::end(ground.lab, &mut figures, "B.1")?;
    figures.finish(json)
}
