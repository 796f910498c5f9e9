//! The durable record of an instance: prost messages, and the conversion that checks every field.
//! docs/compat.md says who reads what; tags are never reused.

use std::time::Duration;

use dormouse_model::policy::{PolicySetting, RawPolicy};
use dormouse_model::spec::Placement;
use dormouse_model::{
    Addresses, Bytes, Digest, FailReason, Fault, Generation, ImagePart, InstanceSpec, Kind, Lost, MacAddress,
    Name, PartFault, State, WallTime, WorkloadId,
};

use crate::machine::{self, BootId, Expected, Kept, Phase, ProcessIdentity, Readiness, Settled};
use crate::memory::{GuestRam, Home, Sharing};
use crate::view::{ExitInfo, InstanceView, SnapshotView};

mod messages;

pub use messages::{
    ExitRecord, FailureRecord, InstanceRecord, LostRecord, MemoryRecord, PolicyRecord, ProcessRecord,
    SnapshotRecord, SpecRecord,
};

/// Version of the body; newer ones are refused.
pub const RECORD_VERSION: u8 = 1;

impl dormouse_store::Record for InstanceRecord {
    const KIND: dormouse_store::RecordKind = dormouse_store::RecordKind::Instance;
    const VERSION: u8 = RECORD_VERSION;
}

/// A record whose fields contradict themselves. Its checksum was right: an older or newer program, or a
/// defect, wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record of an instance has an impossible {field}")]
pub struct RecordError {
    /// Which field.
    pub field: &'static str,
}

impl Fault for RecordError {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }
    fn code(&self) -> &'static str {
        "INSTANCE_RECORD"
    }
}

/// Names a field in the error of its conversion.
fn wrong<E>(field: &'static str) -> impl FnOnce(E) -> RecordError {
    move |_| RecordError { field }
}

impl SpecRecord {
    /// The record of `spec`.
    #[must_use]
    pub fn of(spec: &InstanceSpec) -> Self {
        let policy = match &spec.standby {
            PolicySetting::Missing => None,
            PolicySetting::Disabled => Some(PolicyRecord::default()),
            PolicySetting::Enabled(policy) => {
                let raw = policy.to_raw();
                Some(PolicyRecord {
                    enabled: raw.enabled,
                    idle_timeout: raw.idle_timeout,
                    ignore_sources: raw.ignore_sources,
                    ignore_ports: raw.ignore_ports,
                })
            }
        };
        Self {
            name: spec.name.to_string(),
            image: spec.image.clone(),
            vcpus: spec.vcpus,
            memory: spec.memory.0,
            disk: spec.disk.0,
            placement: spec.placement.as_str().to_owned(),
            entrypoint: spec.entrypoint.clone(),
            command: spec.command.clone(),
            environment: spec.environment.clone(),
            working_directory: spec.working_directory.clone(),
            user: spec.user.clone(),
            labels: spec.labels.clone(),
            policy,
            stop_timeout_millis: u64::try_from(spec.stop_timeout.as_millis()).unwrap_or(u64::MAX),
            on_lost_memory: spec.on_lost_memory.as_str().to_owned(),
        }
    }

    /// The specification, checked as a new one would be.
    ///
    /// # Errors
    /// The first impossible field.
    pub fn to_spec(&self) -> Result<InstanceSpec, RecordError> {
        let standby = match &self.policy {
            None => PolicySetting::Missing,
            Some(policy) => RawPolicy {
                enabled: policy.enabled,
                idle_timeout: policy.idle_timeout.clone(),
                ignore_sources: policy.ignore_sources.clone(),
                ignore_ports: policy.ignore_ports.clone(),
            }
            .normalise()
            .map_err(wrong("policy"))?,
        };
        let spec = InstanceSpec {
            name: self.name.parse().map_err(wrong("name"))?,
            image: self.image.clone(),
            vcpus: self.vcpus,
            memory: Bytes(self.memory),
            disk: Bytes(self.disk),
            placement: self.placement.parse().map_err(wrong("placement"))?,
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            environment: self.environment.clone(),
            working_directory: self.working_directory.clone(),
            user: self.user.clone(),
            labels: self.labels.clone(),
            standby,
            stop_timeout: Duration::from_millis(self.stop_timeout_millis),
            on_lost_memory: self.on_lost_memory.parse().map_err(wrong("on_lost_memory"))?,
        };
        spec.check().map_err(wrong("spec"))?;
        Ok(spec)
    }
}

