//! The gRPC health service: every service is serving until the daemon goes down, and none after that. A
//! client that watches is told so, and then let go of, or the end would wait for it.

use std::future::ready;
use std::pin::Pin;

use dormouse_proto::v1::image_service_server::ImageServiceServer;
use dormouse_proto::v1::instance_service_server::InstanceServiceServer;
use dormouse_proto::v1::standby_service_server::StandbyServiceServer;
use dormouse_proto::v1::system_service_server::SystemServiceServer;
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::Api;

/// Whose health is known; the empty name is the daemon's as a whole.
const SERVICES: [&str; 5] = [
    "",
    InstanceServiceServer::<Api>::NAME,
    ImageServiceServer::<Api>::NAME,
    StandbyServiceServer::<Api>::NAME,
    SystemServiceServer::<Api>::NAME,
];

/// The service.
#[derive(Debug, Clone)]
pub struct HealthOfAll {
    leaving: CancellationToken,
}

impl HealthOfAll {
    /// Serving until `leaving` is cancelled.
    #[must_use]
    pub const fn new(leaving: CancellationToken) -> Self {
        Self { leaving }
    }

    /// To be added to a server.
    #[must_use]
    pub fn into_service(self) -> HealthServer<Self> {
        HealthServer::new(self)
    }

    fn now(&self) -> HealthCheckResponse {
        answer(if self.leaving.is_cancelled() {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        })
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for HealthOfAll {
    type WatchStream = Answers;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if SERVICES.contains(&request.get_ref().service.as_str()) {
            Ok(Response::new(self.now()))
        } else {
            Err(Status::not_found("no such service"))
        }
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Answers>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            // The protocol has the stream stay open, for the service may come. None of ours will.
            let unknown = Ok(answer(ServingStatus::ServiceUnknown));
            let leaving = self.leaving.clone().cancelled_owned();
            let first = stream::once(async { unknown });
            let rest = stream::once(leaving).filter_map(|()| ready(None));
            return Ok(Response::new(Box::pin(first.chain(rest))));
        }
        let first = self.now();
        let was_serving = first.status == i32::from(ServingStatus::Serving);
        let leaving = self.leaving.clone().cancelled_owned();
        let last = stream::once(leaving)
            .filter_map(move |()| ready(was_serving.then(|| Ok(answer(ServingStatus::NotServing)))));
        let first = stream::once(async move { Ok(first) });
        Ok(Response::new(Box::pin(first.chain(last))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: service.to_owned(),
        })
    }

    #[tokio::test]
    async fn a_daemon_that_leaves_serves_no_more_and_lets_its_watchers_go() {
        let leaving = CancellationToken::new();
        let health = HealthOfAll::new(leaving.clone());
        assert!(health.check(ask("none")).await.is_err());
        for service in SERVICES {
            let now = health.check(ask(service)).await.unwrap().into_inner();
            assert_eq!(now.status(), ServingStatus::Serving, "{service:?}");
        }
        let known = health.watch(ask("")).await.unwrap().into_inner();
        let unknown = health.watch(ask("none")).await.unwrap().into_inner();
        leaving.cancel();
        let status = |told: Result<HealthCheckResponse, Status>| told.unwrap().status();
        let told: Vec<_> = known.map(status).collect().await;
        assert_eq!(told, [ServingStatus::Serving, ServingStatus::NotServing]);
        let told: Vec<_> = unknown.map(status).collect().await;
        assert_eq!(told, [ServingStatus::ServiceUnknown]);
        let late = health.watch(ask("")).await.unwrap().into_inner();
        let told: Vec<_> = late.map(status).collect().await;
        assert_eq!(told, [ServingStatus::NotServing]);
        let now = health.check(ask("")).await.unwrap().into_inner();
        assert_eq!(now.status(), ServingStatus::NotServing);
    }
}
