//! The agent's port: an agent that is ready at once, or what the script makes of it.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::mpsc::SyncSender;

use dormouse_guest::frame::{LAYOUT, MAGIC};
use dormouse_guest::{Channel, Event, Frame, GuestIdentity, MAX_BODY, Message, Phase};

use crate::Script;

/// Bytes of a flood.
const FLOOD: usize = 32 << 20;

/// What the agent does with a connection before, or instead of, being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// It is an agent.
    Good,
    /// It reads and says nothing.
    Mute,
    /// It closes every connection.
    Close,
    /// Bytes that are no frame, then it is good.
    Garbage,
    /// Many of them, then it is good.
    Flood,
    /// A header of a body that is too long, then it is good.
    LongFrame,
    /// Half a frame, and nothing more until the host gives it up; then it is good.
    Half,
    /// Frames of another session, then it is good.
    WrongSession,
    /// Frames of a layout that is not known, then it is good.
    WrongLayout,
    /// Bodies that cannot be decoded, then it is good.
    BadBody,
    /// What only a host may say, then it is good.
    Backwards,
    /// It says that it speaks older releases only.
    OldVersion,
    /// It says that it set nothing up.
    BootFailed,
    /// It says that it is ready, ten thousand times.
    Spam,
}

impl Behaviour {
    fn parse(text: &str) -> Self {
        match text {
            "mute" => Self::Mute,
            "close" => Self::Close,
            "garbage" => Self::Garbage,
            "flood" => Self::Flood,
            "long-frame" => Self::LongFrame,
            "half" => Self::Half,
            "wrong-session" => Self::WrongSession,
            "wrong-layout" => Self::WrongLayout,
            "bad-body" => Self::BadBody,
            "backwards" => Self::Backwards,
            "old-version" => Self::OldVersion,
            "boot-failed" => Self::BootFailed,
            "spam" => Self::Spam,
            _ => Self::Good,
        }
    }
}

/// Serves one connection after the other.
pub(crate) fn serve(listener: &UnixListener, script: &Script, restored: bool, guest: &SyncSender<ExitCode>) {
    let mut channel = Channel::guest(GuestIdentity {
        boot_id: "scripted".to_owned(),
        release: "scripted".to_owned(),
    });
    if restored {
        channel.set_phase(Phase::Running);
    }
    while let Ok((stream, _)) = listener.accept() {
        let behaviour = Behaviour::parse(&script.at("agent"));
        // A connection that breaks is followed by the next.
        let _broken = converse(&stream, script, behaviour, &mut channel, guest);
        channel.disconnected();
    }
}

