//! Numbers, times and states in words for people.

use std::time::Duration;

use dormouse_client::v1;
use dormouse_model::WallTime;

/// An enum of the API as its stable word: `INSTANCE_STATE_RUNNING` is `running`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// The stable word of a state.
pub(crate) fn state(state: v1::InstanceState) -> String {
    word(state.as_str_name(), "INSTANCE_STATE_")
}

/// The state with that word.
pub(crate) fn parse_state(text: &str) -> Option<v1::InstanceState> {
    let known: dormouse_model::State = text.parse().ok()?;
    v1::InstanceState::from_str_name(&format!("INSTANCE_STATE_{}", known.as_str().to_ascii_uppercase()))
}

/// A point in time of the API; before 1970 counts as 1970.
pub(crate) fn wall_time(at: &prost_types::Timestamp) -> WallTime {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    let nanos = u64::try_from(at.nanos).unwrap_or(0);
    WallTime::from_unix_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// A duration of the API; a negative one counts as none.
pub(crate) fn duration(length: &prost_types::Duration) -> Duration {
    let nanos = u32::try_from(length.nanos).unwrap_or(0);
    Duration::new(u64::try_from(length.seconds).unwrap_or(0), nanos)
}

/// A duration for the API.
pub(crate) fn api_duration(length: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(length.subsec_nanos()).unwrap_or(0),
    }
}

/// A duration in its two largest units: `4m12s`, `3d4h`, `0s`.
pub(crate) fn short(length: Duration) -> String {
    let seconds = length.as_secs();
    let units = [
        ("d", seconds / 86_400),
        ("h", seconds / 3600 % 24),
        ("m", seconds / 60 % 60),
        ("s", seconds % 60),
    ];
    let from = units.iter().position(|(_, count)| *count > 0).unwrap_or(3);
    let parts = units
        .iter()
        .skip(from)
        .take(2)
        .filter(|(unit, count)| *count > 0 || (*unit == "s" && from == 3));
    parts.map(|(unit, count)| format!("{count}{unit}")).collect()
}

/// A size with three digits at most: `0 B`, `640 KiB`, `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = bytes;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        whole /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    // Tenths are for small numbers only, computed in integers so that no size is rounded up.
    let shift = 10 * unit;
    let tenth = if unit == 0 {
        0
    } else {
        ((bytes >> (shift - 10)) & 1023) * 10 / 1024
    };
    if whole < 10 && tenth > 0 {
        format!("{whole}.{tenth} {name}")
    } else {
        format!("{whole} {name}")
    }
}

/// Milliseconds; `-` for none.
pub(crate) fn millis(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, want) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (252, "4m12s"),
            (3600, "1h"),
            (3661, "1h1m"),
            (273_600, "3d4h"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), want, "{seconds}");
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (640 << 10, "640 KiB"),
            (3 << 29, "1.5 GiB"),
            (12 << 30, "12 GiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn states_have_the_words_of_the_model() {
        for known in dormouse_model::State::ALL {
            let parsed = parse_state(known.as_str()).unwrap();
            assert_eq!(state(parsed), known.as_str());
        }
        assert_eq!(parse_state("asleep"), None);
    }
}
