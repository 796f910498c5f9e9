//! One real guest, in software emulation: kernel, initial file system, agent, root file system and
//! writable disk as they are made here, and the agent's protocol on the port.
//!
//! Needs `DORMOUSE_GUEST_KERNEL` (a Debian kernel package, or a directory with vmlinuz and modules/)
//! and `DORMOUSE_AGENT` (the agent, linked statically); `cargo xtask test` sets both.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_guest::message::Exit;
use dormouse_guest::{Boot, Channel, Disk, Event, Message, Network, PORT_NAME, Phase};
use dormouse_image::{
    ContentStore, GuestKernel, ImageConfig, ImageRecord, ImportOptions, Limits, MemoryIndex,
};
use dormouse_image::{disk, initrd, layout};
use dormouse_model::{Bytes, MacAddress, WallTime};

/// An emulated guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A time that no clock of the machine shows: 2033-05-18.
const TOLD_TIME: u64 = 2_000_000_000_000_000_000;

/// What every test needs, or why this machine does not have it.
struct Parts {
    directory: tempfile::TempDir,
    kernel: GuestKernel,
    initrd: PathBuf,
    store: ContentStore,
}

fn parts(test: &str) -> Option<Parts> {
    let skip = |why: &str| {
        println!("skipped: {test}: {why}");
        None
    };
    let Some(kernel) = std::env::var_os("DORMOUSE_GUEST_KERNEL").map(PathBuf::from) else {
        return skip("DORMOUSE_GUEST_KERNEL is not set");
    };
    let Some(agent) = std::env::var_os("DORMOUSE_AGENT").map(PathBuf::from) else {
        return skip("DORMOUSE_AGENT is not set");
    };
    for (program, argument) in [
        ("qemu-system-x86_64", "--version"),
        ("busybox", "--help"),
        ("mke2fs", "-V"),
    ] {
        if Command::new(program).arg(argument).output().is_err() {
            return skip(&format!("{program} is not installed"));
        }
    }
    if !nix::unistd::Uid::effective().is_root() {
        return skip("unpacking with owners needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let kernel = if kernel.is_dir() {
        GuestKernel::open(&kernel).unwrap()
    } else {
        GuestKernel::unpack_package(&kernel, data).unwrap()
    };
    let initrd = initrd::build(&kernel, &agent, data).unwrap();
    let store = ContentStore::open(data, Arc::new(MemoryIndex::default()), Limits::default()).unwrap();
    Some(Parts {
        directory,
        kernel,
        initrd,
        store,
    })
}

impl Parts {
    /// An image that serves HTTP as an ordinary user who may not bind port 80.
    fn image(&self) -> ImageRecord {
        let applets = ["sh", "httpd", "id", "cat", "sleep", "ip"];
        let files = layout::busybox_files(Path::new("/usr/bin/busybox"), &applets, "a dormouse\n");
        let config = ImageConfig {
            entrypoint: vec!["httpd".to_owned()],
            command: vec!["-f", "-p", "8080", "-h", "/www"]
                .into_iter()
                .map(str::to_owned)
                .collect(),
            user: "nobody".to_owned(),
            ..ImageConfig::default()
        };
        let path = self.directory.path().join("busybox.tar");
        let mut out = fs::File::create(&path).unwrap();
        layout::write_archive(&mut out, &"busybox:1".parse().unwrap(), &files, &config).unwrap();
        let now = WallTime::from_unix_nanos(1);
        self.store
            .import(&path, &ImportOptions::default(), now, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap()
    }
}

/// A running guest.
struct Machine {
    vmm: Child,
    agent: PathBuf,
    console: PathBuf,
    http: u16,
}

/// The agent's port, both disks, and a network that leads to one port of this machine.
fn add_devices(command: &mut Command, agent: &Path, http: u16, data: &Path, root: &Path) {
    command.args(["-device", "virtio-serial-device"]);
    command.args([
        "-chardev",
        &format!("socket,id=ag,path={},server=on,wait=off", agent.display()),
    ]);
    command.args(["-device", &format!("virtserialport,chardev=ag,name={PORT_NAME}")]);
    let drives = [("data", data, "off"), ("root", root, "on")];
    for (serial, path, read_only) in drives {
        let drive = format!(
            "id={serial},if=none,file={},format=raw,read-only={read_only}",
            path.display()
        );
        command.args(["-drive", &drive]);
        command.args([
            "-device",
            &format!("virtio-blk-device,drive={serial},serial={serial}"),
        ]);
    }
    // User networking whose gateway has a MAC made of its address; nothing leaves the machine.
    command.args(["-netdev", &format!(
            "user,id=n0,restrict=on,net=10.78.0.0/24,host=10.78.0.2,hostfwd=tcp:127.0.0.1:{http}-10.78.0.5:8080"
        )]);
    command.args(["-device", "virtio-net-device,netdev=n0,mac=02:d0:00:00:00:05"]);
}

impl Machine {
    fn launch(parts: &Parts, image: &ImageRecord, name: &str) -> Self {
        let place = parts.directory.path().join(name);
        fs::create_dir(&place).unwrap();
        let (agent, console, data) = (
            place.join("agent.sock"),
            place.join("console"),
            place.join("data"),
        );
        disk::create_empty(&data, Bytes::mib(256)).unwrap();
        // Free now; if somebody takes it until the VMM does, the VMM says so and the test fails.
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let khz = dormouse_sys::clock::tsc_khz().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ]);
        command.args(["-smp", "1", "-m", "256M", "-M", "microvm,acpi=on", "-no-reboot"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command
            .arg("-kernel")
            .arg(parts.kernel.image())
            .arg("-initrd")
            .arg(&parts.initrd);
        command.arg("-append").arg(format!(
            "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 tsc_early_khz={khz} tsc=reliable no_timer_check \
             random.trust_cpu=on"
        ));
        command.args([
            "-chardev",
            &format!("file,id=ser,path={}", console.display()),
            "-serial",
            "chardev:ser",
        ]);
        add_devices(
            &mut command,
            &agent,
            http,
            &data,
            &parts.store.rootfs_path(&image.digest),
        );
        let vmm = command.stdin(Stdio::null()).spawn().unwrap();
        Self {
            vmm,
            agent,
            console,
            http,
        }
    }

    fn boot(image: &ImageRecord, arguments: &[&str]) -> Message {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Message::Boot(Box::new(Boot {
            hostname: "sleeper".to_owned(),
            network: Some(Network {
                ipv4: Ipv4Addr::new(10, 78, 0, 5),
                ipv6: "fd78::5".parse().unwrap(),
                gateway_ipv4: Ipv4Addr::new(169, 254, 1, 1),
                gateway_ipv6: "fe80::1".parse().unwrap(),
                gateway_mac: MacAddress([0x52, 0x55, 10, 78, 0, 2]),
                mac: MacAddress([2, 0xd0, 0, 0, 0, 5]),
                mtu: 0,
                dns: vec![Ipv4Addr::new(192, 0, 2, 53).into()],
            }),
            arguments: image.config.arguments(&[], &arguments),
            environment: vec![("GREETING".to_owned(), "good evening".to_owned())],
            working_directory: "/srv/made".to_owned(),
            user: image.config.user.clone(),
            stop_signal: image.config.stop_signal,
            root: Disk::Serial("root".to_owned()),
            overlay: Some(Disk::Serial("data".to_owned())),
            seed: [9; 32],
            unix_nanos: TOLD_TIME,
        }))
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits for the VMM to end by itself.
    fn ended(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.vmm.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "the VMM runs on; console:\n{}",
                self.console()
            );
            // The console is the only thing that could still change.
            nix::poll::poll(&mut [], 20_u8).unwrap();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended = self.vmm.kill();
        let _reaped = self.vmm.wait();
    }
}

/// A daemon's end of the port.
struct Daemon {
    stream: UnixStream,
    channel: Channel,
    events: Vec<Event>,
}

impl Daemon {
    fn connect(machine: &Machine, session: u64) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(&machine.agent) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "connect: {error}"),
            }
            nix::poll::poll(&mut [], 5_u8).unwrap();
        };
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut channel = Channel::host(session);
        channel.connected();
        Self {
            stream,
            channel,
            events: Vec::new(),
        }
    }

    fn say(&mut self, message: &Message) -> u64 {
        self.channel.send(message).unwrap()
    }

    /// The next event that `pick` wants; others are dropped.
    fn wait<T>(&mut self, machine: &Machine, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0_u8; 4096];
        loop {
            while !self.channel.outgoing().is_empty() {
                let count = self.stream.write(self.channel.outgoing()).unwrap();
                self.channel.wrote(count);
            }
            let found = self.events.iter().position(|event| pick(event).is_some());
            if let Some(at) = found {
                let event = self.events.drain(..=at).next_back().unwrap();
                return pick(&event).unwrap();
            }
            assert!(
                Instant::now() < deadline,
                "no {what}; {:?}; console:\n{}",
                self.events,
                machine.console()
            );
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!(
                    "the port closed while waiting for {what}; console:\n{}",
                    machine.console()
                ),
                Ok(count) => self.channel.receive(&buffer[..count], &mut self.events),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("read: {error}"),
            }
        }
    }

    fn phase(&mut self, machine: &Machine) -> Phase {
        self.wait(machine, "answer to the greeting", |event| match event {
            Event::Opened { phase, .. } => Some(*phase),
            _ => None,
        })
    }

    fn message(&mut self, machine: &Machine, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        self.wait(machine, what, |event| match event {
            Event::Message { message, .. } if wanted(message) => Some(message.clone()),
            _ => None,
        })
    }

    fn done(&mut self, machine: &Machine, request: u64) {
        let done = self.message(
            machine,
            "Done",
            |m| matches!(m, Message::Done { request: r, .. } if *r == request),
        );
        assert_eq!(
            done,
            Message::Done {
                request,
                problem: String::new()
            }
        );
    }
}

