//! Tests of the QMP client.

use super::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// A client, and the other end playing `script`: for each line read, what is written back.
async fn against<T>(script: &[&str], act: impl AsyncFnOnce(&mut Client) -> T) -> (T, Vec<String>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut client = Client::over(ours);
    let play = async {
        let (reader, mut writer) = theirs.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut heard = Vec::new();
        for answer in script {
            match lines.next_line().await.unwrap() {
                Some(line) => heard.push(line),
                None => break,
            }
            writer.write_all(answer.as_bytes()).await.unwrap();
        }
        heard
    };
    let (result, heard) = tokio::join!(act(&mut client), play);
    (result, heard)
}

#[tokio::test]
async fn answers_are_found_among_events_and_old_answers() {
    let (got, heard) = against(
        &["{\"event\":\"STOP\"}\n{\"return\":{\"old\":1},\"id\":0}\n{\"return\":{\"a\":2},\"id\":1}\n"],
        async |client| client.execute(Command::QueryStatus).await.unwrap(),
    )
    .await;
    assert_eq!(got, json!({"a": 2}));
    assert_eq!(heard, [r#"{"execute":"query-status","id":1}"#]);
}

#[tokio::test]
async fn a_refusal_says_which_command() {
    let (got, _) = against(
        &["{\"error\":{\"class\":\"X\",\"desc\":\"no\"},\"id\":1}\n"],
        async |client| client.execute(Command::Cont).await,
    )
    .await;
    assert!(
        matches!(&got, Err(ClientError::Refused { command: "cont", description }) if description == "no"),
        "{got:?}"
    );
}

#[tokio::test]
async fn a_caller_that_left_does_not_confuse_the_next() {
    let (got, _) = against(
        &[
            "",
            "{\"return\":{\"to\":\"first\"},\"id\":1}\n{\"return\":{\"to\":\"second\"},\"id\":2}\n",
        ],
        async |client| {
            {
                let left = client.execute(Command::Stop);
                tokio::pin!(left);
                assert!(futures_poll_once(left.as_mut()).await.is_none());
            }
            client.execute(Command::Cont).await.unwrap()
        },
    )
    .await;
    assert_eq!(got, json!({"to": "second"}));
}

/// Polls once.
async fn futures_poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut future).poll(context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn the_end_is_told() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut client = Client::over(ours);
    theirs
        .write_all(
            b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n{\"event\":\"SHUTDOWN\"}\n",
        )
        .await
        .unwrap();
    drop(theirs);
    assert!(matches!(
        client.execute(Command::Stop).await,
        Err(ClientError::Closed)
    ));
    client.drain();
    assert_eq!(client.shutdown(), Some(ShutdownCause::GuestRebooted));
}

#[tokio::test]
async fn nonsense_is_an_error() {
    let (got, _) = against(&["HTTP/1.1 200 OK\n"], async |client| {
        client.execute(Command::Stop).await
    })
    .await;
    assert!(
        matches!(got, Err(ClientError::Wire(WireError::NotAMessage { .. }))),
        "{got:?}"
    );
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    use std::os::fd::AsFd;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut client = Client::over(ours);
    let file = std::fs::File::open("/dev/null").unwrap();
    client
        .send(Command::AddStateDescriptor, Some(file.as_fd()))
        .await
        .unwrap();
    let theirs = theirs.into_std().unwrap();
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut bytes = [0; 256];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got =
        nix::sys::socket::recvmsg::<()>(theirs.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let count = got.cmsgs().unwrap().count();
    assert_eq!(count, 1);
    drop(client);
    let mut rest = Vec::new();
    theirs.set_nonblocking(true).unwrap();
    UnixStream::from_std(theirs)
        .unwrap()
        .read_to_end(&mut rest)
        .await
        .unwrap();
    assert!(rest.is_empty());
}
