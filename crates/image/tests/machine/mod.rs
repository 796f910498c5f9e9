//! A real guest in software emulation, and a daemon's end of its agent's port.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_guest::{Boot, Channel, Disk, Event, Message, Network, PORT_NAME, Phase};
use dormouse_image::{
    ContentStore, GuestKernel, ImageConfig, ImageRecord, ImportOptions, Limits, MemoryIndex,
};
use dormouse_image::{disk, initrd, layout};
use dormouse_model::{Bytes, MacAddress, WallTime};

/// What is waited for after a connection.
const GREETING: &str = "answer to the greeting";

/// When a greeting that was not answered is repeated.
const GREET_AGAIN: Duration = Duration::from_secs(3);

/// An emulated guest on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A time that no clock of the machine shows: 2033-05-18.
pub const TOLD_TIME: u64 = 2_000_000_000_000_000_000;

/// What every test needs, or why this machine does not have it.
pub struct Parts {
    pub directory: tempfile::TempDir,
    pub kernel: GuestKernel,
    pub initrd: PathBuf,
    pub store: ContentStore,
}

pub fn parts(test: &str) -> Option<Parts> {
    let skip = |why: &str| {
        println!("skipped: {test}: {why}");
        None
    };
    let Some(kernel) = std::env::var_os("DORMOUSE_TEST_GUEST_KERNEL").map(PathBuf::from) else {
        return skip("DORMOUSE_TEST_GUEST_KERNEL is not set");
    };
    let Some(agent) = std::env::var_os("DORMOUSE_TEST_AGENT").map(PathBuf::from) else {
        return skip("DORMOUSE_TEST_AGENT is not set");
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
    pub fn image(&self) -> ImageRecord {
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

/// A guest, running or asleep.
#[derive(Debug)]
pub struct Machine {
    vmm: Child,
    place: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
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
    pub fn launch(parts: &Parts, image: &ImageRecord, name: &str) -> Self {
        let place = parts.directory.path().join(name);
        fs::create_dir(&place).unwrap();
        disk::create_empty(&place.join("data"), Bytes::mib(256)).unwrap();
        let memory = fs::File::create(place.join("memory")).unwrap();
        memory.set_len(256 << 20).unwrap();
        // Free now; if somebody takes it until the VMM does, the VMM says so and the test fails.
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut machine = Self {
            // Replaced at once; a child is all that the field can hold.
            vmm: Command::new("true").spawn().unwrap(),
            place,
            kernel: parts.kernel.image().to_owned(),
            initrd: parts.initrd.clone(),
            root: parts.store.rootfs_path(&image.digest),
            http,
        };
        machine.start(false);
        machine
    }

    pub fn agent(&self) -> PathBuf {
        self.place.join("agent.sock")
    }

    /// Starts the VMM, cold or from what [`Self::sleep`] saved.
    fn start(&mut self, from_saved: bool) {
        let _reaped = self.vmm.wait();
        let khz = dormouse_sys::clock::tsc_khz().unwrap();
        let place = self.place.display();
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
        command.args([
            "-smp",
            "1",
            "-m",
            "256M",
            "-M",
            "microvm,acpi=on,memory-backend=ram0",
            "-no-reboot",
        ]);
        let memory = format!("memory-backend-file,id=ram0,size=256M,mem-path={place}/memory,share=on");
        command.args(["-object", &memory, "-global", "virtio-mmio.force-legacy=false"]);
        if from_saved {
            command.args(["-S", "-global", "migration.send-configuration=off"]);
            command.args(["-incoming", &format!("exec:cat {place}/state")]);
        } else {
            command
                .arg("-kernel")
                .arg(&self.kernel)
                .arg("-initrd")
                .arg(&self.initrd);
            command.arg("-append").arg(format!(
                "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 tsc_early_khz={khz} tsc=reliable \
                 no_timer_check random.trust_cpu=on"
            ));
        }
        let console = format!("file,id=ser,path={place}/console,append=on");
        command.args(["-chardev", &console, "-serial", "chardev:ser"]);
        command.args(["-qmp", &format!("unix:{place}/qmp.sock,server=on,wait=off")]);
        add_devices(
            &mut command,
            &self.agent(),
            self.http,
            &self.place.join("data"),
            &self.root,
        );
        self.vmm = command.stdin(Stdio::null()).spawn().unwrap();
    }

    /// Saves the devices and ends the VMM; memory stays in its file.
    pub fn sleep(&mut self) {
        let mut qmp = Qmp::connect(&self.place.join("qmp.sock"));
        qmp.ask(r#"{"execute":"stop"}"#);
        let state = self.place.join("state");
        qmp.ask(&format!(
            r#"{{"execute":"xen-save-devices-state","arguments":{{"filename":"{}","live":false}}}}"#,
            state.display()
        ));
        self.vmm.kill().unwrap();
        self.vmm.wait().unwrap();
        for socket in ["qmp.sock", "agent.sock"] {
            fs::remove_file(self.place.join(socket)).unwrap();
        }
    }

    /// Runs the guest on from where it slept.
    pub fn wake(&mut self) {
        self.start(true);
        Qmp::connect(&self.place.join("qmp.sock")).ask(r#"{"execute":"cont"}"#);
    }

    pub fn boot(image: &ImageRecord, arguments: &[&str]) -> Message {
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

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.place.join("console")).unwrap_or_default()).into_owned()
    }

    /// Waits for the VMM to end by itself.
    pub fn ended(&mut self) {
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

/// The VMM's control socket.
struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(path: &Path) -> Self {
        let mut qmp = Self {
            stream: BufReader::new(connect(path)),
        };
        qmp.line();
        qmp.ask(r#"{"execute":"qmp_capabilities"}"#);
        qmp
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.stream.read_line(&mut line).unwrap() > 0,
            "the VMM closed its control socket"
        );
        line
    }

    fn ask(&mut self, command: &str) {
        writeln!(self.stream.get_mut(), "{command}").unwrap();
        loop {
            let line = self.line();
            assert!(!line.contains("\"error\""), "{command}: {line}");
            if line.contains("\"return\"") {
                return;
            }
        }
    }
}

/// Connects as soon as somebody listens.
fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(
                Instant::now() < deadline,
                "connect to {}: {error}",
                path.display()
            ),
        }
        nix::poll::poll(&mut [], 5_u8).unwrap();
    }
}

/// A daemon's end of the port.
pub struct Daemon {
    pub stream: UnixStream,
    pub channel: Channel,
    pub events: Vec<Event>,
}

impl Daemon {
    pub fn connect(machine: &Machine, session: u64) -> Self {
        let stream = connect(&machine.agent());
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut channel = Channel::host(session);
        channel.connected();
        Self {
            stream,
            channel,
            events: Vec::new(),
        }
    }

    /// The same daemon on a new connection, after the VMM was replaced.
    pub fn reconnect(&mut self, machine: &Machine) {
        self.channel.disconnected();
        self.stream = connect(&machine.agent());
        self.stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        self.channel.connected();
    }

    /// Writes all that waits.
    pub fn flush(&mut self) {
        while !self.channel.outgoing().is_empty() {
            let count = self.stream.write(self.channel.outgoing()).unwrap();
            self.channel.wrote(count);
        }
    }

    pub fn say(&mut self, message: &Message) -> u64 {
        self.channel.send(message).unwrap()
    }

    /// The next event that `pick` wants; others are dropped.
    pub fn wait<T>(&mut self, machine: &Machine, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut greet_again = Instant::now() + GREET_AGAIN;
        let mut buffer = [0_u8; 4096];
        loop {
            // A guest that was in the middle of a dead daemon's frame takes the greeting for the rest of
            // it: who gets no answer greets again, as the protocol asks.
            if what == GREETING && Instant::now() >= greet_again {
                greet_again += GREET_AGAIN;
                self.channel.connected();
            }
            self.flush();
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

    pub fn phase(&mut self, machine: &Machine) -> Phase {
        self.wait(machine, GREETING, |event| match event {
            Event::Opened { phase, .. } => Some(*phase),
            _ => None,
        })
    }

    pub fn message(&mut self, machine: &Machine, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        self.wait(machine, what, |event| match event {
            Event::Message { message, .. } if wanted(message) => Some(message.clone()),
            _ => None,
        })
    }

    pub fn done(&mut self, machine: &Machine, request: u64) {
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
pub fn get(machine: &Machine, path: &str) -> String {
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
