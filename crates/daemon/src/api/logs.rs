//! Streaming a log file: from its beginning or its last lines, and on as it grows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_instance::InstanceError;
use dormouse_instance::view::InstanceView;
use dormouse_model::State;
use dormouse_proto::v1;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::refusal::RequestError;
use super::status::status;

/// Chunks that may wait for a slow client; reading waits when full.
const CHUNKS: usize = 8;

/// Bytes of a chunk.
const CHUNK: usize = 32 * 1024;

/// How often a file is looked at while it is followed. A log has no event that survives its being
/// written by another process under another user, short of inotify on every file.
const LOOK: Duration = Duration::from_millis(100);

/// Most bytes that are searched for the beginning of a tail.
const TAIL_WINDOW: u64 = 1 << 20;

/// The stream of a log. `follow` goes on until the instance has ended or is gone, or until `stop`.
pub(super) fn stream(
    path: PathBuf,
    tail: Option<usize>,
    follow: Option<watch::Receiver<InstanceView>>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<v1::LogChunk, Status>> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let last = sender.clone();
        // A client that went away ends the task by closing the channel.
        if stop
            .run_until_cancelled(pump(path, tail, follow, sender))
            .await
            .is_none()
        {
            // Without room for it the client learns it from the connection.
            drop(last.try_send(Err(status(&InstanceError::ShuttingDown))));
        }
    });
    Owned::new(ReceiverStream::new(receiver), tasks)
}

/// A stream that owns the task that feeds it.
pub(super) struct Owned<S> {
    inner: S,
    _tasks: JoinSet<()>,
}

impl<S> Owned<S> {
    /// `inner`, fed by `tasks`, which end with it.
    pub(super) const fn new(inner: S, tasks: JoinSet<()>) -> Self {
        Self { inner, _tasks: tasks }
    }
}

impl<S: Stream + Unpin> Stream for Owned<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.inner).poll_next(context)
    }
}

type Chunks = mpsc::Sender<Result<v1::LogChunk, Status>>;

async fn pump(
    path: PathBuf,
    tail: Option<usize>,
    follow: Option<watch::Receiver<InstanceView>>,
    out: Chunks,
) -> Result<(), mpsc::error::SendError<Result<v1::LogChunk, Status>>> {
    let mut file = loop {
        match File::open(&path).await {
            Ok(file) => break file,
            // Not started yet: a follower waits for the first line, others have nothing to see.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if follow.as_ref().is_none_or(|view| view.has_changed().is_err()) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(source) => return out.send(Err(unreadable(&path, source))).await,
        }
    };
    if let Some(lines) = tail
        && let Err(source) = seek_tail(&mut file, lines).await
    {
        return out.send(Err(unreadable(&path, source))).await;
    }
    let mut buffer = vec![0_u8; CHUNK];
    loop {
        // Looked at before reading: what was written before the end is then read after it.
        let over = follow.as_ref().is_none_or(has_ended);
        loop {
            match file.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => {
                    let data = buffer.get(..count).unwrap_or_default().to_vec();
                    out.send(Ok(v1::LogChunk {
                        data,
                        ..Default::default()
                    }))
                    .await?;
                }
                Err(source) => return out.send(Err(unreadable(&path, source))).await,
            }
        }
        if over || out.is_closed() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> Status {
    status(&RequestError::Log {
        path: path.to_owned(),
        source,
    })
}

/// Whether nothing more will be printed.
fn has_ended(view: &watch::Receiver<InstanceView>) -> bool {
    if view.has_changed().is_err() {
        return true;
    }
    match view.borrow().state {
        State::Stopped | State::Failed | State::Deleting => true,
        State::Starting
        | State::Initializing
        | State::Running
        | State::Dozing
        | State::Sleeping
        | State::Standby
        | State::Waking
        | State::Stopping => false,
    }
}

/// Moves to the beginning of the last `lines` lines.
async fn seek_tail(file: &mut File, lines: usize) -> std::io::Result<()> {
    let length = file.metadata().await?.len();
    let from = length.saturating_sub(TAIL_WINDOW);
    file.seek(SeekFrom::Start(from)).await?;
    let mut window = Vec::new();
    file.read_to_end(&mut window).await?;
    let start = tail_start(&window, lines);
    file.seek(SeekFrom::Start(from + start as u64)).await?;
    Ok(())
}

/// Where the last `lines` lines of `window` begin; a last line without its end counts.
fn tail_start(window: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return window.len();
    }
    let body = window.strip_suffix(b"\n").unwrap_or(window);
    body.iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(lines - 1)
        .map_or(0, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_begin_at_lines() {
        for (text, lines, want) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\n", 9, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
        ] {
            let start = tail_start(text.as_bytes(), lines);
            assert_eq!(&text[start..], want, "{text:?} {lines}");
        }
    }
}
