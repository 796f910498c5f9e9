//! What a guest holds of the host's memory, seen from outside: by /proc, by the files, by zram.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_sys::page_cache::dirty_pages;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::tick;

const PAGE_BYTES: u64 = 4096;

/// What a guest holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    /// The proportional set size of its VMM, 0 without one.
    pub vmm: u64,
    /// Blocks of its RAM files on tmpfs that no VMM's set size counts already.
    pub tmpfs: u64,
    /// Dirty pages of its RAM files on disk.
    pub dirty: u64,
    /// What all zram devices take.
    pub zram: u64,
}

impl Held {
    /// The sum, with what zram took more than `zram_before`.
    pub(crate) fn total(self, zram_before: u64) -> u64 {
        self.vmm + self.tmpfs + self.dirty + self.zram.saturating_sub(zram_before)
    }

    /// What the guest `id` holds now. `pid` is its VMM's, 0 without one.
    pub(crate) fn now(directories: &[&Path], id: &str, pid: u32) -> Result<Self> {
        // While the VMM lives its set size is the measure; its shared pages are the file's.
        let vmm = if pid == 0 { 0 } else { set_size(pid)? };
        let mut held = Self {
            vmm,
            zram: zram_bytes()?,
            ..Self::default()
        };
        if pid == 0 {
            for file in ram_files(directories, id)? {
                if file.on_tmpfs {
                    held.tmpfs += file.blocks_bytes;
                } else {
                    held.dirty += file.dirty_bytes;
                }
            }
        }
        Ok(held)
    }
}

/// One file that holds guest RAM.
#[derive(Debug)]
struct RamFile {
    /// Where.
    #[allow(dead_code, reason = "told when waiting for it was in vain")]
    path: PathBuf,
    /// Whether its file system is a tmpfs.
    on_tmpfs: bool,
    /// Bytes of its blocks.
    blocks_bytes: u64,
    /// Bytes of it that still have to reach the disk. On a kernel that cannot tell, all its blocks.
    dirty_bytes: u64,
}

/// The RAM files of the guest `id`: those with its id in their path and `.ram` in their name.
fn ram_files(directories: &[&Path], id: &str) -> Result<Vec<RamFile>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = directories
        .iter()
        .map(|directory| (*directory).to_owned())
        .collect();
    while let Some(directory) = open.pop() {
        // Directories come and go while the daemon works.
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            let text = path.to_string_lossy();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file()
                && text.contains(id)
                && entry.file_name().to_string_lossy().contains(".ram")
            {
                found.extend(look(&path)?);
            }
        }
    }
    Ok(found)
}

fn look(path: &Path) -> Result<Option<RamFile>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let blocks_bytes = file
        .metadata()
        .with_context(|| format!("looking at {}", path.display()))?
        .blocks()
        * 512;
    let system = fstatfs(file.as_fd()).with_context(|| format!("looking at {}", path.display()))?;
    let dirty_bytes = match dirty_pages(&file) {
        Ok(pages) => pages * PAGE_BYTES,
        // A kernel before 6.5: whatever is there may be dirty.
        Err(_) => blocks_bytes,
    };
    let on_tmpfs = system.filesystem_type() == TMPFS_MAGIC;
    Ok(Some(RamFile {
        path: path.to_owned(),
        on_tmpfs,
        blocks_bytes,
        dirty_bytes,
    }))
}

/// The proportional set size of a process (`Pss` of /proc/PID/smaps_rollup), in bytes.
fn set_size(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("reading the memory of process {pid}"))?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("Pss:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    kib.map(|kib| kib * 1024)
        .with_context(|| format!("no Pss in the smaps_rollup of process {pid}"))
}

/// What zram devices take of memory: the third number of mm_stat, `mem_used_total`
/// (Documentation/admin-guide/blockdev/zram.rst).
pub(crate) fn zram_bytes() -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir("/sys/block")
        .context("listing /sys/block")?
        .flatten()
    {
        if !entry.file_name().to_string_lossy().starts_with("zram") {
            continue;
        }
        let text = fs::read_to_string(entry.path().join("mm_stat")).unwrap_or_default();
        total += text
            .split_whitespace()
            .nth(2)
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(total)
}

/// Waits until nothing of the guest's memory is left on tmpfs and nothing dirty on disk; returns when
/// that was seen. Placement tmpfs never gives its blocks back by itself.
pub(crate) fn wait_given_back(directories: &[&Path], id: &str, deadline: Duration) -> Result<Instant> {
    let begun = Instant::now();
    loop {
        let files = ram_files(directories, id)?;
        let seen = Instant::now();
        if files.iter().all(|file| !file.on_tmpfs && file.dirty_bytes == 0) {
            return Ok(seen);
        }
        ensure!(
            begun.elapsed() < deadline,
            "after {deadline:?} these still hold memory: {files:?}"
        );
        tick(Duration::from_millis(5));
    }
}

/// Drops what the page cache holds of the guest's files: RAM image and device state.
pub(crate) fn drop_cached(directories: &[&Path], id: &str) -> Result<()> {
    let mut open: Vec<PathBuf> = directories
        .iter()
        .map(|directory| (*directory).to_owned())
        .collect();
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else {
                continue;
            };
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file() && path.to_string_lossy().contains(id) {
                let Ok(file) = File::open(&path) else { continue };
                posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                    .with_context(|| format!("dropping {} from the page cache", path.display()))?;
            }
        }
    }
    Ok(())
}

/// User and system time of a process with all its threads, the ended ones too, in milliseconds: fields
/// 14 and 15 of /proc/PID/stat, and with `children` 16 and 17. 0 when it is gone.
pub(crate) fn cpu_ms(pid: u32, children: bool) -> f64 {
    let Ok(line) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return 0.0;
    };
    let Some((_, after)) = line.rsplit_once(") ") else {
        return 0.0;
    };
    let count = if children { 4 } else { 2 };
    let ticks: u64 = after
        .split(' ')
        .skip(11)
        .take(count)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on every Linux that we know.
    ticks as f64 * 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_files_are_found_by_the_guest_and_their_name() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("instances/01ABC");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("memory.ram"), vec![1; 8192]).unwrap();
        fs::write(place.join("disk.ext4"), vec![1; 8192]).unwrap();
        fs::write(scratch.path().join("other.ram"), vec![1; 8192]).unwrap();
        let found = ram_files(&[scratch.path()], "01ABC").unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].path.ends_with("memory.ram"));
        drop_cached(&[scratch.path()], "01ABC").unwrap();
    }

    #[test]
    fn this_process_has_a_size_and_used_time() {
        assert!(set_size(std::process::id()).unwrap() > 0);
        assert!(cpu_ms(std::process::id(), false) >= 0.0);
        assert!(cpu_ms(4_000_000, true) < 1e-9);
        zram_bytes().unwrap();
    }

    #[test]
    fn what_is_on_disk_and_clean_is_given_back() {
        let scratch = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = scratch.path().join("g1.ram");
        fs::write(&path, vec![1; 8192]).unwrap();
        if dirty_pages(File::open(&path).unwrap()).is_err() {
            println!("skipped: what_is_on_disk_and_clean_is_given_back: this kernel has no cachestat");
            return;
        }
        File::open(&path).unwrap().sync_all().unwrap();
        wait_given_back(&[scratch.path()], "g1", Duration::from_secs(5)).unwrap();
    }
}
