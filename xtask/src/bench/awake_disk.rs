//! What a busy guest makes the host write to its disk, for each placement of its RAM.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dormouse_client::v1::MemoryPlacement;

use super::nap_wake::placement_word;
use crate::figures::{Figures, Row, Samples};
use crate::lab::{GuestSpec, Lab, tick, wait_given_back};

/// Dirty pages wait for 30 s (`dirty_expire_centisecs`) before they are written: less would show nothing.
const WINDOW: Duration = Duration::from_secs(70);

const RAM_MIB: u64 = 1024;
/// What the guest keeps writing to.
const HOT_MIB: u64 = 200;

/// Measures the three placements one after the other and adds their rows.
pub(super) fn measure(lab: &Lab, figures: &mut Figures) -> Result<()> {
    for placement in [
        MemoryPlacement::Tmpfs,
        MemoryPlacement::Spill,
        MemoryPlacement::Disk,
    ] {
        let word = placement_word(placement);
        let row = match one(lab, placement) {
            Ok(row) => row,
            Err(error) => {
                println!("  {error:#}");
                // The end of the daemon's log belongs on the screen, not in a row.
                let why = error
                    .chain()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(": ");
                let why = why.lines().next().unwrap_or_default();
                Row::skipped("disk_mib_per_min_awake", "MiB/min", why)
            }
        };
        figures.row(
            row.param("placement", word)
                .param("ram_mib", RAM_MIB)
                .param("hot_mib", HOT_MIB),
        );
    }
    Ok(())
}

fn one(lab: &Lab, placement: MemoryPlacement) -> Result<Row> {
    let name = format!("hot-{}", placement_word(placement));
    println!("  a hot guest in placement {}", placement_word(placement));
    let spec = GuestSpec {
        name: &name,
        image: "bench:latest",
        ram_mib: RAM_MIB,
        placement,
        idle: None,
    };
    let guest = lab.run_server(&spec)?;
    lab.command(&guest, &format!("fill {HOT_MIB}"), Duration::from_secs(120))?;
    if placement == MemoryPlacement::Spill {
        // Only after a sleep does its RAM lie on disk.
        lab.nap(&guest)?;
        wait_given_back(&lab.directories(), &guest.id, Duration::from_secs(90))?;
        lab.wake(&guest)?;
    }
    lab.command(&guest, &format!("touch 20000 {HOT_MIB}"), Duration::from_secs(20))?;
    let processes = [lab.view(&guest)?.pid, lab.daemon_pid()];
    let caused = || processes.into_iter().map(written_by_process).sum::<u64>();
    let (device_before, before) = (written_to_device(lab.disk_directory()).ok(), caused());
    let begun = Instant::now();
    while begun.elapsed() < WINDOW {
        tick(WINDOW.saturating_sub(begun.elapsed()).min(Duration::from_secs(1)));
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let written = caused().saturating_sub(before);
    let device = written_to_device(lab.disk_directory()).ok();
    lab.delete(&guest)?;
    let mib_per_min = |bytes: u64| (bytes as f64 / f64::from(1 << 20) / minutes * 10.0).round() / 10.0;
    let mut samples = Samples::default();
    samples.push(mib_per_min(written));
    let device = device
        .zip(device_before)
        .map(|(after, before)| mib_per_min(after - before));
    // What everybody else writes is in the device's own count, so that is told beside, not instead.
    Ok(Row::new("disk_mib_per_min_awake", "MiB/min", &samples)
        .param("by", "write_bytes of /proc/PID/io, VMM and daemon")
        .param("seconds", WINDOW.as_secs())
        .param("whole_device", device))
}

/// Bytes written to the device that holds `directory`: the seventh number of its line in
/// /proc/diskstats, in sectors of 512 bytes (Documentation/admin-guide/iostats.rst).
fn written_to_device(directory: &Path) -> Result<u64> {
    let device = fs::metadata(directory)
        .with_context(|| format!("looking at {}", directory.display()))?
        .dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let text = fs::read_to_string("/proc/diskstats").context("reading /proc/diskstats")?;
    sectors_written(&text, major, minor)
        .map(|sectors| sectors * 512)
        .with_context(|| format!("{} is on no block device", directory.display()))
}

fn sectors_written(text: &str, major: u64, minor: u64) -> Option<u64> {
    let (major, minor) = (major.to_string(), minor.to_string());
    text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.first() == Some(&major.as_str()) && words.get(1) == Some(&minor.as_str()))
            .then(|| words.get(9)?.parse().ok())?
    })
}

/// Bytes that a process caused to be written (`write_bytes` of /proc/PID/io, counted when a page is
/// dirtied); 0 when it cannot be read.
fn written_by_process(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_device_is_found() {
        let text = "   8       0 sda 1 2 3 4 5 6 7 8 9 10 11\n 254       1 vda1 1 2 3 4 5 6 70 8 9 10 11\n";
        assert_eq!(sectors_written(text, 254, 1), Some(70));
        assert_eq!(sectors_written(text, 254, 0), None);
    }
}
