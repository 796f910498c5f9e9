//! `bench restarts`: the daemon ends and starts again, a hundred times, half of them by SIGKILL, some with its
//! keeper, while guests that are awake serve requests and guests that sleep are woken. No request may fail and
//! no wake may be missed.

mod damaged;
mod load;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::v1::{MemoryPlacement, StandbyInstanceRequest};

use self::load::{Plan, Sleeper, Tally, during};
use super::{Judged, begin, end};
use crate::figures::{Figures, Row, Samples};
use crate::lab::{EndOfDaemon, Guest, GuestSpec, Lab, Parts, tick};
use crate::setup::Need;

/// Guests that serve, and guests that sleep.
const AWAKE: usize = 2;
const SLEEPERS: usize = 2;
/// After so much silence a sleeper sleeps.
const IDLE: Duration = Duration::from_secs(1);
/// Who shares the requests.
const CLIENTS: usize = 20;
/// How long requests are measured with no restarts.
const QUIET: Duration = Duration::from_secs(10);
/// Of so many restarts one takes the keeper along, and another only the keeper goes before it.
const KEEPER_OF: usize = 5;
/// By when a keeper that was killed must have a successor while the daemon lives.
const KEEPER_DEADLINE: Duration = Duration::from_secs(10);
/// Answered requests may be so many of those wanted, for the clients' own clocks.
const RATE_SLACK: f64 = 0.98;

/// What the restarts brought.
#[derive(Debug, Default)]
struct Restarts {
    gap: Samples,
    gap_killed: Samples,
    serving: Samples,
    put_to_sleep: u64,
    keepers_killed: u64,
    keepers_missing: u64,
    seconds: f64,
}

/// Runs `restarts` restarts under `rate` requests a second.
pub(crate) fn run(restarts: usize, rate: u32, judged: Judged, json: Option<&Path>) -> Result<ExitCode> {
    let parts = Parts::ready(Need::Guests)?;
    let mut lab = Lab::start(parts)?;
    let mut figures = begin("restarts", &lab)?;
    lab.import_server()?;
    let awake = guests(&lab, "awake", AWAKE, None)?;
    let sleepers: Vec<Sleeper> = guests(&lab, "sleeper", SLEEPERS, Some(IDLE))?
        .into_iter()
        .map(|guest| Sleeper {
            guest,
            asking: Mutex::default(),
        })
        .collect();
    refuse_second(&lab, &mut figures)?;
    let plan = Plan {
        awake: &awake,
        sleepers: &sleepers,
        rate,
        clients: CLIENTS,
    };
    println!("{rate} requests a second, no restarts");
    let (quiet, quiet_secs) = during(&mut lab, plan, |_| {
        let begun = Instant::now();
        tick(QUIET);
        Ok(begun.elapsed().as_secs_f64())
    })?;
    report_load(&mut figures, ("without", rate, judged), &quiet, quiet_secs);
    println!("the same with {restarts} restarts");
    let (tally, done) = during(&mut lab, plan, |lab| restart_all(lab, restarts, &sleepers))?;
    report_load(&mut figures, ("with", rate, judged), &tally, done.seconds);
    report(&mut figures, restarts, &done, &tally);
    if tally.failed + tally.missed > 0 {
        explain(
            &lab,
            awake.iter().chain(sleepers.iter().map(|sleeper| &sleeper.guest)),
        )?;
    }
    if let [first, ..] = awake.as_slice() {
        damaged::run(&mut lab, first, &mut figures)?;
    }
    still_sleep(&lab, awake.get(1..).unwrap_or_default(), &mut figures);
    let woken = sleepers
        .iter()
        .map(|sleeper| lab.view(&sleeper.guest).map(|view| view.wake_count))
        .sum::<Result<u64>>()?;
    figures.count("wakes", woken);
    let least = restarts as u64 / 4;
    let want = format!(">= {least}");
    figures.check("B.2", "wakes", &want, woken.into(), woken >= least);
    end(lab, &mut figures, "B.2")?;
    figures.finish(json)
}

fn guests(lab: &Lab, name: &str, count: usize, idle: Option<Duration>) -> Result<Vec<Guest>> {
    (1..=count)
        .map(|number| {
            lab.run_server(&GuestSpec {
                name: &format!("{name}-{number}"),
                image: "bench:latest",
                ram_mib: 128,
                placement: MemoryPlacement::Unspecified,
                idle,
            })
        })
        .collect()
}

/// A second daemon of the same data must be told who has it.
fn refuse_second(lab: &Lab, figures: &mut Figures) -> Result<()> {
    let (status, said) = lab.second_daemon()?;
    let named = said.contains(&lab.daemon_pid().to_string());
    println!("a second daemon: {status}: {}", said.trim());
    figures.count("second_daemon_not_refused", u64::from(status.success() || !named));
    figures.check_count("B.2", "second_daemon_not_refused", 0);
    Ok(())
}