impl MemoryRecord {
    /// The record of `image`.
    #[must_use]
    pub fn of(image: &GuestRam) -> Self {
        Self {
            placement: image.placement.as_str().to_owned(),
            size: image.size.0,
            on_disk: image.home == Home::Disk,
            private: image.sharing == Sharing::Private,
        }
    }

    /// The image.
    ///
    /// # Errors
    /// When the placement is unknown.
    pub fn to_ram(&self) -> Result<GuestRam, RecordError> {
        let placement: Placement = self.placement.parse().map_err(wrong("memory placement"))?;
        Ok(GuestRam {
            placement,
            size: Bytes(self.size),
            home: if self.on_disk { Home::Disk } else { Home::Tmpfs },
            sharing: if self.private {
                Sharing::Private
            } else {
                Sharing::Shared
            },
        })
    }
}

/// Everything durable about an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// What others see.
    pub view: InstanceView,
    /// User id of the VMM.
    pub uid: u32,
    /// The machine's part.
    pub life: machine::Record,
}

fn boot_bytes(boot: BootId) -> Vec<u8> {
    boot.0.to_be_bytes().to_vec()
}

fn boot_from(bytes: &[u8]) -> Result<BootId, RecordError> {
    let bytes: [u8; 16] = bytes.try_into().map_err(wrong("boot id"))?;
    Ok(BootId(u128::from_be_bytes(bytes)))
}

fn addresses_from(record: &InstanceRecord) -> Result<Addresses, RecordError> {
    let ipv4: [u8; 4] = record.ipv4.as_slice().try_into().map_err(wrong("ipv4"))?;
    let ipv6: [u8; 16] = record.ipv6.as_slice().try_into().map_err(wrong("ipv6"))?;
    let mac: [u8; 6] = record.mac.as_slice().try_into().map_err(wrong("mac"))?;
    Ok(Addresses {
        ipv4: ipv4.into(),
        ipv6: ipv6.into(),
        mac: MacAddress(mac),
    })
}

impl InstanceRecord {
    /// What an instance has even when the rest of its record cannot be understood: addresses, the user id of
    /// its VMM, and its name.
    pub(crate) fn holdings(&self) -> (Option<Addresses>, u32, Option<Name>) {
        let name = self.spec.as_ref().and_then(|spec| spec.name.parse().ok());
        (addresses_from(self).ok(), self.uid, name)
    }
}

/// The name of a phase in a record.
const fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Stopped => "stopped",
        Phase::Starting => "starting",
        Phase::Running { .. } => "running",
        Phase::Standby { .. } => "standby",
        Phase::Cold { .. } => "cold",
        Phase::Stopping => "stopping",
        Phase::Failed { .. } => "failed",
        Phase::Deleting => "deleting",
    }
}

impl ExitRecord {
    /// The record of `exit`.
    #[must_use]
    pub fn of(exit: &ExitInfo) -> Self {
        Self {
            code: exit.code,
            signal: exit.signal,
            message: exit.message.clone(),
            at: exit.at.unix_nanos(),
        }
    }
}

impl FailureRecord {
    fn of(reason: &FailReason) -> Self {
        let (kind, text) = match reason {
            FailReason::ProcessEnded { how } => ("process_ended", how.clone()),
            FailReason::StartFailed { why } => ("start_failed", why.clone()),
            FailReason::WakeFailed { why } => ("wake_failed", why.clone()),
            FailReason::HostRebooted => ("host_rebooted", String::new()),
            FailReason::ImageLost(lost) => ("image_lost", lost.to_string()),
            FailReason::Inconsistent { what } => ("inconsistent", what.clone()),
        };
        Self {
            kind: kind.to_owned(),
            text,
            lost: match reason {
                FailReason::ImageLost(lost) => Some(LostRecord::of(lost)),
                FailReason::ProcessEnded { .. }
                | FailReason::StartFailed { .. }
                | FailReason::WakeFailed { .. }
                | FailReason::HostRebooted
                | FailReason::Inconsistent { .. } => None,
            },
        }
    }

