//! Conntrack messages on the wire.
//!
//! | module | |
//! |---|---|
//! | [`attribute`] | the walk over netlink attributes |
//! | [`entry`] | attributes of a conntrack entry -> [`Flow`](dormouse_model::Flow) |
//! | [`message`] | a datagram -> messages: entries, answers, ends of listings |
//! | [`request`] | what we send: listings and the barrier |
//!
//! Reading is ours: it allocates nothing, is bounds-checked, and is total on any bytes. Writing goes
//! through netlink-packet-netfilter, which is also the oracle that reading is tested against.

pub mod attribute;
pub mod entry;
pub mod message;
pub mod request;

pub use message::{Body, Message, messages};

/// Why bytes are not what the kernel would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than a header, or a length that reaches beyond the datagram.
    #[error("cannot read a netlink message: {got} bytes are left and it says it has {said}")]
    Message {
        /// The bytes left.
        got: usize,
        /// The length in the header, 0 when even that is cut off.
        said: usize,
    },
    /// An attribute that reaches beyond what holds it, or is shorter than its own header.
    #[error("cannot read a netlink attribute: {got} bytes are left and it says it has {said}")]
    Attribute {
        /// The bytes left.
        got: usize,
        /// The length in the attribute's header.
        said: usize,
    },
    /// An attribute whose value has another size than its kind has.
    #[error("conntrack attribute {kind} has {got} bytes")]
    Size {
        /// The kind, within whatever holds it.
        kind: u16,
        /// The size found.
        got: usize,
    },
    /// An entry without something that every entry has.
    #[error("a conntrack entry has no {what}")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// The kernel sent a message longer than any of its kind.
    #[error("a netlink message was longer than the {slot} bytes kept for it")]
    Truncated {
        /// What there was room for.
        slot: usize,
    },
}
