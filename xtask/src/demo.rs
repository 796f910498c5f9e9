//! `demo`: from an image to a sleeper that wakes on a packet, in front of a person's eyes; then the
//! figures of sleep and wake.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::{self, InstanceState, MemoryPlacement};

use crate::bench::{begin, end, nap_wake};
use crate::figures::{Figures, Row, Samples};
use crate::lab::{
    Answer, Guest, GuestSpec, Held, ImageFile, ImageRun, Lab, Parts, http_get, ms_between, tick, zram_bytes,
};
use crate::setup::{self, Need};

/// How long the web server may be idle.
const IDLE: Duration = Duration::from_secs(3);
/// How long a client waits for its page.
const PAGE_DEADLINE: Duration = Duration::from_secs(20);
/// By when the memory must be given back.
const GIVE_BACK: Duration = Duration::from_secs(10);
/// How much of it.
const GIVE_BACK_PERCENT: f64 = 90.0;
/// How long the engine may take to put an idle guest to sleep, besides its idle time.
const ENGINE_DEADLINE: Duration = Duration::from_secs(30);

const PAGE: &str = "<h1>Dormouse</h1><p>This page was served by a guest that sleeps when nobody asks.</p>\n";

/// Runs the demo, then `rounds` wakes a size.
pub(crate) fn run(rounds: usize, json: Option<&Path>) -> Result<ExitCode> {
    println!("1. What it needs");
    let parts = Parts::ready(Need::Guests)?;
    println!("2. A private daemon");
    let lab = Lab::start(parts)?;
    let mut figures = begin("demo", &lab)?;
    let zram_before = zram_bytes()?;
    web_server(&lab, &mut figures, zram_before)?;
    println!(
        "7. Measuring {rounds} wakes at each of {:?} MiB of RAM, a third in use",
        nap_wake::SIZES_MIB
    );
    lab.import_server()?;
    let mut subjects = nap_wake::make_subjects(&lab, MemoryPlacement::Unspecified)?;
    let syn_retransmits = nap_wake::measure(&lab, &mut subjects, rounds, true, |_| Ok(()))?;
    for subject in &subjects {
        for row in subject.rows(&[]) {
            figures.row(row);
        }
    }
    nap_wake::check(&mut figures, "A.2", &subjects, syn_retransmits);
    println!("8. Removing everything");
    end(lab, &mut figures, "A.1")?;
    figures.finish(json)
}

/// The story: import, run, ask, wait, asleep, ask again.
fn web_server(lab: &Lab, figures: &mut Figures, zram_before: u64) -> Result<()> {
    println!("3. A web server from an image");
    import_web(lab)?;
    let spec = GuestSpec {
        name: "web",
        image: "web:latest",
        ram_mib: 256,
        placement: MemoryPlacement::Unspecified,
        idle: Some(IDLE),
    };
    let begun = Instant::now();
    let guest = lab.run(&spec)?;
    println!(
        "   {} runs at {} and {} after {:.1} s",
        guest.name,
        guest.addresses[0],
        guest.addresses[1],
        begun.elapsed().as_secs_f64()
    );
    println!("4. A request");
    let awake = first_page(lab, &guest)?;
    println!("   answered in {:.1} ms: {}", awake.first_byte_ms, PAGE.trim());
    let before = lab.view(&guest)?;
    let held_awake = Held::now(&lab.directories(), &guest.id, before.pid)?.total(zram_before);
    println!("5. Nobody asks");
    let asleep_at = countdown(lab, &guest)?;
    let view = lab.view(&guest)?;
    let gone = view.pid == 0 && !Path::new(&format!("/proc/{}", before.pid)).exists();
    figures.check(
        "A.1",
        "no VMM process while asleep",
        "none",
        view.pid.into(),
        gone,
    );
    let (held_asleep, after) = give_back(lab, &guest, zram_before, held_awake, asleep_at)?;
    add_memory_held(figures, held_awake, held_asleep, after);
    println!(
        "   asleep, no process; {:.1} MiB held awake, {:.1} MiB {after:.1} s later",
        mib(held_awake),
        mib(held_asleep)
    );
    println!("6. A request to the sleeper");
    let woken = page(lab, &guest, 1)?;
    println!(
        "   answered in {:.1} ms from the first SYN; nothing stood between",
        woken.first_byte_ms
    );
    let mut samples = Samples::default();
    samples.push(woken.first_byte_ms);
    figures.row(Row::new("web_wake_first_byte", "ms", &samples).param("ram_mib", spec.ram_mib));
    let again = lab.view(&guest)?;
    let counted = again.wake_count == before.wake_count + 1;
    figures.check(
        "A.1",
        "request to the sleeper answered by one wake",
        "1",
        again.wake_count.into(),
        counted,
    );
    lab.delete(&guest)
}

