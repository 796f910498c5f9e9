//! Making an instance: everything that it has is reserved, one commit makes it, or nothing is left.

use std::sync::atomic::Ordering;

use dormouse_image::ImageError;
use dormouse_model::{State, WorkloadId};
use dormouse_sys::fault::Side;
use tokio::sync::oneshot;

use super::{CreateRequest, Holdings, Instances};
use crate::actor::settings;
use crate::error::InstanceError;
use crate::machine::{Machine, Record};
use crate::memory::GuestRam;
use crate::record::Remembered;
use crate::steps::{Parts, fault};
use crate::view::{InstanceEvent, InstanceView};

impl Instances {
    /// Makes an instance, wholly or not at all, and starts it when asked. Returns once the record is
    /// durable and, when started, the process runs or the start has failed. A caller that goes away
    /// meanwhile changes nothing: the work goes on without it.
    ///
    /// # Errors
    /// When the name is taken, the image unknown, or the record cannot be written; nothing is left then.
    /// When only the start failed the instance stays, failed.
    pub async fn create(&self, request: CreateRequest) -> Result<InstanceView, InstanceError> {
        if self.shared.detaching.load(Ordering::Acquire) {
            return Err(InstanceError::ShuttingDown);
        }
        let instances = self.clone();
        let (done, outcome) = oneshot::channel();
        self.shared.spawn(async move {
            // Whoever asked may be gone.
            drop(done.send(instances.make(request).await));
        });
        outcome.await.map_err(|_| InstanceError::ShuttingDown)?
    }

    /// An id that no instance has, for [`CreateRequest::id`].
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn new_id(&self) -> Result<WorkloadId, InstanceError> {
        let rooms = &self.shared.rooms;
        let random = rooms
            .random()
            .map_err(|source| InstanceError::Random { source })?;
        Ok(WorkloadId::new(rooms.clock.wall(), random))
    }

    async fn make(&self, mut request: CreateRequest) -> Result<InstanceView, InstanceError> {
        let rooms = &self.shared.rooms;
        if let Err(source) = self.shared.settle_doubts().await {
            let what = request.spec.name.to_string();
            return Err(InstanceError::Store { what, source });
        }
        let (reference, start) = (request.spec.image.clone(), request.start);
        let along = std::mem::take(&mut request.along);
        let image = |source| InstanceError::Image { reference, source };
        let digest = match rooms.images.digest_of(&request.spec.image).await {
            Ok(digest) => digest,
            Err(source) => return Err(image(source)),
        };
        let id = request.id.map_or_else(|| self.new_id(), Ok)?;
        self.can_be_made(id, &request).await?;
        let remembered = self.reserve(id, request, digest)?;
        // The lease of `reserve` keeps the image from now on; it may have gone in between.
        if let Err(source) = rooms.images.digest_of(&remembered.view.image_digest).await {
            self.shared.forget(id);
            return Err(image(lost(source)));
        }
        fault::reach("create_record", Side::Before, id).await;
        let written = rooms.store.apply(along.put(id, &remembered.to_record())).await;
        fault::reach("create_record", Side::After, id).await;
        if let Err(source) = written {
            let what = remembered.view.spec.name.to_string();
            self.shared.doubt(id).await;
            return Err(InstanceError::Store { what, source });
        }
        let machine = Machine::new(settings(rooms, &remembered));
        let birth = InstanceEvent::Created(Box::new(remembered.view.clone()));
        self.launch_task(machine, remembered, Parts::default(), Some(birth), Vec::new());
        if start {
            self.start(id).await
        } else {
            self.view(id)
        }
    }

    /// Takes name, addresses and a user id, or nothing.
    fn reserve(
        &self,
        id: WorkloadId,
        request: CreateRequest,
        image_digest: String,
    ) -> Result<Remembered, InstanceError> {
        let rooms = &self.shared.rooms;
        let mut registry = self.shared.registry();
        let name = request.spec.name.clone();
        if registry.names.contains_key(&name) {
            return Err(InstanceError::NameTaken { name });
        }
        let uid = (rooms.first_uid..rooms.first_uid.saturating_add(rooms.uid_count))
            .find(|uid| !registry.uids.contains(uid))
            .ok_or(InstanceError::Exhausted { what: "user id" })?;
        let addresses = registry
            .pool
            .allocate()
            .map_err(|_| InstanceError::Exhausted { what: "address" })?;
        let holdings = Holdings {
            addresses: Some(addresses),
            uid: Some(uid),
        };
        registry.holdings.insert(id, holdings);
        registry.uids.insert(uid);
        registry.names.insert(name, id);
        registry.leases.insert(id, image_digest.clone());
        drop(registry);
        let placement = rooms.placement_of(&request.spec);
        let now = rooms.clock.wall();
        let view = InstanceView {
            id,
            image_digest,
            state: State::Stopped,
            reason: String::new(),
            addresses,
            memory: GuestRam::fresh(placement, request.spec.memory),
            generation: Record::NEW.generation,
            snapshot: None,
            monitor: String::new(),
            created_at: now,
            started_at: None,
            state_changed_at: now,
            last_wake: None,
            last_standby: None,
            last_commit: None,
            pid: None,
            exit: None,
            agent_ready: false,
            auto_remove: request.auto_remove,
            standbys: 0,
            wakes: 0,
            revision: rooms.first_revision(),
            spec: request.spec,
        };
        Ok(Remembered {
            view,
            uid,
            life: Record::NEW,
        })
    }
}

/// An image that was there a moment ago: not a wrong name, somebody removed it.
fn lost(source: ImageError) -> ImageError {
    if let ImageError::NotFound { reference } = source {
        return ImageError::RemovedMeanwhile { reference };
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_model::Fault as _;

    #[test]
    fn an_image_that_was_there_was_removed() {
        let code = |error| lost(error).code();
        let reference = "sha256:aa".to_owned();
        assert_eq!(
            code(ImageError::NotFound { reference }),
            "IMAGE_REMOVED_MEANWHILE"
        );
        assert_eq!(code(ImageError::Cancelled), "IMAGE_CANCELLED");
    }
}
