//! Dropping the entries of addresses, on the real kernel in a network namespace of its own. Needs root, `ip`,
//! `nft` and `busybox`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_conntrack::{ListFilter, forget, list};
use dormouse_sys::netns::Namespace;

const PATIENCE: Duration = Duration::from_secs(20);

/// The addresses that go, and those that stay.
const GONE: [&str; 2] = ["10.9.0.2", "fd09::2"];
const KEPT: [&str; 2] = ["10.9.0.1", "fd09::1"];

const TRACK: &str = "
table inet dormouse {
  chain forward { type filter hook prerouting priority -150
    ct state new counter
  }
  chain zones { type filter hook output priority -300
    udp dport 5353 ct zone set 7
  }
  chain published { type nat hook output priority -100
    ip daddr 10.9.0.9 tcp dport 80 dnat to 10.9.0.2:3333
  }
}";

struct Lab {
    path: PathBuf,
    namespace: Namespace,
}

impl Lab {
    fn new(test: &str) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("dormouse-forget-{test}-{}", std::process::id()));
        for program in ["ip", "nft", "busybox"] {
            let found = Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if found.is_err() {
                println!("skipped: {test}: {program} is not installed");
                return None;
            }
        }
        let namespace = match Namespace::create_at(&path) {
            Ok(namespace) => namespace,
            Err(error) => {
                println!("skipped: {test}: {error}");
                return None;
            }
        };
        let lab = Self { path, namespace };
        lab.run("ip", &["link", "set", "lo", "up"]);
        for address in ["10.9.0.1/32", "10.9.0.2/32", "10.9.0.9/32"] {
            lab.run("ip", &["address", "add", address, "dev", "lo"]);
        }
        for address in ["fd09::1/128", "fd09::2/128"] {
            lab.run("ip", &["address", "add", address, "dev", "lo", "nodad"]);
        }
        let rules = lab.path.with_extension("nft");
        std::fs::write(&rules, TRACK).unwrap();
        lab.run("nft", &["-f", rules.to_str().unwrap()]);
        std::fs::remove_file(&rules).unwrap();
        Some(lab)
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let status = self.namespace.within(|| command.status()).unwrap().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }

    fn within<T>(&self, work: impl FnOnce() -> std::io::Result<T> + Send) -> T
    where
        T: Send,
    {
        self.namespace.within(work).unwrap().unwrap()
    }

    fn count(&self, filter: &ListFilter) -> usize {
        list(Some(&self.namespace), filter, PATIENCE).unwrap().len()
    }

    fn forget(&self, addresses: &HashSet<IpAddr>) -> usize {
        forget(Some(&self.namespace), addresses, PATIENCE).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        Namespace::remove(&self.path).unwrap();
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

#[test]
fn every_entry_of_an_address_goes_and_no_other() {
    let Some(lab) = Lab::new("addresses") else { return };
    let mut open = Vec::new();
    for address in GONE.iter().chain(&KEPT) {
        // To it: a connection, datagrams, one of them in another zone, and an echo.
        let server = lab.within(|| TcpListener::bind(at(address, 3333)));
        let client = lab.within(|| TcpStream::connect(at(address, 3333)));
        let socket = lab.within(|| UdpSocket::bind(at(address, 0)));
        socket.send_to(b"?", at(address, 4444)).unwrap();
        socket.send_to(b"?", at(address, 5353)).unwrap();
        lab.run("busybox", &["ping", "-c1", "-W1", "-q", address]);
        open.push((server, client, socket));
    }
    // From it, and to it by a published port.
    let from = lab.within(|| UdpSocket::bind(at(GONE[0], 0)));
    from.send_to(b"?", at(KEPT[0], 4444)).unwrap();
    let published = lab.within(|| TcpStream::connect(at("10.9.0.9", 80)));
    let gone: HashSet<IpAddr> = GONE.iter().map(|address| address.parse().unwrap()).collect();
    let all = lab.count(&ListFilter::All);
    let theirs = lab.count(&ListFilter::Involving(gone.clone()));
    assert!(theirs >= 10, "{theirs} of {all}");
    assert_eq!(lab.forget(&gone), theirs);
    assert_eq!(lab.count(&ListFilter::Involving(gone.clone())), 0);
    assert_eq!(lab.count(&ListFilter::All), all - theirs);
    assert_eq!(lab.forget(&gone), 0);
    drop((open, from, published));
}
