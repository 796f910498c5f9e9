//! Time as a value. Machines never read a clock: the shell hands them [`MonoTime`] for deadlines and
//! [`WallTime`] for what is persisted or shown.

use std::fmt;
use std::time::Duration;

use crate::error::{Fault, Kind};

/// Time since the host booted, suspend included (`CLOCK_BOOTTIME`). Comparable within one boot only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(Duration);

impl MonoTime {
    /// The time `since_boot` after boot.
    #[must_use]
    pub const fn from_boot(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// How long after boot.
    #[must_use]
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// This time plus `delay`, saturating.
    #[must_use]
    pub const fn plus(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(delay))
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Nanoseconds since 1970 in UTC. For records and people, never for deadlines: it can step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(u64);

impl WallTime {
    /// The time `nanos` after 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub const fn unix_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when the clock stepped back meanwhile.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Reads a duration as people write it: `300s`, `5m`, `1h30m`, `250ms`, `1.5h`, `2us`; parts add up.
/// A bare number has no unit and is refused.
///
/// # Errors
/// When the text is empty, has a part without a known unit, or overflows.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let fail = || DurationError {
        text: text.to_owned(),
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(fail());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(fail)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let nanos_per_unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(fail()),
        };
        let part = scale(number, nanos_per_unit).ok_or_else(fail)?;
        total = total.checked_add(part).ok_or_else(fail)?;
        rest = next;
    }
    Ok(total)
}

/// `number` units of `nanos_per_unit`, exactly: floats would turn 0.1s into 100000001ns.
fn scale(number: &str, nanos_per_unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = u128::from(whole) * u128::from(nanos_per_unit);
    let mut unit = u128::from(nanos_per_unit);
    for digit in fraction.chars() {
        unit /= 10;
        nanos += u128::from(digit.to_digit(10)?) * unit;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

/// The shortest text that [`parse_duration`] reads back unchanged: `1h30m`, `5m`, `1500ms`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit_nanos, unit) in [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")] {
        if !nanos.is_multiple_of(unit_nanos) {
            continue;
        }
        if unit != "s" {
            return format!("{}{unit}", nanos / unit_nanos);
        }
        let seconds = nanos / unit_nanos;
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
        ];
        return parts
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, u)| format!("{n}{u}"))
            .collect();
    }
    format!("{nanos}ns")
}

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write numbers with units h, m, s, ms, us or ns, such as 5m or 1h30m")]
pub struct DurationError {
    /// What was given.
    pub text: String,
}

impl Fault for DurationError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static str {
        "DURATION_INVALID"
    }
}

impl fmt::Display for WallTime {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000_000_000;
        let millis = self.0 / 1_000_000 % 1000;
        let (year, month, day) = civil_date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        )
    }
}

/// The date `days` after 1970-01-01 in the proleptic Gregorian calendar, counted in years that begin
/// on 1 March so that the leap day is the last of its year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want_millis) in [
            ("300s", Some(300_000)),
            (" 5m0s ", Some(300_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5h", Some(5_400_000)),
            ("0.1s", Some(100)),
            (".5s", Some(500)),
            ("250ms", Some(250)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("5 m", None),
            ("-5m", None),
            ("5d", None),
            (".s", None),
            ("1.2.3s", None),
            ("9999999999999h", None),
        ] {
            let got = parse_duration(text)
                .ok()
                .map(|d| u64::try_from(d.as_millis()).unwrap());
            assert_eq!(got, want_millis, "{text:?}");
        }
        for (nanos, text) in [
            (0, "0s"),
            (300_000_000_000, "5m"),
            (5_430_000_000_000, "1h30m30s"),
            (1_500_000_000, "1500ms"),
            (7, "7ns"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
            assert_eq!(parse_duration(text).unwrap(), Duration::from_nanos(nanos));
        }
    }

    #[test]
    fn wall_times_print_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_172_732, "2026-11-20T11:05:32.000Z"),
            (4_102_444_799, "2099-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(
                WallTime::from_unix_nanos(seconds * 1_000_000_000).to_string(),
                text
            );
        }
    }
}
