//! Requests with ids against a store in memory, which a "next daemon" opens again.

use super::*;
use dormouse_proto::v1::{DeleteInstanceRequest, DeleteInstanceResponse};
use dormouse_store::{Record, RecordKind};
use tokio::sync::oneshot;
use tonic::Code;

const NOW: WallTime = WallTime::from_unix_nanos(1_000_000_000_000_000_000);

/// What the requests of these tests make.
#[derive(Clone, PartialEq, prost::Message)]
struct Made {
    #[prost(string, tag = "1")]
    name: String,
}

impl Record for Made {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 1;
}

fn later(seconds: u64) -> WallTime {
    WallTime::from_unix_nanos(NOW.unix_nanos() + seconds * 1_000_000_000)
}

fn asked_at(method: &'static str, id: &str, body: &str, at: WallTime) -> Option<Asked> {
    let body = DeleteInstanceRequest {
        instance: body.to_owned(),
        ..Default::default()
    };
    Asked::new(method, id.to_owned(), &body, at).unwrap()
}

fn asked(method: &'static str, id: &str, body: &str) -> Option<Asked> {
    asked_at(method, id, body, NOW)
}

fn answer(id: &str) -> DeleteInstanceResponse {
    DeleteInstanceResponse { id: id.to_owned() }
}

/// Work that makes something, or says what was made before, like every method of the API.
async fn make(ticket: Ticket, store: Store, name: String) -> Result<(DeleteInstanceResponse, Batch), Status> {
    if let Some(past) = ticket.past() {
        let made = store.get::<Made>(past.target.as_str()).await.unwrap();
        let made = made.ok_or_else(|| ticket.gone(&past.target))?;
        return Ok((answer(&made.name), ticket.done(&past.target, Vec::new())));
    }
    let batch = ticket
        .done(&name, Vec::new())
        .put(name.as_str(), &Made { name: name.clone() });
    store.apply(batch).await.unwrap();
    Ok((answer(&name), Batch::new()))
}

async fn ask(
    repeats: &Repeats,
    store: &Store,
    asked: Option<Asked>,
    name: &str,
) -> Result<DeleteInstanceResponse, Status> {
    let (store, name) = (store.clone(), name.to_owned());
    repeats.once(asked, move |ticket| make(ticket, store, name)).await
}

async fn made(store: &Store) -> usize {
    store.list::<Made>().await.unwrap().records.len()
}

#[tokio::test]
async fn a_repetition_makes_nothing_also_in_the_next_daemon() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    let first = ask(&repeats, &store, asked("Create", "r", "web"), "one")
        .await
        .unwrap();
    assert_eq!(first.id, "one");
    let again = ask(&repeats, &store, asked("Create", "r", "web"), "two")
        .await
        .unwrap();
    assert_eq!(again, first);
    let next = Repeats::open(store.clone(), later(60)).await.unwrap();
    let at = later(60);
    let again = ask(&next, &store, asked_at("Create", "r", "web", at), "three").await;
    assert_eq!(again.unwrap(), first);
    assert_eq!(made(&store).await, 1);
    // Another method's requests are others; so are those without an id.
    assert_eq!(
        ask(&next, &store, asked("Stop", "r", "web"), "four")
            .await
            .unwrap()
            .id,
        "four"
    );
    assert_eq!(
        ask(&next, &store, asked("Stop", "", "web"), "five")
            .await
            .unwrap()
            .id,
        "five"
    );
    assert_eq!(
        ask(&next, &store, asked("Stop", "", "web"), "six")
            .await
            .unwrap()
            .id,
        "six"
    );
}

#[tokio::test]
async fn another_body_under_the_same_id_is_refused() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    ask(&repeats, &store, asked("Create", "r", "web"), "one")
        .await
        .unwrap();
    for repeats in [repeats, Repeats::open(store.clone(), NOW).await.unwrap()] {
        let refused = ask(&repeats, &store, asked("Create", "r", "database"), "two").await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let detail = dormouse_proto::details::decode(refused.details()).unwrap();
        assert_eq!(
            (detail.code.as_str(), detail.field.as_str()),
            ("REQUEST_ID_REUSED", "request_id")
        );
    }
    assert_eq!(made(&store).await, 1);
    let long = Asked::new("Create", "x".repeat(65), &answer(""), NOW);
    assert_eq!(long.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_failed_may_be_tried_again_and_what_was_removed_is_not_made_again() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    let failing = |_: Ticket| async { Err::<(DeleteInstanceResponse, Batch), _>(Status::aborted("no")) };
    let failed = repeats.once(asked("Create", "r", "web"), failing).await;
    assert_eq!(failed.unwrap_err().code(), Code::Aborted);
    ask(&repeats, &store, asked("Create", "r", "web"), "one")
        .await
        .unwrap();
    store.delete::<Made>("one").await.unwrap();
    let gone = ask(&repeats, &store, asked("Create", "r", "web"), "two")
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert_eq!(made(&store).await, 0);
}

