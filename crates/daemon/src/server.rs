//! The gRPC server on its Unix socket, with health and reflection.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dormouse_proto::v1::image_service_server::ImageServiceServer;
use dormouse_proto::v1::instance_service_server::InstanceServiceServer;
use dormouse_proto::v1::standby_service_server::StandbyServiceServer;
use dormouse_proto::v1::system_service_server::SystemServiceServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::api::{Api, RequestIds};
use crate::health::Health;
use crate::host::HostError;

/// Largest message that a client may send: no request comes near it.
const REQUEST_BYTES: usize = 1 << 20;

/// Requests of one connection that may run at a time.
const REQUESTS: usize = 256;

/// Binds the socket: mode 0660, replacing one that nobody listens on. The store's lock has shown that
/// no other daemon of this data directory runs.
///
/// # Errors
/// When it cannot be bound.
pub fn bind(path: &Path) -> Result<UnixListener, HostError> {
    let fail = |source| HostError::Socket {
        path: path.to_owned(),
        source,
    };
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(fail)?;
    Ok(listener)
}

/// Serves until `stop` resolves; requests under way are finished.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    listener: UnixListener,
    api: Api,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    // Whoever serves has recovered everything.
    let (health, health_service) = Health::new().await;
    health.serving().await;
    let stop = async move {
        stop.await;
        health.not_serving().await;
    };
    let mut server = Server::builder()
        .concurrency_limit_per_connection(REQUESTS)
        .layer(RequestIds)
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
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
}
