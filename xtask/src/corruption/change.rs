//! What is changed: the table of cases, and the changes to bytes.

use super::random::Random;

/// What lies between a sleep and the recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crossing {
    /// Nothing: the same boot.
    None,
    /// The host rebooted.
    Reboot,
    /// The files were copied, and the boot is another host's.
    Transfer,
}

/// What is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The record, through the store's interface of bytes.
    Record,
    /// The record, in the bytes of the database's file.
    RecordFile,
    Manifest,
    /// The manifest, with a record that names the changed one.
    ManifestAndRecord,
    State,
    Disk,
    Memory,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One to eight bits.
    Flip,
    /// Shorter.
    Truncate,
    /// Longer.
    Extend,
    /// Another instance's.
    Swap,
    /// The one of the sleep before.
    Stale,
    /// Of a newer version.
    Newer,
    /// Gone.
    Missing,
    /// Memory alone: a page of zeros where there was data.
    Zero,
    /// Memory alone: a copy in another file, the bytes the same.
    Replaced,
    /// Memory alone: nobody settled it before the boot ended.
    Unsettled,
}

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) part: Part,
    pub(super) kind: Kind,
}

/// What can be done to a part in any boot.
const ANYWHERE: &[(Part, &[Kind])] = &[
    (
        Part::Record,
        &[Kind::Flip, Kind::Truncate, Kind::Extend, Kind::Swap, Kind::Stale],
    ),
    (Part::RecordFile, &[Kind::Flip]),
    (
        Part::Manifest,
        &[
            Kind::Flip,
            Kind::Truncate,
            Kind::Extend,
            Kind::Swap,
            Kind::Stale,
            Kind::Newer,
            Kind::Missing,
        ],
    ),
    (
        Part::ManifestAndRecord,
        &[Kind::Flip, Kind::Truncate, Kind::Swap, Kind::Stale, Kind::Newer],
    ),
    (
        Part::State,
        &[
            Kind::Flip,
            Kind::Truncate,
            Kind::Extend,
            Kind::Swap,
            Kind::Stale,
            Kind::Missing,
        ],
    ),
    (
        Part::Disk,
        &[
            Kind::Flip,
            Kind::Truncate,
            Kind::Extend,
            Kind::Swap,
            Kind::Stale,
            Kind::Missing,
        ],
    ),
];

/// What is found of memory within its boot, where its file is trusted.
const MEMORY_HERE: &[Kind] = &[
    Kind::Truncate,
    Kind::Extend,
    Kind::Swap,
    Kind::Missing,
    Kind::Replaced,
];

/// What is found of memory that crossed a boot.
const MEMORY_ACROSS: &[Kind] = &[
    Kind::Flip,
    Kind::Flip,
    Kind::Truncate,
    Kind::Extend,
    Kind::Swap,
    Kind::Stale,
    Kind::Missing,
    Kind::Zero,
    Kind::Unsettled,
];

impl Case {
    /// A newer record: alone, because it stops a daemon.
    pub(super) const NEWER_RECORD: Self = Self {
        part: Part::Record,
        kind: Kind::Newer,
    };

    /// A case that can happen over `crossing`.
    pub(super) fn draw(crossing: Crossing, random: &mut Random) -> Self {
        let memory = match crossing {
            Crossing::None => MEMORY_HERE,
            Crossing::Reboot | Crossing::Transfer => MEMORY_ACROSS,
        };
        // Memory as often as all else where a boot was crossed.
        let at = random.below(ANYWHERE.len() + if crossing == Crossing::None { 1 } else { 4 });
        match ANYWHERE.get(at) {
            Some((part, kinds)) => Self {
                part: *part,
                kind: random.pick(kinds, Kind::Flip),
            },
            None => Self {
                part: Part::Memory,
                kind: random.pick(memory, Kind::Missing),
            },
        }
    }

    pub(super) const fn part(self) -> &'static str {
        match self.part {
            Part::Record => "record",
            Part::RecordFile => "record_file",
            Part::Manifest => "manifest",
            Part::ManifestAndRecord => "manifest_and_record",
            Part::State => "state",
            Part::Disk => "disk",
            Part::Memory => "memory",
        }
    }

    pub(super) const fn kind(self) -> &'static str {
        match self.kind {
            Kind::Flip => "flip",
            Kind::Truncate => "truncate",
            Kind::Extend => "extend",
            Kind::Swap => "swap",
            Kind::Stale => "stale",
            Kind::Newer => "newer",
            Kind::Missing => "missing",
            Kind::Zero => "zero",
            Kind::Replaced => "replaced",
            Kind::Unsettled => "unsettled",
        }
    }
}

/// Flips one to eight different bits of `bytes`.
pub(super) fn flip(bytes: &mut [u8], random: &mut Random) {
    let mut flipped = Vec::new();
    for _ in 0..=random.below(8) {
        let bit = random.below(bytes.len().saturating_mul(8));
        if flipped.contains(&bit) {
            continue;
        }
        flipped.push(bit);
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }
}

/// The changes that are the same for all bytes; `other` are another instance's, `stale` those of before.
pub(super) fn changed(kind: Kind, bytes: &[u8], other: &[u8], stale: &[u8], random: &mut Random) -> Vec<u8> {
    let mut new = bytes.to_vec();
    match kind {
        Kind::Flip => flip(&mut new, random),
        Kind::Truncate => new.truncate(random.below(bytes.len())),
        Kind::Extend => {
            let more = 1 + random.below(64);
            new.extend(random.bytes(more));
        }
        Kind::Swap => new = other.to_vec(),
        Kind::Stale => new = stale.to_vec(),
        // Made where it is known what a newer one is; what cannot be made is cut to nothing.
        Kind::Newer | Kind::Missing | Kind::Zero | Kind::Replaced | Kind::Unsettled => new.clear(),
    }
    new
}
