//! The few words of QMP that driving a rival takes.

use std::io::{BufRead, BufReader, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::lab::tick;

/// How long one answer may take: a full copy of 4 GiB to a slow disk.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// A connection to a monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as the monitor listens, and greets it.
    pub(super) fn connect(path: &Path, deadline: Duration) -> Result<Self> {
        let end = Instant::now() + deadline;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => {
                    return Err(error).with_context(|| format!("connecting to {}", path.display()));
                }
                Err(_) => tick(Duration::from_millis(1)),
            }
        };
        stream
            .set_read_timeout(Some(ANSWER_DEADLINE))
            .context("setting a deadline")?;
        let lines = BufReader::new(stream.try_clone().context("sharing a socket")?);
        let mut qmp = Self { stream, lines };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "a monitor greeted with {greeting}");
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// One command and its answer; events in between are passed over.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.send(command, &arguments, None)
    }

    /// Gives the monitor a descriptor under a name.
    pub(super) fn give(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.send("getfd", &json!({ "fdname": name }), Some(descriptor))
            .map(drop)
    }

    /// Asks `command` until the string at `key` of its answer is `wanted`.
    pub(super) fn until(&mut self, command: &str, key: &str, wanted: &str) -> Result<()> {
        let end = Instant::now() + ANSWER_DEADLINE;
        loop {
            let answer = self.ask(command, json!({}))?;
            match answer.get(key).and_then(Value::as_str) {
                Some(found) if found == wanted => return Ok(()),
                Some("failed") => bail!("{command}: {answer}"),
                Some(_) | None => ensure!(Instant::now() < end, "{command} never said {wanted}: {answer}"),
            }
            tick(Duration::from_millis(1));
        }
    }

    fn send(
        &mut self,
        command: &str,
        arguments: &Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        let raw: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &control[..] };
        let bytes = [IoSlice::new(text.as_bytes())];
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &bytes,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .with_context(|| format!("sending {command}"))?;
        ensure!(sent == text.len(), "{command} was sent in part");
        loop {
            let mut answer = self
                .line()
                .with_context(|| format!("waiting for the answer to {command}"))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        let length = self
            .lines
            .read_line(&mut text)
            .context("reading from a monitor")?;
        ensure!(length > 0, "the monitor hung up");
        serde_json::from_str(&text).with_context(|| format!("a monitor said {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    #[test]
    fn answers_are_told_from_events() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let monitor = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let said = [
                "{\"QMP\":{}}\n{\"return\":{}}\n",
                "{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"active\"}}\n{\"return\":{\"status\":\"completed\"}}\n",
                "{\"error\":{\"desc\":\"no\"}}\n",
            ];
            for text in said {
                stream.write_all(text.as_bytes()).unwrap();
            }
            stream
        });
        let mut qmp = Qmp::connect(&path, Duration::from_secs(5)).unwrap();
        qmp.until("query-migrate", "status", "completed").unwrap();
        assert!(qmp.ask("cont", json!({})).unwrap_err().to_string().contains("no"));
        drop(monitor.join().unwrap());
    }
}
