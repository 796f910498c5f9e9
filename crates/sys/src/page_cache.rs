//! What the page cache holds of a file.
#![allow(unsafe_code, reason = "a system call that has no wrapper yet")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `cachestat(2)`, the same number on every architecture (include/uapi/asm-generic/unistd.h, Linux 6.5).
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of include/uapi/linux/mman.h; a length of 0 means to the end.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat` of include/uapi/linux/mman.h, in pages.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cached {
    /// In the cache, clean or not.
    pub cached: u64,
    /// Not yet on their way to the disk.
    pub dirty: u64,
    /// On their way.
    pub writeback: u64,
    /// Evicted.
    pub evicted: u64,
    /// Evicted a short while ago.
    pub recently_evicted: u64,
}

/// What the page cache holds of `file`, in pages.
///
/// # Errors
/// `ENOSYS` before Linux 6.5; `EOPNOTSUPP` for files without a page cache of this kind.
pub fn cached(file: impl AsFd) -> io::Result<Cached> {
    let range = Range { offset: 0, length: 0 };
    let mut found = Cached::default();
    let flags: libc::c_uint = 0;
    // SAFETY: the kernel reads one `struct cachestat_range` and writes one `struct cachestat`; both types
    // have exactly its layout (`repr(C)`, five or two u64), both references are valid for the call, and the
    // descriptor is open for as long as `file` is borrowed.
    let outcome = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_fd().as_raw_fd(),
            std::ptr::from_ref(&range),
            std::ptr::from_mut(&mut found),
            flags,
        )
    };
    if outcome == 0 {
        Ok(found)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Pages of `file` that the disk does not have yet.
///
/// # Errors
/// As [`cached`].
pub fn dirty_pages(file: impl AsFd) -> io::Result<u64> {
    cached(file).map(|found| found.dirty.saturating_add(found.writeback))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn written_pages_are_dirty_until_synced() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&[1; 16 * 4096]).unwrap();
        match dirty_pages(&file) {
            Ok(dirty) => assert!(dirty <= 16),
            Err(error) => return println!("skipped: written_pages_are_dirty_until_synced: {error}"),
        }
        file.sync_data().unwrap();
        assert_eq!(dirty_pages(&file).unwrap(), 0);
        assert_eq!(cached(&file).unwrap().cached, 16);
    }
}
