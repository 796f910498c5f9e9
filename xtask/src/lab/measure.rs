//! Clients that measure: one thread each, the monotonic clock, in the namespace of the caller.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

/// One exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// When the first SYN was sent, or just before.
    pub begun: Instant,
    /// Milliseconds from the first SYN to the first byte of the answer.
    pub first_byte_ms: f64,
}

/// Connects, sends `payload` and reads the same back.
pub(crate) fn ask(to: SocketAddr, payload: &[u8], deadline: Duration) -> Result<Answer> {
    let begun = Instant::now();
    let mut stream =
        TcpStream::connect_timeout(&to, deadline).with_context(|| format!("connecting to {to}"))?;
    stream
        .set_read_timeout(Some(deadline))
        .context("setting a deadline")?;
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    stream
        .write_all(payload)
        .with_context(|| format!("sending to {to}"))?;
    let mut answer = vec![0; payload.len()];
    let first = stream
        .read(&mut answer)
        .with_context(|| format!("waiting for an answer of {to}"))?;
    let first_byte_ms = begun.elapsed().as_secs_f64() * 1e3;
    let rest = answer.get_mut(first..).unwrap_or_default();
    stream
        .read_exact(rest)
        .with_context(|| format!("reading the answer of {to}"))?;
    ensure!(answer == payload, "{to} answered with other bytes than were sent");
    reset_on_close(&stream)?;
    Ok(Answer { begun, first_byte_ms })
}

/// Gives the benches' server a command: a line there, lines back of which the last is `ok`. Returns the
/// others.
pub(crate) fn ask_for_line(to: SocketAddr, line: &str, deadline: Duration) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&to, deadline).with_context(|| format!("connecting to {to}"))?;
    stream
        .set_read_timeout(Some(deadline))
        .context("setting a deadline")?;
    stream
        .write_all(format!("{line}\n").as_bytes())
        .with_context(|| format!("sending to {to}"))?;
    stream.shutdown(Shutdown::Write).context("ending the command")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("waiting for an answer of {to}"))?;
    reset_on_close(&stream)?;
    let told = answer.strip_suffix("ok\n").map(str::to_owned);
    told.with_context(|| format!("{to} answered {line:?} with {answer:?}"))
}

/// `GET path` by HTTP/1.0; the body of an answer with status 200.
pub(crate) fn http_get(to: SocketAddr, path: &str, deadline: Duration) -> Result<(Answer, String)> {
    let begun = Instant::now();
    let mut stream =
        TcpStream::connect_timeout(&to, deadline).with_context(|| format!("connecting to {to}"))?;
    stream
        .set_read_timeout(Some(deadline))
        .context("setting a deadline")?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .with_context(|| format!("sending to {to}"))?;
    let mut bytes = [0_u8; 4096];
    let first = stream
        .read(&mut bytes)
        .with_context(|| format!("waiting for an answer of {to}"))?;
    let first_byte_ms = begun.elapsed().as_secs_f64() * 1e3;
    let mut answer = bytes.get(..first).unwrap_or_default().to_vec();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("reading the answer of {to}"))?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{to} answered without a head"))?;
    let status = head.split(' ').nth(1).unwrap_or("");
    ensure!(status == "200", "{to} answered with status {status}");
    Ok((Answer { begun, first_byte_ms }, body.to_owned()))
}

/// Closing sends a reset at once: no FIN is left that would knock at a sleeper later.
fn reset_on_close(stream: &TcpStream) -> Result<()> {
    setsockopt(
        stream,
        sockopt::Linger,
        &linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )
    .context("setting SO_LINGER")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Serves one connection with `work`.
    fn serve(work: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || work(listener.accept().unwrap().0));
        address
    }

    #[test]
    fn an_echo_is_checked() {
        let echo = |twist: u8| {
            serve(move |mut stream| {
                let mut bytes = [0; 5];
                stream.read_exact(&mut bytes).unwrap();
                bytes[4] ^= twist;
                stream.write_all(&bytes).unwrap();
            })
        };
        let answer = ask(echo(0), b"hello", DEADLINE).unwrap();
        assert!(answer.first_byte_ms > 0.0);
        assert!(
            ask(echo(1), b"hello", DEADLINE)
                .unwrap_err()
                .to_string()
                .contains("other bytes")
        );
    }

    #[test]
    fn a_page_is_read_and_an_error_told() {
        let page = |status: &'static str| {
            serve(move |mut stream| {
                let mut bytes = [0; 4096];
                let _ = stream.read(&mut bytes).unwrap();
                stream
                    .write_all(format!("HTTP/1.0 {status}\r\nA: b\r\n\r\nbody").as_bytes())
                    .unwrap();
            })
        };
        assert_eq!(http_get(page("200 OK"), "/", DEADLINE).unwrap().1, "body");
        assert!(http_get(page("404 Not Found"), "/", DEADLINE).is_err());
    }

    #[test]
    fn a_command_is_answered_to_the_end() {
        let to = serve(|mut stream| {
            let mut line = String::new();
            stream.read_to_string(&mut line).unwrap();
            stream.write_all(format!("said {line}ok\n").as_bytes()).unwrap();
        });
        assert_eq!(ask_for_line(to, "clock", DEADLINE).unwrap(), "said clock\n");
    }
}
