//! Repeated requests: what a request with an id has done is not done again, also over a restart.
//!
//! ```text
//!  first with an id ──▶ task ──▶ work ─┬─▶ record "under way", in one commit with what the work makes
//!                                      └─▶ record "done", in one commit with the last change where there is one
//!  the same while it runs ──▶ waits for the task
//!  the same later ──────────▶ task ──▶ work finds the record: answers from it, or finishes what it says
//!  the same id, other body ─▶ REQUEST_ID_REUSED
//! ```
//!
//! The work runs in a task of its own: a client that goes away and asks again, which is what ids are for,
//! finds it going on or done. What failed may be tried again. Records are kept for a day and bounded;
//! beyond, a very late repetition is a new request.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_model::WallTime;
use dormouse_store::{Batch, Key, Store, StoreError};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

pub(super) use self::record::RequestRecord;
use self::record::key;
use super::refusal::{FieldError, RequestError};
use super::request;
use super::status::status;

mod record;

/// Records kept; the oldest goes beyond.
const KEPT: usize = 4096;

/// How long a record is kept.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// The longest request id.
const ID_LENGTH: usize = 64;

type Answer = Option<Result<Vec<u8>, Status>>;

/// What a request is known by.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    method: &'static str,
    id: String,
    body: [u8; 32],
    at: WallTime,
}

impl Asked {
    /// The request `id` of `method`, whose body without the id is `body`. `None` for an empty id, which is
    /// none.
    pub(super) fn new(
        method: &'static str,
        id: String,
        body: &impl Message,
        at: WallTime,
    ) -> Result<Option<Self>, Status> {
        if id.len() > ID_LENGTH {
            return Err(status(&FieldError::new(
                "request_id",
                "has more than 64 characters",
            )));
        }
        let body = Sha256::digest(body.encode_to_vec()).into();
        let asked = Self { method, id, body, at };
        Ok(Some(asked).filter(|asked| !asked.id.is_empty()))
    }

    fn reused(&self) -> Status {
        status(&RequestError::IdReused {
            id: self.id.clone(),
            method: self.method,
        })
    }
}

/// The requests with ids. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Repeats {
    store: Store,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    /// Requests that are being served.
    running: HashMap<Key, Running>,
    /// The records in the store, the oldest first.
    kept: BTreeSet<(WallTime, Key)>,
    tasks: JoinSet<()>,
}

#[derive(Debug, Clone)]
struct Running {
    body: [u8; 32],
    answer: watch::Receiver<Answer>,
}

/// What the work of a request knows of it, and how it writes down what it did.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    repeats: Repeats,
    /// `None`: the request has no id, and nothing is written.
    asked: Option<Asked>,
    past: Option<RequestRecord>,
}

