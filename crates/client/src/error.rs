//! What can go wrong between a client and its daemon.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_model::{Kind, Retry};
use dormouse_proto::{details, metadata};
use tonic::{Code, Status};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address.
    #[error("{text:?} is not the address of a daemon: write unix:///run/dormouse/dormoused.sock or the like")]
    AddressUnreadable {
        /// What was given.
        text: String,
    },
    /// Nobody listens.
    #[error("no daemon listens at {}", path.display())]
    NotListening {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The socket's permissions keep this user out.
    #[error("this user may not connect to {}", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Nobody accepted the connection in time.
    #[error("the daemon at {} did not accept within {} s", path.display(), after.as_secs())]
    ConnectSlow {
        /// The socket.
        path: PathBuf,
        /// The deadline.
        after: Duration,
    },
    /// What listens does not speak the protocol.
    #[error("what listens there does not speak the daemon's protocol")]
    Handshake {
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The daemon said no, or the connection broke.
    #[error(transparent)]
    Api(Box<ApiError>),
}

impl ClientError {
    pub(crate) fn connecting(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        if source.kind() == std::io::ErrorKind::PermissionDenied {
            Self::NotAllowed { path, source }
        } else {
            Self::NotListening { path, source }
        }
    }

    /// The stable code: the daemon's, or one of our own.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::AddressUnreadable { .. } => "CLIENT_ADDRESS_INVALID",
            Self::NotListening { .. } => "CLIENT_DAEMON_ABSENT",
            Self::NotAllowed { .. } => "CLIENT_NOT_ALLOWED",
            Self::ConnectSlow { .. } => "CLIENT_CONNECT_SLOW",
            Self::Handshake { .. } => "CLIENT_HANDSHAKE_FAILED",
            Self::Api(error) => &error.code,
        }
    }

    /// The sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::AddressUnreadable { .. } => Kind::Invalid,
            Self::NotListening { .. } | Self::Handshake { .. } => Kind::Unavailable,
            Self::NotAllowed { .. } => Kind::Denied,
            Self::ConnectSlow { .. } => Kind::Timeout,
            Self::Api(error) => error.kind,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Api(Box::new(ApiError::from(status)))
    }
}

/// An error of the daemon, as its details and trailers tell it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The stable code. For an error without one: `CLIENT_CONNECTION_LOST` when the connection broke,
    /// else `GRPC_` and the name of the status.
    pub code: String,
    /// The sort of failure.
    pub kind: Kind,
    /// What to do about it.
    pub retry: Retry,
    /// The least pause before the request is sent again, where the daemon knows one.
    pub retry_after: Option<Duration>,
    /// The field of the request that is wrong, as a path; empty when it is none, or no one field.
    pub field: String,
    /// By which the daemon's log names the request; empty when the daemon did not say.
    pub request_id: String,
    /// What went wrong, for people.
    pub message: String,
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let trailer = |key: &str| status.metadata().get(key).and_then(|value| value.to_str().ok());
        // A daemon without details still sends the trailers; a newer one may have more words in both.
        let detail = details::decode(status.details()).unwrap_or_default();
        let told = |detail: &str, key: &str| match detail {
            "" => trailer(key).unwrap_or_default().to_owned(),
            told => told.to_owned(),
        };
        let broken = status
            .source()
            .is_some_and(|source| source.is::<tonic::transport::Error>());
        let (fallback_code, fallback_kind) = if broken {
            ("CLIENT_CONNECTION_LOST", Kind::Unavailable)
        } else {
            of_status(status.code())
        };
        // A kind of a newer daemon is judged by its status.
        let kind = Kind::from_name(&told(&detail.kind, metadata::KIND)).unwrap_or(fallback_kind);
        let retry = Retry::from_name(&told(&detail.retry, metadata::RETRY));
        let code = Some(told(&detail.code, metadata::CODE)).filter(|code| !code.is_empty());
        Self {
            code: code.unwrap_or_else(|| fallback_code.to_owned()),
            kind,
            retry: retry.unwrap_or_else(|| kind.retry()),
            retry_after: detail
                .retry_after
                .and_then(|pause| Duration::try_from(pause).ok()),
            request_id: told(&detail.request_id, metadata::REQUEST_ID),
            field: detail.field,
            message: if status.message().is_empty() {
                status.code().description().to_owned()
            } else {
                status.message().to_owned()
            },
        }
    }
}

