//! What the steps cost. These print; they judge nothing but that it works.

use std::time::{Duration, Instant};

use dormouse_model::Bytes;

use crate::bed::{awake, need, receive, send, workload};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_right_after_a_sleep_does_not_wait_for_the_old_tap() {
    let Some(bed) = need("a_wake_right_after_a_sleep_does_not_wait_for_the_old_tap") else {
        return;
    };
    let daemon = bed.open().await;
    let (link, tap) = awake(&daemon, 0).await;
    let to = link.addresses().both()[0];
    let mut times = Vec::new();
    let mut old = tap;
    for _ in 0..20 {
        let gone = link.drop_tap();
        let next = async {
            let began = Instant::now();
            // In the order of the calls, which are joined: the drop was asked for first.
            let tap = link.make_tap().await.unwrap();
            link.open().await.unwrap();
            times.push(began.elapsed());
            tap
        };
        let (gone, tap) = tokio::join!(gone, next);
        gone.unwrap();
        send(&bed.client, to, 0..2, None);
        assert_eq!(receive(&tap, 2).len(), 2);
        old = tap;
    }
    times.sort_unstable();
    println!(
        "made and opened while the old tap goes: median {:?}, slowest {:?}",
        times[10], times[19]
    );
    drop(old);
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
