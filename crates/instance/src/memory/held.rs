//! How much host memory a guest holds.

use std::fs::{self, File};
use std::os::fd::AsFd;

use dormouse_model::{Bytes, WorkloadId};

use super::files::ImageFiles;
use super::plan::Home;

/// The proportional share of the VMM while there is one; then the blocks of the memory file on tmpfs and
/// the dirty pages of that on disk. What cannot be read counts as nothing.
#[must_use]
pub fn held(files: &ImageFiles, id: WorkloadId, pid: Option<u32>) -> Bytes {
    if let Some(share) = pid.and_then(share_of) {
        return share;
    }
    let dirty = File::open(files.path(id, Home::Disk))
        .ok()
        .and_then(|file| dormouse_sys::page_cache::dirty_pages(file.as_fd()).ok())
        .map_or(0, |pages| pages.saturating_mul(4096));
    Bytes(files.occupied(id, Home::Tmpfs).0.saturating_add(dirty))
}

/// PSS by the kernel's own account (proc_pid_smaps(5)); `None` when the process is gone.
fn share_of(pid: u32) -> Option<Bytes> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}
