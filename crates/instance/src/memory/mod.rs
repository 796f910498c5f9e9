//! Where a guest's RAM is, awake and asleep: one image, three homes.
//!
//! ```text
//!  placement   boot              asleep                          woken                 next sleep
//!  ---------   ----              ------                          -----                 ----------
//!  tmpfs       tmpfs, shared     tmpfs (swap, zram)              tmpfs, shared         nothing to write
//!  disk        disk,  shared     disk                            disk,  shared         nothing to write
//!  spill       tmpfs, shared     tmpfs, until the copy on disk   tmpfs, shared         nothing to write
//!                                is durable; then disk           disk,  private        dirtied pages, in place
//! ```
//!
//! A sleep never copies memory before its commit, except the pages that a privately mapped guest
//! dirtied since its wake. [`plan`] decides, [`files`] does.

pub mod files;
mod held;
pub mod plan;

pub use files::{ImageFiles, MemoryError, Spill, SpillEnd};
pub use held::held;
pub use plan::{GiveBack, GuestRam, Home, Sharing, default_placement};
