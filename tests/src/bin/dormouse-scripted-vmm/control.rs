//! The control socket: QEMU's protocol, or what the script makes of it.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::mpsc::SyncSender;

use dormouse_sys::descriptor::receive;

use crate::Script;

/// Bytes of a flood: far more than a line may have.
const FLOOD: usize = 64 << 20;
/// Events of a flood of events.
const EVENTS: usize = 200_000;
/// What a saved state is made of.
const STATE: &[u8] = b"scripted device state\n";

/// What becomes of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// It is answered.
    Good,
    /// It is not answered.
    Mute,
    /// The connection is closed.
    Close,
    /// The process ends.
    Exit,
    /// Bytes that are no message.
    Garbage,
    /// A line without an end.
    Flood,
    /// So many events, then the answer.
    Events,
    /// Half an answer, then the connection is closed.
    Half,
    /// The answer to another command, and none to this.
    WrongId,
    /// It is refused.
    Error,
    /// An answer of another shape than the command's.
    WrongShape,
    /// An answer nested so deep that a careless reader runs out of stack.
    Deep,
}

impl Behaviour {
    fn parse(text: &str) -> Self {
        match text {
            "mute" => Self::Mute,
            "close" => Self::Close,
            "exit" => Self::Exit,
            "garbage" => Self::Garbage,
            "flood" => Self::Flood,
            "events" => Self::Events,
            "half" => Self::Half,
            "wrong-id" => Self::WrongId,
            "error" => Self::Error,
            "wrong-shape" => Self::WrongShape,
            "deep" => Self::Deep,
            _ => Self::Good,
        }
    }
}

/// What the machine would be.
#[derive(Debug)]
struct Machine {
    status: &'static str,
    /// The descriptor of the set, for the state.
    state: Option<OwnedFd>,
}

/// Serves one connection after the other.
pub(crate) fn serve(listener: &UnixListener, script: &Script, restored: bool, quit: &SyncSender<ExitCode>) {
    let mut machine = Machine {
        status: if restored { "paused" } else { "running" },
        state: None,
    };
    while let Ok((stream, _)) = listener.accept() {
        // A connection that breaks is followed by the next.
        let _broken = converse(&stream, script, &mut machine, quit);
    }
}

fn converse(
    mut stream: &UnixStream,
    script: &Script,
    machine: &mut Machine,
    quit: &SyncSender<ExitCode>,
) -> io::Result<()> {
    let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}"#;
    if !say(
        stream,
        Behaviour::parse(&script.at("greeting")),
        0,
        greeting,
        quit,
    )? {
        return Ok(());
    }
    let mut lines: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let received = receive(stream.as_fd(), &mut buffer)?;
        if received.length == 0 {
            return Ok(());
        }
        if let Some(descriptor) = received.descriptors.into_iter().next() {
            machine.state = Some(descriptor);
        }
        lines.extend_from_slice(buffer.get(..received.length).unwrap_or_default());
        while let Some(end) = lines.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = lines.drain(..=end).collect();
            let text = String::from_utf8_lossy(&line);
            let (Some(command), Some(id)) = (between(&text, "\"execute\":\"", '"'), id_of(&text)) else {
                continue;
            };
            let behaviour = Behaviour::parse(&script.at(command));
            let answer = match behaviour {
                Behaviour::Error => format!(
                    r#"{{"error": {{"class": "GenericError", "desc": "scripted refusal"}}, "id": {id}}}"#
                ),
                Behaviour::WrongShape => format!(r#"{{"return": [1, 2, {{}}], "id": {id}}}"#),
                _ => match machine.execute(command) {
                    Ok(value) => format!(r#"{{"return": {value}, "id": {id}}}"#),
                    // As of a disk that is full.
                    Err(error) => {
                        format!(r#"{{"error": {{"class": "GenericError", "desc": "{error}"}}, "id": {id}}}"#)
                    }
                },
            };
            if !say(stream, behaviour, id, &answer, quit)? {
                return Ok(());
            }
            if command == "quit" {
                stream.flush()?;
                quit.try_send(ExitCode::SUCCESS).unwrap_or_default();
            }
        }
    }
}

