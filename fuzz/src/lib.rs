//! What is fuzzed: every decoder that reads bytes which somebody else wrote. A target must return for any
//! bytes; where something can be checked beside that, it is.
//!
//! | target | bytes of | checked |
//! |---|---|---|
//! | [`netlink`] | the kernel | conntrack: against another reader, where both read; neighbours: no panic |
//! | [`agent`] | a guest | cut anywhere, frames are the same; memory is bounded |
//! | [`qmp`] | a virtual machine monitor | cut anywhere, messages are the same |
//! | [`image`] | whoever made an image | entries stay in the tree; documents |
//! | [`records`] | a disk | what is read as an instance is written back and read alike |
//! | [`manifests`] | a disk, or another host | what is read as a manifest is written back and read alike |

#[allow(dead_code, reason = "damaged bytes are one of two kinds that it compares")]
#[path = "../../crates/conntrack/tests/oracle/mod.rs"]
mod oracle;

pub mod seeds;

use dormouse_guest::{Channel, Decoder as FrameDecoder, GuestIdentity};
use dormouse_hypervisor::qemu::qmp::Decoder as LineDecoder;
use dormouse_instance::record::{InstanceRecord, Remembered};
use dormouse_instance::trust::manifest::{MANIFEST_VERSION, Manifest, frame};
use dormouse_store::record::{Decoded, Key, decode};

/// All targets, by name.
pub const TARGETS: [(&str, fn(&[u8])); 6] = [
    ("netlink", netlink),
    ("agent", agent),
    ("qmp", qmp),
    ("image", image),
    ("records", records),
    ("manifests", manifests),
];

/// Datagrams of netlink.
pub fn netlink(bytes: &[u8]) {
    oracle::agree(bytes, oracle::Trust::WhereBothRead);
    let asked = dormouse_network::knock::questions(bytes, 1);
    // An address takes at least a header and itself.
    assert!(asked.len() * 16 <= bytes.len());
}

/// Bytes on the agent's port, at both ends.
pub fn agent(bytes: &[u8]) {
    let whole = frames(bytes, bytes.len().max(1));
    // A first byte that says where to cut makes the cut part of what is tried.
    let cut = usize::from(bytes.first().copied().unwrap_or(1)).max(1);
    let pieces = frames(bytes, cut);
    assert_eq!(whole, pieces, "frames depend on how the stream was cut");
    for mut channel in [
        Channel::host(0x0102_0304_0506_0708),
        Channel::guest(GuestIdentity {
            boot_id: String::new(),
            release: String::new(),
        }),
    ] {
        channel.connected();
        let mut events = Vec::new();
        for piece in bytes.chunks(cut) {
            channel.receive(piece, &mut events);
        }
        while channel.is_partial() {
            channel.abandon_partial(&mut events);
        }
    }
}

/// Every whole frame of a stream, in its order.
fn frames(bytes: &[u8], cut: usize) -> Vec<(u8, u64, Vec<u8>)> {
    let mut decoder = FrameDecoder::new();
    let mut found = Vec::new();
    for piece in bytes.chunks(cut) {
        decoder.push(piece);
        while let Some(item) = decoder.next_frame() {
            if let Ok(frame) = item {
                found.push((frame.kind, frame.sequence, frame.body));
            }
        }
    }
    found
}

/// What a monitor says.
pub fn qmp(bytes: &[u8]) {
    let cut = usize::from(bytes.first().copied().unwrap_or(1)).max(1);
    assert_eq!(
        lines(bytes, bytes.len().max(1)),
        lines(bytes, cut),
        "messages depend on how the stream was cut"
    );
}

fn lines(bytes: &[u8], cut: usize) -> Vec<String> {
    let mut decoder = LineDecoder::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(cut) {
        decoder.push(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => found.push(format!("{message:?}")),
                Ok(None) => break,
                Err(error) => {
                    found.push(error.to_string());
                    return found;
                }
            }
        }
    }
    found
}

/// A layer's archive, and the documents of an image.
pub fn image(bytes: &[u8]) {
    if let Ok(entries) = dormouse_image::inspect::layer(bytes) {
        for path in entries {
            assert!(!path.is_absolute(), "{path:?}");
            assert!(
                path.components()
                    .all(|part| matches!(part, std::path::Component::Normal(_))),
                "{path:?}"
            );
        }
    }
    let documents: Vec<&[u8]> = bytes.split(|&byte| byte == 0).collect();
    let _refused = dormouse_image::inspect::documents(
        documents.first().copied().unwrap_or_default(),
        documents.get(1..).unwrap_or_default(),
    );
}

/// A record as it is on the disk.
pub fn records(bytes: &[u8]) {
    let key = Key::from("fuzzed");
    let _damaged: Decoded<InstanceRecord> = decode(&key, bytes);
    // The body alone: a checksum keeps random bytes from ever being looked at.
    if let Ok(record) = <InstanceRecord as dormouse_store::Record>::upgrade(1, bytes)
        && let Ok(remembered) = Remembered::from_record(record)
    {
        let again = Remembered::from_record(remembered.to_record());
        assert_eq!(
            again.map(|again| again.to_record()).ok(),
            Some(remembered.to_record()),
            "written back it reads as another"
        );
    }
}

/// The manifest of a saved image.
pub fn manifests(bytes: &[u8]) {
    let _damaged = Manifest::decode(bytes);
    // As for records: the body alone, under a sum that is right.
    if let Ok(manifest) = Manifest::decode(&frame(MANIFEST_VERSION, bytes)) {
        assert_eq!(
            Manifest::decode(&manifest.encode()),
            Ok(manifest),
            "written back it reads as another"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_taken_and_leads_all_the_way_in() {
        for (name, run) in TARGETS {
            let seeds = seeds::of(name);
            assert!(!seeds.is_empty(), "{name} begins with nothing");
            seeds.iter().for_each(|seed| run(seed));
        }
        for body in seeds::of("records") {
            let record = <InstanceRecord as dormouse_store::Record>::upgrade(1, &body).unwrap();
            let phase = record.phase.clone();
            assert!(
                Remembered::from_record(record).is_ok(),
                "{phase} does not reach the conversion's end"
            );
        }
        for body in seeds::of("manifests") {
            assert!(Manifest::decode(&frame(MANIFEST_VERSION, &body)).is_ok());
        }
    }
}
