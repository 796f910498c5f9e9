//! Instances whose records are not to be read. Their guests run on: a damaged record is no reason to end
//! one. What they have is told from the host, and from what the bytes still say, and is given to nobody
//! else; they are listed as failed with the reason, and everything but their removal is refused.
//!
//! ```text
//!   Damaged ── delete, forced (or at rest) ──▶ an ordinary task, whose record says that it is being deleted
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Weak};

use dormouse_model::policy::PolicySetting;
use dormouse_model::spec::Placement;
use dormouse_model::{Addresses, Bytes, InstanceSpec, Name, OnLostMemory, State, WorkloadId};
use dormouse_network::{Expected, Link};
use dormouse_store::{Damage, Key};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::recover::recovered;
use super::{Holdings, Instances, Shared};
use crate::actor::{Actor, Asked, Command, Outlets};
use crate::adoption::{Facts, Heard};
use crate::machine::{Answer, Phase, Record, Refusal, Removal, Request};
use crate::memory::GuestRam;
use crate::record::salvage::{Salvage, salvage};
use crate::record::{InstanceRecord, RecordError, Remembered};
use crate::recovery;
use crate::rooms::Rooms;
use crate::steps::Parts;
use crate::view::{InstanceEvent, InstanceView};

/// A record that is not to be read.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) id: WorkloadId,
    pub(super) why: String,
    pub(super) bytes: Vec<u8>,
}

impl Remains {
    /// Of a record that can be read and contradicts itself; `None` when its key is no instance's.
    pub(super) fn of_record(key: &Key, record: &InstanceRecord, why: &RecordError) -> Option<Self> {
        Some(Self {
            id: key.workload()?,
            why: why.to_string(),
            bytes: dormouse_store::record::encode(key, record),
        })
    }
}

/// What is known of an instance without its record.
struct Traces {
    name: Name,
    addresses: Option<Addresses>,
    uid: Option<u32>,
    pids: Vec<u32>,
}

impl Instances {
    /// Finds what is left of records that were set aside.
    pub(super) async fn set_aside(&self, damaged: Vec<Damage>) -> Vec<Remains> {
        let store = &self.shared.rooms.store;
        let mut remains = Vec::new();
        for damage in damaged {
            tracing::error!(%damage, "an instance's record is set aside");
            if let Some(id) = damage.key.workload() {
                let bytes = store.aside_bytes::<InstanceRecord>(id).await;
                remains.push(Remains {
                    id,
                    why: damage.reason.as_str().to_owned(),
                    bytes: bytes.ok().flatten().unwrap_or_default(),
                });
            }
        }
        remains
    }

    /// Takes in the instances of damaged records. To be called when all others have what is theirs, and
    /// before anything is swept.
    pub(super) async fn keep_damaged(&self, all: Vec<Remains>) {
        if all.is_empty() {
            return;
        }
        let mut nameless = false;
        for remains in all {
            let traces = self.claim(&remains).await;
            nameless |= traces.addresses.is_none();
            self.enter_damaged(remains, traces).await;
        }
        // Somebody of them sleeps at an address that its record does not tell any more.
        if nameless && let Ok(parked) = self.shared.rooms.network.parked_for_nobody().await {
            let mut registry = self.shared.registry();
            for address in parked {
                if let Some(addresses) = of_address(&registry.pool, address)
                    && registry.pool.claim(addresses).is_ok()
                {
                    tracing::warn!(%address, "reserved: an instance with a damaged record may have it");
                }
            }
        }
    }

    /// Finds what is the instance's and reserves it.
    async fn claim(&self, remains: &Remains) -> Traces {
        let rooms = &self.shared.rooms;
        let id = remains.id;
        let routed = rooms.network.routed_to(id).await.unwrap_or_else(|error| {
            tracing::warn!(instance_id = %id, %error, "routes to its tap");
            BTreeSet::new()
        });
        let pids = members(rooms, id);
        let mut registry = self.shared.registry();
        let Salvage { name, addresses } = salvage(id, &remains.bytes, &registry.pool);
        // What the kernel does is true, whatever a record says.
        let addresses = routed
            .into_iter()
            .find_map(|address| of_address(&registry.pool, address))
            .or(addresses)
            .filter(|addresses| registry.pool.claim(*addresses).is_ok());
        let range = rooms.first_uid..rooms.first_uid.saturating_add(rooms.uid_count);
        let uid = uid(rooms, id, &pids).filter(|uid| range.contains(uid) && !registry.uids.contains(uid));
        registry.uids.extend(uid);
        registry.holdings.insert(id, Holdings { addresses, uid });
        let name = name
            .filter(|name| !registry.names.contains_key(name))
            .unwrap_or_else(|| Name::from(id));
        registry.names.insert(name.clone(), id);
        Traces {
            name,
            addresses,
            uid,
            pids,
        }
    }

