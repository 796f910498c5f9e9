//! The course of a run: one kill after the other, and what is judged after each.

mod guests;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::v1::MemoryPlacement;

use super::Ground;
use super::acts::{Call, RAM_MIB, Subject};
use super::expect::Listing;
use super::ledger::{Condition, Ledger};
use super::points::{Held, Points};
use super::schedule::{Act, Kill, Moment, Target};
use super::strike::{Aim, Struck};
use super::traffic::{ANSWER_DEADLINE, Traffic};
use crate::figures::Samples;
use crate::lab::{Guest, GuestSpec, ms_between, tick};

/// How long an act may take until it reaches the point that is waited for.
const POINT_DEADLINE: Duration = Duration::from_secs(20);
/// What runs in the background after an answer reaches its points within this.
const BACKGROUND: Duration = Duration::from_secs(3);
/// By when a daemon must have started again.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// By when a keeper that was killed must be back without anybody's doing.
const KEEPER_DEADLINE: Duration = Duration::from_secs(20);

/// A guest that lives through the whole run.
struct Fixture {
    guest: Guest,
    traffic: Traffic,
    /// Whether it has been killed and has not served since.
    down: bool,
    /// Whether its memory goes to disk while it sleeps.
    spills: bool,
}

impl Fixture {
    fn mark(&self) -> String {
        let id = &self.guest.id;
        id.get(id.len().saturating_sub(10)..)
            .unwrap_or_default()
            .to_owned()
    }
}

/// What a run has counted.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Lines about what was leaked, doubled, lost.
    pub leaked: Vec<String>,
    pub doubled: Vec<String>,
    pub lost: Vec<String>,
    /// Kills by target.
    pub kills: BTreeMap<Target, u64>,
    /// Kills whose fault points were not reached.
    pub missed: Vec<String>,
    /// Answers that were errors although daemon and guest lived.
    pub refused: Vec<String>,
    /// Starts of the daemon that failed.
    pub starts_refused: u64,
    /// Messages of the traffic, and those whose guest was killed.
    pub messages: u64,
    pub forgiven: u64,
    /// Guests that had to boot anew because nobody held their tap for the daemon any more.
    pub taps_not_held: u64,
    /// Keepers that only a start of the daemon brought back.
    pub keepers_not_back: u64,
    /// Milliseconds from the start of a daemon until it answers.
    pub restarts: Samples,
    /// Milliseconds from there until everything was quiet and as the API lists it.
    pub settled: Samples,
}

/// A run under way.
pub(crate) struct Course {
    ground: Ground,
    points: Points,
    ledger: Ledger,
    fixtures: Vec<Fixture>,
    scratch: tempfile::TempDir,
    /// Names given so far.
    named: u32,
    listing: Listing,
    /// What was told already.
    told: BTreeSet<String>,
    pub(crate) counted: Counted,
}

impl Course {
    /// Boots the guests and begins their traffic.
    pub(crate) fn begin(
        ground: Ground,
        points: Points,
        scratch: tempfile::TempDir,
        guests: usize,
    ) -> Result<Self> {
        ground.lab.import_server()?;
        let mut ledger = Ledger::default();
        ledger.ask_image("bench:latest", true);
        ledger.image_acknowledged("bench:latest", true);
        let clients = Arc::new(ground.lab.clients()?);
        let mut fixtures = Vec::new();
        let plans = [
            ("steady", MemoryPlacement::Spill, None),
            ("resident", MemoryPlacement::Tmpfs, None),
            ("sleepy", MemoryPlacement::Spill, Some(Duration::from_millis(700))),
        ];
        for (name, placement, idle) in plans.into_iter().take(guests) {
            let spec = GuestSpec {
                name,
                image: "bench:latest",
                ram_mib: RAM_MIB,
                placement,
                idle,
            };
            ledger.ask(name, Condition::Awake);
            let guest = ground.lab.run_server(&spec)?;
            ledger.acknowledged(name, Condition::Awake);
            ledger.talked_to(name, true);
            // An open connection would hold one that sleeps by itself awake.
            let traffic = Traffic::begin(&guest, &clients, idle.is_none())?;
            fixtures.push(Fixture {
                guest,
                traffic,
                down: false,
                spills: placement == MemoryPlacement::Spill,
            });
        }
        let mut course = Self {
            listing: Listing::default(),
            told: BTreeSet::new(),
            counted: Counted::default(),
            named: 0,
            ground,
            points,
            ledger,
            fixtures,
            scratch,
        };
        course.check("the beginning")?;
        Ok(course)
    }

