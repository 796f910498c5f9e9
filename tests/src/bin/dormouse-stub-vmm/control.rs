//! The control protocol, the other end of it: bytes in, answers and orders out. Pure.

use serde_json::{Value, json};

/// What a command asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Stop,
    Cont,
    /// Take the next descriptor that came for the device state.
    TakeDescriptor,
    DropDescriptor,
    /// Write the device state into it.
    Save,
    PowerDown,
    Quit,
}

/// One client's conversation.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    buffer: Vec<u8>,
    negotiated: bool,
}

/// A command that was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Asked {
    /// Answer this.
    Answer(String),
    /// Do this, then answer with [`done`] or [`refused`] under this number.
    Do(Order, Value),
    /// Tell the run state.
    Status(Value),
}

/// The first line.
pub(crate) fn greeting() -> String {
    line(&json!({"QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "dormouse-stub-vmm"},
        "capabilities": ["oob"],
    }}))
}

/// A command's success.
pub(crate) fn done(id: &Value, value: &Value) -> String {
    line(&json!({"return": value, "id": id}))
}

/// A command's refusal.
pub(crate) fn refused(id: &Value, class: &str, why: &str) -> String {
    line(&json!({"error": {"class": class, "desc": why}, "id": id}))
}

/// An event. The time is that of nothing: a deterministic machine has none.
pub(crate) fn event(name: &str, data: &Value) -> String {
    line(&json!({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}}))
}

fn line(value: &Value) -> String {
    format!("{value}\r\n")
}

impl Conversation {
    /// Takes bytes; returns what they ask, in order.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Vec<Asked> {
        self.buffer.extend_from_slice(bytes);
        let mut asked = Vec::new();
        while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
            let command: Vec<u8> = self.buffer.drain(..=end).collect();
            if !command.trim_ascii().is_empty() {
                asked.push(self.command(&command));
            }
        }
        asked
    }

    fn command(&mut self, text: &[u8]) -> Asked {
        let Ok(Value::Object(command)) = serde_json::from_slice(text) else {
            return Asked::Answer(refused(&Value::Null, "GenericError", "Invalid JSON syntax"));
        };
        let id = command.get("id").cloned().unwrap_or(Value::Null);
        let name = command.get("execute").and_then(Value::as_str).unwrap_or_default();
        let nothing = || Asked::Answer(done(&id, &json!({})));
        if name == "qmp_capabilities" && !self.negotiated {
            self.negotiated = true;
            return nothing();
        }
        if !self.negotiated || name == "qmp_capabilities" {
            let why = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Asked::Answer(refused(&id, "CommandNotFound", why));
        }
        let order = match name {
            "query-status" => return Asked::Status(id),
            "query-balloon" => return Asked::Answer(done(&id, &json!({"actual": 0}))),
            "balloon" => return nothing(),
            "stop" => Order::Stop,
            "cont" => Order::Cont,
            "add-fd" => Order::TakeDescriptor,
            "remove-fd" => Order::DropDescriptor,
            "xen-save-devices-state" => Order::Save,
            "system_powerdown" => Order::PowerDown,
            "quit" => Order::Quit,
            other => {
                let why = format!("The command {other} has not been found");
                return Asked::Answer(refused(&id, "CommandNotFound", &why));
            }
        };
        Asked::Do(order, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_across_pieces_and_capabilities_come_first() {
        let mut talk = Conversation::default();
        let early = talk.receive(b"{\"execute\":\"stop\",\"id\":1}\n");
        assert!(
            matches!(&early[..], [Asked::Answer(text)] if text.contains("CommandNotFound")),
            "{early:?}"
        );
        assert!(talk.receive(b"{\"execute\":\"qmp_capa").is_empty());
        let rest = talk.receive(b"bilities\",\"id\":2}\n\n{\"execute\":\"stop\",\"id\":3}\n{\"execute\":\"query-status\",\"id\":4}\n");
        assert_eq!(
            rest[1..],
            [Asked::Do(Order::Stop, json!(3)), Asked::Status(json!(4))]
        );
    }

    #[test]
    fn nonsense_is_an_error_and_not_the_end() {
        let mut talk = Conversation::default();
        let answers = talk
            .receive(b"nonsense\n[]\n{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"format-disk\"}\n");
        assert_eq!(answers.len(), 4);
        assert!(matches!(&answers[3], Asked::Answer(text) if text.contains("format-disk")));
    }
}