/// Asks until there is an answer: a started server listens a moment later, and until then the
/// connection is reset.
fn get(machine: &Machine, path: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_get(machine.http, path) {
            Ok(text) if !text.is_empty() => return text,
            Ok(_) | Err(_) => assert!(
                Instant::now() < deadline,
                "no answer; console:\n{}",
                machine.console()
            ),
        }
        nix::poll::poll(&mut [], 50_u8).unwrap();
    }
}

fn try_get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_guest_serves_outlives_its_daemon_and_ends_when_told() {
    let Some(parts) = parts("a_guest_serves_outlives_its_daemon_and_ends_when_told") else {
        return;
    };
    let image = parts.image();
    let began = Instant::now();
    let mut machine = Machine::launch(&parts, &image, "served");
    let mut daemon = Daemon::connect(&machine, 1);
    // Said before the guest is there to hear it.
    daemon.say(&Machine::boot(&image, &[]));
    assert_eq!(daemon.phase(&machine), Phase::Waiting);
    daemon.message(&machine, "Ready", |m| matches!(m, Message::Ready { .. }));
    println!("launch to Ready: {} ms", began.elapsed().as_millis());
    let page = get(&machine, "/index.html");
    assert!(
        page.ends_with("a dormouse\n"),
        "{page}\nconsole:\n{}",
        machine.console()
    );

    let clock = daemon.say(&Message::ClockSet {
        unix_nanos: TOLD_TIME + 1_000_000_000_000,
    });
    daemon.done(&machine, clock);
    let reseed = daemon.say(&Message::Reseed { seed: [3; 32] });
    daemon.done(&machine, reseed);
    daemon.say(&Message::Ping { nonce: 5 });
    let pong = daemon.message(&machine, "Pong", |m| matches!(m, Message::Pong { nonce: 5, .. }));
    let Message::Pong { unix_nanos, .. } = pong else {
        panic!("{pong:?}")
    };
    let since = unix_nanos.checked_sub(TOLD_TIME + 1_000_000_000_000).unwrap();
    assert!(
        since < 60_000_000_000,
        "the guest's clock is {since} ns after what it was told"
    );

    // The daemon dies in the middle of a sentence; the next one is greeted and finds all running.
    daemon.say(&Message::ClockSet {
        unix_nanos: TOLD_TIME,
    });
    let half = daemon.channel.outgoing()[..20].to_vec();
    daemon.stream.write_all(&half).unwrap();
    drop(daemon);
    assert!(
        get(&machine, "/index.html").ends_with("a dormouse\n"),
        "served without a daemon"
    );
    let mut daemon = Daemon::connect(&machine, 2);
    assert_eq!(daemon.phase(&machine), Phase::Running);
    daemon.say(&Message::Shutdown { grace_millis: 10_000 });
    let exited = daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    // The VMM ends of itself, which takes the acknowledgement.
    while !daemon.channel.outgoing().is_empty() {
        let count = daemon.stream.write(daemon.channel.outgoing()).unwrap();
        daemon.channel.wrote(count);
    }
    let by_term = Exit::Signal {
        signal: 15,
        out_of_memory: false,
    };
    assert_eq!(
        exited,
        Message::Exited {
            exit: by_term,
            problem: String::new()
        }
    );
    machine.ended();
    println!("console:\n{}", machine.console());
}

