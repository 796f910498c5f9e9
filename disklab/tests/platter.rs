//! What may survive: all that was flushed, any part of the rest, and nothing that never was.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use dormouse_disklab::{Change, Entry, NodeKind, Platter};
use proptest::prelude::*;

const ROOT: u64 = 1;

fn made(file: u64) -> Change {
    Change::Made {
        file,
        kind: NodeKind::File,
    }
}

fn name(text: &str, file: u64) -> Change {
    Change::Name {
        directory: ROOT,
        name: OsString::from(text),
        file,
    }
}

fn write(file: u64, offset: u64, byte: u8, length: usize) -> Change {
    Change::Write {
        file,
        offset,
        data: Arc::from(vec![byte; length]),
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

fn rename(old: &str, new: &str, file: u64) -> Change {
    Change::Rename {
        from: ROOT,
        old: OsString::from(old),
        to: ROOT,
        new: OsString::from(new),
        file,
    }
}

fn platter(changes: &[Change]) -> Platter {
    let mut platter = Platter::default();
    changes.iter().for_each(|change| platter.apply(change));
    platter
}

fn content(platter: &Platter, seed: u64, path: &str) -> Option<Vec<u8>> {
    match platter.survivors(seed).get(Path::new(path)) {
        Some(Entry::File(content)) => Some(content.to_vec()),
        _ => None,
    }
}

const FLUSH_ROOT: Change = Change::FlushDirectory { directory: ROOT };

#[test]
fn what_is_flushed_with_its_name_is_always_there() {
    let disk = platter(&[
        made(2),
        write(2, 0, 7, 2000),
        Change::Flush { file: 2 },
        name("f", 2),
        FLUSH_ROOT,
    ]);
    for seed in 0..300 {
        assert_eq!(content(&disk, seed, "f"), Some(vec![7; 2000]));
    }
}

#[test]
fn a_flushed_file_without_a_flushed_name_may_be_gone() {
    let disk = platter(&[
        made(2),
        name("f", 2),
        write(2, 0, 7, 100),
        Change::Flush { file: 2 },
    ]);
    let found: Vec<_> = (0..300).map(|seed| content(&disk, seed, "f")).collect();
    assert!(found.contains(&None));
    assert!(found.iter().flatten().all(|bytes| *bytes == vec![7; 100]));
    assert!(found.iter().any(Option::is_some));
}

#[test]
fn a_flushed_name_may_lead_to_an_empty_or_torn_file() {
    let disk = platter(&[made(2), name("f", 2), FLUSH_ROOT, write(2, 0, 7, 1536)]);
    let found: Vec<_> = (0..300).filter_map(|seed| content(&disk, seed, "f")).collect();
    assert_eq!(found.len(), 300);
    assert!(found.contains(&Vec::new()));
    assert!(found.contains(&vec![7; 1536]));
    // The last sector without the first.
    assert!(
        found
            .iter()
            .any(|bytes| bytes.first() == Some(&0) && bytes.get(1200) == Some(&7))
    );
}

#[test]
fn the_classic_replacement_without_a_flush_of_the_file_may_lose_both() {
    let old = [
        made(2),
        name("f", 2),
        write(2, 0, 1, 10),
        Change::Flush { file: 2 },
        FLUSH_ROOT,
    ];
    let new = [
        made(3),
        name("f.new", 3),
        write(3, 0, 2, 10),
        rename("f.new", "f", 3),
    ];
    let careless = platter(&[&old[..], &new[..]].concat());
    let found: Vec<_> = (0..500).map(|seed| content(&careless, seed, "f")).collect();
    assert!(found.contains(&Some(vec![1; 10])));
    assert!(found.contains(&Some(vec![2; 10])));
    assert!(found.contains(&Some(Vec::new())), "renamed before its bytes");
    assert!(!found.contains(&None), "the name is never without a file");

    let flushed = [
        made(3),
        name("f.new", 3),
        write(3, 0, 2, 10),
        Change::Flush { file: 3 },
        rename("f.new", "f", 3),
    ];
    let careful = platter(&[&old[..], &flushed[..]].concat());
    for seed in 0..500 {
        let found = content(&careful, seed, "f");
        assert!(
            found == Some(vec![1; 10]) || found == Some(vec![2; 10]),
            "{found:?}"
        );
    }
}

#[test]
fn a_rename_between_directories_is_whole_and_durable_by_either() {
    let directories = [
        Change::Made {
            file: 10,
            kind: NodeKind::Directory,
        },
        name("a", 10),
        Change::Made {
            file: 11,
            kind: NodeKind::Directory,
        },
        name("b", 11),
        made(2),
        write(2, 0, 9, 4),
        Change::Name {
            directory: 10,
            name: OsString::from("f"),
            file: 2,
        },
        Change::FlushAll,
        Change::Rename {
            from: 10,
            old: OsString::from("f"),
            to: 11,
            new: OsString::from("f"),
            file: 2,
        },
    ];
    let mut disk = platter(&directories);
    for seed in 0..200 {
        let places = [content(&disk, seed, "a/f"), content(&disk, seed, "b/f")];
        assert_eq!(
            places.iter().flatten().count(),
            1,
            "one of them, never both or none"
        );
    }
    disk.apply(&Change::FlushDirectory { directory: 10 });
    for seed in 0..200 {
        assert_eq!(content(&disk, seed, "b/f"), Some(vec![9; 4]));
    }
}

#[test]
fn a_cut_that_was_not_flushed_may_be_undone() {
    let disk = platter(&[
        made(2),
        name("f", 2),
        write(2, 0, 5, 1024),
        Change::FlushAll,
        Change::Truncate { file: 2, size: 0 },
    ]);
    let found: Vec<_> = (0..200).filter_map(|seed| content(&disk, seed, "f")).collect();
    assert!(found.contains(&Vec::new()));
    assert!(found.contains(&vec![5; 1024]));
}

/// A step on three files of at most four sectors.
fn step() -> impl Strategy<Value = Change> {
    let file = 2..5_u64;
    prop_oneof![
        8 => (file.clone(), 0..1500_u64, 1..255_u8, 1..600_usize).prop_map(|(file, at, byte, length)| write(file, at, byte, length)),
        2 => (file.clone(), 0..2048_u64).prop_map(|(file, size)| Change::Truncate { file, size }),
        1 => (file.clone(), 0..1500_u64, 1..600_u64).prop_map(|(file, offset, length)| Change::Zero { file, offset, length }),
        3 => file.clone().prop_map(|file| Change::Flush { file }),
        2 => Just(FLUSH_ROOT),
        2 => (file.clone(), "[ab]").prop_map(|(file, text)| name(&text, file)),
        1 => "[ab]".prop_map(|text| Change::Unname { directory: ROOT, name: OsString::from(text) }),
    ]
}

proptest! {
    /// Against a model without cleverness: the bytes that a sector may hold are its content after the
    /// flush and after every write since.
    #[test]
    fn every_sector_is_one_that_was(steps in proptest::collection::vec(step(), 1..40), seed in any::<u64>()) {
        let fixed = [made(2), made(3), made(4), name("x", 2), name("y", 3), name("z", 4), Change::FlushAll];
        let mut disk = platter(&fixed);
        let mut now = [const { Vec::new() }; 3];
        let mut held: [Vec<Vec<u8>>; 3] = [const { Vec::new() }; 3];
        for (bytes, held) in now.iter().zip(&mut held) { held.push(Vec::clone(bytes)); }
        for step in &steps {
            disk.apply(step);
            let (file, flushed) = match step {
                Change::Write { file, offset, data } => {
                    let bytes: &mut Vec<u8> = &mut now[index(*file - 2)];
                    let (start, end) = (index(*offset), index(*offset) + data.len());
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[start..end].copy_from_slice(data);
                    (*file, false)
                }
                Change::Truncate { file, size } => { now[index(*file - 2)].resize(index(*size), 0); (*file, false) }
                Change::Zero { file, offset, length } => {
                    let bytes = &mut now[index(*file - 2)];
                    let end = bytes.len().min(index(*offset + *length));
                    if (index(*offset)) < end { bytes[index(*offset)..end].fill(0); }
                    (*file, false)
                }
                Change::Flush { file } => (*file, true),
                _ => continue,
            };
            let held = &mut held[index(file - 2)];
            if flushed { held.clear(); }
            held.push(now[index(file - 2)].clone());
        }
        for (path, held) in ["x", "y", "z"].iter().zip(&held) {
            let Some(found) = content(&disk, seed, path) else { continue };
            prop_assert!(held.iter().any(|past| past.len() == found.len()), "a size that never was");
            for (number, sector) in found.chunks(512).enumerate() {
                let legal = held.iter().any(|past| {
                    let mut whole = past.get(number * 512..).unwrap_or_default().to_vec();
                    whole.resize(whole.len().max(sector.len()), 0);
                    whole[..sector.len()] == *sector
                });
                prop_assert!(legal, "sector {} of {}", number, path);
            }
        }
    }

    #[test]
    fn all_is_durable_after_a_flush_of_all(steps in proptest::collection::vec(step(), 1..40), seed in any::<u64>()) {
        let mut disk = platter(&[made(2), made(3), made(4)]);
        steps.iter().for_each(|step| disk.apply(step));
        let whole = disk.current();
        disk.apply(&Change::FlushAll);
        prop_assert_eq!(disk.survivors(seed), whole);
    }

    #[test]
    fn names_lead_where_they_led(steps in proptest::collection::vec(step(), 1..40), seed in any::<u64>()) {
        let mut disk = platter(&[made(2), made(3), made(4)]);
        steps.iter().for_each(|step| disk.apply(step));
        let ever: Vec<&str> = steps.iter().filter_map(|step| match step {
            Change::Name { name, .. } => name.to_str(),
            _ => None,
        }).collect();
        for (path, _) in disk.survivors(seed).iter() {
            prop_assert!(ever.contains(&path.to_str().unwrap_or_default()));
        }
    }
}
