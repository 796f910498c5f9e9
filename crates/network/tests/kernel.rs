//! The data plane against the real kernel. Needs root; makes its own namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends by panicking"
)]

mod bed;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bed::{Bed, Daemon, inside, need, numbers, readable, receive, run, send, until, workload};
use dormouse_model::{Bytes, Fault, Kind};
use dormouse_network::{Expected, Found, Link, LinkState, NetworkError};

/// A link that is open on a tap of which the caller plays the VMM.
async fn awake(daemon: &Daemon, number: usize) -> (Link, OwnedFd) {
    let (id, addresses) = workload(number);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    let tap = link.make_tap().await.unwrap();
    link.open().await.unwrap();
    (link, tap)
}

/// Sends `count` datagrams, half of them IPv6, and says what each family should see.
fn send_both(bed: &Bed, link: &Link, count: u32) -> [(IpAddr, Vec<u32>); 2] {
    link.addresses().both().map(|to| {
        send(&bed.client, to, 0..count / 2, None);
        (to, (0..count / 2).collect())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_sleeper_is_released_whole_and_in_order() {
    let Some(bed) = need("what_waits_for_a_sleeper_is_released_whole_and_in_order") else {
        return;
    };
    let mut daemon = bed.open().await;
    let (id, addresses) = workload(0);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    for count in [500, 9_000] {
        let expected = send_both(&bed, &link, count);
        let knock = daemon.knock().await;
        assert_eq!(knock.workload, id);
        assert!(addresses.both().contains(&knock.address));
        let began = Instant::now();
        let tap = link.make_tap().await.unwrap();
        let made = began.elapsed();
        assert!(
            !readable(&tap, Duration::ZERO),
            "packets came before the guest runs"
        );
        let began = Instant::now();
        link.open().await.unwrap();
        println!(
            "{count} packets: tap made in {made:?}, released in {:?}",
            began.elapsed()
        );
        let frames = receive(&tap, count as usize);
        assert!(frames.iter().all(|frame| frame.to_mac == addresses.mac.0));
        for (to, sent) in expected {
            assert_eq!(numbers(&frames, to), sent);
        }
        assert_eq!(link.counters().await.unwrap().received_by_guest, u64::from(count));
        link.drop_tap().await.unwrap();
        assert_eq!(link.state(), LinkState::Parked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_parks_late_is_let_in() {
    let Some(bed) = need("who_parks_late_is_let_in") else {
        return;
    };
    let daemon = bed.open().await;
    let (link, tap) = awake(&daemon, 0).await;
    for state in ["releasing", "open"] {
        if state == "open" {
            until("the link has settled", || link.state() == LinkState::Open).await;
            let left =
                run(&bed.plane, "ip neigh show dev dmp0") + &run(&bed.plane, "ip -6 neigh show dev dmp0");
            assert_eq!(left.trim(), "", "the parking device has forgotten the workload");
        } else {
            assert!(matches!(link.state(), LinkState::Releasing { .. }));
        }
        // Bound to the parking device, as a packet that was routed before the routes moved.
        for to in link.addresses().both() {
            send(&bed.plane, to, 0..20, Some("dmp0"));
            assert_eq!(
                numbers(&receive(&tap, 20), to),
                (0..20).collect::<Vec<_>>(),
                "{state}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_shut_and_drain_nothing_comes() {
    let Some(bed) = need("after_shut_and_drain_nothing_comes") else {
        return;
    };
    let mut daemon = bed.open().await;
    let (link, tap) = awake(&daemon, 0).await;
    let [to, _] = link.addresses().both();
    send(&bed.client, to, 0..10, None);
    until("the packets are queued", || readable(&tap, Duration::ZERO)).await;
    link.shut().await.unwrap();
    let stuck = link.drained(Duration::from_millis(100)).await;
    assert!(matches!(stuck, Err(NetworkError::NotDrained { .. })), "{stuck:?}");
    assert_eq!(receive(&tap, 10).len(), 10);
    let began = Instant::now();
    let counters = link.drained(bed::DEADLINE).await.unwrap();
    println!("drained in {:?}", began.elapsed());
    assert_eq!(counters.received_by_guest, 10);
    assert!(link.untouched_since(&counters).await.unwrap());

    send(&bed.client, to, 10..20, None);
    daemon.knock().await;
    assert!(!readable(&tap, Duration::ZERO));
    assert!(link.untouched_since(&counters).await.unwrap());
    // Interrupted before the commit: the same tap again, nothing lost.
    link.open().await.unwrap();
    assert!(!link.untouched_since(&counters).await.unwrap(), "they are queued");
    assert_eq!(numbers(&receive(&tap, 10), to), (10..20).collect::<Vec<_>>());
    link.shut().await.unwrap();
    assert!(!link.untouched_since(&counters).await.unwrap(), "they were read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_sleepers_and_their_packets() {
    let Some(bed) = need("a_restart_finds_sleepers_and_their_packets") else {
        return;
    };
    let (id, addresses) = workload(0);
    let mut daemon = bed.open().await;
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    let expected = send_both(&bed, &link, 100);
    daemon.knock().await;
    drop((daemon, link));

    let mut daemon = bed.open().await;
    let adopted = daemon.plane.adopt(id, addresses, Expected::Parked).await.unwrap();
    assert_eq!(adopted.found, Found::AsExpected);
    let began = Instant::now();
    daemon.plane.sweep().await.unwrap();
    assert_eq!(daemon.knock().await.workload, id);
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "by the listing, not by the kernel's repetition"
    );
    let tap = adopted.link.make_tap().await.unwrap();
    adopted.link.open().await.unwrap();
    let frames = receive(&tap, 100);
    for (to, sent) in expected {
        assert_eq!(numbers(&frames, to), sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_finds_running_guests() {
    let Some(bed) = need("a_restart_finds_running_guests") else {
        return;
    };
    let (id, addresses) = workload(0);
    let to = addresses.both()[1];
    let daemon = bed.open().await;
    let (link, tap) = awake(&daemon, 0).await;
    until("the link has settled", || link.state() == LinkState::Open).await;
    drop((daemon, link));
    send(&bed.client, to, 0..5, None);
    assert_eq!(receive(&tap, 5).len(), 5, "no daemon, no difference");

    let daemon = bed.open().await;
    let expected = Expected::Open {
        tap: Some(tap.try_clone().unwrap()),
    };
    let adopted = daemon.plane.adopt(id, addresses, expected).await.unwrap();
    assert_eq!(adopted.found, Found::AsExpected);
    assert_eq!(daemon.plane.sweep().await.unwrap().taps, 0);
    send(&bed.client, to, 5..10, None);
    assert_eq!(numbers(&receive(&tap, 5), to), [5, 6, 7, 8, 9]);
    adopted.link.shut().await.unwrap();
    assert_eq!(
        adopted
            .link
            .drained(bed::DEADLINE)
            .await
            .unwrap()
            .received_by_guest,
        10
    );
    drop((daemon, adopted));

    // A second restart, told that it dozes; then the VMM dies while no daemon looks.
    let daemon = bed.open().await;
    let wrong = Expected::Shut {
        tap: Some(std::fs::File::open("/dev/null").unwrap().into()),
    };
    let refused = daemon.plane.adopt(id, addresses, wrong).await;
    assert!(
        matches!(refused, Err(NetworkError::NotItsTap { .. })),
        "{refused:?}"
    );
    let adopted = daemon
        .plane
        .adopt(id, addresses, Expected::Shut { tap: None })
        .await
        .unwrap();
    assert_eq!(
        (adopted.found, adopted.link.state()),
        (Found::AsExpected, LinkState::Parked)
    );
    let missing = adopted.link.drained(bed::DEADLINE).await;
    assert!(matches!(missing, Err(NetworkError::DescriptorMissing { .. })));
    adopted.link.open().await.unwrap();
    drop((daemon, adopted, tap));
    send(&bed.client, to, 10..15, None);

    let mut daemon = bed.open().await;
    let adopted = daemon
        .plane
        .adopt(id, addresses, Expected::Open { tap: None })
        .await
        .unwrap();
    assert_eq!(
        (adopted.found, adopted.link.state()),
        (Found::TapMissing, LinkState::Parked)
    );
    send(&bed.client, to, 15..20, None);
    assert_eq!(daemon.knock().await.workload, id);
    let tap = adopted.link.make_tap().await.unwrap();
    adopted.link.open().await.unwrap();
    assert_eq!(receive(&tap, 5).last().unwrap().number(), 19);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_takes_what_nobody_owns_and_nothing_else() {
    let Some(bed) = need("a_sweep_takes_what_nobody_owns_and_nothing_else") else {
        return;
    };
    let daemon = bed.open().await;
    let before = bed.census();
    let (kept, kept_tap) = awake(&daemon, 0).await;
    until("the link has settled", || kept.state() == LinkState::Open).await;
    let with_one = bed.census();
    let (_, orphan_tap) = awake(&daemon, 1).await;
    let (id, addresses) = workload(2);
    let sleeper = daemon.plane.attach(id, addresses).await.unwrap();
    send_both(&bed, &sleeper, 10);
    drop((daemon, sleeper));

    let daemon = bed.open().await;
    let (id, addresses) = workload(0);
    let expected = Expected::Open {
        tap: Some(kept_tap.try_clone().unwrap()),
    };
    let adopted = daemon.plane.adopt(id, addresses, expected).await.unwrap();
    let swept = daemon.plane.sweep().await.unwrap();
    assert_eq!((swept.taps, swept.routes), (1, 4), "{swept:?}");
    until("the link has settled", || adopted.link.state() == LinkState::Open).await;
    assert_eq!(bed.census(), with_one);
    assert_eq!(
        daemon.plane.sweep().await.unwrap(),
        dormouse_network::Swept::default()
    );
    adopted.link.remove().await.unwrap();
    assert_eq!(bed.census(), before);
    drop(orphan_tap);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_leaves_nothing() {
    let Some(bed) = need("removing_leaves_nothing") else {
        return;
    };
    let untouched = bed.census();
    let daemon = bed.open().await;
    let before = bed.census();
    let (id, addresses) = workload(0);
    for step in 0..4 {
        let link = daemon.plane.attach(id, addresses).await.unwrap();
        let taken = daemon.plane.attach(id, addresses).await;
        assert_eq!(taken.unwrap_err().kind(), Kind::Exists);
        let mut tap = None;
        if step >= 1 {
            send_both(&bed, &link, 20);
        }
        if step >= 2 {
            tap = Some(link.make_tap().await.unwrap());
        }
        if step >= 3 {
            link.open().await.unwrap();
        }
        link.remove().await.unwrap();
        link.remove().await.unwrap();
        assert_eq!(bed.census(), before, "after step {step}");
        assert!(daemon.plane.link(id).is_none());
        assert_eq!(link.open().await.unwrap_err().kind(), Kind::WrongState);
        drop(tap);
    }
    daemon.plane.tear_down().await.unwrap();
    assert_eq!(bed.census(), untouched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_is_not_touched() {
    let Some(bed) = need("what_is_not_ours_is_not_touched") else {
        return;
    };
    let in_the_way = |error: NetworkError, name: &str| {
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains(name), "{error}");
    };
    run(&bed.plane, "ip link add dmp1 type veth peer name other");
    in_the_way(bed.try_open().await.err().unwrap(), "dmp1");
    run(&bed.plane, "ip link set dmp1 alias dormouse:somebody-else");
    in_the_way(bed.try_open().await.err().unwrap(), "dmp1");
    run(&bed.plane, "ip link delete dmp1");
    run(&bed.plane, "nft add table inet dormouse_dm");
    in_the_way(bed.try_open().await.err().unwrap(), "dormouse_dm");
    run(&bed.plane, "nft delete table inet dormouse_dm");

    let daemon = bed.open().await;
    let (id, addresses) = workload(0);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    run(
        &bed.plane,
        &format!("ip tuntap add mode tap name {}", link.tap_name()),
    );
    in_the_way(link.make_tap().await.unwrap_err(), &link.tap_name());
    run(
        &bed.plane,
        &format!("ip tuntap del mode tap name {}", link.tap_name()),
    );
    // A tap of ours that somebody still holds is in nobody's way.
    let old = link.make_tap().await.unwrap();
    drop((daemon, link));
    let daemon = bed.open().await;
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    let new = link.make_tap().await.unwrap();
    link.open().await.unwrap();
    send(&bed.client, addresses.both()[0], 0..3, None);
    assert_eq!(receive(&new, 3).len(), 3);
    drop(old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_itself_may_be_the_client() {
    let Some(bed) = need("the_host_itself_may_be_the_client") else {
        return;
    };
    // No other address than the data plane's own.
    run(&bed.plane, "ip link delete h0");
    let mut daemon = bed.open().await;
    let (id, addresses) = workload(0);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    let sources: [IpAddr; 2] = ["169.254.1.1".parse().unwrap(), "fd78::1".parse().unwrap()];
    for to in addresses.both() {
        send(&bed.plane, to, 0..50, None);
    }
    assert_eq!(daemon.knock().await.workload, id);
    let tap = link.make_tap().await.unwrap();
    link.open().await.unwrap();
    let frames = receive(&tap, 100);
    for (to, source) in addresses.both().into_iter().zip(sources) {
        assert_eq!(numbers(&frames, to), (0..50).collect::<Vec<_>>());
        assert!(
            frames
                .iter()
                .filter(|frame| frame.to == to)
                .all(|frame| frame.source == source),
            "{source}"
        );
    }
    // Awake, the host comes from the same addresses.
    for (to, source) in addresses.both().into_iter().zip(sources) {
        send(&bed.plane, to, 0..1, None);
        assert_eq!(receive(&tap, 1)[0].source, source);
    }
    // Each flow was tracked once, though its packets came in twice.
    let tracked = inside(&bed.plane, || {
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")
    });
    match tracked {
        Ok(text) => assert_eq!(
            text.lines().filter(|line| line.contains("udp")).count(),
            4,
            "{text}"
        ),
        Err(error) => println!("skipped: the count of tracked flows: {error}"),
    }
}

/// A datagram from a guest to the host, with the header of the tap, without checksums.
fn from_guest(source: [u8; 4], to: [u8; 4], mac: [u8; 6], port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.into_iter().chain(to));
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(u16::try_from(folded).unwrap())).to_be_bytes());
    packet.extend([0x1b, 0x59]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    let mut frame = vec![0; 12];
    frame.extend([0x02, 0xd0, 0, 0, 0, 0x01]);
    frame.extend(mac);
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sends_from_its_own_address_only_even_while_it_is_shut() {
    let Some(bed) = need("a_guest_sends_from_its_own_address_only_even_while_it_is_shut") else {
        return;
    };
    let daemon = bed.open().await;
    let (link, tap) = awake(&daemon, 0).await;
    let (_sleeper, _) = workload(1);
    let server = inside(&bed.client, || {
        let socket = std::net::UdpSocket::bind("10.99.0.2:7777").unwrap();
        socket.set_read_timeout(Some(bed::DEADLINE)).unwrap();
        socket
    });
    let addresses = link.addresses();
    let mut datagram = [0; 64];
    for shut in [false, true] {
        if shut {
            link.shut().await.unwrap();
        }
        // The first two must not arrive; the third proves that they would have by now.
        for source in [
            workload(1).1.ipv4.octets(),
            [10, 99, 0, 1],
            addresses.ipv4.octets(),
        ] {
            let frame = from_guest(source, [10, 99, 0, 2], addresses.mac.0, 7777);
            nix::unistd::write(&tap, &frame).unwrap();
        }
        let (_, from) = server.recv_from(&mut datagram).unwrap();
        // Behind the host's address: the guest's is private.
        assert_eq!(from.ip(), "10.99.0.1".parse::<IpAddr>().unwrap(), "shut: {shut}");
        server.set_nonblocking(true).unwrap();
        assert!(
            server.recv_from(&mut datagram).is_err(),
            "a spoofed datagram arrived, shut: {shut}"
        );
        server.set_nonblocking(false).unwrap();
    }
    let dropped = run(&bed.plane, "nft list chain inet dormouse_dm ingress");
    assert!(dropped.contains("counter packets 4 "), "{dropped}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_takes_less_than_a_blink() {
    let Some(bed) = need("a_step_takes_less_than_a_blink") else {
        return;
    };
    let daemon = bed.open().await;
    let (id, addresses) = workload(0);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    let mut times = [const { Vec::new() }; 5];
    for _ in 0..50 {
        let mut lap = Instant::now();
        let mut note =
            |times: &mut Vec<Duration>| times.push(std::mem::replace(&mut lap, Instant::now()).elapsed());
        let tap = link.make_tap().await.unwrap();
        note(&mut times[0]);
        link.open().await.unwrap();
        note(&mut times[1]);
        link.counters().await.unwrap();
        note(&mut times[2]);
        link.shut().await.unwrap();
        note(&mut times[3]);
        link.drop_tap().await.unwrap();
        note(&mut times[4]);
        drop(tap);
    }
    for (what, times) in ["make_tap", "open", "counters", "shut", "drop_tap"]
        .into_iter()
        .zip(&mut times)
    {
        times.sort_unstable();
        println!("{what}: median {:?}, slowest {:?}", times[25], times[49]);
    }
}

fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let slab = text.lines().find(|line| line.starts_with("Slab:")).unwrap();
    slab.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sleepers() {
    const SLEEPERS: usize = 1000;
    let Some(bed) = need("a_thousand_sleepers") else {
        return;
    };
    let daemon = bed.open().await;
    let config = daemon.plane.config().clone();
    let mut pool = dormouse_network::AddressPool::new(config.ipv4_pool, config.ipv6_prefix);
    let (slab, began) = (free_memory(), Instant::now());
    let mut links = Vec::new();
    for number in 0..SLEEPERS {
        let (id, _) = (dormouse_model::WorkloadId::from_bits(number as u128), ());
        links.push(daemon.plane.attach(id, pool.allocate().unwrap()).await.unwrap());
    }
    let took = began.elapsed();
    let grown = Bytes(free_memory().saturating_sub(slab) / SLEEPERS as u64);
    println!("{SLEEPERS} attached in {took:?}, about {grown} of slab each (others use it too)");
    let began = Instant::now();
    assert_eq!(
        daemon.plane.sweep().await.unwrap(),
        dormouse_network::Swept::default()
    );
    println!("swept in {:?}", began.elapsed());
    // The last of them wakes as the first would.
    let link = links.last().unwrap();
    let began = Instant::now();
    let tap = link.make_tap().await.unwrap();
    link.open().await.unwrap();
    println!("one of them opened in {:?}", began.elapsed());
    send(&bed.client, link.addresses().both()[0], 0..3, None);
    assert_eq!(receive(&tap, 3).len(), 3);
    let began = Instant::now();
    for link in &links {
        link.remove().await.unwrap();
    }
    println!("removed in {:?}", began.elapsed());
}
