//! The observer: netfilter netlink in, ordered [`Observation`](dormouse_model::Observation)s with
//! explicit gaps out.
//!
//! ```text
//!  kernel ── events ──▶ [link] ─▶ [wire] ─▶ ┌────────┐ ─▶ [queue] ─▶ consumer
//!         ◀─ barrier ── [barrier]           │ [sync] │
//!         ── table ───▶ [listing] ────────▶ └────────┘
//! ```
//!
//! Three uses: *stream* (run an [`Observer`] and read its [`Observations`]), *list* ([`list()`], once), and
//! *confirm* ([`ObserverHandle::barrier`]: everything up to now was seen). `examples/watch.rs` shows all.
//!
//! | module | |
//! |---|---|
//! | [`sync`] | the pure machine that turns deltas and listings into observations |
//! | [`wire`] | messages: our allocation-free reader, requests |
//! | [`barrier`] | the pure book of barriers under way |
//! | [`listing`] | one-shot listings |
//! | [`mod@forget`] | dropping the entries of addresses |
//! | [`requirements`] | what the kernel must have switched on |
//! | [`codes`] | the codes of its errors, with meaning and advice |

mod handle;
mod link;
mod metrics;
mod observer;
mod queue;

pub mod barrier;
pub mod codes;
pub mod forget;
pub mod listing;
pub mod requirements;
pub mod sync;
pub mod wire;

pub use barrier::BarrierError;
pub use forget::forget;
pub use handle::{BARRIER_PATIENCE, ObserverHandle};
pub use link::LinkError;
pub use listing::{ListError, ListFilter, list};
pub use observer::{Observer, ObserverConfig};
pub use queue::{Batch, Observations};
pub use requirements::{Requirements, RequirementsError};
pub use sync::{Delta, Sight, SyncConfig, SyncEffect, SyncInput, SyncMachine};
