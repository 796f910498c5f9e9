//! `logs`.

use dormouse_client::{Client, v1};

use crate::arguments::{LogsArguments, Source};
use crate::failure::Failure;
use crate::json;
use crate::session::Session;

pub(crate) async fn logs(session: &Session, arguments: LogsArguments) -> Result<(), Failure> {
    let source = match arguments.source {
        Source::App => v1::LogSource::App,
        Source::Console => v1::LogSource::Console,
        Source::Vmm => v1::LogSource::Vmm,
    };
    let request = v1::StreamLogsRequest {
        instance: arguments.name,
        source: source.into(),
        follow: arguments.follow,
        tail: arguments.tail,
    };
    let client = session.connect().await?;
    stream(session, &client, request).await
}

/// Prints the stream to its end: each of a command's streams on ours of the same name.
pub(super) async fn stream(
    session: &Session,
    client: &Client,
    request: v1::StreamLogsRequest,
) -> Result<(), Failure> {
    let mut chunks = client.instances().stream_logs(request).await?.into_inner();
    while let Some(chunk) = chunks.message().await? {
        if session.json {
            session.document(&json::log_chunk(&chunk))?;
        } else {
            session.bytes(&chunk.data, chunk.stream() == v1::LogStream::Stderr)?;
        }
    }
    Ok(())
}
