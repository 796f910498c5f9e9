//! Bringing guests, instances and images into the state that an act begins in, and back after a kill.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_client::v1::InstanceState;

use super::{Course, Fixture};
use crate::chaos::acts::{Call, Subject};
use crate::chaos::expect::{InstanceFact, Life, life};
use crate::chaos::schedule::{Act, Kill};
use crate::chaos::strike::Aim;
use crate::chaos::{Ground, api};
use crate::lab::{ImageFile, ImageRun, TCP_PORT, ask, tick, write_archive};

/// How long a guest may take to boot where it is emulated and the host is busy.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long traffic takes to see that it was forgiven.
const SETTLED: Duration = Duration::from_millis(150);
/// Instances and images that are kept for later acts.
const KEPT: usize = 3;

impl Course {
    /// Starts fixtures that have failed, and lets traffic go on to those that serve again.
    pub(super) fn revive(&mut self) -> Result<()> {
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
    pub(super) fn clear_out(&mut self) -> Result<()> {
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
    pub(super) fn plain(&mut self, act: Act, subject: &Subject) -> Result<()> {
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

    pub(super) fn name_of(&self, mark: &str) -> Option<String> {
        let fact = self.listing.instances.iter().find(|fact| fact.mark() == mark)?;
        Some(fact.name.clone())
    }

    /// Lets packets go to the fixture of this name again.
    pub(super) fn let_talk(&mut self, name: &str) {
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
    pub(super) fn prepare(&mut self, kill: &Kill) -> Result<Subject> {
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
            Act::Delete if kill.bits.is_multiple_of(3) => self.victim(&[InstanceState::Stopped], false),
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
}

impl Subject {
    /// The instance, or the image, of this name.
    pub(super) fn instance(name: &str) -> Self {
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
