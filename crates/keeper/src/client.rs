//! The port over the keeper's socket.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use prost::Message as _;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::KeeperError;
use crate::holder::Holder;
use crate::shelf::{Entry, Held, HeldKind, HeldName, ProcessEnd};
use crate::socket::Connection;
use crate::wire::{self, Answer, Ask, PAGE, Put, Request, Response, kind_from, kind_number};

/// A client of one keeper. It connects when it is first used and again when the connection broke.
/// One request is under way at a time; the others wait their turn, each within its own deadline.
#[derive(Debug)]
pub struct KeeperClient {
    path: PathBuf,
    deadline: Duration,
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    /// Number of the last request.
    last: u64,
    /// The keeper's process, as it said last.
    process: Option<u32>,
}

impl KeeperClient {
    /// A client of the keeper at `path` that gives each request at most `deadline`.
    #[must_use]
    pub fn new(path: &Path, deadline: Duration) -> Self {
        Self {
            path: path.to_owned(),
            deadline,
            link: Mutex::default(),
        }
    }

    /// The process id of the keeper that answered last; `None` when none has, or it is of a release that
    /// does not tell.
    pub async fn process(&self) -> Option<u32> {
        self.link.lock().await.process
    }

    /// Asks, at most twice: every request may be sent again, and a keeper that was restarted leaves
    /// a connection that breaks on its first use.
    async fn ask(&self, ask: Ask, descriptors: &[OwnedFd]) -> Result<(Answer, Vec<OwnedFd>), KeeperError> {
        let exchange = async {
            let mut link = self.link.lock().await;
            match self.exchange(&mut link, &ask, descriptors).await {
                Err(KeeperError::Broken { .. }) => self.exchange(&mut link, &ask, descriptors).await,
                other => other,
            }
        };
        let slow = |_| KeeperError::Slow {
            path: self.path.clone(),
            after: self.deadline,
        };
        let (answer, received) = timeout(self.deadline, exchange).await.map_err(slow)??;
        match answer {
            Answer::Refused(refused) if refused.full => Err(KeeperError::Full),
            Answer::Refused(refused) => Err(KeeperError::Refused { why: refused.why }),
            other => Ok((other, received)),
        }
    }

    /// One request and its answer. While it is under way the link has no connection, so that one
    /// whose answer is still to come is never used again: also not when this future is dropped.
    async fn exchange(
        &self,
        link: &mut Link,
        ask: &Ask,
        descriptors: &[OwnedFd],
    ) -> Result<(Answer, Vec<OwnedFd>), KeeperError> {
        let broken = |source| KeeperError::Broken {
            path: self.path.clone(),
            source,
        };
        let connection = match link.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.path)
                .await
                .map_err(|source| KeeperError::Absent {
                    path: self.path.clone(),
                    source,
                })?,
        };
        link.last += 1;
        let request = Request {
            version: wire::VERSION,
            number: link.last,
            ask: Some(ask.clone()),
        };
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
        connection
            .send(&request.encode_to_vec(), &borrowed)
            .await
            .map_err(broken)?;
        let received = connection.receive().await.map_err(broken)?;
        let Some(received) = received else {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        };
        let response = Response::decode(received.frame.as_slice()).map_err(|_| KeeperError::Garbled {
            what: "a frame that does not decode",
        })?;
        if response.number != link.last {
            return Err(KeeperError::Garbled {
                what: "the number of another request",
            });
        }
        let answer = response
            .answer
            .ok_or(KeeperError::Garbled { what: "no answer" })?;
        link.connection = Some(connection);
        link.process = (response.process != 0).then_some(response.process);
        Ok((answer, received.descriptors))
    }
}

/// An answer that the request cannot have.
const fn unfitting() -> KeeperError {
    KeeperError::Garbled {
        what: "the answer to something else",
    }
}

#[async_trait]
impl Holder for KeeperClient {
    async fn put(
        &self,
        name: &HeldName,
        kind: HeldKind,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), KeeperError> {
        let count = descriptors.len();
        if count == 0 || count > dormouse_sys::descriptor::MAX_DESCRIPTORS {
            return Err(KeeperError::CountUnusable { count });
        }
        let put = Put {
            name: name.to_string(),
            kind: kind_number(kind),
        };
        match self.ask(Ask::Put(put), &descriptors).await? {
            (Answer::Done(_), _) => Ok(()),
            _ => Err(unfitting()),
        }
    }

    async fn get(&self, name: &HeldName) -> Result<Option<Held>, KeeperError> {
        match self.ask(Ask::Get(name.to_string()), &[]).await? {
            (Answer::Here(number), descriptors) => {
                let kind = kind_from(number).ok_or(KeeperError::Garbled {
                    what: "an unknown kind",
                })?;
                Ok(Some(Held { kind, descriptors }))
            }
            (Answer::Absent(_), _) => Ok(None),
            _ => Err(unfitting()),
        }
    }

    async fn list(&self) -> Result<Vec<Entry>, KeeperError> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.name.to_string()).unwrap_or_default();
            let (Answer::Listed(listed), _) = self.ask(Ask::List(after), &[]).await? else {
                return Err(unfitting());
            };
            let count = listed.entries.len();
            for entry in listed.entries {
                let entry = Entry::try_from(entry)?;
                // Or a keeper gone wrong could keep us here for ever.
                if all.last().is_some_and(|last| last.name >= entry.name) {
                    return Err(KeeperError::Garbled {
                        what: "a list out of order",
                    });
                }
                all.push(entry);
            }
            if count < PAGE {
                return Ok(all);
            }
        }
    }

    async fn remove(&self, name: &HeldName) -> Result<bool, KeeperError> {
        match self.ask(Ask::Remove(name.to_string()), &[]).await? {
            (Answer::Done(was_there), _) => Ok(was_there),
            _ => Err(unfitting()),
        }
    }

    async fn process_end(&self, name: &HeldName) -> Result<Option<ProcessEnd>, KeeperError> {
        match self.ask(Ask::ProcessEnd(name.to_string()), &[]).await? {
            (Answer::Ended(ended), _) => Ok(Some(ProcessEnd::from(ended))),
            (Answer::Absent(_), _) => Ok(None),
            _ => Err(unfitting()),
        }
    }
}
