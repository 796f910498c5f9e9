//! What was kept of an instance over a restart: its tap and how its process ended. A tap that was not kept
//! is taken from the process that uses it.

use std::os::fd::{AsFd as _, OwnedFd, RawFd};

use dormouse_keeper::{Held, HeldKind, ProcessEnd};
use dormouse_model::WorkloadId;
use dormouse_sys::pidfd::PidFd;

use crate::adoption::Heard;
use crate::machine::ProcessIdentity;
use crate::rooms::Rooms;

/// What a descriptor of a tap links to in `/proc/PID/fd`.
const TUN: &str = "/dev/net/tun";

/// A descriptor of the tap of a process that lives. Sees to it that tap and process are kept on: the keeper
/// may be another one than the one that was told of them.
pub(super) async fn of_living(rooms: &Rooms, id: WorkloadId, process: ProcessIdentity) -> Option<OwnedFd> {
    let name = rooms.network.tap_name(id);
    let kept = match Rooms::held_name(id, "tap") {
        Some(held) => rooms.custodian.get(&held).await,
        None => None,
    };
    // What is kept may be of an earlier life, whose tap is gone: the daemon that made the next one ended
    // before the keeper was told.
    let kept = kept
        .into_iter()
        .flat_map(|held| held.descriptors)
        .find(|tap| is_tap(tap, &name));
    let pidfd = open(process);
    let tap = kept.or_else(|| tap_of(pidfd.as_ref()?, process.pid, &name));
    if tap.is_none() {
        tracing::warn!(instance_id = %id, pid = process.pid, "no descriptor of its tap; it cannot sleep");
    }
    if let Some(pidfd) = pidfd {
        hold(rooms, id, "process", HeldKind::Process, pidfd.into_descriptor());
    }
    if let Some(copy) = tap.as_ref().and_then(|tap| tap.try_clone().ok()) {
        hold(rooms, id, "tap", HeldKind::Tap, copy);
    }
    tap
}

/// How the process that was kept for the instance ended.
pub(super) async fn ending(rooms: &Rooms, id: WorkloadId) -> Heard {
    let Some(name) = Rooms::held_name(id, "process") else {
        return Heard::Answers;
    };
    match rooms.custodian.process_end(&name).await {
        Some(ProcessEnd::Code(code)) => Heard::Exited(code),
        Some(ProcessEnd::Signal(signal)) => Heard::Signalled(signal),
        // Of another process than the recorded one, which was never kept.
        Some(ProcessEnd::Alive | ProcessEnd::Unknown) | None => Heard::Answers,
    }
}

/// Keeps on what was kept of an instance, whatever it is: nobody can tell.
pub(crate) async fn keep_holding(rooms: &Rooms, id: WorkloadId) {
    for what in Rooms::HELD {
        let Some(name) = Rooms::held_name(id, what) else {
            continue;
        };
        if let Some(Held { kind, descriptors }) = rooms.custodian.get(&name).await {
            rooms.custodian.hold_all(name, kind, descriptors);
        }
    }
}

/// A descriptor of the tap of a process of the instance's group, of which no record speaks.
pub(crate) fn tap_of_member(rooms: &Rooms, id: WorkloadId, pid: u32) -> Option<OwnedFd> {
    let process = PidFd::open(pid).ok()?;
    tap_of(&process, pid, &rooms.network.tap_name(id))
}

fn hold(rooms: &Rooms, id: WorkloadId, what: &str, kind: HeldKind, descriptor: OwnedFd) {
    if let Some(name) = Rooms::held_name(id, what) {
        rooms.custodian.hold(name, kind, descriptor);
    }
}

/// The recorded process, and no other that has its number now.
fn open(process: ProcessIdentity) -> Option<PidFd> {
    let pidfd = PidFd::open(process.pid).ok()?;
    let ticks = dormouse_sys::clock::process_start_ticks(process.pid).ok()?;
    (ticks == process.start_ticks).then_some(pidfd)
}

fn is_tap(descriptor: &OwnedFd, name: &str) -> bool {
    dormouse_sys::tap::name(descriptor.as_fd()).is_ok_and(|found| found == name)
}

/// A copy of the descriptor of the tap `name` that the process has; `None` when it has none, or we may not
/// look.
fn tap_of(process: &PidFd, pid: u32, name: &str) -> Option<OwnedFd> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    for entry in entries.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == TUN) {
            let number = entry.file_name().to_str()?.parse::<RawFd>().ok()?;
            match process.descriptor(number) {
                Ok(copy) if is_tap(&copy, name) => return Some(copy),
                Ok(_) => {}
                Err(error) => tracing::warn!(pid, number, %error, "taking a copy of a tap's descriptor"),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// In a network namespace of its own: a tap that only another process has is found in it.
    #[test]
    #[allow(clippy::zombie_processes, reason = "killed and waited for")]
    fn a_tap_is_taken_from_the_process_that_has_it() {
        const TEST: &str = "a_tap_is_taken_from_the_process_that_has_it";
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("netns");
        let made = dormouse_sys::netns::Namespace::create_at(&path)
            .map_err(|error| error.to_string())
            .and_then(|namespace| {
                let make = || dormouse_sys::tap::create("dmttest", [2, 0, 0, 0, 0, 1]);
                namespace
                    .within(make)
                    .map_err(|error| error.to_string())?
                    .map_err(|error| error.to_string())
            });
        let tap = match made {
            Ok(tap) => tap,
            Err(why) => {
                println!("skipped: {TEST}: {why}");
                return;
            }
        };
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::from(tap))
            .spawn()
            .unwrap();
        let process = PidFd::open(child.id()).unwrap();
        let found = tap_of(&process, child.id(), "dmttest");
        let other = tap_of(&process, child.id(), "dmtother");
        child.kill().unwrap();
        child.wait().unwrap();
        dormouse_sys::netns::Namespace::remove(&path).unwrap();
        // Ours keeps the device alive after the process.
        assert!(found.is_some_and(|tap| is_tap(&tap, "dmttest")));
        assert!(other.is_none());
    }
}
