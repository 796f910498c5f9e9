//! What is written is what is read.

use super::*;
use dormouse_model::Generation;

/// An instance that runs with its memory mapped privately over the file on disk.
pub(crate) fn remembered() -> Remembered {
    let id = WorkloadId::from_bits(7);
    let process = ProcessIdentity {
        pid: 12,
        start_ticks: 34,
        boot: BootId(56),
    };
    let spec = InstanceSpec {
        name: "quiet-fox".parse().unwrap(),
        image: "web".to_owned(),
        vcpus: 1,
        memory: Bytes::mib(256),
        disk: Bytes::gib(1),
        placement: Placement::Auto,
        entrypoint: Vec::new(),
        command: vec!["serve".to_owned()],
        environment: [("KEY".to_owned(), "value".to_owned())].into(),
        working_directory: None,
        user: None,
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        standby: PolicySetting::Disabled,
        stop_timeout: Duration::from_secs(3),
        on_lost_memory: dormouse_model::OnLostMemory::ColdBoot,
    };
    let phase = Phase::Running {
        process,
        readiness: Readiness::Ready,
    };
    let view = InstanceView {
        id,
        memory: GuestRam {
            home: Home::Disk,
            sharing: Sharing::Private,
            ..GuestRam::fresh(Placement::Spill, spec.memory)
        },
        spec,
        image_digest: "sha256:00".to_owned(),
        state: State::Running,
        reason: String::new(),
        addresses: Addresses {
            ipv4: [10, 0, 0, 2].into(),
            ipv6: "fd00::2".parse().unwrap(),
            mac: MacAddress([2, 0, 0, 0, 0, 2]),
        },
        generation: Generation(4),
        snapshot: None,
        monitor: "7.2-0123".to_owned(),
        created_at: WallTime::from_unix_nanos(1),
        started_at: Some(WallTime::from_unix_nanos(2)),
        state_changed_at: WallTime::from_unix_nanos(3),
        last_wake: None,
        last_standby: None,
        last_commit: None,
        pid: Some(process.pid),
        exit: None,
        agent_ready: true,
        auto_remove: true,
        standbys: 5,
        wakes: 4,
        revision: 0,
    };
    Remembered {
        view,
        uid: 1234,
        life: machine::Record {
            phase,
            generation: Generation(4),
        },
    }
}

/// The same, asleep with its memory on disk.
pub(crate) fn asleep() -> Remembered {
    let mut sleeper = remembered();
    sleeper.life.phase = Phase::Standby {
        image: machine::MemoryImage {
            generation: Generation(4),
            boot: BootId(56),
            kept: Kept::Spilled { inode: 8 },
            expected: Expected::default(),
            settled: Settled::At(Digest([4; 32])),
        },
    };
    let view = &mut sleeper.view;
    (view.state, view.pid, view.agent_ready) = (State::Standby, None, false);
    view.snapshot = SnapshotView::of(&sleeper.life.phase);
    sleeper
}

/// Everything that the next daemon's sleep depends on comes back: that RAM is private, above all, without
/// which the dirtied pages would not be written to its file.
#[test]
fn every_phase_is_read_as_it_was_written() {
    let running = remembered();
    let standby = |kept, settled| Phase::Standby {
        image: machine::MemoryImage {
            generation: Generation(4),
            boot: BootId(u128::MAX),
            kept,
            expected: Expected {
                manifest: Digest([3; 32]),
                state: Bytes(16),
                memory: Bytes::mib(128),
            },
            settled,
        },
    };
    let reason = FailReason::ProcessEnded {
        how: "signal 9".to_owned(),
    };
    let lost = Lost::differs(ImagePart::Memory, PartFault::Digest, "a", "b");
    for (phase, state) in [
        (running.life.phase.clone(), State::Running),
        (
            standby(Kept::Spilled { inode: 8 }, Settled::At(Digest([4; 32]))),
            State::Standby,
        ),
        (
            standby(Kept::Resident { inode: 9 }, Settled::Open),
            State::Standby,
        ),
        (Phase::Cold { lost: lost.clone() }, State::Standby),
        (
            Phase::Failed {
                reason: FailReason::ImageLost(lost.clone()),
            },
            State::Failed,
        ),
        (Phase::Stopped, State::Stopped),
        (Phase::Starting, State::Starting),
        (Phase::Stopping, State::Stopping),
        (Phase::Deleting, State::Deleting),
        (
            Phase::Failed {
                reason: reason.clone(),
            },
            State::Failed,
        ),
    ] {
        let mut written = running.clone();
        if !matches!(phase, Phase::Running { .. }) {
            (written.view.pid, written.view.agent_ready) = (None, false);
        }
        if let Phase::Failed { reason } = &phase {
            written.view.reason = reason.to_string();
        }
        written.view.state = state;
        written.view.snapshot = SnapshotView::of(&phase);
        written.life.phase = phase;
        assert_eq!(Remembered::from_record(written.to_record()), Ok(written));
    }
}

#[test]
fn impossible_fields_are_named() {
    let good = remembered().to_record();
    for (record, field) in [
        (
            InstanceRecord {
                id: vec![1],
                ..good.clone()
            },
            "id",
        ),
        (
            InstanceRecord {
                phase: "asleep".to_owned(),
                ..good.clone()
            },
            "phase",
        ),
        (
            InstanceRecord {
                process: None,
                ..good.clone()
            },
            "process",
        ),
        (
            InstanceRecord {
                memory: None,
                ..good.clone()
            },
            "memory",
        ),
        (
            InstanceRecord {
                spec: None,
                ..good.clone()
            },
            "spec",
        ),
    ] {
        assert_eq!(Remembered::from_record(record), Err(RecordError { field }));
    }
}
