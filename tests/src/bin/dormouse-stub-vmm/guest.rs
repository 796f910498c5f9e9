//! The stub's guest: a counter in its memory, an agent, and a device state that knows what the memory was.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use dormouse_guest::{Channel, Event, Exit, GuestIdentity, Message, Phase};
use dormouse_sys::memory::FileMap;
use serde_json::{Value, json};

/// What a device state begins with.
const MAGIC: &str = "dormouse-stub-vmm device state 1";

/// What the first page of RAM begins with, while the guest lives.
const STAMP: &[u8; 8] = b"dormouse";

/// Where the counter is.
const COUNTER: usize = 8;

/// How long a device state is at least: a fraction of QEMU's, so that ten thousand fit anywhere.
const STATE_BYTES: usize = 16 * 1024;

/// The guest.
pub(crate) struct Guest {
    name: String,
    ram: FileMap,
    /// Packets answered since boot; in memory too.
    answered: u64,
    channel: Channel,
    phase: Phase,
    /// It has powered itself off.
    pub(crate) off: bool,
}

impl Guest {
    /// Boots.
    pub(crate) fn boot(name: &str, ram: FileMap) -> Result<Self, String> {
        let mut guest = Self::new(name, ram);
        guest
            .ram
            .write(0, STAMP)
            .map_err(|error| format!("RAM: {error}"))?;
        guest.count(0)?;
        Ok(guest)
    }

    fn new(name: &str, ram: FileMap) -> Self {
        let identity = GuestIdentity {
            boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Self {
            name: name.to_owned(),
            ram,
            answered: 0,
            channel: Channel::guest(identity),
            phase: Phase::Waiting,
            off: false,
        }
    }

    /// Loads a device state over the memory that belongs to it.
    pub(crate) fn restore(name: &str, ram: FileMap, state: OwnedFd) -> Result<Self, String> {
        let mut text = String::new();
        let read = File::from(state).read_to_string(&mut text);
        read.map_err(|error| format!("load of migration failed: {error}"))?;
        let body = text
            .strip_prefix(MAGIC)
            .ok_or("load of migration failed: not a migration stream")?;
        let value: Value = serde_json::from_str(body.trim_end_matches(['\n', '.']))
            .map_err(|error| format!("load of migration failed: {error}"))?;
        let of = value.get("name").and_then(Value::as_str).unwrap_or_default();
        if of != name {
            return Err(format!(
                "load of migration failed: the state is of {of}, this is {name}"
            ));
        }
        let mut guest = Self::new(name, ram);
        guest.answered = value.get("answered").and_then(Value::as_u64).unwrap_or(u64::MAX);
        let (mut stamp, mut counter) = ([0; STAMP.len()], [0; 8]);
        let read = guest
            .ram
            .read(0, &mut stamp)
            .and_then(|()| guest.ram.read(COUNTER, &mut counter));
        read.map_err(|error| format!("RAM: {error}"))?;
        if &stamp != STAMP || u64::from_le_bytes(counter) != guest.answered {
            return Err(format!(
                "load of migration failed: memory says {stamp:?} {}, the state {}",
                u64::from_le_bytes(counter),
                guest.answered
            ));
        }
        guest.enter(if value.get("ready").and_then(Value::as_bool) == Some(true) {
            Phase::Running
        } else {
            Phase::Waiting
        });
        Ok(guest)
    }

    /// Writes the device state.
    pub(crate) fn save(&self, into: &mut File) -> std::io::Result<()> {
        let ready = self.phase == Phase::Running;
        let body = json!({"name": self.name, "answered": self.answered, "ready": ready});
        let text = format!("{MAGIC}{body}\n");
        into.write_all(text.as_bytes())?;
        into.write_all(&vec![b'.'; STATE_BYTES.saturating_sub(text.len())])
    }

    fn count(&mut self, answered: u64) -> Result<(), String> {
        self.answered = answered;
        self.ram
            .write(COUNTER, &answered.to_le_bytes())
            .map_err(|error| format!("RAM: {error}"))
    }

    /// The answer to a frame.
    pub(crate) fn receive(&mut self, frame: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let answer = crate::packets::answer(frame);
        if answer.is_some() {
            self.count(self.answered + 1)?;
        }
        Ok(answer)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.channel.set_phase(phase);
    }

    /// The agent's stream has ended.
    pub(crate) fn hung_up(&mut self) {
        self.channel.disconnected();
    }

    /// The agent's bytes to write next.
    pub(crate) fn outgoing(&self) -> &[u8] {
        self.channel.outgoing()
    }

    /// So many were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.channel.wrote(count);
    }

    /// Takes what the daemon says to the agent.
    pub(crate) fn told(&mut self, bytes: &[u8]) {
        let mut events = Vec::new();
        self.channel.receive(bytes, &mut events);
        for event in events {
            let Event::Message { sequence, message } = event else {
                continue;
            };
            self.heard(sequence, message);
        }
    }

    fn heard(&mut self, request: u64, message: Message) {
        let answer = match message {
            Message::Boot(_) => {
                self.enter(Phase::Running);
                Message::Ready { pid: 2 }
            }
            Message::ClockSet { .. } | Message::Reseed { .. } => Message::Done {
                request,
                problem: String::new(),
            },
            Message::Ping { nonce } => Message::Pong { nonce, unix_nanos: 0 },
            Message::Shutdown { .. } => {
                self.off = true;
                self.enter(Phase::Ending);
                Message::Exited {
                    exit: Exit::Code(0),
                    problem: String::new(),
                }
            }
            // What only a guest says.
            Message::Ready { .. }
            | Message::Exited { .. }
            | Message::BootFailed { .. }
            | Message::Done { .. }
            | Message::Pong { .. } => return,
        };
        // A daemon that asks hundreds of things and reads no answer gets none.
        let _full = self.channel.send(&answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    fn ram(bytes: usize) -> (File, FileMap) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes as u64).unwrap();
        let map = FileMap::new(&file, bytes, true).unwrap();
        (file, map)
    }

    #[test]
    fn a_state_loads_over_its_own_memory_alone() {
        let (file, map) = ram(1 << 16);
        let mut guest = Guest::boot("one", map).unwrap();
        guest.heard(1, Message::ClockSet { unix_nanos: 1 });
        guest.count(7).unwrap();
        let mut state = tempfile::tempfile().unwrap();
        guest.save(&mut state).unwrap();
        let again = |name: &str, ram: FileMap| {
            let mut copy = state.try_clone().unwrap();
            copy.rewind().unwrap();
            Guest::restore(name, ram, copy.into()).map(|guest| guest.answered)
        };
        let same = || FileMap::new(&file, 1 << 16, true).unwrap();
        assert_eq!(again("one", same()), Ok(7));
        assert!(again("other", same()).is_err());
        assert!(again("one", ram(1 << 16).1).is_err(), "empty memory");
        guest.count(8).unwrap();
        assert!(again("one", same()).is_err(), "memory of another moment");
    }

    #[test]
    fn a_shutdown_is_said_and_ends_it() {
        let mut guest = Guest::boot("one", ram(4096).1).unwrap();
        guest.heard(1, Message::Shutdown { grace_millis: 10 });
        assert!(guest.off);
    }
}
