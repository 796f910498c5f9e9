//! `bench wake-storm`: thousands of clients at one sleeper, with the daemon alive and with the daemon
//! killed while their packets wait.

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::{InstanceState, MemoryPlacement};

use super::storm::{self, Storm, StormReport};
use super::{Judged, begin, end};
use crate::figures::{Figures, Row, Samples};
use crate::lab::{
    Guest, GuestSpec, Lab, Parts, TCP_PORT, UDP_PORT, checksum_errors, dropped_by_devices, sources, tick,
    wait_given_back,
};
use crate::setup::Need;

/// What a storm is, in total; half of each is IPv6.
const CONNECTIONS: usize = 2000;
const DATAGRAMS: usize = 500;
const PINGS: usize = 100;
/// All of it must have been sent within this.
const SEND_LIMIT_MS: f64 = 50.0;
/// What is not answered by then is lost.
const DEADLINE: Duration = Duration::from_secs(15);

/// By when a daemon must have started again.
const RESTART_DEADLINE: Duration = Duration::from_secs(5);

/// Whether the daemon lives through the storm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Alive,
    Killed,
}

impl Daemon {
    const fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Killed => "killed",
        }
    }

    /// The name of a count of this half of the bench.
    fn count(self, name: &str) -> String {
        match self {
            Self::Alive => name.to_owned(),
            Self::Killed => format!("{name}_daemon_killed"),
        }
    }
}

/// The counts that must stay 0, and the one that a wake of over a second, which is no fault of ours on a
/// machine that is busy with something else, makes the clients raise.
const COUNTS: [&str; 3] = ["lost", "tap_drops", "guest_checksum_errors"];
const TIMED_COUNT: &str = "syn_retransmits";

/// Runs `repetitions` storms of each half.
pub(crate) fn run(repetitions: usize, judged: Judged, json: Option<&Path>) -> Result<ExitCode> {
    let parts = Parts::ready(Need::Guests)?;
    storm::allow_sockets(16_384)?;
    let mut lab = Lab::start(parts)?;
    let mut figures = begin("wake-storm", &lab)?;
    lab.import_server()?;
    let spec = GuestSpec {
        name: "storm",
        image: "bench:latest",
        ram_mib: 256,
        placement: MemoryPlacement::Unspecified,
        idle: None,
    };
    let guest = lab.run_server(&spec)?;
    for daemon in [Daemon::Alive, Daemon::Killed] {
        half(&mut lab, &guest, daemon, repetitions, judged, &mut figures)?;
    }
    end(lab, &mut figures, "A.3")?;
    figures.finish(json)
}

/// All repetitions with the daemon alive, or killed.
fn half(
    lab: &mut Lab,
    guest: &Guest,
    daemon: Daemon,
    repetitions: usize,
    judged: Judged,
    figures: &mut Figures,
) -> Result<()> {
    let (mut connect, mut first_byte, mut sent) =
        (Samples::default(), Samples::default(), Samples::default());
    let checksums_before = guest_checksum_errors(lab, guest)?;
    let mut refused = 0;
    for repetition in 0..repetitions {
        lab.nap(guest)?;
        if repetition.is_multiple_of(2) {
            // Every second storm meets a sleeper whose memory is still being given back.
            wait_given_back(&lab.directories(), &guest.id, Duration::from_secs(60))?;
        }
        let report = match daemon {
            Daemon::Alive => storm_at(lab, guest)?,
            Daemon::Killed => storm_and_kill(lab, guest, repetition, &mut refused)?,
        };
        // Long enough for what was sent at the end to arrive.
        tick(Duration::from_millis(200));
        let drops = lab.in_data_plane(|| dropped_by_devices("dmt"))??;
        println!(
            "  {} {}: sent in {:.0} ms, first byte p50 {:.0} max {:.0} ms, lost {}, SYNs again {}, drops {drops}",
            daemon.word(),
            repetition + 1,
            report.sent_ms,
            report.first_byte.quantile(0.5),
            report.first_byte.quantile(1.0),
            report.lost,
            report.retransmits.syn,
        );
        figures.count(&daemon.count(TIMED_COUNT), report.retransmits.syn);
        figures.count(&daemon.count("lost"), report.lost);
        figures.count(&daemon.count("tap_drops"), drops);
        figures.count(&daemon.count("broken_connections"), report.broken);
        figures.count(
            &daemon.count("other_retransmits"),
            report.retransmits.all - report.retransmits.syn,
        );
        connect.extend(&report.connect);
        first_byte.extend(&report.first_byte);
        sent.push(report.sent_ms);
        let view = lab.view(guest)?;
        ensure!(
            view.state() == InstanceState::Running,
            "{} is {}",
            guest.name,
            view.state().as_str_name()
        );
    }
    let checksums = guest_checksum_errors(lab, guest)?.saturating_sub(checksums_before);
    figures.count(&daemon.count("guest_checksum_errors"), checksums);
    for (case, samples) in [
        ("storm_connect", &connect),
        ("storm_first_byte", &first_byte),
        ("storm_send", &sent),
    ] {
        figures.row(
            Row::new(case, "ms", samples)
                .param("daemon", daemon.word())
                .param("connections", CONNECTIONS)
                .param("datagrams", DATAGRAMS)
                .param("pings", PINGS),
        );
    }
    if daemon == Daemon::Killed {
        figures.count("daemon_starts_refused", refused);
    }
    judge(figures, daemon, judged, &sent);
    Ok(())
}

