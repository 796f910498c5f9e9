//! What is kept, by name. No sockets: the keeper and the holder for tests share it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use dormouse_sys::descriptor::MAX_DESCRIPTORS;
use dormouse_sys::pidfd::{Exit, PidFd};

use crate::error::KeeperError;

/// Under what something is kept, such as `01k…/tap`: printable ASCII without blanks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldName(String);

impl HeldName {
    /// The longest name.
    pub const MAX_LENGTH: usize = 128;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HeldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HeldName {
    type Err = KeeperError;

    fn from_str(text: &str) -> Result<Self, KeeperError> {
        let usable = !text.is_empty() && text.len() <= Self::MAX_LENGTH;
        if usable && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(KeeperError::NameUnusable {
                text: text.to_owned(),
            })
        }
    }
}

/// What sort of thing a descriptor is; the keeper believes what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeldKind {
    /// A tap's queue.
    Tap,
    /// A process (pidfd), alone under its name.
    Process,
    /// A socket.
    Socket,
    /// A file, of memory or on disk.
    File,
}

/// What is kept under a name.
#[derive(Debug)]
pub struct Held {
    /// What sort of thing.
    pub kind: HeldKind,
    /// The descriptors in the order in which they were given.
    pub descriptors: Vec<OwnedFd>,
}

/// A line of the list of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: HeldName,
    /// What sort of thing.
    pub kind: HeldKind,
    /// How many descriptors.
    pub count: usize,
}

/// What is known of a process that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// It has not ended.
    Alive,
    /// It called exit with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It has ended, and this kernel does not say how (before Linux 6.15).
    Unknown,
}

/// Descriptors by name.
#[derive(Debug, Default)]
pub struct Shelf {
    held: BTreeMap<HeldName, Held>,
}

impl Shelf {
    /// Most names: a tap, a pidfd and a spare for each instance that can be awake on one host. Below
    /// the limit of open files that the keeper asks for.
    pub const MAX_NAMES: usize = 8192;

    /// Keeps `held` under `name`; what was there is closed. So a put may be sent again.
    ///
    /// # Errors
    /// When there is no room or the number of descriptors is wrong.
    pub fn put(&mut self, name: HeldName, held: Held) -> Result<(), KeeperError> {
        let count = held.descriptors.len();
        if count == 0 || count > MAX_DESCRIPTORS || (held.kind == HeldKind::Process && count != 1) {
            return Err(KeeperError::CountUnusable { count });
        }
        if self.held.len() >= Self::MAX_NAMES && !self.held.contains_key(&name) {
            return Err(KeeperError::Full);
        }
        self.held.insert(name, held);
        Ok(())
    }

    /// What is kept under `name`.
    #[must_use]
    pub fn get(&self, name: &HeldName) -> Option<&Held> {
        self.held.get(name)
    }

