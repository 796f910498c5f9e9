//! Clocks: time since boot, wall time, which boot this is, when a process started, and the frequency of
//! the time stamp counter.

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since the host booted, suspend included (`CLOCK_BOOTTIME`).
///
/// # Errors
/// Never on a kernel since 2.6.39.
pub fn since_boot() -> io::Result<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Into::into)
        .map_err(Into::into)
}

/// Nanoseconds since 1970 in UTC (`CLOCK_REALTIME`); zero when the clock stands before that.
///
/// # Errors
/// Never on Linux.
pub fn unix_nanos() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The kernel's name for this boot, a UUID (`/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// Without /proc.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When `pid` started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)). With the pid
/// and the boot id it names a process for ever.
///
/// # Errors
/// `NotFound` when there is no such process; `InvalidData` when the line is not as documented.
pub fn process_start_ticks(pid: u32) -> io::Result<u64> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| {
        // A process that ends while its line is read.
        if error.raw_os_error() == Some(libc::ESRCH) {
            io::ErrorKind::NotFound.into()
        } else {
            error
        }
    })?;
    start_ticks(&line).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22. The command (field 2) may hold blanks and brackets, so fields are counted from its end.
fn start_ticks(line: &str) -> Option<u64> {
    let (_, after_command) = line.rsplit_once(") ")?;
    after_command.split(' ').nth(19)?.parse().ok()
}

/// The frequency of this host's time stamp counter in kHz, measured once against
/// `CLOCK_MONOTONIC_RAW` over 50 ms and kept. Blocks for that long the first time: not for an async task.
///
/// # Errors
/// `Unsupported` on a processor without such a counter.
pub fn tsc_khz() -> io::Result<u64> {
    static MEASURED: OnceLock<u64> = OnceLock::new();
    if let Some(known) = MEASURED.get() {
        return Ok(*known);
    }
    let measured = measure_tsc_khz(Duration::from_millis(50))?;
    Ok(*MEASURED.get_or_init(|| measured))
}

/// Ticks of the counter over the time of the clock, both read at the two ends of `span`.
fn measure_tsc_khz(span: Duration) -> io::Result<u64> {
    let (first_tick, first_time) = closest_pair()?;
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    let pause = nix::sys::time::TimeSpec::new(seconds, span.subsec_nanos().into());
    // Nothing else can say that time has passed than its passing.
    nix::time::clock_nanosleep(
        ClockId::CLOCK_MONOTONIC,
        nix::time::ClockNanosleepFlags::empty(),
        &pause,
    )?;
    let (last_tick, last_time) = closest_pair()?;
    let nanos = last_time.saturating_sub(first_time).as_nanos().max(1);
    let ticks = u128::from(last_tick.saturating_sub(first_tick));
    u64::try_from(ticks * 1_000_000 / nanos).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A tick and a time read as close together as eight tries get: an interrupt between the two readings
/// would count as drift.
fn closest_pair() -> io::Result<(u64, Duration)> {
    let mut best: Option<(u64, u64, Duration)> = None;
    for _ in 0..8 {
        let before = tick()?;
        let time: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW)?.into();
        let width = tick()?.saturating_sub(before);
        if best.is_none_or(|(narrowest, ..)| width < narrowest) {
            best = Some((width, before + width / 2, time));
        }
    }
    best.map(|(_, tick, time)| (tick, time))
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The counter now.
#[cfg(target_arch = "x86_64")]
fn tick() -> io::Result<u64> {
    // SAFETY: RDTSC reads a counter that every x86_64 processor has; it touches no memory.
    Ok(unsafe { std::arch::x86_64::_rdtsc() })
}

/// The counter now.
#[cfg(not(target_arch = "x86_64"))]
fn tick() -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_move_and_agree() {
        let first = since_boot().unwrap();
        let own = process_start_ticks(std::process::id()).unwrap();
        assert!(since_boot().unwrap() > first);
        // USER_HZ is 100 on every Linux that we know (man 5 proc says clock ticks).
        assert!(Duration::from_millis(own * 10) <= first + Duration::from_millis(10));
        assert!(unix_nanos().unwrap() > 1_700_000_000_000_000_000);
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn start_ticks_survive_an_ugly_command() {
        let tail = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 100 200";
        for command in ["(sh)", "(a b)", "(x) y)", "((()"] {
            assert_eq!(
                start_ticks(&format!("17 {command} {tail}")),
                Some(4242),
                "{command}"
            );
        }
        for broken in ["", "17", "17 (sh) S 1", "17 (sh"] {
            assert_eq!(start_ticks(broken), None);
        }
        assert_eq!(
            process_start_ticks(4_000_000).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_counter_has_a_steady_frequency() {
        let first = measure_tsc_khz(Duration::from_millis(20)).unwrap();
        let kept = tsc_khz().unwrap();
        assert_eq!(kept, tsc_khz().unwrap());
        assert!((100_000..20_000_000).contains(&kept), "{kept} kHz");
        assert!(first.abs_diff(kept) < kept / 500, "{first} and {kept}");
    }
}
