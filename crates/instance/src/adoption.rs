//! Adoption: what a workload is when a daemon starts, given its durable record and what is found on
//! the host. Pure; whoever gathers the facts decides nothing.
//!
//! The record wins over the host, because records are written before acts (see `machine/record.rs`):
//!
//! | record | on the host | then |
//! |---|---|---|
//! | none, `Stopped` | anything | at rest; leftovers are cleared |
//! | `Starting` | anything | the start begins again, after leftovers are cleared |
//! | `Running` | its process, by pid, start time and boot | adopted: resumed and opened, because a sleep may have been under way |
//! | `Running` | no such process | failed: ended meanwhile, or the host rebooted; by policy started again after a reboot |
//! | `Standby` | its image: all parts, of the recorded lengths, of this boot or settled on disk | kept asleep; a process of it is a leftover and ends |
//! | `Standby` | no image, or another | failed with the part that is wrong; by policy asleep without an image |
//! | `Cold` | anything | asleep without an image |
//! | `Stopping`, `Failed`, `Deleting` | anything | finished |
//!
//! Nothing is read here but names, lengths and inodes, so that ten thousand sleepers do not hold up a
//! start. The contents are compared before the wake (`trust/check.rs`).

use dormouse_model::plant::{Plant, planted};
use dormouse_model::{Bytes, FailReason, ImagePart, Lost, OnLostMemory, PartFault};

use crate::machine::{BootId, Kept, MemoryImage, Phase, ProcessIdentity, Readiness, Record, Settled};

/// What is found on the host for one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// This boot.
    pub boot: BootId,
    /// The start time, in clock ticks after boot, of the process that has the recorded pid now;
    /// `None` when there is none. A zombie is none.
    pub start_ticks_at_pid: Option<u64>,
    /// The workload's RAM file on tmpfs.
    pub resident: Option<Seen>,
    /// Its RAM file on disk.
    pub spilled: Option<Seen>,
    /// The device state of the recorded generation.
    pub state: Option<Seen>,
    /// The manifest of the recorded generation.
    pub manifest: Option<Seen>,
}

/// A file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Which.
    pub inode: u64,
    /// How long it is.
    pub length: Bytes,
}

/// What a half-done act becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfinished {
    /// A start: cleared and begun again.
    Start,
    /// A stop: gone through from the kill on; the guest had its grace.
    Stop,
    /// A failure, whose leftovers are cleared.
    Burial(FailReason),
    /// A removal: gone through.
    Delete,
}

/// What a workload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: stopped, or never run.
    Rest,
    /// This process.
    Adopt {
        /// Proven to be ours.
        process: ProcessIdentity,
        /// As recorded; the guest may have become ready since.
        readiness: Readiness,
    },
    /// This image.
    KeepAsleep {
        /// Proven to be there.
        image: MemoryImage,
    },
    /// Asleep, and the image is lost: the next wake boots it.
    KeepCold {
        /// Why.
        lost: Lost,
    },
    /// Something to go on with.
    Finish(Unfinished),
    /// Lost.
    Fail(FailReason),
}

/// Decides what the workload of `record` is.
#[must_use]
pub fn decide(record: &Record, facts: &Facts, on_lost: OnLostMemory) -> Decision {
    match &record.phase {
        Phase::Stopped => Decision::Rest,
        Phase::Starting => Decision::Finish(Unfinished::Start),
        Phase::Running { process, readiness } => running(*process, *readiness, facts, on_lost),
        Phase::Standby { image } => match (untouched(image, facts), on_lost) {
            (Ok(()), _) => Decision::KeepAsleep { image: *image },
            (Err(lost), OnLostMemory::StayStopped) => Decision::Fail(FailReason::ImageLost(lost)),
            (Err(lost), OnLostMemory::ColdBoot) => Decision::KeepCold { lost },
        },
        Phase::Cold { lost } => Decision::KeepCold { lost: lost.clone() },
        Phase::Stopping => Decision::Finish(Unfinished::Stop),
        Phase::Failed { reason } => Decision::Finish(Unfinished::Burial(reason.clone())),
        Phase::Deleting => Decision::Finish(Unfinished::Delete),
    }
}