#[tokio::test]
async fn what_a_killed_daemon_began_is_found_by_the_next() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    // Killed after the commit that makes it, before the answer: the task ends where it waits.
    let (reached, committed) = oneshot::channel();
    let mut held = Box::pin({
        let store = store.clone();
        repeats.once(asked("Create", "r", "web"), move |ticket| async move {
            let batch = ticket.begun("one").put(
                "one",
                &Made {
                    name: "one".to_owned(),
                },
            );
            store.apply(batch).await.unwrap();
            reached.send(()).unwrap();
            std::future::pending::<Result<(DeleteInstanceResponse, Batch), Status>>().await
        })
    });
    tokio::select! {
        _ = &mut held => panic!("held"),
        done = committed => done.unwrap(),
    }
    drop(held);
    drop(repeats);
    let next = Repeats::open(store.clone(), NOW).await.unwrap();
    let begun = next.ticket(asked("Create", "r", "web").unwrap()).await.unwrap();
    assert!(
        begun
            .past()
            .is_some_and(|past| !past.done && past.target == "one")
    );
    let again = ask(&next, &store, asked("Create", "r", "web"), "two")
        .await
        .unwrap();
    assert_eq!(again.id, "one");
    assert_eq!(made(&store).await, 1);
    let done = next.ticket(asked("Create", "r", "web").unwrap()).await.unwrap();
    assert!(done.past().is_some_and(|past| past.done));
    // Nothing was there: the request is as if it had not been.
    done.forget().await;
    assert!(
        next.ticket(asked("Create", "r", "web").unwrap())
            .await
            .unwrap()
            .past()
            .is_none()
    );
    assert!(next.book().kept.is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_and_asks_again_finds_the_work_going_on() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    let (release, held) = oneshot::channel::<()>();
    let (begun, running) = oneshot::channel::<()>();
    let mut first = Box::pin(repeats.once(asked("Create", "r", "web"), move |_| async move {
        begun.send(()).unwrap();
        drop(held.await);
        Ok((answer("made once"), Batch::new()))
    }));
    tokio::select! {
        _ = &mut first => panic!("not released"),
        begun = running => begun.unwrap(),
    }
    drop(first);
    let other = ask(&repeats, &store, asked("Create", "r", "database"), "other").await;
    assert_eq!(other.unwrap_err().code(), Code::InvalidArgument);
    let again = ask(&repeats, &store, asked("Create", "r", "web"), "made twice");
    let (again, ()) = tokio::join!(again, async { release.send(()).unwrap() });
    assert_eq!(again.unwrap().id, "made once");
    assert_eq!(made(&store).await, 0);
}

#[tokio::test]
async fn work_that_panicked_may_be_tried_again() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    let panics = |_: Ticket| async { panic!("planted") };
    let lost: Result<DeleteInstanceResponse, _> = repeats.once(asked("Create", "r", "web"), panics).await;
    assert_eq!(lost.unwrap_err().code(), Code::Unavailable);
    let again = ask(&repeats, &store, asked("Create", "r", "web"), "one").await;
    assert_eq!(again.unwrap().id, "one");
}

#[tokio::test]
async fn a_streaming_request_is_served_to_one_at_a_time() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    let (ticket, streaming) = repeats.streaming(asked("Import", "r", "web")).await.unwrap();
    let second = repeats.streaming(asked("Import", "r", "web")).await.unwrap_err();
    assert_eq!(second.code(), Code::Unavailable);
    let other = repeats
        .streaming(asked("Import", "r", "database"))
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);
    ticket
        .keep(ticket.done("web:latest", b"sha256:00".to_vec()))
        .await
        .unwrap();
    drop(streaming);
    let (ticket, _) = repeats.streaming(asked("Import", "r", "web")).await.unwrap();
    assert_eq!(
        ticket.past().map(|past| past.answer.as_slice()),
        Some(&b"sha256:00"[..])
    );
}

#[tokio::test]
async fn records_are_kept_for_a_day_and_bounded_the_oldest_go() {
    let store = Store::in_memory();
    let repeats = Repeats::open(store.clone(), NOW).await.unwrap();
    let count = u64::try_from(KEPT).unwrap() + 3;
    for number in 0..count {
        let asked = asked_at("Create", &number.to_string(), "web", later(number)).unwrap();
        let ticket = repeats.ticket(asked).await.unwrap();
        ticket.keep(ticket.begun("one")).await.unwrap();
        // The second writing of one takes no further place.
        ticket.keep(ticket.done("one", Vec::new())).await.unwrap();
    }
    let kept = store.list::<RequestRecord>().await.unwrap().records;
    assert_eq!((kept.len(), repeats.book().kept.len()), (KEPT, KEPT));
    let past = async |repeats: &Repeats, number: u64, at| {
        let asked = asked_at("Create", &number.to_string(), "web", at).unwrap();
        repeats.ticket(asked).await.unwrap().past().is_some()
    };
    assert!(!past(&repeats, 2, later(count)).await);
    assert!(past(&repeats, 3, later(count)).await);
    // A day after the fourth, it is forgotten, and the fifth is not yet.
    let day = later(3 + 24 * 3600);
    assert!(!past(&repeats, 3, day).await);
    assert!(past(&repeats, 4, day).await);
    let next = Repeats::open(store.clone(), day).await.unwrap();
    assert_eq!(next.book().kept.len(), KEPT - 1);
    assert_eq!(
        store.list::<RequestRecord>().await.unwrap().records.len(),
        KEPT - 1
    );
}

#[test]
fn keys_tell_methods_and_ids_apart_and_fit_a_store() {
    let longest = key("StandbyInstance", &"x".repeat(ID_LENGTH));
    assert!(longest.bytes().len() <= Key::MAX_LENGTH);
    assert_ne!(key("Start", "a"), key("Stop", "a"));
}
