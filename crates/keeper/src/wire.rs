//! The frames between the daemon and its keeper. On the stream a frame is four bytes of length, little
//! endian, and its bytes; descriptors go with the first of them. A keeper may be older or newer than the daemon, so frames only grow: fields are
//! added, numbers are never used again.

use prost::Message;

use crate::error::KeeperError;
use crate::shelf::{Entry, HeldKind, ProcessEnd};

/// The version that this code speaks. A keeper refuses a newer one than its own.
pub const VERSION: u32 = 1;

/// The longest frame. A page of [`PAGE`] entries with the longest names fits.
pub const MAX_FRAME: usize = 32 << 10;

/// Most entries of a page of the list.
pub const PAGE: usize = 128;

/// A request.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// [`VERSION`] of the caller.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Comes back with the answer.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// What is asked.
    #[prost(oneof = "Ask", tags = "3, 4, 5, 6, 7")]
    pub ask: Option<Ask>,
}

/// What is asked.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    /// Keep the descriptors beside the frame.
    #[prost(message, tag = "3")]
    Put(Put),
    /// Send copies of what is kept under the name.
    #[prost(string, tag = "4")]
    Get(String),
    /// List a page of the names after this one; empty: the first page.
    #[prost(string, tag = "5")]
    List(String),
    /// Close what is kept under the name.
    #[prost(string, tag = "6")]
    Remove(String),
    /// Say how the process under the name ended.
    #[prost(string, tag = "7")]
    ProcessEnd(String),
}

/// What to keep.
#[derive(Clone, PartialEq, Message)]
pub struct Put {
    /// Under what.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The number of a [`HeldKind`], see [`kind_number`].
    #[prost(uint32, tag = "2")]
    pub kind: u32,
}

/// An answer.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// [`VERSION`] of the keeper.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The number of the request.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// What is answered.
    #[prost(oneof = "Answer", tags = "3, 4, 5, 6, 7, 8")]
    pub answer: Option<Answer>,
    /// The keeper's process id; 0 from one that does not tell. The socket's peer is no help: it may have been
    /// bound by a service manager.
    #[prost(uint32, tag = "9")]
    pub process: u32,
}

/// What is answered.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// It is done; for a removal whether there was something.
    #[prost(bool, tag = "3")]
    Done(bool),
    /// Nothing is kept under the name.
    #[prost(bool, tag = "4")]
    Absent(bool),
    /// The descriptors beside the frame are of this kind.
    #[prost(uint32, tag = "5")]
    Here(u32),
    /// A page of the list.
    #[prost(message, tag = "6")]
    Listed(Listed),
    /// What became of the process.
    #[prost(message, tag = "7")]
    Ended(Ended),
    /// It is not done, and why.
    #[prost(message, tag = "8")]
    Refused(Refused),
}

/// A page of the list.
#[derive(Clone, PartialEq, Message)]
pub struct Listed {
    /// The page; the last one is shorter than [`PAGE`].
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<ListedEntry>,
}

/// A line of the list.
#[derive(Clone, PartialEq, Message)]
pub struct ListedEntry {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The number of a [`HeldKind`].
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    /// How many descriptors.
    #[prost(uint32, tag = "3")]
    pub count: u32,
}

/// What became of a process. Neither code nor signal: it has ended, nobody knows how.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ended {
    /// It has not ended.
    #[prost(bool, tag = "1")]
    pub alive: bool,
    /// Its exit code.
    #[prost(sint32, optional, tag = "2")]
    pub code: Option<i32>,
    /// The signal that ended it.
    #[prost(sint32, optional, tag = "3")]
    pub signal: Option<i32>,
}

/// Why something was not done.
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// For people.
    #[prost(string, tag = "1")]
    pub why: String,
    /// Whether it is for want of room.
    #[prost(bool, tag = "2")]
    pub full: bool,
}

impl From<ProcessEnd> for Ended {
    fn from(end: ProcessEnd) -> Self {
        let (alive, code, signal) = match end {
            ProcessEnd::Alive => (true, None, None),
            ProcessEnd::Code(code) => (false, Some(code), None),
            ProcessEnd::Signal(signal) => (false, None, Some(signal)),
            ProcessEnd::Unknown => (false, None, None),
        };
        Self { alive, code, signal }
    }
}

