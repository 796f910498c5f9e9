//! Looking at the host for what a record speaks of, when a daemon starts. Gathers facts and handles;
//! `adoption` decides.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse_hypervisor::{Adopted, Deadline, ProcessRecord};
use dormouse_model::error::chain;
use dormouse_model::{Bytes, Generation};
use dormouse_network::Expected;

use crate::adoption::{Facts, Seen};
use crate::machine::{BootId, Kept, Phase, ProcessIdentity};
use crate::memory::Home;
use crate::record::{InstanceRecord, Remembered};
use crate::rooms::{Layout, Rooms};
use crate::steps::Parts;

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
pub(crate) async fn look(rooms: &Rooms, remembered: &Remembered) -> Found {
    let id = remembered.view.id;
    let mut parts = Parts::default();
    let mut start_ticks_at_pid = None;
    if let Phase::Running { process, .. } = &remembered.life.phase {
        start_ticks_at_pid = dormouse_sys::clock::process_start_ticks(process.pid).ok();
        parts.vm = adopt(rooms, remembered, *process).await;
        if parts.vm.is_none() {
            start_ticks_at_pid = None;
        }
    }
    let expected = match parts.vm {
        Some(_) => Expected::Open {
            tap: held_tap(rooms, remembered).await,
        },
        None => Expected::Parked,
    };
    if has_link(&remembered.life.phase) {
        match rooms.network.adopt(id, remembered.view.addresses, expected).await {
            Ok(adopted) => parts.link = Some(adopted.link),
            Err(error) => tracing::error!(instance_id = %id, error = %chain(&error), "link not adopted"),
        }
    }
    let facts = facts(&rooms.layout, remembered, rooms.boot(), start_ticks_at_pid);
    Found { facts, parts }
}

/// What the files say of a record. Blocking: a handful of looks at names.
pub(crate) fn facts(
    layout: &Layout,
    remembered: &Remembered,
    boot: BootId,
    start_ticks_at_pid: Option<u64>,
) -> Facts {
    let (id, files) = (remembered.view.id, layout.images());
    if let Phase::Standby { image } = &remembered.life.phase
        && matches!(image.kept, Kept::Spilled { .. })
        // What a crash kept from being dropped: the record says that the disk is the truth.
        && let Err(error) = files.drop_image(id, Home::Tmpfs)
    {
        tracing::warn!(instance_id = %id, error = %chain(&error), "memory is still on tmpfs");
    }
    let generation = match &remembered.life.phase {
        Phase::Standby { image } => image.generation,
        Phase::Stopped
        | Phase::Starting
        | Phase::Running { .. }
        | Phase::Cold { .. }
        | Phase::Stopping
        | Phase::Failed { .. }
        | Phase::Deleting => Generation(0),
    };
    let asleep = matches!(remembered.life.phase, Phase::Standby { .. });
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
        resident: look(&files.path(id, Home::Tmpfs)),
        spilled: look(&files.path(id, Home::Disk)),
        state: look(&layout.state_file(id, generation.0)),
        manifest: look(&layout.manifest_file(id, generation.0)),
        unsure,
    }
}

/// Drops the kept programs that no record names. A record that was set aside may name any: then none goes.
///
/// # Errors
/// When records cannot be read, or a program cannot be removed.
pub(crate) async fn sweep_programs(rooms: &Rooms) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let listing = rooms.store.list::<InstanceRecord>().await?;
    if !listing.damaged.is_empty() {
        return Ok(());
    }
    let mut in_use: BTreeSet<String> = listing
        .records
        .into_iter()
        .map(|(_, record)| record.monitor)
        .collect();
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

async fn adopt(
    rooms: &Rooms,
    remembered: &Remembered,
    process: ProcessIdentity,
) -> Option<Arc<dyn dormouse_hypervisor::Vm>> {
    let id = remembered.view.id;
    if process.boot != rooms.boot() {
        return None;
    }
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
            Ok(Adopted::Live(vm)) => return Some(Arc::from(vm)),
            Ok(Adopted::Gone(gone)) => {
                tracing::info!(instance_id = %id, pid = process.pid, %gone, "recorded process");
                return None;
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(instance_id = %id, attempt, error, "process not adopted");
            }
        }
    }
    None
}

/// The tap that the keeper holds for the instance.
async fn held_tap(rooms: &Rooms, remembered: &Remembered) -> Option<OwnedFd> {
    let name = Rooms::held_name(remembered.view.id, "tap")?;
    match rooms.holder.get(&name).await {
        Ok(held) => held?.descriptors.into_iter().next(),
        Err(error) => {
            tracing::warn!(instance_id = %remembered.view.id, error = %chain(&error), "tap not handed back");
            None
        }
    }
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
