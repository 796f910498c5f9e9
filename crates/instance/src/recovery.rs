//! Looking at the host for what a record speaks of, when a daemon starts. Gathers facts and handles;
//! `adoption` decides.
//!
//! It comes in two parts. What the kernel knows is asked first and answers at once: whether the process is
//! there, its tap, its link. Only then is a VMM spoken to, which may hang; the daemon serves the others
//! meanwhile, and the sweep of what is nobody's has seen the link.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dormouse_hypervisor::{Adopted, Deadline, ProcessRecord};
use dormouse_model::Generation;
use dormouse_model::error::chain;
use dormouse_network::Expected;

use crate::adoption::{Facts, Heard, Presence};
use crate::machine::{Kept, Phase, ProcessIdentity};
use crate::memory::Home;
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::steps::{Parts, boot_of};

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

/// Looks at the host. What cannot be looked at counts as not there, except a process: one that lives
/// and does not answer is still ours, and is ended through its group. `linked` is dropped as soon as
/// the link is adopted, or will not be.
pub(crate) async fn look(rooms: &Rooms, remembered: &Remembered, linked: impl Send) -> Found {
    let id = remembered.view.id;
    let boot_text = dormouse_sys::clock::boot_id().unwrap_or_default();
    let mut parts = Parts::default();
    let process = running(remembered, &boot_text).filter(|process| {
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
    drop(linked);
    let mut heard = Heard::Answers;
    if let Some(process) = process {
        (parts.vm, heard) = adopt(rooms, remembered, process, &boot_text).await;
    }
    let there = parts.vm.is_some() || matches!(heard, Heard::Silent { .. });
    let start_ticks_at_pid = process.filter(|_| there).map(|process| process.start_ticks);
    if start_ticks_at_pid.is_none() && running(remembered, &boot_text).is_some() {
        heard = held::ending(rooms, id).await;
    }
    let files = rooms.layout.images();
    if let Phase::Standby { image } = &remembered.life.phase
        && image.kept == Kept::Spilled
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
        | Phase::Stopping
        | Phase::Failed { .. }
        | Phase::Deleting => Generation(0),
    };
    let facts = Facts {
        boot: boot_of(&boot_text),
        start_ticks_at_pid,
        heard,
        resident_inode: inode(&files.path(id, Home::Tmpfs)),
        spilled: if files.path(id, Home::Disk).is_file() {
            Presence::Present
        } else {
            Presence::Absent
        },
        device_state: rooms
            .layout
            .state_file(id, generation.0)
            .is_file()
            .then_some(generation),
    };
    Found { facts, parts }
}

/// Whether a record's phase comes with a link.
const fn has_link(phase: &Phase) -> bool {
    match phase {
        Phase::Running { .. } | Phase::Standby { .. } => true,
        Phase::Stopped | Phase::Starting | Phase::Stopping | Phase::Failed { .. } | Phase::Deleting => false,
    }
}

/// The process that a record of this boot speaks of.
fn running(remembered: &Remembered, boot_text: &str) -> Option<ProcessIdentity> {
    match &remembered.life.phase {
        Phase::Running { process, .. } => (process.boot == boot_of(boot_text)).then_some(*process),
        Phase::Stopped
        | Phase::Starting
        | Phase::Standby { .. }
        | Phase::Stopping
        | Phase::Failed { .. }
        | Phase::Deleting => None,
    }
}

/// Speaks to a process that is there. Without a handle it has ended meanwhile, or was silent.
async fn adopt(
    rooms: &Rooms,
    remembered: &Remembered,
    process: ProcessIdentity,
    boot_text: &str,
) -> (Option<Arc<dyn dormouse_hypervisor::Vm>>, Heard) {
    let id = remembered.view.id;
    let record = ProcessRecord {
        identity: dormouse_hypervisor::ProcessIdentity {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: boot_text.to_owned(),
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

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}
