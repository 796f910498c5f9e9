//! Error kinds: what a caller may do about an error, apart from what went wrong.
//!
//! Every library error of the workspace implements [`Fault`]. The daemon turns a fault into a gRPC
//! status in one table, keyed by [`Kind`].

/// What sort of failure an error is. Closed: the table of gRPC statuses lists every kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as it is written.
    Invalid,
    /// What the request names does not exist.
    NotFound,
    /// What the request would make exists already.
    Exists,
    /// The named thing is in a state that does not allow this.
    WrongState,
    /// This host, driver or device cannot do this.
    Unsupported,
    /// Somebody else changed the thing meanwhile: read again and retry.
    Conflict,
    /// A limit or a resource of the host is used up.
    Exhausted,
    /// A part that is needed does not answer now.
    Unavailable,
    /// A deadline passed; what was asked may or may not have happened.
    Timeout,
    /// The caller took the request back.
    Cancelled,
    /// Stored bytes are not what was written.
    Corrupt,
    /// The caller is known and may not do this.
    Denied,
    /// A defect of ours.
    Bug,
}

impl Kind {
    /// Every kind, for tables that must be complete.
    pub const ALL: [Self; 13] = [
        Self::Invalid,
        Self::NotFound,
        Self::Exists,
        Self::WrongState,
        Self::Unsupported,
        Self::Conflict,
        Self::Exhausted,
        Self::Unavailable,
        Self::Timeout,
        Self::Cancelled,
        Self::Corrupt,
        Self::Denied,
        Self::Bug,
    ];

    /// The name on the API: lower case with underscores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::WrongState => "wrong_state",
            Self::Unsupported => "unsupported",
            Self::Conflict => "conflict",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Bug => "bug",
        }
    }

    /// The kind with that name; `None` for a name of another version.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// What a client should do with a request that failed with this kind.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            Self::Conflict => Retry::AfterReading,
            Self::Exhausted | Self::Unavailable => Retry::WithBackoff,
            Self::WrongState => Retry::AfterStateChange,
            // The caller knows whether the request may be sent twice.
            Self::Timeout | Self::Cancelled => Retry::CallerDecides,
            Self::Invalid
            | Self::NotFound
            | Self::Exists
            | Self::Unsupported
            | Self::Corrupt
            | Self::Denied
            | Self::Bug => Retry::Never,
        }
    }
}

/// Advice to clients, sent with every error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same request will fail again.
    Never,
    /// Retry after a pause that doubles.
    WithBackoff,
    /// Read the resource again, then retry.
    AfterReading,
    /// Retry once the resource has changed state.
    AfterStateChange,
    /// Whether a retry is safe depends on the request.
    CallerDecides,
}

impl Retry {
    /// Every advice.
    pub const ALL: [Self; 5] = [
        Self::Never,
        Self::WithBackoff,
        Self::AfterReading,
        Self::AfterStateChange,
        Self::CallerDecides,
    ];

    /// The name on the API: lower case with underscores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::WithBackoff => "with_backoff",
            Self::AfterReading => "after_reading",
            Self::AfterStateChange => "after_state_change",
            Self::CallerDecides => "caller_decides",
        }
    }

    /// The advice with that name; `None` for a name of another version.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|advice| advice.as_str() == name)
    }
}

/// An error that crosses a seam between rooms.
///
/// `Display` says what was being done and to what; the cause is in `source` and is never repeated.
pub trait Fault: std::error::Error + Send + Sync + 'static {
    /// The kind, which decides the gRPC status and the retry advice.
    fn kind(&self) -> Kind;

    /// The stable code, in capitals with a prefix for the room: `IMAGE_NOT_FOUND`. Once published
    /// a code keeps its meaning; docs/errors.md lists them all.
    fn code(&self) -> &'static str;

    /// The field of the request that is wrong, as a path such as `standby.idle_timeout`; `None` when it is
    /// none, or no one field.
    fn field(&self) -> Option<&str> {
        None
    }

    /// The least pause before the same request is sent again, where more is known than the kind's advice.
    fn retry_after(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The text of an error followed by its causes, for the one place that logs or prints it.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.as_str()), Some(kind));
        }
        for advice in Retry::ALL {
            assert_eq!(Retry::from_name(advice.as_str()), Some(advice));
        }
        assert_eq!(Kind::from_name(""), None);
        assert_eq!(Retry::from_name("later"), None);
    }
}
