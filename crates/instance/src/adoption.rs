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
//! | `Running` | its process, which does not answer | failed: not answering; the burial ends it |
//! | `Running` | no such process | failed: ended meanwhile, as its pidfd tells if one was kept, or the host rebooted |
//! | `Standby` | its image | kept asleep; a process of it is a leftover and ends |
//! | `Standby` | no image, or another | failed: the host rebooted, or records and host disagree |
//! | `Stopping`, `Failed`, `Deleting` | anything | finished |

use dormouse_model::plant::{Plant, planted};
use dormouse_model::{FailReason, Generation};

use crate::machine::{BootId, Kept, MemoryImage, Phase, ProcessIdentity, Readiness, Record};

/// What is found on the host for one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// This boot.
    pub boot: BootId,
    /// The start time, in clock ticks after boot, of the process that has the recorded pid now;
    /// `None` when there is none. A zombie is none.
    pub start_ticks_at_pid: Option<u64>,
    /// What was heard of the recorded process.
    pub heard: Heard,
    /// The inode of the workload's RAM file on tmpfs.
    pub resident_inode: Option<u64>,
    /// Whether the workload's RAM file on disk is there.
    pub spilled: Presence,
    /// The generation that the device-state file says it is of; `None` when there is no such file
    /// or it cannot be read.
    pub device_state: Option<Generation>,
}

/// What was heard of a recorded process, beside that it is there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It answers; or there is none, and nobody knows how it ended.
    Answers,
    /// It is there, and did not answer for this long.
    Silent {
        /// Seconds.
        for_secs: u64,
    },
    /// It called exit with this code.
    Exited(i32),
    /// This signal ended it.
    Signalled(i32),
}

impl Heard {
    /// How a process that is not there ended.
    fn ending(self) -> String {
        const WHEN: &str = "while no daemon ran";
        match self {
            Self::Answers | Self::Silent { .. } => WHEN.to_owned(),
            Self::Exited(code) => format!("exit {code} {WHEN}"),
            Self::Signalled(signal) => format!("signal {signal} {WHEN}"),
        }
    }
}

/// Whether a file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// It is.
    Present,
    /// It is not.
    Absent,
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
    /// Something to go on with.
    Finish(Unfinished),
    /// Lost.
    Fail(FailReason),
}

/// Decides what the workload of `record` is.
#[must_use]
pub fn decide(record: &Record, facts: &Facts) -> Decision {
    match &record.phase {
        Phase::Stopped => Decision::Rest,
        Phase::Starting => Decision::Finish(Unfinished::Start),
        Phase::Running { process, readiness } => running(*process, *readiness, facts),
        Phase::Standby { image } => standby(*image, facts),
        Phase::Stopping => Decision::Finish(Unfinished::Stop),
        Phase::Failed { reason } => Decision::Finish(Unfinished::Burial(reason.clone())),
        Phase::Deleting => Decision::Finish(Unfinished::Delete),
    }
}

fn running(process: ProcessIdentity, readiness: Readiness, facts: &Facts) -> Decision {
    if planted(Plant::AdoptByPidAlone) && facts.start_ticks_at_pid.is_some() {
        return Decision::Adopt { process, readiness };
    }
    if process.boot != facts.boot {
        return Decision::Fail(FailReason::HostRebooted);
    }
    if facts.start_ticks_at_pid == Some(process.start_ticks) {
        return match facts.heard {
            Heard::Silent { for_secs } => Decision::Fail(FailReason::NotAnswering {
                how: format!("asked for {for_secs} s when a daemon started"),
            }),
            Heard::Answers | Heard::Exited(_) | Heard::Signalled(_) => Decision::Adopt { process, readiness },
        };
    }
    Decision::Fail(FailReason::ProcessEnded {
        how: facts.heard.ending(),
    })
}

