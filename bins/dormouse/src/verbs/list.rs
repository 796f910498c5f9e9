//! `ps` and `inspect`.

use dormouse_client::{Client, v1};
use serde_json::Value;

use super::{PAGE_SIZE, create, now};
use crate::arguments::{Names, PsArguments};
use crate::failure::Failure;
use crate::session::Session;
use crate::{json, table, text};

/// The states of what is alive, asleep or awake.
const ALIVE: [v1::InstanceState; 8] = [
    v1::InstanceState::Starting,
    v1::InstanceState::Initializing,
    v1::InstanceState::Running,
    v1::InstanceState::Dozing,
    v1::InstanceState::Sleeping,
    v1::InstanceState::Standby,
    v1::InstanceState::Waking,
    v1::InstanceState::Stopping,
];

pub(crate) async fn ps(session: &Session, arguments: PsArguments) -> Result<(), Failure> {
    let mut filter = filter(&arguments.filter)?;
    if filter.states.is_empty() && !arguments.all {
        filter.states = ALIVE.map(i32::from).to_vec();
    }
    let client = session.connect().await?;
    let instances = all(&client, &filter).await?;
    if arguments.quiet {
        return instances
            .iter()
            .try_for_each(|instance| session.line(&instance.id));
    }
    if session.json {
        return session.document(&Value::Array(instances.iter().map(json::instance).collect()));
    }
    let columns = match (arguments.columns.as_slice(), arguments.output) {
        ([], Some(_)) => table::WIDE.as_slice(),
        ([], None) => table::USUAL.as_slice(),
        (columns, _) => columns,
    };
    session.line(&table::instances(&instances, columns, now()))
}

/// All pages of a list.
async fn all(client: &Client, filter: &v1::InstanceFilter) -> Result<Vec<v1::Instance>, Failure> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListInstancesRequest {
            filter: Some(filter.clone()),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.instances().list_instances(request).await?.into_inner();
        found.extend(page.instances);
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}

/// The filter that `--filter` flags stand for.
fn filter(flags: &[String]) -> Result<v1::InstanceFilter, Failure> {
    let mut filter = v1::InstanceFilter::default();
    for flag in flags {
        let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
        match key {
            "state" => {
                for word in value.split(',') {
                    filter.states.push(state(word)?.into());
                }
            }
            "label" => {
                let (key, value) = create::label(value);
                filter.labels.insert(key, value);
            }
            "name" => value.clone_into(&mut filter.name),
            _ => {
                return Err(Failure::new(
                    "CLI_USAGE",
                    format!("--filter {flag:?}: use state=, label= or name="),
                ));
            }
        }
    }
    Ok(filter)
}

/// A state that was typed.
pub(super) fn state(word: &str) -> Result<v1::InstanceState, Failure> {
    text::parse_state(word).ok_or_else(|| {
        let known: Vec<&str> = dormouse_model::State::ALL
            .iter()
            .map(|state| state.as_str())
            .collect();
        Failure::new(
            "CLI_USAGE",
            format!("{word:?} is not a state: use one of {}", known.join(", ")),
        )
    })
}

pub(crate) async fn inspect(session: &Session, names: Names) -> Result<(), Failure> {
    let client = session.connect().await?;
    for instance in names.names {
        let found = client
            .instances()
            .get_instance(v1::GetInstanceRequest { instance })
            .await?
            .into_inner();
        print(session, &json::instance(&found))?;
    }
    Ok(())
}

/// A document on one line for programs, on many for people.
pub(super) fn print(session: &Session, value: &Value) -> Result<(), Failure> {
    if session.json {
        session.document(value)
    } else {
        session.line(&format!("{value:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let flags = ["state=running,standby", "label=team=a", "label=solo", "name=we"].map(str::to_owned);
        let want = v1::InstanceFilter {
            states: vec![
                v1::InstanceState::Running.into(),
                v1::InstanceState::Standby.into(),
            ],
            labels: [("team", "a"), ("solo", "")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            name: "we".to_owned(),
        };
        assert_eq!(filter(&flags).unwrap(), want);
        for wrong in ["state=", "state=asleep", "colour=red", "running"] {
            assert!(filter(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