impl Repeats {
    /// Reads what is kept, and forgets what is too old.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(crate) async fn open(store: Store, now: WallTime) -> Result<Self, StoreError> {
        let listing = store.list::<RequestRecord>().await?;
        let mut book = Book::default();
        for (key, record) in listing.records {
            book.kept.insert((record.asked_at(), key));
        }
        let mut forgotten = book.make_room(now, 0);
        // A repetition of it may be done again, which is what a day's age would allow as well.
        for damage in listing.damaged {
            tracing::warn!(%damage, "the record of a request is dropped");
            forgotten = forgotten.delete::<RequestRecord>(damage.key);
        }
        store.apply(forgotten).await?;
        Ok(Self {
            store,
            book: Arc::new(Mutex::new(book)),
        })
    }

    /// Runs `work`, unless it runs already under this id: then its answer is waited for. The work is told
    /// what an earlier run has left, and says with its answer what is to be written about this one.
    pub(super) async fn once<T, W, F>(&self, asked: Option<Asked>, work: W) -> Result<T, Status>
    where
        T: Message + Default + 'static,
        W: FnOnce(Ticket) -> F + Send + 'static,
        F: Future<Output = Result<(T, Batch), Status>> + Send + 'static,
    {
        let Some(asked) = asked else {
            let none = Ticket {
                repeats: self.clone(),
                asked: None,
                past: None,
            };
            return work(none).await.map(|(answer, _)| answer);
        };
        let mut answer = self.answer(asked, work)?;
        let answered = match answer.wait_for(Option::is_some).await {
            Ok(answered) => answered.clone(),
            // The task panicked, or the daemon goes down.
            Err(_) => None,
        };
        let bytes = answered.unwrap_or_else(|| Err(status(&RequestError::Lost)))?;
        // Encoded by the task a moment ago.
        T::decode(bytes.as_slice()).map_err(|_| status(&RequestError::Lost))
    }

    /// Where the answer will be.
    fn answer<T, W, F>(&self, asked: Asked, work: W) -> Result<watch::Receiver<Answer>, Status>
    where
        T: Message + 'static,
        W: FnOnce(Ticket) -> F + Send + 'static,
        F: Future<Output = Result<(T, Batch), Status>> + Send + 'static,
    {
        let key = key(asked.method, &asked.id);
        let mut book = self.book();
        while book.tasks.try_join_next().is_some() {}
        if let Some(running) = book.running.get(&key) {
            if running.body != asked.body {
                return Err(asked.reused());
            }
            // Closed without an answer: its task panicked.
            if running.answer.borrow().is_some() || running.answer.has_changed().is_ok() {
                return Ok(running.answer.clone());
            }
        }
        let (sender, answer) = watch::channel(None);
        let running = Running {
            body: asked.body,
            answer: answer.clone(),
        };
        book.running.insert(key.clone(), running);
        let repeats = self.clone();
        book.tasks.spawn(request::carried(async move {
            let done = repeats.serve(asked, work).await;
            repeats.book().running.remove(&key);
            sender.send_replace(Some(done.map(|done| done.encode_to_vec())));
        }));
        Ok(answer)
    }

    async fn serve<T, W, F>(&self, asked: Asked, work: W) -> Result<T, Status>
    where
        W: FnOnce(Ticket) -> F,
        F: Future<Output = Result<(T, Batch), Status>>,
    {
        let ticket = self.ticket(asked).await?;
        let id = ticket.id().to_owned();
        let (answer, batch) = work(ticket).await?;
        // Done is done. At worst a repetition that comes after a crash is served anew.
        if let Err(error) = self.store.apply(batch).await {
            tracing::warn!(%error, request = id, "the end of a request is not written down");
        }
        Ok(answer)
    }

    /// What is known of a request, from the store.
    async fn ticket(&self, asked: Asked) -> Result<Ticket, Status> {
        let found = self
            .store
            .get::<RequestRecord>(key(asked.method, &asked.id))
            .await
            .map_err(|source| {
                let id = asked.id.clone();
                status(&RequestError::Store { id, source })
            })?;
        let past = found.filter(|record| !too_old(record.asked_at(), asked.at));
        if past.as_ref().is_some_and(|past| past.body_sha256 != asked.body) {
            return Err(asked.reused());
        }
        Ok(Ticket {
            repeats: self.clone(),
            asked: Some(asked),
            past,
        })
    }

    /// The ticket of a request that streams its answer to one client: a second one is refused as long as
    /// `Streaming` is kept.
    pub(super) async fn streaming(&self, asked: Option<Asked>) -> Result<(Ticket, Streaming), Status> {
        let Some(asked) = asked else {
            let none = Ticket {
                repeats: self.clone(),
                asked: None,
                past: None,
            };
            return Ok((none, Streaming(None)));
        };
        let key = key(asked.method, &asked.id);
        let (sender, answer) = watch::channel(None);
        {
            let mut book = self.book();
            if let Some(running) = book.running.get(&key) {
                if running.body != asked.body {
                    return Err(asked.reused());
                }
                let (id, method) = (asked.id, asked.method);
                return Err(status(&RequestError::UnderWay { id, method }));
            }
            let body = asked.body;
            book.running.insert(key.clone(), Running { body, answer });
        }
        let streaming = Streaming(Some((self.clone(), key, sender)));
        Ok((self.ticket(asked).await?, streaming))
    }

    /// Every change of the book leaves it whole.
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose answer is being streamed.
#[derive(Debug)]
pub(super) struct Streaming(Option<(Repeats, Key, watch::Sender<Answer>)>);