    /// Copies of what is kept under `name`.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub fn copy(&self, name: &HeldName) -> Result<Option<Held>, KeeperError> {
        let Some(held) = self.get(name) else {
            return Ok(None);
        };
        let copies: Result<Vec<OwnedFd>, _> = held.descriptors.iter().map(OwnedFd::try_clone).collect();
        let descriptors = copies.map_err(|source| KeeperError::Unreadable {
            name: name.to_string(),
            source,
        })?;
        Ok(Some(Held {
            kind: held.kind,
            descriptors,
        }))
    }

    /// Closes what is kept under `name`; whether there was something.
    pub fn remove(&mut self, name: &HeldName) -> bool {
        self.held.remove(name).is_some()
    }

    /// At most `limit` entries in the order of their names, from the one after `after` on.
    #[must_use]
    pub fn list(&self, after: Option<&HeldName>, limit: usize) -> Vec<Entry> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self
            .held
            .range::<HeldName, _>((from, Bound::Unbounded))
            .take(limit);
        rest.map(|(name, held)| Entry {
            name: name.clone(),
            kind: held.kind,
            count: held.descriptors.len(),
        })
        .collect()
    }

    /// How the process kept under `name` ended; `None` when nothing is kept there.
    ///
    /// # Errors
    /// When what is kept there is no process, or the kernel does not answer.
    pub fn process_end(&self, name: &HeldName) -> Result<Option<ProcessEnd>, KeeperError> {
        let Some(held) = self.held.get(name) else {
            return Ok(None);
        };
        let (HeldKind::Process, [descriptor]) = (held.kind, held.descriptors.as_slice()) else {
            return Err(KeeperError::NotProcess {
                name: name.to_string(),
            });
        };
        let end = descriptor
            .try_clone()
            .and_then(|copy| PidFd::from_descriptor(copy).exit());
        match end {
            Ok(None) => Ok(Some(ProcessEnd::Alive)),
            Ok(Some(Exit::Code(code))) => Ok(Some(ProcessEnd::Code(code))),
            Ok(Some(Exit::Signal(signal))) => Ok(Some(ProcessEnd::Signal(signal))),
            Ok(Some(Exit::Unknown)) => Ok(Some(ProcessEnd::Unknown)),
            Err(source) => Err(KeeperError::Unreadable {
                name: name.to_string(),
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    fn name(text: &str) -> HeldName {
        text.parse().unwrap()
    }

    #[test]
    fn names() {
        for (text, good) in [
            ("a", true),
            ("01k/tap", true),
            ("", false),
            ("a b", false),
            ("é", false),
            ("a\n", false),
        ] {
            assert_eq!(text.parse::<HeldName>().is_ok(), good, "{text:?}");
        }
        assert!("a".repeat(128).parse::<HeldName>().is_ok());
        assert!("a".repeat(129).parse::<HeldName>().is_err());
    }

    #[test]
    fn lists_are_cut_into_pages() {
        let mut shelf = Shelf::default();
        for text in ["c", "a", "b"] {
            shelf
                .put(
                    name(text),
                    Held {
                        kind: HeldKind::Tap,
                        descriptors: vec![null()],
                    },
                )
                .unwrap();
        }
        let names = |entries: Vec<Entry>| {
            entries
                .into_iter()
                .map(|e| e.name.to_string())
                .collect::<String>()
        };
        assert_eq!(names(shelf.list(None, 2)), "ab");
        assert_eq!(names(shelf.list(Some(&name("b")), 2)), "c");
        assert_eq!(names(shelf.list(Some(&name("bb")), 2)), "c");
        assert_eq!(names(shelf.list(Some(&name("c")), 2)), "");
    }

    #[test]
    fn counts_are_checked() {
        let mut shelf = Shelf::default();
        for (kind, count, good) in [
            (HeldKind::Tap, 0, false),
            (HeldKind::Tap, 2, true),
            (HeldKind::Tap, MAX_DESCRIPTORS + 1, false),
            (HeldKind::Process, 1, true),
            (HeldKind::Process, 2, false),
        ] {
            let descriptors = (0..count).map(|_| null()).collect();
            assert_eq!(
                shelf.put(name("a"), Held { kind, descriptors }).is_ok(),
                good,
                "{kind:?} {count}"
            );
        }
    }

    #[test]
    fn what_became_of_a_process() {
        let mut shelf = Shelf::default();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line; exit 7"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = PidFd::open(child.id()).unwrap().into_descriptor();
        shelf
            .put(
                name("p"),
                Held {
                    kind: HeldKind::Process,
                    descriptors: vec![pidfd],
                },
            )
            .unwrap();
        assert_eq!(shelf.process_end(&name("p")).unwrap(), Some(ProcessEnd::Alive));
        assert_eq!(shelf.process_end(&name("absent")).unwrap(), None);
        // Closing its input ends it; waiting takes the exit code away from everyone but the pidfd.
        child.wait().unwrap();
        let end = shelf.process_end(&name("p")).unwrap();
        assert!(
            matches!(end, Some(ProcessEnd::Code(7) | ProcessEnd::Unknown)),
            "{end:?}"
        );
        if end == Some(ProcessEnd::Unknown) {
            println!(
                "skipped: what_became_of_a_process: this kernel does not tell how a reaped process ended"
            );
        }
        shelf
            .put(
                name("t"),
                Held {
                    kind: HeldKind::Tap,
                    descriptors: vec![null()],
                },
            )
            .unwrap();
        assert!(matches!(
            shelf.process_end(&name("t")),
            Err(KeeperError::NotProcess { .. })
        ));
    }
}
