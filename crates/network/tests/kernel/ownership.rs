//! What is made, what is left, what is not touched, and what a guest may send.

use std::net::IpAddr;

use dormouse_model::{Fault, Kind};
use dormouse_network::NetworkError;

use crate::bed::{self, awake, inside, need, receive, run, send, send_both, workload};

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