impl From<Ended> for ProcessEnd {
    fn from(ended: Ended) -> Self {
        match (ended.alive, ended.code, ended.signal) {
            (true, _, _) => Self::Alive,
            (false, Some(code), _) => Self::Code(code),
            (false, None, Some(signal)) => Self::Signal(signal),
            (false, None, None) => Self::Unknown,
        }
    }
}

impl From<&Entry> for ListedEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            name: entry.name.to_string(),
            kind: kind_number(entry.kind),
            count: u32::try_from(entry.count).unwrap_or(u32::MAX),
        }
    }
}

impl TryFrom<ListedEntry> for Entry {
    type Error = KeeperError;

    fn try_from(listed: ListedEntry) -> Result<Self, KeeperError> {
        Ok(Self {
            name: listed.name.parse()?,
            kind: kind_from(listed.kind).ok_or(KeeperError::Garbled {
                what: "an unknown kind",
            })?,
            count: usize::try_from(listed.count).unwrap_or(usize::MAX),
        })
    }
}

/// The number of a kind in frames.
#[must_use]
pub const fn kind_number(kind: HeldKind) -> u32 {
    match kind {
        HeldKind::Tap => 1,
        HeldKind::Process => 2,
        HeldKind::Socket => 3,
        HeldKind::File => 4,
    }
}

/// The kind with that number; `None` for one of a newer program.
#[must_use]
pub const fn kind_from(number: u32) -> Option<HeldKind> {
    match number {
        1 => Some(HeldKind::Tap),
        2 => Some(HeldKind::Process),
        3 => Some(HeldKind::Socket),
        4 => Some(HeldKind::File),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::HeldName;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_of_version_1() {
        // Golden: a keeper of this release must understand the daemons of all later ones.
        let put = Put {
            name: "a/tap".to_owned(),
            kind: 1,
        };
        let request = Request {
            version: 1,
            number: 300,
            ask: Some(Ask::Put(put)),
        };
        let want = [
            8, 1, 16, 0xac, 2, 0x1a, 9, 0x0a, 5, b'a', b'/', b't', b'a', b'p', 16, 1,
        ];
        assert_eq!(request.encode_to_vec(), want);
        let ended = Ended {
            alive: false,
            code: Some(7),
            signal: None,
        };
        let response = Response {
            version: 1,
            number: 2,
            answer: Some(Answer::Ended(ended)),
            process: 0,
        };
        assert_eq!(response.encode_to_vec(), [8, 1, 16, 2, 0x3a, 2, 16, 14]);
        let told = Response {
            process: 9,
            ..response
        };
        assert_eq!(told.encode_to_vec(), [8, 1, 16, 2, 0x3a, 2, 16, 14, 72, 9]);
    }

    #[test]
    fn kinds_and_ends_survive() {
        for kind in [HeldKind::Tap, HeldKind::Process, HeldKind::Socket, HeldKind::File] {
            assert_eq!(kind_from(kind_number(kind)), Some(kind));
        }
        assert_eq!(kind_from(0), None);
        for end in [
            ProcessEnd::Alive,
            ProcessEnd::Code(0),
            ProcessEnd::Code(-1),
            ProcessEnd::Signal(9),
            ProcessEnd::Unknown,
        ] {
            assert_eq!(ProcessEnd::from(Ended::from(end)), end);
        }
    }

    #[test]
    fn the_largest_page_fits_a_frame() {
        let name = "n".repeat(HeldName::MAX_LENGTH);
        let entry = ListedEntry {
            name,
            kind: u32::MAX,
            count: u32::MAX,
        };
        let listed = Listed {
            entries: vec![entry; PAGE],
        };
        let response = Response {
            version: u32::MAX,
            number: u64::MAX,
            answer: Some(Answer::Listed(listed)),
            process: u32::MAX,
        };
        assert!(response.encoded_len() <= MAX_FRAME, "{}", response.encoded_len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(bytes.as_slice());
            let _ = Response::decode(bytes.as_slice());
        }
    }
}