#[test]
fn a_workload_sees_what_it_was_promised_and_its_status_is_told() {
    let Some(parts) = parts("a_workload_sees_what_it_was_promised_and_its_status_is_told") else {
        return;
    };
    let mut image = parts.image();
    image.config.entrypoint = vec!["sh".to_owned(), "-c".to_owned()];
    image.config.user = "nobody:nogroup".to_owned();
    let script = "id; pwd; echo $GREETING $HOME $HOSTNAME; cat /etc/hosts /etc/resolv.conf; ulimit -n; \
                  ip addr; ip route; ip -6 route; ip neigh; cat /proc/mounts; echo err >&2; \
                  echo x > /tmp/x && cat /tmp/x; cat /proc/1/comm; exit 7";
    let mut machine = Machine::launch(&parts, &image, "script");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[script]));
    let exited = daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    drop(daemon);
    // Nobody acknowledges: it goes off all the same.
    machine.ended();
    let console = machine.console();
    println!("{console}");
    assert_eq!(
        exited,
        Message::Exited {
            exit: Exit::Code(7),
            problem: String::new()
        }
    );
    for line in [
        "uid=65534(nobody) gid=65534(nogroup)",
        "/srv/made\n",
        "good evening / sleeper\n",
        "fd78::5 sleeper\n",
        "nameserver 192.0.2.53\n",
        "1048576\n",
        "inet 10.78.0.5/32",
        "inet6 fd78::5/128",
        "default via 169.254.1.1 dev eth0",
        "default via fe80::1 dev eth0",
        "169.254.1.1 dev eth0 lladdr 52:55:0a:4e:00:02",
        "fe80::1 dev eth0 lladdr 52:55:0a:4e:00:02",
        "cgroup2 /sys/fs/cgroup",
        "tmpfs /dev/shm",
        "err\n",
        "x\n",
    ] {
        assert!(console.contains(line), "{line:?} is not on the console");
    }
    assert!(
        !console.contains("inet6 fe80"),
        "a link-local address of the guest's own would speak on the wire"
    );
}

