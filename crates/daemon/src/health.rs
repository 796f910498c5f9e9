//! What `grpc.health.v1` says of each service: serving, or not yet, or no longer.

use dormouse_proto::v1::image_service_server::ImageServiceServer;
use dormouse_proto::v1::instance_service_server::InstanceServiceServer;
use dormouse_proto::v1::standby_service_server::StandbyServiceServer;
use dormouse_proto::v1::system_service_server::SystemServiceServer;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health as HealthService, HealthServer};
use tonic_health::server::HealthReporter;

use crate::api::Api;

/// The daemon as a whole, and each of its services.
const SERVICES: [&str; 5] = [
    "",
    <InstanceServiceServer<Api> as NamedService>::NAME,
    <ImageServiceServer<Api> as NamedService>::NAME,
    <StandbyServiceServer<Api> as NamedService>::NAME,
    <SystemServiceServer<Api> as NamedService>::NAME,
];

/// Says how the daemon is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// A daemon that does not serve yet, and the service that says so.
    pub async fn new() -> (Self, HealthServer<impl HealthService>) {
        let (reporter, service) = tonic_health::server::health_reporter();
        let health = Self { reporter };
        health.say(ServingStatus::NotServing).await;
        (health, service)
    }

    /// Everything is recovered: requests are served.
    pub async fn serving(&self) {
        self.say(ServingStatus::Serving).await;
    }

    /// The daemon ends, or is not recovered yet: requests under way are finished, new ones go elsewhere.
    pub async fn not_serving(&self) {
        self.say(ServingStatus::NotServing).await;
    }

    async fn say(&self, status: ServingStatus) {
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Request;
    use tonic_health::pb::HealthCheckRequest;

    #[tokio::test]
    async fn each_service_tells_when_it_serves() {
        let (reporter, _) = tonic_health::server::health_reporter();
        let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        let health = Health { reporter };
        let says = async |name: &str| {
            let request = HealthCheckRequest {
                service: name.to_owned(),
            };
            service
                .check(Request::new(request))
                .await
                .unwrap()
                .into_inner()
                .status
        };
        for name in SERVICES {
            health.not_serving().await;
            assert_eq!(says(name).await, 2, "{name}");
            health.serving().await;
            assert_eq!(says(name).await, 1, "{name}");
        }
        assert_eq!(SERVICES[1], "dormouse.v1.InstanceService");
    }
}
