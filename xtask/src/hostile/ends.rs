//! Ends that come at the wrong time: a monitor that hangs in the middle of a sleep and at a stop, a daemon
//! that is told to end twice, a daemon that is killed again and again between a sleep's commit and the end of
//! its process. Deadlines end what hangs, and the instance is right afterwards.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_client::v1::{self, InstanceState as State};
use dormouse_client::{Client, ClientError};
use dormouse_sys::pidfd::PidFd;
use nix::sys::signal::Signal;

use super::bed::{Bed, check};
use super::guests::{Verb, small};
use crate::lab::tick;

const AREA: &str = "ends";

/// What a step that asks a monitor has, and a margin: a hung one fails it within this.
const STEP_ENDS: Duration = Duration::from_secs(15);

/// A daemon that is told twice ends within this.
const FORCED_WITHIN: Duration = Duration::from_secs(2);

/// The exit code of a daemon that was told twice.
const FORCED: i32 = 75;

/// Kills between commit and let-go, in the short form and in the long.
const HITS: (u32, u32) = (2, 10);

/// How much a kill that missed moves the next one.
const AIM: Duration = Duration::from_micros(200);

/// How often a daemon that found such a sleeper is killed while it starts.
const STARTS_KILLED: u32 = 3;

/// The case that is not in the short form.
const HANGS: &str = "a monitor hangs in a sleep, and comes back";

/// A case, on an instance of this name.
type Case = fn(&mut Bed, &str) -> Result<()>;

/// All cases.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    let cases: [(&str, Case); 4] = [
        ("a monitor hangs at a stop", hung_at_stop),
        (HANGS, hung_in_sleep),
        ("a daemon is told twice", told_twice),
        (
            "a daemon is killed between commit and let-go",
            killed_after_commit,
        ),
    ];
    for (case, work) in cases {
        // A deadline of ten seconds.
        if bed.short && case == HANGS {
            continue;
        }
        let outcome = work(bed, "ending");
        if bed.lab.daemon_pid() == 0 {
            bed.lab.start_daemon()?;
        }
        let cleared = bed
            .instances()
            .and_then(|all| all.iter().try_for_each(|instance| bed.remove(&instance.id)));
        let fault = outcome.and(cleared).err();
        bed.tally
            .note(AREA, case, fault.map(|error| format!("{error:#}")));
    }
    Ok(())
}

/// A monitor that was stopped, and goes on when this goes.
struct Stopped(PidFd);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        let process = PidFd::open(pid).context("opening the monitor")?;
        process.signal(Signal::SIGSTOP).context("stopping the monitor")?;
        Ok(Self(process))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = self.0.signal(Signal::SIGCONT);
    }
}

/// A verb asked for by somebody else.
fn aside(bed: &Bed, verb: Verb, id: &str) -> Result<JoinHandle<Result<()>>> {
    let (client, runtime, instance) = (bed.lab.client()?, bed.lab.runtime(), id.to_owned());
    Ok(std::thread::spawn(move || {
        let asked = runtime.block_on(ask(&client, verb, instance));
        asked.map_err(|error| anyhow!(error))
    }))
}

async fn ask(client: &Client, verb: Verb, instance: String) -> Result<(), ClientError> {
    let mut instances = client.instances();
    match verb {
        Verb::Standby => {
            let request = v1::StandbyInstanceRequest {
                instance,
                ..Default::default()
            };
            drop(instances.standby_instance(request).await?);
        }
        Verb::Stop | Verb::Start | Verb::Wake | Verb::Delete => {
            let request = v1::StopInstanceRequest {
                instance,
                ..Default::default()
            };
            drop(instances.stop_instance(request).await?);
        }
    }
    Ok(())
}

fn joined(asked: JoinHandle<Result<()>>) -> Result<()> {
    asked.join().map_err(|_| anyhow!("the asking thread panicked"))?
}

