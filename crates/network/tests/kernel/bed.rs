//! A bed for tests against the real kernel: a namespace for the data plane, one for clients, a wire
//! between them, and guests that are nothing but the descriptor of a tap.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dormouse_model::{Addresses, WorkloadId};
use dormouse_network::{AddressPool, DataPlane, Knock, KnockStream, Link, NetworkConfig, NetworkError};
use dormouse_sys::netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::task::JoinSet;

/// Nothing here takes longer, unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Two namespaces and the wire.
pub(crate) struct Bed {
    pub(crate) plane: PathBuf,
    pub(crate) client: PathBuf,
}

/// A bed, or `None` with the reason printed.
pub(crate) fn need(test: &str) -> Option<Bed> {
    for program in ["ip", "nft"] {
        if Command::new(program).arg("-V").output().is_err() {
            println!("skipped: {test}: there is no program {program}");
            return None;
        }
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = |side: &str| {
        std::env::temp_dir().join(format!("dormouse-network-{}-{number}-{side}", std::process::id()))
    };
    let bed = Bed {
        plane: path("plane"),
        client: path("client"),
    };
    for side in [&bed.plane, &bed.client] {
        if let Err(error) = Namespace::create_at(side) {
            println!("skipped: {test}: {}", dormouse_model::error::chain(&error));
            return None;
        }
    }
    bed.wire();
    Some(bed)
}

impl Drop for Bed {
    fn drop(&mut self) {
        for side in [&self.plane, &self.client] {
            Namespace::remove(side).unwrap();
        }
    }
}

pub(crate) fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    Namespace::open(namespace).unwrap().within(work).unwrap()
}

/// Runs a command inside a namespace and returns what it printed.
pub(crate) fn run(namespace: &Path, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = inside(namespace, || command.output().unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{line}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

impl Bed {
    fn wire(&self) {
        run(
            &self.plane,
            &format!(
                "ip link add h0 type veth peer name c0 netns {}",
                self.client.display()
            ),
        );
        for (side, device, number) in [(&self.plane, "h0", 1), (&self.client, "c0", 2)] {
            run(side, "ip link set lo up");
            run(side, &format!("ip addr add 10.99.0.{number}/24 dev {device}"));
            run(side, &format!("ip addr add fd99::{number}/64 dev {device} nodad"));
            // An address that makes itself would change the census when it is done.
            run(side, &format!("ip link set {device} addrgenmode none"));
            run(side, &format!("ip link set {device} up"));
        }
        run(&self.client, "ip route add default via 10.99.0.1");
        run(&self.client, "ip route add default via fd99::1");
        // The wire's neighbours are not what is tested.
        for (here, there, device, peer) in [
            (&self.client, &self.plane, "c0", "h0"),
            (&self.plane, &self.client, "h0", "c0"),
        ] {
            let line = run(there, &format!("ip -o link show {peer}"));
            let mac = line
                .split("link/ether ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .to_owned();
            let number = if device == "c0" { 1 } else { 2 };
            run(
                here,
                &format!("ip neigh replace 10.99.0.{number} lladdr {mac} dev {device} nud permanent"),
            );
            run(
                here,
                &format!("ip neigh replace fd99::{number} lladdr {mac} dev {device} nud permanent"),
            );
        }
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            namespace: Some(self.plane.clone()),
            ..NetworkConfig::default()
        }
    }

    pub(crate) async fn open(&self) -> Daemon {
        self.try_open().await.unwrap()
    }

    pub(crate) async fn try_open(&self) -> Result<Daemon, NetworkError> {
        let (plane, knocks, task) = DataPlane::open(self.config()).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run());
        Ok(Daemon {
            plane,
            knocks,
            _tasks: tasks,
        })
    }

    /// Everything in the data plane's namespace that a link could leave behind.
    pub(crate) fn census(&self) -> String {
        let mut text = String::new();
        for line in [
            "ip -o link show",
            "ip -o addr show",
            "ip route show table all",
            "ip -6 route show table all",
            "ip neigh show nud all",
            "ip -6 neigh show nud all",
            "nft --stateless list ruleset",
        ] {
            text += &format!("# {line}\n");
            // Not ours: groups come and go by themselves, and forwarding, which stays, makes anycast.
            let lines = run(&self.plane, line);
            let mut kept: Vec<_> = lines
                .lines()
                .filter(|l| !l.contains("ff02:") && !l.contains("33:33:") && !l.starts_with("anycast"))
                .collect();
            if !line.starts_with("nft") {
                kept.sort_unstable();
            }
            text += &kept.join("\n");
            text.push('\n');
        }
        text
    }
}

/// The part of a daemon that matters here. Dropping it is a crash: nothing is cleaned up.
pub(crate) struct Daemon {
    pub(crate) plane: DataPlane,
    pub(crate) knocks: KnockStream,
    /// Held, so that the task runs.
    pub(crate) _tasks: JoinSet<Result<(), NetworkError>>,
}

impl Daemon {
    pub(crate) async fn knock(&mut self) -> Knock {
        tokio::time::timeout(DEADLINE, self.knocks.next())
            .await
            .expect("no knock")
            .expect("no stream")
    }
}

/// The `number`-th workload and its addresses.
pub(crate) fn workload(number: usize) -> (WorkloadId, Addresses) {
    let config = NetworkConfig::default();
    let mut pool = AddressPool::new(config.ipv4_pool, config.ipv6_prefix);
    let addresses = (0..=number).map(|_| pool.allocate().unwrap()).last().unwrap();
    (
        WorkloadId::from_bits(0x1234_5678_0000 + number as u128),
        addresses,
    )
}

/// Sends numbered datagrams from inside a namespace, through `device` if one is named.
pub(crate) fn send(namespace: &Path, to: IpAddr, numbers: std::ops::Range<u32>, device: Option<&str>) {
    inside(namespace, || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        if let Some(device) = device {
            setsockopt(&socket, sockopt::BindToDevice, &device.into()).unwrap();
        }
        for number in numbers {
            socket.send_to(&number.to_be_bytes(), (to, 7001)).unwrap();
        }
    });
}

