//! What the kernel says of its memory, and of a process's memory and threads.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// What the kernel keeps for itself, in bytes: slab, per-processor memory, vmalloc, stacks, page tables.
pub(crate) fn kernel_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let fields = ["Slab", "Percpu", "VmallocUsed", "KernelStack", "PageTables"];
    Ok(fields
        .iter()
        .filter_map(|name| field_kib(&text, name))
        .sum::<u64>()
        * 1024)
}

/// The resident set of a process, in bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the daemon's status")?;
    let kib = field_kib(&text, "VmRSS").context("no VmRSS")?;
    Ok(kib * 1024)
}

/// The voluntary context switches of each thread of a process, with its name.
pub(crate) fn voluntary_switches(pid: u32) -> Result<BTreeMap<String, (String, u64)>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).context("listing threads")? {
        let entry = entry?;
        // One that has just ended switches no more.
        let Ok(text) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("Name:"))
            .unwrap_or_default();
        let switches = field_kib(&text, "voluntary_ctxt_switches").unwrap_or(0);
        threads.insert(
            entry.file_name().to_string_lossy().into_owned(),
            (name.trim().to_owned(), switches),
        );
    }
    Ok(threads)
}

/// The number of a line `NAME: NUMBER …`.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "SlabX: 1\nSlab:  7 kB\nvoluntary_ctxt_switches:\t12\n";
        assert_eq!(field_kib(text, "Slab"), Some(7));
        assert_eq!(field_kib(text, "voluntary_ctxt_switches"), Some(12));
        assert_eq!(field_kib(text, "Percpu"), None);
    }

    #[test]
    fn our_own_threads_are_counted() {
        assert!(voluntary_switches(std::process::id()).unwrap().len() > 1);
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
    }
}