    fn to_reason(&self) -> Result<FailReason, RecordError> {
        let text = self.text.clone();
        match self.kind.as_str() {
            "process_ended" => Ok(FailReason::ProcessEnded { how: text }),
            "start_failed" => Ok(FailReason::StartFailed { why: text }),
            "wake_failed" => Ok(FailReason::WakeFailed { why: text }),
            "host_rebooted" => Ok(FailReason::HostRebooted),
            "image_lost" => {
                let lost = self.lost.as_ref().ok_or(RecordError { field: "failure" })?;
                lost.to_lost().map(FailReason::ImageLost)
            }
            "inconsistent" => Ok(FailReason::Inconsistent { what: text }),
            _ => Err(RecordError { field: "failure" }),
        }
    }
}

impl LostRecord {
    fn of(lost: &Lost) -> Self {
        Self {
            part: lost.part.as_str().to_owned(),
            fault: lost.fault.as_str().to_owned(),
            found: lost.found.clone(),
            wanted: lost.wanted.clone(),
        }
    }

    fn to_lost(&self) -> Result<Lost, RecordError> {
        Ok(Lost {
            part: ImagePart::from_name(&self.part).ok_or(RecordError { field: "lost part" })?,
            fault: PartFault::from_name(&self.fault).ok_or(RecordError { field: "lost fault" })?,
            found: self.found.clone(),
            wanted: self.wanted.clone(),
        })
    }
}

impl SnapshotRecord {
    fn of(image: &machine::MemoryImage) -> Self {
        let (resident_inode, spilled_inode) = match image.kept {
            Kept::Resident { inode } => (inode, 0),
            Kept::Spilled { inode } => (0, inode),
        };
        Self {
            generation: image.generation.0,
            boot_id: boot_bytes(image.boot),
            resident_inode,
            spilled_inode,
            manifest_sha256: image.expected.manifest.0.to_vec(),
            state_length: image.expected.state.0,
            memory_length: image.expected.memory.0,
            memory_digest: match image.settled {
                Settled::Open => Vec::new(),
                Settled::At(digest) => digest.0.to_vec(),
            },
        }
    }

    fn to_image(&self) -> Result<machine::MemoryImage, RecordError> {
        let digest = |bytes: &[u8], field| Digest::from_bytes(bytes).ok_or(RecordError { field });
        Ok(machine::MemoryImage {
            generation: Generation(self.generation),
            boot: boot_from(&self.boot_id)?,
            kept: match self.resident_inode {
                0 => Kept::Spilled {
                    inode: self.spilled_inode,
                },
                inode => Kept::Resident { inode },
            },
            expected: Expected {
                // Records of before there were manifests have none: such an image is lost.
                manifest: match self.manifest_sha256.as_slice() {
                    [] => Digest::default(),
                    bytes => digest(bytes, "manifest")?,
                },
                state: Bytes(self.state_length),
                memory: Bytes(self.memory_length),
            },
            settled: match self.memory_digest.as_slice() {
                [] => Settled::Open,
                bytes => Settled::At(digest(bytes, "memory digest")?),
            },
        })
    }
}

/// The phase that a record speaks of.
fn phase_from(record: &InstanceRecord) -> Result<Phase, RecordError> {
    match record.phase.as_str() {
        "stopped" => Ok(Phase::Stopped),
        "starting" => Ok(Phase::Starting),
        "running" => {
            let process = record.process.as_ref().ok_or(RecordError { field: "process" })?;
            let identity = ProcessIdentity {
                pid: process.pid,
                start_ticks: process.start_ticks,
                boot: boot_from(&process.boot_id)?,
            };
            let readiness = if process.ready {
                Readiness::Ready
            } else {
                Readiness::Booting
            };
            Ok(Phase::Running {
                process: identity,
                readiness,
            })
        }
        "standby" => {
            let snapshot = record
                .snapshot
                .as_ref()
                .ok_or(RecordError { field: "snapshot" })?;
            let image = snapshot.to_image()?;
            Ok(Phase::Standby { image })
        }
        "cold" => {
            let lost = record.lost.as_ref().ok_or(RecordError { field: "lost" })?;
            Ok(Phase::Cold {
                lost: lost.to_lost()?,
            })
        }
        "stopping" => Ok(Phase::Stopping),
        "failed" => {
            let failure = record.failure.as_ref().ok_or(RecordError { field: "failure" })?;
            Ok(Phase::Failed {
                reason: failure.to_reason()?,
            })
        }
        "deleting" => Ok(Phase::Deleting),
        _ => Err(RecordError { field: "phase" }),
    }
}

