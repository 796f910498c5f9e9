//! Limits of the host that many sleepers need raised. `doctor` reads them, `setup` raises them.
//!
//! They belong to the whole host, whatever the data plane's namespace: read and write them in the
//! first network namespace, where alone the kernel shows them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::NetworkError;
use crate::setup::set;

/// Entries that a busy host needs for itself, besides one a sleeper.
const OWN_NEIGHBOURS: u64 = 1024;

/// Packets that a processor may have waiting between `p0` and `p1` while a release lets go many at
/// once; kernels before 6.4 may leave that work to a thread.
const BACKLOG_PACKETS: u64 = 20_000;

/// The thresholds of one family's neighbour table (`gc_thresh1` to `gc_thresh3`). Each sleeper that
/// is knocked at takes an entry in each family; at the third threshold the kernel refuses new ones,
/// the host's own among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighbourLimits {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Below the first nothing is collected; above the second, soon; at the third, now or never.
    pub thresholds: [u64; 3],
}

/// A limit that is too low.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortfall {
    /// The setting.
    pub path: PathBuf,
    /// What it is.
    pub have: u64,
    /// What it should at least be.
    pub need: u64,
}

/// Reads the thresholds of both families.
///
/// # Errors
/// Outside the first network namespace, or when IPv6 is off.
pub fn neighbour_limits() -> Result<[NeighbourLimits; 2], NetworkError> {
    let read = |family| -> Result<NeighbourLimits, NetworkError> {
        let mut thresholds = [0; 3];
        for (threshold, place) in thresholds.iter_mut().zip(1..) {
            *threshold = read_limit(&threshold_path(family, place))?;
        }
        Ok(NeighbourLimits { family, thresholds })
    };
    Ok([read("ipv4")?, read("ipv6")?])
}

/// Packets that could not wait, counted by the kernel since boot, host-wide, both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParkedDrops {
    /// Dropped because too much waited for one address, or because nobody came.
    pub discarded: u64,
    /// Times that the table was full: see [`NeighbourLimits`].
    pub table_full: u64,
}

/// Reads how many packets could not wait.
///
/// # Errors
/// Outside the first network namespace.
pub fn parked_drops() -> Result<ParkedDrops, NetworkError> {
    let mut drops = ParkedDrops::default();
    for table in ["arp_cache", "ndisc_cache"] {
        let path = PathBuf::from(format!("/proc/net/stat/{table}"));
        let text = fs::read_to_string(&path).map_err(|source| reading(&path, source))?;
        drops.discarded += column(&text, "unresolved_discards");
        drops.table_full += column(&text, "table_fulls");
    }
    Ok(drops)
}

/// The sum of a column of hexadecimal numbers, a row a processor, under a row of names. A column
/// that this kernel does not have counts nothing.
fn column(text: &str, name: &str) -> u64 {
    let mut rows = text.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let place = rows
        .next()
        .and_then(|names| names.iter().position(|&known| known == name));
    let number = |row: Vec<&str>| u64::from_str_radix(row.get(place?)?, 16).ok();
    rows.filter_map(number).sum()
}

/// What is too low for `sleepers` workloads.
///
/// # Errors
/// As [`neighbour_limits`].
pub fn shortfalls(sleepers: u64) -> Result<Vec<Shortfall>, NetworkError> {
    let mut found = Vec::new();
    for limits in neighbour_limits()? {
        for ((have, need), place) in limits.thresholds.into_iter().zip(needed(sleepers)).zip(1..) {
            if have < need {
                found.push(Shortfall {
                    path: threshold_path(limits.family, place),
                    have,
                    need,
                });
            }
        }
    }
    let path = PathBuf::from("/proc/sys/net/core/netdev_max_backlog");
    let have = read_limit(&path)?;
    if have < BACKLOG_PACKETS {
        found.push(Shortfall {
            path,
            have,
            need: BACKLOG_PACKETS,
        });
    }
    Ok(found)
}

impl NeighbourLimits {
    /// The most entries that the table takes.
    #[must_use]
    pub const fn most(&self) -> u64 {
        let [_, _, most] = self.thresholds;
        most
    }
}

/// The tables that would be full before every one of `sleepers` had an entry beside the host's own.
///
/// # Errors
/// As [`neighbour_limits`].
pub fn too_few_neighbours(sleepers: u64) -> Result<Vec<NeighbourLimits>, NetworkError> {
    let room = sleepers.saturating_add(OWN_NEIGHBOURS / 2);
    Ok(neighbour_limits()?
        .into_iter()
        .filter(|limits| limits.most() < room)
        .collect())
}

/// Raises what is too low for `sleepers` workloads; lowers nothing. Returns what it raised.
///
/// # Errors
/// When a setting cannot be read or written; those before it are raised.
pub fn apply(sleepers: u64) -> Result<Vec<Shortfall>, NetworkError> {
    let found = shortfalls(sleepers)?;
    for shortfall in &found {
        write_limit(&shortfall.path, shortfall.need)?;
    }
    Ok(found)
}

/// The thresholds for `sleepers` workloads: all of them may be knocked at at once.
#[must_use]
pub const fn needed(sleepers: u64) -> [u64; 3] {
    let entries = sleepers.saturating_add(OWN_NEIGHBOURS);
    [entries, entries.saturating_mul(2), entries.saturating_mul(4)]
}

fn threshold_path(family: &str, place: u32) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/neigh/default/gc_thresh{place}"))
}

/// Writes a limit.
///
/// # Errors
/// When the kernel refuses.
pub fn write_limit(path: &Path, value: u64) -> Result<(), NetworkError> {
    set(path.to_owned(), &value.to_string())
}

/// Reads a limit.
///
/// # Errors
/// When the kernel does not show it, or it is no number.
pub fn read_limit(path: &Path) -> Result<u64, NetworkError> {
    let text = fs::read_to_string(path).map_err(|source| reading(path, source))?;
    text.trim()
        .parse()
        .map_err(|_| reading(path, std::io::ErrorKind::InvalidData.into()))
}

fn reading(path: &Path, source: std::io::Error) -> NetworkError {
    NetworkError::Kernel {
        doing: "reading",
        about: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_rise_and_leave_room_for_the_host() {
        assert_eq!(needed(0), [1024, 2048, 4096]);
        assert_eq!(needed(10_000), [11_024, 22_048, 44_096]);
        assert!(needed(u64::MAX)[2] == u64::MAX);
    }

    #[test]
    fn counters_are_summed_over_processors() {
        let text = "entries  table_fulls unresolved_discards\n00000004  00000001 0000000a\n00000004  00000002 00000006\n";
        assert_eq!(
            (column(text, "unresolved_discards"), column(text, "table_fulls")),
            (16, 3)
        );
        assert_eq!(
            (column(text, "of another kernel"), column("", "table_fulls")),
            (0, 0)
        );
    }
}
