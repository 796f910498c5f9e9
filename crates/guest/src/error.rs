//! What can be wrong with bytes from the other side.

use dormouse_model::{Fault, Kind};

use crate::frame::MAX_BODY;

/// An error of the agent channel. The guest is not trusted: each is an ordinary event on the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// Bytes that belong to no frame were skipped.
    #[error("skipped {skipped} bytes on the agent channel that belong to no frame")]
    Garbage {
        /// How many.
        skipped: usize,
    },
    /// A header's checksum does not match.
    #[error("read a frame header on the agent channel whose checksum is wrong")]
    HeaderDamaged,
    /// A frame layout of another release.
    #[error("read a frame of layout {got} on the agent channel; this release reads layout 1")]
    LayoutUnknown {
        /// The layout in the header.
        got: u8,
    },
    /// A body larger than any frame may have.
    #[error("a frame of kind {kind} announces {got} bytes; a frame has at most {MAX_BODY}")]
    BodyLarge {
        /// The kind in the header.
        kind: u8,
        /// The size announced or asked for.
        got: usize,
    },
    /// A body's checksum does not match.
    #[error("read a frame of kind {kind} on the agent channel whose body has the wrong checksum")]
    BodyDamaged {
        /// The kind in the header.
        kind: u8,
    },
    /// An incomplete frame was given up because the rest did not come.
    #[error("gave up an incomplete frame on the agent channel")]
    Stalled,
    /// Many damaged frames in a row: what was buffered was dropped.
    #[error("dropped {dropped} buffered bytes of the agent channel after {frames} damaged frames in a row")]
    Hopeless {
        /// Bytes dropped.
        dropped: usize,
        /// Damaged frames seen in a row.
        frames: u32,
    },
    /// A body that is no message of its kind.
    #[error("read a message of kind {kind} on the agent channel: {what}")]
    BodyUnreadable {
        /// The kind in the header.
        kind: u8,
        /// What is wrong with it.
        what: String,
    },
    /// A kind that this release does not know: sent by a newer peer.
    #[error("read a message of kind {kind} on the agent channel, which this release does not know")]
    KindUnknown {
        /// The kind in the header.
        kind: u8,
    },
    /// A message that only the other side may send.
    #[error("read a message of kind {kind} on the agent channel that only the reader's side may send")]
    WrongDirection {
        /// The kind in the header.
        kind: u8,
    },
    /// Too much is unacknowledged.
    #[error("the agent channel holds {frames} unacknowledged frames of {bytes} bytes: no room for more")]
    QueueFull {
        /// Frames waiting.
        frames: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// No protocol release that both sides speak.
    #[error(
        "the peer on the agent channel speaks releases {oldest} to {newest}; this side speaks {ours_oldest} to {ours_newest}"
    )]
    VersionForeign {
        /// The oldest that the peer speaks.
        oldest: u32,
        /// The newest that the peer speaks.
        newest: u32,
        /// The oldest that this side speaks.
        ours_oldest: u32,
        /// The newest that this side speaks.
        ours_newest: u32,
    },
}

impl Fault for GuestError {
    fn kind(&self) -> Kind {
        match self {
            Self::Garbage { .. }
            | Self::HeaderDamaged
            | Self::BodyDamaged { .. }
            | Self::Stalled
            | Self::Hopeless { .. }
            | Self::BodyUnreadable { .. } => Kind::Corrupt,
            Self::LayoutUnknown { .. } | Self::KindUnknown { .. } | Self::VersionForeign { .. } => {
                Kind::Unsupported
            }
            Self::BodyLarge { .. } | Self::WrongDirection { .. } => Kind::Invalid,
            Self::QueueFull { .. } => Kind::Exhausted,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Garbage { .. } => "GUEST_GARBAGE",
            Self::HeaderDamaged => "GUEST_HEADER_DAMAGED",
            Self::LayoutUnknown { .. } => "GUEST_LAYOUT_UNKNOWN",
            Self::BodyLarge { .. } => "GUEST_BODY_LARGE",
            Self::BodyDamaged { .. } => "GUEST_BODY_DAMAGED",
            Self::Stalled => "GUEST_STALLED",
            Self::Hopeless { .. } => "GUEST_HOPELESS",
            Self::BodyUnreadable { .. } => "GUEST_BODY_UNREADABLE",
            Self::KindUnknown { .. } => "GUEST_KIND_UNKNOWN",
            Self::WrongDirection { .. } => "GUEST_WRONG_DIRECTION",
            Self::QueueFull { .. } => "GUEST_QUEUE_FULL",
            Self::VersionForeign { .. } => "GUEST_VERSION_FOREIGN",
        }
    }
}