impl Drop for Streaming {
    fn drop(&mut self) {
        if let Some((repeats, key, _)) = &self.0 {
            repeats.book().running.remove(key);
        }
    }
}

impl Ticket {
    /// What an earlier run of the request has left.
    pub(super) const fn past(&self) -> Option<&RequestRecord> {
        self.past.as_ref()
    }

    /// The error of a repeated request whose `target` is no more.
    pub(super) fn gone(&self, target: &str) -> Status {
        status(&RequestError::Gone {
            method: self.asked.as_ref().map_or("request", |asked| asked.method),
            target: target.to_owned(),
        })
    }

    fn id(&self) -> &str {
        self.asked.as_ref().map_or("", |asked| &asked.id)
    }

    /// Writes that the request is about to change `target`: with the record of what it makes, in one commit.
    pub(super) fn begun(&self, target: &str) -> Batch {
        self.write(target, false, Vec::new())
    }

    /// Writes that the request has succeeded. Nothing when that is written already.
    pub(super) fn done(&self, target: &str, answer: Vec<u8>) -> Batch {
        if self.past.as_ref().is_some_and(|past| past.done) {
            return Batch::new();
        }
        self.write(target, true, answer)
    }

    fn write(&self, target: &str, done: bool, answer: Vec<u8>) -> Batch {
        let Some(asked) = &self.asked else {
            return Batch::new();
        };
        let key = key(asked.method, &asked.id);
        // A request keeps the time of its first try, and its place among the records.
        let asked_at = self.past.as_ref().map_or(asked.at, RequestRecord::asked_at);
        let record = RequestRecord {
            body_sha256: asked.body.to_vec(),
            asked_at: asked_at.unix_nanos(),
            target: target.to_owned(),
            done,
            answer,
        };
        let mut book = self.repeats.book();
        let place = (asked_at, key.clone());
        let room = if book.kept.contains(&place) { 0 } else { 1 };
        let forgotten = book.make_room(asked.at, room);
        book.kept.insert(place);
        forgotten.put(key, &record)
    }

    /// Makes `batch` durable.
    pub(super) async fn keep(&self, batch: Batch) -> Result<(), Status> {
        self.repeats.store.apply(batch).await.map_err(|source| {
            let id = self.id().to_owned();
            status(&RequestError::Store { id, source })
        })
    }

    /// Forgets the request: nothing of it is there, or ever was.
    pub(super) async fn forget(&self) {
        let Some(asked) = &self.asked else { return };
        let key = key(asked.method, &asked.id);
        self.repeats.book().kept.retain(|(_, kept)| *kept != key);
        if let Err(error) = self.repeats.store.delete::<RequestRecord>(key).await {
            tracing::warn!(%error, request = asked.id, "the record of a failed request stays");
        }
    }
}

impl Book {
    /// Takes out the records that are too old, and the oldest until `more` fit; the changes that remove
    /// them from the store.
    fn make_room(&mut self, now: WallTime, more: usize) -> Batch {
        let mut forgotten = Batch::new();
        while let Some((at, _)) = self.kept.first()
            && (too_old(*at, now) || self.kept.len() + more > KEPT)
        {
            if let Some((_, key)) = self.kept.pop_first() {
                forgotten = forgotten.delete::<RequestRecord>(key);
            }
        }
        forgotten
    }
}

/// Whether a request of `at` is forgotten at `now`. A clock that was set back forgets nothing.
fn too_old(at: WallTime, now: WallTime) -> bool {
    let age = now.unix_nanos().saturating_sub(at.unix_nanos());
    u128::from(age) >= KEPT_FOR.as_nanos()
}

#[cfg(test)]
mod tests;
