//! `system info`, `doctor`, `setup` and `version`.

use std::process::ExitCode;

use dormouse_client::{Client, ClientError, v1};
use serde_json::{Value, json};

use super::now;
use crate::arguments::SetupArguments;
use crate::failure::Failure;
use crate::session::Session;
use crate::{json, table};

/// Some check failed. Not one of our own errors.
const EXIT_CHECK_FAILED: u8 = 1;

pub(crate) async fn info(session: &Session) -> Result<(), Failure> {
    let client = session.connect().await?;
    let info = client
        .system()
        .get_info(v1::GetInfoRequest {})
        .await?
        .into_inner();
    if session.json {
        session.document(&json::system_info(&info))
    } else {
        session.line(&table::system_info(&info, now()))
    }
}

/// Prints the daemon's checks. A daemon that cannot be reached is itself a failed check.
pub(crate) async fn doctor(session: &Session) -> Result<ExitCode, Failure> {
    let checks = match look(session).await {
        Ok(checks) => checks,
        Err(error) => vec![v1::Check {
            name: "daemon".to_owned(),
            status: v1::CheckStatus::Failed.into(),
            detail: dormouse_model::error::chain(&error),
            advice: "start it (sudo dormoused) and look again: it looks at the rest".to_owned(),
        }],
    };
    if session.json {
        session.document(&Value::Array(checks.iter().map(json::check).collect()))?;
    } else {
        session.line(&table::checks(&checks))?;
    }
    let failed = checks
        .iter()
        .any(|check| check.status() == v1::CheckStatus::Failed);
    Ok(if failed {
        ExitCode::from(EXIT_CHECK_FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

async fn look(session: &Session) -> Result<Vec<v1::Check>, ClientError> {
    let client = Client::connect(&session.host).await?;
    let mut system = client.system();
    let work = system.doctor(v1::DoctorRequest {});
    Ok(session
        .progress
        .during("looking at the host", work)
        .await?
        .into_inner()
        .checks)
}

/// Changes the host's limits, or puts them back, and prints what changed.
pub(crate) async fn setup(session: &Session, arguments: &SetupArguments) -> Result<(), Failure> {
    let client = session.connect().await?;
    let request = v1::SetupRequest {
        sleepers: arguments.sleepers.unwrap_or(0),
        undo: arguments.undo,
    };
    let done = client.system().setup(request).await?.into_inner();
    if session.json {
        return session.document(&json::setup(&done));
    }
    if !done.changed.is_empty() {
        session.line(&table::changed_settings(&done.changed))?;
    }
    let sleepers = done.sleepers;
    session.line(&match (arguments.undo, done.changed.is_empty()) {
        (true, true) => "nothing to put back".to_owned(),
        (true, false) => "put back; undo of this: dormouse setup".to_owned(),
        (false, true) => format!("already set up for {sleepers} sleepers; nothing changed"),
        (false, false) => format!("set up for {sleepers} sleepers; undo: dormouse setup --undo"),
    })
}

/// Prints both versions; that of the daemon is left out when none answers.
pub(crate) async fn version(session: &Session) -> Result<(), Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    let daemon = match Client::connect(&session.host).await {
        Ok(client) => client.system().get_info(v1::GetInfoRequest {}).await.ok(),
        Err(_) => None,
    };
    let daemon = daemon.map(|info| info.into_inner().version);
    if session.json {
        return session.document(&json!({"client": ours, "daemon": daemon}));
    }
    session.line(&format!("client  {ours}"))?;
    session.line(&format!("daemon  {}", daemon.as_deref().unwrap_or("not reached")))
}
