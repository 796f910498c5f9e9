//! The bytes of every release: a sleeper's agent is as old as its sleep, so what a release wrote
//! stays readable for ever, and this release still writes what it wrote when it was released.
//!
//! `tests/golden/vN/NAME.hex` is one frame. To add a release's files run this test once with
//! `DORMOUSE_TEST_WRITE_GOLDEN=1`; existing files are never rewritten.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use dormouse_guest::{Boot, Channel, Decoder, Disk, Event, Exit, Frame, GuestIdentity, Message, Network};
use dormouse_model::MacAddress;

fn boot() -> Boot {
    Boot {
        hostname: "web-1".to_owned(),
        network: Some(Network {
            ipv4: Ipv4Addr::new(10, 78, 0, 5),
            ipv6: "fd78:0:0:1::5".parse().unwrap(),
            gateway_ipv4: Ipv4Addr::new(169, 254, 1, 1),
            gateway_ipv6: "fe80::1".parse().unwrap(),
            gateway_mac: MacAddress([2, 0xd0, 0, 0, 0, 1]),
            mac: MacAddress([2, 0xd0, 0, 0, 0, 5]),
            mtu: 1500,
            dns: vec![
                IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ],
        }),
        arguments: vec!["/bin/httpd".to_owned(), "-f".to_owned()],
        environment: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
        working_directory: "/srv".to_owned(),
        user: "www:33".to_owned(),
        stop_signal: 3,
        root: Disk::Serial("root".to_owned()),
        overlay: Some(Disk::Label("dormouse-data".to_owned())),
        seed: [0xa5; 32],
        unix_nanos: 1_795_172_732_000_000_000,
    }
}

fn release_1() -> Vec<(&'static str, Message)> {
    let problem = || "no such program".to_owned();
    vec![
        ("boot", Message::Boot(Box::new(boot()))),
        (
            "boot_bare",
            Message::Boot(Box::new(Boot {
                network: None,
                overlay: None,
                root: Disk::Device("/dev/vda".to_owned()),
                ..boot()
            })),
        ),
        (
            "clock_set",
            Message::ClockSet {
                unix_nanos: 1_795_172_732_123_456_789,
            },
        ),
        ("reseed", Message::Reseed { seed: [7; 32] }),
        ("shutdown", Message::Shutdown { grace_millis: 5000 }),
        ("ping", Message::Ping { nonce: 42 }),
        ("ready", Message::Ready { pid: 77 }),
        (
            "exited_code",
            Message::Exited {
                exit: Exit::Code(127),
                problem: problem(),
            },
        ),
        (
            "exited_signal",
            Message::Exited {
                exit: Exit::Signal {
                    signal: 9,
                    out_of_memory: true,
                },
                problem: String::new(),
            },
        ),
        (
            "boot_failed",
            Message::BootFailed {
                step: "root".to_owned(),
                problem: problem(),
            },
        ),
        (
            "done",
            Message::Done {
                request: 3,
                problem: String::new(),
            },
        ),
        (
            "pong",
            Message::Pong {
                nonce: 42,
                unix_nanos: 1_795_172_732_000_000_001,
            },
        ),
    ]
}

fn frame_of(message: &Message) -> Frame {
    Frame {
        kind: message.kind(),
        session: 0x0123_4567_89ab_cdef,
        sequence: u64::from(message.is_ordered()) * 5,
        ack: 4,
        body: message.encode(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let end = if at % 32 == 31 || at + 1 == bytes.len() {
            "\n"
        } else {
            ""
        };
        write!(text, "{byte:02x}{end}").unwrap();
    }
    text
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Compares `bytes` with the golden file and returns the file's.
fn check_bytes(release: &str, name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{release}/{name}.hex"));
    if std::env::var_os("DORMOUSE_TEST_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        hex(bytes),
        golden,
        "{name}: this release writes other bytes than {release} did"
    );
    unhex(&golden)
}

fn check(release: &str, name: &str, message: &Message) {
    let frame = frame_of(message);
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).unwrap();
    let mut decoder = Decoder::new();
    decoder.push(&check_bytes(release, name, &bytes));
    assert_eq!(decoder.next_frame(), Some(Ok(frame.clone())), "{name}");
    assert_eq!(
        Message::decode(frame.kind, &frame.body).as_ref(),
        Ok(message),
        "{name}"
    );
}

#[test]
fn release_1_frames() {
    for (name, message) in release_1() {
        check("v1", name, &message);
    }
}

/// The frames of the session itself, as two channels exchange them.
#[test]
fn release_1_greeting() {
    let mut host = Channel::host(0x0123_4567_89ab_cdef);
    let mut guest = Channel::guest(GuestIdentity {
        boot_id: "b007".to_owned(),
        release: "0.1.0".to_owned(),
    });
    host.connected();
    let hello = check_bytes("v1", "hello", host.outgoing());
    let mut events = Vec::new();
    guest.receive(&hello, &mut events);
    assert_eq!(
        events,
        [Event::Greeted {
            version: 1,
            resumed: false
        }]
    );
    let hello_ack = check_bytes("v1", "hello_ack", guest.outgoing());
    events.clear();
    host.receive(&hello_ack, &mut events);
    assert!(
        matches!(
            events[..],
            [Event::Opened {
                version: 1,
                resumed: false,
                ..
            }]
        ),
        "{events:?}"
    );
    let ready = Message::Ready { pid: 1 };
    guest.wrote(guest.outgoing().len());
    guest.send(&ready).unwrap();
    host.wrote(host.outgoing().len());
    host.receive(guest.outgoing(), &mut events);
    let ack = check_bytes("v1", "ack", host.outgoing());
    guest.receive(&ack, &mut events);
    assert_eq!(guest.unacknowledged(), 0);
}
