//! What the daemon is, what its host has, and the doctor's checks. Looks only; changes nothing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use dormouse_conntrack::requirements::{EventsSetting, Requirements, Tracking};
use dormouse_hypervisor::KeptPrograms;
use dormouse_instance::ledger::{Ledger, Statement};
use dormouse_model::error::chain;
use dormouse_model::spec::Placement;
use dormouse_model::{Bytes, WallTime, WorkloadId};
use dormouse_network::limits;
use dormouse_sys::netns::Namespace;

/// Facts that do not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct SystemFacts {
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Swap.
    pub swap: Bytes,
    /// Version of the VMM.
    pub driver_version: String,
    /// What runs guests: kvm or emulation.
    pub accelerator: String,
    /// Why.
    pub accelerator_reason: String,
    /// What `auto` placement means.
    pub placement: Placement,
    /// Records, images, disks.
    pub data_directory: PathBuf,
    /// Sockets and memory.
    pub run_directory: PathBuf,
    /// Where the data plane is.
    pub namespace: Option<PathBuf>,
    /// IPv4 pool.
    pub ipv4_pool: String,
    /// IPv6 prefix.
    pub ipv6_prefix: String,
    /// When the daemon started.
    pub started_at: WallTime,
    /// The boot.
    pub boot_id: String,
    /// How the guest kernel was found, or why not.
    pub guest_kernel: Result<PathBuf, String>,
    /// Which control groups are used.
    pub cgroup: String,
    /// Sleepers that the host should be set up for.
    pub sleepers: u32,
    /// What is promised to instances.
    pub ledger: Arc<Ledger>,
}

/// What a host has, read from /proc.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Swap.
    pub swap: Bytes,
}

impl HostFacts {
    /// Reads them; what cannot be read is empty or zero.
    #[must_use]
    pub fn read() -> Self {
        let line = |path: &str| {
            fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            hostname: line("/proc/sys/kernel/hostname"),
            kernel: line("/proc/sys/kernel/osrelease"),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory: meminfo_field(&meminfo, "MemTotal"),
            swap: meminfo_field(&meminfo, "SwapTotal"),
        }
    }
}

/// A field of /proc/meminfo, which counts in KiB.
fn meminfo_field(text: &str, name: &str) -> Bytes {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: u64 = line
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    Bytes(kib.saturating_mul(1024))
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but worse than it could.
    Warning,
    /// Something will not work.
    Failed,
    /// Could not be looked at.
    Skipped,
}

/// One thing that was looked at.
#[derive(Debug, Clone)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub advice: &'static str,
}

fn check(name: &'static str, verdict: Verdict, detail: String, advice: &'static str) -> Check {
    let advice = if verdict == Verdict::Ok { "" } else { advice };
    Check {
        name,
        verdict,
        detail,
        advice,
    }
}

/// Looks at everything, in the order in which things build on each other. Blocking.
#[must_use]
pub fn doctor(facts: &SystemFacts) -> Vec<Check> {
    let mut checks = vec![
        check_accelerator(facts),
        check(
            "qemu",
            if facts.driver_version.is_empty() {
                Verdict::Failed
            } else {
                Verdict::Ok
            },
            format!("version {}", facts.driver_version),
            "install qemu-system-x86",
        ),
        check_programs(facts),
        check_guest_kernel(facts),
        check_device("tun", "/dev/net/tun", "load the tun module"),
        check_placement(facts),
        check("cgroup", Verdict::Ok, facts.cgroup.clone(), ""),
    ];
    checks.extend(check_ledger(&facts.ledger.statement()));
    checks.extend(check_conntrack(facts));
    checks.extend(check_neighbours(facts.sleepers));
    checks
}

/// Instances whose records are not to be read.
#[must_use]
pub fn check_records(damaged: &[(WorkloadId, String)]) -> Check {
    let (verdict, detail) = if damaged.is_empty() {
        (Verdict::Ok, "every record of an instance can be read".to_owned())
    } else {
        let each = damaged.iter().map(|(id, why)| format!("{id}: {why}"));
        (Verdict::Failed, each.collect::<Vec<_>>().join("; "))
    };
    check(
        "records",
        verdict,
        detail,
        "save what you need from the guest, then dormouse rm -f ID",
    )
}

