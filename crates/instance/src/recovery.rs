//! Looking at the host for what a record speaks of, when a daemon starts. Gathers facts and handles;
//! `adoption` decides.
//!
//! It comes in two parts. What the kernel knows is asked first and answers at once: whether the process is
//! there, its tap, its link. Only then is a VMM spoken to, which may hang; the daemon serves the others
//! meanwhile, and the sweep of what is nobody's has seen the link.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse_hypervisor::{Adopted, Deadline, ProcessRecord};
use dormouse_model::error::chain;
use dormouse_model::{Bytes, Generation};
use dormouse_network::Expected;

use crate::adoption::{Facts, Heard, Seen};
use crate::machine::{BootId, Kept, Phase, ProcessIdentity};
use crate::memory::Home;
use crate::record::Remembered;
use crate::rooms::{Layout, Rooms};
use crate::steps::Parts;

mod held;

pub(crate) use held::{keep_holding, tap_of_member};

/// How long a VMM of an earlier daemon may take to answer, and how often it is asked: to give it up is to
/// end it, and a busy host is no reason for that.
const ADOPTION: Duration = Duration::from_secs(5);
const ADOPTION_TRIES: u32 = 3;

/// What was found for one record.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) facts: Facts,
    pub(crate) parts: Parts,
}

/// Looks at the host. A process that lives and does not answer is still ours, and is ended through its group.
/// `linked` is dropped as soon as the link is adopted, or will not be.
pub(crate) async fn look(rooms: &Rooms, remembered: &Remembered, linked: impl Send) -> Found {
    let id = remembered.view.id;
    let mut parts = Parts::default();
    let recorded = running(remembered, rooms.boot());
    let process = recorded.filter(|process| {
        dormouse_sys::clock::process_start_ticks(process.pid).is_ok_and(|ticks| ticks == process.start_ticks)
    });
    let expected = match process {
        Some(process) => Expected::Open {
            tap: held::of_living(rooms, id, process).await,
        },
        None => Expected::Parked,
    };
    if has_link(&remembered.life.phase) {
        match rooms.network.adopt(id, remembered.view.addresses, expected).await {
            Ok(adopted) => parts.link = Some(adopted.link),
            Err(error) => tracing::error!(instance_id = %id, error = %chain(&error), "link not adopted"),
        }
    }
    let mut heard = match process {
        // Asked before the link is reported: what nobody has claimed by then is let go of.
        None if recorded.is_some() => held::ending(rooms, id).await,
        Some(_) | None => Heard::Answers,
    };
    drop(linked);
    if let Some(process) = process {
        (parts.vm, heard) = adopt(rooms, remembered, process).await;
    }
    let silent = matches!(heard, Heard::Silent { .. });
    let there = process.filter(|_| parts.vm.is_some() || silent);
    if process.is_some() && there.is_none() {
        heard = held::ending(rooms, id).await;
    }
    let start_ticks = there.map(|process| process.start_ticks);
    let facts = facts(&rooms.layout, remembered, rooms.boot(), start_ticks, heard);
    Found { facts, parts }
}

/// What the files say of a record. Blocking: a handful of looks at names.
pub(crate) fn facts(
    layout: &Layout,
    remembered: &Remembered,
    boot: BootId,
    start_ticks_at_pid: Option<u64>,
    heard: Heard,
) -> Facts {
    let (id, files) = (remembered.view.id, layout.images());
    let image = remembered.life.phase.image();
    if let Some(image) = image
        && matches!(image.kept, Kept::Spilled { .. })
        // What a crash kept from being dropped: the record says that the disk is the truth.
        && let Err(error) = files.drop_image(id, Home::Tmpfs)
    {
        tracing::warn!(instance_id = %id, error = %chain(&error), "memory is still on tmpfs");
    }
    let generation = image.map_or(Generation(0), |image| image.generation);
    let asleep = image.is_some();
    let mut unsure = false;
    let mut look = |path: &Path| match asleep.then(|| seen(path)) {
        Some(Ok(found)) => found,
        Some(Err(error)) => {
            tracing::warn!(instance_id = %id, path = %path.display(), %error, "not looked at");
            unsure = true;
            None
        }
        None => None,
    };
    Facts {
        boot,
        start_ticks_at_pid,
        heard,
        resident: look(&files.path(id, Home::Tmpfs)),
        spilled: look(&files.path(id, Home::Disk)),
        state: look(&layout.state_file(id, generation.0)),
        manifest: look(&layout.manifest_file(id, generation.0)),
        unsure,
    }
}

/// Drops the kept programs that are not `in_use` by a record.
///
/// # Errors
/// When a program cannot be removed.
pub(crate) async fn sweep_programs(
    rooms: &Rooms,
    mut in_use: BTreeSet<String>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (kept, own) = (Arc::clone(&rooms.kept), rooms.probe.program.clone());
    let dropped = tokio::task::spawn_blocking(move || {
        // The one that the next start takes.
        in_use.extend(own.map(|source| kept.keep(&source)).transpose()?);
        kept.sweep(&in_use)
    })
    .await??;
    if !dropped.is_empty() {
        tracing::info!(?dropped, "programs that no image needs");
    }
    Ok(())
}

/// Whether a record's phase comes with a link.
const fn has_link(phase: &Phase) -> bool {
    match phase {
        Phase::Running { .. } | Phase::Standby { .. } | Phase::Cold { .. } => true,
        Phase::Stopped | Phase::Starting | Phase::Stopping | Phase::Failed { .. } | Phase::Deleting => false,
    }
}

/// The process that a record of this boot speaks of.
fn running(remembered: &Remembered, boot: BootId) -> Option<ProcessIdentity> {
    let process = remembered.life.phase.process();
    process.filter(|process| process.boot == boot)
}

/// Speaks to a process that is there. Without a handle it has ended meanwhile, or was silent.
async fn adopt(
    rooms: &Rooms,
    remembered: &Remembered,
    process: ProcessIdentity,
) -> (Option<Arc<dyn dormouse_hypervisor::Vm>>, Heard) {
    let id = remembered.view.id;
    let record = ProcessRecord {
        identity: dormouse_hypervisor::ProcessIdentity {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: rooms.boot_id.clone(),
        },
        control: rooms.layout.control_socket(id),
    };
    for attempt in 1..=ADOPTION_TRIES {
        match rooms.driver.adopt(&record, Deadline::now() + ADOPTION).await {
            Ok(Adopted::Live(vm)) => return (Some(Arc::from(vm)), Heard::Answers),
            Ok(Adopted::Gone(gone)) => {
                tracing::info!(instance_id = %id, pid = process.pid, %gone, "recorded process");
                return (None, Heard::Answers);
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(instance_id = %id, attempt, error, "process not adopted");
            }
        }
    }
    let for_secs = ADOPTION.as_secs() * u64::from(ADOPTION_TRIES);
    (None, Heard::Silent { for_secs })
}

/// A regular file. Whether there is one at all, the host may be unable to say.
fn seen(path: &Path) -> io::Result<Option<Seen>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.is_file().then(|| Seen {
            inode: meta.ino(),
            length: Bytes(meta.len()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_surely_not_there_is_missing() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("state.1");
        assert_eq!(seen(&file).unwrap(), None);
        std::fs::write(&file, "state").unwrap();
        assert_eq!(seen(&file).unwrap().unwrap().length, Bytes(5));
        assert_eq!(seen(scratch.path()).unwrap(), None);
        assert!(seen(&file.join("state.1")).is_err());
    }
}