/// Adds the checks of a half.
fn judge(figures: &mut Figures, daemon: Daemon, judged: Judged, sent: &Samples) {
    for name in COUNTS {
        figures.check_count("A.3", &daemon.count(name), 0);
    }
    if daemon == Daemon::Killed {
        figures.check_count("A.3", "daemon_starts_refused", 0);
    }
    if judged == Judged::LossesAndTimes {
        figures.check_count("A.3", &daemon.count(TIMED_COUNT), 0);
        let what = format!("sent within, daemon {}", daemon.word());
        figures.check_at_most("A.3", &what, sent.quantile(1.0), SEND_LIMIT_MS, "ms");
    }
}

fn plan(guest: &Guest) -> Storm {
    Storm {
        tcp: CONNECTIONS,
        udp: DATAGRAMS,
        ping: PINGS,
        to: guest.addresses,
        tcp_port: TCP_PORT,
        udp_port: UDP_PORT,
        sources: sources(),
        deadline: DEADLINE,
    }
}

fn storm_at(lab: &Lab, guest: &Guest) -> Result<StormReport> {
    lab.as_client(|| storm::run(&plan(guest), || ()))?
}

/// The daemon is killed so many milliseconds after the first packet was parked: another moment of the
/// wake in every repetition.
fn storm_and_kill(lab: &mut Lab, guest: &Guest, repetition: usize, refused: &mut u64) -> Result<StormReport> {
    let clients = lab.clients()?;
    let plan = plan(guest);
    let after = Duration::from_millis(11 * repetition as u64 % 110);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(1);
        let storm = scope.spawn(move || {
            clients.within(|| {
                // A receiver that has gone has its own error to tell.
                storm::run(&plan, || {
                    let _ = send.send(());
                })
            })
        });
        receive.recv().context("the storm did not begin")?;
        if !after.is_zero() {
            tick(after);
        }
        lab.kill_daemon()?;
        // As whoever supervises it would: what refuses to start is started again.
        let killed = Instant::now();
        while let Err(error) = lab.start_daemon() {
            *refused += 1;
            if killed.elapsed() > RESTART_DEADLINE {
                return Err(error).context("starting the daemon after it was killed");
            }
        }
        match storm.join() {
            Ok(report) => report?,
            Err(_) => anyhow::bail!("the storm's thread panicked"),
        }
    })
}

fn guest_checksum_errors(lab: &Lab, guest: &Guest) -> Result<u64> {
    let text = lab.command(guest, "netstat", Duration::from_secs(20))?;
    checksum_errors(&text)
        .with_context(|| format!("no checksum errors in what {} counts:\n{text}", guest.name))
}
