//! `standby`, `status` and `hold`.

use std::process::ExitCode;

use dormouse_client::v1;
use serde_json::Value;

use super::lifecycle::print_changed;
use super::{PAGE_SIZE, each, typed_duration};
use crate::arguments::{HoldArguments, StandbyArguments};
use crate::failure::Failure;
use crate::session::{Session, request_id};
use crate::{json, table, text};

/// What the words after `standby` ask for: `status NAME` and `hold NAME [DURATION]` are verbs of
/// their own; an instance of such a name sleeps by `standby status` alone.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Sleep(&'a [String]),
    Status(&'a str),
    Hold(&'a str, Option<&'a str>),
}

fn asked(words: &[String]) -> Asked<'_> {
    match words {
        [verb, name] if verb == "status" => Asked::Status(name),
        [verb, name] if verb == "hold" => Asked::Hold(name, None),
        [verb, name, duration] if verb == "hold" => Asked::Hold(name, Some(duration)),
        names => Asked::Sleep(names),
    }
}

pub(crate) async fn standby(session: &Session, arguments: StandbyArguments) -> Result<ExitCode, Failure> {
    let names = match asked(&arguments.names.names) {
        Asked::Status(name) => {
            status(session, Some(name.to_owned())).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Asked::Hold(name, duration) => {
            let arguments = HoldArguments {
                name: name.to_owned(),
                duration: duration.map(str::to_owned),
            };
            hold(session, arguments).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Asked::Sleep(names) => names.to_vec(),
    };
    let yield_to_traffic = arguments.yield_to_traffic;
    let client = session.connect().await?;
    let act = |instance: String| {
        let mut instances = client.instances();
        async move {
            let label = format!("putting {instance} to sleep");
            let request = v1::StandbyInstanceRequest {
                instance,
                yield_to_traffic,
                etag: String::new(),
                request_id: request_id()?,
            };
            let asleep = session
                .progress
                .during(&label, instances.standby_instance(request))
                .await?;
            print_changed(session, &asleep.into_inner())
        }
    };
    Ok(each(session, names, act).await)
}

pub(crate) async fn status(session: &Session, name: Option<String>) -> Result<(), Failure> {
    let client = session.connect().await?;
    if let Some(instance) = name {
        let found = client
            .standby()
            .get_status(v1::GetStatusRequest { instance })
            .await?
            .into_inner();
        return print_status(session, &found);
    }
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListStatusesRequest {
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.standby().list_statuses(request).await?.into_inner();
        found.extend(page.statuses);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    if session.json {
        return session.document(&Value::Array(found.iter().map(json::standby_status).collect()));
    }
    session.line(&table::statuses(&found))
}

pub(crate) async fn hold(session: &Session, arguments: HoldArguments) -> Result<(), Failure> {
    let duration = match arguments.duration.as_deref() {
        Some(text) => Some(text::api_duration(typed_duration(text)?)),
        None => None,
    };
    let client = session.connect().await?;
    let request = v1::HoldRequest {
        instance: arguments.name,
        duration,
        request_id: request_id()?,
        etag: String::new(),
    };
    let held = client.standby().hold(request).await?.into_inner();
    print_status(session, &held)
}

fn print_status(session: &Session, status: &v1::StandbyStatus) -> Result<(), Failure> {
    if session.json {
        session.document(&json::standby_status(status))
    } else {
        session.line(&table::statuses(std::slice::from_ref(status)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_after_standby() {
        let words = |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        assert_eq!(asked(&words("web")), Asked::Sleep(&words("web")));
        assert_eq!(asked(&words("web api")), Asked::Sleep(&words("web api")));
        assert_eq!(asked(&words("status")), Asked::Sleep(&words("status")));
        assert_eq!(asked(&words("status web")), Asked::Status("web"));
        assert_eq!(asked(&words("hold web")), Asked::Hold("web", None));
        assert_eq!(asked(&words("hold web 5m")), Asked::Hold("web", Some("5m")));
        assert_eq!(
            asked(&words("status web api")),
            Asked::Sleep(&words("status web api"))
        );
    }
}