    /// Its link stays as it is, what is kept of it is kept on, and its task begins.
    async fn enter_damaged(&self, remains: Remains, traces: Traces) {
        let rooms = &self.shared.rooms;
        let id = remains.id;
        let mut link = None;
        if let Some(addresses) = traces.addresses {
            let expected = match traces.pids.first() {
                Some(pid) => Expected::Open {
                    tap: recovery::tap_of_member(rooms, id, *pid),
                },
                None => Expected::Parked,
            };
            match rooms.network.adopt(id, addresses, expected).await {
                Ok(adopted) => link = Some(adopted.link),
                Err(error) => tracing::error!(instance_id = %id, %error, "link of a damaged record"),
            }
        }
        recovery::keep_holding(rooms, id).await;
        let mut why = format!("its record is damaged: {}", remains.why);
        if let Some(pid) = traces.pids.first() {
            why.push_str(&format!("; its process {pid} runs on"));
        }
        tracing::error!(instance_id = %id, name = %traces.name, why, "an instance without a record");
        self.shared.registry().damaged.insert(id, why.clone());
        let remembered = remembered(rooms, remains, traces, why);
        let (outlets, inbox) = self.seat(&remembered);
        let task = Damaged {
            rooms: Arc::clone(rooms),
            shared: Arc::downgrade(&self.shared),
            remembered,
            link,
            outlets,
            inbox,
        };
        self.shared.spawn(task.run());
    }

    /// How it stands with what is kept for the next daemon.
    #[must_use]
    pub fn custody(&self) -> dormouse_keeper::custody::Status {
        self.shared.rooms.custodian.status()
    }

    /// Instances whose records are damaged, and what is known.
    #[must_use]
    pub fn damaged(&self) -> Vec<(WorkloadId, String)> {
        let registry = self.shared.registry();
        registry
            .damaged
            .iter()
            .map(|(id, why)| (*id, why.clone()))
            .collect()
    }
}

/// The task of an instance without a record.
struct Damaged {
    rooms: Arc<Rooms>,
    shared: Weak<Shared>,
    remembered: Remembered,
    link: Option<Link>,
    outlets: Outlets,
    inbox: mpsc::Receiver<Command>,
}

impl Damaged {
    async fn run(mut self) {
        let view = Box::new(self.remembered.view.clone());
        // The receiver outlives every task.
        drop(self.outlets.notices.send(InstanceEvent::Updated(view)).await);
        while let Some(command) = self.inbox.recv().await {
            match command {
                Command::Detach => return,
                Command::Knock => {}
                Command::Ask {
                    request,
                    attempt,
                    at,
                    reply,
                } => match self.refusal(&request) {
                    Some(refusal) => {
                        let (_, outcome) = oneshot::channel();
                        let answer = Answer::Refused(refusal);
                        // A caller who went away does not want to know.
                        drop(reply.send(Asked { answer, outcome }));
                    }
                    None => {
                        let first = Command::Ask {
                            request,
                            attempt,
                            at,
                            reply,
                        };
                        return self.remove(first).await;
                    }
                },
            }
        }
    }

    fn refusal(&self, request: &Request) -> Option<Refusal> {
        let runs = || !members(&self.rooms, self.remembered.view.id).is_empty();
        match request {
            Request::Delete {
                removal: Removal::Forced,
            } => None,
            Request::Delete {
                removal: Removal::Graceful,
            } => runs().then_some(Refusal::WrongState(State::Running)),
            Request::Start
            | Request::Stop { .. }
            | Request::Sleep { .. }
            | Request::CancelSleep { .. }
            | Request::Wake { .. } => Some(Refusal::WrongState(State::Failed)),
        }
    }

