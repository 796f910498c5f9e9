//! The asynchronous face: the data plane, its links, and the task that listens for knocks.
//!
//! Every decision about a link is made and carried out in one job of the data plane's thread. So
//! any future here may be dropped at any point: the job is then done whole, or never begun.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use dormouse_model::error::chain;
use dormouse_model::{Addresses, WorkloadId};
use dormouse_sys::tap::packets_in_flight_settled;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::{Instant, sleep, timeout};

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::kernel::{Kernel, LinkCounters, Stepped, now};
use crate::knock::{Heard, Knock, KnockStream, Listener};
use crate::link::{LinkInput, LinkState};
use crate::reaper::Deletion;
use crate::registry::{Entry, Links};
use crate::worker::Worker;

/// How often a tap's queue is looked at while it drains: nothing tells that it became empty.
const DRAIN_STEP: Duration = Duration::from_millis(1);

/// How long a tap may take to go. It takes some 20 ms, after those before it.
const DELETION_DEADLINE: Duration = Duration::from_secs(20);

/// The data plane of one namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DataPlane {
    config: Arc<NetworkConfig>,
    pub(crate) worker: Worker,
    pub(crate) links: Arc<Links>,
}

impl DataPlane {
    /// The name of the tap that a workload has while it is awake.
    #[must_use]
    pub fn tap_name(&self, id: WorkloadId) -> String {
        self.config.tap_name(id)
    }

