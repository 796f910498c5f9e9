//! The storm: TCP connects with one echo each, UDP datagrams and pings, half IPv4 and half IPv6, from many sources.
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

#[derive(Clone)]
pub struct Storm { pub tcp: usize, pub udp: usize, pub ping: usize, pub to: [IpAddr; 2], pub ping_to: [IpAddr; 2], pub ports: [u16; 2], pub sources: [Vec<IpAddr>; 2], pub skew: usize }
#[derive(Default)]
pub struct Report { pub connect: Vec<f64>, pub byte: Vec<f64>, pub udp: usize, pub ping: usize, pub syn_rt: i64, pub rexmit: i64, pub sent_ms: f64, pub errors: usize }

pub fn counter(file: &str, group: &str, key: &str) -> i64 {
    let text = if file.contains('\n') { file.to_string() } else { std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap() };
    let mut rows = text.lines().filter(|l| l.starts_with(group));
    let at = rows.next().and_then(|l| l.split_whitespace().position(|w| w == key)).unwrap_or(0);
    rows.next().and_then(|l| l.split_whitespace().nth(at)?.parse().ok()).expect(key)
}

fn address(a: IpAddr, port: u16) -> ([u8; 28], u32) {
    let mut b = [0u8; 28];
    b[2..4].copy_from_slice(&port.to_be_bytes());
    match a {
        IpAddr::V4(a) => { b[0] = 2; b[4..8].copy_from_slice(&a.octets()); (b, 16) }
        IpAddr::V6(a) => { b[0] = 10; b[8..24].copy_from_slice(&a.octets()); (b, 28) }
    }
}

/// A non-blocking socket, bound to a source where one is given and connected (or connecting) to `to`.
fn socket(kind: i32, proto: i32, from: Option<IpAddr>, to: IpAddr, port: u16) -> i32 {
    let (a, n) = address(to, port);
    unsafe { // SAFETY: addresses are locals of the right size
        let fd = libc::socket(a[0].into(), kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, proto);
        let set = |level, name, v: &[i32]| assert_eq!(libc::setsockopt(fd, level, name, v.as_ptr().cast(), v.len() as u32 * 4), 0);
        if kind == libc::SOCK_STREAM { set(libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0]); } // RST: no FIN is left knocking at a sleeper
        if let Some(f) = from {
            set(0, 24, &[1]); // IP_BIND_ADDRESS_NO_PORT
            let (s, l) = address(f, 0);
            assert_eq!(libc::bind(fd, s.as_ptr().cast(), l), 0, "bind {f}");
        }
        libc::connect(fd, a.as_ptr().cast(), n);
        fd
    }
}
fn send(fd: i32, b: &[u8]) -> isize { unsafe { libc::send(fd, b.as_ptr().cast(), b.len(), libc::MSG_NOSIGNAL) } } // SAFETY: b is borrowed
fn recv(fd: i32, b: &mut [u8]) -> isize { unsafe { libc::recv(fd, b.as_mut_ptr().cast(), b.len(), 0) } } // SAFETY: b is borrowed

pub fn run(s: &Storm) -> Report {
    let before = [counter("netstat", "TcpExt:", "TCPSynRetrans"), counter("snmp", "Tcp:", "RetransSegs")];
    let (mut r, mut b, t0) = (Report::default(), [0u8; 2048], Instant::now());
    let mut polls: Vec<libc::pollfd> = vec![];
    let mut began = vec![]; // for TCP: start and connected?; others: None
    let source = |i: usize| s.sources[i % 2].get(i / 2 % 8).copied();
    let mut add = |fd, tcp: bool| { polls.push(libc::pollfd { fd, events: if tcp { libc::POLLOUT } else { libc::POLLIN }, revents: 0 }); began.push(tcp.then(Instant::now)); fd };
    let side: Vec<[i32; 2]> = (0..16).map(|i| {
        let (f, proto) = (i % 2, [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6][i % 2]);
        [add(socket(libc::SOCK_DGRAM, 0, source(i), s.to[f], s.ports[1]), false), add(socket(libc::SOCK_DGRAM, proto, source(i), s.ping_to[f], 0), false)]
    }).collect();
    for i in 0..s.tcp.max(s.udp).max(s.ping) {
        if i < s.tcp { add(socket(libc::SOCK_STREAM, 0, source(i + s.skew), s.to[(i + s.skew) % 2], s.ports[0]), true); }
        if i < s.udp { send(side[i % 16][0], &(i as u32).to_be_bytes()); }
        if i < s.ping { send(side[i % 16][1], &[[8, 128][i % 2], 0, 0, 0, 0, 0, 0, i as u8]); }
    }
    r.sent_ms = t0.elapsed().as_secs_f64() * 1e3;
    let (mut udp, mut ping) = (HashSet::new(), HashSet::new());
    while (r.byte.len() + r.errors < s.tcp || udp.len() < s.udp || ping.len() < s.ping) && t0.elapsed() < Duration::from_secs(6) {
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as u64, 100) }; // SAFETY: the slice lives through the call
        for (n, p) in polls.iter_mut().enumerate().filter(|(_, p)| p.revents != 0) {
            let Some(start) = began[n] else {
                while { let k = recv(p.fd, &mut b); if k == 4 { udp.insert(b[..4].to_vec()); } else if k > 4 { ping.insert(b[7]); } k > 0 } {}
                continue;
            };
            let ms = start.elapsed().as_secs_f64() * 1e3;
            if p.events == libc::POLLOUT && send(p.fd, b"knock...") == 8 { r.connect.push(ms); p.events = libc::POLLIN; continue; }
            if recv(p.fd, &mut b) == 8 { r.byte.push(ms) } else { r.errors += 1 }
            unsafe { libc::close(p.fd) }; // SAFETY: ours, and forgotten here
            p.fd = -1;
        }
    }
    (r.udp, r.ping) = (udp.len(), ping.len());
    (r.syn_rt, r.rexmit) = (counter("netstat", "TcpExt:", "TCPSynRetrans") - before[0], counter("snmp", "Tcp:", "RetransSegs") - before[1]);
    polls.iter().filter(|p| p.fd >= 0).for_each(|p| unsafe { libc::close(p.fd); }); // SAFETY: ours
    r
}
