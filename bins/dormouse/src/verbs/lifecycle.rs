//! `start`, `stop`, `wake` and `rm`.

use std::process::ExitCode;

use dormouse_client::v1;

use super::{each, typed_duration};
use crate::arguments::{Names, RmArguments, StopArguments};
use crate::failure::Failure;
use crate::session::{Session, request_id};
use crate::{json, text};

/// Prints the name of what was changed, or all of it under `--json`.
pub(super) fn print_changed(session: &Session, instance: &v1::Instance) -> Result<(), Failure> {
    if session.json {
        session.document(&json::instance(instance))
    } else {
        session.line(&instance.name)
    }
}

pub(crate) async fn start(session: &Session, names: Names) -> Result<ExitCode, Failure> {
    let client = session.connect().await?;
    let act = |instance: String| {
        let mut instances = client.instances();
        async move {
            let label = format!("starting {instance}");
            let request = v1::StartInstanceRequest {
                instance,
                etag: String::new(),
                request_id: request_id()?,
            };
            let started = session
                .progress
                .during(&label, instances.start_instance(request))
                .await?;
            print_changed(session, &started.into_inner())
        }
    };
    Ok(each(session, names.names, act).await)
}

pub(crate) async fn stop(session: &Session, arguments: StopArguments) -> Result<ExitCode, Failure> {
    let timeout = match arguments.timeout.as_deref() {
        Some(text) => Some(text::api_duration(typed_duration(text)?)),
        None => None,
    };
    let client = session.connect().await?;
    let act = |instance: String| {
        let mut instances = client.instances();
        async move {
            let label = format!("stopping {instance}");
            let request = v1::StopInstanceRequest {
                instance,
                timeout,
                etag: String::new(),
                request_id: request_id()?,
            };
            let stopped = session
                .progress
                .during(&label, instances.stop_instance(request))
                .await?;
            print_changed(session, &stopped.into_inner())
        }
    };
    Ok(each(session, arguments.names.names, act).await)
}

pub(crate) async fn wake(session: &Session, names: Names) -> Result<ExitCode, Failure> {
    let client = session.connect().await?;
    let act = |instance: String| {
        let mut instances = client.instances();
        async move {
            let label = format!("waking {instance}");
            let request = v1::WakeInstanceRequest {
                instance,
                etag: String::new(),
                request_id: request_id()?,
            };
            let woken = session
                .progress
                .during(&label, instances.wake_instance(request))
                .await?;
            print_changed(session, &woken.into_inner())
        }
    };
    Ok(each(session, names.names, act).await)
}

pub(crate) async fn rm(session: &Session, arguments: RmArguments) -> Result<ExitCode, Failure> {
    let client = session.connect().await?;
    let force = arguments.force;
    let act = |instance: String| {
        let mut instances = client.instances();
        async move {
            let label = format!("removing {instance}");
            let name = instance.clone();
            let request = v1::DeleteInstanceRequest {
                instance,
                force,
                etag: String::new(),
                request_id: request_id()?,
            };
            let deleted = session
                .progress
                .during(&label, instances.delete_instance(request))
                .await?
                .into_inner();
            if session.json {
                session.document(&serde_json::json!({"id": deleted.id, "deleted": true}))
            } else {
                session.line(&name)
            }
        }
    };
    Ok(each(session, arguments.names.names, act).await)
}
