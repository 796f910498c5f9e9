//! The API's messages as JSON. The names are the API's own and stable: a field is added, never
//! renamed. Times are RFC 3339, durations seconds with an `s`, enums their words in lower case; what
//! is not set is `null`.

use dormouse_client::v1;
use serde_json::{Value, json};

use crate::text;

fn time(at: Option<&prost_types::Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::String(text::wall_time(at).to_string()))
}

/// As protobuf's own JSON writes durations: `252s`, `0.500s`.
fn duration(length: Option<&prost_types::Duration>) -> Value {
    length.map_or(Value::Null, |length| {
        let length = text::duration(length);
        let fraction = match length.subsec_nanos() {
            0 => String::new(),
            nanos => format!(".{:03}", nanos / 1_000_000),
        };
        Value::String(format!("{}{fraction}s", length.as_secs()))
    })
}

pub(crate) fn instance(from: &v1::Instance) -> Value {
    let addresses = from.addresses.as_ref();
    // In two parts, because the macro's recursion has a limit.
    let mut value = json!({
        "id": from.id,
        "name": from.name,
        "image": from.image,
        "image_digest": from.image_digest,
        "state": text::state(from.state()),
        "state_reason": from.state_reason,
        "addresses": addresses.map(|a| json!({"ipv4": a.ipv4, "ipv6": a.ipv6, "mac": a.mac})),
        "vcpus": from.vcpus,
        "memory_bytes": from.memory_bytes,
        "disk_bytes": from.disk_bytes,
        "placement": placement(from.placement()),
        "entrypoint": from.entrypoint,
        "command": from.command,
        "environment": from.environment,
        "working_directory": from.working_directory,
        "user": from.user,
        "labels": from.labels,
        "standby": from.standby.as_ref().map(policy),
        "standby_status": from.standby_status.as_ref().map(standby_status),
    });
    let rest = json!({
        "stop_timeout": duration(from.stop_timeout.as_ref()),
        "created_at": time(from.created_at.as_ref()),
        "started_at": time(from.started_at.as_ref()),
        "state_changed_at": time(from.state_changed_at.as_ref()),
        "last_wake_ms": from.last_wake_ms,
        "last_standby_ms": from.last_standby_ms,
        "last_commit_ms": from.last_commit_ms,
        "memory_held_bytes": from.memory_held_bytes,
        "generation": from.generation,
        "pid": from.pid,
        "exit": from.exit.as_ref().map(exit),
        "agent_ready": from.agent_ready,
        "driver": from.driver,
        "accelerator": from.accelerator,
        "auto_remove": from.auto_remove,
        "standby_count": from.standby_count,
        "wake_count": from.wake_count,
        "etag": from.etag,
        "on_lost_memory": text::word(from.on_lost_memory().as_str_name(), "ON_LOST_MEMORY_").replace('_', "-"),
        "snapshot": from.snapshot.as_ref().map(snapshot),
        "monitor": from.monitor,
    });
    if let (Value::Object(value), Value::Object(rest)) = (&mut value, rest) {
        value.extend(rest);
    }
    value
}

fn snapshot(from: &v1::InstanceSnapshot) -> Value {
    let lost = from.lost.as_ref().map(|lost| {
        json!({
            "code": lost.code,
            "part": lost.part,
            "fault": lost.fault,
            "found": lost.found,
            "wanted": lost.wanted,
        })
    });
    json!({"settled": from.settled, "lost": lost})
}

fn exit(from: &v1::InstanceExit) -> Value {
    json!({"code": from.code, "signal": from.signal, "message": from.message, "at": time(from.at.as_ref())})
}

/// The word of a placement; `auto` when the host chooses.
pub(crate) fn placement(from: v1::MemoryPlacement) -> String {
    match from {
        v1::MemoryPlacement::Unspecified => "auto".to_owned(),
        other => text::word(other.as_str_name(), "MEMORY_PLACEMENT_"),
    }
}

fn policy(from: &v1::StandbyPolicy) -> Value {
    json!({
        "enabled": from.enabled,
        "idle_timeout": from.idle_timeout,
        "ignore_sources": from.ignore_sources,
        "ignore_ports": from.ignore_ports,
    })
}

