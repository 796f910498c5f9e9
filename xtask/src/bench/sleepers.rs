//! `bench sleepers`: what thousands of sleepers cost a host, how soon a daemon serves that has them, that
//! nothing happens while all sleep, and that a packet to each of them waits and any of them wakes.
//!
//! Nothing boots: a stub stands in for QEMU. One sleeper is made through the API; the others are copies of
//! what it left, made while no daemon runs.

mod figures;
mod refusals;
mod thresholds;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::{self, InstanceState, MemoryPlacement};
use dormouse_network::{AddressPool, NetworkConfig};

use super::{begin, end};
use crate::build;
use crate::figures::{Figures, Row, Samples};
use crate::lab::{
    Guest, GuestSpec, ImageFile, ImageRun, Lab, Parts, Settings, UDP_PORT, cpu_ms, tick, wait_given_back,
};
use crate::setup::Need;
use figures::{kernel_memory, resident, voluntary_switches};
use thresholds::Thresholds;

/// The line of the issue.
const LINE: &str = "B.4";

/// Starts of the daemon that are measured, each after a SIGKILL.
const STARTS: usize = 5;
/// Sleepers woken one after the other.
const SINGLE_WAKES: usize = 20;
/// Sleepers woken at once.
const WAKES_AT_ONCE: usize = 200;
/// Sleepers whose packet of the scan is left to wake them.
const LEFT_PARKED: usize = 20;
/// Every so many sleepers have an IPv6 packet in the scan besides the IPv4 one.
const IPV6_EVERY: usize = 4;

/// How long a sleeper may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// How long a daemon is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(5);

/// Memory limits, in bytes.
const DAEMON_BYTES_EACH: f64 = 4096.0;
const KERNEL_BYTES_EACH: f64 = 16_384.0;
const IDLE_DAEMON_MIB: f64 = 25.0;
const START_MS: f64 = 1000.0;

/// Runs the bench with `count` sleepers, each silence lasting `idle` seconds.
pub(crate) fn run(count: u32, idle: u64, json: Option<&Path>) -> Result<ExitCode> {
    let mut parts = Parts::ready(Need::Guests)?;
    // A stub has no guest that would use its RAM: what hundreds of them are promised is never taken.
    parts.set("DORMOUSE_LEDGER__MEMORY_PERCENT", "1000");
    let settings = Settings {
        uids: count + 64,
        monitor: Some(build::stub_monitor()?),
        ..Settings::USUAL
    };
    let idle = Duration::from_secs(idle);
    let mut lab = Lab::start_with(parts, &settings)?;
    let mut figures = begin("sleepers", &lab)?;
    let empty = alone(&mut lab, idle, &mut figures)?;
    let template = template(&lab)?;
    lab.stop_daemon()?;
    let thresholds = Thresholds::raise(&lab, u64::from(count))?;
    let guests = register(&lab, &template, count)?;
    costs(&mut lab, &guests, empty, &mut figures)?;
    silence(&lab, "switches_idle_sleepers", idle, &mut figures)?;
    let socket = scan(&mut lab, &guests, &mut figures)?;
    let woken = wakes(&mut lab, &guests, &socket, &mut figures)?;
    let (awake, asleep): (Vec<_>, Vec<_>) = guests.iter().partition(|guest| woken.contains(&guest.id));
    refusals::wait_for_memory(&mut lab, &awake, &asleep, &mut figures)?;
    // The instances go with their directories: removing each through the API is another bench's matter.
    lab.kill_daemon()?;
    end(lab, &mut figures, LINE)?;
    thresholds.check_restored(&mut figures);
    figures.finish(json)
}