/// Code and kind of an error that came without ours: the reverse of the daemon's table.
const fn of_status(code: Code) -> (&'static str, Kind) {
    match code {
        Code::Ok => ("GRPC_OK", Kind::Bug),
        Code::Cancelled => ("GRPC_CANCELLED", Kind::Cancelled),
        Code::Unknown => ("GRPC_UNKNOWN", Kind::Bug),
        Code::InvalidArgument => ("GRPC_INVALID_ARGUMENT", Kind::Invalid),
        Code::DeadlineExceeded => ("GRPC_DEADLINE_EXCEEDED", Kind::Timeout),
        Code::NotFound => ("GRPC_NOT_FOUND", Kind::NotFound),
        Code::AlreadyExists => ("GRPC_ALREADY_EXISTS", Kind::Exists),
        Code::PermissionDenied => ("GRPC_PERMISSION_DENIED", Kind::Denied),
        Code::ResourceExhausted => ("GRPC_RESOURCE_EXHAUSTED", Kind::Exhausted),
        Code::FailedPrecondition => ("GRPC_FAILED_PRECONDITION", Kind::WrongState),
        Code::Aborted => ("GRPC_ABORTED", Kind::Conflict),
        Code::OutOfRange => ("GRPC_OUT_OF_RANGE", Kind::Invalid),
        Code::Unimplemented => ("GRPC_UNIMPLEMENTED", Kind::Unsupported),
        Code::Internal => ("GRPC_INTERNAL", Kind::Bug),
        Code::Unavailable => ("GRPC_UNAVAILABLE", Kind::Unavailable),
        Code::DataLoss => ("GRPC_DATA_LOSS", Kind::Corrupt),
        Code::Unauthenticated => ("GRPC_UNAUTHENTICATED", Kind::Denied),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataMap;

    #[test]
    fn trailers_are_read() {
        let mut trailers = MetadataMap::new();
        trailers.insert(metadata::CODE, "INSTANCE_NOT_FOUND".parse().unwrap());
        trailers.insert(metadata::KIND, "not_found".parse().unwrap());
        trailers.insert(metadata::RETRY, "never".parse().unwrap());
        trailers.insert(metadata::REQUEST_ID, "r1".parse().unwrap());
        let status = Status::with_metadata(Code::NotFound, "no instance is named web", trailers);
        let want = ApiError {
            code: "INSTANCE_NOT_FOUND".to_owned(),
            kind: Kind::NotFound,
            retry: Retry::Never,
            retry_after: None,
            field: String::new(),
            request_id: "r1".to_owned(),
            message: "no instance is named web".to_owned(),
        };
        assert_eq!(ApiError::from(status), want);
    }

    #[test]
    fn details_win_over_trailers() {
        let detail = dormouse_proto::v1::ErrorDetail {
            code: "REQUEST_INVALID".to_owned(),
            kind: "invalid".to_owned(),
            retry: "never".to_owned(),
            what: "states: is empty".to_owned(),
            field: "states".to_owned(),
            retry_after: Some(prost_types::Duration {
                seconds: 2,
                nanos: 500_000_000,
            }),
            request_id: "r2".to_owned(),
        };
        let mut trailers = MetadataMap::new();
        trailers.insert(metadata::CODE, "OLDER".parse().unwrap());
        let bytes = details::encode(Code::InvalidArgument.into(), &detail);
        let status = Status::with_details_and_metadata(
            Code::InvalidArgument,
            "states: is empty",
            bytes.into(),
            trailers,
        );
        let error = ApiError::from(status);
        assert_eq!(
            (
                error.code.as_str(),
                error.field.as_str(),
                error.request_id.as_str()
            ),
            ("REQUEST_INVALID", "states", "r2")
        );
        assert_eq!(error.retry_after, Some(Duration::from_millis(2500)));
    }

    #[test]
    fn an_error_without_trailers_is_judged_by_its_status() {
        let error = ApiError::from(Status::unavailable(""));
        assert_eq!(
            (error.code.as_str(), error.kind),
            ("GRPC_UNAVAILABLE", Kind::Unavailable)
        );
        assert!(!error.message.is_empty());
        assert_eq!(error.retry, Retry::WithBackoff);
    }
}
