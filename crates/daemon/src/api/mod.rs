//! The gRPC services: requests in, the rooms' own words out.

mod convert;
mod images;
mod instances;
mod logs;
mod memory;
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
use dormouse_store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::engine::EngineHandle;
use crate::events::EventLog;
use crate::images::ImageRoom;
use crate::system::SystemFacts;

use memory::Memory;
use repeats::Repeats;

pub use request::RequestIds;
pub(crate) use request::current as current_request;
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
    store: Store,
    facts: Arc<SystemFacts>,
    repeats: Repeats,
    memory: Memory,
    /// The daemon goes down: streams end, or it would wait for their clients.
    stop: CancellationToken,
}

impl Api {
    /// The services over these rooms. What streams to clients, and what waits for something to happen, ends
    /// when `stop` is cancelled.
    ///
    /// # Errors
    /// When what is kept of earlier requests cannot be read.
    pub async fn open(
        instances: Instances,
        images: ImageRoom,
        engine: EngineHandle,
        events: EventLog,
        store: Store,
        facts: Arc<SystemFacts>,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        let repeats = Repeats::open(store.clone(), instances.now()).await?;
        Ok(Self {
            instances,
            images,
            engine,
            events,
            store,
            facts,
            repeats,
            memory: Memory::default(),
            stop,
        })
    }
}
