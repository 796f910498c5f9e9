//! Packets that wait for a sleeper, and where they go when it wakes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use dormouse_network::{LinkState, NetworkError};

use crate::bed::{
    self, awake, inside, need, numbers, readable, receive, run, send, send_both, until, workload,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_sleeper_is_released_whole_and_in_order() {
    let Some(bed) = need("what_waits_for_a_sleeper_is_released_whole_and_in_order") else {
        return;
    };
    let mut daemon = bed.open().await;
    let (id, addresses) = workload(0);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    for count in [500, 8_000] {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_checks_sources_loosely_or_strictly() {
    let Some(bed) = need("a_host_that_checks_sources_loosely_or_strictly") else {
        return;
    };
    let (id, addresses) = workload(0);
    for check in ["1", "2"] {
        inside(&bed.plane, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", check).unwrap();
            std::fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", check).unwrap();
        });
        let mut daemon = bed.open().await;
        let link = daemon.plane.attach(id, addresses).await.unwrap();
        for from in [&bed.client, &bed.plane] {
            send(from, addresses.both()[0], 0..10, None);
            assert_eq!(daemon.knock().await.workload, id);
        }
        let tap = link.make_tap().await.unwrap();
        link.open().await.unwrap();
        assert_eq!(receive(&tap, 20).len(), 20, "rp_filter {check}");
        link.remove().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tap_that_dies_leaves_packets_waiting() {
    let Some(bed) = need("a_tap_that_dies_leaves_packets_waiting") else {
        return;
    };
    let mut daemon = bed.open().await;
    let (link, tap) = awake(&daemon, 0).await;
    let to = link.addresses().both()[1];
    // Somebody takes the device away, at the worst moment: what comes would go round in a circle.
    assert!(matches!(link.state(), LinkState::Releasing { .. }));
    run(&bed.plane, &format!("ip link delete {}", link.tap_name()));
    send(&bed.client, to, 0..5, None);
    let rules = run(&bed.plane, "nft list chain inet dormouse_dm forward");
    assert!(rules.contains("counter packets 5 "), "{rules}");
    until("the link has settled", || link.state() == LinkState::Open).await;
    // From then on packets wait, and the knock finds that there is no way to let them in.
    send(&bed.client, to, 5..10, None);
    until("the link has given up", || link.state() == LinkState::Parked).await;
    link.drop_tap().await.unwrap();
    assert_eq!(daemon.knock().await.workload, link.id());
    let next = link.make_tap().await.unwrap();
    link.open().await.unwrap();
    assert_eq!(numbers(&receive(&next, 5), to), [5, 6, 7, 8, 9]);
    drop(tap);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_packet_after_the_setup_is_not_lost() {
    let Some(bed) = need("the_first_packet_after_the_setup_is_not_lost") else {
        return;
    };
    let (id, addresses) = workload(0);
    for _ in 0..10 {
        let mut daemon = bed.open().await;
        let link = daemon.plane.attach(id, addresses).await.unwrap();
        for to in addresses.both() {
            send(&bed.client, to, 0..1, None);
        }
        daemon.knock().await;
        let tap = link.make_tap().await.unwrap();
        link.open().await.unwrap();
        assert_eq!(receive(&tap, 2).len(), 2);
        daemon.plane.tear_down().await.unwrap();
    }
}