fn running(process: ProcessIdentity, readiness: Readiness, facts: &Facts, on_lost: OnLostMemory) -> Decision {
    if planted(Plant::AdoptByPidAlone) && facts.start_ticks_at_pid.is_some() {
        return Decision::Adopt { process, readiness };
    }
    if process.boot != facts.boot {
        return match on_lost {
            OnLostMemory::StayStopped => Decision::Fail(FailReason::HostRebooted),
            OnLostMemory::ColdBoot => Decision::Finish(Unfinished::Start),
        };
    }
    if facts.start_ticks_at_pid == Some(process.start_ticks) {
        return Decision::Adopt { process, readiness };
    }
    Decision::Fail(FailReason::ProcessEnded {
        how: "while no daemon ran".to_owned(),
    })
}

/// Whether every part of `image` is there as it was left. In the boot that the image names the inode tells
/// its memory from any other file; after another boot only memory that was settled can be compared, by its
/// digest, and that is done before it is loaded.
fn untouched(image: &MemoryImage, facts: &Facts) -> Result<(), Lost> {
    let same_boot = image.boot == facts.boot;
    let (memory, inode) = match image.kept {
        Kept::Resident { .. } if !same_boot => {
            return Err(Lost::plain(ImagePart::Memory, PartFault::Unsettled));
        }
        Kept::Resident { inode } => (facts.resident, inode),
        Kept::Spilled { inode } => (facts.spilled, inode),
    };
    let memory = present(ImagePart::Memory, memory, image.expected.memory)?;
    if same_boot && memory.inode != inode {
        return Err(Lost::differs(
            ImagePart::Memory,
            PartFault::Inode,
            memory.inode,
            inode,
        ));
    }
    if !same_boot && image.settled == Settled::Open && !planted(Plant::UnsettledTrusted) {
        return Err(Lost::plain(ImagePart::Memory, PartFault::Unsettled));
    }
    present(ImagePart::State, facts.state, image.expected.state)?;
    if facts.manifest.is_none() {
        return Err(Lost::plain(ImagePart::Manifest, PartFault::Missing));
    }
    Ok(())
}

