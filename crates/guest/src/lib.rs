//! What the host and the agent in a guest say to each other, and how it survives a sleep.
//!
//! The channel is one virtio-serial port, [`PORT_NAME`]: a byte stream that ends whenever the
//! daemon or the VMM does and starts again at any byte. On top of it lie three layers, none of
//! which does I/O or reads a clock:
//!
//! | module | what |
//! |---|---|
//! | [`frame`] | frames on a byte stream: total decoder, bounded size, resync after garbage |
//! | [`message`] | what frames carry, parsed once into checked types |
//! | [`channel`] | sessions: numbering, acknowledgement, resending after a reconnect |
//! | [`codes`] | the codes of its errors, with meaning and advice |
//!
//! A woken guest runs the agent that it went to sleep with, so every release of the frames and
//! messages stays readable: `tests/golden` has the bytes of each.

pub mod channel;
pub mod codes;
mod error;
pub mod frame;
pub mod message;

pub use channel::{Channel, Event, GuestIdentity};
pub use error::GuestError;
pub use frame::{Decoder, Frame, MAX_BODY};
pub use message::{Boot, Disk, Exit, Message, Network, Phase};

/// The name of the virtio-serial port, as the VMM announces it and as the guest finds it under
/// `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "dormouse.agent";

/// The protocol release that this crate speaks.
pub const VERSION: u32 = 1;

/// The oldest protocol release that this crate still speaks: sleepers of that age wake.
pub const OLDEST_VERSION: u32 = 1;

/// How long an incomplete frame may stay so before its reader gives it up
/// ([`Decoder::abandon`]): a peer that died in the middle of one sends no more of it.
pub const STALL_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);
