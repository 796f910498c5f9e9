//! Between the API's messages and the nouns inside. Text and numbers become types here; whatever is
//! wrong is refused with the field's name.

use std::time::Duration;

use dormouse_instance::view::{ExitInfo, InstanceView, SnapshotView};
use dormouse_instance::{CreateRequest, InstanceEvent};
use dormouse_model::policy::{PolicySetting, RawPolicy};
use dormouse_model::spec::Placement;
use dormouse_model::{Bytes, Fault, InstanceSpec, OnLostMemory, State, WallTime};
use dormouse_proto::v1;
use dormouse_store::Batch;

use super::refusal::FieldError;

/// RAM of an instance whose caller did not say.
const DEFAULT_MEMORY: Bytes = Bytes::mib(512);
/// Disk of an instance whose caller did not say.
const DEFAULT_DISK: Bytes = Bytes::gib(10);

/// The API's word for a state.
pub(super) fn state_to_wire(state: State) -> v1::InstanceState {
    match state {
        State::Stopped => v1::InstanceState::Stopped,
        State::Starting => v1::InstanceState::Starting,
        State::Initializing => v1::InstanceState::Initializing,
        State::Running => v1::InstanceState::Running,
        State::Dozing => v1::InstanceState::Dozing,
        State::Sleeping => v1::InstanceState::Sleeping,
        State::Standby => v1::InstanceState::Standby,
        State::Waking => v1::InstanceState::Waking,
        State::Stopping => v1::InstanceState::Stopping,
        State::Failed => v1::InstanceState::Failed,
        State::Deleting => v1::InstanceState::Deleting,
    }
}

/// The state that a number on the wire means.
pub(super) fn state_from_wire(number: i32) -> Result<State, FieldError> {
    let wire = v1::InstanceState::try_from(number)
        .map_err(|_| FieldError::new("states", format!("{number} is no state")))?;
    State::ALL
        .into_iter()
        .find(|state| state_to_wire(*state) == wire)
        .ok_or_else(|| FieldError::new("states", "unspecified is no state to ask for"))
}

/// The API's word for a placement that has been resolved.
pub(super) fn placement_to_wire(placement: Placement) -> v1::MemoryPlacement {
    match placement {
        Placement::Auto => v1::MemoryPlacement::Unspecified,
        Placement::Tmpfs => v1::MemoryPlacement::Tmpfs,
        Placement::Spill => v1::MemoryPlacement::Spill,
        Placement::Disk => v1::MemoryPlacement::Disk,
    }
}

fn placement_from_wire(number: i32) -> Result<Placement, FieldError> {
    match v1::MemoryPlacement::try_from(number) {
        Ok(v1::MemoryPlacement::Unspecified) => Ok(Placement::Auto),
        Ok(v1::MemoryPlacement::Tmpfs) => Ok(Placement::Tmpfs),
        Ok(v1::MemoryPlacement::Spill) => Ok(Placement::Spill),
        Ok(v1::MemoryPlacement::Disk) => Ok(Placement::Disk),
        Err(_) => Err(FieldError::new("placement", format!("{number} is no placement"))),
    }
}

/// A time on the wire.
pub(super) fn time_to_wire(time: WallTime) -> prost_types::Timestamp {
    let nanos = time.unix_nanos();
    prost_types::Timestamp {
        seconds: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos % 1_000_000_000).unwrap_or(0),
    }
}

