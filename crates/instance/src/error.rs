//! What can go wrong with a request for an instance.

use std::time::Duration;

use dormouse_hypervisor::KeepError;
use dormouse_model::{Fault, Kind, Name, State};

use crate::ledger::LedgerError;
use crate::machine::Refusal;

/// An error of the instance room. The cause is in `source`.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Nothing bears that name or id.
    #[error("there is no instance {key:?}")]
    NotFound {
        /// What was asked for.
        key: String,
    },
    /// Several ids begin so.
    #[error("{key:?} is the beginning of several ids: {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        key: String,
        /// Ids and names that it could mean.
        candidates: Vec<String>,
    },
    /// Another instance bears the name.
    #[error("the name {name} is taken")]
    NameTaken {
        /// The name.
        name: Name,
    },
    /// No address or user id is left.
    #[error("no {what} is left")]
    Exhausted {
        /// Of what.
        what: &'static str,
    },
    /// It has a process or sleeps, and the deletion was not forced.
    #[error("{name} is {state}: stop it first, or force the deletion")]
    NotStopped {
        /// Which instance.
        name: Name,
        /// Where it is.
        state: State,
    },
    /// The etag sent is not the instance's.
    #[error("the instance has changed: its etag is {now}, not {sent}")]
    Changed {
        /// The etag now.
        now: String,
        /// The etag sent.
        sent: String,
    },
    /// The state does not allow it.
    #[error("{verb} of {name}: {refusal}")]
    Refused {
        /// What was wanted.
        verb: &'static str,
        /// Of which instance.
        name: Name,
        /// Why not; a decision, not a failure.
        refusal: Refusal,
    },
    /// It was begun and did not succeed.
    #[error("{verb} of {name}: {why}")]
    Failed {
        /// What was wanted.
        verb: &'static str,
        /// Of which instance.
        name: Name,
        /// The chain of causes.
        why: String,
    },
    /// Something else that was asked for came in between.
    #[error("{verb} of {name} was overtaken: it is {state}")]
    Overtaken {
        /// What was wanted.
        verb: &'static str,
        /// Of which instance.
        name: Name,
        /// What it led to.
        state: State,
    },
    /// Traffic took a yielding sleep back.
    #[error("traffic came before {name} slept: it runs")]
    Interrupted {
        /// Of which instance.
        name: Name,
    },
    /// The image is not there or not usable.
    #[error("image {reference:?}")]
    Image {
        /// The reference asked for.
        reference: String,
        /// Why not.
        source: dormouse_image::ImageError,
    },
    /// The records could not be read or written.
    #[error("writing the record of {what}")]
    Store {
        /// Of what.
        what: String,
        /// Why not.
        source: dormouse_store::StoreError,
    },
    /// The kernel gave no random bytes.
    #[error("reading random bytes of the kernel")]
    Random {
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The host has too little of something; nothing was begun.
    #[error("{verb} of {name}")]
    Ledger {
        /// What was wanted.
        verb: &'static str,
        /// Of which instance.
        name: Name,
        /// What is missing.
        source: LedgerError,
    },
    /// No monitor can run on this host; nothing was begun.
    #[error("{verb} of {name}")]
    Monitor {
        /// What was wanted.
        verb: &'static str,
        /// Of which instance.
        name: Name,
        /// Why none.
        source: KeepError,
    },
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The wait ended without what was waited for.
    #[error("{name} is {state} after {waited_secs} s")]
    WaitElapsed {
        /// Which instance.
        name: String,
        /// Where it is.
        state: State,
        /// How long was waited.
        waited_secs: u64,
    },
}

impl Fault for InstanceError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Ambiguous { .. } => Kind::Invalid,
            Self::NameTaken { .. } => Kind::Exists,
            Self::Exhausted { .. } => Kind::Exhausted,
            Self::Changed { .. } | Self::Overtaken { .. } | Self::Interrupted { .. } => Kind::Conflict,
            Self::Refused { refusal, .. } => refusal.kind(),
            Self::Failed { .. } | Self::NotStopped { .. } => Kind::WrongState,
            Self::Image { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Ledger { source, .. } => source.kind(),
            Self::Monitor { source, .. } => source.kind(),
            Self::Random { .. } | Self::ShuttingDown => Kind::Unavailable,
            Self::WaitElapsed { .. } => Kind::Timeout,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            // A step of a plan takes milliseconds to seconds; a daemon is back within a second.
            Self::Refused {
                refusal: Refusal::Busy,
                ..
            }
            | Self::ShuttingDown => Some(Duration::from_secs(1)),
            Self::NotFound { .. }
            | Self::Ambiguous { .. }
            | Self::NameTaken { .. }
            | Self::Exhausted { .. }
            | Self::NotStopped { .. }
            | Self::Changed { .. }
            | Self::Refused { .. }
            | Self::Failed { .. }
            | Self::Overtaken { .. }
            | Self::Interrupted { .. }
            | Self::Image { .. }
            | Self::Store { .. }
            | Self::Ledger { .. }
            | Self::Monitor { .. }
            | Self::Random { .. }
            | Self::WaitElapsed { .. } => None,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "INSTANCE_NOT_FOUND",
            Self::Ambiguous { .. } => "INSTANCE_AMBIGUOUS",
            Self::NameTaken { .. } => "INSTANCE_NAME_TAKEN",
            Self::Exhausted { .. } => "INSTANCE_EXHAUSTED",
            Self::NotStopped { .. } => "INSTANCE_NOT_STOPPED",
            Self::Changed { .. } => "INSTANCE_CHANGED",
            Self::Refused { refusal, .. } => refusal.code(),
            Self::Failed { .. } => "INSTANCE_FAILED",
            Self::Overtaken { .. } => "INSTANCE_OVERTAKEN",
            Self::Interrupted { .. } => "INSTANCE_INTERRUPTED",
            Self::Image { source, .. } => source.code(),
            Self::Store { source, .. } => source.code(),
            Self::Random { .. } => "INSTANCE_RANDOM",
            Self::Ledger { source, .. } => source.code(),
            Self::Monitor { source, .. } => source.code(),
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::WaitElapsed { .. } => "INSTANCE_WAIT_ELAPSED",
        }
    }
}
