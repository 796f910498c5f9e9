//! What the API itself refuses, before any room is asked.

use std::time::Duration;

use dormouse_model::{Fault, Kind, Name};

/// A field of a request that is wrong by itself.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {what}")]
pub(super) struct FieldError {
    pub(super) field: &'static str,
    what: String,
}

impl FieldError {
    /// `field` is wrong because of `what`.
    pub(super) fn new(field: &'static str, what: impl ToString) -> Self {
        Self {
            field,
            what: what.to_string(),
        }
    }
}

impl Fault for FieldError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "REQUEST_INVALID"
    }
    fn field(&self) -> Option<&str> {
        Some(self.field)
    }
}

/// A request that cannot be served, whatever it asks for.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// Another request had its id.
    #[error("request_id: {id:?} was used for another {method} within the last 24 hours")]
    IdReused {
        /// The id.
        id: String,
        /// Of what.
        method: &'static str,
    },
    /// The first request of its id is still served, and streams to somebody else.
    #[error("the first {method} of the request id {id:?} is still under way")]
    UnderWay {
        /// The id.
        id: String,
        /// Of what.
        method: &'static str,
    },
    /// What the request has made before is gone.
    #[error("the first {method} of this request id made {target}, which has been removed since")]
    Gone {
        /// Of what.
        method: &'static str,
        /// What was made.
        target: String,
    },
    /// What is kept about it could not be read or written.
    #[error("remembering the request id {id:?}")]
    Store {
        /// The id.
        id: String,
        /// Why not.
        source: dormouse_store::StoreError,
    },
    /// The record is all that is left of an instance's, which is listed still.
    #[error("the damaged record {key} is of the instance {name}, which is still there: remove that one")]
    RecordNeeded {
        /// The record's key.
        key: String,
        /// Under which name the instance is listed.
        name: Name,
    },
    /// Its task ended without an answer.
    #[error("the request was not finished")]
    Lost,
    /// A log of an instance cannot be read.
    #[error("reading {}", path.display())]
    Log {
        /// Which file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Fault for RequestError {
    fn kind(&self) -> Kind {
        match self {
            Self::IdReused { .. } => Kind::Invalid,
            Self::UnderWay { .. } | Self::Lost | Self::Log { .. } => Kind::Unavailable,
            Self::Gone { .. } => Kind::NotFound,
            Self::RecordNeeded { .. } => Kind::WrongState,
            Self::Store { source, .. } => source.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::IdReused { .. } => "REQUEST_ID_REUSED",
            Self::UnderWay { .. } => "REQUEST_UNDER_WAY",
            Self::Gone { .. } => "REQUEST_TARGET_GONE",
            Self::RecordNeeded { .. } => "RECORD_NEEDED",
            Self::Store { source, .. } => source.code(),
            Self::Lost => "REQUEST_LOST",
            Self::Log { .. } => "LOG_UNREADABLE",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, Self::UnderWay { .. }).then_some(Duration::from_secs(1))
    }

    fn field(&self) -> Option<&str> {
        match self {
            Self::IdReused { .. } => Some("request_id"),
            Self::RecordNeeded { .. } => Some("key"),
            Self::UnderWay { .. }
            | Self::Gone { .. }
            | Self::Store { .. }
            | Self::Lost
            | Self::Log { .. } => None,
        }
    }
}
