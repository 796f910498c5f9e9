//! The course of a run: one kill after the other, and what is judged after each.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_client::v1::{InstanceState, MemoryPlacement};

use super::acts::{Call, RAM_MIB, Subject};
use super::expect::{InstanceFact, Life, Listing, life};
use super::ledger::{Condition, Ledger};
use super::points::{Held, Points};
use super::schedule::{Act, Kill, Moment, Target};
use super::strike::{Aim, Struck};
use super::traffic::{ANSWER_DEADLINE, Traffic};
use super::{Ground, api};
use crate::figures::Samples;
use crate::lab::{Guest, GuestSpec, ImageFile, ImageRun, TCP_PORT, ask, ms_between, tick, write_archive};

/// How long an act may take until it reaches the point that is waited for.
const POINT_DEADLINE: Duration = Duration::from_secs(20);
/// What runs in the background after an answer reaches its points within this.
const BACKGROUND: Duration = Duration::from_secs(3);
/// By when a daemon must have started again.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// By when a keeper that was killed must be back without anybody's doing.
const KEEPER_DEADLINE: Duration = Duration::from_secs(3);
/// How long a guest may take to boot where it is emulated and the host is busy.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long traffic takes to see that it was forgiven.
const SETTLED: Duration = Duration::from_millis(150);
/// Instances and images that are kept for later acts.
const KEPT: usize = 3;

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
    /// Points that were not reached.
    pub missed: Vec<String>,
    /// Answers that were errors although the daemon lived.
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

    /// One kill with all that belongs to it. Returns a line about it.
    pub(crate) fn kill(&mut self, kill: &Kill) -> Result<String> {
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
        let struck = self.strike(kill, &subject)?;
        if let Some(held) = held {
            held.release();
        }
        self.points.disarm();
        let answer = call.join();
        match &answer {
            Ok(()) => kill.act.enter(&mut self.ledger, &subject.name, true),
            Err(error) if !struck.daemon => {
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
        Ok(format!(
            "{time} {kill} ({answered}): up in {restart:.0} ms, settled in {settled:.0} ms"
        ))
    }

    /// Waits for the kill's moment.
    fn wait_for(&mut self, kill: &Kill, call: &Call) -> Option<Held> {
        let (name, skip) = match kill.moment {
            Moment::After(ms) => {
                tick(Duration::from_millis(u64::from(ms)));
                return None;
            }
            Moment::Point(name, skip) => (name, skip),
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
        let held = self.points.wait(POINT_DEADLINE, ended);
        if held.is_none() {
            self.counted
                .missed
                .push(format!("{} {name} {skip}", kill.act.as_str()));
        }
        held
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

    /// Starts fixtures that have failed, and lets traffic go on to those that serve again.
    fn revive(&mut self) -> Result<()> {
        for at in 0..self.fixtures.len() {
            let Some(fixture) = self.fixtures.get(at) else {
                break;
            };
            let name = fixture.guest.name.clone();
            let Some(state) = self.fact(&name).map(|fact| fact.state) else {
                continue;
            };
            if life(state) == Life::Resting {
                self.plain(Act::Start, &Subject::instance(&name))?;
            }
            let Some(fixture) = self.fixtures.get_mut(at) else {
                break;
            };
            if life(state) == Life::Resting {
                fixture.down = true;
            } else if fixture.down && state == InstanceState::Running {
                fixture.down = !serves(&self.ground, fixture);
                // What was begun in the moment of the kill goes with what was under way then.
                fixture.traffic.forgive();
            }
        }
        Ok(())
    }

    /// Removes instances and images that no later act needs.
    fn clear_out(&mut self) -> Result<()> {
        let fixed: Vec<String> = self
            .fixtures
            .iter()
            .map(|fixture| fixture.guest.name.clone())
            .collect();
        let spare = self
            .listing
            .instances
            .iter()
            .filter(|fact| !fixed.contains(&fact.name));
        let mut spare: Vec<String> = spare.map(|fact| fact.name.clone()).collect();
        spare.truncate(spare.len().saturating_sub(KEPT));
        for name in spare {
            self.plain(Act::Delete, &Subject::instance(&name))?;
        }
        let mut images = self.images();
        images.truncate(images.len().saturating_sub(KEPT));
        for name in images {
            self.plain(Act::DropImage, &Subject::instance(&name))?;
        }
        Ok(())
    }

    /// Images that acts have made.
    fn images(&self) -> Vec<String> {
        let names = self
            .listing
            .images
            .iter()
            .flat_map(|image| image.names.iter().cloned());
        names.filter(|name| name.starts_with("chaos")).collect()
    }

    /// An act that nobody disturbs.
    fn plain(&mut self, act: Act, subject: &Subject) -> Result<()> {
        act.enter(&mut self.ledger, &subject.name, false);
        let lab = &self.ground.lab;
        let call = Call::begin(lab.runtime(), lab.client()?, act, subject)?;
        call.join().with_context(|| {
            format!(
                "{} of {}\n{}",
                act.as_str(),
                subject.name,
                self.ground.lab.log_tail()
            )
        })?;
        act.enter(&mut self.ledger, &subject.name, true);
        self.listing = api::listing(&self.ground.lab)?;
        Ok(())
    }

    fn fact(&self, name: &str) -> Option<&InstanceFact> {
        self.listing.instances.iter().find(|fact| fact.name == name)
    }

    fn name_of(&self, mark: &str) -> Option<String> {
        let fact = self.listing.instances.iter().find(|fact| fact.mark() == mark)?;
        Some(fact.name.clone())
    }

    /// Lets packets go to the fixture of this name again.
    fn let_talk(&mut self, name: &str) {
        self.ledger.talked_to(name, true);
        for fixture in self
            .fixtures
            .iter()
            .filter(|fixture| fixture.guest.name == name && !fixture.down)
        {
            fixture.traffic.resume();
        }
    }

    /// Keeps packets from the fixture of this name, once those under way are answered.
    fn keep_silent(&mut self, name: &str) {
        for fixture in self.fixtures.iter().filter(|fixture| fixture.guest.name == name) {
            fixture.traffic.pause();
        }
        self.await_answers(&format!("{name} was to be silent"), |fixture| {
            fixture.guest.name == name
        });
        self.ledger.talked_to(name, false);
    }

    fn fresh_name(&mut self, stem: &str) -> String {
        self.named += 1;
        format!("{stem}{}", self.named)
    }

    /// Makes what the act is about, and brings it into the state that the act begins in.
    fn prepare(&mut self, kill: &Kill) -> Result<Subject> {
        match kill.act {
            Act::Import => self.new_image(),
            Act::DropImage => {
                if let Some(name) = self.images().first() {
                    return Ok(Subject::instance(name));
                }
                let subject = self.new_image()?;
                self.plain(Act::Import, &subject)?;
                Ok(subject)
            }
            Act::Create => Ok(Subject::instance(&self.fresh_name("guest"))),
            Act::Start => self.victim(&[InstanceState::Stopped, InstanceState::Failed], false),
            Act::Stop => self.victim(&[InstanceState::Initializing, InstanceState::Running], true),
            Act::Delete if kill.bits % 3 == 0 => self.victim(&[InstanceState::Stopped], false),
            Act::Delete => self.victim(&[InstanceState::Initializing, InstanceState::Running], true),
            Act::Standby => {
                let at = self.choose(kill, false)?;
                self.awake(at)
            }
            Act::Spill => {
                let at = self.choose(kill, true)?;
                let subject = self.awake(at)?;
                self.on_tmpfs(at, &subject)?;
                self.keep_silent(&subject.name);
                Ok(subject)
            }
            Act::Wake => {
                let at = self.choose(kill, false)?;
                let subject = self.awake(at)?;
                self.keep_silent(&subject.name);
                // One that sleeps by itself may have done so.
                let asleep = self
                    .fact(&subject.name)
                    .is_some_and(|fact| fact.state == InstanceState::Standby);
                if !asleep {
                    self.plain(Act::Standby, &subject)?;
                }
                Ok(subject)
            }
        }
    }

    fn new_image(&mut self) -> Result<Subject> {
        let name = format!("{}:1", self.fresh_name("chaos"));
        let archive = self.scratch.path().join("image.tar");
        let run = ImageRun {
            name: &name,
            entrypoint: &["/bin/none"],
            ports: &[],
        };
        let file = ImageFile {
            path: "etc/name",
            mode: 0o644,
            bytes: name.clone().into_bytes(),
        };
        write_archive(&archive, &run, &[file])?;
        Ok(Subject {
            archive,
            ..Subject::instance(&name)
        })
    }

    /// An instance that may be stopped and removed, in one of `states`; made when there is none.
    fn victim(&mut self, states: &[InstanceState], started: bool) -> Result<Subject> {
        let fixed = |name: &str| self.fixtures.iter().any(|fixture| fixture.guest.name == name);
        let fitting = |fact: &&InstanceFact| states.contains(&fact.state) && !fixed(&fact.name);
        if let Some(fact) = self.listing.instances.iter().find(fitting) {
            return Ok(Subject::of(fact));
        }
        let name = self.fresh_name("guest");
        self.plain(Act::Create, &Subject::instance(&name))?;
        if started {
            self.plain(Act::Start, &Subject::instance(&name))?;
        }
        let fact = self
            .fact(&name)
            .with_context(|| format!("{name} is not listed"))?;
        Ok(Subject::of(fact))
    }

    /// The number of a fixture that serves; waits for one that boots.
    fn choose(&mut self, kill: &Kill, spills: bool) -> Result<usize> {
        let begun = Instant::now();
        loop {
            let fitting: Vec<usize> = self
                .fixtures
                .iter()
                .enumerate()
                .filter(|(_, fixture)| !fixture.down && (fixture.spills || !spills))
                .map(|(at, _)| at)
                .collect();
            let turn = usize::try_from(kill.bits >> 4).unwrap_or(0) % fitting.len().max(1);
            if let Some(at) = fitting.get(turn) {
                return Ok(*at);
            }
            ensure!(
                begun.elapsed() < BOOT_DEADLINE,
                "no guest serves\n{}",
                self.ground.lab.log_tail()
            );
            tick(Duration::from_millis(200));
            self.listing = api::listing(&self.ground.lab)?;
            self.revive()?;
        }
    }

    /// Has the fixture run, its traffic going on.
    fn awake(&mut self, at: usize) -> Result<Subject> {
        let Some(fixture) = self.fixtures.get(at) else {
            bail!("there is no fixture {at}");
        };
        let name = fixture.guest.name.clone();
        self.listing = api::listing(&self.ground.lab)?;
        let fact = self
            .fact(&name)
            .with_context(|| format!("{name} is not listed"))?;
        let subject = Subject::of(fact);
        if fact.state != InstanceState::Running {
            self.plain(Act::Wake, &subject)?;
        }
        if !Aim::take(&self.ground.site).daemon_holds(&format!("dmt{}", fact_mark(&subject))) {
            // Its tap cannot be drained, so it cannot sleep: the keeper was killed with what it held.
            self.counted.taps_not_held += 1;
            self.reboot(at, &subject)?;
            self.let_talk(&name);
        }
        Ok(subject)
    }

    /// Has the fixture's memory be on tmpfs, which it is from its boot to its first sleep.
    fn on_tmpfs(&mut self, at: usize, subject: &Subject) -> Result<()> {
        let id = self
            .fact(&subject.name)
            .map(|fact| fact.id.clone())
            .unwrap_or_default();
        if self
            .ground
            .site
            .run
            .join("ram")
            .join(format!("{id}.ram"))
            .exists()
        {
            return Ok(());
        }
        self.reboot(at, subject)
    }

    /// Stops the fixture and boots it again; nobody talks to it after.
    fn reboot(&mut self, at: usize, subject: &Subject) -> Result<()> {
        self.keep_silent(&subject.name);
        if let Some(fixture) = self.fixtures.get(at) {
            // Its connections go with its memory; they are closed by who made them before.
            fixture.traffic.forgive();
            tick(SETTLED);
        }
        self.plain(Act::Stop, subject)?;
        self.plain(Act::Start, subject)?;
        let Some(fixture) = self.fixtures.get_mut(at) else {
            return Ok(());
        };
        self.ground
            .lab
            .wait_for(&fixture.guest, InstanceState::Running, BOOT_DEADLINE)?;
        let begun = Instant::now();
        while !serves(&self.ground, fixture) {
            ensure!(begun.elapsed() < BOOT_DEADLINE, "{} does not serve", subject.name);
            tick(Duration::from_millis(50));
        }
        self.listing = api::listing(&self.ground.lab)?;
        Ok(())
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

impl Subject {
    /// The instance, or the image, of this name.
    fn instance(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            mark: None,
            archive: Path::new("").to_owned(),
        }
    }

    fn of(fact: &InstanceFact) -> Self {
        Self {
            mark: Some(fact.mark().to_owned()),
            ..Self::instance(&fact.name)
        }
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

/// The mark of the instance that a subject is.
fn fact_mark(subject: &Subject) -> &str {
    subject.mark.as_deref().unwrap_or_default()
}

/// Whether the fixture's server answers.
fn serves(ground: &Ground, fixture: &Fixture) -> bool {
    let to = fixture.guest.at(0, TCP_PORT);
    let answer = ground
        .lab
        .as_client(|| ask(to, b"there?", Duration::from_millis(500)));
    matches!(answer, Ok(Ok(_)))
}
