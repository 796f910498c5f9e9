//! Where do a sleeper's packets wait? Mode `tap`: on its own persistent tap. Mode `shared`: on one device for all.
//! Usage (root): spike-parking tap|shared SINGLES STORMS. `setup.sh up` first; KERNEL, INITRD and TSC_KHZ in the environment.
mod client; mod nl; mod vm;
use client::{counter, Storm};
use nl::{neigh, route, Nl, DELNEIGH, DELROUTE, NEWNEIGH, NEWROUTE};
use std::{collections::BTreeMap, env::var, fs::File, net::IpAddr, os::fd::{AsRawFd, OwnedFd}, process::Command, thread, time::{Duration, Instant}};

const GUEST_MAC: [u8; 6] = [2, 0xd0, 0, 0, 0, 0x10];
const GATEWAY_MAC: [u8; 6] = [2, 0xd0, 0, 0, 0, 1];
const P1_MAC: [u8; 6] = [2, 0xd0, 0, 0, 0, 0xfe];
const PARKED: u32 = 2048; // the parking routes stay for good under the tap's: when a tap goes, for whatever reason, packets park
const AWAKE: u32 = 10;

fn ips(a: &str) -> Vec<IpAddr> { a.split(' ').map(|a| a.parse().unwrap()).collect() }
fn ms(t: Instant) -> f64 { t.elapsed().as_secs_f64() * 1e3 }
fn enter(ns: &str) { assert_eq!(unsafe { libc::setns(File::open(format!("/run/netns/{ns}")).unwrap().as_raw_fd(), libc::CLONE_NEWNET) }, 0); } // SAFETY: this thread only
fn index(dev: &str) -> i32 { unsafe { libc::if_nametoindex(std::ffi::CString::new(dev).unwrap().as_ptr()) as i32 } } // SAFETY: a C string
fn tx_dropped(dev: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().find(|l| l.trim().starts_with(dev)).map_or(0., |l| l.split_whitespace().nth(12).unwrap().parse().unwrap())
}

fn csum(s: &str) -> i64 {
    let v6: i64 = s.lines().filter(|l| l.contains("6InCsumErrors")).map(|l| l.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()).sum();
    v6 + ["Tcp:", "Udp:", "Icmp:"].iter().map(|g| counter(s, g, "InCsumErrors")).sum::<i64>()
}