    /// One kill with all that belongs to it. Returns a line about it, and whether its moment came.
    pub(crate) fn kill(&mut self, kill: &Kill) -> Result<(String, bool)> {
        let subject = self.prepare(kill)?;
        if let Moment::Point(name, skip) = kill.moment {
            self.points.arm(name, skip);
        }
        kill.act.enter(&mut self.ledger, &subject.name, false);
        let lab = &self.ground.lab;
        let call = Call::begin(lab.runtime(), lab.client()?, kill.act, &subject)?;
        if kill.act == Act::Wake && kill.bits & 1 == 1 {
            // Packets knock at the same time.
            self.let_talk(&subject.name);
        }
        let held = self.wait_for(kill, &call);
        let reached = held.is_some() || matches!(kill.moment, Moment::After(_));
        let struck = self.strike(kill, &subject)?;
        if let Some(held) = held {
            held.release();
        }
        self.points.disarm();
        let answer = call.join();
        match &answer {
            Ok(()) => kill.act.enter(&mut self.ledger, &subject.name, true),
            Err(error) if !struck.daemon && struck.vmm.is_none() => {
                self.counted.refused.push(format!("{kill}: {error:#}"));
            }
            Err(_) => {}
        }
        if let Some(mark) = &struck.vmm {
            // After the acknowledgement, which may be of before the kill.
            let name = self.name_of(mark).unwrap_or_else(|| subject.name.clone());
            self.ledger.process_killed(&name);
        }
        *self.counted.kills.entry(kill.target).or_default() += 1;
        let restart = self.recover(&struck)?;
        self.let_talk(&subject.name);
        let settled = self.check(&kill.to_string())?;
        let answered = if answer.is_ok() {
            "acknowledged"
        } else {
            "cut short"
        };
        let time = time_of_day();
        let line = format!("{time} {kill} ({answered}): up in {restart:.0} ms, settled in {settled:.0} ms");
        Ok((line, reached))
    }

    /// Waits for the kill's moment.
    fn wait_for(&self, kill: &Kill, call: &Call) -> Option<Held> {
        let name = match kill.moment {
            Moment::After(ms) => {
                tick(Duration::from_millis(u64::from(ms)));
                return None;
            }
            Moment::Point(name, _) => name,
        };
        let answered: Cell<Option<Instant>> = Cell::new(None);
        let background = kill.act == Act::Spill || name.starts_with("greet");
        let patience = if background {
            BACKGROUND
        } else {
            Duration::from_millis(200)
        };
        let ended = || {
            if call.is_answered() && answered.get().is_none() {
                answered.set(Some(Instant::now()));
            }
            answered.get().is_some_and(|at| at.elapsed() > patience)
        };
        self.points.wait(POINT_DEADLINE, ended)
    }

    fn strike(&mut self, kill: &Kill, subject: &Subject) -> Result<Struck> {
        let aim = Aim::take(&self.ground.site);
        let mut others: Vec<String> = self.fixtures.iter().map(Fixture::mark).collect();
        let turn = usize::try_from(kill.bits >> 8).unwrap_or(0) % others.len().max(1);
        others.rotate_left(turn);
        let vmm = aim.vmm(subject.mark.as_deref(), &others);
        let dies = matches!(kill.target, Target::Vmm | Target::All);
        let fixture = self
            .fixtures
            .iter_mut()
            .find(|fixture| dies && Some(fixture.mark()) == vmm);
        if let Some(fixture) = fixture {
            fixture.traffic.pause();
            fixture.down = true;
        }
        let struck = aim.strike(kill.target, vmm.as_deref(), &mut self.ground.lab)?;
        for fixture in self
            .fixtures
            .iter()
            .filter(|fixture| Some(fixture.mark()) == struck.vmm)
        {
            fixture.traffic.forgive();
        }
        Ok(struck)
    }

    /// Starts again what a supervisor would; returns how many milliseconds the daemon took.
    fn recover(&mut self, struck: &Struck) -> Result<f64> {
        if struck.daemon {
            return self.start_daemon();
        }
        if struck.keeper {
            let begun = Instant::now();
            while begun.elapsed() < KEEPER_DEADLINE {
                if Aim::take(&self.ground.site).has_keeper() {
                    return Ok(0.0);
                }
                tick(Duration::from_millis(50));
            }
            self.counted.keepers_not_back += 1;
            self.ground.lab.stop_daemon()?;
            return self.start_daemon();
        }
        Ok(0.0)
    }

