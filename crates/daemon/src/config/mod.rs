//! Configuration: defaults < TOML file < `DORMOUSE_…` environment < flags. Text becomes types here and
//! nowhere else; all problems are reported at once, each with its key.
//!
//! [`raw`] is what a person writes, [`resolve`] turns it into what the rooms take.

pub mod raw;
pub mod resolve;
mod shape;

pub use raw::{RawConfig, load};
pub use resolve::{AcceleratorChoice, Config, ConfigError, KeeperChoice, Problem};