/// Whether what must outlive the daemon is kept.
#[must_use]
pub fn check_custody(custody: &dormouse_keeper::custody::Status) -> Check {
    let verdict = match (custody.here, custody.refused + custody.pending) {
        (true, 0) => Verdict::Ok,
        (true | false, _) => Verdict::Warning,
    };
    let detail = format!(
        "{} kept, {} to be kept or let go, {} refused, {} keepers lost",
        custody.kept, custody.pending, custody.refused, custody.losses
    );
    check(
        "keeper",
        verdict,
        detail,
        "guests survive a restart all the same; see keeper.log in the run directory",
    )
}

fn check_accelerator(facts: &SystemFacts) -> Check {
    let verdict = if facts.accelerator == "kvm" {
        Verdict::Ok
    } else {
        Verdict::Warning
    };
    let detail = format!("{}: {}", facts.accelerator, facts.accelerator_reason);
    check(
        "accelerator",
        verdict,
        detail,
        "guests are emulated: use a host whose /dev/kvm runs them",
    )
}

/// Monitors are started from the data directory: an upgrade of the host's must not strand sleepers.
fn check_programs(facts: &SystemFacts) -> Check {
    let place = facts.data_directory.join("vmm");
    let (verdict, detail) = match KeptPrograms::new(place.clone()).runnable() {
        Ok(()) => (Verdict::Ok, format!("monitors run from {}", place.display())),
        Err(error) => (Verdict::Failed, chain(&error)),
    };
    check(
        "programs",
        verdict,
        detail,
        "mount the file system of data_directory with exec, or set the key elsewhere",
    )
}

fn check_guest_kernel(facts: &SystemFacts) -> Check {
    match &facts.guest_kernel {
        Ok(path) => check("guest_kernel", Verdict::Ok, path.display().to_string(), ""),
        Err(why) => check(
            "guest_kernel",
            Verdict::Failed,
            why.clone(),
            "run: dormoused --unpack-kernel PACKAGE.deb, with a Debian cloud kernel package",
        ),
    }
}

fn check_device(name: &'static str, path: &str, advice: &'static str) -> Check {
    match fs::metadata(path) {
        Ok(_) => check(name, Verdict::Ok, path.to_owned(), ""),
        Err(error) => check(name, Verdict::Failed, format!("{path}: {error}"), advice),
    }
}

fn check_placement(facts: &SystemFacts) -> Check {
    let detail = match facts.placement {
        Placement::Spill => "no swap: memory of sleepers is spilled to the disk".to_owned(),
        Placement::Tmpfs => format!("{} of swap: memory of sleepers stays on tmpfs", facts.swap),
        Placement::Disk => "memory is a disk file, shared: a busy guest writes to the disk".to_owned(),
        Placement::Auto => "not resolved".to_owned(),
    };
    let verdict = if facts.placement == Placement::Disk {
        Verdict::Warning
    } else {
        Verdict::Ok
    };
    check("placement", verdict, detail, "set memory.placement to auto")
}

/// What is promised, beside what there is: nearly everything is a warning, before it is a refusal.
fn check_ledger(statement: &Statement) -> [Check; 3] {
    let Statement {
        supply,
        promised,
        memory_budget,
        floors,
    } = statement;
    let verdict = |used: Bytes, all: Bytes| {
        if used.0 / 9 > all.0 / 10 {
            Verdict::Warning
        } else {
            Verdict::Ok
        }
    };
    let room = Bytes(supply.disk.free.0.saturating_sub(floors.disk.0));
    let short = promised.disk > room || supply.disk.free < Bytes::gib(5);
    [
        check(
            "disk_room",
            if short { Verdict::Warning } else { Verdict::Ok },
            format!(
                "{} MiB of {} MiB free, {} MiB promised, {} MiB kept free",
                supply.disk.free.as_mib(),
                supply.disk.total.as_mib(),
                promised.disk.as_mib(),
                floors.disk.as_mib()
            ),
            "free some space: images, disks and sleepers need it",
        ),
        check(
            "memory_promised",
            verdict(promised.memory, *memory_budget),
            format!(
                "{} MiB of {} MiB promised to instances, {} MiB available now",
                promised.memory.as_mib(),
                memory_budget.as_mib(),
                supply.available.as_mib()
            ),
            "put instances to sleep or stop some: no more may start or wake soon",
        ),
        check(
            "tmpfs_promised",
            verdict(promised.ram, supply.ram.total),
            format!(
                "{} MiB of {} MiB promised to instances",
                promised.ram.as_mib(),
                supply.ram.total.as_mib()
            ),
            "put instances to sleep, or raise memory.tmpfs_size",
        ),
    ]
}