/// A frame as the guest gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) to_mac: [u8; 6],
    pub(crate) source: IpAddr,
    pub(crate) to: IpAddr,
    /// What is behind the addresses' header.
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    fn read(bytes: &[u8]) -> Self {
        let frame = &bytes[12..];
        let packet = &frame[14..];
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        let (source, to, payload) = match frame[12..14] {
            [0x08, 0x00] => (v4(12), v4(16), &packet[20..]),
            [0x86, 0xdd] => (v6(8), v6(24), &packet[40..]),
            ref other => panic!("an unexpected frame of type {other:?}"),
        };
        Self {
            to_mac: frame[..6].try_into().unwrap(),
            source,
            to,
            payload: payload.to_vec(),
        }
    }

    /// The number of a datagram sent by [`send`].
    pub(crate) fn number(&self) -> u32 {
        u32::from_be_bytes(self.payload[8..12].try_into().unwrap())
    }
}

/// Reads `want` frames from a guest's tap.
pub(crate) fn receive(tap: &OwnedFd, want: usize) -> Vec<Frame> {
    let end = Instant::now() + DEADLINE;
    let mut frames = Vec::new();
    let mut buffer = [0; 4096];
    while frames.len() < want {
        let left = end.saturating_duration_since(Instant::now());
        assert!(
            !left.is_zero(),
            "{} of {want} frames came: {frames:?}",
            frames.len()
        );
        if readable(tap, left) {
            let length = nix::unistd::read(tap, &mut buffer).unwrap();
            frames.push(Frame::read(&buffer[..length]));
        }
    }
    frames
}

/// Whether a frame is there, or comes within `wait`.
pub(crate) fn readable(tap: &OwnedFd, wait: Duration) -> bool {
    let mut watched = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::try_from(wait).unwrap()).unwrap() > 0
}

/// The numbers of the datagrams to `to`, in the order of arrival.
pub(crate) fn numbers(frames: &[Frame], to: IpAddr) -> Vec<u32> {
    frames
        .iter()
        .filter(|frame| frame.to == to)
        .map(Frame::number)
        .collect()
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A link that is open on a tap of which the caller plays the VMM.
pub(crate) async fn awake(daemon: &Daemon, number: usize) -> (Link, OwnedFd) {
    let (id, addresses) = workload(number);
    let link = daemon.plane.attach(id, addresses).await.unwrap();
    let tap = link.make_tap().await.unwrap();
    link.open().await.unwrap();
    (link, tap)
}

/// Sends `count` datagrams, half of them IPv6, and says what each family should see.
pub(crate) fn send_both(bed: &Bed, link: &Link, count: u32) -> [(IpAddr, Vec<u32>); 2] {
    link.addresses().both().map(|to| {
        send(&bed.client, to, 0..count / 2, None);
        (to, (0..count / 2).collect())
    })
}
