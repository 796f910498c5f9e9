//! What a census counts, and how two of them differ. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A kind of thing that a daemon makes on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A process that lives.
    Process,
    /// A process that ended and that nobody asked after.
    Zombie,
    /// A network device of the data plane: taps, the parking pair.
    Link,
    /// A route of the data plane.
    Route,
    /// A neighbour entry of the data plane, permanent or waiting.
    Neighbour,
    /// A packet rule, table, or element of a set.
    Rule,
    /// A mount below our directories.
    Mount,
    /// A network namespace that a file of ours keeps.
    Namespace,
    /// A control group.
    Cgroup,
    /// A descriptor of the daemon or of the keeper.
    Descriptor,
    /// A file, directory or link below our directories.
    File,
    /// A Unix socket below our directories.
    Socket,
    /// A record of the store.
    Record,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 13] = [
        Self::Process,
        Self::Zombie,
        Self::Link,
        Self::Route,
        Self::Neighbour,
        Self::Rule,
        Self::Mount,
        Self::Namespace,
        Self::Cgroup,
        Self::Descriptor,
        Self::File,
        Self::Socket,
        Self::Record,
    ];

    /// The word on the command line and in reports.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Zombie => "zombie",
            Self::Link => "tap",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Rule => "rule",
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Cgroup => "cgroup",
            Self::Descriptor => "descriptor",
            Self::File => "file",
            Self::Socket => "socket",
            Self::Record => "record",
        }
    }
}

/// One thing by its kind and name. The same thing twice has the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Thing {
    /// What it is.
    pub kind: Kind,
    /// Which.
    pub name: String,
}

impl Thing {
    /// The thing of `kind` that is called `name`.
    pub(crate) fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// What was found, each with how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    found: BTreeMap<Thing, u32>,
}

impl Census {
    /// Counts one more.
    pub(crate) fn add(&mut self, kind: Kind, name: impl Into<String>) {
        *self.found.entry(Thing::new(kind, name)).or_default() += 1;
    }

    /// Every thing with its count.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Thing, u32)> {
        self.found.iter().map(|(thing, count)| (thing, *count))
    }

    /// How often `thing` was found.
    pub(crate) fn of(&self, thing: &Thing) -> u32 {
        self.found.get(thing).copied().unwrap_or(0)
    }
}

/// How often a thing may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// At least.
    pub least: u32,
    /// At most.
    pub most: u32,
}

/// What must be there, and what may be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    wanted: BTreeMap<Thing, Span>,
}

impl Expected {
    /// Wants one more.
    pub(crate) fn must(&mut self, kind: Kind, name: impl Into<String>) {
        self.between(kind, &name.into(), 1, 1);
    }

    /// Allows one more.
    pub(crate) fn may(&mut self, kind: Kind, name: impl Into<String>) {
        self.between(kind, &name.into(), 0, 1);
    }

    /// Wants `least` and allows `most` more.
    pub(crate) fn between(&mut self, kind: Kind, name: &str, least: u32, most: u32) {
        let span = self
            .wanted
            .entry(Thing::new(kind, name))
            .or_insert(Span { least: 0, most: 0 });
        span.least += least;
        span.most += most;
    }
}

/// How a census differs from what was expected. A thing is in one of the three.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Nothing that the API lists explains it.
    pub leaked: Vec<Thing>,
    /// It is explained, but not so often.
    pub doubled: Vec<Thing>,
    /// The API lists what needs it.
    pub missing: Vec<Thing>,
}

impl Difference {
    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.leaked.is_empty() && self.doubled.is_empty() && self.missing.is_empty()
    }

    /// Keeps only what `wanted` says.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&Thing) -> bool) {
        for things in [&mut self.leaked, &mut self.doubled, &mut self.missing] {
            things.retain(&wanted);
        }
    }

    /// One line a thing.
    pub(crate) fn lines(&self) -> Vec<String> {
        [
            ("leaked", &self.leaked),
            ("doubled", &self.doubled),
            ("missing", &self.missing),
        ]
        .into_iter()
        .flat_map(|(word, things)| things.iter().map(move |thing| format!("{word}: {thing}")))
        .collect()
    }
}

/// Compares what was found with what was expected.
pub(crate) fn compare(expected: &Expected, found: &Census) -> Difference {
    let mut difference = Difference::default();
    let things: BTreeSet<&Thing> = expected.wanted.keys().chain(found.found.keys()).collect();
    for thing in things {
        let count = found.of(thing);
        let span = expected
            .wanted
            .get(thing)
            .copied()
            .unwrap_or(Span { least: 0, most: 0 });
        if count > span.most && span.most == 0 {
            difference.leaked.push(thing.clone());
        } else if count > span.most {
            difference.doubled.push(thing.clone());
        } else if count < span.least {
            difference.missing.push(thing.clone());
        }
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_too_many_is_leaked_or_doubled_and_one_too_few_is_missing() {
        let mut before = Census::default();
        before.add(Kind::File, "/a");
        let mut expected = Expected::default();
        expected.must(Kind::File, "/a");
        expected.must(Kind::Process, "vmm x");
        expected.may(Kind::Cgroup, "x");
        let mut found = before.clone();
        found.add(Kind::Process, "vmm x");
        assert!(compare(&expected, &found).is_empty());
        found.add(Kind::Cgroup, "x");
        assert!(compare(&expected, &found).is_empty());
        found.add(Kind::Process, "vmm x");
        found.add(Kind::Route, "10.78.0.9 dmp0");
        let difference = compare(&expected, &found);
        assert_eq!(difference.leaked, [Thing::new(Kind::Route, "10.78.0.9 dmp0")]);
        assert_eq!(difference.doubled, [Thing::new(Kind::Process, "vmm x")]);
        assert_eq!(
            compare(&expected, &Census::default()).missing,
            [Thing::new(Kind::Process, "vmm x"), Thing::new(Kind::File, "/a")]
        );
    }

    #[test]
    fn kinds_have_names_of_their_own() {
        let names: BTreeSet<_> = Kind::ALL.map(Kind::as_str).into();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