struct Bed { shared: bool, nl: Nl, bell: Nl, p0: i32, guest: Vec<IpAddr>, tap: Option<(OwnedFd, i32)> }
impl Bed {
    fn parking(&self) -> i32 { if self.shared { self.p0 } else { self.tap.as_ref().unwrap().1 } }
    fn hush(&self) { while self.bell.knock(self.parking(), Duration::ZERO).is_some() {} }
    fn each(&self, f: impl Fn(IpAddr) -> Vec<u8>) -> Vec<Vec<u8>> { self.guest.iter().map(|a| f(*a)).collect() }
    fn make_tap(&mut self) {
        let (fd, i) = (vm::tap("dm0"), index("dm0"));
        let mut b = nl::link_up(i, GATEWAY_MAC, var("RING").map_or(8192, |r| r.parse().unwrap()));
        if self.shared { b.extend(self.each(|a| neigh(NEWNEIGH, i, a, Some(GUEST_MAC)))); } else { b.extend(self.each(|a| route(NEWROUTE, i, a, AWAKE))); }
        assert_eq!(self.nl.run(&b), 0);
        self.tap = Some((fd, i));
    }
    /// Lets go what waits on the shared device: it comes back in at p1. The entry goes at once, so a crash cannot leave a loop.
    fn release(&self) { self.nl.run(&[self.each(|a| neigh(NEWNEIGH, self.p0, a, Some(P1_MAC))), self.each(|a| neigh(DELNEIGH, self.p0, a, None))].concat()); }
    fn open(&self) {
        let i = self.tap.as_ref().unwrap().1;
        if !self.shared { self.nl.run(&self.each(|a| neigh(NEWNEIGH, i, a, Some(GUEST_MAC)))); return; }
        self.nl.run(&self.each(|a| route(NEWROUTE, i, a, AWAKE)));
        self.release();
    }
    fn shut(&self) {
        let (fd, i) = self.tap.as_ref().unwrap();
        if self.shared { self.nl.run(&self.each(|a| route(DELROUTE, *i, a, AWAKE))); }
        self.nl.run(&self.each(|a| neigh(DELNEIGH, *i, a, None)));
        let mut p = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        while unsafe { libc::poll(&mut p, 1, 0) } > 0 { thread::sleep(Duration::from_micros(200)); } // SAFETY: one local pollfd
        thread::sleep(Duration::from_millis(1)); // what another CPU was about to send is in the ring, and read
    }
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (singles, storms): (usize, usize) = (a[2].parse().unwrap(), a[3].parse().unwrap());
    enter("st-host");
    std::fs::create_dir_all(vm::DIR).unwrap();
    let mut bed = Bed { shared: a[1] == "shared", nl: Nl::open(0), bell: Nl::open(4), p0: index("p0"), guest: ips("10.78.1.10 fd78:0:0:1::10"), tap: None };
    bed.make_tap();
    if bed.shared { bed.nl.run(&bed.each(|g| route(NEWROUTE, bed.p0, g, PARKED))); }
    else { assert!(Command::new("sh").args(["setup.sh", "park", "dm0"]).status().unwrap().success()); }
    let boot = format!("-kernel {} -initrd {} -append console=ttyS0 quiet loglevel=4 reboot=t panic=-1 tsc_early_khz={} tsc=reliable no_timer_check random.trust_cpu=on",
        var("KERNEL").unwrap(), var("INITRD").unwrap(), var("TSC_KHZ").unwrap());
    let ram = vm::ram();
    let mut vm = vm::Vm::start(&bed.tap.as_ref().unwrap().0, &ram, None, &boot);
    bed.open();
    let (direct, published, local) = ((ips("10.78.1.10 fd78:0:0:1::10"), [7000, 7001], "st-cli"), (ips("10.99.0.1 fd99::1"), [17000, 17001], "st-cli"), (ips("10.78.1.10 fd78:0:0:1::10"), [7000, 7001], "st-host"));
    let (one, few, all) = ([1, 0, 0], [200, 50, 20], [2000, 500, 100]);
    for (name, kind, n, count) in [("single", &direct, singles, one), ("racing", &direct, storms * 2, few), ("storm", &direct, storms, all), ("published", &published, storms, all), ("local", &local, storms, all)] {
        let mut t: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for rep in 0..n {
            let mut put = |k, v| t.entry(k).or_default().push(v);
            let sources = ["10.99.0.", "fd99::"].map(|net| (10..18).filter(|_| kind.2 == "st-cli").map(|i| format!("{net}{i}").parse().unwrap()).collect());
            let storm = Storm { tcp: count[0], udp: count[1], ping: count[2], to: [kind.0[0], kind.0[1]], ping_to: [bed.guest[0], bed.guest[1]], ports: kind.1, sources, skew: rep };
            let was = csum(&vm.agent(b"s"));
            bed.hush();
            let (ns, racing, (tx, done)) = (kind.2, name == "racing", std::sync::mpsc::channel::<()>());
            // "racing" starts a millisecond later each time, while the guest goes to sleep; the others when it is gone.
            let client = thread::spawn(move || { enter(ns); if racing { thread::sleep(Duration::from_millis(rep as u64)); } else { let _ = done.recv(); } client::run(&storm) });
            let t0 = Instant::now();
            bed.shut();
            vm.save_and_quit();
            put("standby", ms(t0));
            if bed.shared { bed.tap = None; put("standby+tap gone", ms(t0)); }
            thread::sleep(Duration::from_millis(50));
            let (drops, _) = (tx_dropped("dm0"), tx.send(()));
            let knocked = bed.bell.knock(bed.parking(), Duration::from_secs(2)).unwrap_or_else(Instant::now);
            if bed.shared { let t1 = Instant::now(); bed.make_tap(); put("make tap", ms(t1)); }
            vm = vm::Vm::start(&bed.tap.as_ref().unwrap().0, &ram, Some(&File::open(format!("{}/state", vm::DIR)).unwrap()), "");
            vm.ask("cont", "{}", None);
            put("knock->cont", ms(knocked));
            bed.hush(); // asked before the release: the release serves them
            let t2 = Instant::now();
            bed.open();
            put("release", ms(t2));
            while !client.is_finished() { if bed.bell.knock(bed.parking(), Duration::from_millis(5)).is_some() { put("late rings", 1.); bed.release(); } }
            let r = client.join().unwrap();
            put("sent in", r.sent_ms); put("udp lost", (count[1] - r.udp) as f64); put("ping lost", (count[2] - r.ping) as f64); put("tcp lost", (count[0] - r.byte.len()) as f64);
            put("syn retrans", r.syn_rt as f64); put("client retrans", r.rexmit as f64); put("tap tx_dropped", tx_dropped("dm0") - drops);
            thread::sleep(Duration::from_millis(250));
            put("guest csum errors", (csum(&vm.agent(b"s")) - was) as f64);
            t.entry("connect").or_default().extend(r.connect); t.entry("first byte").or_default().extend(r.byte);
        }
        println!("== {} {name} x{n}, load {}", a[1], std::fs::read_to_string("/proc/loadavg").unwrap().trim());
        for (k, mut v) in t { v.sort_by(f64::total_cmp); println!("{k:18} n={:5} p50={:.2} p99={:.2} max={:.2} sum={:.0}", v.len(), v[v.len() / 2], v[v.len() * 99 / 100], v[v.len() - 1], v.iter().sum::<f64>()); }
    }
    vm.kill();
}
