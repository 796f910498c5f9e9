//! What a monitor has changed of guest RAM that it maps privately, and writing that back into the file.
//!
//! A machine that was woken over a file that is its own alone (the wake consumed that snapshot) keeps what
//! it writes in anonymous memory. At its next sleep, paused, those pages are copied to their places, and
//! the file is its RAM again, whole.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use dormouse_model::Bytes;
use dormouse_sys::memory::{Mapping, mappings, private_ranges, read_process};

use crate::error::DriverError;
use crate::metrics;
use crate::process::{ProcessIdentity, prove};

/// What was written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Separate ranges of the file.
    pub ranges: u64,
    /// Bytes altogether.
    pub bytes: u64,
}

/// A part of a file that a process has changed for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateRange {
    /// Where in the file.
    pub file: Range<u64>,
    /// Where in the process.
    pub address: u64,
}

const DOING: &str = "write private memory back";

/// What `process` has changed of the file `ram`, of which it maps the first `size` bytes privately, in
/// the order of the file. Exact only while the machine is paused. Blocks for a millisecond or two per GiB.
///
/// # Errors
/// When the process is gone or another, or maps the file in no or another way.
pub fn private_memory(
    process: &ProcessIdentity,
    ram: BorrowedFd<'_>,
    size: Bytes,
) -> Result<Vec<PrivateRange>, DriverError> {
    let fail = |source| DriverError::Io { doing: DOING, source };
    let inode = File::from(ram.try_clone_to_owned().map_err(fail)?)
        .metadata()
        .map_err(fail)?;
    let found = mappings(process.pid, inode.dev(), inode.ino()).map_err(fail)?;
    check_mappings(&found, size)?;
    let mut changed = Vec::new();
    for mapping in &found {
        for addresses in private_ranges(process.pid, mapping.addresses.clone()).map_err(fail)? {
            let place = |address: u64| mapping.offset + (address - mapping.addresses.start);
            let file = place(addresses.start)..place(addresses.end);
            changed.push(PrivateRange {
                file,
                address: addresses.start,
            });
        }
    }
    // Read from the right process: its pid had not been given away before this.
    still_the_same(process)?;
    changed.sort_by_key(|range| range.file.start);
    Ok(changed)
}

/// The whole of RAM must be mapped, once, privately: anything else and some change would be missed.
fn check_mappings(found: &[Mapping], size: Bytes) -> Result<(), DriverError> {
    let fail = |why: &str| {
        Err(DriverError::Part {
            part: "RAM file",
            why: why.to_owned(),
        })
    };
    if found.iter().any(|mapping| mapping.shared) {
        return fail("the monitor maps it shared: nothing is private");
    }
    let mut covered = 0;
    let mut sorted: Vec<_> = found.iter().collect();
    sorted.sort_by_key(|mapping| mapping.offset);
    for mapping in sorted {
        if mapping.offset != covered {
            return fail("the monitor maps it with gaps or twice");
        }
        covered += mapping.addresses.end - mapping.addresses.start;
    }
    if covered < size.0 {
        fail("the monitor does not map all of it")
    } else {
        Ok(())
    }
}

fn still_the_same(process: &ProcessIdentity) -> Result<(), DriverError> {
    let fail = |source| DriverError::Io { doing: DOING, source };
    let start_ticks = dormouse_sys::clock::process_start_ticks(process.pid).map_err(fail)?;
    let boot_id = dormouse_sys::clock::boot_id().map_err(fail)?;
    let found = ProcessIdentity {
        pid: process.pid,
        start_ticks,
        boot_id,
    };
    prove(process, &found).map_err(|gone| fail(io::Error::other(gone.to_string())))
}

/// Copies what `process` has changed of `file`, its private RAM, to its places in `file`. The machine must
/// be paused, and must not have been given to a child. Not synced. Blocks: about 0.5 ms a MiB.
///
/// Interrupted, it leaves a file that is neither the old image nor the new; as long as the process lives,
/// the call may be repeated, or the machine resumed.
///
/// # Errors
/// As [`private_memory`]; or when the file system is full.
pub fn write_back_private(
    process: &ProcessIdentity,
    file: BorrowedFd<'_>,
    size: Bytes,
) -> Result<Written, DriverError> {
    let fail = |source| DriverError::Io { doing: DOING, source };
    let changed = private_memory(process, file, size)?;
    let target = File::from(file.try_clone_to_owned().map_err(fail)?);
    let mut buffer = vec![0; 1 << 20];
    let mut written = Written::default();
    for range in changed {
        let (mut place, mut address) = (range.file.start, range.address);
        while place < range.file.end {
            let want = usize::try_from(range.file.end - place)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let piece = buffer.get_mut(..want).unwrap_or_default();
            read_process(process.pid, address, piece).map_err(fail)?;
            target.write_all_at(piece, place).map_err(fail)?;
            place += want as u64;
            address += want as u64;
        }
        written.ranges += 1;
        written.bytes += range.file.end - range.file.start;
    }
    still_the_same(process)?;
    metrics::written_back(written.bytes);
    Ok(written)
}

/// Asks the kernel to page out the guest RAM of a machine that dozes, to swap or back to its file. Returns
/// how many bytes were taken as asked.
///
/// # Errors
/// When the process is gone, or the kernel refuses everything.
pub fn page_out(process: &ProcessIdentity, ram: BorrowedFd<'_>) -> Result<u64, DriverError> {
    let fail = |source| DriverError::Io {
        doing: "page guest memory out",
        source,
    };
    let inode = File::from(ram.try_clone_to_owned().map_err(fail)?)
        .metadata()
        .map_err(fail)?;
    let pidfd = dormouse_sys::pidfd::PidFd::open(process.pid).map_err(fail)?;
    still_the_same(process)?;
    let found = mappings(process.pid, inode.dev(), inode.ino()).map_err(fail)?;
    let ranges: Vec<_> = found.into_iter().map(|mapping| mapping.addresses).collect();
    dormouse_sys::memory::page_out(pidfd.as_fd(), &ranges).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(addresses: Range<u64>, offset: u64, shared: bool) -> Mapping {
        Mapping {
            addresses,
            offset,
            shared,
        }
    }

    #[test]
    fn ram_must_be_mapped_whole_once_and_privately() {
        let page = 4096;
        for (found, fits) in [
            (vec![mapping(page..5 * page, 0, false)], true),
            // Split by a change of protection, in any order of addresses.
            (
                vec![
                    mapping(page..3 * page, 2 * page, false),
                    mapping(9 * page..11 * page, 0, false),
                ],
                true,
            ),
            (vec![], false),
            (vec![mapping(page..5 * page, 0, true)], false),
            (vec![mapping(page..4 * page, 0, false)], false),
            (vec![mapping(page..5 * page, page, false)], false),
            (
                vec![
                    mapping(page..5 * page, 0, false),
                    mapping(9 * page..13 * page, 0, false),
                ],
                false,
            ),
        ] {
            assert_eq!(check_mappings(&found, Bytes(4 * page)).is_ok(), fits, "{found:?}");
        }
    }
}
