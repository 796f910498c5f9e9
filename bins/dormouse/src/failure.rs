//! Errors as they are printed, and the exit codes.
//!
//! ```text
//! error[INSTANCE_NOT_FOUND]: no instance is named web · try: dormouse ps -a
//! ```

use std::io::{self, Write as _};
use std::process::ExitCode;

use dormouse_client::ClientError;
use dormouse_model::{Fault, Kind};

/// Our own errors, those of the daemon and of usage; as other programs of this kind do.
const EXIT_FAILURE: u8 = 125;

/// The reader of our output is gone; what a shell reports for SIGPIPE.
const EXIT_PIPE: u8 = 141;

/// Something that did not work, ready to be printed.
#[derive(Debug)]
pub(crate) struct Failure(Box<Parts>);

#[derive(Debug)]
struct Parts {
    code: String,
    what: String,
    why: Option<String>,
    advice: Option<String>,
    /// By which the daemon's log names the request; empty when there was none.
    request_id: String,
    exit: u8,
    /// Nobody is there to read about it.
    silent: bool,
}

impl Failure {
    pub(crate) fn new(code: &str, what: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code: code.to_owned(),
            what: what.into(),
            why: None,
            advice: None,
            request_id: String::new(),
            exit: EXIT_FAILURE,
            silent: false,
        }))
    }

    /// Adds the cause, with its own causes.
    pub(crate) fn because(mut self, error: &dyn std::error::Error) -> Self {
        self.0.why = Some(dormouse_model::error::chain(error));
        self
    }

    /// Adds the next step.
    pub(crate) fn advise(mut self, command: impl Into<String>) -> Self {
        self.0.advice = Some(command.into());
        self
    }

    /// Something that was typed is wrong.
    pub(crate) fn input(error: &impl Fault) -> Self {
        Self::new(error.code(), error.to_string())
    }

    /// Standard output could not be written.
    pub(crate) fn output(error: &io::Error) -> Self {
        let mut failure = Self::new("CLI_OUTPUT", "writing the output").because(error);
        if error.kind() == io::ErrorKind::BrokenPipe {
            failure.0.exit = EXIT_PIPE;
            failure.0.silent = true;
        }
        failure
    }

    /// Prints it on standard error and gives the exit code. `verbose` adds the request's id.
    pub(crate) fn report(&self, json: bool, verbose: bool) -> ExitCode {
        if !self.0.silent {
            let mut text = if json { self.to_json() } else { self.to_string() };
            if verbose && !json && !self.0.request_id.is_empty() {
                text.push_str(&format!(" · request {}", self.0.request_id));
            }
            // With standard error gone too, the code is all that is left to say.
            let _ = writeln!(io::stderr(), "{text}");
        }
        ExitCode::from(self.0.exit)
    }

    fn to_json(&self) -> String {
        serde_json::json!({
            "error": {"code": self.0.code, "what": self.0.what, "why": self.0.why, "try": self.0.advice,
                "request_id": self.0.request_id}
        })
        .to_string()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error[{}]: {}", self.0.code, self.0.what)?;
        if let Some(why) = &self.0.why {
            write!(f, " · {why}")?;
        }
        if let Some(advice) = &self.0.advice {
            write!(f, " · try: {advice}")?;
        }
        Ok(())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = error.code().to_owned();
        let advice = advice(&code, error.kind());
        let mut failure = Self::new(&code, error.to_string());
        if let ClientError::Api(api) = &error {
            api.request_id.clone_into(&mut failure.0.request_id);
        }
        failure.0.why = std::error::Error::source(&error).map(dormouse_model::error::chain);
        failure.0.advice = advice.map(str::to_owned);
        failure
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        ClientError::from(status).into()
    }
}

/// The next step after an error, by its code and, where the code says nothing, its kind.
fn advice(code: &str, kind: Kind) -> Option<&'static str> {
    match code {
        "CLIENT_DAEMON_ABSENT" => {
            return Some("sudo dormoused, or --host unix:///PATH if it listens elsewhere");
        }
        "CLIENT_NOT_ALLOWED" => return Some("as root, or as a member of the socket's group"),
        "CLIENT_HANDSHAKE_FAILED" => return Some("dormouse --host with the daemon's own socket"),
        _ => {}
    }
    let image = code.starts_with("IMAGE");
    match kind {
        Kind::NotFound if image => Some("dormouse image ls"),
        Kind::NotFound => Some("dormouse ps -a"),
        Kind::Exists if image => Some("dormouse image ls"),
        Kind::Exists => Some("another --name, or dormouse rm the old one"),
        Kind::WrongState => Some("dormouse ps -a"),
        Kind::Unsupported => Some("dormouse doctor"),
        Kind::Conflict => Some("the same again"),
        Kind::Exhausted => Some("dormouse system info"),
        Kind::Unavailable => Some("the same again in a moment"),
        Kind::Invalid | Kind::Timeout | Kind::Cancelled | Kind::Corrupt | Kind::Denied | Kind::Bug => None,
    }
}

/// Prints what clap has to say: help and version as they are, an error in our shape.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nothing sensible is left to do when help cannot be printed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let text = text
        .strip_prefix("error: ")
        .map_or_else(|| text.clone(), |rest| format!("error[CLI_USAGE]: {rest}"));
    let _ = write!(io::stderr(), "{text}");
    ExitCode::from(EXIT_FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_next_step() {
        let failure = Failure::new("X_Y", "starting web")
            .because(&io::Error::other("no room"))
            .advise("dormouse ps");
        assert_eq!(
            failure.to_string(),
            "error[X_Y]: starting web · no room · try: dormouse ps"
        );
        assert_eq!(
            failure.to_json(),
            r#"{"error":{"code":"X_Y","request_id":"","try":"dormouse ps","what":"starting web","why":"no room"}}"#
        );
    }

    #[test]
    fn an_absent_daemon_is_told_with_socket_and_command() {
        let error = ClientError::NotListening {
            path: "/run/dormouse/dormoused.sock".into(),
            source: io::Error::from_raw_os_error(2),
        };
        let text = Failure::from(error).to_string();
        assert!(text.starts_with(
            "error[CLIENT_DAEMON_ABSENT]: no daemon listens at /run/dormouse/dormoused.sock · "
        ));
        assert!(text.contains("try: sudo dormoused"), "{text}");
    }
}
