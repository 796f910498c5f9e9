//! Scripted guests: made, moved and removed through the API.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dormouse_client::v1;
use dormouse_client::v1::InstanceState;

use super::archive::Image;
use super::bed::Bed;
use crate::lab::tick;

/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_secs(15);

/// The image of all scripted guests.
pub(crate) const IMAGE: &str = "hostile:case";

/// A request for a small guest called `name` that is started.
pub(crate) fn small(name: &str) -> v1::CreateInstanceRequest {
    v1::CreateInstanceRequest {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        memory_bytes: 128 << 20,
        disk_bytes: 16 << 20,
        // The monitor maps no memory, so none can be found dirty in it.
        placement: v1::MemoryPlacement::Tmpfs.into(),
        start: true,
        ..Default::default()
    }
}

/// One verb of the API on an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop,
    Standby,
    Wake,
    Delete,
}

impl Verb {
    pub(crate) const ALL: [Self; 5] = [Self::Start, Self::Stop, Self::Standby, Self::Wake, Self::Delete];
}

impl Bed {
    /// Imports the image of all scripted guests.
    pub(crate) fn import_guest_image(&self) -> Result<()> {
        let place = self.lab.disk_directory().join("guest.tar");
        std::fs::write(&place, Image::default().build())?;
        self.lab.import(&place)?;
        std::fs::remove_file(&place).context("removing the archive")
    }

    /// Asks for an instance.
    pub(crate) fn create(&self, request: v1::CreateInstanceRequest) -> Result<v1::Instance> {
        let made = self.lab.call(|client| async move {
            Ok(client.instances().create_instance(request).await?.into_inner())
        })?;
        Ok(made)
    }

    /// The instance now.
    pub(crate) fn instance(&self, key: &str) -> Result<v1::Instance> {
        let request = v1::GetInstanceRequest {
            instance: key.to_owned(),
        };
        self.lab
            .call(|client| async move { Ok(client.instances().get_instance(request).await?.into_inner()) })
    }

    /// Asks for `verb`, for this `etag` only when it is not empty.
    pub(crate) fn ask(&self, verb: Verb, key: &str, etag: &str) -> Result<()> {
        let (instance, etag) = (key.to_owned(), etag.to_owned());
        self.lab.call(|client| async move {
            let mut instances = client.instances();
            let request_id = String::new();
            match verb {
                Verb::Start => drop(
                    instances
                        .start_instance(v1::StartInstanceRequest {
                            instance,
                            etag,
                            request_id,
                        })
                        .await?,
                ),
                Verb::Stop => {
                    let timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
                    let request = v1::StopInstanceRequest {
                        instance,
                        timeout,
                        etag,
                        request_id,
                    };
                    drop(instances.stop_instance(request).await?);
                }
                Verb::Standby => {
                    let yield_to_traffic = false;
                    let request = v1::StandbyInstanceRequest {
                        instance,
                        yield_to_traffic,
                        etag,
                        request_id,
                    };
                    drop(instances.standby_instance(request).await?);
                }
                Verb::Wake => drop(
                    instances
                        .wake_instance(v1::WakeInstanceRequest {
                            instance,
                            etag,
                            request_id,
                        })
                        .await?,
                ),
                Verb::Delete => {
                    let request = v1::DeleteInstanceRequest {
                        instance,
                        force: false,
                        etag,
                        request_id,
                    };
                    drop(instances.delete_instance(request).await?);
                }
            }
            Ok(())
        })
    }

    /// Removes the instance whatever it does.
    pub(crate) fn remove(&self, key: &str) -> Result<()> {
        let request = v1::DeleteInstanceRequest {
            instance: key.to_owned(),
            force: true,
            ..Default::default()
        };
        self.lab
            .call(|client| async move { Ok(client.instances().delete_instance(request).await?.into_inner()) })
            .map(drop)
            .with_context(|| format!("removing {key}"))
    }

    /// Waits until the instance is in one of `states`.
    pub(crate) fn until(&self, key: &str, states: &[InstanceState]) -> Result<v1::Instance> {
        let begun = Instant::now();
        loop {
            let now = self.instance(key)?;
            if states.contains(&now.state()) {
                return Ok(now);
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "{key} is {} after {PATIENCE:?}: {}\n{}",
                    now.state().as_str_name(),
                    now.state_reason,
                    self.lab.log_tail()
                );
            }
            tick(Duration::from_millis(5));
        }
    }

    /// A guest that runs.
    pub(crate) fn running(&self, name: &str) -> Result<v1::Instance> {
        let made = self.create(small(name))?;
        self.until(&made.id, &[InstanceState::Running])
    }

    /// A guest that sleeps.
    pub(crate) fn asleep(&self, name: &str) -> Result<v1::Instance> {
        let made = self.running(name)?;
        self.ask(Verb::Standby, &made.id, "")?;
        self.until(&made.id, &[InstanceState::Standby])
    }
}
