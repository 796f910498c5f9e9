//! What can go wrong with keeping descriptors.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use dormouse_model::{Fault, Kind};

use crate::shelf::{HeldName, Shelf};

/// Why a descriptor could not be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// No name for what is kept.
    #[error(
        "{text:?} is no name for a descriptor: use 1 to {} printable characters",
        HeldName::MAX_LENGTH
    )]
    NameUnusable {
        /// What was given.
        text: String,
    },
    /// None, or more than fit one message.
    #[error(
        "{count} descriptors under one name: use 1 to {}",
        dormouse_sys::descriptor::MAX_DESCRIPTORS
    )]
    CountUnusable {
        /// How many.
        count: usize,
    },
    /// The shelf has no room.
    #[error("{} names are kept, which is the limit", Shelf::MAX_NAMES)]
    Full,
    /// What is kept under the name is no process.
    #[error("what is kept as {name} is no process")]
    NotProcess {
        /// The name.
        name: String,
    },
    /// A descriptor could not be copied or looked at.
    #[error("reading what is kept as {name}")]
    Unreadable {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens at the socket.
    #[error("no keeper listens at {}", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke; what was asked may have been done.
    #[error("talking to the keeper at {}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time; what was asked may have been done.
    #[error("the keeper at {} did not answer within {} ms", path.display(), after.as_millis())]
    Slow {
        /// The socket.
        path: PathBuf,
        /// The deadline.
        after: Duration,
    },
    /// An answer that makes no sense.
    #[error("the keeper's answer makes no sense: {what}")]
    Garbled {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The keeper said no.
    #[error("the keeper refused: {why}")]
    Refused {
        /// Its words.
        why: String,
    },
    /// The keeper's own socket could not be made.
    #[error("listening at {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another keeper has the socket.
    #[error("another keeper listens at {}", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
}

impl Fault for KeeperError {
    fn kind(&self) -> Kind {
        match self {
            Self::NameUnusable { .. } | Self::CountUnusable { .. } => Kind::Invalid,
            Self::Full => Kind::Exhausted,
            Self::NotProcess { .. } => Kind::WrongState,
            Self::Unreadable { .. } | Self::Absent { .. } | Self::Broken { .. } | Self::Listen { .. } => {
                Kind::Unavailable
            }
            Self::Slow { .. } => Kind::Timeout,
            Self::Garbled { .. } | Self::Refused { .. } => Kind::Bug,
            Self::Taken { .. } => Kind::Exists,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NameUnusable { .. } => "KEEPER_NAME_INVALID",
            Self::CountUnusable { .. } => "KEEPER_COUNT_INVALID",
            Self::Full => "KEEPER_FULL",
            Self::NotProcess { .. } => "KEEPER_NOT_PROCESS",
            Self::Unreadable { .. } => "KEEPER_UNREADABLE",
            Self::Absent { .. } => "KEEPER_ABSENT",
            Self::Broken { .. } => "KEEPER_BROKEN",
            Self::Slow { .. } => "KEEPER_SLOW",
            Self::Garbled { .. } => "KEEPER_GARBLED",
            Self::Refused { .. } => "KEEPER_REFUSED",
            Self::Listen { .. } => "KEEPER_LISTEN_FAILED",
            Self::Taken { .. } => "KEEPER_TAKEN",
        }
    }
}
