//! Descriptors that must outlive the daemon: who keeps them, and how they are asked for.
//!
//! A tap and its queue live as long as somebody has the tap's descriptor; what became of a process is
//! known as long as somebody has its pidfd. `dormouse-keeper` is a process that has them and does
//! nothing else, so that a daemon may end in any way and its successor finds them.
//!
//! ```text
//!  daemon ── Holder ─┬─ KeeperClient ══ Unix stream: frames, SCM_RIGHTS ══▶ Keeper ─▶ Shelf
//!                    └─ LocalHolder ─▶ Shelf (tests)
//! ```
//!
//! What never happens:
//! - the keeper looks at, reads from or acts on what it keeps, but for asking how a process ended;
//! - a caller of another user is served;
//! - an answer is taken for that of another request.
//!
//! | module | does |
//! |---|---|
//! | [`shelf`] | what is kept, by name |
//! | [`holder`] | the port: whoever keeps descriptors |
//! | [`wire`] | the frames |
//! | [`client`] | the port over the keeper's socket |
//! | [`server`] | the keeper's side, run by `dormouse-keeper` |
//! | [`codes`] | the codes of its errors, with meaning and advice |

pub mod client;
pub mod codes;
mod error;
pub mod holder;
pub mod server;
pub mod shelf;
mod socket;
pub mod wire;

pub use client::KeeperClient;
pub use error::KeeperError;
pub use holder::{Holder, LocalHolder};
pub use server::Keeper;
pub use shelf::{Entry, Held, HeldKind, HeldName, ProcessEnd};
