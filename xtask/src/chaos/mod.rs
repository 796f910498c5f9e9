//! `chaos`: kills the daemon, the keeper and VMMs in the middle of everything, and counts what is left.
//!
//! ```text
//!  schedule ──▶ act ──▶ fault point reached, or its time has come ──▶ strike (SIGKILL by pidfd)
//!     ▲                                                                   │
//!     └── ledger judges ◀── census ◀── quiet ◀── start the daemon again ◀─┘
//! ```
//!
//! The [`schedule`](schedule) is a pure function of its seed. The [`ledger`](ledger) knows what was
//! acknowledged and judges what the API lists after each restart. The census counts what is on the
//! machine ([`gather`]) and compares it with what the listing explains ([`expect`]). Traffic goes on all
//! the while ([`traffic`](traffic)); who may have lost a packet is in there.

mod api;
mod expect;
pub(crate) mod gather;
mod leak;
mod thing;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::figures::Figures;
use crate::lab::{Lab, Parts, tick};
use crate::setup::Need;
use expect::Listing;
use gather::Site;
use thing::{Census, Difference, Kind};

/// How long something may outlive the act that it belonged to before it counts as leaked.
const QUIET_DEADLINE: Duration = Duration::from_secs(15);

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
    bail!("not yet");
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
    fn prepare() -> Result<Self> {
        let mut lab = Lab::prepare(Parts::planted(Need::Guests)?)?;
        let before = gather::census(&lab.site())?;
        lab.start_daemon()?;
        let site = lab.site();
        let house = gather::census(&site)?;
        for problem in expect::strangers(&site, &before, &house) {
            bail!("an idle daemon has made {problem}, which is none of the things that it makes");
        }
        Ok(Self { lab, site, house })
    }

    /// Counts until what is there is what the API lists, or until that has been awaited for long enough.
    fn settle(&self) -> Result<(Listing, Difference)> {
        let begun = Instant::now();
        loop {
            let before = api::listing(&self.lab)?;
            let found = gather::census(&self.site)?;
            let listing = api::listing(&self.lab)?;
            let difference = thing::compare(&expect::expected(&self.site, &self.house, &listing), &found);
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
    let mut ground = Ground::prepare()?;
    ground.lab.import_server()?;
    api::create(&ground.lab, "resting")?;
    ground.lab.kill_daemon()?;
    ground.lab.start_daemon()?;
    let (_, difference) = ground.settle()?;
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
        let (_, after) = ground.settle()?;
        if !after.is_empty() {
            bail!("after the leak was taken back: {:?}", after.lines());
        }
    }
    figures.check_count("B.1", "found", kinds.len() as u64);
    crate::bench::end(ground.lab, &mut figures, "B.1")?;
    figures.finish(json)
}