impl Machine {
    fn execute(&mut self, command: &str) -> io::Result<String> {
        match command {
            "stop" => self.status = "paused",
            "cont" => self.status = "running",
            "query-status" => {
                let running = self.status == "running";
                return Ok(format!(
                    r#"{{"status": "{}", "singlestep": false, "running": {running}}}"#,
                    self.status
                ));
            }
            "xen-save-devices-state" => {
                if let Some(state) = &self.state {
                    let mut file = std::fs::File::from(state.try_clone()?);
                    file.write_all(STATE)?;
                }
            }
            "remove-fd" => self.state = None,
            _ => {}
        }
        Ok("{}".to_owned())
    }
}

/// Says `answer` in the way that the script wants; whether the connection goes on.
fn say(
    mut stream: &UnixStream,
    behaviour: Behaviour,
    id: u64,
    answer: &str,
    quit: &SyncSender<ExitCode>,
) -> io::Result<bool> {
    match behaviour {
        Behaviour::Mute => return Ok(true),
        Behaviour::Close => return Ok(false),
        Behaviour::Exit => {
            quit.try_send(ExitCode::from(3)).unwrap_or_default();
            return Ok(false);
        }
        Behaviour::Garbage => stream.write_all(b"\x00\xff\xfe this is no message\r\n")?,
        Behaviour::Flood => {
            let block = vec![b'x'; 1 << 16];
            for _ in 0..FLOOD / block.len() {
                stream.write_all(&block)?;
            }
        }
        Behaviour::Events => {
            let event = b"{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n".repeat(1000);
            for _ in 0..EVENTS / 1000 {
                stream.write_all(&event)?;
            }
            stream.write_all(format!("{answer}\n").as_bytes())?;
        }
        Behaviour::Half => {
            stream.write_all(answer.as_bytes().get(..answer.len() / 2).unwrap_or_default())?;
            return Ok(false);
        }
        Behaviour::WrongId => {
            stream.write_all(format!("{{\"return\": {{}}, \"id\": {}}}\n", id + 1000).as_bytes())?;
        }
        Behaviour::Deep => {
            let text = format!(
                "{{\"return\": {}{}, \"id\": {id}}}\n",
                "[".repeat(200_000),
                "]".repeat(200_000)
            );
            stream.write_all(text.as_bytes())?;
        }
        Behaviour::Good | Behaviour::Error | Behaviour::WrongShape => {
            stream.write_all(format!("{answer}\n").as_bytes())?;
        }
    }
    Ok(true)
}

/// What stands between `before` and the next `end`.
fn between<'a>(text: &'a str, before: &str, end: char) -> Option<&'a str> {
    text.split_once(before)?.1.split(end).next()
}

fn id_of(text: &str) -> Option<u64> {
    let digits: String = text
        .rsplit_once("\"id\":")?
        .1
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn commands_are_read() {
        let line = "{\"arguments\":{\"fdset-id\":9},\"execute\":\"add-fd\",\"id\":12}\n";
        assert_eq!(between(line, "\"execute\":\"", '"'), Some("add-fd"));
        assert_eq!(id_of(line), Some(12));
    }

    #[test]
    fn unknown_words_are_good() {
        assert_eq!(Behaviour::parse("deep"), Behaviour::Deep);
        assert_eq!(Behaviour::parse("whatever"), Behaviour::Good);
    }

    #[test]
    fn a_line_reader_reads_what_is_said() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (quit, _) = std::sync::mpsc::sync_channel(1);
        assert!(say(&theirs, Behaviour::Good, 1, "{}", &quit).unwrap());
        drop(theirs);
        let mut line = String::new();
        BufReader::new(ours).read_line(&mut line).unwrap();
        assert_eq!(line, "{}\n");
    }
}
