//! The gRPC services: requests in, the rooms' own words out.

mod convert;
mod images;
mod instances;
mod logs;
mod names;
mod page;
mod refusal;
mod repeats;
mod request;
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

pub(crate) use repeats::Repeats;
pub use request::RequestIds;
pub(crate) use request::current as current_request;
pub use status::code;

/// What the services work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    instances: Instances,
    images: ImageRoom,
    engine: EngineHandle,
    events: EventLog,
    facts: Arc<SystemFacts>,
    repeats: Repeats,
    /// The daemon goes down: streams end, or it would wait for their clients.
    stop: CancellationToken,
}

impl Api {
    /// The services over these rooms. What streams to clients, and what waits for something to happen, ends
    /// when `stop` is cancelled.
    #[must_use]
    pub(crate) fn new(
        instances: Instances,
        images: ImageRoom,
        engine: EngineHandle,
        events: EventLog,
        facts: Arc<SystemFacts>,
        repeats: Repeats,
        stop: CancellationToken,
    ) -> Self {
        Self {
            instances,
            images,
            engine,
            events,
            facts,
            repeats,
            stop,
        }
    }
}
