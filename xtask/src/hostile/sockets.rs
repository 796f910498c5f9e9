//! Garbage at the sockets of daemon and keeper, by somebody who may connect: they serve on, without losing
//! a thing.

#![allow(clippy::too_many_lines, reason = "a function is a table of cases")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::guests::Verb;

const AREA: &str = "sockets";

/// The first bytes of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Connections that stay open and say nothing.
const SILENT: usize = 200;

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut out = length.get(1..).unwrap_or_default().to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// What is said to the API's socket.
fn words() -> Vec<(&'static str, Vec<u8>)> {
    let after_preface =
        |frames: &[Vec<u8>]| [PREFACE.to_vec(), frame(4, 0, 0, &[]), frames.concat()].concat();
    vec![
        ("nothing", Vec::new()),
        ("text", b"hello, is anybody there?\r\n".to_vec()),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (
            "HTTP/1.1 with a head of 4 MiB",
            [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 4 << 20]].concat(),
        ),
        ("half the preface", PREFACE.get(..12).unwrap_or_default().to_vec()),
        ("the preface alone", PREFACE.to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        (
            "a frame of 16 MiB",
            [PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[0; 70_000][..]].concat(),
        ),
        ("a frame cut in its head", after_preface(&[vec![0, 0, 8, 6]])),
        (
            "a frame of no known kind",
            after_preface(&[frame(0xbb, 0xff, 3, &[1; 100])]),
        ),
        (
            "headers that are no headers",
            after_preface(&[frame(1, 0x4, 1, &[0xff; 200])]),
        ),
        (
            "headers without an end",
            after_preface(&[frame(1, 0, 1, &[0x82]), frame(1, 0, 3, &[0x82])]),
        ),
        (
            "data on a stream that is not open",
            after_preface(&[frame(0, 1, 9, &[0; 100])]),
        ),
        (
            "an update of a window by nothing",
            after_preface(&[frame(8, 0, 0, &[0; 4])]),
        ),
        (
            "a stream of an even number",
            after_preface(&[frame(1, 0x5, 2, &[0x82, 0x84, 0x86])]),
        ),
        (
            "10,000 settings",
            after_preface(&vec![frame(4, 0, 0, &[]); 10_000]),
        ),
        (
            "10,000 pings",
            after_preface(&vec![frame(6, 0, 0, &[7; 8]); 10_000]),
        ),
        (
            "10,000 resets of streams",
            after_preface(
                &(0..10_000_u32)
                    .flat_map(|n| {
                        [
                            frame(1, 0x5, 2 * n + 1, &[0x82, 0x84, 0x86]),
                            frame(3, 0, 2 * n + 1, &[0; 4]),
                        ]
                    })
                    .collect::<Vec<_>>(),
            ),
        ),
        (
            "a request whose message is longer than said",
            request(&[0, 0, 0, 0, 1, 9, 9, 9]),
        ),
        (
            "a request whose message is shorter than said",
            request(&[0, 0, 0, 0, 200, 9]),
        ),
        (
            "a request said to be of 4 GiB",
            request(&[0, 0xff, 0xff, 0xff, 0xff, 9]),
        ),
        (
            "a request under a compression of nobody",
            request(&[1, 0, 0, 0, 1, 9]),
        ),
        ("noise", noise(1 << 20)),
    ]
}

/// A gRPC request on stream 1 with these bytes for its message.
fn request(message: &[u8]) -> Vec<u8> {
    // Literal headers without indexing (RFC 7541, section 6.2.2).
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/dormouse.v1.InstanceService/CreateInstance"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap_or(0));
            headers.extend_from_slice(text.as_bytes());
        }
    }
    [
        PREFACE.to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers),
        frame(0, 1, 1, message),
    ]
    .concat()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(length)
    .collect()
}

/// Says `bytes`, reads for a moment, and hangs up.
fn say(socket: &Path, bytes: &[u8]) -> Result<()> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Whoever hears this may hang up at any time.
    let _cut = stream.write_all(bytes);
    let _silence = stream.read(&mut [0; 4096]);
    Ok(())
}

/// All of it.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    bed.asleep("sleeper")?;
    let run = bed.lab.run_directory().to_owned();
    for (name, bytes) in words() {
        bed.case(AREA, &format!("to the API: {name}"), "OK", |_| {
            say(&run.join("dormoused.sock"), &bytes)
        })?;
    }
    bed.case(
        AREA,
        &format!("to the API: {SILENT} connections that say nothing"),
        "OK",
        |bed| {
            let open: Vec<UnixStream> = (0..SILENT)
                .map(|_| UnixStream::connect(run.join("dormoused.sock")))
                .collect::<std::io::Result<_>>()?;
            bed.instances()?;
            drop(open);
            Ok(())
        },
    )?;
    let keeper = keeper_socket(&run)?;
    let before = keeper_pid(&keeper)?;
    for (name, bytes) in words().into_iter().chain(to_keeper()) {
        bed.case(AREA, &format!("to the keeper: {name}"), "OK", |_| {
            say_packet(&keeper, &bytes)?;
            ensure!(keeper_pid(&keeper)? == before, "the keeper is another process");
            Ok(())
        })?;
    }
    bed.case(AREA, "the sleeper wakes after all that", "OK", |bed| {
        bed.ask(Verb::Wake, "sleeper", "")
    })?;
    bed.remove("sleeper")
}

/// The keeper's socket, whose kind and place are its own matter.
fn keeper_socket(run: &Path) -> Result<PathBuf> {
    std::fs::read_dir(run)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("keeper") && path.extension().is_some_and(|end| end == "sock")
        })
        .with_context(|| format!("no socket of a keeper in {}", run.display()))
}

/// What only a keeper could take for a word of its own.
fn to_keeper() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("one byte", vec![0]),
        ("a length of 4 GiB", vec![0xff; 16]),
        ("a length of nothing", vec![0; 16]),
        ("60 KiB", noise(60 << 10)),
    ]
}

/// A message to the keeper: it keeps messages apart, or not.
fn say_packet(socket: &Path, bytes: &[u8]) -> Result<()> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket as open,
    };
    use std::os::fd::AsRawFd;
    let packets = open(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    if connect(packets.as_raw_fd(), &UnixAddr::new(socket)?).is_err() {
        return say(socket, bytes);
    }
    // What is too long for a message is refused by the kernel.
    let _refused = send(
        packets.as_raw_fd(),
        bytes,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
    );
    Ok(())
}

/// The process that listens there.
fn keeper_pid(socket: &Path) -> Result<i32> {
    use nix::sys::socket::sockopt::PeerCredentials;
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket as open,
    };
    use std::os::fd::AsRawFd;
    for kind in [SockType::SeqPacket, SockType::Stream] {
        let asked = open(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        if connect(asked.as_raw_fd(), &UnixAddr::new(socket)?).is_ok() {
            return Ok(getsockopt(&asked, PeerCredentials)?.pid());
        }
    }
    anyhow::bail!("nobody listens at {}", socket.display())
}