fn converse(
    mut stream: &UnixStream,
    script: &Script,
    behaviour: Behaviour,
    channel: &mut Channel,
    guest: &SyncSender<ExitCode>,
) -> io::Result<()> {
    if behaviour == Behaviour::Close {
        return Ok(());
    }
    let mut prepared = matches!(behaviour, Behaviour::Good);
    channel.connected();
    let mut buffer = [0; 4096];
    loop {
        while !channel.outgoing().is_empty() {
            let count = stream.write(channel.outgoing())?;
            channel.wrote(count);
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let read = buffer.get(..count).unwrap_or_default();
        if !std::mem::replace(&mut prepared, true) {
            stream.write_all(&first_words(behaviour, session_of(read)))?;
        }
        if matches!(behaviour, Behaviour::Mute | Behaviour::OldVersion) {
            prepared = behaviour == Behaviour::Mute;
            continue;
        }
        let mut events = Vec::new();
        channel.receive(read, &mut events);
        for event in events {
            if let Event::Message { sequence, message } = event {
                heard(channel, script, behaviour, sequence, message, guest);
            }
        }
    }
}

fn heard(
    channel: &mut Channel,
    script: &Script,
    behaviour: Behaviour,
    sequence: u64,
    message: Message,
    guest: &SyncSender<ExitCode>,
) {
    let mut say = |message: &Message| {
        // A full queue loses it, as it would lose a real agent's.
        let _full = channel.send(message);
    };
    match message {
        Message::Boot(_) if behaviour == Behaviour::BootFailed => say(&Message::BootFailed {
            step: "root".to_owned(),
            problem: "scripted".to_owned(),
        }),
        Message::Boot(_) => {
            let times = if behaviour == Behaviour::Spam { 10_000 } else { 1 };
            for _ in 0..times {
                say(&Message::Ready { pid: 1 });
            }
            channel.set_phase(Phase::Running);
        }
        Message::ClockSet { .. } | Message::Reseed { .. } => say(&Message::Done {
            request: sequence,
            problem: String::new(),
        }),
        Message::Ping { nonce } => say(&Message::Pong { nonce, unix_nanos: 0 }),
        Message::Shutdown { .. } => {
            if script.at("shutdown") != "ignore" {
                guest.try_send(ExitCode::SUCCESS).unwrap_or_default();
            }
        }
        Message::Ready { .. }
        | Message::Exited { .. }
        | Message::BootFailed { .. }
        | Message::Done { .. }
        | Message::Pong { .. } => {}
    }
}

/// The session of a frame, by its place in the header.
fn session_of(bytes: &[u8]) -> u64 {
    bytes
        .get(12..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// What is said before the first right word.
fn first_words(behaviour: Behaviour, session: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |kind: u8, session: u64, sequence: u64, body: Vec<u8>| {
        let frame = Frame {
            kind,
            session,
            sequence,
            ack: 0,
            body,
        };
        // Only a body that is too long is refused.
        let _long = frame.encode(&mut out);
    };
    match behaviour {
        Behaviour::Good | Behaviour::Mute | Behaviour::Close | Behaviour::BootFailed | Behaviour::Spam => {}
        Behaviour::Garbage => out = noise(100_000),
        Behaviour::Flood => out = noise(FLOOD),
        Behaviour::LongFrame => out = header_with(LAYOUT, u32::MAX),
        Behaviour::WrongLayout => out = header_with(LAYOUT + 100, 4),
        Behaviour::Half => {
            put(2, session, 0, vec![0; 4000]);
            out.truncate(2000);
        }
        Behaviour::WrongSession => {
            for sequence in 1..100 {
                put(8, session ^ 1, sequence, vec![8, 1]);
            }
        }
        Behaviour::BadBody => {
            for kind in 0..=255 {
                put(kind, session, 0, vec![0xff; 64]);
            }
        }
        Behaviour::Backwards => {
            // A greeting, a host's request, and a number far ahead.
            put(1, session, 0, Vec::new());
            put(6, session, 1, Vec::new());
            put(7, session, u64::MAX, vec![8, 1]);
        }
        // Refusal of the greeting, with a range of releases that ends before ours begins.
        Behaviour::OldVersion => put(3, session, 0, Vec::new()),
    }
    debug_assert!(out.len() <= FLOOD + MAX_BODY);
    out
}

/// A header with a right checksum of its own over a wrong field.
fn header_with(layout: u8, length: u32) -> Vec<u8> {
    let frame = Frame {
        kind: 7,
        session: 1,
        sequence: 1,
        ack: 0,
        body: Vec::new(),
    };
    let mut out = Vec::new();
    let _long = frame.encode(&mut out);
    if let Some(field) = out.get_mut(4) {
        *field = layout;
    }
    if let Some(field) = out.get_mut(8..12) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    let (before, body_crc) = (
        out.get(..36).unwrap_or_default(),
        out.get(40..44).unwrap_or_default(),
    );
    let crc = crc32(before.iter().chain(body_crc)).to_le_bytes();
    if let Some(field) = out.get_mut(36..40) {
        field.copy_from_slice(&crc);
    }
    out
}

/// CRC-32 as in ISO 3309, bit by bit.
fn crc32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// Bytes that look random, with the beginnings of frames among them.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        if state.is_multiple_of(97) {
            out.extend_from_slice(&MAGIC);
        }
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_fields_stand_under_a_right_checksum() {
        assert_eq!(crc32(b"123456789".iter()), 0xcbf4_3926);
        let mut decoder = dormouse_guest::Decoder::new();
        decoder.push(&header_with(LAYOUT, u32::MAX));
        let first = decoder.next_frame();
        assert!(
            matches!(first, Some(Err(dormouse_guest::GuestError::BodyLarge { .. }))),
            "{first:?}"
        );
    }

    #[test]
    fn what_is_said_first_leaves_a_host_that_reads_on() {
        for text in [
            "garbage",
            "flood",
            "long-frame",
            "half",
            "wrong-session",
            "wrong-layout",
            "bad-body",
            "backwards",
        ] {
            let mut host = Channel::host(7);
            host.connected();
            let said = first_words(Behaviour::parse(text), 7);
            let mut events = Vec::new();
            let mut most = 0;
            for chunk in said.chunks(16 * 1024) {
                host.receive(chunk, &mut events);
                most = most.max(events.len());
                events.clear();
            }
            // What is reported of it is less than what was said.
            assert!(most <= 1000, "{text}: {most}");
        }
    }
}