/// A duration on the wire.
pub(super) fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A duration from the wire; negative ones are refused.
pub(super) fn duration_from_wire(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, FieldError> {
    let Some(duration) = duration else { return Ok(None) };
    Duration::try_from(duration)
        .map(Some)
        .map_err(|_| FieldError::new(field, "is negative or out of range"))
}

fn policy_from_wire(policy: Option<v1::StandbyPolicy>) -> Result<PolicySetting, FieldError> {
    let Some(policy) = policy else {
        return Ok(PolicySetting::Missing);
    };
    RawPolicy {
        enabled: policy.enabled,
        idle_timeout: policy.idle_timeout,
        ignore_sources: policy.ignore_sources,
        ignore_ports: policy.ignore_ports,
    }
    .normalise()
    .map_err(|error| FieldError::new("standby", error))
}

fn policy_to_wire(policy: &PolicySetting) -> Option<v1::StandbyPolicy> {
    match policy {
        PolicySetting::Missing => None,
        PolicySetting::Disabled => Some(v1::StandbyPolicy::default()),
        PolicySetting::Enabled(policy) => {
            let raw = policy.to_raw();
            Some(v1::StandbyPolicy {
                enabled: raw.enabled,
                idle_timeout: raw.idle_timeout,
                ignore_sources: raw.ignore_sources,
                ignore_ports: raw.ignore_ports,
            })
        }
    }
}

/// The API's word for what becomes of an instance whose memory is lost.
fn on_lost_to_wire(policy: OnLostMemory) -> v1::OnLostMemory {
    match policy {
        OnLostMemory::StayStopped => v1::OnLostMemory::StayStopped,
        OnLostMemory::ColdBoot => v1::OnLostMemory::ColdBoot,
    }
}

fn on_lost_from_wire(number: i32) -> Result<OnLostMemory, FieldError> {
    match v1::OnLostMemory::try_from(number) {
        Ok(v1::OnLostMemory::Unspecified | v1::OnLostMemory::StayStopped) => Ok(OnLostMemory::StayStopped),
        Ok(v1::OnLostMemory::ColdBoot) => Ok(OnLostMemory::ColdBoot),
        Err(_) => Err(FieldError::new(
            "on_lost_memory",
            format!("{number} is no policy for lost memory"),
        )),
    }
}

/// Checks a request for an instance. `fallback_name` is used when the caller chose none.
pub(super) fn create_from_wire(
    request: v1::CreateInstanceRequest,
    fallback_name: &str,
) -> Result<CreateRequest, FieldError> {
    let name = if request.name.is_empty() {
        fallback_name
    } else {
        &request.name
    };
    let some = |text: String| (!text.is_empty()).then_some(text);
    let or = |given: u64, default: Bytes| if given == 0 { default } else { Bytes(given) };
    if request.image.is_empty() {
        return Err(FieldError::new("image", "is empty: name an imported image"));
    }
    let spec = InstanceSpec {
        name: name.parse().map_err(|error| FieldError::new("name", error))?,
        image: request.image,
        vcpus: request.vcpus.max(1),
        memory: or(request.memory_bytes, DEFAULT_MEMORY),
        disk: or(request.disk_bytes, DEFAULT_DISK),
        placement: placement_from_wire(request.placement)?,
        entrypoint: request.entrypoint,
        command: request.command,
        environment: request.environment.into_iter().collect(),
        working_directory: some(request.working_directory),
        user: some(request.user),
        labels: request.labels.into_iter().collect(),
        standby: policy_from_wire(request.standby)?,
        stop_timeout: duration_from_wire("stop_timeout", request.stop_timeout)?
            .unwrap_or(InstanceSpec::DEFAULT_STOP_TIMEOUT),
        on_lost_memory: on_lost_from_wire(request.on_lost_memory)?,
    };
    spec.check().map_err(|error| FieldError::new("spec", error))?;
    Ok(CreateRequest {
        spec,
        start: request.start,
        auto_remove: request.auto_remove,
        id: None,
        along: Batch::new(),
    })
}

fn exit_to_wire(exit: &ExitInfo) -> v1::InstanceExit {
    v1::InstanceExit {
        code: exit.code,
        signal: exit.signal,
        message: exit.message.clone(),
        at: Some(time_to_wire(exit.at)),
    }
}

/// What an instance needs on the wire beyond its view.
#[derive(Debug, Clone, Default)]
pub(super) struct Extras {
    /// The engine's view.
    pub(super) standby_status: Option<v1::StandbyStatus>,
    /// Bytes of host memory held.
    pub(super) memory_held: Bytes,
    /// What runs the processors.
    pub(super) accelerator: String,
}

/// An instance on the wire.
pub(super) fn instance_to_wire(view: &InstanceView, extras: Extras) -> v1::Instance {
    let spec = &view.spec;
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    v1::Instance {
        id: view.id.to_string(),
        name: spec.name.to_string(),
        image: spec.image.clone(),
        image_digest: view.image_digest.clone(),
        state: state_to_wire(view.state).into(),
        state_reason: view.reason.clone(),
        addresses: Some(v1::InstanceAddresses {
            ipv4: view.addresses.ipv4.to_string(),
            ipv6: view.addresses.ipv6.to_string(),
            mac: view.addresses.mac.to_string(),
        }),
        vcpus: spec.vcpus,
        memory_bytes: spec.memory.0,
        disk_bytes: spec.disk.0,
        placement: placement_to_wire(view.memory.placement).into(),
        entrypoint: spec.entrypoint.clone(),
        command: spec.command.clone(),
        environment: spec.environment.clone().into_iter().collect(),
        working_directory: spec.working_directory.clone().unwrap_or_default(),
        user: spec.user.clone().unwrap_or_default(),
        labels: spec.labels.clone().into_iter().collect(),
        standby: policy_to_wire(&spec.standby),
        standby_status: extras.standby_status,
        stop_timeout: Some(duration_to_wire(spec.stop_timeout)),
        created_at: Some(time_to_wire(view.created_at)),
        started_at: view.started_at.map(time_to_wire),
        state_changed_at: Some(time_to_wire(view.state_changed_at)),
        last_wake_ms: view.last_wake.map(millis),
        last_standby_ms: view.last_standby.map(millis),
        last_commit_ms: view.last_commit.map(millis),
        memory_held_bytes: extras.memory_held.0,
        generation: view.generation.0,
        pid: view.pid.unwrap_or(0),
        exit: view.exit.as_ref().map(exit_to_wire),
        agent_ready: view.agent_ready,
        driver: "qemu".to_owned(),
        accelerator: extras.accelerator,
        auto_remove: view.auto_remove,
        standby_count: view.standbys,
        wake_count: view.wakes,
        etag: view.etag(),
        on_lost_memory: on_lost_to_wire(spec.on_lost_memory).into(),
        snapshot: view.snapshot.as_ref().map(snapshot_to_wire),
        monitor: view.monitor.clone(),
    }
}

/// The memory image of a sleeper on the wire.
fn snapshot_to_wire(snapshot: &SnapshotView) -> v1::InstanceSnapshot {
    let (settled, lost) = match snapshot {
        SnapshotView::Kept { settled } => (*settled, None),
        SnapshotView::Lost(lost) => (false, Some(lost)),
    };
    v1::InstanceSnapshot {
        settled,
        lost: lost.map(|lost| v1::LostImage {
            code: lost.code().to_owned(),
            part: lost.part.as_str().to_owned(),
            fault: lost.fault.as_str().to_owned(),
            found: lost.found.clone(),
            wanted: lost.wanted.clone(),
        }),
    }
}

/// An event on the wire.
pub(super) fn event_to_wire(event: &InstanceEvent, extras: Extras) -> v1::InstanceEvent {
    let instance = Some(instance_to_wire(event.view(), extras));
    let unset = v1::InstanceState::Unspecified;
    let (change, previous) = match event {
        InstanceEvent::Created(_) => (v1::InstanceChange::Created, unset),
        InstanceEvent::StateChanged { previous, .. } => (v1::InstanceChange::State, state_to_wire(*previous)),
        InstanceEvent::Updated(_) => (v1::InstanceChange::Updated, unset),
        InstanceEvent::Deleted(_) => (v1::InstanceChange::Deleted, unset),
    };
    v1::InstanceEvent {
        change: change.into(),
        cause: event.view().reason.clone(),
        instance,
        previous_state: previous.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_the_wire() {
        for state in State::ALL {
            assert_eq!(state_from_wire(state_to_wire(state).into()).unwrap(), state);
        }
        assert!(state_from_wire(0).is_err());
        assert!(state_from_wire(99).is_err());
    }

    #[test]
    fn wrong_fields_are_named() {
        let good = v1::CreateInstanceRequest {
            image: "web".to_owned(),
            ..Default::default()
        };
        assert!(create_from_wire(good.clone(), "quiet-fox").is_ok());
        for (request, field) in [
            (
                v1::CreateInstanceRequest {
                    image: String::new(),
                    ..good.clone()
                },
                "image",
            ),
            (
                v1::CreateInstanceRequest {
                    name: "No".to_owned(),
                    ..good.clone()
                },
                "name",
            ),
            (
                v1::CreateInstanceRequest {
                    memory_bytes: 3,
                    ..good.clone()
                },
                "spec",
            ),
            (
                v1::CreateInstanceRequest {
                    placement: 77,
                    ..good.clone()
                },
                "placement",
            ),
            (
                v1::CreateInstanceRequest {
                    on_lost_memory: 77,
                    ..good.clone()
                },
                "on_lost_memory",
            ),
            (
                v1::CreateInstanceRequest {
                    standby: Some(v1::StandbyPolicy {
                        enabled: true,
                        ..Default::default()
                    }),
                    ..good.clone()
                },
                "standby",
            ),
        ] {
            let error = create_from_wire(request, "quiet-fox").unwrap_err();
            assert_eq!(error.field, field, "{error}");
        }
    }
}