/// Puts a sleeper to sleep, so that a knock finds it so before, in or after the gap; `false` when it is so.
fn put_to_sleep(lab: &Lab, sleeper: &Sleeper) -> bool {
    let _nobody_asks = crate::lab::locked_value(&sleeper.asking);
    let request = StandbyInstanceRequest {
        instance: sleeper.guest.id.clone(),
        ..Default::default()
    };
    let asked = lab
        .call(|client| async move { Ok(client.instances().standby_instance(request).await?.into_inner()) });
    asked.is_ok()
}

/// What is known of the guests when something was lost; the daemons' log is kept.
fn explain<'a>(lab: &Lab, guests: impl Iterator<Item = &'a Guest>) -> Result<()> {
    for guest in guests {
        let view = lab.view(guest)?;
        let state = view.state().as_str_name();
        println!("  {} ({}) is {state} {}", guest.name, guest.id, view.state_reason);
    }
    let kept = crate::build::release_directory().join("../restarts.log");
    lab.keep_log(&kept)?;
    println!("  the daemons' log is in {}", kept.display());
    Ok(())
}

fn restart_all(lab: &mut Lab, restarts: usize, sleepers: &[Sleeper]) -> Result<Restarts> {
    let begun = Instant::now();
    let mut done = Restarts::default();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for number in 0..restarts {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        tick(Duration::from_millis(random % 1500));
        let how = if number.is_multiple_of(2) {
            EndOfDaemon::Killed
        } else {
            EndOfDaemon::Asked
        };
        for sleeper in sleepers {
            done.put_to_sleep += u64::from(put_to_sleep(lab, sleeper));
        }
        let with_keeper = number % KEEPER_OF;
        if with_keeper <= 1 {
            done.keepers_killed += u64::from(lab.kill_keeper()?);
        }
        if with_keeper == 1 && !lab.await_keeper(KEEPER_DEADLINE) {
            done.keepers_missing += 1;
        }
        let restarted = lab
            .restart_daemon(how)
            .with_context(|| format!("restart {}", number + 1))?;
        done.gap.push(restarted.gap_ms);
        if how == EndOfDaemon::Killed {
            done.gap_killed.push(restarted.gap_ms);
        }
        done.serving.push(restarted.serving_ms);
        if (number + 1).is_multiple_of(10) {
            println!("  {} of {restarts}, gap {:.0} ms", number + 1, restarted.gap_ms);
        }
    }
    done.seconds = begun.elapsed().as_secs_f64();
    Ok(done)
}

fn report_load(
    figures: &mut Figures,
    (restarts, rate, judged): (&str, u32, Judged),
    tally: &Tally,
    seconds: f64,
) {
    for what in &tally.told {
        println!("  failed: {what}");
    }
    figures.row(
        Row::new("request", "ms", &tally.latency)
            .param("restarts", restarts)
            .param("rate", rate),
    );
    figures.row(Row::new("wake", "ms", &tally.wake).param("restarts", restarts));
    let achieved = tally.latency.len() as f64 / seconds;
    let name = match restarts {
        "with" => "",
        _ => "_no_restarts",
    };
    figures.count(&format!("failed_requests{name}"), tally.failed);
    figures.count(&format!("missed_wakes{name}"), tally.missed);
    figures.check_count("B.2", &format!("failed_requests{name}"), 0);
    figures.check_count("B.2", &format!("missed_wakes{name}"), 0);
    if judged == Judged::Losses {
        return;
    }
    figures.check(
        "B.2",
        &format!("requests a second, {restarts} restarts"),
        &format!(">= {rate} (less 2%)"),
        ((achieved * 10.0).round() / 10.0).into(),
        achieved >= f64::from(rate) * RATE_SLACK,
    );
}

fn report(figures: &mut Figures, restarts: usize, done: &Restarts, tally: &Tally) {
    figures.row(Row::new("api_gap", "ms", &done.gap).param("end", "all"));
    figures.row(Row::new("api_gap", "ms", &done.gap_killed).param("end", "killed"));
    figures.row(Row::new("process_start_to_serving", "ms", &done.serving));
    figures.count("restarts", done.gap.len() as u64);
    figures.count("put_to_sleep", done.put_to_sleep);
    figures.count("keepers_killed", done.keepers_killed);
    figures.count("keepers_missing", done.keepers_missing);
    figures.count("requests", tally.latency.len() as u64);
    figures.count("knocks", tally.wake.len() as u64);
    figures.check_count("B.2", "restarts", restarts as u64);
    figures.check_count("B.2", "keepers_missing", 0);
}

/// Guests that were awake through all of it can sleep: their taps can still be drained.
fn still_sleep(lab: &Lab, awake: &[Guest], figures: &mut Figures) {
    figures.count("cannot_sleep", 0);
    for guest in awake {
        if let Err(error) = lab.nap(guest) {
            println!("  {} cannot sleep: {error:#}", guest.name);
            figures.count("cannot_sleep", 1);
        }
    }
    figures.check_count("B.2", "cannot_sleep", 0);
}
