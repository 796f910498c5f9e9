//! The keeper's side.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::KeeperError;
use crate::shelf::{Held, HeldName, Shelf};
use crate::socket::Connection;
use crate::wire::{
    self, Answer, Ask, Ended, Listed, ListedEntry, PAGE, Refused, Request, Response, kind_from, kind_number,
};

/// Connections at a time: the daemon, its predecessor on the way out, and people who look. Whoever
/// comes beyond is closed at once.
const MAX_CONNECTIONS: usize = 8;

/// How long an answer may wait for its reader.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// Between attempts to accept when the kernel has run out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Keeps what it is given until it ends.
#[derive(Debug)]
pub struct Keeper {
    listener: UnixListener,
    /// The one user who is served.
    uid: u32,
    shelf: Arc<Mutex<Shelf>>,
}

impl Keeper {
    /// Listens at `path`, for the user of this process only. A socket that a dead keeper has left
    /// there is replaced. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When another keeper listens there, or the socket cannot be made.
    pub fn listen(path: &Path) -> Result<Self, KeeperError> {
        let failed = |source| KeeperError::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(KeeperError::Taken {
                        path: path.to_owned(),
                    });
                }
                std::fs::remove_file(path).map_err(failed)?;
                UnixListener::bind(path)
            }
            other => other,
        };
        let listener = listener.map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self::on(listener))
    }

    /// Listens on a stream socket of the service manager. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the descriptor is no socket that can be waited for.
    pub fn listen_on(socket: OwnedFd) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self::on(UnixListener::from_std(listener)?))
    }

    fn on(listener: UnixListener) -> Self {
        Self {
            listener,
            uid: nix::unistd::geteuid().as_raw(),
            shelf: Arc::default(),
        }
    }

    /// Serves until it is dropped; what is kept is closed then.
    pub async fn run(self) {
        let mut served = JoinSet::new();
        loop {
            let connection = tokio::select! {
                accepted = self.listener.accept() => accepted.map(|(stream, _)| Connection::new(stream)),
                // Only makes room.
                Some(_) = served.join_next() => continue,
            };
            match connection {
                Ok(connection) if served.len() < MAX_CONNECTIONS && self.may_ask(&connection) => {
                    served.spawn(serve(connection, Arc::clone(&self.shelf)));
                }
                Ok(refused) => drop(refused),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn may_ask(&self, connection: &Connection) -> bool {
        match connection.peer_uid() {
            Ok(uid) if uid == self.uid => true,
            Ok(uid) => {
                tracing::warn!(uid, "refused a connection of another user");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "refused a connection of nobody");
                false
            }
        }
    }
}

/// Answers one request after the other until the other end closes or talks nonsense.
async fn serve(connection: Connection, shelf: Arc<Mutex<Shelf>>) {
    loop {
        let received = match connection.receive().await {
            Ok(Some(received)) => received,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "a connection broke");
                return;
            }
        };
        let Ok(request) = Request::decode(received.frame.as_slice()) else {
            tracing::warn!(length = received.frame.len(), "a frame that makes no sense");
            return;
        };
        let (answer, copies) = answer(&shelf, request.version, request.ask, received.descriptors);
        let response = Response {
            version: wire::VERSION,
            number: request.number,
            answer: Some(answer),
            process: std::process::id(),
        };
        let borrowed: Vec<BorrowedFd<'_>> = copies.iter().map(OwnedFd::as_fd).collect();
        match timeout(
            SEND_DEADLINE,
            connection.send(&response.encode_to_vec(), &borrowed),
        )
        .await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection broke");
                return;
            }
            Err(_) => {
                tracing::warn!("a caller does not read its answers");
                return;
            }
        }
    }
}

/// Does what is asked, and gives the copies of descriptors that go with the answer.
fn answer(
    shelf: &Mutex<Shelf>,
    version: u32,
    ask: Option<Ask>,
    descriptors: Vec<OwnedFd>,
) -> (Answer, Vec<OwnedFd>) {
    let why = |why: String| (Answer::Refused(Refused { why, full: false }), Vec::new());
    if version > wire::VERSION {
        return why(format!(
            "version {version} is newer than this keeper's {}",
            wire::VERSION
        ));
    }
    let Some(ask) = ask else {
        return why("this keeper does not know what is asked".to_owned());
    };
    // Every change of a shelf is one insertion or removal, so a panic leaves it whole.
    let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    act(&mut shelf, ask, descriptors).unwrap_or_else(|error| {
        let full = matches!(error, KeeperError::Full);
        let why = dormouse_model::error::chain(&error);
        (Answer::Refused(Refused { why, full }), Vec::new())
    })
}

fn act(
    shelf: &mut Shelf,
    ask: Ask,
    descriptors: Vec<OwnedFd>,
) -> Result<(Answer, Vec<OwnedFd>), KeeperError> {
    let answer = match ask {
        Ask::Put(put) => {
            let kind = kind_from(put.kind).ok_or(KeeperError::Garbled {
                what: "an unknown kind",
            })?;
            shelf.put(put.name.parse()?, Held { kind, descriptors })?;
            Answer::Done(true)
        }
        Ask::Get(name) => {
            return Ok(match shelf.copy(&name.parse()?)? {
                Some(held) => (Answer::Here(kind_number(held.kind)), held.descriptors),
                None => (Answer::Absent(true), Vec::new()),
            });
        }
        Ask::List(after) => {
            let after: Option<HeldName> = if after.is_empty() {
                None
            } else {
                Some(after.parse()?)
            };
            let page = shelf.list(after.as_ref(), PAGE);
            Answer::Listed(Listed {
                entries: page.iter().map(ListedEntry::from).collect(),
            })
        }
        Ask::Remove(name) => Answer::Done(shelf.remove(&name.parse()?)),
        Ask::ProcessEnd(name) => match shelf.process_end(&name.parse()?)? {
            Some(end) => Answer::Ended(Ended::from(end)),
            None => Answer::Absent(true),
        },
    };
    Ok((answer, Vec::new()))
}
