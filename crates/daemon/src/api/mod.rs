//! The gRPC services: requests in, the rooms' own words out.

mod convert;
mod images;
mod instances;
mod logs;
mod names;
mod page;
mod repeats;
mod standby;
mod status;
mod system;

use std::sync::Arc;

use dormouse_instance::Instances;
use tokio_util::sync::CancellationToken;

use crate::engine::EngineHandle;
use crate::events::EventLog;
use crate::images::ImageRoom;
use crate::system::SystemFacts;

pub use status::code;

/// What is told to a request that comes when the daemon goes down.
pub(crate) fn leaving() -> tonic::Status {
    status::status(&dormouse_instance::InstanceError::ShuttingDown)
}

/// What the services work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    instances: Instances,
    images: ImageRoom,
    engine: EngineHandle,
    events: EventLog,
    facts: Arc<SystemFacts>,
    repeats: repeats::Repeats,
    /// The daemon goes down: streams end, or it would wait for their clients.
    stop: CancellationToken,
}

impl Api {
    /// The services over these rooms. What streams to clients, and what waits for something to happen, ends
    /// when `stop` is cancelled.
    #[must_use]
    pub fn new(
        instances: Instances,
        images: ImageRoom,
        engine: EngineHandle,
        events: EventLog,
        facts: Arc<SystemFacts>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            instances,
            images,
            engine,
            events,
            facts,
            repeats: repeats::Repeats::default(),
            stop,
        }
    }
}