/// Whether there is such a process; one that has ended and was not waited for is none (proc_pid_stat(5)).
fn lives(pid: u32) -> bool {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = std::fs::read_to_string(path).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The grace passes, the process is killed, and it has stopped.
fn hung_at_stop(bed: &mut Bed, name: &str) -> Result<()> {
    let made = bed.running(name)?;
    let _stopped = Stopped::new(made.pid)?;
    let begun = Instant::now();
    bed.ask(Verb::Stop, name, "")?;
    ensure!(begun.elapsed() < STEP_ENDS, "the stop took {:?}", begun.elapsed());
    bed.until(name, &[State::Stopped])?;
    ensure!(!lives(made.pid), "its process is left");
    bed.ask(Verb::Start, name, "").context("starting it again")?;
    bed.until(name, &[State::Running]).map(drop)
}

/// The deadline takes the sleep back; the guest is what it was, and sleeps when it is asked again.
fn hung_in_sleep(bed: &mut Bed, name: &str) -> Result<()> {
    let made = bed.running(name)?;
    let stopped = Stopped::new(made.pid)?;
    let asked = aside(bed, Verb::Standby, &made.id)?;
    let begun = Instant::now();
    // From its own deadline on the sleep is being taken back, for which the monitor is asked too.
    while begun.elapsed() < STEP_ENDS {
        ensure!(!asked.is_finished(), "the sleep ended while its monitor hung");
        tick(Duration::from_millis(50));
    }
    drop(stopped);
    if let Some(fault) = check("INSTANCE_FAILED", &joined(asked)) {
        anyhow::bail!("{fault}");
    }
    let now = bed.until(name, &[State::Running])?;
    ensure!(now.pid == made.pid, "another process runs");
    bed.ask(Verb::Standby, name, "").context("asking again")?;
    bed.until(name, &[State::Standby])?;
    bed.ask(Verb::Wake, name, "")?;
    bed.until(name, &[State::Running]).map(drop)
}

/// An orderly end waits for the step that is under way; the second signal does not. The next daemon resumes
/// the guest.
fn told_twice(bed: &mut Bed, name: &str) -> Result<()> {
    let made = bed.running(name)?;
    let stopped = Stopped::new(made.pid)?;
    let asked = aside(bed, Verb::Standby, &made.id)?;
    bed.until(name, &[State::Sleeping])?;
    let (status, took) = bed.lab.end_daemon_twice(Duration::from_millis(500))?;
    drop(stopped);
    // Whatever it was told.
    let _unanswered = joined(asked);
    ensure!(status.code() == Some(FORCED), "the daemon ended with {status}");
    ensure!(
        took < FORCED_WITHIN,
        "the daemon took {took:?} after the second signal"
    );
    ensure!(lives(made.pid), "the guest's process is gone");
    bed.lab.start_daemon()?;
    let now = bed.until(name, &[State::Running])?;
    ensure!(now.pid == made.pid, "another process runs");
    bed.ask(Verb::Standby, name, "").context("putting it to sleep")?;
    bed.until(name, &[State::Standby]).map(drop)
}

/// The kill is aimed by the files of the sleep, which are complete a moment before the commit: earlier when a
/// process had ended, later when it was no sleeper yet.
fn killed_after_commit(bed: &mut Bed, name: &str) -> Result<()> {
    let made = bed.create(small(name))?;
    let wanted = if bed.short { HITS.0 } else { HITS.1 };
    let (mut hits, mut aim) = (0, Duration::from_millis(3));
    for round in 0..20 * wanted {
        if hits == wanted {
            break;
        }
        let now = bed.until(&made.id, &[State::Running])?;
        let sealed = bed.data.join("instances").join(&made.id);
        let sealed = sealed.join(format!("manifest.{}", now.generation + 1));
        let asked = aside(bed, Verb::Standby, &made.id)?;
        let begun = Instant::now();
        while !sealed.exists() && begun.elapsed() < STEP_ENDS {
            tick(Duration::from_millis(1));
        }
        tick(aim);
        bed.lab.kill_daemon()?;
        let _unanswered = joined(asked);
        let left = lives(now.pid);
        for _ in 0..STARTS_KILLED {
            bed.lab.spawn_daemon()?;
            tick(Duration::from_millis(u64::from(20 + round * 7 % 150)));
            bed.lab.kill_daemon()?;
        }
        bed.lab.start_daemon()?;
        let after = bed.until(&made.id, &[State::Running, State::Standby])?;
        if after.state() == State::Running {
            ensure!(after.pid == now.pid, "another process runs after round {round}");
            aim += AIM;
            continue;
        }
        if left {
            hits += 1;
        } else {
            aim = aim.saturating_sub(AIM);
        }
        ensure!(
            after.generation == now.generation + 1,
            "image {} after {}",
            after.generation,
            now.generation
        );
        bed.ask(Verb::Wake, &made.id, "")
            .with_context(|| format!("waking it after round {round}"))?;
        ensure!(!lives(now.pid), "the process of round {round} is left");
    }
    println!("  {hits} kills between commit and let-go, each with {STARTS_KILLED} more at the next starts");
    if hits == 0 {
        // A matter of luck; every round was right, and `chaos` kills at exactly that point.
        bed.tally
            .skip(AREA, "kills between commit and let-go", "none fell there");
    }
    Ok(())
}
