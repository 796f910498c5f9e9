//! What a verb works with: the daemon's address, how to print, how to show progress.

use std::io::{self, Write as _};

use dormouse_client::{Client, ClientError, HostAddress};
use serde_json::Value;

use crate::arguments::Global;
use crate::failure::Failure;
use crate::progress::Progress;

/// What every verb works with.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) host: HostAddress,
    pub(crate) json: bool,
    pub(crate) verbose: bool,
    pub(crate) progress: Progress,
}

impl Session {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        // Bytes that are no text are no address either: another daemon than the one meant would be spoken to.
        let variable = std::env::var_os("DORMOUSE_HOST").filter(|text| !text.is_empty());
        let text = match (&global.host, variable) {
            (Some(given), _) => given.clone(),
            (None, Some(variable)) => variable.into_string().map_err(|variable| {
                let text = variable.to_string_lossy().into_owned();
                Failure::from(ClientError::AddressUnreadable { text })
            })?,
            (None, None) => HostAddress::DEFAULT.to_owned(),
        };
        Ok(Self {
            host: text.parse()?,
            json: global.json,
            verbose: global.verbose,
            progress: Progress::new(global.progress),
        })
    }

    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.host).await?)
    }

    /// Prints a line on standard output.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Prints a JSON document on one line.
    pub(crate) fn document(&self, value: &Value) -> Result<(), Failure> {
        self.line(&value.to_string())
    }

    /// Prints bytes as they are, on standard output or standard error.
    pub(crate) fn bytes(&self, bytes: &[u8], to_stderr: bool) -> Result<(), Failure> {
        let written = if to_stderr {
            io::stderr().lock().write_all(bytes)
        } else {
            let mut out = io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        };
        written.map_err(|error| Failure::output(&error))
    }

    /// Prints a line for people on standard error; nothing under `--json`.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            // Standard error may be closed; what matters went to standard output.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

/// A fresh id for a request, so that sending it again is harmless.
pub(crate) fn request_id() -> Result<String, Failure> {
    use std::io::Read as _;
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| Failure::new("CLI_RANDOM", "reading /dev/urandom").because(&error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
