//! `store check`, `store backup`, `store quarantine`.

use std::path::Path;
use std::process::ExitCode;

use dormouse_client::v1;
use dormouse_store::{Damage, Report, sqlite};
use serde_json::{Value, json};

use crate::arguments::{QuarantineRmArguments, StoreBackupArguments, StoreCheckArguments};
use crate::failure::Failure;
use crate::session::Session;
use crate::{json, table};

/// Something is wrong with the store. Not one of our own errors.
const EXIT_UNSOUND: u8 = 1;

pub(crate) async fn check(session: &Session, arguments: StoreCheckArguments) -> Result<ExitCode, Failure> {
    let report = match arguments.path {
        Some(path) => look_at(&path)?,
        None => ask(session).await?,
    };
    if session.json {
        session.document(&json::store_report(&report))?;
    } else {
        session.line(&table::store_report(&report))?;
    }
    Ok(if report.sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_UNSOUND)
    })
}

async fn ask(session: &Session) -> Result<v1::StoreReport, Failure> {
    let client = session.connect().await?;
    let mut system = client.system();
    let work = system.check_store(v1::CheckStoreRequest {});
    Ok(session
        .progress
        .during("reading all records", work)
        .await?
        .into_inner())
}

/// Checks a file without the daemon.
fn look_at(path: &Path) -> Result<v1::StoreReport, Failure> {
    let report = sqlite::inspect(path).map_err(|error| {
        let failure = Failure::of(&error);
        match std::error::Error::source(&error) {
            Some(cause) => failure.because(cause),
            None => failure,
        }
    })?;
    Ok(to_wire(&report))
}

/// The report as the daemon would send it.
fn to_wire(report: &Report) -> v1::StoreReport {
    let damage = |damage: &Damage| v1::DamagedRecord {
        kind: damage.kind.to_string(),
        key: damage.key.to_string(),
        reason: damage.reason.as_str().to_owned(),
    };
    let counts = report.kinds.iter().map(|(kind, count)| v1::RecordCount {
        kind: kind.to_string(),
        count: *count,
    });
    let newer = report.newer.iter().map(|newer| v1::NewerRecord {
        kind: newer.kind.to_string(),
        key: newer.key.to_string(),
        found: newer.found.into(),
        known: newer.known.into(),
    });
    v1::StoreReport {
        sound: report.is_sound(),
        records: counts.collect(),
        damaged: report.damaged.iter().map(damage).collect(),
        quarantined: report.set_aside.iter().map(damage).collect(),
        newer: newer.collect(),
        unknown_kinds: report.unknown_kinds.iter().copied().map(u32::from).collect(),
        layout_faults: report.layout_faults.clone(),
    }
}

pub(crate) async fn backup(session: &Session, arguments: StoreBackupArguments) -> Result<(), Failure> {
    let path = std::path::absolute(&arguments.file)
        .map_err(|error| Failure::new("CLI_PATH", "finding the file's place").because(&error))?;
    let path = path.display().to_string();
    let client = session.connect().await?;
    let mut system = client.system();
    let work = system.back_up_store(v1::BackUpStoreRequest { path: path.clone() });
    let done = session
        .progress
        .during("copying all records", work)
        .await?
        .into_inner();
    if session.json {
        return session.document(&json!({"path": path, "records": done.records, "bytes": done.bytes}));
    }
    session.line(&format!(
        "{path}: {} records, {} bytes, checked",
        done.records, done.bytes
    ))
}

pub(crate) async fn quarantine_ls(session: &Session) -> Result<(), Failure> {
    let report = ask(session).await?;
    if session.json {
        let all = report.quarantined.iter().map(json::damaged_record).collect();
        return session.document(&Value::Array(all));
    }
    session.line(&table::damaged_records(&report.quarantined))
}

pub(crate) async fn quarantine_rm(
    session: &Session,
    arguments: QuarantineRmArguments,
) -> Result<(), Failure> {
    let (kind, key) = (arguments.kind, arguments.key);
    let client = session.connect().await?;
    let request = v1::DropQuarantinedRequest {
        kind: kind.clone(),
        key: key.clone(),
    };
    client.system().drop_quarantined(request).await?;
    if session.json {
        return session.document(&json!({"kind": kind, "key": key}));
    }
    session.line(&key)
}
