//! A virtual machine monitor that answers wrong, or not, at every step that asks it something: the step
//! fails with its reason, and the guest is where it was.

#![allow(clippy::too_many_lines, reason = "a function is a table of cases")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::{Instance, InstanceState as State};

use super::bed::{Bed, check, code_of};
use super::guests::{Verb, small};
use crate::lab::tick;

const AREA: &str = "monitor";

/// How long the rest of a failed start may take to be cleared.
const CLEARED_WITHIN: Duration = Duration::from_secs(5);

/// What the monitor can do wrong without a wait.
const QUICK: &[&str] = &[
    "garbage",
    "flood",
    "close",
    "half",
    "error",
    "wrong-shape",
    "deep",
    "exit",
];
/// Some of it, for the short form.
const FEW: &[&str] = &["garbage", "half", "exit"];
/// What a deadline ends.
const SLOW: &[&str] = &["mute", "wrong-id"];

/// Every command of every step, with every behaviour.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    // A launch and a load have a minute each; the rest ends in ten seconds.
    let (patient, slow): (&[&str], &[&str]) = if bed.short { (&[], &[]) } else { (SLOW, SLOW) };
    let quick = if bed.short { FEW } else { QUICK };
    for behaviour in quick.iter().chain(patient) {
        for command in ["greeting", "qmp_capabilities", "query-status"] {
            // The greeting has no number and no error.
            let pointless = command == "greeting" && ["error", "wrong-shape", "mute", "wrong-id"].contains(behaviour)
                // Anything is an answer to what has no result.
                || command == "qmp_capabilities" && *behaviour == "wrong-shape";
            if !pointless {
                try_case(bed, &format!("launch, {command} {behaviour}"), |bed, name| {
                    launch(bed, name, command, behaviour)
                });
            }
        }
        if [
            "error",
            "wrong-shape",
            "half",
            "garbage",
            "close",
            "exit",
            "deep",
            "flood",
        ]
        .contains(behaviour)
        {
            try_case(bed, &format!("load, query-status {behaviour}"), |bed, name| {
                load(bed, name, "query-status", behaviour)
            });
            try_case(
                bed,
                &format!("run after the load, cont {behaviour}"),
                |bed, name| run_after_load(bed, name, behaviour),
            );
        }
    }
    for behaviour in quick.iter().chain(slow) {
        for command in ["stop", "add-fd", "xen-save-devices-state"] {
            if *behaviour == "wrong-shape" {
                continue;
            }
            try_case(bed, &format!("sleep, {command} {behaviour}"), |bed, name| {
                sleep(bed, name, command, behaviour)
            });
        }
    }
    for command in ["query-status", "greeting", "qmp_capabilities"] {
        try_case(
            bed,
            &format!("launch, {command} after 200,000 events"),
            |bed, name| {
                bed.scripts.write(&[(command, "events")])?;
                bed.running(name).map(drop)
            },
        );
    }
    try_case(bed, "launch, the process ends at once", |bed, name| {
        launch(bed, name, "start", "exit")
    });
    try_case(bed, "the process ends in the middle of life", |bed, name| {
        let made = bed.running(name)?;
        dormouse_sys::pidfd::PidFd::open(made.pid)?.signal(nix::sys::signal::Signal::SIGKILL)?;
        let now = bed.until(&made.id, &[State::Failed])?;
        ensure!(!now.state_reason.is_empty(), "failed without a reason");
        Ok(())
    });
    if !bed.short {
        try_case(bed, "launch, the process never answers", |bed, name| {
            launch(bed, name, "start", "silent")
        });
    }
    Ok(())
}

/// Runs a case on an instance of its own, and removes that whatever became of it.
fn try_case(bed: &mut Bed, case: &str, work: impl FnOnce(&Bed, &str) -> Result<()>) {
    let name = "monitored";
    let outcome = work(bed, name);
    let cleared = bed
        .scripts
        .write(&[])
        .and_then(|()| bed.instances())
        .and_then(|all| all.iter().try_for_each(|instance| bed.remove(&instance.id)))
        .and_then(|()| nobody_left(bed));
    let fault = outcome.and(cleared).err();
    bed.tally
        .note(AREA, case, fault.map(|error| format!("{error:#}")));
}

