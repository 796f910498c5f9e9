//! `events`.

use dormouse_client::v1;

use crate::arguments::EventsArguments;
use crate::failure::Failure;
use crate::session::Session;
use crate::{json, table};

/// Prints events until the daemon ends the stream, which is an error: nobody asked it to.
pub(crate) async fn events(session: &Session, arguments: EventsArguments) -> Result<(), Failure> {
    let client = session.connect().await?;
    let request = v1::WatchEventsRequest {
        after_cursor: arguments.after.unwrap_or_default(),
        instance: arguments.name.unwrap_or_default(),
    };
    let mut events = client.system().watch_events(request).await?.into_inner();
    let mut last = String::new();
    while let Some(event) = events.message().await? {
        if session.json {
            session.document(&json::event(&event))?;
        } else {
            session.line(&table::event(&event))?;
        }
        last = event.cursor;
    }
    let again = if last.is_empty() {
        "dormouse events".to_owned()
    } else {
        format!("dormouse events --after {last}")
    };
    Err(Failure::new("CLI_EVENTS_CUT", "the daemon ended the stream").advise(again))
}