impl Remembered {
    /// The record's body.
    #[must_use]
    pub fn to_record(&self) -> InstanceRecord {
        let view = &self.view;
        let mut record = InstanceRecord {
            id: view.id.bits().to_be_bytes().to_vec(),
            spec: Some(SpecRecord::of(&view.spec)),
            image_digest: view.image_digest.clone(),
            phase: phase_name(&self.life.phase).to_owned(),
            failure: None,
            ipv4: view.addresses.ipv4.octets().to_vec(),
            ipv6: view.addresses.ipv6.octets().to_vec(),
            mac: view.addresses.mac.0.to_vec(),
            memory: Some(MemoryRecord::of(&view.memory)),
            created_at: view.created_at.unix_nanos(),
            started_at: view.started_at.map_or(0, WallTime::unix_nanos),
            state_changed_at: view.state_changed_at.unix_nanos(),
            process: None,
            exit: view.exit.as_ref().map(ExitRecord::of),
            auto_remove: view.auto_remove,
            standbys: view.standbys,
            wakes: view.wakes,
            uid: self.uid,
            snapshot: None,
            generation: self.life.generation.0,
            lost: None,
            monitor: view.monitor.clone(),
        };
        match &self.life.phase {
            Phase::Running { process, readiness } => {
                record.process = Some(ProcessRecord {
                    pid: process.pid,
                    start_ticks: process.start_ticks,
                    boot_id: boot_bytes(process.boot),
                    ready: *readiness == Readiness::Ready,
                });
            }
            Phase::Standby { image } => {
                record.snapshot = Some(SnapshotRecord::of(image));
            }
            Phase::Cold { lost } => record.lost = Some(LostRecord::of(lost)),
            Phase::Failed { reason } => record.failure = Some(FailureRecord::of(reason)),
            Phase::Stopped | Phase::Starting | Phase::Stopping | Phase::Deleting => {}
        }
        record
    }

    /// Reads a record's body, checking every field. The state of the view is the phase's until the
    /// machine has looked at the host.
    ///
    /// # Errors
    /// The first impossible field.
    pub fn from_record(record: InstanceRecord) -> Result<Self, RecordError> {
        let id: [u8; 16] = record.id.as_slice().try_into().map_err(wrong("id"))?;
        let addresses = addresses_from(&record)?;
        let phase = phase_from(&record)?;
        let (state, reason) = match &phase {
            Phase::Stopped => (State::Stopped, String::new()),
            Phase::Starting => (State::Starting, String::new()),
            Phase::Running {
                readiness: Readiness::Ready,
                ..
            } => (State::Running, String::new()),
            Phase::Running {
                readiness: Readiness::Booting,
                ..
            } => (State::Initializing, String::new()),
            Phase::Standby { .. } | Phase::Cold { .. } => (State::Standby, String::new()),
            Phase::Stopping => (State::Stopping, String::new()),
            Phase::Failed { reason } => (State::Failed, reason.to_string()),
            Phase::Deleting => (State::Deleting, String::new()),
        };
        let life = machine::Record {
            phase,
            generation: Generation(record.generation),
        };
        let view = InstanceView {
            id: WorkloadId::from_bits(u128::from_be_bytes(id)),
            spec: record
                .spec
                .as_ref()
                .ok_or(RecordError { field: "spec" })?
                .to_spec()?,
            image_digest: record.image_digest,
            state,
            reason,
            addresses,
            memory: record.memory.ok_or(RecordError { field: "memory" })?.to_ram()?,
            generation: life.generation,
            snapshot: SnapshotView::of(&life.phase),
            monitor: record.monitor,
            created_at: WallTime::from_unix_nanos(record.created_at),
            started_at: (record.started_at > 0).then(|| WallTime::from_unix_nanos(record.started_at)),
            state_changed_at: WallTime::from_unix_nanos(record.state_changed_at),
            last_wake: None,
            last_standby: None,
            last_commit: None,
            pid: record.process.as_ref().map(|process| process.pid),
            exit: record.exit.map(|exit| ExitInfo {
                code: exit.code,
                signal: exit.signal,
                message: exit.message,
                at: WallTime::from_unix_nanos(exit.at),
            }),
            agent_ready: record.process.as_ref().is_some_and(|process| process.ready),
            auto_remove: record.auto_remove,
            standbys: record.standbys,
            wakes: record.wakes,
            revision: 0,
        };
        Ok(Self {
            view,
            uid: record.uid,
            life,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
