//! The states of a workload and the table of legal transitions.
//!
//! ```text
//!            create                     agent says ready
//!  (none) ─────────▶ Starting ─────────▶ Initializing ────▶ Running ◀──────────────┐
//!                      ▲  │                   │             │  │  ▲                 │
//!                start │  │ exit, error       │        doze │  │  │ knock, wake     │ loaded and
//!                      │  ▼                   ▼             ▼  │  │                 │ running
//!                   Stopped ◀── Stopping ◀────┴────────── Dozing  │  interrupted    │
//!                      ▲           ▲                          │   │                 │
//!                      │           │ stop               deepen▼   ▼                 │
//!                      │           └──────────────────── Sleeping ──▶ Standby ──▶ Waking
//!                      └──── stop: the snapshot is dropped ───────────────┘
//! ```
//!
//! `Failed` is reachable from every state that has or needs a process, `Deleting` from every state.
//! Sandboxes use the same table (docs/coverage.md maps the names of the superseded systems).

use std::fmt;
use std::str::FromStr;

use crate::trust::Lost;

/// Where a workload is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No process, no memory image. Disks are kept.
    Stopped,
    /// A process is being launched, or the guest boots.
    Starting,
    /// The guest runs and has not said that it is ready.
    Initializing,
    /// The guest runs and is ready.
    Running,
    /// Processors stopped, memory pageable, process kept; packets park.
    Dozing,
    /// On the way to `Standby`; until the commit traffic brings it back.
    Sleeping,
    /// No process; memory and device state are files; packets park.
    Standby,
    /// On the way from `Standby` to `Running`.
    Waking,
    /// The guest was told to end.
    Stopping,
    /// Something ended that should not have; the reason is beside the state.
    Failed,
    /// Being removed; the name stays taken until it is gone.
    Deleting,
}

impl State {
    /// Every state, in the order of the diagram.
    pub const ALL: [Self; 11] = [
        Self::Stopped,
        Self::Starting,
        Self::Initializing,
        Self::Running,
        Self::Dozing,
        Self::Sleeping,
        Self::Standby,
        Self::Waking,
        Self::Stopping,
        Self::Failed,
        Self::Deleting,
    ];

    /// The states that this state may become in one step.
    #[must_use]
    pub const fn successors(self) -> &'static [Self] {
        use State::{
            Deleting, Dozing, Failed, Initializing, Running, Sleeping, Standby, Starting, Stopped, Stopping,
            Waking,
        };
        match self {
            Stopped => &[Starting, Deleting],
            Starting => &[Initializing, Running, Stopping, Stopped, Failed, Deleting],
            Initializing => &[Running, Stopping, Stopped, Failed, Deleting],
            Running => &[Dozing, Sleeping, Stopping, Stopped, Failed, Deleting],
            Dozing => &[Running, Sleeping, Stopping, Stopped, Failed, Deleting],
            // Back to Running (or Dozing) is the interrupt before the commit.
            Sleeping => &[Standby, Running, Dozing, Failed, Deleting],
            Standby => &[Waking, Stopped, Failed, Deleting],
            // Back to Standby is a wake that failed before the snapshot was consumed.
            Waking => &[Running, Initializing, Standby, Failed, Deleting],
            Stopping => &[Stopped, Failed, Deleting],
            Failed => &[Starting, Stopped, Deleting],
            Deleting => &[],
        }
    }

    /// Whether `next` may follow in one step.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        self.successors().contains(&next)
    }

    /// Whether a process of the workload exists or is being made in this state.
    #[must_use]
    pub const fn has_process(self) -> bool {
        match self {
            Self::Starting
            | Self::Initializing
            | Self::Running
            | Self::Dozing
            | Self::Sleeping
            | Self::Waking
            | Self::Stopping => true,
            Self::Stopped | Self::Standby | Self::Failed | Self::Deleting => false,
        }
    }

    /// The name in records, on the API and in tables: lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Initializing => "initializing",
            Self::Running => "running",
            Self::Dozing => "dozing",
            Self::Sleeping => "sleeping",
            Self::Standby => "standby",
            Self::Waking => "waking",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a state")]
pub struct StateError {
    /// What was given.
    pub text: String,
}

impl FromStr for State {
    type Err = StateError;

    fn from_str(text: &str) -> Result<Self, StateError> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| StateError {
                text: text.to_owned(),
            })
    }
}

/// Why a workload is `Failed`. Kept with the state, shown with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailReason {
    /// The process ended while it should have run.
    ProcessEnded {
        /// What is known of the end: `signal 9`, `exit 1`.
        how: String,
    },
    /// Launching or booting did not succeed.
    StartFailed {
        /// The chain of causes.
        why: String,
    },
    /// The memory image or the device state could not be trusted or loaded.
    WakeFailed {
        /// The chain of causes.
        why: String,
    },
    /// The host rebooted under the running guest.
    HostRebooted,
    /// The memory image must not be loaded.
    ImageLost(Lost),
    /// The process lived when a daemon started, and did not answer for so long that it was given up.
    NotAnswering {
        /// What is known: how long it was asked.
        how: String,
    },
    /// A record contradicts what is on the host.
    Inconsistent {
        /// What contradicts what.
        what: String,
    },
}

impl fmt::Display for FailReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProcessEnded { how } => write!(f, "the process ended: {how}"),
            Self::StartFailed { why } => write!(f, "start failed: {why}"),
            Self::WakeFailed { why } => write!(f, "wake failed: {why}"),
            Self::HostRebooted => f.write_str("the host rebooted and the memory image did not survive"),
            Self::ImageLost(lost) => write!(f, "the memory image is lost: {lost}"),
            Self::NotAnswering { how } => write!(f, "the process did not answer: {how}"),
            Self::Inconsistent { what } => write!(f, "records and host disagree: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse_back() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("Running".parse::<State>().is_err());
    }

    #[test]
    fn the_table_has_the_properties_that_others_rely_on() {
        for state in State::ALL {
            assert!(!state.may_become(state), "{state} to itself is not a transition");
            assert_eq!(
                state.may_become(State::Deleting),
                state != State::Deleting,
                "delete works in {state}"
            );
            // Never two copies: a process is made only by Starting and Waking.
            for next in state.successors() {
                if next.has_process() && !state.has_process() {
                    assert!(
                        matches!(next, State::Starting | State::Waking),
                        "{state} to {next}"
                    );
                }
            }
        }
        assert!(
            !State::Standby.may_become(State::Running),
            "a wake is never skipped"
        );
        assert!(
            !State::Running.may_become(State::Standby),
            "a commit is never skipped"
        );
    }
}
