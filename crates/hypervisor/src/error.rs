//! Errors of the port.

use std::io;
use std::path::PathBuf;

use dormouse_model::{Fault, Kind};
use dormouse_sys::spawn::SpawnError;

use crate::process::ExitReason;

/// Why a driver or a machine did not do what it was asked. `doing` reads after "could not".
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The monitor's program is missing or not usable.
    #[error("could not use {}: {why}", program.display())]
    Program {
        /// Its path.
        program: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A part is missing or not as the port demands.
    #[error("could not use the {part} given: {why}")]
    Part {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The process could not be made.
    #[error("could not start the machine monitor")]
    Start(#[source] SpawnError),
    /// The process ended before it had done it.
    #[error("could not {doing}: the monitor ended ({reason}){}", quoted(said))]
    Ended {
        /// What was being done.
        doing: &'static str,
        /// How it ended.
        reason: ExitReason,
        /// The last that it wrote to its log; may be empty.
        said: String,
    },
    /// The monitor answered no.
    #[error("could not {doing}: the monitor refused {command}: {description}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The monitor's own word for it.
        command: &'static str,
        /// Its answer.
        description: String,
    },
    /// The monitor said something that its protocol does not allow.
    #[error("could not {doing}: the monitor broke its protocol: {what}")]
    Protocol {
        /// What was being done.
        doing: &'static str,
        /// What was wrong.
        what: String,
    },
    /// The control socket failed.
    #[error("could not {doing}: the control socket failed")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file or process operation of ours failed.
    #[error("could not {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The time was up. It may or may not have happened.
    #[error("could not {doing} in time")]
    Deadline {
        /// What was being done.
        doing: &'static str,
    },
}

/// What a process said, as the end of a sentence.
fn quoted(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(", its last words: {said}")
    }
}

impl Fault for DriverError {
    fn kind(&self) -> Kind {
        match self {
            Self::Program { .. } => Kind::Unsupported,
            Self::Part { .. } => Kind::Invalid,
            Self::Start(_)
            | Self::Ended { .. }
            | Self::Refused { .. }
            | Self::Protocol { .. }
            | Self::Socket { .. }
            | Self::Io { .. } => Kind::Unavailable,
            Self::Deadline { .. } => Kind::Timeout,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Program { .. } => "DRIVER_PROGRAM_UNUSABLE",
            Self::Part { .. } => "DRIVER_PART_INVALID",
            Self::Start(_) => "DRIVER_START_FAILED",
            Self::Ended { .. } => "DRIVER_PROCESS_ENDED",
            Self::Refused { .. } => "DRIVER_REFUSED",
            Self::Protocol { .. } => "DRIVER_PROTOCOL",
            Self::Socket { .. } => "DRIVER_UNREACHABLE",
            Self::Io { .. } => "DRIVER_IO",
            Self::Deadline { .. } => "DRIVER_TIMEOUT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_codes() {
        let ended = DriverError::Ended {
            doing: "load the device state",
            reason: ExitReason::Code(1),
            said: "qemu: no such file".into(),
        };
        assert_eq!(
            ended.to_string(),
            "could not load the device state: the monitor ended (exit code 1), its last words: qemu: no such file"
        );
        assert_eq!(
            (ended.kind(), ended.code()),
            (Kind::Unavailable, "DRIVER_PROCESS_ENDED")
        );
        let late = DriverError::Deadline { doing: "pause" };
        assert_eq!(
            (late.to_string().as_str(), late.kind()),
            ("could not pause in time", Kind::Timeout)
        );
    }
}
