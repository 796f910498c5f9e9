//! A disk for tests: a directory whose writes are logged, made to fail, or made slow, and a model of
//! what such a disk may hold after the power went.
//!
//! ```text
//!  program under test ──▶ mount point (FUSE) ──▶ backing directory
//!                             │
//!                             ├─ [`Faults`]: an error at the k-th mutating call, a quota, delays
//!                             └─ [`Change`]: every write, truncation, name and flush, in order
//!                                   │ log[..cut]
//!                                   ▼
//!                             [`Platter`] ──seed──▶ [`Tree`]: one legal content ──▶ a directory
//! ```
//!
//! Use it so (as root; needs `/dev/fuse` and no `fusermount`):
//!
//! ```no_run
//! # use dormouse_disklab::{Disk, Fail, Faults, Failure, Platter};
//! # use std::path::Path;
//! # fn main() -> std::io::Result<()> {
//! let disk = Disk::mount(Path::new("/tmp/backing"), Path::new("/tmp/disk"))?;
//! disk.set_faults(Faults { fail: Some(Fail::once(3, Failure::Full)), ..Faults::default() });
//! // ... the third mutating call from here fails with ENOSPC; the program must say so and go on.
//! disk.set_faults(Faults::default());
//! disk.mark(1); // "change 1 was acknowledged", in the order of the log
//! let log = disk.log();
//! let mut platter = Platter::default();
//! log.iter().for_each(|change| platter.apply(change));
//! platter.survivors(42).write_to(Path::new("/tmp/after"))?;
//! # Ok(()) }
//! ```
//!
//! What a caller must know:
//! - The backing directory is the mount's own while it is mounted; for a log that can be replayed it
//!   starts empty.
//! - The server is a thread of the calling process. Drop the [`Disk`] before the process ends, and
//!   after all that was opened beneath it is closed; a program that was started beneath it ends first.
//! - Writes through a shared mapping reach the log when the kernel writes them back (msync, fsync).
//! - Extended attributes, `O_TMPFILE`, `RENAME_EXCHANGE` and reflinks are refused, as by file systems
//!   that lack them.
//!
//! | module | does |
//! |---|---|
//! | `log` | what happened to the disk, as values |
//! | `faults` | what is to go wrong, and the counting of calls |
//! | `platter` | which contents are legal after a cut; pure |
//! | `content` | what a file holds, pages of zeros left out |
//! | `tree` | one content of a disk, and writing it to a directory |
//! | `nodes` | numbers of files, and their descriptors |
//! | `serve` | the kernel's requests |
//! | `deeds` | what is asked, done to the backing directory |
//! | `disk` | the mount |

mod content;
mod deeds;
mod disk;
mod faults;
mod log;
mod nodes;
mod platter;
mod serve;
mod tree;

pub use content::Content;
pub use disk::Disk;
pub use faults::{Call, Fail, Failure, Faults, Tally};
pub use log::{Change, FileId, NodeKind};
pub use platter::Platter;
pub use tree::{Entry, Tree};
