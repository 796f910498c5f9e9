//! Repeated requests: a request with an id that was answered gets the same answer again.
//!
//! ```text
//!  first with an id ──▶ task ──▶ answer kept ──▶ everybody who asked under the id
//!  the same again ─────────────────▲
//! ```
//!
//! The work runs in a task of its own: a client that goes away and asks again, which is what ids are for,
//! finds it going on or done. What failed is forgotten and may be tried again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use super::convert::FieldError;
use super::status::status;

/// Answers kept; the oldest is forgotten beyond, which turns a very late repetition into a new request.
const KEPT: usize = 4096;

/// The longest request id.
const ID_LENGTH: usize = 64;

type Key = (&'static str, String);
type Answer = Option<Result<Vec<u8>, Status>>;

/// Answers by method and request id. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Repeats {
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    answers: HashMap<Key, watch::Receiver<Answer>>,
    order: VecDeque<Key>,
    running: JoinSet<()>,
}

impl Repeats {
    /// Runs `work` unless `method` was asked under this id already. An empty id is none.
    pub(super) async fn once<T, F>(&self, method: &'static str, id: &str, work: F) -> Result<T, Status>
    where
        T: Message + Default,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        if id.is_empty() {
            return work.await;
        }
        if id.len() > ID_LENGTH {
            return Err(status(&FieldError::new(
                "request_id",
                "has more than 64 characters",
            )));
        }
        let mut answer = self.answer((method, id.to_owned()), work);
        let answered = match answer.wait_for(Option::is_some).await {
            Ok(answered) => answered.clone(),
            // The task panicked, or the daemon goes down.
            Err(_) => None,
        };
        let bytes = answered.unwrap_or_else(|| Err(Status::unavailable("the request was not finished")))?;
        T::decode(bytes.as_slice()).map_err(|_| Status::internal("a kept answer does not decode"))
    }

    /// Where the answer under `key` will be, or is.
    fn answer<T, F>(&self, key: Key, work: F) -> watch::Receiver<Answer>
    where
        T: Message,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let mut book = self.book();
        while book.running.try_join_next().is_some() {}
        if let Some(answer) = book.answers.get(&key) {
            // Closed without an answer: its task panicked.
            if answer.borrow().is_some() || answer.has_changed().is_ok() {
                return answer.clone();
            }
            book.forget(&key);
        }
        if book.order.len() >= KEPT
            && let Some(oldest) = book.order.pop_front()
        {
            book.answers.remove(&oldest);
        }
        let (sender, answer) = watch::channel(None);
        book.answers.insert(key.clone(), answer.clone());
        book.order.push_back(key.clone());
        let repeats = self.clone();
        book.running.spawn(async move {
            let done = work.await.map(|done| done.encode_to_vec());
            if done.is_err() {
                repeats.book().forget(&key);
            }
            sender.send_replace(Some(done));
        });
        answer
    }

    /// Every change of the book leaves it whole.
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn forget(&mut self, key: &Key) {
        self.answers.remove(key);
        self.order.retain(|kept| kept != key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_proto::v1::DeleteInstanceResponse;
    use tokio::sync::oneshot;

    fn answer(id: &str) -> DeleteInstanceResponse {
        DeleteInstanceResponse { id: id.to_owned() }
    }

    #[tokio::test]
    async fn a_repeated_request_gets_the_first_answer_and_a_failed_one_another_try() {
        let repeats = Repeats::default();
        let failed: Result<DeleteInstanceResponse, _> = repeats
            .once("Delete", "r", async { Err(Status::aborted("no")) })
            .await;
        assert_eq!(failed.unwrap_err().code(), tonic::Code::Aborted);
        let first = repeats
            .once("Delete", "r", async { Ok(answer("one")) })
            .await
            .unwrap();
        let again = repeats
            .once("Delete", "r", async { Ok(answer("two")) })
            .await
            .unwrap();
        assert_eq!(first, again);
        let other = repeats
            .once("Stop", "r", async { Ok(answer("three")) })
            .await
            .unwrap();
        assert_eq!(other.id, "three");
        let long = "x".repeat(65);
        let refused = repeats.once("Delete", &long, async { Ok(answer("four")) }).await;
        assert!(refused.is_err());
    }

    #[tokio::test]
    async fn a_client_that_goes_away_and_asks_again_finds_the_work_going_on() {
        let repeats = Repeats::default();
        let (release, held) = oneshot::channel::<()>();
        let mut first = Box::pin(repeats.once("Create", "r", async move {
            drop(held.await);
            Ok(answer("made once"))
        }));
        // Asked, then gone.
        tokio::select! {
            biased;
            _ = &mut first => panic!("not released"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        let again = repeats.once("Create", "r", async { Ok(answer("made twice")) });
        let (again, ()) = tokio::join!(again, async { release.send(()).unwrap() });
        assert_eq!(again.unwrap().id, "made once");
    }

    #[tokio::test]
    async fn work_that_panicked_may_be_tried_again() {
        let repeats = Repeats::default();
        let lost: Result<DeleteInstanceResponse, _> =
            repeats.once("Delete", "r", async { panic!("planted") }).await;
        assert_eq!(lost.unwrap_err().code(), tonic::Code::Unavailable);
        let again = repeats.once("Delete", "r", async { Ok(answer("one")) }).await;
        assert_eq!(again.unwrap().id, "one");
    }
}