#[test]
fn a_program_that_is_not_there_and_a_user_that_is_not_there_are_told() {
    let Some(parts) = parts("a_program_that_is_not_there_is_told") else {
        return;
    };
    let mut image = parts.image();
    image.config.entrypoint = vec!["/no/such/program".to_owned()];
    let mut machine = Machine::launch(&parts, &image, "absent");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[]));
    let exited = daemon.message(&machine, "Exited", |m| matches!(m, Message::Exited { .. }));
    let Message::Exited {
        exit: Exit::Code(127),
        problem,
    } = exited
    else {
        panic!("{exited:?}")
    };
    assert!(problem.contains("/no/such/program"), "{problem}");
    drop(daemon);
    machine.ended();

    image.config.user = "ghost".to_owned();
    let mut machine = Machine::launch(&parts, &image, "ghost");
    let mut daemon = Daemon::connect(&machine, 1);
    daemon.say(&Machine::boot(&image, &[]));
    let failed = daemon.message(&machine, "BootFailed", |m| {
        matches!(m, Message::BootFailed { .. })
    });
    let Message::BootFailed { step, problem } = failed else {
        panic!("{failed:?}")
    };
    assert!(step == "user" && problem.contains("ghost"), "{step}: {problem}");
    drop(daemon);
    machine.ended();
}
