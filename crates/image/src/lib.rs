//! Images: OCI archives in, root file systems out; and what a guest boots with.
//!
//! | module | what |
//! |---|---|
//! | [`ContentStore`] | imports, lists, finds and removes images |
//! | [`disk`] | empty writable disks |
//! | [`kernel`] | the guest kernel, taken from a Debian package |
//! | [`initrd`] | the initial file system with the agent and the kernel's modules |
//! | [`layout`] | writing OCI archives |
//! | [`codes`] | the codes of its errors, with meaning and advice |
//! | [`inspect`] | the checks of an image's parts, without a store |
//!
//! Nothing is mounted and nothing is installed on the host. All calls block, some for minutes: from
//! asynchronous code run them with `spawn_blocking`. Images are hostile until proven otherwise: every
//! digest is verified, every size is bounded, no path leads out of the tree that it belongs to
//! (`unpack`), and a failed import leaves nothing.

mod blobs;
pub mod codes;
mod cpio;
mod digest;
pub mod disk;
mod error;
mod index;
pub mod initrd;
pub mod inspect;
pub mod kernel;
pub mod layout;
mod modinfo;
mod progress;
mod record;
mod reference;
mod resolve;
mod rootfs;
mod source;
mod store;
mod tool;
mod unpack;

pub use digest::{Digest, DigestError};
pub use error::{EntryFault, ImageError};
pub use index::{ImageIndex, IndexError, MemoryIndex};
pub use kernel::GuestKernel;
pub use progress::{OnProgress, Phase, Progress};
pub use record::{ImageConfig, ImageRecord};
pub use reference::{DEFAULT_TAG, ImageName};
pub use store::{Commit, ContentStore, ImportOptions};
pub use unpack::Limits;
