//! QEMU's control protocol on the wire: one JSON object a line. Pure: bytes in, messages out, and the
//! other way round.
//!
//! Source: the QEMU machine protocol specification (docs/interop/qmp-spec of QEMU).

use std::fmt;

use serde_json::{Map, Value};

/// The longest line that is accepted. QEMU's longest answer to what we ask is a few kilobytes.
pub const MAX_LINE: usize = 1 << 20;

/// What QEMU says.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// First of all; carries the version, `7.2.22`.
    Greeting {
        /// The version.
        version: String,
    },
    /// The command with this number succeeded.
    Return {
        /// As sent; `None` when the answer carried none.
        id: Option<u64>,
        /// The result.
        value: Value,
    },
    /// The command with this number failed.
    Error {
        /// As sent; `None` when the command was not understood.
        id: Option<u64>,
        /// For people.
        description: String,
    },
    /// Something happened.
    Event(Event),
}

/// The events that mean something to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The guest is ending; with the reason `SHUTDOWN` gives.
    Shutdown(ShutdownCause),
    /// Processors stopped.
    Stop,
    /// Processors run.
    Resume,
    /// Any other.
    Other,
}

/// Why QEMU ends: `ShutdownCause` of its qapi/run-state.json, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShutdownCause {
    /// `guest-shutdown`.
    GuestPoweredOff,
    /// `guest-reset`, which ends the process under `-no-reboot`.
    GuestRebooted,
    /// `guest-panic`.
    GuestPanicked,
    /// `host-qmp-quit` and the other causes on our side.
    Host,
}

/// A line that is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No end within [`MAX_LINE`] bytes.
    #[error("a line has more than {MAX_LINE} bytes")]
    LongLine,
    /// Not a JSON object of a known shape.
    #[error("a line is no message: {start:?}")]
    NotAMessage {
        /// Its first characters.
        start: String,
    },
}

/// Cuts a stream of bytes into messages. Bounded: it never holds more than a line and what one read
/// brought behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the beginning of the buffer that were given out.
    taken: usize,
    /// Bytes that are known to hold no line end.
    searched: usize,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.searched = self.searched.saturating_sub(self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// After an error the stream is of no further use.
    pub fn next_message(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            let start = self.searched.max(self.taken);
            let rest = self.buffer.get(start..).unwrap_or_default();
            let Some(end) = rest.iter().position(|&byte| byte == b'\n').map(|at| start + at) else {
                self.searched = self.buffer.len();
                let waiting = self.buffer.len().saturating_sub(self.taken);
                return if waiting > MAX_LINE {
                    Err(WireError::LongLine)
                } else {
                    Ok(None)
                };
            };
            let line = self.buffer.get(self.taken..end).unwrap_or_default();
            if line.len() > MAX_LINE {
                return Err(WireError::LongLine);
            }
            let message = (!line.trim_ascii().is_empty()).then(|| parse(line)).transpose();
            self.taken = end + 1;
            if let Some(message) = message? {
                return Ok(Some(message));
            }
        }
    }
}

