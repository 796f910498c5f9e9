//! Images: OCI archives in, root file systems out; and what a guest boots with.
mod blobs;
mod cpio;
mod digest;
pub mod disk;
mod error;
pub mod initrd;
pub mod kernel;
mod modinfo;
mod progress;
mod tool;
pub use digest::Digest;
pub use error::{EntryFault, ImageError};
pub use kernel::GuestKernel;
pub use progress::{OnProgress, Phase, Progress};
