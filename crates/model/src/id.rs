//! Identities: workload ids, names, and the counters that number what is asynchronous.

use std::fmt;
use std::str::FromStr;

use crate::error::{Fault, Kind};
use crate::time::WallTime;

/// Crockford's base 32 in lower case: no i, l, o, u, so that an id survives being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Length of an id's text: 26 digits of 5 bits hold 128 bits.
const ID_LENGTH: usize = 26;

/// The identity of a workload, be it an instance or a sandbox: both share one space of ids, so the
/// engine need not know which it moves.
///
/// 48 bits of milliseconds since 1970 and 80 random bits: ids sort by creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId(u128);

impl WorkloadId {
    /// Makes an id from the time of creation and ten random bytes. Pure: the caller brings both.
    #[must_use]
    pub fn new(created: WallTime, random: [u8; 10]) -> Self {
        let mut bytes = [0_u8; 16];
        let millis = created.unix_nanos() / 1_000_000;
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(u128::from_be_bytes(bytes))
    }

    /// The id whose bits are `bits`; total, because every 128-bit value is an id.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits of the id.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The last ten digits of the id: the random part's tail, short enough for a device or cgroup
    /// name, and our deterministic mark on everything made for this workload.
    #[must_use]
    pub fn mark(self) -> String {
        self.to_string()[ID_LENGTH - 10..].to_owned()
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0_u8; ID_LENGTH];
        for (place, slot) in text.iter_mut().rev().enumerate() {
            let digit = (self.0 >> (place * 5)) & 31;
            *slot = ALPHABET[usize::try_from(digit).unwrap_or(0)];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or(""))
    }
}

impl fmt::Debug for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkloadId({self})")
    }
}

impl FromStr for WorkloadId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != ID_LENGTH {
            return Err(IdError::Length { got: text.len() });
        }
        let mut bits: u128 = 0;
        for (at, byte) in text.bytes().enumerate() {
            let digit = ALPHABET
                .iter()
                .position(|&known| known == byte)
                .ok_or(IdError::Digit { at })?;
            // 26 digits hold 130 bits: the first may only be 0 to 7.
            if at == 0 && digit > 7 {
                return Err(IdError::Digit { at });
            }
            bits = (bits << 5) | digit as u128;
        }
        Ok(Self(bits))
    }
}

/// Why a text is not a workload id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Too long or too short.
    #[error("an id has {ID_LENGTH} characters, this has {got}")]
    Length {
        /// The length found.
        got: usize,
    },
    /// A character outside the alphabet.
    #[error("character {at} of the id is not one of 0-9 and a-z without i, l, o, u")]
    Digit {
        /// Where, counted from 0.
        at: usize,
    },
}

impl Fault for IdError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "ID_INVALID"
    }
}

/// A name that a person gave: `^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`, at most 63 characters, so that it
/// is also a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The longest name, which is the longest DNS label (RFC 1035 section 2.3.4).
    pub const MAX_LENGTH: usize = 63;

    /// The text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<WorkloadId> for Name {
    /// The id as a name, which nobody else has: for a workload whose own is not known.
    fn from(id: WorkloadId) -> Self {
        Self(id.to_string())
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > Self::MAX_LENGTH {
            return Err(NameError::Long { got: text.len() });
        }
        for (at, byte) in text.bytes().enumerate() {
            let letter = byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let inner_dash = byte == b'-' && at > 0 && at + 1 < text.len();
            if !letter && !inner_dash {
                return Err(NameError::Character { at });
            }
        }
        Ok(Self(text.to_owned()))
    }
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No characters at all.
    #[error("a name has at least one character")]
    Empty,
    /// More than [`Name::MAX_LENGTH`] characters.
    #[error("a name has at most 63 characters, this has {got}")]
    Long {
        /// The length found.
        got: usize,
    },
    /// A character that a name may not have, or a dash at an end.
    #[error("character {at} of the name is not allowed: use a-z, 0-9 and inner dashes")]
    Character {
        /// Where, counted from 0.
        at: usize,
    },
}

impl Fault for NameError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "NAME_INVALID"
    }
}

/// Defines a counter that only moves forward.
macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this; saturates, which at one a nanosecond takes 584 years.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// Numbers one try at an asynchronous act. An outcome whose attempt is not the current one is
    /// counted and ignored. Zero means: none yet.
    Attempt
}
counter! {
    /// Numbers the memory images of one workload: a standby makes the next generation, and a record
    /// that names another generation than the file's does not wake it.
    Generation
}
counter! {
    /// Numbers the observer's periods of unbroken sight. Zero means: never in sync.
    Epoch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_name() {
        for bits in [0, 7, u128::MAX] {
            let id = WorkloadId::from_bits(bits);
            let name = Name::from(id);
            assert_eq!(name.as_str().parse(), Ok(name.clone()), "{id}");
        }
    }

    fn check_name(text: &str, want: Result<(), NameError>) {
        assert_eq!(text.parse::<Name>().map(|_| ()), want, "{text:?}");
    }

    #[test]
    fn names() {
        check_name("a", Ok(()));
        check_name("web-1", Ok(()));
        check_name("0", Ok(()));
        check_name("", Err(NameError::Empty));
        check_name("-a", Err(NameError::Character { at: 0 }));
        check_name("a-", Err(NameError::Character { at: 1 }));
        check_name("Web", Err(NameError::Character { at: 0 }));
        check_name("a_b", Err(NameError::Character { at: 1 }));
        check_name("é", Err(NameError::Character { at: 0 }));
        check_name(&"a".repeat(63), Ok(()));
        check_name(&"a".repeat(64), Err(NameError::Long { got: 64 }));
    }

    #[test]
    fn ids_sort_by_creation_and_survive_text() {
        let early = WorkloadId::new(WallTime::from_unix_nanos(1_000_000_000), [9; 10]);
        let late = WorkloadId::new(WallTime::from_unix_nanos(2_000_000_000_000), [0; 10]);
        assert!(early < late && early.to_string() < late.to_string());
        for id in [
            early,
            late,
            WorkloadId::from_bits(0),
            WorkloadId::from_bits(u128::MAX),
        ] {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.mark().len(), 10);
        }
    }

    #[test]
    fn bad_ids_are_refused() {
        assert_eq!("".parse::<WorkloadId>(), Err(IdError::Length { got: 0 }));
        let u = "u".repeat(26);
        assert_eq!(u.parse::<WorkloadId>(), Err(IdError::Digit { at: 0 }));
        let overflow = format!("8{}", "0".repeat(25));
        assert_eq!(overflow.parse::<WorkloadId>(), Err(IdError::Digit { at: 0 }));
    }
}