/// A daemon that has nothing: what it takes, and its silence. Returns its memory.
fn alone(lab: &mut Lab, idle: Duration, figures: &mut Figures) -> Result<u64> {
    // The first start of a lab makes what later ones find.
    lab.kill_daemon()?;
    lab.start_daemon()?;
    silence(lab, "switches_idle_none", idle, figures)?;
    let bytes = resident(lab.daemon_pid())?;
    let mib = bytes as f64 / f64::from(1 << 20);
    let mut samples = Samples::default();
    samples.push(mib);
    figures.row(Row::new("daemon_memory_none", "MiB", &samples));
    figures.check_at_most(LINE, "idle daemon with none", mib, IDLE_DAEMON_MIB, "MiB");
    Ok(bytes)
}

/// Counts the voluntary context switches of all threads of the daemon while nothing happens.
fn silence(lab: &Lab, count: &str, idle: Duration, figures: &mut Figures) -> Result<()> {
    tick(SETTLE);
    let before = voluntary_switches(lab.daemon_pid())?;
    tick(idle);
    let after = voluntary_switches(lab.daemon_pid())?;
    let mut total = 0;
    for (thread, (name, switches)) in &after {
        let earlier = before.get(thread).map_or(0, |(_, switches)| *switches);
        let more = switches.saturating_sub(earlier);
        if more > 0 {
            println!("  {count}: thread {thread} ({name}) {more}");
        }
        total += more;
    }
    figures.count(count, total);
    let mut samples = Samples::default();
    samples.push(total as f64);
    let row = Row::new("voluntary_switches", "count", &samples);
    figures.row(
        row.param("of", count)
            .param("seconds", idle.as_secs())
            .param("threads", after.len()),
    );
    figures.check_count(LINE, count, 0);
    Ok(())
}

/// One real sleeper: made, started, put to sleep, its memory given back and settled.
fn template(lab: &Lab) -> Result<Guest> {
    let run = ImageRun {
        name: "stub:latest",
        entrypoint: &["/bin/nothing"],
        ports: &[],
    };
    let nothing = ImageFile {
        path: "bin/nothing",
        mode: 0o755,
        bytes: b"nothing".to_vec(),
    };
    lab.import_made(&run, &[nothing])?;
    let spec = GuestSpec {
        name: "sleeper",
        image: "stub:latest",
        ram_mib: 128,
        placement: MemoryPlacement::Spill,
        idle: None,
    };
    let guest = lab.run(&spec)?;
    lab.nap(&guest)?;
    wait_given_back(&lab.directories(), &guest.id, Duration::from_secs(60))?;
    wait_settled(lab, &guest, Duration::from_secs(60))?;
    Ok(guest)
}

/// Waits until the guest's memory is known to outlive a reboot: nothing is done in the background then.
fn wait_settled(lab: &Lab, guest: &Guest, deadline: Duration) -> Result<()> {
    let begun = Instant::now();
    while !lab.view(guest)?.snapshot.is_some_and(|snapshot| snapshot.settled) {
        ensure!(
            begun.elapsed() < deadline,
            "{} is not settled after {deadline:?}\n{}",
            guest.name,
            lab.log_tail()
        );
        tick(Duration::from_millis(20));
    }
    Ok(())
}