fn import_web(lab: &Lab) -> Result<()> {
    let busybox = setup::find_program("busybox").context("there is no busybox")?;
    let bytes = std::fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
    let run = ImageRun {
        name: "web:latest",
        entrypoint: &["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/srv/www"],
        ports: &["80/tcp"],
    };
    let files = [
        ImageFile {
            path: "bin/busybox",
            mode: 0o755,
            bytes,
        },
        ImageFile {
            path: "srv/www/index.html",
            mode: 0o644,
            bytes: PAGE.as_bytes().to_vec(),
        },
    ];
    lab.import_made(&run, &files)
}

/// The page, by IPv4 or IPv6.
fn page(lab: &Lab, guest: &Guest, turn: usize) -> Result<Answer> {
    let to = guest.at(turn, 80);
    let (answer, body) = lab.as_client(|| http_get(to, "/index.html", PAGE_DEADLINE))??;
    ensure!(body == PAGE, "another page came: {body:?}");
    Ok(answer)
}

/// The first page: a guest is ready when its agent is, its server some milliseconds later.
fn first_page(lab: &Lab, guest: &Guest) -> Result<Answer> {
    let begun = Instant::now();
    loop {
        match page(lab, guest, 0) {
            Ok(answer) => return Ok(answer),
            Err(error) if begun.elapsed() > PAGE_DEADLINE => return Err(error),
            Err(_) => tick(Duration::from_millis(50)),
        }
    }
}

/// Shows what the engine says until the guest sleeps; returns when that was seen.
fn countdown(lab: &Lab, guest: &Guest) -> Result<Instant> {
    let begun = Instant::now();
    let live = std::io::stdout().is_terminal();
    let mut said = String::new();
    loop {
        let view = lab.view(guest)?;
        let line = standing(&view);
        if line != said {
            if live {
                print!("\r   {line:60}");
                std::io::stdout().flush().context("printing")?;
            } else {
                println!("   {line}");
            }
            said = line;
        }
        if view.state() == InstanceState::Standby {
            if live {
                println!();
            }
            return Ok(Instant::now());
        }
        ensure!(
            begun.elapsed() < IDLE + ENGINE_DEADLINE,
            "{} did not fall asleep: {said}\n{}",
            guest.name,
            lab.log_tail()
        );
        tick(Duration::from_millis(100));
    }
}

/// One line on where the guest stands; the countdown in whole seconds.
fn standing(view: &v1::Instance) -> String {
    let state = view
        .state()
        .as_str_name()
        .trim_start_matches("INSTANCE_STATE_")
        .to_lowercase();
    let Some(status) = &view.standby_status else {
        return state;
    };
    match &status.countdown_remaining {
        Some(left) => format!(
            "{state}: {}, sleeps in {} s",
            status.reason,
            left.seconds + i64::from(left.nanos > 0)
        ),
        None => format!("{state}: {}", status.reason),
    }
}

/// Waits until the memory is given back, or the time for it is over; returns what is held then and how
/// many seconds that took.
fn give_back(
    lab: &Lab,
    guest: &Guest,
    zram_before: u64,
    awake: u64,
    asleep_at: Instant,
) -> Result<(u64, f64)> {
    loop {
        let held = Held::now(&lab.directories(), &guest.id, 0)?.total(zram_before);
        let elapsed = asleep_at.elapsed();
        if fall_percent(awake, held) >= GIVE_BACK_PERCENT || elapsed >= GIVE_BACK {
            return Ok((held, ms_between(asleep_at, asleep_at + elapsed) / 1e3));
        }
        tick(Duration::from_millis(50));
    }
}

fn add_memory_held(figures: &mut Figures, awake: u64, asleep: u64, after_s: f64) {
    for (when, bytes) in [("awake", awake), ("asleep", asleep)] {
        let mut samples = Samples::default();
        samples.push(mib(bytes));
        figures.row(
            Row::new("memory_held", "MiB", &samples)
                .param("when", when)
                .param("ram_mib", 256),
        );
    }
    let fall = fall_percent(awake, asleep);
    let what = format!(
        "memory_held falls within {} s (took {after_s:.1} s)",
        GIVE_BACK.as_secs()
    );
    let want = format!(">= {GIVE_BACK_PERCENT} %");
    figures.check("A.1", &what, &want, fall.into(), fall >= GIVE_BACK_PERCENT);
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// By how much it fell, in percent of what it was.
fn fall_percent(before: u64, after: u64) -> f64 {
    100.0 * (before as f64 - after as f64) / before as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_is_in_percent_of_what_was() {
        assert!((fall_percent(200, 20) - 90.0).abs() < 1e-9);
        assert!(fall_percent(100, 130) < 0.0);
        assert!(fall_percent(0, 0).is_nan());
    }

    #[test]
    fn the_countdown_is_told_in_whole_seconds() {
        let mut view = v1::Instance {
            state: InstanceState::Running.into(),
            ..Default::default()
        };
        assert_eq!(standing(&view), "running");
        let left = prost_types::Duration { seconds: 2, nanos: 1 };
        view.standby_status = Some(v1::StandbyStatus {
            reason: "idle".to_owned(),
            countdown_remaining: Some(left),
            ..Default::default()
        });
        assert_eq!(standing(&view), "running: idle, sleeps in 3 s");
    }
}
