//! Sizes. A bare number never stands for a size: it is [`Bytes`].

use std::fmt;
use std::str::FromStr;

use crate::error::{Fault, Kind};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `count` mebibytes, saturating.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// `count` gibibytes, saturating.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 30))
    }

    /// Whole mebibytes, rounded down.
    #[must_use]
    pub const fn as_mib(self) -> u64 {
        self.0 >> 20
    }
}

impl fmt::Display for Bytes {
    /// The largest binary unit that divides the number, so that the text parses back unchanged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Bytes {
    type Err = SizeError;

    /// Reads `512MiB`, `512M`, `1g`, `4096` or `4096B`. Letters without `i` are binary too, as they
    /// are for docker and QEMU; `KB`, `MB`, `GB`, `TB` mean the same, because nobody types `--memory
    /// 512MB` to get 488 MiB.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let digits_end = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(digits_end);
        let number: u64 = digits.parse().map_err(|_| SizeError {
            text: text.to_owned(),
        })?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => {
                return Err(SizeError {
                    text: text.to_owned(),
                });
            }
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| SizeError {
            text: text.to_owned(),
        })
    }
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: write a whole number with K, M, G or T, such as 512M")]
pub struct SizeError {
    /// What was given.
    pub text: String,
}

impl Fault for SizeError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "SIZE_INVALID"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("4096", Some(4096)),
            ("4096B", Some(4096)),
            ("1k", Some(1024)),
            ("512M", Some(512 << 20)),
            ("512 MiB", Some(512 << 20)),
            ("2GB", Some(2 << 30)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("-1", None),
            ("1X", None),
            ("99999999999999999999", None),
            ("99999999999T", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), want, "{text:?}");
        }
        for size in [0, 1, 1023, 1024, 3 << 20, 5 << 30, u64::MAX] {
            assert_eq!(Bytes(size).to_string().parse(), Ok(Bytes(size)));
        }
    }
}
