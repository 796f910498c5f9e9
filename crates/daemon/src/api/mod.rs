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

use crate::engine::EngineHandle;
use crate::events::EventLog;
use crate::images::ImageRoom;
use crate::system::SystemFacts;

pub use status::code;

/// What the services work with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    pub(crate) instances: Instances,
    pub(crate) images: ImageRoom,
    pub(crate) engine: EngineHandle,
    pub(crate) events: EventLog,
    pub(crate) facts: Arc<SystemFacts>,
    pub(crate) repeats: Arc<repeats::Repeats>,
}

impl Api {
    /// The services over these rooms.
    #[must_use]
    pub fn new(
        instances: Instances,
        images: ImageRoom,
        engine: EngineHandle,
        events: EventLog,
        facts: Arc<SystemFacts>,
    ) -> Self {
        Self {
            instances,
            images,
            engine,
            events,
            facts,
            repeats: Arc::default(),
        }
    }
}
