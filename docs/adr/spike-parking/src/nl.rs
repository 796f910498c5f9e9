//! Just enough rtnetlink: neighbours, host routes, link settings, and the knock.
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub const NEWROUTE: u16 = 24;
pub const DELROUTE: u16 = 25;
pub const NEWNEIGH: u16 = 28;
pub const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;
static RCVBUF: i32 = 16 << 20;

fn octets(a: IpAddr) -> Vec<u8> { match a { IpAddr::V4(a) => a.octets().to_vec(), IpAddr::V6(a) => a.octets().to_vec() } }

fn attr(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut v = [&(body.len() as u16 + 4).to_ne_bytes()[..], &kind.to_ne_bytes(), body].concat();
    v.resize((v.len() + 3) & !3, 0);
    v
}

fn msg(kind: u16, extra: u16, head: &[u8], attrs: &[Vec<u8>]) -> Vec<u8> {
    let body = [head, &attrs.concat()].concat();
    [&(body.len() as u32 + 16).to_ne_bytes()[..], &kind.to_ne_bytes(), &(extra | 5).to_ne_bytes(), &[0; 8], &body].concat() // 5 = REQUEST|ACK
}

/// A PERMANENT neighbour (with `mac`), or its withdrawal.
pub fn neigh(kind: u16, ifi: i32, a: IpAddr, mac: Option<[u8; 6]>) -> Vec<u8> {
    let head = [&[if a.is_ipv4() { 2 } else { 10 }, 0, 0, 0][..], &ifi.to_ne_bytes(), &0x80u16.to_ne_bytes(), &[0, 0]].concat();
    let mut at = vec![attr(1, &octets(a))];
    at.extend(mac.map(|m| attr(2, &m)));
    msg(kind, if kind == NEWNEIGH { 0x500 } else { 0 }, &head, &at) // CREATE|REPLACE
}

/// A host route. The metric tells the parking route (worse, always there) from the tap's (better, only awake).
pub fn route(kind: u16, ifi: i32, a: IpAddr, metric: u32) -> Vec<u8> {
    let (family, bits, scope) = if a.is_ipv4() { (2, 32, 253) } else { (10, 128, 0) };
    let head = [family, bits, 0, 0, 254, 4, scope, 1, 0, 0, 0, 0];
    msg(kind, if kind == NEWROUTE { 0x400 } else { 0 }, &head, &[attr(1, &octets(a)), attr(4, &ifi.to_ne_bytes()), attr(6, &metric.to_ne_bytes())])
}

/// MAC, ring length and addrgenmode none first; up only afterwards, or the kernel makes a link-local address.
/// A qdisc is useless before a tap's ring (it never pushes back) and costs three arrays of the ring's length.
pub fn link_up(ifi: i32, mac: [u8; 6], ring: u32) -> Vec<Vec<u8>> {
    let head = |flags: u32, change: u32| [&[0u8; 4][..], &ifi.to_ne_bytes(), &flags.to_ne_bytes(), &change.to_ne_bytes()].concat();
    let quiet = attr(26, &attr(10, &attr(8, &[1])));
    let root = [&[0u8; 4][..], &ifi.to_ne_bytes(), &[0; 4], &[255; 4], &[0; 4]].concat();
    vec![msg(16, 0, &head(0, 0x1000), &[attr(1, &mac), attr(13, &ring.to_ne_bytes()), quiet]),
         msg(36, 0x500, &root, &[attr(1, b"noqueue\0")]), msg(16, 0, &head(1, 0x1001), &[])]
}

pub struct Nl(i32);

impl Nl {
    pub fn open(groups: u32) -> Nl {
        // SAFETY: plain socket calls on a descriptor that this value owns.
        unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
            let mut a: libc::sockaddr_nl = std::mem::zeroed();
            (a.nl_family, a.nl_groups) = (libc::AF_NETLINK as u16, groups);
            assert_eq!(libc::bind(fd, (&raw const a).cast(), 12), 0);
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const RCVBUF).cast(), 4);
            Nl(fd)
        }
    }
    fn recv(&self, wait: Duration) -> Option<Vec<u8>> {
        let (mut p, mut b) = (libc::pollfd { fd: self.0, events: libc::POLLIN, revents: 0 }, vec![0u8; 65536]);
        if unsafe { libc::poll(&mut p, 1, wait.as_millis() as i32) } < 1 { return None; } // SAFETY: one local pollfd
        let n = unsafe { libc::recv(self.0, b.as_mut_ptr().cast(), b.len(), 0) }; // SAFETY: `b` lives through the call
        b.truncate(usize::try_from(n).unwrap_or(0));
        Some(b)
    }
    /// One send for the whole batch: the kernel does them in order. Returns the number refused.
    pub fn run(&self, batch: &[Vec<u8>]) -> usize {
        let (b, mut acks, mut bad) = (batch.concat(), 0, 0);
        assert!(unsafe { libc::send(self.0, b.as_ptr().cast(), b.len(), 0) } > 0); // SAFETY: `b` lives through the call
        while acks < batch.len() {
            for (kind, body) in split(&self.recv(Duration::from_secs(5)).expect("ack")) {
                if kind == 2 { acks += 1; bad += usize::from(body[..4] != [0; 4]); }
            }
        }
        bad
    }
    /// The next RTM_GETNEIGH on `ifi` (NDA_DST says for whom; here there is one sleeper only), and when we heard it.
    pub fn knock(&self, ifi: i32, wait: Duration) -> Option<Instant> {
        let end = Instant::now() + wait;
        loop {
            if split(&self.recv(end.saturating_duration_since(Instant::now()))?).iter().any(|(kind, m)| *kind == GETNEIGH && m[4..8] == ifi.to_ne_bytes()) { return Some(Instant::now()); }
        }
    }
}

fn split(mut b: &[u8]) -> Vec<(u16, &[u8])> {
    let mut v = vec![];
    while b.len() >= 16 {
        let n = u32::from_ne_bytes(b[..4].try_into().unwrap()) as usize;
        v.push((u16::from_ne_bytes(b[4..6].try_into().unwrap()), &b[16..n]));
        b = &b[((n + 3) & !3).min(b.len())..];
    }
    v
}
