//! Another process's memory: its map, which pages of a private file mapping it has changed, reading
//! them, and paging them out.
//!
//! Sources: proc(5) for `maps` and `pagemap`, Documentation/admin-guide/mm/pagemap.rst for
//! `PAGEMAP_SCAN` (Linux 6.7), process_vm_readv(2), process_madvise(2).

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::RemoteIoVec;

/// The size of a page on every machine that we run on.
pub const PAGE: u64 = 4096;

/// A file mapped into this process, for programs that stand in for a virtual machine monitor.
#[derive(Debug)]
pub struct FileMap {
    start: NonNull<c_void>,
    length: NonZeroUsize,
}

impl FileMap {
    /// Maps the first `length` bytes of `file`, which must stay that long: shared, so that writes reach
    /// the file, or privately.
    ///
    /// # Errors
    /// As `mmap(2)`; `InvalidInput` for no bytes.
    pub fn new(file: impl AsFd, length: usize, shared: bool) -> io::Result<Self> {
        let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = if shared {
            MapFlags::MAP_SHARED
        } else {
            MapFlags::MAP_PRIVATE
        };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice: no memory of ours changes.
        let start = unsafe { mmap(None, length, access, flags, file, 0) }?;
        Ok(Self { start, length })
    }

    fn place(&self, at: usize, bytes: usize) -> io::Result<*mut u8> {
        let end = at.checked_add(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.length.get() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.start.as_ptr().cast::<u8>().wrapping_add(at))
    }

    /// Copies bytes from `at` on into `buffer`.
    ///
    /// # Errors
    /// `InvalidInput` beyond the end.
    pub fn read(&self, at: usize, buffer: &mut [u8]) -> io::Result<()> {
        let from = self.place(at, buffer.len())?;
        // SAFETY: `place` has checked that so many bytes from there are mapped, which they stay as long as
        // `self` lives; no reference into the mapping is ever made, so `buffer` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), buffer.as_mut_ptr(), buffer.len()) };
        Ok(())
    }

    /// Copies `bytes` to `at`.
    ///
    /// # Errors
    /// `InvalidInput` beyond the end.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let to = self.place(at, bytes.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: ours alone, mapped in `new` with this length, and no reference into it exists.
        let unmapped = unsafe { munmap(self.start, self.length.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// One mapping of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Addresses in the process.
    pub addresses: Range<u64>,
    /// Where in the file the first byte is.
    pub offset: u64,
    /// Whether writes reach the file.
    pub shared: bool,
}

/// The mappings that process `pid` has of the file with this device and inode number (as `stat` gives
/// them), by address.
///
/// # Errors
/// `NotFound` when there is no such process; `PermissionDenied` without the right to look.
pub fn mappings(pid: u32, device: u64, inode: u64) -> io::Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let wanted = (libc::major(device), libc::minor(device), inode);
    Ok(text
        .lines()
        .filter_map(parse_mapping)
        .filter(|(file, _)| *file == wanted)
        .map(|(_, m)| m)
        .collect())
}

/// One line of `maps`: `start-end perms offset major:minor inode path`. What is not of that form is no
/// mapping of a file.
fn parse_mapping(line: &str) -> Option<((u32, u32, u64), Mapping)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let shared = fields.next()?.ends_with('s');
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let file = (
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
        fields.next()?.parse().ok()?,
    );
    let addresses = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    Some((
        file,
        Mapping {
            addresses,
            offset,
            shared,
        },
    ))
}

/// The ranges of `within` that process `pid` has in private pages, swapped ones included: what it wrote
/// to a private mapping of a file. Whole pages, ascending, merged.
///
/// # Errors
/// When the process is gone, or without the right to look.
pub fn private_ranges(pid: u32, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    match scan(&pagemap, within.clone()) {
        // A kernel before 6.7.
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => read_pagemap(&pagemap, within),
        other => other,
    }
}

/// `struct page_region` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ScanRequest {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = (3 << 30) | (96 << 16) | (0x66 << 8) | 16;
const _: () = assert!(size_of::<ScanRequest>() == 96);
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// Asks the kernel for the ranges: not a page of a file, and present or swapped.
fn scan(pagemap: &File, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut regions = [PageRegion::default(); 512];
    let mut start = within.start;
    while start < within.end {
        let mut request = ScanRequest {
            size: size_of::<ScanRequest>() as u64,
            start,
            end: within.end,
            regions: regions.as_mut_ptr() as u64,
            regions_length: regions.len() as u64,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            // Asked for alone, so that pages of different kinds come as one region.
            return_mask: PAGE_IS_FILE,
            ..ScanRequest::default()
        };
        // SAFETY: the request says its own size and points at `regions` with its true length; the
        // kernel writes into these two only, and both outlive the call.
        let got = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut request) };
        let filled = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for region in regions.iter().take(filled) {
            push_merged(&mut ranges, region.start..region.end);
        }
        if request.walk_end <= start {
            return Err(io::ErrorKind::InvalidData.into());
        }
        start = request.walk_end;
    }
    Ok(ranges)
}

/// The same from the entries of `pagemap`: bit 63 present, 62 swapped, 61 a page of a file or shared.
fn read_pagemap(pagemap: &File, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut buffer = vec![0_u8; 64 << 10];
    let mut page = within.start / PAGE;
    let last = within.end.div_ceil(PAGE);
    while page < last {
        let want = usize::try_from((last - page) * 8)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let entries = buffer.get_mut(..want).unwrap_or_default();
        pagemap.read_exact_at(entries, page * 8)?;
        for entry in entries.as_chunks::<8>().0 {
            let bits = u64::from_ne_bytes(*entry);
            if bits >> 62 != 0 && bits & (1 << 61) == 0 {
                push_merged(&mut ranges, page * PAGE..(page + 1) * PAGE);
            }
            page += 1;
        }
    }
    Ok(ranges)
}

