//! Connecting: who is there, who is not, and a daemon that comes back.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use dormouse_client::{Client, ClientError, HostAddress, v1};
use dormouse_model::Kind;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};
use v1::system_service_server::{SystemService, SystemServiceServer};

/// A daemon that knows its version only.
struct Minimal;

#[tonic::async_trait]
impl SystemService for Minimal {
    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Result<Response<v1::SystemInfo>, Status> {
        Ok(Response::new(v1::SystemInfo {
            version: "1".to_owned(),
            ..Default::default()
        }))
    }
    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorResponse>, Status> {
        Err(Status::failed_precondition("no"))
    }
    async fn check_store(
        &self,
        _: Request<v1::CheckStoreRequest>,
    ) -> Result<Response<v1::StoreReport>, Status> {
        Ok(Response::new(v1::StoreReport::default()))
    }
    async fn back_up_store(
        &self,
        _: Request<v1::BackUpStoreRequest>,
    ) -> Result<Response<v1::BackUpStoreResponse>, Status> {
        Ok(Response::new(v1::BackUpStoreResponse::default()))
    }
    async fn drop_quarantined(
        &self,
        _: Request<v1::DropQuarantinedRequest>,
    ) -> Result<Response<v1::DropQuarantinedResponse>, Status> {
        Ok(Response::new(v1::DropQuarantinedResponse {}))
    }
    async fn setup(&self, _: Request<v1::SetupRequest>) -> Result<Response<v1::SetupResponse>, Status> {
        Err(Status::failed_precondition("no"))
    }
    type WatchEventsStream = tokio_stream::Empty<Result<v1::Event, Status>>;
    async fn watch_events(
        &self,
        _: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// A daemon in a runtime of its own, so that all of it ends at once.
fn serve(path: &std::path::Path) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(async { UnixListener::bind(path) }).unwrap();
    drop(runtime.spawn(async move {
        tonic::transport::Server::builder()
            .add_service(SystemServiceServer::new(Minimal))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .unwrap();
    }));
    runtime
}

#[test]
fn calls_reach_the_daemon_also_after_its_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.sock");
    let first = serve(&path);
    let caller = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    caller.block_on(calls(&path, first));
}

async fn calls(path: &std::path::Path, first: tokio::runtime::Runtime) {
    let client = Client::connect(&HostAddress::Unix(path.to_owned()))
        .await
        .unwrap();
    let info = client
        .system()
        .get_info(v1::GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.version, "1");
    let error = ClientError::from(client.system().doctor(v1::DoctorRequest {}).await.unwrap_err());
    assert_eq!(
        (error.code(), error.kind()),
        ("GRPC_FAILED_PRECONDITION", Kind::WrongState)
    );

    first.shutdown_background();
    std::fs::remove_file(path).unwrap();
    let error = ClientError::from(client.system().get_info(v1::GetInfoRequest {}).await.unwrap_err());
    assert_eq!(
        (error.code(), error.kind()),
        ("CLIENT_CONNECTION_LOST", Kind::Unavailable),
        "{error}"
    );

    let path = path.to_owned();
    let second = tokio::task::spawn_blocking(move || serve(&path)).await.unwrap();
    client.system().get_info(v1::GetInfoRequest {}).await.unwrap();
    second.shutdown_background();
}

#[tokio::test]
async fn an_absent_daemon_is_told_by_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.sock");
    let error = Client::connect(&HostAddress::Unix(path.clone()))
        .await
        .unwrap_err();
    assert_eq!(error.code(), "CLIENT_DAEMON_ABSENT");
    assert!(error.to_string().contains("d.sock"), "{error}");
    // A socket left behind by a daemon that is gone.
    drop(UnixListener::bind(&path).unwrap());
    let error = Client::connect(&HostAddress::Unix(path)).await.unwrap_err();
    assert_eq!(error.code(), "CLIENT_DAEMON_ABSENT");
}
