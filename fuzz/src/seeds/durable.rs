//! What this program itself puts on a disk: bodies of records and of manifests, one of every shape.

use dormouse_instance::machine::BootId;
use dormouse_instance::memory::Home;
use dormouse_instance::record::{
    ExitRecord, FailureRecord, InstanceRecord, LostRecord, MemoryRecord, PolicyRecord, ProcessRecord,
    SnapshotRecord, SpecRecord,
};
use dormouse_instance::trust::manifest::{DiskPart, Manifest, MemoryPart, MonitorPart, Shape};
use dormouse_model::{Bytes, Digest, Generation, ImagePart, PartFault, WorkloadId};

/// A specification with every field.
fn spec() -> SpecRecord {
    SpecRecord {
        name: "quiet-fox".to_owned(),
        image: "web:1".to_owned(),
        vcpus: 2,
        memory: 256 << 20,
        disk: 1 << 30,
        placement: "spill".to_owned(),
        entrypoint: vec!["/bin/serve".to_owned()],
        command: vec!["--port".to_owned(), "80".to_owned()],
        environment: [("KEY".to_owned(), "value".to_owned())].into(),
        working_directory: Some("/srv".to_owned()),
        user: Some("1000:1000".to_owned()),
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        policy: Some(PolicyRecord {
            enabled: true,
            idle_timeout: "5m".to_owned(),
            ignore_sources: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
            ignore_ports: vec![22, 9100],
        }),
        stop_timeout_millis: 3000,
        on_lost_memory: "cold-boot".to_owned(),
    }
}

/// An instance in this phase.
fn instance(phase: &str) -> InstanceRecord {
    InstanceRecord {
        id: 7_u128.to_be_bytes().to_vec(),
        spec: Some(spec()),
        image_digest: format!("sha256:{}", "a".repeat(64)),
        phase: phase.to_owned(),
        ipv4: vec![10, 78, 0, 2],
        ipv6: vec![0xfd; 16],
        mac: vec![2, 0, 0, 0, 0, 2],
        memory: Some(MemoryRecord {
            placement: "spill".to_owned(),
            size: 256 << 20,
            on_disk: true,
            private: true,
        }),
        created_at: 1,
        started_at: 2,
        state_changed_at: 3,
        exit: Some(ExitRecord {
            code: Some(1),
            signal: Some(9),
            message: "killed".to_owned(),
            at: 4,
        }),
        auto_remove: true,
        standbys: 5,
        wakes: 4,
        uid: 1234,
        generation: 4,
        monitor: "7.2.22-0123456789abcdef".to_owned(),
        ..InstanceRecord::default()
    }
}

fn lost() -> LostRecord {
    LostRecord {
        part: ImagePart::Memory.as_str().to_owned(),
        fault: PartFault::Digest.as_str().to_owned(),
        found: "a".to_owned(),
        wanted: "b".to_owned(),
    }
}

fn snapshot(resident_inode: u64, memory_digest: Vec<u8>) -> SnapshotRecord {
    SnapshotRecord {
        generation: 4,
        boot_id: vec![5; 16],
        resident_inode,
        spilled_inode: 8,
        manifest_sha256: vec![3; 32],
        state_length: 16,
        memory_length: 256 << 20,
        memory_digest,
    }
}

/// Bodies of records of instances, one of each phase and of each reason.
pub fn records() -> Vec<Vec<u8>> {
    let failed = |kind: &str| InstanceRecord {
        failure: Some(FailureRecord {
            kind: kind.to_owned(),
            text: "why".to_owned(),
            lost: Some(lost()),
        }),
        ..instance("failed")
    };
    let standby = |snapshot| InstanceRecord {
        snapshot: Some(snapshot),
        ..instance("standby")
    };
    let mut found: Vec<InstanceRecord> = ["stopped", "starting", "stopping", "deleting"]
        .map(instance)
        .into();
    found.extend(
        [
            "process_ended",
            "start_failed",
            "wake_failed",
            "host_rebooted",
            "image_lost",
            "inconsistent",
        ]
        .map(failed),
    );
    found.extend([
        InstanceRecord {
            process: Some(ProcessRecord {
                pid: 12,
                start_ticks: 34,
                boot_id: vec![5; 16],
                ready: true,
            }),
            ..instance("running")
        },
        standby(snapshot(9, Vec::new())),
        standby(snapshot(0, vec![4; 32])),
        InstanceRecord {
            lost: Some(lost()),
            ..instance("cold")
        },
    ]);
    found.iter().map(prost::Message::encode_to_vec).collect()
}

/// Bodies of manifests, without version and sum.
pub fn manifests() -> Vec<Vec<u8>> {
    [Shape::Own, Shape::Base, Shape::BaseDelta]
        .into_iter()
        .map(|shape| {
            let manifest = Manifest {
                instance: WorkloadId::from_bits(7),
                generation: Generation(3),
                shape,
                boot: BootId(9),
                memory: MemoryPart {
                    size: Bytes::mib(128),
                    home: Home::Tmpfs,
                    name: "00000003.ram".to_owned(),
                    inode: 11,
                    unflushed_on: (shape == Shape::Own).then_some(5),
                },
                state_length: Bytes(16),
                state_digest: Digest([1; 32]),
                disks: ["disk.ext4", "data.ext4"]
                    .map(|name| DiskPart {
                        name: name.to_owned(),
                        size: Bytes::mib(16),
                        head: Digest([2; 32]),
                    })
                    .into(),
                monitor: MonitorPart {
                    driver: "qemu".to_owned(),
                    version: "7.2.22".to_owned(),
                    kept: "7.2.22-0123456789abcdef".to_owned(),
                    translation: 1,
                },
            };
            let file = manifest.encode();
            file.get(1..file.len().saturating_sub(4))
                .unwrap_or_default()
                .to_vec()
        })
        .collect()
}
