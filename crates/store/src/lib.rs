//! Durable records: what must be known after the daemon, or the power, was gone.
//!
//! A [`Store`] keeps records by [`RecordKind`] and [`Key`]. A record is a version byte, a prost body
//! and a CRC-32 over both and over the place where it is kept, so that a flipped bit, a cut, and a
//! record that strayed to another key are all found on reading. Whoever owns a noun owns its body:
//! it implements [`Record`] for a prost message and brings the old ones forward there.
//!
//! ```text
//!  caller ──put/apply──▶ Store ──▶ Backend: queue (bounded, callers wait) ──▶ writer thread
//!    ▲                                                                     │ one transaction and one
//!    └───────────── done: the commit that holds the change is on disk ◀────┘ flush for all that waits
//! ```
//!
//! What never happens:
//! - a change is acknowledged before it is durable;
//! - half of a [`Batch`] is there after a crash;
//! - one damaged record hides the others: it is set aside, and reported until somebody deletes it;
//! - a record of a newer version is read, changed or set aside;
//! - two daemons write one store.
//!
//! | module | does |
//! |---|---|
//! | [`record`] | kinds, keys, the bytes of a record |
//! | [`backend`] | the port that a store is put on |
//! | [`memory`] | a store in memory, for tests |
//! | [`sqlite`] | the store on disk: embedded SQLite |
//! | [`codes`] | the codes of its errors, with meaning and advice |

pub mod backend;
mod batch;
pub mod codes;
mod error;
pub mod memory;
pub mod record;
pub mod sqlite;
mod store;

pub use backend::{Backend, Newer, Report, Rows, Tally};
pub use batch::Batch;
pub use error::{Cause, StoreError};
pub use record::{Damage, DamageReason, Key, Record, RecordKind};
pub use store::{Listing, Scan, Store};
