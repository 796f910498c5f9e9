//! Trust in a saved memory image: its parts, what can be wrong with one, and what a workload becomes
//! whose image is lost.

use std::fmt;
use std::str::FromStr;

use crate::error::{Fault, Kind};
use crate::spec::SpecError;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest in these bytes; `None` unless there are 32.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The first 16 hexadecimal digits: enough to tell two apart in a message or a name.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(16).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// A part of what a wake needs of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImagePart {
    /// The list of the other parts.
    Manifest,
    /// Saved device state.
    State,
    /// Guest RAM.
    Memory,
    /// A writable disk.
    Disk,
    /// The program that saved it, which alone may load it.
    Monitor,
}

impl ImagePart {
    /// Every part.
    pub const ALL: [Self; 5] = [
        Self::Manifest,
        Self::State,
        Self::Memory,
        Self::Disk,
        Self::Monitor,
    ];

    /// The name in records and figures.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::State => "state",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Monitor => "monitor",
        }
    }

    /// What a person calls it.
    const fn noun(self) -> &'static str {
        match self {
            Self::Manifest => "the manifest",
            Self::State => "the device state",
            Self::Memory => "the memory file",
            Self::Disk => "the disk",
            Self::Monitor => "the machine monitor",
        }
    }

    /// The part with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.as_str() == name)
    }
}

/// What is wrong with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PartFault {
    /// It is not there.
    Missing,
    /// It cannot be read.
    Unreadable,
    /// It has another length.
    Size,
    /// It is another file of the same name.
    Inode,
    /// Its SHA-256 is another.
    Digest,
    /// It is not what a program of ours writes.
    Malformed,
    /// A newer program wrote it.
    Version,
    /// It belongs to another workload.
    Owner,
    /// It belongs to another sleep.
    Generation,
    /// The host rebooted, or mounted the file system anew, before it was known to be on disk as it should be.
    Unsettled,
    /// It is of a sort that this program does not load.
    Unsupported,
    /// Whoever should load it refused to.
    Refused,
}

impl PartFault {
    /// Every fault.
    pub const ALL: [Self; 12] = [
        Self::Missing,
        Self::Unreadable,
        Self::Size,
        Self::Inode,
        Self::Digest,
        Self::Malformed,
        Self::Version,
        Self::Owner,
        Self::Generation,
        Self::Unsettled,
        Self::Unsupported,
        Self::Refused,
    ];

    /// The name in records and figures.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
            Self::Size => "size",
            Self::Inode => "inode",
            Self::Digest => "digest",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Owner => "owner",
            Self::Generation => "generation",
            Self::Unsettled => "unsettled",
            Self::Unsupported => "unsupported",
            Self::Refused => "refused",
        }
    }

    /// The fault with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == name)
    }
}

/// Why an image must not be loaded: which part, and what was found where something else was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lost {
    /// Which part.
    pub part: ImagePart,
    /// What is wrong with it.
    pub fault: PartFault,
    /// What was found, in words; empty when that says nothing.
    pub found: String,
    /// What was wanted, likewise.
    pub wanted: String,
}

impl Lost {
    /// A part that is wrong in a way that needs no figures.
    #[must_use]
    pub const fn plain(part: ImagePart, fault: PartFault) -> Self {
        Self {
            part,
            fault,
            found: String::new(),
            wanted: String::new(),
        }
    }