fn register(lab: &Lab, template: &Guest, count: u32) -> Result<Vec<Guest>> {
    let begun = Instant::now();
    // The daemon's defaults (docs/configuration.md).
    let mut pool = AddressPool::new("10.78.0.0/16".parse()?, "fd78:6d6f:7573::/48".parse()?);
    let mut guests = lab.copy_sleeper(template, &mut pool, count.saturating_sub(1))?;
    guests.push(template.clone());
    println!(
        "{} sleepers registered in {:.1} s",
        guests.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(guests)
}

/// Starts the daemon several times and measures how soon it serves, and what the sleepers cost.
fn costs(lab: &mut Lab, guests: &[Guest], empty: u64, figures: &mut Figures) -> Result<()> {
    let each = |bytes: u64| bytes as f64 / guests.len() as f64;
    let kernel_before = kernel_memory()?;
    let mut first = Samples::default();
    let (took, cpu) = start(lab, guests)?;
    first.push(took);
    let row = Row::new("start_to_serving_first", "ms", &first);
    figures.row(row.param("sleepers", guests.len()).cpu_ms(cpu));
    tick(SETTLE);
    let kernel = each(kernel_memory()?.saturating_sub(kernel_before));
    let (mut again, mut cpu) = (Samples::default(), 0.0);
    for _ in 0..STARTS {
        lab.kill_daemon()?;
        let (took, spent) = start(lab, guests)?;
        again.push(took);
        cpu += spent / STARTS as f64;
    }
    let row = Row::new("start_to_serving", "ms", &again);
    figures.row(row.param("sleepers", guests.len()).cpu_ms(cpu));
    let slowest = again.quantile(1.0).max(first.quantile(1.0));
    figures.check_at_most(
        LINE,
        "process start to serving, the slowest",
        slowest,
        START_MS,
        "ms",
    );
    tick(SETTLE);
    let daemon = each(resident(lab.daemon_pid())?.saturating_sub(empty));
    for (case, bytes, most) in [
        ("daemon_memory_each", daemon, DAEMON_BYTES_EACH),
        ("kernel_memory_each", kernel, KERNEL_BYTES_EACH),
    ] {
        let mut samples = Samples::default();
        samples.push(bytes);
        figures.row(Row::new(case, "bytes", &samples).param("sleepers", guests.len()));
        figures.check_at_most(LINE, case, bytes, most, "bytes");
    }
    check_states(lab, guests.len(), 0, figures)?;
    lab.call(|client| async move { Ok(client.system().get_info(v1::GetInfoRequest {}).await?) })?;
    tick(SETTLE);
    let listed = each(resident(lab.daemon_pid())?.saturating_sub(empty));
    let mut samples = Samples::default();
    samples.push(listed);
    let case = "daemon_memory_each_listed";
    figures.row(Row::new(case, "bytes", &samples).param("sleepers", guests.len()));
    figures.check_at_most(LINE, case, listed, DAEMON_BYTES_EACH, "bytes");
    Ok(())
}

/// From the start of the process until a Get of the last sleeper is answered, in ms; and what the daemon
/// has used of processors by then, likewise.
fn start(lab: &mut Lab, guests: &[Guest]) -> Result<(f64, f64)> {
    let last = guests.last().context("there are no sleepers")?;
    let begun = Instant::now();
    lab.start_daemon()?;
    let view = lab.view(last)?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let cpu = cpu_ms(lab.daemon_pid(), true);
    ensure!(
        view.state() == InstanceState::Standby,
        "{} is {} ({})\n{}",
        last.name,
        view.state().as_str_name(),
        view.state_reason,
        lab.log_tail()
    );
    Ok((took, cpu))
}

/// Counts states through the API.
fn check_states(lab: &Lab, total: usize, awake: usize, figures: &mut Figures) -> Result<()> {
    let (mut standby, mut running, mut other) = (0, 0, 0);
    for instance in list(lab)? {
        match instance.state() {
            InstanceState::Standby => standby += 1,
            InstanceState::Running => running += 1,
            state => {
                println!(
                    "{} is {}: {}",
                    instance.name,
                    state.as_str_name(),
                    instance.state_reason
                );
                other += 1;
            }
        }
    }
    let got = format!("{standby} asleep, {running} awake, {other} other");
    let want = format!("{} asleep, {awake} awake, 0 other", total - awake);
    let ok = got == want;
    figures.check(LINE, "census of the API", &want, got.into(), ok);
    Ok(())
}

fn list(lab: &Lab) -> Result<Vec<v1::Instance>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListInstancesRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page =
            lab.call(
                |client| async move { Ok(client.instances().list_instances(request).await?.into_inner()) },
            )?;
        all.extend(page.instances);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

/// The sockets of the scan, one a family: the answers come back to them.
struct Scan {
    sockets: [UdpSocket; 2],
    left: BTreeSet<IpAddr>,
}

/// Kills the daemon and sends one packet to each sleeper: all must wait. All but a few are taken back, so
/// that not ten thousand machines run at once afterwards.
fn scan(lab: &mut Lab, guests: &[Guest], figures: &mut Figures) -> Result<Scan> {
    lab.kill_daemon()?;
    let before = kernel_memory()?;
    let drops_before = dormouse_network::limits::parked_drops()?;
    let (sockets, sent) = lab.as_client(|| send_to_all(guests))??;
    tick(Duration::from_millis(500));
    let parked = lab.in_data_plane(parked)??;
    let drops = dormouse_network::limits::parked_drops()?;
    let bytes = kernel_memory()?.saturating_sub(before) as f64 / guests.len() as f64;
    let mut samples = Samples::default();
    samples.push(bytes);
    figures.row(Row::new("kernel_memory_each_parked", "bytes", &samples).param("packets", sent.len()));
    figures.count("scan_packets", sent.len() as u64);
    let missing = sent.iter().filter(|address| !parked.contains(address)).count();
    figures.count("scan_not_parked", missing as u64);
    figures.check_count(LINE, "scan_not_parked", 0);
    figures.count("neighbour_overflows", drops.table_full - drops_before.table_full);
    figures.check_count(LINE, "neighbour_overflows", 0);
    let left: BTreeSet<IpAddr> = spread(guests, LEFT_PARKED, 3)
        .filter_map(|guest| guest.addresses.first().copied())
        .collect();
    lab.in_data_plane(|| take_back(&parked, &left))??;
    Ok(Scan { sockets, left })
}

/// `count` guests spread over all of them, beginning with number `from`.
fn spread(guests: &[Guest], count: usize, from: usize) -> impl Iterator<Item = &Guest> {
    let stride = (guests.len() / count.max(1)).max(1);
    guests.iter().skip(from).step_by(stride).take(count)
}

fn send_to_all(guests: &[Guest]) -> Result<([UdpSocket; 2], Vec<IpAddr>)> {
    let sockets = [UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("[::]:0")?];
    let mut sent = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let families = if number.is_multiple_of(IPV6_EVERY) { 2 } else { 1 };
        for (socket, address) in sockets.iter().zip(guest.addresses).take(families) {
            socket
                .send_to(b"anybody there?", (address, UDP_PORT))
                .with_context(|| format!("a packet to {address}"))?;
            sent.push(address);
        }
    }
    Ok((sockets, sent))
}

