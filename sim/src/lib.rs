//! The deterministic simulation: observer, engine and lifecycle, the real machines, over a simulated
//! kernel, clock, disk, VMM, clients and callers. One seed decides everything; no thread, no clock, no
//! file. Same seed, same trace, byte for byte.
//!
//! ```text
//!  actors ──▶ ┌──────────────────────── ground ────────────────────────┐
//!  clients    │ kernel: flows, events, links, parking   host: processes,│──▶ audit: the invariants,
//!  callers    │ store: records                          memory          │    from the world's truth
//!  faults     └───────▲──────────────────────────────────────┬─────────┘
//!                     │ deeds                         events, │ knocks, exits
//!                ┌────┴──────────────────── daemon ───────────▼────────┐
//!                │ SyncMachine ──▶ Engine ◀──▶ Machine (one a workload)  │  killed and started again
//!                └──────────────────────────────────────────────────────┘
//! ```
//!
//! A run has two parts: rough weather, in which everything may fail, and calm, in which everything that
//! was begun must come to rest. Invariants are checked after each event, rest at the end.
//!
//! | module | |
//! |---|---|
//! | [`world`] | the loop of one run |
//! | [`ground`], [`kernel`], [`host`], [`store`] | the simulated world, and the truth about it |
//! | [`daemon`] | the shell that joins the machines |
//! | [`actors`] | clients, callers and faults |
//! | [`audit`], [`breach`] | the invariants |
//! | [`campaign`] | many seeds, planted faults, figures |

pub mod actors;
pub mod audit;
pub mod breach;
pub mod campaign;
pub mod daemon;
pub mod event;
pub mod ground;
pub mod host;
pub mod kernel;
pub mod random;
pub mod store;
pub mod tally;
pub mod trace;
pub mod world;
