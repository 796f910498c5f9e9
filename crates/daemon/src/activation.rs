//! What a service manager has handed to this process: the API's socket, descriptors that it kept over a
//! restart, and a way to tell it how we are. All of it may be missing.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dormouse_keeper::notify::{News, watchdog_interval};
use dormouse_keeper::{DescriptorStore, Holder, KeeperError, Notifier, Reached, Source, descriptor_store};
use dormouse_sys::descriptor::{Passed, take_passed_named};
use tonic::async_trait;

/// The name of the API's socket (`FileDescriptorName=` of the socket unit).
const API: &str = "api";

/// What was handed over.
#[derive(Debug, Default)]
pub struct Activation {
    /// The API's listening socket.
    pub api: Option<OwnedFd>,
    /// From the descriptor store.
    pub stored: Vec<Passed>,
    /// The manager.
    pub manager: Manager,
    /// Whether it says that it keeps descriptors (`FDSTORE`, since systemd 254).
    pub keeps: bool,
}

impl Activation {
    /// Takes it, once a process. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the manager's variables make no sense.
    pub fn take() -> io::Result<Self> {
        let mut taken = Self {
            manager: Manager(Notifier::from_environment()?.map(Arc::new)),
            keeps: std::env::var("FDSTORE").is_ok_and(|most| most.parse::<u32>().is_ok_and(|most| most > 0)),
            ..Self::default()
        };
        for passed in take_passed_named()? {
            if descriptor_store::is_stored(&passed.name) {
                taken.stored.push(passed);
            } else if passed.name == API && taken.api.is_none() {
                taken.api = Some(passed.descriptor);
            } else {
                tracing::warn!(
                    name = passed.name,
                    "a descriptor of the service manager is of no use here"
                );
            }
        }
        Ok(taken)
    }

    /// Whether the manager can be asked to keep descriptors.
    #[must_use]
    pub fn can_keep(&self) -> bool {
        self.manager.0.is_some() && (self.keeps || !self.stored.is_empty())
    }
}

/// The service manager, if there is one. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Manager(Option<Arc<Notifier>>);

impl Manager {
    /// Tells it something; a manager that does not listen is its own problem.
    pub async fn tell(&self, news: &[News<'_>]) {
        if let Some(notifier) = &self.0
            && let Err(error) = notifier.say(news).await
        {
            tracing::warn!(%error, "the service manager does not listen");
        }
    }

    /// Tells it that we are alive for as long as this is run, as often as it wants to hear it; never ends.
    /// On the runtime that serves: one that stands still is not alive.
    pub async fn watch(&self) {
        let (Some(_), Some(interval)) = (&self.0, watchdog_interval()) else {
            return std::future::pending().await;
        };
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell(&[News::Watchdog]).await;
        }
    }
}

/// The descriptor store as a source of keepers: it is always there, and the same.
#[derive(Debug)]
pub struct StoreSource(Arc<dyn Holder>);

impl StoreSource {
    /// The store of the manager, with what it handed over; `None` without a manager.
    pub async fn open(manager: &Manager, stored: Vec<Passed>) -> Option<Self> {
        let notifier = manager.0.clone()?;
        Some(Self(Arc::new(DescriptorStore::new(notifier, stored).await)))
    }
}

#[async_trait]
impl Source for StoreSource {
    async fn reach(&self, _replace: bool) -> Result<Reached, KeeperError> {
        Ok(Reached {
            holder: Arc::clone(&self.0),
            process: None,
        })
    }
}