fn check_conntrack(facts: &SystemFacts) -> Vec<Check> {
    let namespace = match &facts.namespace {
        Some(path) => match Namespace::open(path) {
            Ok(namespace) => Some(namespace),
            Err(error) => {
                let detail = chain(&error);
                return vec![check(
                    "namespace",
                    Verdict::Failed,
                    detail,
                    "make the namespace or change the key",
                )];
            }
        },
        None => None,
    };
    match Requirements::check(namespace.as_ref()) {
        Ok(found) => {
            let events = if found.events == EventsSetting::Always {
                Verdict::Ok
            } else {
                Verdict::Failed
            };
            let tracked = |tracking| {
                if tracking == Tracking::Off {
                    Verdict::Failed
                } else {
                    Verdict::Ok
                }
            };
            let room = if found.entries.saturating_mul(2) > found.entries_max {
                Verdict::Warning
            } else {
                Verdict::Ok
            };
            vec![
                check(
                    "conntrack_events",
                    events,
                    format!("{:?}", found.events),
                    "set net.netfilter.nf_conntrack_events to 1",
                ),
                check(
                    "conntrack_ipv4",
                    tracked(found.tracking_v4),
                    format!("{:?}", found.tracking_v4),
                    "a rule exempts it",
                ),
                check(
                    "conntrack_ipv6",
                    tracked(found.tracking_v6),
                    format!("{:?}", found.tracking_v6),
                    "a rule exempts it",
                ),
                check(
                    "conntrack_room",
                    room,
                    format!("{} of {} entries", found.entries, found.entries_max),
                    "raise net.netfilter.nf_conntrack_max",
                ),
            ]
        }
        Err(error) => vec![check(
            "conntrack",
            Verdict::Failed,
            chain(&error),
            "see the daemon's log",
        )],
    }
}

/// The neighbour tables of both families: every sleeper that is knocked at has an entry in each.
fn check_neighbours(sleepers: u32) -> Vec<Check> {
    let sleepers = u64::from(sleepers);
    let (limits, short) = match (limits::neighbour_limits(), limits::shortfalls(sleepers)) {
        (Ok(limits), Ok(short)) => (limits, short),
        (Err(error), _) | (_, Err(error)) => {
            let skip = |name| check(name, Verdict::Skipped, chain(&error), "");
            return vec![skip("neighbours_ipv4"), skip("neighbours_ipv6")];
        }
    };
    let names = ["neighbours_ipv4", "neighbours_ipv6"];
    let mut checks: Vec<Check> = (names.into_iter().zip(limits))
        .map(|(name, limits)| {
            let folder = format!("/net/{}/", limits.family);
            let low = short
                .iter()
                .any(|limit| limit.path.to_string_lossy().contains(&folder));
            let verdict = if low { Verdict::Warning } else { Verdict::Ok };
            let [first, second, third] = limits.thresholds;
            let detail = format!("thresholds {first}, {second}, {third} for {sleepers} sleepers");
            check(name, verdict, detail, "run: dormouse setup")
        })
        .collect();
    if let Some(overflows) = crate::setup::count_overflows() {
        let verdict = if overflows > 0 {
            Verdict::Warning
        } else {
            Verdict::Ok
        };
        let detail = format!("{overflows} since the host's boot");
        let advice = "packets to sleepers were dropped; run: dormouse setup";
        checks.push(check("neighbour_overflows", verdict, detail, advice));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24684092 kB\nSwapTotal:             0 kB\nbroken";
        assert_eq!(meminfo_field(text, "MemTotal"), Bytes(24_684_092 * 1024));
        assert_eq!(meminfo_field(text, "SwapTotal"), Bytes(0));
        assert_eq!(meminfo_field(text, "Nothing"), Bytes(0));
    }
}
