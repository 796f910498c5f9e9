//! The standby engine: flows, knocks, states and time in; sleeps, wakes and a status that explains
//! itself out. A pure machine, and the only place where it is decided that a workload sleeps.
//!
//! ```text
//!              view: runs, policy on, network, able
//!  ┌────────────┐ ───────────────────────────────▶ ┌───────┐
//!  │ Ineligible │                                  │ Blind │◀── SightLost, from each box between
//!  └────────────┘ ◀── view, from each box          └───────┘    Awake and Sleeping
//!                                 listing done: flows │ │ none
//!                    ┌────────────────────────────────┘ │
//!                    ▼            last flow ended       ▼            due, and a slot is free
//!                ┌───────┐ ─────────────────────────▶ ┌──────┐ ──────────────▶ ┌────────────┐
//!                │ Awake │                            │ Idle │                 │ Confirming │
//!                └───────┘ ◀───────────────────────── └──────┘ ◀────────────── └────────────┘
//!                    ▲            flow opened           ▲ ▲     unsure, hold, flow, knock │ idle
//!                    │                                  │ │                               ▼
//!                    │     interrupted, failed          │ └──────────────────────── ┌──────────┐
//!                    └──────────────────────────────────┼────────────────────────── │ Sleeping │
//!                                              woken    │                           └──────────┘
//!                                              ┌────────┐ slot  ┌────────┐  committed     │
//!                                              │ Waking │◀──────│ Asleep │◀───────────────┘
//!                                              └────────┘ knock └────────┘
//!                                                   └──── failed ───▲  (retried after a pause)
//! ```
//!
//! What it promises, each promise a property in `tests/properties.rs`:
//!
//! 1. **Blind means hold.** No sleep is asked for, and a running one is taken back, unless a listing
//!    that covers the workload is complete and nothing was missed since.
//! 2. No sleep is asked for while a flow that counts is known. One that opens, or a packet that waits,
//!    while a sleep runs takes it back in the same call.
//! 3. One attempt a workload at a time; an outcome of another attempt is counted and ignored.
//! 4. As many sleeps and as many wakes at a time as configured; the others wait in order.
//! 5. Each sleep follows the confirm of the same attempt.
//! 6. What the kernel has no name for counts as alive; addresses of nobody are counted and ignored.
//! 7. The same inputs give the same effects. The cost of an event does not depend on how many other
//!    workloads there are; only the end of a listing visits all.
//! 8. A recorded idle time resumes after a restart, once a listing shows no flow.
//! 9. A status names exactly one reason.
//! 10. A packet for a sleeper wakes it, once: kept while it is on its way to sleep at a caller's wish,
//!     joined to a wake that runs, tried again after a failure.
//!
//! # The shell around it
//!
//! One task owns the [`Engine`]. It waits for the next input or for [`Engine::next_deadline`], calls
//! [`Engine::handle`] with both clocks, and gives each [`Effect`] to an executor with a bound and a
//! deadline. A deadline that has passed goes first, however many inputs wait. `examples/embed.rs` is the
//! whole of it without threads.

pub mod codes;
mod config;
mod counters;
mod deadline;
mod effect;
mod engine;
mod flows;
mod index;
mod input;
mod lane;
mod roster;
mod sight;
mod status;
mod workload;

pub use config::{Backoff, Config};
pub use counters::{Census, Counters};
pub use effect::{CancelWhy, Effect};
pub use engine::{Engine, Held, HoldError};
pub use flows::{ActiveInbound, CountError, active_inbound_count};
pub use input::{ConfirmAnswer, Input, Knock};
pub use sight::SightStatus;
pub use status::{Reason, Status, StatusSnapshot, TRACKING_MODE};
pub use workload::LONGEST_HOLD;