pub(crate) fn standby_status(from: &v1::StandbyStatus) -> Value {
    json!({
        "instance_id": from.instance_id,
        "instance_name": from.instance_name,
        "supported": from.supported,
        "configured": from.configured,
        "enabled": from.enabled,
        "eligible": from.eligible,
        "status": from.status,
        "reason": from.reason,
        "explanation": from.explanation,
        "active_inbound_count": from.active_inbound_count,
        "idle_timeout": duration(from.idle_timeout.as_ref()),
        "idle_since": time(from.idle_since.as_ref()),
        "last_inbound_at": time(from.last_inbound_at.as_ref()),
        "next_standby_at": time(from.next_standby_at.as_ref()),
        "countdown_remaining": duration(from.countdown_remaining.as_ref()),
        "hold_until": time(from.hold_until.as_ref()),
        "tracking_mode": from.tracking_mode,
        "last_error": from.last_error,
    })
}

pub(crate) fn image(from: &v1::Image) -> Value {
    json!({
        "digest": from.digest,
        "names": from.names,
        "layers_bytes": from.layers_bytes,
        "rootfs_bytes": from.rootfs_bytes,
        "layer_count": from.layer_count,
        "architecture": from.architecture,
        "os": from.os,
        "entrypoint": from.entrypoint,
        "command": from.command,
        "environment": from.environment,
        "working_directory": from.working_directory,
        "user": from.user,
        "exposed_ports": from.exposed_ports,
        "labels": from.labels,
        "created_at": time(from.created_at.as_ref()),
        "imported_at": time(from.imported_at.as_ref()),
        "used_by": from.used_by,
        "etag": from.etag,
    })
}

pub(crate) fn log_chunk(from: &v1::LogChunk) -> Value {
    json!({
        "stream": match from.stream() {
            v1::LogStream::Unspecified => Value::Null,
            other => Value::String(text::word(other.as_str_name(), "LOG_STREAM_")),
        },
        "at": time(from.at.as_ref()),
        "data": String::from_utf8_lossy(&from.data),
    })
}

pub(crate) fn system_info(from: &v1::SystemInfo) -> Value {
    let instances: serde_json::Map<String, Value> = from
        .instances
        .iter()
        .map(|entry| (text::state(entry.state()), json!(entry.count)))
        .collect();
    let mut value = json!({
        "version": from.version,
        "commit": from.commit,
        "hostname": from.hostname,
        "kernel": from.kernel,
        "architecture": from.architecture,
        "cpus": from.cpus,
        "memory_bytes": from.memory_bytes,
        "swap_bytes": from.swap_bytes,
        "driver": from.driver,
        "driver_version": from.driver_version,
        "accelerator": from.accelerator,
        "accelerator_reason": from.accelerator_reason,
        "placement": placement(from.placement()),
        "placement_reason": from.placement_reason,
    });
    let rest = json!({
        "data_directory": from.data_directory,
        "run_directory": from.run_directory,
        "network_namespace": from.network_namespace,
        "ipv4_pool": from.ipv4_pool,
        "ipv6_prefix": from.ipv6_prefix,
        "started_at": time(from.started_at.as_ref()),
        "boot_id": from.boot_id,
        "instances": instances,
        "memory_held_bytes": from.memory_held_bytes,
    });
    if let (Value::Object(value), Value::Object(rest)) = (&mut value, rest) {
        value.extend(rest);
    }
    value
}

pub(crate) fn check(from: &v1::Check) -> Value {
    json!({
        "name": from.name,
        "status": text::word(from.status().as_str_name(), "CHECK_STATUS_"),
        "detail": from.detail,
        "advice": from.advice,
    })
}

pub(crate) fn damaged_record(from: &v1::DamagedRecord) -> Value {
    json!({"kind": from.kind, "key": from.key, "reason": from.reason})
}

fn newer_record(from: &v1::NewerRecord) -> Value {
    json!({"kind": from.kind, "key": from.key, "found": from.found, "known": from.known})
}

