//! Messages to the daemon's netlink sockets from a process that may administer the network, and so may
//! send to them: they come from a port that is not the kernel's, and count for nothing.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::InstanceState as State;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

use super::super::bed::Bed;
use super::super::guests::{Verb, small};
use super::{AREA, ASK, ERROR, destination, entry, message, neighbour, saying, tuple};
use crate::lab::tick;

/// `RTNLGRP_NEIGH`, `NFNLGRP_CONNTRACK_NEW` as numbers of groups.
const NEIGHBOURS: u32 = 3;
const ENTRIES: u32 = 1;

/// How long a sleeper must stay asleep after a knock that was none.
const STAYS: Duration = Duration::from_millis(700);

/// Messages a socket: its buffer must not be full of them when the kernel answers.
const FEW: u32 = 16;

/// Sends forged messages at a sleeper, and at every socket in the data plane.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    let asleep = bed.asleep("sleeper")?;
    let addresses = asleep.addresses.clone().unwrap_or_default();
    let ipv4: IpAddr = addresses.ipv4.parse().context("reading the sleeper's address")?;
    let IpAddr::V4(ipv4) = ipv4 else {
        anyhow::bail!("{ipv4} is no IPv4 address");
    };
    let address = ipv4.octets();
    bed.case(AREA, "a knock of a user's", "OK", |bed| {
        let sent = bed.lab.in_data_plane(|| -> Result<()> {
            for device in devices()? {
                to_group(
                    NETLINK_ROUTE,
                    NEIGHBOURS,
                    &neighbour(ASK, device, &[destination(&address)]),
                )?;
            }
            Ok(())
        })?;
        sent?;
        sleeps_on(bed)
    })?;
    bed.case(AREA, "a flow of a user's", "OK", |bed| {
        let forged = entry(&[
            tuple(1, &[192, 0, 2, 1], &address),
            tuple(2, &address, &[192, 0, 2, 1]),
        ]);
        let sent = bed
            .lab
            .in_data_plane(|| to_group(NETLINK_NETFILTER, ENTRIES, &forged))?;
        sent?;
        sleeps_on(bed)
    })?;
    for (name, of) in WORDS {
        bed.case(AREA, &format!("{name} at every socket"), "OK", |bed| {
            let sent = bed.lab.in_data_plane(|| to_all(*of))??;
            ensure!(sent > 0, "no socket was found");
            sleeps_on(bed)?;
            // What is asked of the kernel next is answered by the kernel.
            let made = bed.create(small("next"))?;
            bed.until(&made.id, &[State::Running])?;
            bed.remove(&made.id)
        })?;
    }
    bed.case(AREA, "the sleeper wakes after all that", "OK", |bed| {
        bed.ask(Verb::Wake, "sleeper", "")
    })?;
    bed.remove("sleeper")
}

/// What is said to every socket, for a sequence number.
type Word = fn(u32) -> Vec<u8>;

const WORDS: &[(&str, Word)] = &[
    ("a refusal", |sequence| {
        numbered(message(ERROR, 0, &(-1_i32).to_ne_bytes()), sequence)
    }),
    ("an end", |sequence| {
        numbered(message(3, 0, &0_i32.to_ne_bytes()), sequence)
    }),
    ("a loss", |sequence| numbered(message(4, 0, &[]), sequence)),
    ("a length of 4 GiB", |sequence| {
        numbered(saying(u32::MAX, ASK, 0, &[0; 32]), sequence)
    }),
    ("one byte", |_| vec![0]),
];

/// The message with this sequence number.
fn numbered(mut bytes: Vec<u8>, sequence: u32) -> Vec<u8> {
    if let Some(place) = bytes.get_mut(8..12) {
        place.copy_from_slice(&sequence.to_ne_bytes());
    }
    bytes
}

/// The sleeper does not move.
fn sleeps_on(bed: &Bed) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < STAYS {
        let now = bed.instance("sleeper")?;
        ensure!(
            now.state() == State::Standby,
            "it is {} by a message that is not the kernel's",
            now.state().as_str_name()
        );
        tick(Duration::from_millis(20));
    }
    Ok(())
}

/// The numbers of the devices here.
fn devices() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for interface in nix::net::if_::if_nameindex()?.iter() {
        found.push(interface.index());
    }
    Ok(found)
}

/// Sends to a group, and makes sure that whoever listens to it gets it, from a port that is not 0.
fn to_group(protocol: isize, group: u32, bytes: &[u8]) -> Result<()> {
    let mut witness = Socket::new(protocol)?;
    witness.bind_auto()?;
    witness.add_membership(group)?;
    witness.set_non_blocking(true)?;
    let mut speaker = Socket::new(protocol)?;
    speaker.bind_auto()?;
    // Bit n - 1 is group n. A message to a group goes to the kernel as well, which refuses it.
    let _refused_by_the_kernel = speaker.send_to(bytes, &SocketAddr::new(0, 1 << (group - 1)), 0);
    loop {
        let mut buffer = Vec::with_capacity(64 << 10);
        let (_, sender) = witness
            .recv_from(&mut buffer, 0)
            .context("nobody who listens to the group got it")?;
        if sender.port_number() != 0 {
            ensure!(buffer == bytes, "the group got something else");
            return Ok(());
        }
    }
}

/// Sends to every netlink socket of these two protocols in this namespace; returns how many messages were
/// taken.
fn to_all(word: Word) -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netlink").context("listing netlink sockets")?;
    let mut sent = 0;
    for line in text.lines().skip(1) {
        // sk, protocol, port.
        let mut columns = line.split_whitespace().skip(1);
        let protocol = columns.next().and_then(|column| column.parse::<isize>().ok());
        let port = columns.next().and_then(|column| column.parse::<u32>().ok());
        let (Some(protocol), Some(port)) = (protocol, port) else {
            continue;
        };
        if port == 0 || ![NETLINK_ROUTE, NETLINK_NETFILTER].contains(&protocol) {
            continue;
        }
        let speaker = Socket::new(protocol)?;
        speaker.set_non_blocking(true)?;
        for sequence in 0..FEW {
            // A socket may close meanwhile, or have no room.
            if speaker
                .send_to(&word(sequence), &SocketAddr::new(port, 0), 0)
                .is_ok()
            {
                sent += 1;
            }
        }
    }
    Ok(sent)
}
