//! The etag of an instance: a hash of what a client can see of it and what a record keeps of it.
//!
//! Taken over the content and not counted, so that it is the same after a restart of the daemon. Left out
//! is what moves without anybody having changed the instance (the memory that it holds, the engine's
//! countdown) and what is only known to the daemon that saw it happen (how long the last wake took, when
//! exactly a state was entered). Two states alike in everything else are told apart by the process and by
//! the generation of the memory image: no sleep and no start gives the same pair again.

use prost::Message;
use sha2::{Digest, Sha256};

use crate::record::{ExitRecord, SpecRecord};
use crate::view::InstanceView;

/// Bytes of the hash that are told: enough that two contents never meet, short enough to be typed.
const TOLD: usize = 12;

/// What the etag covers. The tags fix the order of the bytes; they are never reused.
#[derive(Clone, PartialEq, prost::Message)]
struct Seen {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    spec: Option<SpecRecord>,
    #[prost(string, tag = "3")]
    image_digest: String,
    #[prost(string, tag = "4")]
    state: String,
    #[prost(string, tag = "5")]
    reason: String,
    #[prost(string, tag = "6")]
    addresses: String,
    #[prost(string, tag = "7")]
    placement: String,
    #[prost(uint64, tag = "8")]
    generation: u64,
    #[prost(uint64, tag = "9")]
    created_at: u64,
    #[prost(uint64, optional, tag = "10")]
    started_at: Option<u64>,
    #[prost(uint32, optional, tag = "11")]
    pid: Option<u32>,
    #[prost(message, optional, tag = "12")]
    exit: Option<ExitRecord>,
    #[prost(bool, tag = "13")]
    agent_ready: bool,
    #[prost(bool, tag = "14")]
    auto_remove: bool,
}

/// The etag of this content.
pub(crate) fn etag(view: &InstanceView) -> String {
    let addresses = view.addresses;
    let seen = Seen {
        id: view.id.bits().to_be_bytes().to_vec(),
        spec: Some(SpecRecord::of(&view.spec)),
        image_digest: view.image_digest.clone(),
        state: view.state.as_str().to_owned(),
        reason: view.reason.clone(),
        addresses: format!("{} {} {}", addresses.ipv4, addresses.ipv6, addresses.mac),
        placement: view.memory.placement.as_str().to_owned(),
        generation: view.generation.0,
        created_at: view.created_at.unix_nanos(),
        started_at: view.started_at.map(dormouse_model::WallTime::unix_nanos),
        pid: view.pid,
        exit: view.exit.as_ref().map(ExitRecord::of),
        agent_ready: view.agent_ready,
        auto_remove: view.auto_remove,
    };
    let hash = Sha256::digest(seen.encode_to_vec());
    hash.iter().take(TOLD).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use dormouse_model::{Bytes, FailReason, Generation, State, WallTime};

    use super::*;
    use crate::machine::Phase;
    use crate::record::{Remembered, tests::remembered};
    use crate::view::ExitInfo;

    #[test]
    fn a_restart_keeps_the_etag() {
        let mut failed = remembered();
        let reason = FailReason::HostRebooted;
        failed.view.reason = reason.to_string();
        failed.life.phase = Phase::Failed { reason };
        (failed.view.state, failed.view.pid, failed.view.agent_ready) = (State::Failed, None, false);
        let mut seen = remembered();
        // Known to this daemon only.
        seen.view.last_wake = Some(std::time::Duration::from_millis(53));
        seen.view.last_standby = seen.view.last_wake;
        seen.view.last_commit = seen.view.last_wake;
        seen.view.state_changed_at = WallTime::from_unix_nanos(99);
        seen.view.revision = 7;
        for before in [remembered(), failed, seen] {
            let after = Remembered::from_record(before.to_record()).unwrap();
            assert_eq!(after.view.etag(), before.view.etag());
        }
    }

    #[test]
    fn every_change_that_is_seen_changes_it() {
        type Change = fn(&mut InstanceView);
        let changes: [Change; 12] = [
            |view| view.state = State::Sleeping,
            |view| view.reason = "why".to_owned(),
            |view| view.generation = Generation(5),
            |view| view.pid = Some(13),
            |view| view.pid = None,
            |view| view.started_at = Some(WallTime::from_unix_nanos(5)),
            |view| view.started_at = None,
            |view| view.agent_ready = false,
            |view| view.spec.memory = Bytes::mib(512),
            |view| {
                view.spec.labels.insert("tier".to_owned(), "back".to_owned());
            },
            |view| view.image_digest = "sha256:01".to_owned(),
            |view| {
                view.exit = Some(ExitInfo {
                    code: Some(0),
                    signal: None,
                    message: String::new(),
                    at: WallTime::from_unix_nanos(4),
                });
            },
        ];
        let mut etags = vec![remembered().view.etag()];
        for change in changes {
            let mut view = remembered().view;
            change(&mut view);
            etags.push(view.etag());
        }
        let count = etags.len();
        etags.sort();
        etags.dedup();
        assert_eq!(etags.len(), count);
        assert!(etags.iter().all(|etag| etag.len() == 2 * TOLD));
    }
}
