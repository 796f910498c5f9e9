//! `wait`.

use std::time::{Duration, Instant};

use dormouse_client::{ClientError, v1};
use dormouse_model::Kind;
use serde_json::json;

use super::{list, typed_duration};
use crate::arguments::WaitArguments;
use crate::failure::Failure;
use crate::session::Session;
use crate::{json, text};

/// How long one request waits; the whole wait is as many of them as it takes.
const STEP: Duration = Duration::from_secs(60);

/// Between attempts while the daemon is away.
const PAUSE: Duration = Duration::from_millis(250);

/// How long a wait without a timeout of its own bears with an absent daemon.
const ABSENCE: Duration = Duration::from_secs(30);

/// What a wait is for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    states: Vec<v1::InstanceState>,
    deleted: bool,
}

fn wanted(words: &[String]) -> Result<Wanted, Failure> {
    use v1::InstanceState::{Initializing, Running, Standby};
    let mut wanted = Wanted::default();
    for word in words {
        match word.as_str() {
            "deleted" => wanted.deleted = true,
            "asleep" => wanted.states.push(Standby),
            "ready" => wanted.states.push(Running),
            "awake" => wanted.states.extend([Initializing, Running]),
            other => wanted.states.push(list::state(other)?),
        }
    }
    Ok(wanted)
}

/// Returns once the instance is as wanted. A daemon that is restarted meanwhile does not matter.
pub(crate) async fn wait(session: &Session, arguments: WaitArguments) -> Result<(), Failure> {
    let wanted = wanted(&arguments.wanted)?;
    let timeout = arguments.timeout.as_deref().map(typed_duration).transpose()?;
    let began = Instant::now();
    let mut last_answer = began;
    loop {
        let left = timeout.map_or(STEP, |timeout| timeout.saturating_sub(began.elapsed()).min(STEP));
        let error = match ask(session, &arguments.name, &wanted, left).await {
            Ok(instance) => return print(session, &arguments.name, instance.as_ref()),
            Err(error) => error,
        };
        let over = timeout.is_some_and(|timeout| began.elapsed() >= timeout);
        match error.kind() {
            Kind::Timeout if over => {
                let words = arguments.wanted.join(" or ");
                let what = format!(
                    "{} is not {words} after {}",
                    arguments.name,
                    text::short(began.elapsed())
                );
                return Err(Failure::new("CLI_WAIT_TIMEOUT", what)
                    .advise(format!("dormouse inspect {}", arguments.name)));
            }
            Kind::Timeout => last_answer = Instant::now(),
            Kind::Unavailable if !over && (timeout.is_some() || last_answer.elapsed() < ABSENCE) => {
                tokio::time::sleep(PAUSE).await;
            }
            Kind::Unavailable
            | Kind::Invalid
            | Kind::NotFound
            | Kind::Exists
            | Kind::WrongState
            | Kind::Unsupported
            | Kind::Conflict
            | Kind::Exhausted
            | Kind::Cancelled
            | Kind::Corrupt
            | Kind::Denied
            | Kind::Bug => return Err(error.into()),
        }
    }
}

async fn ask(
    session: &Session,
    name: &str,
    wanted: &Wanted,
    left: Duration,
) -> Result<Option<v1::Instance>, ClientError> {
    let client = dormouse_client::Client::connect(&session.host).await?;
    let request = v1::WaitInstanceRequest {
        instance: name.to_owned(),
        states: wanted.states.iter().copied().map(i32::from).collect(),
        deleted: wanted.deleted,
        timeout: Some(text::api_duration(left)),
    };
    Ok(client
        .instances()
        .wait_instance(request)
        .await?
        .into_inner()
        .instance)
}

fn print(session: &Session, name: &str, instance: Option<&v1::Instance>) -> Result<(), Failure> {
    match instance {
        Some(instance) if session.json => session.document(&json::instance(instance)),
        Some(instance) => session.line(&text::state(instance.state())),
        None if session.json => session.document(&json!({"name": name, "deleted": true})),
        None => session.line("deleted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::InstanceState::{Initializing, Running, Standby, Stopped};

    #[test]
    fn words_for_waits() {
        for (words, want) in [
            ("asleep", Some((vec![Standby], false))),
            ("ready", Some((vec![Running], false))),
            ("running", Some((vec![Running], false))),
            ("awake", Some((vec![Initializing, Running], false))),
            ("stopped deleted", Some((vec![Stopped], true))),
            ("tired", None),
        ] {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let want = want.map(|(states, deleted)| Wanted { states, deleted });
            assert_eq!(wanted(&words).ok(), want, "{words:?}");
        }
    }
}