/// The device that sleepers park on.
fn parking_device() -> String {
    NetworkConfig::default().parking_device()
}

/// The addresses that packets wait for, in the namespace of the calling thread.
fn parked() -> Result<BTreeSet<IpAddr>> {
    let output = Command::new("ip")
        .args(["neigh", "show", "dev", &parking_device(), "nud", "incomplete"])
        .output()
        .context("listing neighbours")?;
    ensure!(
        output.status.success(),
        "ip neigh: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect())
}

/// Drops what waits for all of `parked` but `left`.
fn take_back(parked: &BTreeSet<IpAddr>, left: &BTreeSet<IpAddr>) -> Result<()> {
    let device = parking_device();
    for family in ["-4", "-6"] {
        let lines: String = parked
            .difference(left)
            .filter(|address| address.is_ipv4() == (family == "-4"))
            .map(|address| format!("neigh del {address} dev {device}\n"))
            .collect();
        let mut child = Command::new("ip")
            .args([family, "-force", "-batch", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .context("starting ip")?;
        if let Some(mut input) = child.stdin.take() {
            std::io::Write::write_all(&mut input, lines.as_bytes())?;
        }
        let status = child.wait()?;
        ensure!(status.success(), "taking parked packets back: {status}");
    }
    Ok(())
}

/// Wakes some by what waited for them, some one by one, many at once. Returns the ids of all of them.
fn wakes(lab: &mut Lab, guests: &[Guest], scan: &Scan, figures: &mut Figures) -> Result<BTreeSet<String>> {
    lab.start_daemon()?;
    let answered = collect(&scan.sockets, &scan.left)?;
    figures.count("parked_unanswered", (scan.left.len() - answered) as u64);
    figures.check_count(LINE, "parked_unanswered", 0);
    let (mut single, mut lost) = (Samples::default(), 0);
    for (turn, guest) in spread(guests, SINGLE_WAKES, 5).enumerate() {
        match lab.as_client(|| ask(guest.at(turn, UDP_PORT)))?? {
            Some(ms) => single.push(ms),
            None => {
                println!("{} did not answer\n{}", guest.name, lab.log_tail());
                lost += 1;
            }
        }
    }
    figures.row(Row::new("wake_single", "ms", &single));
    let crowd: Vec<&Guest> = spread(guests, WAKES_AT_ONCE, 7).collect();
    let (many, silent) = lab.as_client(|| ask_all(&crowd))??;
    figures.row(Row::new("wake_at_once", "ms", &many).param("guests", crowd.len()));
    figures.count("wakes_unanswered", lost + silent);
    if silent > 0 {
        println!("{silent} of {} did not answer\n{}", crowd.len(), lab.log_tail());
    }
    figures.check_count(LINE, "wakes_unanswered", 0);
    let woken: BTreeSet<String> = spread(guests, LEFT_PARKED, 3)
        .chain(spread(guests, SINGLE_WAKES, 5))
        .chain(crowd.iter().copied())
        .map(|guest| guest.id.clone())
        .collect();
    tick(Duration::from_secs(1));
    check_states(lab, guests.len(), woken.len(), figures)?;
    Ok(woken)
}

/// Waits for the answers of all in `left`; how many came.
fn collect(sockets: &[UdpSocket; 2], left: &BTreeSet<IpAddr>) -> Result<usize> {
    let begun = Instant::now();
    let mut heard = BTreeSet::new();
    let mut buffer = [0; 64];
    let [socket, _] = sockets;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    while heard.len() < left.len() && begun.elapsed() < ANSWER_DEADLINE {
        if let Ok((_, from)) = socket.recv_from(&mut buffer)
            && left.contains(&from.ip())
        {
            heard.insert(from.ip());
        }
    }
    Ok(heard.len())
}

/// Sends a datagram and waits for its echo, in ms.
fn ask(to: SocketAddr) -> Result<Option<f64>> {
    let begun = Instant::now();
    let socket = asked(to)?;
    socket.set_read_timeout(Some(ANSWER_DEADLINE))?;
    Ok(socket
        .recv(&mut [0; 64])
        .is_ok()
        .then(|| begun.elapsed().as_secs_f64() * 1e3))
}

fn asked(to: SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket
        .send(b"there?")
        .with_context(|| format!("a packet to {to}"))?;
    Ok(socket)
}

/// Asks all at once; the times of those that answered, and how many did not.
fn ask_all(guests: &[&Guest]) -> Result<(Samples, u64)> {
    let begun = Instant::now();
    let sockets: Vec<UdpSocket> = guests
        .iter()
        .enumerate()
        .map(|(turn, guest)| asked(guest.at(turn, UDP_PORT)))
        .collect::<Result<_>>()?;
    let (mut samples, mut silent) = (Samples::default(), 0);
    std::thread::scope(|scope| {
        let waits: Vec<_> = sockets
            .iter()
            .map(|socket| {
                scope.spawn(move || {
                    socket.set_read_timeout(Some(ANSWER_DEADLINE)).ok()?;
                    socket.recv(&mut [0; 64]).ok()?;
                    Some(begun.elapsed().as_secs_f64() * 1e3)
                })
            })
            .collect();
        for wait in waits {
            match wait.join() {
                Ok(Some(ms)) => samples.push(ms),
                Ok(None) | Err(_) => silent += 1,
            }
        }
    });
    Ok((samples, silent))
}