/// The file of a part, if it is there in its length.
fn present(part: ImagePart, seen: Option<Seen>, wanted: Bytes) -> Result<Seen, Lost> {
    let seen = seen.ok_or_else(|| Lost::plain(part, PartFault::Missing))?;
    if seen.length == wanted {
        Ok(seen)
    } else {
        Err(Lost::differs(part, PartFault::Size, seen.length.0, wanted.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Expected;
    use dormouse_model::{Digest, Generation};

    const HERE: BootId = BootId(1);
    const BEFORE: BootId = BootId(0);
    const PROCESS: ProcessIdentity = ProcessIdentity {
        pid: 100,
        start_ticks: 7,
        boot: HERE,
    };
    const FACTS: Facts = Facts {
        boot: HERE,
        start_ticks_at_pid: Some(7),
        resident: Some(Seen {
            inode: 11,
            length: Bytes(4096),
        }),
        spilled: Some(Seen {
            inode: 12,
            length: Bytes(4096),
        }),
        state: Some(Seen {
            inode: 13,
            length: Bytes(100),
        }),
        manifest: Some(Seen {
            inode: 14,
            length: Bytes(200),
        }),
    };

    fn check(phase: Phase, facts: Facts, want: &str) {
        check_by(OnLostMemory::StayStopped, phase, facts, want);
    }

    fn check_by(on_lost: OnLostMemory, phase: Phase, facts: Facts, want: &str) {
        let decision = decide(
            &Record {
                phase: phase.clone(),
                generation: Generation(3),
            },
            &facts,
            on_lost,
        );
        let got = match &decision {
            Decision::Rest => "rest".to_owned(),
            Decision::Adopt { .. } => "adopt".to_owned(),
            Decision::KeepAsleep { .. } => "keep".to_owned(),
            Decision::KeepCold { lost } => format!("cold: {lost}"),
            Decision::Finish(what) => format!("finish {what:?}").to_lowercase(),
            Decision::Fail(reason) => format!("fail: {reason}"),
        };
        assert_eq!(got, want, "{phase:?} with {facts:?}");
    }

    #[test]
    fn a_process_is_ours_by_pid_start_time_and_boot_together() {
        let phase = |boot| Phase::Running {
            process: ProcessIdentity { boot, ..PROCESS },
            readiness: Readiness::Ready,
        };
        check(phase(HERE), FACTS, "adopt");
        check(
            phase(HERE),
            Facts {
                start_ticks_at_pid: Some(8),
                ..FACTS
            },
            "fail: the process ended: while no daemon ran",
        );
        check(
            phase(HERE),
            Facts {
                start_ticks_at_pid: None,
                ..FACTS
            },
            "fail: the process ended: while no daemon ran",
        );
        check(
            phase(BEFORE),
            FACTS,
            "fail: the host rebooted and the memory image did not survive",
        );
        check_by(OnLostMemory::ColdBoot, phase(BEFORE), FACTS, "finish start");
        check_by(OnLostMemory::ColdBoot, phase(HERE), FACTS, "adopt");
    }

    fn asleep(boot: BootId, kept: Kept, settled: Settled) -> Phase {
        Phase::Standby {
            image: MemoryImage {
                generation: Generation(3),
                boot,
                kept,
                expected: Expected {
                    state: Bytes(100),
                    memory: Bytes(4096),
                    ..Expected::default()
                },
                settled,
            },
        }
    }

    /// Records of sleepers, what is found, and what they are then.
    fn sleepers() -> Vec<(Phase, Facts, &'static str)> {
        let phase = asleep;
        let (resident, spilled) = (Kept::Resident { inode: 11 }, Kept::Spilled { inode: 12 });
        let (open, at) = (Settled::Open, Settled::At(Digest::default()));
        let changed = |change: fn(&mut Facts)| {
            let mut facts = FACTS;
            change(&mut facts);
            facts
        };
        vec![
            (phase(HERE, resident, open), FACTS, "keep"),
            (phase(HERE, spilled, open), FACTS, "keep"),
            (phase(BEFORE, spilled, at), FACTS, "keep"),
            (
                phase(BEFORE, spilled, open),
                FACTS,
                "the memory file was not settled on disk when the host rebooted",
            ),
            (
                phase(BEFORE, resident, open),
                FACTS,
                "the memory file was not settled on disk when the host rebooted",
            ),
            (
                phase(HERE, Kept::Resident { inode: 10 }, open),
                FACTS,
                "the memory file is another file: 11 and not 10",
            ),
            (
                phase(HERE, Kept::Spilled { inode: 10 }, at),
                FACTS,
                "the memory file is another file: 12 and not 10",
            ),
            // The inode of another boot says nothing.
            (phase(BEFORE, Kept::Spilled { inode: 10 }, at), FACTS, "keep"),
            (
                phase(HERE, resident, open),
                changed(|facts| facts.resident = None),
                "the memory file is gone",
            ),
            (
                phase(HERE, spilled, open),
                changed(|facts| facts.spilled = None),
                "the memory file is gone",
            ),
            (
                phase(HERE, spilled, open),
                changed(|facts| facts.state = None),
                "the device state is gone",
            ),
            (
                phase(HERE, spilled, open),
                changed(|facts| facts.manifest = None),
                "the manifest is gone",
            ),
            (
                phase(HERE, spilled, open),
                changed(|facts| {
                    facts.state = Some(Seen {
                        inode: 13,
                        length: Bytes(99),
                    });
                }),
                "the device state has another length: 99 and not 100",
            ),
        ]
    }

    #[test]
    fn a_sleeper_is_kept_when_all_of_its_image_is_there() {
        for (phase, facts, want) in sleepers() {
            if want == "keep" {
                check(phase, facts, want);
                continue;
            }
            check(
                phase.clone(),
                facts,
                &format!("fail: the memory image is lost: {want}"),
            );
            check_by(OnLostMemory::ColdBoot, phase, facts, &format!("cold: {want}"));
        }
        let lost = Lost::plain(ImagePart::Disk, PartFault::Digest);
        check(
            Phase::Cold { lost },
            FACTS,
            "cold: the disk is not what was saved",
        );
    }

    #[test]
    fn what_was_begun_is_finished() {
        check(Phase::Stopped, FACTS, "rest");
        check(Phase::Starting, FACTS, "finish start");
        check(Phase::Stopping, FACTS, "finish stop");
        check(Phase::Deleting, FACTS, "finish delete");
        check(
            Phase::Failed {
                reason: FailReason::HostRebooted,
            },
            FACTS,
            "finish burial(hostrebooted)",
        );
    }
}
