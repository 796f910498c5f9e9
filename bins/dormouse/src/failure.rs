//! Errors as they are printed, and the exit codes.
//!
//! ```text
//! error[INSTANCE_NOT_FOUND]: no instance is named web · try: dormouse ps -a
//! ```

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use dormouse_client::ClientError;
use dormouse_model::{Fault, Kind, Retry};

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
    /// Of an error of daemon or connection; usage and our own have none.
    kind: Option<Kind>,
    retry: Option<Retry>,
    retry_after: Option<Duration>,
    /// The field of the request that is wrong.
    field: Option<String>,
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
            kind: None,
            retry: None,
            retry_after: None,
            field: None,
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
        let mut failure = Self::new(error.code(), error.to_string());
        failure.0.kind = Some(error.kind());
        failure.0.retry = Some(error.kind().retry());
        failure.0.field = error.field().map(str::to_owned);
        failure
    }

    /// Something that was done here, without the daemon, did not work.
    pub(crate) fn of(error: &impl Fault) -> Self {
        let mut failure = Self::input(error);
        failure.0.advice = advice(error.code(), error.kind()).map(str::to_owned);
        failure
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
            "error": {
                "code": self.0.code,
                "kind": self.0.kind.map(Kind::as_str),
                "what": self.0.what,
                "why": self.0.why,
                "field": self.0.field,
                "retry": self.0.retry.map(Retry::as_str),
                "retry_after_seconds": self.0.retry_after.map(|pause| pause.as_secs_f64()),
                "try": self.0.advice,
                "request_id": self.0.request_id,
            }
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
        if let Some(pause) = self.0.retry_after {
            write!(f, ", after {} s", pause.as_secs_f64())?;
        }
        Ok(())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = error.code().to_owned();
        let advice = advice(&code, error.kind());
        let mut failure = Self::new(&code, error.to_string());
        failure.0.kind = Some(error.kind());
        failure.0.retry = Some(error.kind().retry());
        if let ClientError::Api(api) = &error {
            api.request_id.clone_into(&mut failure.0.request_id);
            failure.0.retry = Some(api.retry);
            failure.0.retry_after = api.retry_after;
            failure.0.field = Some(api.field.clone()).filter(|field| !field.is_empty());
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
        "STORE_BACKUP_EXISTS" => return Some("another FILE"),
        // The cause says what is wrong with that place.
        "STORE_BACKUP_FAILED" => return Some("a FILE in a directory that can be written"),
        "STORE_FULL" => return Some("free space where it was to be written"),
        // Of a file that was named; again would be the same.
        "STORE_OPEN_FAILED" => return None,
        "STORE_NOT_SET_ASIDE" => return Some("dormouse store quarantine ls"),
        "STORE_LOCKED" => return Some("dormouse store check without --path, or end that process"),
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
            concat!(
                r#"{"error":{"code":"X_Y","field":null,"kind":null,"request_id":"","retry":null,"#,
                r#""retry_after_seconds":null,"try":"dormouse ps","what":"starting web","why":"no room"}}"#
            )
        );
    }

    #[test]
    fn an_error_of_the_daemon_is_told_whole() {
        let detail = dormouse_client::v1::ErrorDetail {
            code: "INSTANCE_BUSY".to_owned(),
            kind: "unavailable".to_owned(),
            retry: "with_backoff".to_owned(),
            retry_after: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            request_id: "r1".to_owned(),
            field: "instance".to_owned(),
            ..Default::default()
        };
        let bytes = dormouse_proto::details::encode(14, &detail);
        let status = tonic::Status::with_details(tonic::Code::Unavailable, "web is busy", bytes.into());
        let failure = Failure::from(status);
        assert_eq!(
            failure.to_string(),
            "error[INSTANCE_BUSY]: web is busy · try: the same again in a moment, after 1 s"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        let error = &json["error"];
        assert_eq!(error["kind"], "unavailable");
        assert_eq!(error["retry"], "with_backoff");
        assert_eq!(error["retry_after_seconds"], 1.0);
        assert_eq!(error["field"], "instance");
        assert_eq!(error["request_id"], "r1");
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