/// No monitor may outlive its instance.
fn nobody_left(bed: &Bed) -> Result<()> {
    let program = bed.scripts.program();
    let left = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path().join("exe")).ok())
        .filter(|exe| *exe == program || exe.starts_with(&bed.data))
        .count();
    ensure!(left == 0, "{left} monitors are left");
    Ok(())
}

/// A start that fails leaves a failed instance with its reason, which starts when the monitor is well.
fn launch(bed: &Bed, name: &str, command: &str, behaviour: &str) -> Result<()> {
    bed.scripts.write(&[(command, behaviour)])?;
    let outcome = bed.create(small(name));
    let now = match &outcome {
        Ok(made) => bed.instance(&made.id)?,
        Err(_) => bed.instance(name)?,
    };
    ensure!(now.state() == State::Failed, "it is {}", words(&now));
    ensure!(now.state_reason.len() > 8, "failed without a reason");
    if let Some(fault) = check("OK|INSTANCE_FAILED", &outcome) {
        anyhow::bail!("{fault}");
    }
    bed.scripts.write(&[])?;
    start_again(bed, name)?;
    bed.until(name, &[State::Running]).map(drop)
}

/// Starts it with a good monitor. While what the failed start left is cleared it is busy, which asks for
/// another try.
fn start_again(bed: &Bed, name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match bed.ask(Verb::Start, name, "") {
            Err(error) if code_of(&error) == "INSTANCE_BUSY" && begun.elapsed() < CLEARED_WITHIN => {
                tick(Duration::from_millis(10));
            }
            outcome => return outcome.context("starting it with a good monitor"),
        }
    }
}

/// A sleep that fails leaves a running guest, unless its process is gone.
fn sleep(bed: &Bed, name: &str, command: &str, behaviour: &str) -> Result<()> {
    let made = bed.running(name)?;
    bed.scripts.write(&[(command, behaviour)])?;
    let outcome = bed.ask(Verb::Standby, name, "");
    bed.scripts.write(&[])?;
    // A process that ends overtakes what was asked of it.
    let want = if behaviour == "exit" {
        "INSTANCE_FAILED|INSTANCE_OVERTAKEN"
    } else {
        "INSTANCE_FAILED"
    };
    if let Some(fault) = check(want, &outcome) {
        anyhow::bail!("{fault}");
    }
    if behaviour == "exit" {
        let now = bed.until(name, &[State::Failed])?;
        ensure!(!now.state_reason.is_empty(), "failed without a reason");
        return Ok(());
    }
    let now = bed.until(name, &[State::Running])?;
    ensure!(now.pid == made.pid, "another process runs");
    bed.ask(Verb::Standby, name, "")
        .context("putting it to sleep with a good monitor")?;
    bed.until(name, &[State::Standby]).map(drop)
}

/// A wake that fails before the image is consumed leaves a sleeper.
fn load(bed: &Bed, name: &str, command: &str, behaviour: &str) -> Result<()> {
    let made = bed.asleep(name)?;
    bed.scripts.write(&[(command, behaviour)])?;
    let outcome = bed.ask(Verb::Wake, name, "");
    if let Some(fault) = check("INSTANCE_FAILED", &outcome) {
        anyhow::bail!("{fault}");
    }
    let now = bed.until(name, &[State::Standby])?;
    ensure!(now.generation == made.generation, "another image");
    bed.scripts.write(&[])?;
    bed.ask(Verb::Wake, name, "")
        .context("waking it with a good monitor")?;
    bed.until(name, &[State::Running]).map(drop)
}

/// A wake that fails once the image is consumed fails with its reason: the guest may have run.
fn run_after_load(bed: &Bed, name: &str, behaviour: &str) -> Result<()> {
    bed.asleep(name)?;
    bed.scripts.write(&[("cont", behaviour)])?;
    let outcome = bed.ask(Verb::Wake, name, "");
    bed.scripts.write(&[])?;
    let want = if behaviour == "wrong-shape" {
        "OK|INSTANCE_FAILED"
    } else {
        "INSTANCE_FAILED"
    };
    if let Some(fault) = check(want, &outcome) {
        anyhow::bail!("{fault}");
    }
    let now = bed.until(name, &[State::Failed, State::Running, State::Standby])?;
    ensure!(
        outcome.is_ok() || now.state() != State::Failed || !now.state_reason.is_empty(),
        "failed without a reason"
    );
    Ok(())
}

fn words(instance: &Instance) -> String {
    format!("{}: {}", instance.state().as_str_name(), instance.state_reason)
}
