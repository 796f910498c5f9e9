//! Each verb in each state in which it is wrong, or means nothing: its code, and that nothing changed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::v1;
use dormouse_client::v1::InstanceState as State;

use super::bed::{Bed, check};
use super::guests::{Verb, small};
use crate::lab::tick;

const AREA: &str = "states";

const WRONG: &str = "INSTANCE_WRONG_STATE";
const NOT_STOPPED: &str = "INSTANCE_NOT_STOPPED";

/// How a state is reached and held: what the monitor does, and the verb that then hangs.
struct Scene {
    state: State,
    script: &'static [(&'static str, &'static str)],
    /// What goes before, with a monitor that does as it should.
    before: &'static [Verb],
    /// What does not end; `None` when the state stays by itself.
    hangs: Option<Verb>,
    /// The verbs that are wrong, or no change, here.
    verbs: &'static [(Verb, &'static str)],
}

/// Every state that can be held from outside.
const SCENES: &[Scene] = &[
    Scene {
        state: State::Stopped,
        script: &[],
        before: &[Verb::Stop],
        hangs: None,
        verbs: &[(Verb::Stop, "OK"), (Verb::Standby, WRONG), (Verb::Wake, WRONG)],
    },
    Scene {
        state: State::Starting,
        script: &[("query-status", "mute")],
        before: &[Verb::Stop],
        hangs: Some(Verb::Start),
        verbs: &[
            (Verb::Standby, WRONG),
            (Verb::Wake, WRONG),
            (Verb::Delete, NOT_STOPPED),
        ],
    },
    Scene {
        state: State::Initializing,
        script: &[("agent", "mute")],
        before: &[Verb::Stop],
        hangs: Some(Verb::Start),
        verbs: &[
            (Verb::Start, "OK"),
            (Verb::Standby, WRONG),
            (Verb::Wake, "OK"),
            (Verb::Delete, NOT_STOPPED),
        ],
    },
    Scene {
        state: State::Running,
        script: &[],
        before: &[],
        hangs: None,
        verbs: &[
            (Verb::Start, "OK"),
            (Verb::Wake, "OK"),
            (Verb::Delete, NOT_STOPPED),
        ],
    },
    Scene {
        state: State::Sleeping,
        script: &[("xen-save-devices-state", "mute")],
        before: &[],
        hangs: Some(Verb::Standby),
        verbs: &[(Verb::Start, WRONG), (Verb::Delete, NOT_STOPPED)],
    },
    Scene {
        state: State::Standby,
        script: &[],
        before: &[Verb::Standby],
        hangs: None,
        verbs: &[
            (Verb::Start, WRONG),
            (Verb::Standby, "OK"),
            (Verb::Delete, NOT_STOPPED),
        ],
    },
    Scene {
        state: State::Waking,
        script: &[("query-status", "mute")],
        before: &[Verb::Standby],
        hangs: Some(Verb::Wake),
        verbs: &[
            (Verb::Start, WRONG),
            (Verb::Standby, WRONG),
            (Verb::Delete, NOT_STOPPED),
        ],
    },
    Scene {
        state: State::Stopping,
        script: &[("shutdown", "ignore")],
        before: &[],
        hangs: Some(Verb::Stop),
        verbs: &[
            (Verb::Start, WRONG),
            (Verb::Standby, WRONG),
            (Verb::Wake, WRONG),
            (Verb::Delete, NOT_STOPPED),
        ],
    },
    Scene {
        state: State::Failed,
        script: &[("start", "exit")],
        before: &[Verb::Stop],
        hangs: Some(Verb::Start),
        verbs: &[(Verb::Standby, WRONG), (Verb::Wake, WRONG)],
    },
];

/// Plays every scene.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    for scene in SCENES {
        let name = scene
            .state
            .as_str_name()
            .trim_start_matches("INSTANCE_STATE_")
            .to_lowercase();
        let begun = Instant::now();
        let played = play(bed, scene, &name);
        println!("  {name}: {:.1} s", begun.elapsed().as_secs_f64());
        if let Err(error) = played {
            bed.tally.note(AREA, &name, Some(format!("{error:#}")));
        }
        bed.scripts.write(&[])?;
        if let Err(error) = bed.remove(&name) {
            bed.tally.note(
                AREA,
                &format!("{name}: removed at last"),
                Some(format!("{error:#}")),
            );
        }
    }
    for verb in Verb::ALL {
        bed.case(
            AREA,
            &format!("{verb:?} of what is not there"),
            "INSTANCE_NOT_FOUND",
            |bed| bed.ask(verb, "nobody", ""),
        )?;
    }
    bed.tally.skip(AREA, "dozing", "no instance dozes yet");
    bed.tally.skip(AREA, "deleting", "it cannot be held from outside");
    Ok(())
}

fn play(bed: &mut Bed, scene: &Scene, name: &str) -> Result<()> {
    let made = bed.running(name)?;
    for verb in scene.before {
        bed.ask(*verb, &made.id, "")?;
    }
    bed.scripts.write(scene.script)?;
    let mut faults = Vec::new();
    std::thread::scope(|threads| -> Result<()> {
        let here: &Bed = bed;
        if let Some(verb) = scene.hangs {
            // How it ends is another case's matter.
            let id = made.id.clone();
            threads.spawn(move || {
                let _held = here.ask(verb, &id, "");
            });
        }
        let held = here.until(&made.id, &[scene.state]);
        let outcome = held.map(|held| {
            for (verb, want) in scene.verbs {
                faults.push((
                    format!("{verb:?} when {name}"),
                    try_verb(here, &held, *verb, "", want),
                ));
            }
            for verb in Verb::ALL {
                let fault = try_verb(here, &held, verb, "1", "INSTANCE_CHANGED");
                faults.push((format!("{verb:?} of another etag when {name}"), fault));
            }
        });
        // Whatever hangs is cut short by this, and the thread above ends.
        here.scripts.write(&[])?;
        if scene.hangs.is_some() {
            here.remove(&made.id)?;
        }
        outcome.with_context(|| format!("holding {name}"))
    })?;
    for (case, fault) in faults {
        bed.tally.note(AREA, &case, fault);
    }
    if scene.hangs.is_some() {
        // For the caller to remove.
        let mut again = small(name);
        again.start = false;
        bed.create(again)?;
    }
    Ok(())
}

/// What is wrong with how `verb` was answered in this state.
fn try_verb(bed: &Bed, held: &v1::Instance, verb: Verb, etag: &str, want: &str) -> Option<String> {
    let begun = Instant::now();
    let outcome = bed.ask(verb, &held.id, etag);
    let fault = check(want, &outcome);
    if fault.is_some() {
        return fault;
    }
    if begun.elapsed() > Duration::from_secs(2) {
        return Some(format!("answered after {:?}", begun.elapsed()));
    }
    tick(Duration::from_millis(1));
    let now = match bed.instance(&held.id) {
        Ok(now) => now,
        Err(error) => return Some(format!("{error:#}")),
    };
    let unchanged = (now.state(), now.generation, now.pid) == (held.state(), held.generation, held.pid);
    (!unchanged).then(|| {
        format!(
            "was {} with process {} and is {} with process {}",
            held.state().as_str_name(),
            held.pid,
            now.state().as_str_name(),
            now.pid
        )
    })
}
