//! What can go wrong with images, kernels and the files made from them.

use std::io;
use std::path::{Path, PathBuf};

use dormouse_model::{Fault, Kind};

/// An error of the image room. Whatever failed left the store as it was.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A text that names no image.
    #[error(
        "{text:?} is not an image reference: {why}; write name, name:tag, or sha256: and at least 4 digits"
    )]
    ReferenceInvalid {
        /// What was given.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// No such image.
    #[error("there is no image {reference:?} in the store; import it, or list what there is")]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// A digest prefix that fits several images.
    #[error("{reference:?} fits several images: {}; write more digits", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// What fits.
        candidates: Vec<String>,
    },
    /// The image is used.
    #[error("image {reference} is used by an instance; remove the instance first")]
    InUse {
        /// The image.
        reference: String,
    },
    /// The image was there when it was asked for, and was removed before it was used.
    #[error("image {reference} was removed meanwhile; import it again")]
    RemovedMeanwhile {
        /// The image.
        reference: String,
    },
    /// The etag sent is not the image's.
    #[error("image {reference} has changed: its etag is {now}, not {sent}")]
    Changed {
        /// The image.
        reference: String,
        /// The etag now.
        now: String,
        /// The etag sent.
        sent: String,
    },
    /// Not an OCI image layout.
    #[error("{} is not an OCI image layout: {why}", path.display())]
    LayoutForeign {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The layout names a blob that it does not have.
    #[error("the layout {} names blob {digest} and does not have it", path.display())]
    BlobMissing {
        /// The layout.
        path: PathBuf,
        /// The blob.
        digest: String,
    },
    /// Bytes that are not what their name says.
    #[error("{what} should have digest {wanted} and has {got}")]
    DigestWrong {
        /// Which bytes.
        what: &'static str,
        /// What the image says.
        wanted: String,
        /// What was read.
        got: String,
    },
    /// A blob of another size than its descriptor says.
    #[error("blob {digest} should have {wanted} bytes and has {got}")]
    SizeWrong {
        /// The blob.
        digest: String,
        /// What the descriptor says.
        wanted: u64,
        /// What was read; at most one more than wanted.
        got: u64,
    },
    /// An index, manifest or configuration that does not parse or does not fit together.
    #[error("cannot read {what}: {why}")]
    DocumentUnreadable {
        /// Which document.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// No variant for this machine.
    #[error("the image has no variant for {wanted}, only for {offered}")]
    PlatformForeign {
        /// This machine.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// Several images in one layout and no choice given.
    #[error("the layout has several images: {}; say which", names.join(", "))]
    ChoiceNeeded {
        /// Their names.
        names: Vec<String>,
    },
    /// A blob of a kind that is not read.
    #[error("blob {digest} is of type {media_type}, which is not supported; {advice}")]
    MediaUnsupported {
        /// The blob.
        digest: String,
        /// Its type.
        media_type: String,
        /// What would be right.
        advice: &'static str,
    },
    /// More than the limits of the store allow.
    #[error("the image has more {what} than the {limit} that this store allows")]
    LimitExceeded {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// A layer that ends early or is not what its type says.
    #[error("cannot read layer {layer}")]
    LayerUnreadable {
        /// The layer's digest.
        layer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry that may not be.
    #[error("layer {layer} has the entry {entry:?}, which is refused: {fault}")]
    EntryRefused {
        /// The layer's digest.
        layer: String,
        /// The entry's path, as in the archive.
        entry: String,
        /// Why.
        fault: EntryFault,
    },
    /// A program that is needed is not there.
    #[error("cannot find the program {program}; install the package {package}")]
    ToolMissing {
        /// The program.
        program: &'static str,
        /// What has it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{program} failed with {status}: {message}")]
    ToolFailed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        message: String,
    },
    /// A program took too long and was killed.
    #[error("{program} did not end within {limit_secs} s and was killed")]
    ToolTimeout {
        /// The program.
        program: String,
        /// Its limit.
        limit_secs: u64,
    },
    /// The caller took the import back.
    #[error("the import was cancelled")]
    Cancelled,
    /// The index of images failed.
    #[error("cannot {action} the index of images")]
    IndexFailed {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored record that is none.
    #[error("cannot read the record of an image: {why}")]
    RecordUnreadable {
        /// What is wrong.
        why: String,
    },
    /// No guest kernel.
    #[error("there is no guest kernel in {}: it needs vmlinuz and modules/; run `cargo xtask setup` or set the path", path.display())]
    KernelMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A package that is no kernel.
    #[error("{} is not a usable kernel package: {why}", path.display())]
    KernelUnusable {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A kernel module that is needed and is not there, or is no module.
    #[error("kernel module {module}: {why}")]
    ModuleUnusable {
        /// The module.
        module: String,
        /// What is wrong.
        why: String,
    },
}

/// Why an entry of a layer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// The path begins with a slash.
    #[error("its path is absolute; paths in a layer are relative")]
    Absolute,
    /// The path, or a link on it, leads out of the image.
    #[error("its path leads out of the image")]
    Escapes,
    /// Too many links on the path.
    #[error("its path goes through more than 40 links")]
    LinkLoop,
    /// A component on the path is no directory.
    #[error("its path goes through something that is no directory")]
    ThroughFile,
    /// Empty, too long, or with a NUL byte.
    #[error("its name is empty, has a NUL byte, or is longer than a path may be")]
    Name,
    /// A hard link to nothing, to a directory, or out of the image.
    #[error("it is a hard link to something that is no file of the image")]
    LinkTarget,
    /// A symbolic link to nothing.
    #[error("it is a symbolic link without a target, or with one that is too long")]
    SymlinkTarget,
    /// A device node.
    #[error("it is a device node; guests have their own /dev")]
    Device,
    /// A kind that is not unpacked.
    #[error("it is of a kind that is not unpacked (sparse, multi-volume, or unknown)")]
    Kind,
    /// A whiteout that names nothing.
    #[error("it is a whiteout of nothing")]
    Whiteout,
    /// An extended header that is too large or is none.
    #[error("its extended header is damaged, larger than 1 MiB, or contradicts the entry")]
    Extension,
    /// A number of the header that is none.
    #[error("its header has a number that is none or is out of range")]
    Header,
}

impl EntryFault {
    const fn code(self) -> &'static str {
        match self {
            Self::Absolute => "IMAGE_ENTRY_ABSOLUTE",
            Self::Escapes => "IMAGE_ENTRY_ESCAPES",
            Self::LinkLoop => "IMAGE_ENTRY_LINK_LOOP",
            Self::ThroughFile => "IMAGE_ENTRY_THROUGH_FILE",
            Self::Name => "IMAGE_ENTRY_NAME",
            Self::LinkTarget => "IMAGE_ENTRY_LINK_TARGET",
            Self::SymlinkTarget => "IMAGE_ENTRY_SYMLINK_TARGET",
            Self::Device => "IMAGE_ENTRY_DEVICE",
            Self::Kind => "IMAGE_ENTRY_KIND",
            Self::Whiteout => "IMAGE_ENTRY_WHITEOUT",
            Self::Extension => "IMAGE_ENTRY_EXTENSION",
            Self::Header => "IMAGE_ENTRY_HEADER",
        }
    }
}

impl ImageError {
    /// An [`ImageError::Io`] maker, for `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The same for errors of raw calls.
    pub(crate) fn errno(action: &'static str, path: &Path) -> impl FnOnce(nix::errno::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Io {
            action,
            path,
            source: errno.into(),
        }
    }
}

/// Whether an error of the file system means that there is no room.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl Fault for ImageError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } if is_full(source) => Kind::Exhausted,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Unavailable,
            },
            Self::ReferenceInvalid { .. }
            | Self::Ambiguous { .. }
            | Self::LayoutForeign { .. }
            | Self::DocumentUnreadable { .. }
            | Self::ChoiceNeeded { .. }
            | Self::EntryRefused { .. }
            | Self::KernelUnusable { .. }
            | Self::ModuleUnusable { .. } => Kind::Invalid,
            Self::NotFound { .. } | Self::KernelMissing { .. } => Kind::NotFound,
            Self::InUse { .. } => Kind::WrongState,
            Self::RemovedMeanwhile { .. } | Self::Changed { .. } => Kind::Conflict,
            Self::BlobMissing { .. }
            | Self::DigestWrong { .. }
            | Self::SizeWrong { .. }
            | Self::LayerUnreadable { .. }
            | Self::RecordUnreadable { .. } => Kind::Corrupt,
            Self::PlatformForeign { .. } | Self::MediaUnsupported { .. } | Self::ToolMissing { .. } => {
                Kind::Unsupported
            }
            Self::LimitExceeded { .. } => Kind::Exhausted,
            Self::ToolFailed { .. } | Self::IndexFailed { .. } => Kind::Unavailable,
            Self::ToolTimeout { .. } => Kind::Timeout,
            Self::Cancelled => Kind::Cancelled,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if is_full(source) => "IMAGE_DISK_FULL",
            Self::Io { .. } => "IMAGE_IO",
            Self::ReferenceInvalid { .. } => "IMAGE_REFERENCE_INVALID",
            Self::NotFound { .. } => "IMAGE_NOT_FOUND",
            Self::Ambiguous { .. } => "IMAGE_AMBIGUOUS",
            Self::InUse { .. } => "IMAGE_IN_USE",
            Self::RemovedMeanwhile { .. } => "IMAGE_REMOVED_MEANWHILE",
            Self::Changed { .. } => "IMAGE_CHANGED",
            Self::LayoutForeign { .. } => "IMAGE_LAYOUT_FOREIGN",
            Self::BlobMissing { .. } => "IMAGE_BLOB_MISSING",
            Self::DigestWrong { .. } => "IMAGE_DIGEST_WRONG",
            Self::SizeWrong { .. } => "IMAGE_SIZE_WRONG",
            Self::DocumentUnreadable { .. } => "IMAGE_DOCUMENT_UNREADABLE",
            Self::PlatformForeign { .. } => "IMAGE_PLATFORM_FOREIGN",
            Self::ChoiceNeeded { .. } => "IMAGE_CHOICE_NEEDED",
            Self::MediaUnsupported { .. } => "IMAGE_MEDIA_UNSUPPORTED",
            Self::LimitExceeded { .. } => "IMAGE_LIMIT_EXCEEDED",
            Self::LayerUnreadable { .. } => "IMAGE_LAYER_UNREADABLE",
            Self::EntryRefused { fault, .. } => fault.code(),
            Self::ToolMissing { .. } => "IMAGE_TOOL_MISSING",
            Self::ToolFailed { .. } => "IMAGE_TOOL_FAILED",
            Self::ToolTimeout { .. } => "IMAGE_TOOL_TIMEOUT",
            Self::Cancelled => "IMAGE_CANCELLED",
            Self::IndexFailed { .. } => "IMAGE_INDEX_FAILED",
            Self::RecordUnreadable { .. } => "IMAGE_RECORD_UNREADABLE",
            Self::KernelMissing { .. } => "IMAGE_KERNEL_MISSING",
            Self::KernelUnusable { .. } => "IMAGE_KERNEL_UNUSABLE",
            Self::ModuleUnusable { .. } => "IMAGE_MODULE_UNUSABLE",
        }
    }
}
