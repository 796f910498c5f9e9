//! The gRPC server on its Unix socket, with health and reflection.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_proto::v1::image_service_server::ImageServiceServer;
use dormouse_proto::v1::instance_service_server::InstanceServiceServer;
use dormouse_proto::v1::standby_service_server::StandbyServiceServer;
use dormouse_proto::v1::system_service_server::SystemServiceServer;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::api::{Api, RequestIds};
use crate::door::Door;
use crate::health::HealthOfAll;
use crate::host::HostError;

/// Largest message that a client may send: no request comes near it.
const REQUEST_BYTES: usize = 1 << 20;

/// Requests of one connection that may run at a time.
const REQUESTS: usize = 256;

/// Most time for whoever listens on the socket to take a connection.
const PROBE: Duration = Duration::from_secs(1);

/// The API's socket. Dropping it closes it; the file stays, see [`Place::remove`].
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    place: Option<Place>,
}

/// The file of a socket that we made.
#[derive(Debug, Clone)]
pub struct Place {
    path: PathBuf,
    file: FileId,
}

/// What tells a file from another one that has its name now: device, inode, and when the inode last changed,
/// for the number of one that is gone is soon given again.
type FileId = (u64, u64, i64, i64);

fn file_id(path: &Path) -> io::Result<FileId> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

impl Place {
    /// Removes the file, unless another process has put its own there.
    pub fn remove(&self) {
        let ours = file_id(&self.path).is_ok_and(|now| now == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "removing the API's socket");
        }
    }
}

impl ApiSocket {
    /// Binds the socket: mode 0660. A file on which nobody listens is what a daemon left that was killed, and
    /// is replaced.
    ///
    /// # Errors
    /// When somebody listens there, or it cannot be bound.
    pub async fn bind(path: &Path) -> Result<Self, HostError> {
        let fail = |source| HostError::Socket {
            path: path.to_owned(),
            source,
        };
        // The store's lock keeps a second daemon from our data, but not one of other data from our socket.
        match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
            Ok(Ok(other)) => {
                let pid = other.peer_cred().ok().and_then(|peer| peer.pid());
                return Err(HostError::SocketTaken {
                    path: path.to_owned(),
                    pid: pid.and_then(|pid| u32::try_from(pid).ok()),
                });
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            // The kernel says so of any file that is no socket, too.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
                fs::remove_file(path).map_err(fail)?;
            }
            Ok(Err(error)) => return Err(fail(error)),
            // Its queue is full: it lives, and hangs.
            Err(_) => {
                return Err(HostError::SocketTaken {
                    path: path.to_owned(),
                    pid: None,
                });
            }
        }
        let listener = UnixListener::bind(path).map_err(fail)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fail)?;
        let file = file_id(path).map_err(fail)?;
        Ok(Self {
            listener,
            place: Some(Place {
                path: path.to_owned(),
                file,
            }),
        })
    }

    /// Takes the listening socket of a service manager, which keeps it over our restarts: who connects
    /// meanwhile waits. `path` is for errors.
    ///
    /// # Errors
    /// When it is no listening Unix socket.
    pub fn of_manager(socket: OwnedFd, path: &Path) -> Result<Self, HostError> {
        let listener = std::os::unix::net::UnixListener::from(socket);
        let usable = listener
            .local_addr()
            .and_then(|_| listener.set_nonblocking(true))
            .and_then(|()| UnixListener::from_std(listener));
        let listener = usable.map_err(|source| HostError::Socket {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            place: None,
        })
    }

    /// The file to remove at the end; `None` for a manager's.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.place.clone()
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// Serves until `stop` is cancelled and the requests under way are answered; new ones are refused from then
/// on.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    socket: ApiSocket,
    api: Api,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let door = Door::new(stop.clone(), crate::api::leaving);
    let health_service = HealthOfAll::new(stop).into_service();
    let mut server = Server::builder()
        .concurrency_limit_per_connection(REQUESTS)
        // Outside: whoever is refused at the door has an id too.
        .layer(RequestIds)
        .layer(door.clone())
        .add_service(health_service)
        .add_service(InstanceServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES))
        .add_service(ImageServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES))
        .add_service(StandbyServiceServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES))
        .add_service(SystemServiceServer::new(api).max_decoding_message_size(REQUEST_BYTES));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(dormouse_proto::FILE_DESCRIPTOR_SET)
        .build_v1();
    match reflection {
        Ok(service) => server = server.add_service(service),
        Err(error) => tracing::error!(%error, "reflection is off"),
    }
    server
        .serve_with_incoming_shutdown(UnixListenerStream::new(socket.listener), door.deserted())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_dead_daemon_left_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = ApiSocket::bind(&path).await.unwrap();
        let taken = ApiSocket::bind(&path).await.unwrap_err().to_string();
        assert!(taken.contains(&format!("({})", std::process::id())), "{taken}");
        let place = first.place().unwrap();
        drop(first);
        // Somebody else's by now.
        let second = ApiSocket::bind(&path).await.unwrap();
        place.remove();
        assert!(path.exists());
        second.place().unwrap().remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes");
        fs::write(&path, "mine").unwrap();
        // The kernel says "refused" of any file that is no socket.
        assert!(ApiSocket::bind(&path).await.is_err());
        assert!(path.exists());
        let file = OwnedFd::from(fs::File::open(&path).unwrap());
        assert!(ApiSocket::of_manager(file, &path).is_err());
    }
}
