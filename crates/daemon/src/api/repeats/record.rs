//! What is kept about a request with an id.

use dormouse_model::WallTime;
use dormouse_store::{Key, Record, RecordKind};

/// The body of the record. Tags are never reused.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::api) struct RequestRecord {
    /// SHA-256 of the request without its id.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) body_sha256: Vec<u8>,
    /// When it was first asked, in nanoseconds since 1970.
    #[prost(fixed64, tag = "2")]
    pub(super) asked_at: u64,
    /// What it is about: the id of an instance, the name of an image.
    #[prost(string, tag = "3")]
    pub(in crate::api) target: String,
    /// Whether it has succeeded. Else it is under way, or was when a daemon ended: what it began is found
    /// by its target.
    #[prost(bool, tag = "4")]
    pub(in crate::api) done: bool,
    /// Of the answer what can no longer be looked up afterwards; most have none.
    #[prost(bytes = "vec", tag = "5")]
    pub(in crate::api) answer: Vec<u8>,
}

impl Record for RequestRecord {
    const KIND: RecordKind = RecordKind::Request;
    const VERSION: u8 = 1;
}

impl RequestRecord {
    /// When it was first asked.
    pub(super) const fn asked_at(&self) -> WallTime {
        WallTime::from_unix_nanos(self.asked_at)
    }
}

/// Under what the record of a method's request is kept.
pub(super) fn key(method: &str, id: &str) -> Key {
    Key::from(format!("{method}/{id}").as_str())
}