    /// Finds or makes the data plane in the configured namespace: the parking device, forwarding,
    /// packet rules. Nothing that an earlier daemon left is disturbed; see [`DataPlane::adopt`].
    ///
    /// The returned task must be run, or nobody hears knocks. Call inside a tokio runtime.
    ///
    /// # Errors
    /// An invalid configuration (the first problem), a device or table in the way, a host that
    /// cannot, or a refusal of the kernel.
    pub async fn open(config: NetworkConfig) -> Result<(Self, KnockStream, PlaneTask), NetworkError> {
        if let Some(problem) = config.problems().into_iter().next() {
            return Err(NetworkError::Config(problem));
        }
        let worker = Worker::start(config.clone()).await?;
        let parking = worker.call(|kernel| Ok(kernel.parking)).await?;
        let listener = Listener::open(&config, parking)?;
        let links = Arc::new(Links::default());
        let stream = KnockStream {
            knocks: Arc::clone(&links.knocks),
        };
        let plane = Self {
            config: Arc::new(config),
            worker,
            links,
        };
        let task = PlaneTask {
            plane: plane.clone(),
            listener,
        };
        Ok((plane, stream, task))
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Attaches a new workload: from now on packets for its addresses wait, and knock.
    ///
    /// # Errors
    /// When one of its addresses, or the workload, has a link; or when the kernel refuses, in which
    /// case nothing is left.
    pub async fn attach(&self, id: WorkloadId, addresses: Addresses) -> Result<Link, NetworkError> {
        let links = Arc::clone(&self.links);
        let work = move |kernel: &mut Kernel| {
            let entry = links.reserve(id, addresses)?;
            if let Err(error) = kernel.park(id, addresses) {
                // Best effort: the error that matters is the first.
                let _ = kernel.step(&mut entry.core(), LinkInput::Remove);
                links.forget(&entry);
                return Err(error);
            }
            Ok(entry)
        };
        let entry = self.worker.call(work).await?;
        Ok(Link {
            plane: self.clone(),
            entry,
        })
    }

    /// The link of a workload that is attached.
    #[must_use]
    pub fn link(&self, id: WorkloadId) -> Option<Link> {
        let entry = self.links.registry().by_id.get(&id).cloned();
        entry.map(|entry| Link {
            plane: self.clone(),
            entry,
        })
    }

    /// Takes the data plane away: every device, route and rule of ours in the namespace, with the
    /// packets that wait. For uninstalling and for tests; a daemon that ends leaves it all in place.
    /// Settings of the host, such as forwarding, stay as they are.
    ///
    /// # Errors
    /// When the kernel or nft refuses; whatever could go is gone.
    pub async fn tear_down(&self) -> Result<(), NetworkError> {
        let links: Vec<_> = self.links.registry().by_id.values().cloned().collect();
        let registry = Arc::clone(&self.links);
        let work = move |kernel: &mut Kernel| {
            let (mut result, mut deletions) = (Ok(()), Vec::new());
            for entry in links {
                match kernel.step(&mut entry.core(), LinkInput::Remove) {
                    Ok(stepped) => deletions.extend(stepped.deletions),
                    Err(error) => result = Err(error),
                }
                registry.publish(&entry);
                registry.forget(&entry);
            }
            let device = kernel.tear_down();
            result.and(device).map(|()| deletions)
        };
        deleted(self.worker.call(work).await?).await
    }

    async fn step(&self, entry: &Arc<Entry>, input: LinkInput) -> Result<Stepped, NetworkError> {
        let (links, entry) = (Arc::clone(&self.links), Arc::clone(entry));
        let work = move |kernel: &mut Kernel| {
            let stepped = kernel.step(&mut entry.core(), input);
            links.publish(&entry);
            stepped
        };
        self.worker.call(work).await
    }

    /// The kernel asks for `address` on the parking device.
    pub(crate) async fn asked(&self, address: IpAddr) {
        let Some(entry) = self.links.of_address(address) else {
            metrics::counter!("dormouse_network_knocks_total", "for" => "nobody").increment(1);
            return;
        };
        let knock = Knock {
            workload: entry.id,
            address,
        };
        // What the machine says of a knock at a parked link, without the way through the thread.
        if entry.seen().state == LinkState::Parked {
            metrics::counter!("dormouse_network_knocks_total", "for" => "sleeper").increment(1);
            self.links.knocks.push(knock);
            return;
        }
        metrics::counter!("dormouse_network_knocks_total", "for" => "late_parker").increment(1);
        match self.step(&entry, LinkInput::Knock).await {
            // It was shut meanwhile.
            Ok(stepped) if stepped.report => self.links.knocks.push(knock),
            Ok(_) => {}
            // The kernel asks again in a second.
            Err(error) => tracing::warn!(id = %entry.id, error = chain(&error), "late packets not released"),
        }
    }

    /// Lists who waits, for knocks that nobody heard.
    async fn scan(&self) -> Result<(), NetworkError> {
        for waiting in self.worker.call(Kernel::waiting).await? {
            if waiting.asked {
                self.asked(waiting.address).await;
            }
        }
        Ok(())
    }
}

/// Listens for knocks and lets links settle. To be run for as long as the data plane is used; when
/// it ends, the stream of knocks ends.
#[derive(Debug)]
pub struct PlaneTask {
    plane: DataPlane,
    listener: Listener,
}

impl PlaneTask {
    /// Runs until the listening socket fails, which it does not do in an ordinary life: overruns are
    /// answered by a listing. Dropping the future stops it; packets stay parked.
    ///
    /// # Errors
    /// When the socket failed, or the data plane's thread is gone.
    pub async fn run(mut self) -> Result<(), NetworkError> {
        self.plane.scan().await?;
        let links = Arc::clone(&self.plane.links);
        loop {
            tokio::select! {
                heard = self.listener.next() => match heard {
                    Ok(Heard::Asked(addresses)) => {
                        for address in addresses {
                            self.plane.asked(address).await;
                        }
                    }
                    Ok(Heard::Lost) => {
                        metrics::counter!("dormouse_network_knock_overruns_total").increment(1);
                        self.plane.scan().await?;
                    }
                    Err(source) => {
                        let about = self.plane.config.parking_device();
                        return Err(NetworkError::Kernel { doing: "listening for knocks on", about, source });
                    }
                },
                () = links.settling.due() => self.settle().await?,
            }
        }
    }

