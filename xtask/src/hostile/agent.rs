//! A guest that speaks nonsense through the agent's port: it harms itself at most.

use anyhow::{Result, ensure};
use dormouse_client::v1::InstanceState as State;

use super::bed::Bed;
use super::guests::{Verb, small};

const AREA: &str = "agent";

/// What is said before the first right word: the guest gets ready for all that.
const OVERHEARD: &[&str] = &[
    "garbage",
    "flood",
    "long-frame",
    "wrong-layout",
    "wrong-session",
    "bad-body",
    "backwards",
    "half",
    "spam",
];
/// After this it never gets ready.
const FATAL: &[&str] = &["mute", "close", "old-version", "boot-failed"];

/// Every behaviour at the boot, after a wake, and at the end.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    for behaviour in OVERHEARD {
        attempt(bed, &format!("{behaviour} at the boot"), |bed| {
            bed.scripts.write(&[("agent", behaviour)])?;
            bed.running("talker").map(drop)
        });
        attempt(bed, &format!("{behaviour} after a wake"), |bed| {
            bed.asleep("talker")?;
            bed.scripts.write(&[("agent", behaviour)])?;
            bed.ask(Verb::Wake, "talker", "")?;
            bed.until("talker", &[State::Running])?;
            bed.scripts.write(&[])?;
            bed.ask(Verb::Standby, "talker", "")
        });
    }
    // The others take as long as a boot may.
    let fatal = if bed.short { &["boot-failed"][..] } else { FATAL };
    for behaviour in fatal {
        attempt(bed, &format!("{behaviour} at the boot"), |bed| {
            bed.scripts.write(&[("agent", behaviour)])?;
            bed.create(small("talker"))?;
            let now = bed.until("talker", &[State::Failed, State::Stopped])?;
            ensure!(
                !now.state_reason.is_empty() || now.exit.is_some(),
                "it is {} and nobody says why",
                now.state().as_str_name()
            );
            Ok(())
        });
    }
    for behaviour in ["mute", "close"] {
        attempt(bed, &format!("{behaviour} after a wake"), |bed| {
            bed.asleep("talker")?;
            bed.scripts.write(&[("agent", behaviour)])?;
            // The guest serves already: an agent that says nothing is not worth its life.
            bed.ask(Verb::Wake, "talker", "")?;
            bed.until("talker", &[State::Running]).map(drop)
        });
    }
    attempt(bed, "a shutdown that is ignored", |bed| {
        bed.running("talker")?;
        bed.scripts.write(&[("shutdown", "ignore")])?;
        bed.ask(Verb::Stop, "talker", "")?;
        bed.until("talker", &[State::Stopped]).map(drop)
    });
    attempt(bed, "the log stays short for all that", |bed| {
        let length = std::fs::metadata(bed.lab.disk_directory().join("dormoused.log"))?.len();
        ensure!(length < 1 << 20, "the daemon's log has {length} bytes");
        Ok(())
    });
    Ok(())
}

fn attempt(bed: &mut Bed, case: &str, work: impl FnOnce(&Bed) -> Result<()>) {
    let outcome = work(bed);
    let cleared = bed
        .scripts
        .write(&[])
        .and_then(|()| bed.instances())
        .and_then(|all| all.iter().try_for_each(|instance| bed.remove(&instance.id)));
    let fault = outcome.and(cleared).err();
    bed.tally
        .note(AREA, case, fault.map(|error| format!("{error:#}")));
}