    fn start_daemon(&mut self) -> Result<f64> {
        let begun = Instant::now();
        while let Err(error) = self.ground.lab.start_daemon() {
            self.counted.starts_refused += 1;
            if begun.elapsed() > START_DEADLINE {
                return Err(error).context("starting the daemon after it was killed");
            }
        }
        let took = ms_between(begun, Instant::now());
        self.counted.restarts.push(took);
        Ok(took)
    }

    /// Waits until everything is quiet, and judges. Returns how long that took in milliseconds.
    fn check(&mut self, after: &str) -> Result<f64> {
        let begun = Instant::now();
        for fixture in &self.fixtures {
            fixture.traffic.pause();
        }
        self.await_answers(after, |_| true);
        let told = &self.told;
        let (listing, difference) = self.ground.settle(|line| told.contains(line))?;
        let took = ms_between(begun, Instant::now());
        self.counted.settled.push(took);
        for (things, into) in [
            (difference.leaked, &mut self.counted.leaked),
            (difference.doubled, &mut self.counted.doubled),
            (difference.missing, &mut self.counted.lost),
        ] {
            for thing in things.into_iter().map(|thing| thing.to_string()) {
                if self.told.insert(thing.clone()) {
                    println!("    after {after}: {thing}");
                    into.push(format!("after {after}: {thing}"));
                }
            }
        }
        let verdict = self.ledger.judge(&listing);
        for (lines, into) in [
            (verdict.lost, &mut self.counted.lost),
            (verdict.doubled, &mut self.counted.doubled),
        ] {
            for line in lines {
                println!("    after {after}: {line}");
                into.push(format!("after {after}: {line}"));
            }
        }
        self.listing = listing;
        self.revive()?;
        self.clear_out()?;
        for fixture in self.fixtures.iter().filter(|fixture| !fixture.down) {
            fixture.traffic.resume();
        }
        Ok(took)
    }

    /// Waits for the answers to all that is under way to those that `whose` means, which are paused; what
    /// does not come is lost.
    fn await_answers(&self, after: &str, whose: impl Fn(&Fixture) -> bool) {
        let begun = Instant::now();
        let asked = || {
            self.fixtures
                .iter()
                .filter(|fixture| !fixture.down && whose(fixture))
        };
        while asked().any(|fixture| fixture.traffic.under_way() > 0) && begun.elapsed() < ANSWER_DEADLINE {
            tick(Duration::from_millis(10));
        }
        for fixture in asked() {
            for what in fixture.traffic.give_up(Duration::ZERO) {
                println!(
                    "    {} after {after}: {}: no answer to {what}",
                    time_of_day(),
                    fixture.guest.name
                );
            }
        }
    }

    /// The end: everything is looked at once more, then all is removed and nothing may be left.
    pub(crate) fn end(&mut self) -> Result<()> {
        tick(Duration::from_secs(1));
        self.check("the end")?;
        for fixture in self.fixtures.drain(..) {
            let tally = fixture.traffic.tally();
            self.counted.add_traffic(&fixture.guest.name, tally);
        }
        let names: Vec<String> = self
            .listing
            .instances
            .iter()
            .map(|fact| fact.name.clone())
            .collect();
        for name in names {
            self.plain(Act::Delete, &Subject::instance(&name))?;
        }
        let images = self
            .listing
            .images
            .iter()
            .flat_map(|image| image.names.iter().cloned());
        for name in images.collect::<Vec<_>>() {
            self.plain(Act::DropImage, &Subject::instance(&name))?;
        }
        self.check("removing everything")?;
        Ok(())
    }

    /// Copies what the daemons have logged to `path`, as far as that can be had.
    pub(crate) fn keep_log(&self, path: &Path) {
        let from = self.ground.site.data.join("dormoused.log");
        if let Err(error) = std::fs::copy(&from, path) {
            eprintln!("xtask: keeping {}: {error}", from.display());
        }
    }

    /// What was counted, and the lab to be ended.
    pub(crate) fn into_parts(self) -> (Counted, Ground, BTreeMap<String, u64>) {
        let reached = self.points.reached();
        (self.counted, self.ground, reached)
    }
}

impl Counted {
    fn add_traffic(&mut self, name: &str, tally: super::traffic::Tally) {
        for number in 0..tally.lost {
            self.lost
                .push(format!("{name}: packet {number} of those without an answer"));
        }
        self.messages += tally.begun;
        self.forgiven += tally.forgiven;
    }
}

/// The time of day (UTC) as the daemon's log tells it, to find its lines.
fn time_of_day() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let (seconds, ms) = now.map_or((0, 0), |now| (now.as_secs() % 86_400, now.subsec_millis()));
    format!(
        "{:02}:{:02}:{:02}.{ms:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}