    async fn settle(&self) -> Result<(), NetworkError> {
        for id in self.plane.links.settling.take_due(now()?) {
            let Some(link) = self.plane.link(id) else { continue };
            if let Err(error) = self.plane.step(&link.entry, LinkInput::Tick).await {
                tracing::warn!(%id, error = chain(&error), "the parking device keeps an entry");
            }
        }
        Ok(())
    }
}

impl Drop for PlaneTask {
    fn drop(&mut self) {
        self.plane.links.knocks.close();
    }
}

/// The link of one workload: where packets for it go. Cheap to clone; all clones are the same link.
#[derive(Debug, Clone)]
pub struct Link {
    plane: DataPlane,
    entry: Arc<Entry>,
}

impl Link {
    pub(crate) fn new(plane: DataPlane, entry: Arc<Entry>) -> Self {
        Self { plane, entry }
    }

    /// Whose link this is.
    #[must_use]
    pub fn id(&self) -> WorkloadId {
        self.entry.id
    }

    /// The workload's addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.entry.addresses
    }

    /// Where packets go, as of the last step.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.entry.seen().state
    }

    /// The name of the tap that this link has while it is awake.
    #[must_use]
    pub fn tap_name(&self) -> String {
        self.plane.config.tap_name(self.entry.id)
    }

    /// Makes the tap and returns a descriptor of it for the VMM: non-blocking, with a virtio header
    /// of 12 bytes, offloads off. Packets still park: see [`Link::open`]. The link keeps a descriptor
    /// of its own until [`Link::drop_tap`], so the tap outlives the VMM: call that when the VMM has ended,
    /// or packets go to a queue that nobody reads.
    ///
    /// # Errors
    /// When the link has a tap or was removed, when a foreign device has the name, or when the kernel
    /// refuses; then there is no tap.
    pub async fn make_tap(&self) -> Result<OwnedFd, NetworkError> {
        let (links, entry) = (Arc::clone(&self.plane.links), Arc::clone(&self.entry));
        let work = move |kernel: &mut Kernel| {
            let made = kernel.make_tap(&mut entry.core());
            links.publish(&entry);
            made
        };
        self.plane.worker.call(work).await
    }

    /// Opens: packets go to the tap, and those that wait are let go, in the order in which they
    /// came. To be called once the guest runs. Does nothing when open.
    ///
    /// # Errors
    /// When there is no tap or the link was removed, or when the kernel refuses; then it is parked.
    pub async fn open(&self) -> Result<(), NetworkError> {
        self.plane.step(&self.entry, LinkInput::Open).await.map(|_| ())
    }

    /// Shuts: packets wait, and knock. Those already on their way to the tap still arrive: see
    /// [`Link::drained`]. Does nothing when parked.
    ///
    /// # Errors
    /// When the link was removed, or when the kernel refuses; then it is open.
    pub async fn shut(&self) -> Result<(), NetworkError> {
        self.plane.step(&self.entry, LinkInput::Shut).await.map(|_| ())
    }

    /// Waits until nothing is on its way to the guest any more, and returns the counters at that
    /// point. To be called after [`Link::shut`], with a VMM that still reads its tap.
    ///
    /// First the kernel's packets in flight are waited for: a packet that was routed to the tap
    /// before the shut is then in the tap's queue. Then the queue is watched until the VMM has
    /// emptied it. What the VMM has read it has handed to the guest before it acts on a command that
    /// comes after.
    ///
    /// One sender escapes the first wait: a process of the host itself that was preempted between
    /// asking for a route and sending. So look again after the guest has stopped and before the point
    /// of no return: [`Link::untouched_since`].
    ///
    /// # Errors
    /// When `within` passes first, or no descriptor of the tap is held here.
    pub async fn drained(&self, within: Duration) -> Result<LinkCounters, NetworkError> {
        let id = self.entry.id;
        let began = Instant::now();
        let late = || NetworkError::NotDrained { id, waited: within };
        let flight = tokio::task::spawn_blocking(packets_in_flight_settled);
        match timeout(within, flight).await {
            Ok(Ok(settled)) => settled.map_err(NetworkError::InFlight)?,
            Ok(Err(_)) => return Err(NetworkError::WorkerGone),
            Err(_) => return Err(late()),
        }
        while !self.queue_is_empty()? {
            if began.elapsed() >= within {
                return Err(late());
            }
            sleep(DRAIN_STEP).await;
        }
        self.counters().await
    }

    /// Whether nothing has come for the guest since `drained`: neither read by the VMM nor queued.
    /// To be asked once the guest has stopped, before what stopped it becomes final; on `false`
    /// resume and open, and the packet is delivered.
    ///
    /// # Errors
    /// When the counters cannot be read, or no descriptor of the tap is held here.
    pub async fn untouched_since(&self, drained: &LinkCounters) -> Result<bool, NetworkError> {
        let quiet = self.queue_is_empty()?;
        Ok(quiet && self.counters().await?.received_by_guest == drained.received_by_guest)
    }

    fn queue_is_empty(&self) -> Result<bool, NetworkError> {
        let missing = NetworkError::DescriptorMissing { id: self.entry.id };
        let descriptor = self
            .entry
            .seen()
            .tap
            .and_then(|tap| tap.descriptor)
            .ok_or(missing)?;
        let mut watched = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut watched, PollTimeout::ZERO).map_err(|errno| NetworkError::Kernel {
            doing: "looking into the queue of",
            about: self.tap_name(),
            source: errno.into(),
        })?;
        Ok(!watched.iter().any(|tap| {
            tap.revents()
                .is_some_and(|events| events.contains(PollFlags::POLLIN))
        }))
    }

    /// What the tap has counted since it was made.
    ///
    /// # Errors
    /// When there is no tap, or it is gone.
    pub async fn counters(&self) -> Result<LinkCounters, NetworkError> {
        let source = crate::link::LinkRefusal::NoTap;
        let tap = self.entry.seen().tap.ok_or(NetworkError::Refused {
            id: self.entry.id,
            source,
        })?;
        self.plane
            .worker
            .call(move |kernel| kernel.counters(tap.index))
            .await
    }

    /// Deletes the tap, whoever holds descriptors of it, shutting first if need be. Does nothing when
    /// there is none. Returns when it is gone, after some 20 ms; a next tap may be made at once, and
    /// nothing is left undone when nobody waits.
    ///
    /// # Errors
    /// When the link was removed, or when the kernel refuses.
    pub async fn drop_tap(&self) -> Result<(), NetworkError> {
        let stepped = self.plane.step(&self.entry, LinkInput::DropTap).await?;
        deleted(stepped.deletions).await
    }

    /// As [`Link::drop_tap`], without waiting until the kernel has taken the device apart: on return no
    /// packet reaches it any more, its name is free, and the deletion goes on by itself. What it costs
    /// to wait is some 20 ms in which nothing of the workload is left to wait for.
    ///
    /// # Errors
    /// When the link was removed, or when the kernel refuses to shut.
    pub async fn abandon_tap(&self) -> Result<(), NetworkError> {
        self.plane.step(&self.entry, LinkInput::DropTap).await.map(|_| ())
    }

    /// Removes the link with all that was made for it, and drops what waits. When this returns
    /// nothing routes to the workload's addresses any more. Removing again is fine.
    ///
    /// # Errors
    /// When the kernel refuses; then try again, the addresses stay taken meanwhile.
    pub async fn remove(&self) -> Result<(), NetworkError> {
        let (links, entry) = (Arc::clone(&self.plane.links), Arc::clone(&self.entry));
        let work = move |kernel: &mut Kernel| {
            let removed = kernel.step(&mut entry.core(), LinkInput::Remove);
            links.publish(&entry);
            if removed.is_ok() {
                links.forget(&entry);
            }
            removed
        };
        deleted(self.plane.worker.call(work).await?.deletions).await
    }
}

/// Waits until taps are gone. What is under way goes on when this is dropped.
async fn deleted(deletions: Vec<Deletion>) -> Result<(), NetworkError> {
    for deletion in deletions {
        match timeout(DELETION_DEADLINE, deletion).await {
            Ok(Ok(end)) => end?,
            Ok(Err(_)) => return Err(NetworkError::WorkerGone),
            Err(_) => {
                return Err(NetworkError::Slow {
                    waited: DELETION_DEADLINE,
                });
            }
        }
    }
    Ok(())
}