/// Appends `next`, joined to the last range when it begins where that ends.
fn push_merged(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}

/// Reads `buffer.len()` bytes at `address` of process `pid`.
///
/// # Errors
/// `EFAULT` when part of it is not mapped, `ESRCH` when the process is gone, `EPERM` without the right.
pub fn read_process(pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?);
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let base = usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?;
        let remote = [RemoteIoVec {
            base: base.saturating_add(done),
            len: rest.len(),
        }];
        let got = nix::sys::uio::process_vm_readv(pid, &mut [io::IoSliceMut::new(rest)], &remote)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        done += got;
    }
    Ok(())
}

/// Freed memory from which on it goes back to the kernel by itself, and the size from which on a block is
/// mapped alone.
const KEPT_FREE: libc::c_int = 256 << 10;

/// Keeps the allocator from raising its thresholds, as it does whenever a large block is freed: the free end of
/// each thread's heap would then grow to megabytes, which [`give_back_freed`] does not reach. For a process
/// that lives long and does much seldom. To be called when it begins.
pub fn keep_little_free() {
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: takes no pointer; sets a number of the allocator under its own lock (mallopt(3)).
        let _accepted = unsafe { libc::mallopt(option, KEPT_FREE) };
    }
}

/// Gives memory that was freed back to the kernel: after a start that looked at much, or a long listing.
/// Blocks for some milliseconds.
pub fn give_back_freed() {
    // SAFETY: takes no pointer and touches only free blocks, under the allocator's own locks
    // (malloc_trim(3)).
    let _gave_any = unsafe { libc::malloc_trim(0) };
}

/// Asks the kernel to page out `ranges` of the process behind `pidfd` (`MADV_PAGEOUT`): to swap, or back
/// to their files. Returns how many bytes it took as asked; it stops early rather than fail.
///
/// # Errors
/// When nothing could be asked: no right (`CAP_SYS_NICE` and ptrace access), or the process is gone.
pub fn page_out(pidfd: impl AsFd, ranges: &[Range<u64>]) -> io::Result<u64> {
    let mut done = 0_u64;
    // UIO_MAXIOV (include/uapi/linux/uio.h).
    for batch in ranges.chunks(1024) {
        let vectors: Vec<libc::iovec> = batch.iter().filter_map(remote_vector).collect();
        // SAFETY: `vectors` is read for its true length; the addresses in it belong to the other process
        // and are never followed in this one. Advice to page out changes no content.
        let got = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_fd().as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                libc::MADV_PAGEOUT,
                0,
            )
        };
        match u64::try_from(got) {
            Ok(bytes) => done += bytes,
            Err(_) if done > 0 => return Ok(done),
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(done)
}

/// A range as the kernel wants it.
fn remote_vector(range: &Range<u64>) -> Option<libc::iovec> {
    let base = usize::try_from(range.start).ok()?;
    let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
    Some(libc::iovec {
        iov_base: std::ptr::without_provenance_mut(base),
        iov_len: length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    use std::num::NonZeroUsize;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn lines_of_maps() {
        let line = "7f10a000-7f20a000 rw-p 00100000 fe:10 4711   /a b (deleted)";
        let (file, mapping) = parse_mapping(line).unwrap();
        assert_eq!(file, (0xfe, 0x10, 4711));
        assert_eq!(
            mapping,
            Mapping {
                addresses: 0x7f10_a000..0x7f20_a000,
                offset: 0x10_0000,
                shared: false
            }
        );
        for broken in ["", "x", "1-2", "1-2 rw-p", "1-2 rw-p 0 0 0", "z-2 rw-p 0 0:0 0"] {
            assert!(parse_mapping(broken).is_none(), "{broken:?}");
        }
    }

    #[test]
    fn what_was_written_privately_is_found_and_read() {
        let path = std::env::temp_dir().join(format!("dormouse-memory-{}", std::process::id()));
        std::fs::write(&path, vec![7_u8; 64 * 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let length = NonZeroUsize::new(64 * 4096).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, of a file that only this test has.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_PRIVATE, &file, 0) }.unwrap();
        for (page, value) in [(3_usize, 1_u8), (4, 2), (60, 3)] {
            // SAFETY: the page lies within the mapping.
            let place = unsafe { base.cast::<u8>().add(page * 4096) };
            // SAFETY: the mapping is writable and nothing else refers to it.
            unsafe { place.write_volatile(value) };
        }
        // Read only: stays the file's.
        // SAFETY: the first page of the mapping.
        assert_eq!(unsafe { base.cast::<u8>().read_volatile() }, 7);
        let pid = std::process::id();
        let data = file.metadata().unwrap();
        let found = mappings(pid, data.dev(), data.ino()).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        let start = found[0].addresses.start;
        assert!(!found[0].shared);
        let want = vec![
            start + 3 * PAGE..start + 5 * PAGE,
            start + 60 * PAGE..start + 61 * PAGE,
        ];
        assert_eq!(private_ranges(pid, found[0].addresses.clone()).unwrap(), want);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(
            read_pagemap(&pagemap, found[0].addresses.clone()).unwrap(),
            want,
            "the older way"
        );
        let mut bytes = [0; 2];
        read_process(pid, start + 4 * PAGE - 1, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 2]);
        assert!(read_process(pid, 0, &mut bytes).is_err());
        // SAFETY: the mapping made above, not used after.
        unsafe { munmap(base, length.get()) }.unwrap();
    }
}