pub(crate) fn store_report(from: &v1::StoreReport) -> Value {
    let counts = from
        .records
        .iter()
        .map(|count| json!({"kind": count.kind, "count": count.count}));
    json!({
        "sound": from.sound,
        "records": counts.collect::<Vec<_>>(),
        "damaged": from.damaged.iter().map(damaged_record).collect::<Vec<_>>(),
        "quarantined": from.quarantined.iter().map(damaged_record).collect::<Vec<_>>(),
        "newer": from.newer.iter().map(newer_record).collect::<Vec<_>>(),
        "unknown_kinds": from.unknown_kinds,
        "layout_faults": from.layout_faults,
    })
}

pub(crate) fn setup(from: &v1::SetupResponse) -> Value {
    let setting = |it: &v1::ChangedSetting| json!({"path": it.path, "before": it.before, "after": it.after});
    json!({
        "sleepers": from.sleepers,
        "changed": from.changed.iter().map(setting).collect::<Vec<_>>(),
    })
}

pub(crate) fn event(from: &v1::Event) -> Value {
    use v1::event::What;
    let mut value = json!({
        "cursor": from.cursor,
        "at": time(from.at.as_ref()),
        "request_id": from.request_id,
    });
    let (name, what) = match &from.what {
        Some(What::Instance(event)) => (
            "instance",
            json!({
                "change": text::word(event.change().as_str_name(), "INSTANCE_CHANGE_"),
                "instance": event.instance.as_ref().map(instance),
                "previous_state": match event.previous_state() {
                    v1::InstanceState::Unspecified => Value::Null,
                    state => Value::String(text::state(state)),
                },
                "cause": event.cause,
            }),
        ),
        Some(What::Image(event)) => (
            "image",
            json!({
                "change": text::word(event.change().as_str_name(), "IMAGE_CHANGE_"),
                "image": event.image.as_ref().map(image),
            }),
        ),
        Some(What::Gap(gap)) => ("gap", json!({"missed": gap.missed})),
        Some(What::Quarantined(record)) => ("quarantined", damaged_record(record)),
        // An event of a newer daemon.
        None => return value,
    };
    if let Value::Object(value) = &mut value {
        value.insert(name.to_owned(), what);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of the API's messages is in the JSON under its own name: the descriptors say so.
    #[test]
    fn no_field_is_forgotten() {
        use prost::Message as _;
        let set = prost_types::FileDescriptorSet::decode(dormouse_proto::FILE_DESCRIPTOR_SET).unwrap();
        let fields = |message: &str| -> Vec<String> {
            let descriptor = set
                .file
                .iter()
                .flat_map(|file| &file.message_type)
                .find(|m| m.name() == message);
            let mut names: Vec<String> = descriptor
                .unwrap()
                .field
                .iter()
                .map(|field| field.name().to_owned())
                .collect();
            names.sort();
            names
        };
        let table = [
            ("Instance", instance(&v1::Instance::default())),
            ("InstanceExit", exit(&v1::InstanceExit::default())),
            ("StandbyPolicy", policy(&v1::StandbyPolicy::default())),
            ("StandbyStatus", standby_status(&v1::StandbyStatus::default())),
            ("Image", image(&v1::Image::default())),
            ("LogChunk", log_chunk(&v1::LogChunk::default())),
            ("SystemInfo", system_info(&v1::SystemInfo::default())),
            ("Check", check(&v1::Check::default())),
            ("StoreReport", store_report(&v1::StoreReport::default())),
            ("DamagedRecord", damaged_record(&v1::DamagedRecord::default())),
            ("NewerRecord", newer_record(&v1::NewerRecord::default())),
        ];
        for (message, value) in table {
            let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            assert_eq!(keys, fields(message), "{message}");
        }
    }

    #[test]
    fn times_and_durations() {
        let at = prost_types::Timestamp {
            seconds: 951_782_400,
            nanos: 5_000_000,
        };
        assert_eq!(time(Some(&at)), json!("2000-02-29T00:00:00.005Z"));
        assert_eq!(time(None), Value::Null);
        let length = prost_types::Duration {
            seconds: 252,
            nanos: 0,
        };
        assert_eq!(duration(Some(&length)), json!("252s"));
        let length = prost_types::Duration {
            seconds: 0,
            nanos: 500_000_000,
        };
        assert_eq!(duration(Some(&length)), json!("0.500s"));
    }
}