fn standby(image: MemoryImage, facts: &Facts) -> Decision {
    match image.kept {
        Kept::Resident { .. } if image.boot != facts.boot => {
            return Decision::Fail(FailReason::HostRebooted);
        }
        Kept::Resident { inode } if facts.resident_inode != Some(inode) => {
            let what = match facts.resident_inode {
                Some(found) => format!("the memory file has inode {found}, recorded is {inode}"),
                None => "the memory file is gone".to_owned(),
            };
            return Decision::Fail(FailReason::Inconsistent { what });
        }
        Kept::Spilled if facts.spilled == Presence::Absent => {
            let what = "the spilled memory file is gone".to_owned();
            return Decision::Fail(FailReason::Inconsistent { what });
        }
        Kept::Resident { .. } | Kept::Spilled => {}
    }
    match facts.device_state {
        Some(generation) if generation == image.generation => Decision::KeepAsleep { image },
        Some(generation) => Decision::Fail(FailReason::Inconsistent {
            what: format!(
                "the device state is of generation {generation}, recorded is {}",
                image.generation
            ),
        }),
        None => Decision::Fail(FailReason::Inconsistent {
            what: "the device state is gone".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        heard: Heard::Answers,
        resident_inode: Some(11),
        spilled: Presence::Present,
        device_state: Some(Generation(3)),
    };

    fn check(phase: Phase, facts: Facts, want: &str) {
        let decision = decide(
            &Record {
                phase: phase.clone(),
                generation: Generation(3),
            },
            &facts,
        );
        let got = match &decision {
            Decision::Rest => "rest".to_owned(),
            Decision::Adopt { .. } => "adopt".to_owned(),
            Decision::KeepAsleep { .. } => "keep".to_owned(),
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
    }

    #[test]
    fn what_was_heard_of_a_process_is_the_reason() {
        let phase = || Phase::Running {
            process: PROCESS,
            readiness: Readiness::Ready,
        };
        let heard = |heard, start_ticks_at_pid| Facts {
            heard,
            start_ticks_at_pid,
            ..FACTS
        };
        check(
            phase(),
            heard(Heard::Silent { for_secs: 15 }, Some(7)),
            "fail: the process did not answer: asked for 15 s when a daemon started",
        );
        check(
            phase(),
            heard(Heard::Signalled(9), None),
            "fail: the process ended: signal 9 while no daemon ran",
        );
        check(
            phase(),
            heard(Heard::Exited(1), None),
            "fail: the process ended: exit 1 while no daemon ran",
        );
        check(
            phase(),
            heard(Heard::Silent { for_secs: 15 }, Some(8)),
            "fail: the process ended: while no daemon ran",
        );
    }

    #[test]
    fn a_sleeper_is_kept_when_all_of_its_image_is_there() {
        let phase = |boot, kept| Phase::Standby {
            image: MemoryImage {
                generation: Generation(3),
                boot,
                kept,
            },
        };
        let resident = Kept::Resident { inode: 11 };
        check(phase(HERE, resident), FACTS, "keep");
        check(
            phase(BEFORE, resident),
            FACTS,
            "fail: the host rebooted and the memory image did not survive",
        );
        check(phase(BEFORE, Kept::Spilled), FACTS, "keep");
        check(
            phase(HERE, resident),
            Facts {
                resident_inode: Some(12),
                ..FACTS
            },
            "fail: records and host disagree: the memory file has inode 12, recorded is 11",
        );
        check(
            phase(HERE, resident),
            Facts {
                resident_inode: None,
                ..FACTS
            },
            "fail: records and host disagree: the memory file is gone",
        );
        check(
            phase(HERE, Kept::Spilled),
            Facts {
                spilled: Presence::Absent,
                ..FACTS
            },
            "fail: records and host disagree: the spilled memory file is gone",
        );
        check(
            phase(HERE, resident),
            Facts {
                device_state: Some(Generation(4)),
                ..FACTS
            },
            "fail: records and host disagree: the device state is of generation 4, recorded is 3",
        );
        check(
            phase(HERE, resident),
            Facts {
                device_state: None,
                ..FACTS
            },
            "fail: records and host disagree: the device state is gone",
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
