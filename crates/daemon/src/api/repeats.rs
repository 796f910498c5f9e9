//! Repeated requests: a request with an id that was answered gets the same answer again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message;
use tokio::sync::OnceCell;
use tonic::Status;

use super::convert::FieldError;
use super::status::status;

/// Answers kept; the oldest is forgotten beyond, which turns a very late repetition into a new request.
const KEPT: usize = 4096;

/// The longest request id.
const ID_LENGTH: usize = 64;

type Answer = Arc<OnceCell<Vec<u8>>>;

/// Answers by method and request id.
#[derive(Debug, Default)]
pub struct Repeats {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    answers: HashMap<(&'static str, String), Answer>,
    order: VecDeque<(&'static str, String)>,
}

impl Repeats {
    /// Runs `work` unless `method` was answered under this id already. An empty id is none. Requests
    /// that come while the first still runs wait for it; one that failed may be tried again.
    pub async fn once<T, F>(&self, method: &'static str, id: &str, work: F) -> Result<T, Status>
    where
        T: Message + Default,
        F: Future<Output = Result<T, Status>>,
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
        let answer = self.slot(method, id);
        let bytes = answer
            .get_or_try_init(|| async { work.await.map(|done| done.encode_to_vec()) })
            .await?;
        T::decode(bytes.as_slice()).map_err(|_| Status::internal("a kept answer does not decode"))
    }

    fn slot(&self, method: &'static str, id: &str) -> Answer {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method, id.to_owned());
        if let Some(answer) = book.answers.get(&key) {
            return Arc::clone(answer);
        }
        if book.order.len() >= KEPT
            && let Some(oldest) = book.order.pop_front()
        {
            book.answers.remove(&oldest);
        }
        let answer = Answer::default();
        book.answers.insert(key.clone(), Arc::clone(&answer));
        book.order.push_back(key);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_proto::v1;

    #[tokio::test]
    async fn a_repeated_request_gets_the_first_answer_and_a_failed_one_another_try() {
        let repeats = Repeats::default();
        let answer = |id: &str| v1::DeleteInstanceResponse { id: id.to_owned() };
        let failed: Result<v1::DeleteInstanceResponse, _> = repeats
            .once("Delete", "r", async { Err(Status::aborted("no")) })
            .await;
        assert!(failed.is_err());
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
        assert!(
            repeats
                .once("Delete", &long, async { Ok(answer("four")) })
                .await
                .is_err()
        );
    }
}
