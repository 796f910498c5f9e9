//! Wakes that the host has no memory for: their packets wait, and they wake once others have fallen asleep.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::InstanceState;

use super::LINE;
use crate::figures::{Figures, Row, Samples};
use crate::lab::{Guest, Lab, UDP_PORT, tick};

/// Who is called while there is no memory.
const CALLED: usize = 10;
/// How long they are left without it: the engine tries several times, and gives up until the next knock.
const WITHOUT: Duration = Duration::from_secs(15);
/// How long they may take once there is: the engine's longest pause, and the wakes.
const ANSWERED: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;
/// What the ledger promises to an awake guest of the bench, its process included.
const PROMISE: u64 = 160 * MIB;
/// The memory that is never promised, and how much of the rest may be, in percent (docs/configuration.md).
const FLOOR: u64 = 512 * MIB;
const PERCENT: std::ops::RangeInclusive<u64> = 10..=1000;
/// More naps than are called, for what the naps leave on tmpfs until it is copied.
const SPARE: usize = 2;

/// Calls sleepers while all memory is promised to those of `awake`, then puts some of these to sleep. Each
/// packet is sent once: nobody repeats it for the sleeper.
pub(super) fn wait_for_memory(
    lab: &mut Lab,
    awake: &[&Guest],
    asleep: &[&Guest],
    figures: &mut Figures,
) -> Result<()> {
    let info = lab.info()?;
    let hundredth = (info.memory_bytes / 100).max(1);
    // What may be promised is less than what is, by less than a hundredth of what there is.
    let percent = (awake.len() as u64 * PROMISE + FLOOR).saturating_sub(info.swap_bytes) / hundredth;
    let naps = CALLED + SPARE + usize::try_from(hundredth.div_ceil(PROMISE))?;
    ensure!(
        PERCENT.contains(&percent) && naps <= awake.len(),
        "{} guests and the memory of this host do not go together: {percent} percent, {naps} naps",
        awake.len()
    );
    lab.set("DORMOUSE_LEDGER__MEMORY_PERCENT", &percent.to_string());
    lab.kill_daemon()?;
    lab.start_daemon()?;
    let called: Vec<&Guest> = asleep.iter().copied().take(CALLED).collect();
    let to: BTreeSet<IpAddr> = (called.iter())
        .filter_map(|guest| guest.addresses.first().copied())
        .collect();
    let socket = lab.as_client(|| call(&to))??;
    tick(WITHOUT);
    let mut woken = 0;
    for guest in &called {
        let view = lab.view(guest)?;
        if view.state() != InstanceState::Standby {
            println!("{} is {} without memory", guest.name, view.state().as_str_name());
            woken += 1;
        }
    }
    figures.count("woken_without_memory", woken);
    figures.check_count(LINE, "woken_without_memory", 0);
    for guest in awake.iter().take(naps) {
        lab.nap(guest)?;
    }
    let samples = answers(&socket, &to, Instant::now())?;
    let silent = (to.len() - samples.len()) as u64;
    figures.row(
        Row::new("answered_after_refusal", "ms", &samples)
            .param("called", to.len())
            .param("without_memory_s", WITHOUT.as_secs()),
    );
    figures.count("refused_unanswered", silent);
    if silent > 0 {
        println!(
            "{silent} of {} did not answer after there was memory\n{}",
            to.len(),
            lab.log_tail()
        );
    }
    figures.check_count(LINE, "refused_unanswered", 0);
    Ok(())
}

/// Sends each one packet.
fn call(to: &BTreeSet<IpAddr>) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for address in to {
        socket
            .send_to(b"once", (*address, UDP_PORT))
            .with_context(|| format!("a packet to {address}"))?;
    }
    Ok(socket)
}

/// When who was called answered, in ms from `begun` on.
fn answers(socket: &UdpSocket, from: &BTreeSet<IpAddr>, begun: Instant) -> Result<Samples> {
    let (mut samples, mut heard, mut buffer) = (Samples::default(), BTreeSet::new(), [0; 64]);
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    while heard.len() < from.len() && begun.elapsed() < ANSWERED {
        if let Ok((_, sender)) = socket.recv_from(&mut buffer)
            && from.contains(&sender.ip())
            && heard.insert(sender.ip())
        {
            samples.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(samples)
}
