//! What a restarted daemon finds, takes over and sweeps.

use std::time::{Duration, Instant};

use dormouse_network::{Expected, Found, LinkState, NetworkError};

use crate::bed::{self, awake, need, numbers, receive, send, send_both, until, workload};

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