    /// Removes it as any other, by the ordinary plan: its process is ended through its control group.
    async fn remove(self, first: Command) {
        let Self {
            rooms,
            shared,
            remembered,
            link,
            outlets,
            inbox,
        } = self;
        let facts = Facts {
            boot: rooms.boot(),
            start_ticks_at_pid: None,
            heard: Heard::Answers,
            resident: None,
            spilled: None,
            state: None,
            manifest: None,
            unsure: false,
        };
        let (machine, effects) = recovered(&rooms, &remembered, &facts);
        let parts = Parts {
            link,
            ..Parts::default()
        };
        let mut actor = Actor::new(rooms, machine, remembered, parts, outlets, inbox);
        actor.begin(None, effects).await;
        actor.tell(first).await;
        Shared::see_through(&shared, actor).await;
    }
}

/// The processes in the instance's control group.
fn members(rooms: &Rooms, id: WorkloadId) -> Vec<u32> {
    let mark = id.mark();
    let names = rooms.cgroups.names().unwrap_or_default();
    // Asking for a group makes it.
    if !names.contains(&mark) {
        return Vec::new();
    }
    let members = rooms.cgroups.group(&mark).and_then(|group| group.members());
    members
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pid| u32::try_from(pid).ok())
        .collect()
}

/// The user that its process runs as, or that owns its disk.
fn uid(rooms: &Rooms, id: WorkloadId, pids: &[u32]) -> Option<u32> {
    let owner = |path: std::path::PathBuf| Some(std::fs::metadata(path).ok()?.uid());
    pids.iter()
        .find_map(|pid| owner(format!("/proc/{pid}").into()))
        .or_else(|| owner(rooms.layout.disk(id)))
}

/// The place of the pool that an address of either family belongs to.
fn of_address(pool: &dormouse_network::AddressPool, address: IpAddr) -> Option<Addresses> {
    match address {
        IpAddr::V4(ipv4) => pool.of(ipv4),
        IpAddr::V6(_) => None,
    }
}

/// What the ordinary task is told of it: enough to remove it.
fn remembered(rooms: &Rooms, remains: Remains, traces: Traces, why: String) -> Remembered {
    let now = rooms.clock.wall();
    // Whole fields of a record that only contradicts itself, or whose damage is elsewhere.
    let body = remains.bytes.get(1..remains.bytes.len().saturating_sub(4));
    let told = body
        .and_then(|body| InstanceRecord::decode(body).ok())
        .unwrap_or_default();
    let spec = InstanceSpec {
        name: traces.name,
        image: told.spec.map(|spec| spec.image).unwrap_or_default(),
        vcpus: 1,
        memory: InstanceSpec::MIN_MEMORY,
        disk: Bytes(0),
        placement: Placement::Auto,
        entrypoint: Vec::new(),
        command: Vec::new(),
        environment: std::collections::BTreeMap::new(),
        working_directory: None,
        user: None,
        labels: std::collections::BTreeMap::new(),
        standby: PolicySetting::Missing,
        on_lost_memory: OnLostMemory::default(),
        stop_timeout: InstanceSpec::DEFAULT_STOP_TIMEOUT,
    };
    let nowhere = Addresses {
        ipv4: std::net::Ipv4Addr::UNSPECIFIED,
        ipv6: std::net::Ipv6Addr::UNSPECIFIED,
        mac: dormouse_model::MacAddress([0; 6]),
    };
    let view = InstanceView {
        id: remains.id,
        image_digest: told.image_digest,
        state: State::Failed,
        reason: why,
        addresses: traces.addresses.unwrap_or(nowhere),
        memory: GuestRam::fresh(rooms.placement, spec.memory),
        generation: Record::NEW.generation,
        snapshot: None,
        monitor: String::new(),
        created_at: now,
        started_at: None,
        state_changed_at: now,
        last_wake: None,
        last_standby: None,
        last_commit: None,
        pid: traces.pids.first().copied(),
        exit: None,
        agent_ready: false,
        // Whatever was asked for once: it is not removed for having failed.
        auto_remove: false,
        standbys: 0,
        wakes: 0,
        revision: rooms.first_revision(),
        spec,
    };
    Remembered {
        view,
        uid: traces.uid.unwrap_or(0),
        life: Record {
            phase: Phase::Deleting,
            generation: Record::NEW.generation,
        },
    }
}