    /// A part that is one thing and should be another.
    #[must_use]
    pub fn differs(
        part: ImagePart,
        fault: PartFault,
        found: impl fmt::Display,
        wanted: impl fmt::Display,
    ) -> Self {
        Self {
            part,
            fault,
            found: found.to_string(),
            wanted: wanted.to_string(),
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = self.part.noun();
        match self.fault {
            PartFault::Missing => write!(f, "{noun} is gone"),
            PartFault::Unreadable => write!(f, "{noun} cannot be read"),
            PartFault::Size => write!(f, "{noun} has another length"),
            PartFault::Inode => write!(f, "{noun} is another file"),
            PartFault::Digest => write!(f, "{noun} is not what was saved"),
            PartFault::Malformed => write!(f, "{noun} makes no sense"),
            PartFault::Version => write!(f, "{noun} is of a version that is not known here"),
            PartFault::Owner => write!(f, "{noun} is another workload's"),
            PartFault::Generation => write!(f, "{noun} is of another sleep"),
            PartFault::Unsettled => write!(
                f,
                "{noun} was not settled on disk before the host rebooted or mounted its disk anew"
            ),
            PartFault::Unsupported => write!(f, "{noun} is of a sort that is not loaded here"),
            PartFault::Refused => write!(f, "{noun} was refused"),
        }?;
        match (self.found.is_empty(), self.wanted.is_empty()) {
            (true, true) => Ok(()),
            (false, true) => write!(f, ": {}", self.found),
            (true, false) => write!(f, ": wanted {}", self.wanted),
            (false, false) => write!(f, ": {} and not {}", self.found, self.wanted),
        }
    }
}

impl std::error::Error for Lost {}

impl Fault for Lost {
    fn kind(&self) -> Kind {
        match self.fault {
            PartFault::Version | PartFault::Unsupported => Kind::Unsupported,
            PartFault::Missing
            | PartFault::Unreadable
            | PartFault::Size
            | PartFault::Inode
            | PartFault::Digest
            | PartFault::Malformed
            | PartFault::Owner
            | PartFault::Generation
            | PartFault::Unsettled
            | PartFault::Refused => Kind::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self.fault {
            PartFault::Missing => "SNAPSHOT_MISSING",
            PartFault::Unreadable => "SNAPSHOT_UNREADABLE",
            PartFault::Size => "SNAPSHOT_SIZE",
            PartFault::Inode => "SNAPSHOT_INODE",
            PartFault::Digest => "SNAPSHOT_DIGEST",
            PartFault::Malformed => "SNAPSHOT_MALFORMED",
            PartFault::Version => "SNAPSHOT_VERSION",
            PartFault::Owner => "SNAPSHOT_OWNER",
            PartFault::Generation => "SNAPSHOT_GENERATION",
            PartFault::Unsettled => "SNAPSHOT_UNSETTLED",
            PartFault::Unsupported => "SNAPSHOT_UNSUPPORTED",
            PartFault::Refused => "SNAPSHOT_REFUSED",
        }
    }
}

/// What a workload becomes whose memory is lost: its image is not to be trusted, or the host rebooted
/// under its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnLostMemory {
    /// It is `Failed` with the reason; a start boots it from its disk.
    #[default]
    StayStopped,
    /// A sleeper stays asleep and its next wake boots it, with what waits for it kept; one that ran
    /// when the host rebooted is started again.
    ColdBoot,
}

impl OnLostMemory {
    /// The name in records, on the API and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StayStopped => "stay-stopped",
            Self::ColdBoot => "cold-boot",
        }
    }
}

impl FromStr for OnLostMemory {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "stay-stopped" | "" => Ok(Self::StayStopped),
            "cold-boot" => Ok(Self::ColdBoot),
            _ => Err(SpecError::OnLostMemoryUnknown {
                text: text.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for part in ImagePart::ALL {
            assert_eq!(ImagePart::from_name(part.as_str()), Some(part));
        }
        for fault in PartFault::ALL {
            assert_eq!(PartFault::from_name(fault.as_str()), Some(fault));
        }
        for policy in [OnLostMemory::StayStopped, OnLostMemory::ColdBoot] {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        assert_eq!("".parse(), Ok(OnLostMemory::StayStopped));
        assert!("maybe".parse::<OnLostMemory>().is_err());
    }

    #[test]
    fn every_fault_has_a_code_of_its_own() {
        let codes: std::collections::BTreeSet<_> = PartFault::ALL
            .into_iter()
            .map(|fault| Lost::plain(ImagePart::Memory, fault).code())
            .collect();
        assert_eq!(codes.len(), PartFault::ALL.len());
    }

    #[test]
    fn a_reason_says_what_was_found_and_what_was_wanted() {
        let lost = Lost::differs(ImagePart::State, PartFault::Size, 10, 12);
        assert_eq!(
            lost.to_string(),
            "the device state has another length: 10 and not 12"
        );
        let lost = Lost::plain(ImagePart::Memory, PartFault::Missing);
        assert_eq!(lost.to_string(), "the memory file is gone");
    }

    #[test]
    fn a_digest_is_hexadecimal() {
        let digest = Digest::from_bytes(&[0xab; 32]).unwrap();
        assert_eq!(digest.to_string().len(), 64);
        assert_eq!(digest.short(), "abababababababab");
        assert_eq!(Digest::from_bytes(&[1]), None);
    }
}
