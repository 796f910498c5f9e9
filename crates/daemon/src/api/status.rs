//! The one table from error kinds to gRPC statuses, and what goes with a status.

use dormouse_model::error::chain;
use dormouse_model::{Fault, Kind};
use dormouse_proto::{details, metadata, v1};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::convert::duration_to_wire;
use super::request;

/// Bytes of a message that are told: a message travels in headers, twice, which clients bound at 16 KiB.
const MESSAGE: usize = 2048;

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

/// The status of a fault: message with its causes; code, kind and retry advice in the trailers, for whoever
/// reads text; all of that and the field, the pause and the request's id as [`v1::ErrorDetail`] in the
/// status details, for programs. A defect of ours is logged here, where it is handled, and told without its
/// insides.
pub(super) fn status(fault: &dyn Fault) -> Status {
    let kind = fault.kind();
    let message = if kind == Kind::Bug {
        tracing::error!(code = fault.code(), error = %chain(fault), "defect while serving a request");
        "a defect of the daemon; its log has the details".to_owned()
    } else {
        tracing::debug!(code = fault.code(), error = %chain(fault), "refused");
        cut(chain(fault))
    };
    let detail = v1::ErrorDetail {
        code: fault.code().to_owned(),
        kind: kind.as_str().to_owned(),
        retry: kind.retry().as_str().to_owned(),
        what: message.clone(),
        field: fault.field().unwrap_or_default().to_owned(),
        retry_after: fault.retry_after().map(duration_to_wire),
        request_id: request::current(),
    };
    let mut trailers = MetadataMap::new();
    trailers.insert(metadata::CODE, MetadataValue::<Ascii>::from_static(fault.code()));
    trailers.insert(metadata::KIND, MetadataValue::<Ascii>::from_static(kind.as_str()));
    trailers.insert(
        metadata::RETRY,
        MetadataValue::<Ascii>::from_static(kind.retry().as_str()),
    );
    let code = code(kind);
    let details = details::encode(code.into(), &detail).into();
    Status::with_details_and_metadata(code, message, details, trailers)
}

/// The beginning of a message that is too long.
fn cut(mut message: String) -> String {
    if message.len() > MESSAGE {
        let end = (0..=MESSAGE).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::refusal::FieldError;

    #[test]
    fn a_status_has_its_details() {
        let refused = status(&FieldError::new("standby.idle_timeout", "x".repeat(5000)));
        assert_eq!(refused.code(), Code::InvalidArgument);
        let detail = details::decode(refused.details()).unwrap();
        assert_eq!(
            (detail.code.as_str(), detail.kind.as_str(), detail.retry.as_str()),
            ("REQUEST_INVALID", "invalid", "never")
        );
        assert_eq!(detail.field, "standby.idle_timeout");
        assert_eq!(detail.what, refused.message());
        assert!(detail.what.len() < 2100 && detail.what.ends_with('…'));
        assert_eq!(cut("é".repeat(1500)).chars().count(), 1025);
    }

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
