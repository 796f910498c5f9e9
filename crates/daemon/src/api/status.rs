//! The one table from error kinds to gRPC statuses.

use dormouse_model::error::chain;
use dormouse_model::{Fault, Kind, Retry};
use dormouse_proto::metadata;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The gRPC code of a kind. UNIMPLEMENTED is left to tonic, for methods that do not exist.
#[must_use]
pub const fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Exists => Code::AlreadyExists,
        Kind::WrongState | Kind::Unsupported => Code::FailedPrecondition,
        Kind::Conflict => Code::Aborted,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Timeout => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Corrupt => Code::DataLoss,
        Kind::Denied => Code::PermissionDenied,
        Kind::Bug => Code::Internal,
    }
}

/// The word for a kind in the trailers.
const fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Invalid => "invalid",
        Kind::NotFound => "not_found",
        Kind::Exists => "exists",
        Kind::WrongState => "wrong_state",
        Kind::Unsupported => "unsupported",
        Kind::Conflict => "conflict",
        Kind::Exhausted => "exhausted",
        Kind::Unavailable => "unavailable",
        Kind::Timeout => "timeout",
        Kind::Cancelled => "cancelled",
        Kind::Corrupt => "corrupt",
        Kind::Denied => "denied",
        Kind::Bug => "bug",
    }
}

/// The word for a retry advice in the trailers.
const fn retry_word(retry: Retry) -> &'static str {
    match retry {
        Retry::Never => "never",
        Retry::WithBackoff => "with_backoff",
        Retry::AfterReading => "after_reading",
        Retry::AfterStateChange => "after_state_change",
        Retry::CallerDecides => "caller_decides",
    }
}

/// The status of a fault: message with its causes, code, kind and retry advice in the trailers. A
/// defect of ours is logged here, where it is handled, and told without its insides.
pub(super) fn status(fault: &dyn Fault) -> Status {
    let kind = fault.kind();
    let message = if kind == Kind::Bug {
        tracing::error!(code = fault.code(), error = %chain(fault), "defect while serving a request");
        "a defect of the daemon; its log has the details".to_owned()
    } else {
        chain(fault)
    };
    let mut trailers = MetadataMap::new();
    trailers.insert(metadata::CODE, MetadataValue::<Ascii>::from_static(fault.code()));
    trailers.insert(
        metadata::KIND,
        MetadataValue::<Ascii>::from_static(kind_word(kind)),
    );
    trailers.insert(
        metadata::RETRY,
        MetadataValue::<Ascii>::from_static(retry_word(kind.retry())),
    );
    Status::with_metadata(code(kind), message, trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_and_distinct_words() {
        let mut words: Vec<_> = Kind::ALL.into_iter().map(kind_word).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_ne!(code(kind), Code::Ok);
            assert_ne!(code(kind), Code::Unknown, "{kind:?}");
        }
    }
}
