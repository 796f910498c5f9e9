//! The one table from error kinds to gRPC statuses.

use dormouse_model::error::chain;
use dormouse_model::{Fault, Kind};
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
    trailers.insert(metadata::KIND, MetadataValue::<Ascii>::from_static(kind.as_str()));
    trailers.insert(
        metadata::RETRY,
        MetadataValue::<Ascii>::from_static(kind.retry().as_str()),
    );
    Status::with_metadata(code(kind), message, trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_code_and_distinct_words() {
        let mut words: Vec<_> = Kind::ALL.into_iter().map(Kind::as_str).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert_ne!(code(kind), Code::Ok);
            assert_ne!(code(kind), Code::Unknown, "{kind:?}");
        }
    }
}