/// One line as a message. Total: any bytes give a message or an error.
fn parse(line: &[u8]) -> Result<Message, WireError> {
    let fail = || WireError::NotAMessage {
        start: String::from_utf8_lossy(line).chars().take(80).collect(),
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice(line) else {
        return Err(fail());
    };
    let id = fields.get("id").and_then(Value::as_u64);
    if let Some(value) = fields.get("return") {
        return Ok(Message::Return {
            id,
            value: value.clone(),
        });
    }
    if let Some(error) = fields.get("error") {
        let description = error.get("desc").and_then(Value::as_str).ok_or_else(fail)?;
        return Ok(Message::Error {
            id,
            description: description.to_owned(),
        });
    }
    if let Some(name) = fields.get("event").and_then(Value::as_str) {
        return Ok(Message::Event(parse_event(name, fields.get("data"))));
    }
    if let Some(greeting) = fields.get("QMP") {
        return Ok(Message::Greeting {
            version: parse_version(greeting).ok_or_else(fail)?,
        });
    }
    Err(fail())
}

fn parse_event(name: &str, data: Option<&Value>) -> Event {
    match name {
        "SHUTDOWN" => {
            let reason = data.and_then(|data| data.get("reason")).and_then(Value::as_str);
            Event::Shutdown(match reason {
                Some("guest-shutdown") => ShutdownCause::GuestPoweredOff,
                Some("guest-reset") => ShutdownCause::GuestRebooted,
                Some("guest-panic") => ShutdownCause::GuestPanicked,
                _ => ShutdownCause::Host,
            })
        }
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        _ => Event::Other,
    }
}

fn parse_version(greeting: &Value) -> Option<String> {
    let version = greeting.get("version")?.get("qemu")?;
    let part = |name| version.get(name).and_then(Value::as_u64);
    Some(format!(
        "{}.{}.{}",
        part("major")?,
        part("minor")?,
        part("micro")?
    ))
}

/// What we tell QEMU to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Leaves the phase in which only this is understood.
    Capabilities,
    /// Stops the processors; drains and flushes disks.
    Stop,
    /// Runs the processors.
    Cont,
    /// Tells the run state.
    QueryStatus,
    /// Takes the descriptor that comes with this command into set [`STATE_SET`].
    AddStateDescriptor,
    /// Closes it again.
    RemoveStateDescriptor,
    /// Writes device state into [`STATE_SET`].
    SaveDevices,
    /// The ACPI power button.
    PowerDown,
    /// Ends the process in order.
    Quit,
    /// Sets the balloon to this many bytes of RAM for the guest.
    Balloon {
        /// Bytes that the guest keeps.
        target: u64,
    },
    /// Tells the balloon's size.
    QueryBalloon,
}

/// The descriptor set that a snapshot is written through. Launches use the numbers below.
pub const STATE_SET: u32 = 100;

impl Command {
    /// QEMU's name of the command.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "qmp_capabilities",
            Self::Stop => "stop",
            Self::Cont => "cont",
            Self::QueryStatus => "query-status",
            Self::AddStateDescriptor => "add-fd",
            Self::RemoveStateDescriptor => "remove-fd",
            // Made for Xen, which keeps RAM elsewhere, as we do; part of every build.
            Self::SaveDevices => "xen-save-devices-state",
            Self::PowerDown => "system_powerdown",
            Self::Quit => "quit",
            Self::Balloon { .. } => "balloon",
            Self::QueryBalloon => "query-balloon",
        }
    }

    fn arguments(self) -> Map<String, Value> {
        let mut arguments = Map::new();
        match self {
            Self::AddStateDescriptor | Self::RemoveStateDescriptor => {
                arguments.insert("fdset-id".into(), STATE_SET.into());
            }
            Self::SaveDevices => {
                arguments.insert("filename".into(), format!("/dev/fdset/{STATE_SET}").into());
                // Otherwise disks are given up as after a migration, and the guest cannot go on.
                arguments.insert("live".into(), false.into());
            }
            Self::Balloon { target } => {
                arguments.insert("value".into(), target.into());
            }
            Self::Capabilities
            | Self::Stop
            | Self::Cont
            | Self::QueryStatus
            | Self::PowerDown
            | Self::Quit
            | Self::QueryBalloon => {}
        }
        arguments
    }

    /// The line to send, numbered `id`.
    #[must_use]
    pub fn line(self, id: u64) -> String {
        let mut object = Map::new();
        object.insert("execute".into(), self.name().into());
        let arguments = self.arguments();
        if !arguments.is_empty() {
            object.insert("arguments".into(), arguments.into());
        }
        object.insert("id".into(), id.into());
        format!("{}\n", Value::Object(object))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// QEMU's run state (`RunState` of qapi/run-state.json), as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Processors execute.
    Running,
    /// Processors stand and `cont` runs them.
    Paused,
    /// State is being loaded.
    Loading,
    /// The guest has ended.
    Ended,
}

impl RunState {
    /// Reads the answer to `query-status`.
    ///
    /// # Errors
    /// The state's name when it is one that our machines cannot be in.
    pub fn parse(answer: &Value) -> Result<Self, String> {
        let name = answer.get("status").and_then(Value::as_str).unwrap_or("(none)");
        match name {
            "running" => Ok(Self::Running),
            "paused" | "prelaunch" | "save-vm" | "finish-migrate" | "postmigrate" | "suspended" => {
                Ok(Self::Paused)
            }
            // A full host file system under a disk: the guest waits and can go on.
            "io-error" => Ok(Self::Paused),
            "inmigrate" => Ok(Self::Loading),
            "shutdown" | "guest-panicked" | "internal-error" => Ok(Self::Ended),
            other => Err(other.to_owned()),
        }
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
