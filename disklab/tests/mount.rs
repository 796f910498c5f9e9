//! A mounted disk does what a file system does, writes it down, and fails as ordered.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_disklab::{Call, Change, Disk, Entry, Fail, Failure, Faults, Platter};

struct Bench {
    disk: Disk,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.disk.root().join(name)
    }
}

/// A disk, or why there is none.
fn need(test: &str) -> Option<Bench> {
    let directory = tempfile::tempdir().unwrap();
    let (backing, root) = (directory.path().join("backing"), directory.path().join("disk"));
    fs::create_dir(&backing).unwrap();
    fs::create_dir(&root).unwrap();
    match Disk::mount(&backing, &root) {
        Ok(disk) => Some(Bench {
            disk,
            _directory: directory,
        }),
        Err(error) => {
            println!("skipped: {test}: mounting by /dev/fuse: {error}");
            None
        }
    }
}

fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error()
}

#[test]
fn files_directories_and_links_are_as_on_any_disk() {
    let Some(bench) = need("files_directories_and_links") else {
        return;
    };
    let inside = bench.path("a/b");
    fs::create_dir_all(&inside).unwrap();
    fs::write(inside.join("one"), b"hello").unwrap();
    fs::hard_link(inside.join("one"), inside.join("two")).unwrap();
    std::os::unix::fs::symlink("one", inside.join("three")).unwrap();
    fs::rename(inside.join("one"), bench.path("a/four")).unwrap();
    assert_eq!(fs::read(inside.join("two")).unwrap(), b"hello");
    assert_eq!(fs::read(bench.path("a/four")).unwrap(), b"hello");
    assert_eq!(fs::metadata(bench.path("a/four")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(inside.join("three")).unwrap(), Path::new("one"));
    let mut appended = OpenOptions::new().append(true).open(inside.join("two")).unwrap();
    appended.write_all(b" you").unwrap();
    assert_eq!(fs::read(bench.path("a/four")).unwrap(), b"hello you");
    let mut names: Vec<_> = fs::read_dir(&inside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["three", "two"]);
    fs::remove_file(inside.join("three")).unwrap();
    assert_eq!(
        errno(&fs::remove_dir(&inside).unwrap_err()),
        Some(nix::libc::ENOTEMPTY)
    );
    fs::remove_file(inside.join("two")).unwrap();
    fs::remove_dir(&inside).unwrap();
    assert_eq!(fs::read(bench.path("a/four")).unwrap(), b"hello you");
}

#[test]
fn the_log_rebuilds_what_was_made() {
    let Some(bench) = need("the_log_rebuilds") else {
        return;
    };
    fs::create_dir(bench.path("d")).unwrap();
    let mut file = File::create_new(bench.path("d/f")).unwrap();
    file.write_all(&[7; 3000]).unwrap();
    file.write_all_at(&[8; 10], 100).unwrap();
    file.set_len(2000).unwrap();
    file.set_len(5000).unwrap();
    nix::fcntl::fallocate(
        &file,
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        0,
        50,
    )
    .unwrap();
    file.sync_data().unwrap();
    File::open(bench.path("d")).unwrap().sync_all().unwrap();
    fs::rename(bench.path("d/f"), bench.path("g")).unwrap();
    let mut now = Vec::new();
    file.rewind().unwrap();
    File::open(bench.path("g"))
        .unwrap()
        .read_to_end(&mut now)
        .unwrap();
    drop(file);
    let log = bench.disk.log();
    let flushes = log.iter().filter(|change| change.is_flush()).count();
    assert_eq!(flushes, 2, "{log:?}");
    let mut platter = Platter::default();
    log.iter().for_each(|change| platter.apply(change));
    let tree = platter.current();
    assert_eq!(
        tree.get(Path::new("g")),
        Some(&Entry::File(now.as_slice().into()))
    );
    assert_eq!(tree.get(Path::new("d")), Some(&Entry::Directory));
    assert_eq!(tree.iter().count(), 2);
    let copy = tempfile::tempdir().unwrap();
    tree.write_to(copy.path()).unwrap();
    assert_eq!(
        fs::read(copy.path().join("g")).unwrap(),
        fs::read(bench.path("g")).unwrap()
    );
}

#[test]
fn a_copy_within_the_disk_is_whole() {
    let Some(bench) = need("a_copy_within") else {
        return;
    };
    let file = File::create_new(bench.path("from")).unwrap();
    file.write_all_at(&[3; 70_000], 0).unwrap();
    fs::copy(bench.path("from"), bench.path("to")).unwrap();
    assert_eq!(fs::read(bench.path("to")).unwrap(), [3; 70_000]);
}

#[test]
fn the_ordered_call_fails_and_only_that() {
    let Some(bench) = need("the_ordered_call_fails") else {
        return;
    };
    let file = File::create_new(bench.path("f")).unwrap();
    bench.disk.set_faults(Faults {
        fail: Some(Fail::once(2, Failure::Io)),
        ..Faults::default()
    });
    file.write_all_at(b"1", 0).unwrap();
    assert_eq!(
        errno(&file.write_all_at(b"2", 1).unwrap_err()),
        Some(nix::libc::EIO)
    );
    file.write_all_at(b"3", 1).unwrap();
    bench.disk.set_faults(Faults {
        fail: Some(Fail {
            only: Some(Call::Flush),
            ..Fail::from(1, Failure::Full)
        }),
        ..Faults::default()
    });
    file.write_all_at(b"4", 2).unwrap();
    for _ in 0..2 {
        assert_eq!(errno(&file.sync_all().unwrap_err()), Some(nix::libc::ENOSPC));
    }
    bench.disk.set_faults(Faults::default());
    file.sync_all().unwrap();
    assert_eq!(fs::read(bench.path("f")).unwrap(), b"134");
    let tally = bench.disk.tally();
    assert_eq!((tally.failed, tally.flushes), (3, 1));
    assert_eq!(tally.written_bytes, 3);
}

#[test]
fn a_quota_is_a_full_disk_until_something_goes() {
    let Some(bench) = need("a_quota") else { return };
    bench.disk.set_faults(Faults {
        quota_bytes: Some(256 * 1024),
        ..Faults::default()
    });
    let big = vec![1; 200 * 1024];
    fs::write(bench.path("first"), &big).unwrap();
    assert_eq!(
        errno(&fs::write(bench.path("second"), &big).unwrap_err()),
        Some(nix::libc::ENOSPC)
    );
    // What is there can be written over.
    let first = OpenOptions::new().write(true).open(bench.path("first")).unwrap();
    first.write_all_at(&[2; 8192], 0).unwrap();
    assert_eq!(
        errno(
            &nix::fcntl::fallocate(&first, nix::fcntl::FallocateFlags::empty(), 0, 1 << 20)
                .unwrap_err()
                .into()
        ),
        Some(nix::libc::ENOSPC)
    );
    let facts = nix::sys::statvfs::statvfs(bench.disk.root()).unwrap();
    assert!(facts.blocks_available() * facts.fragment_size() < 64 * 1024);
    fs::remove_file(bench.path("second")).unwrap();
    drop(first);
    fs::remove_file(bench.path("first")).unwrap();
    fs::write(bench.path("third"), &big).unwrap();
    assert!(bench.disk.tally().used_bytes <= 256 * 1024);
}

#[test]
fn delays_hold_and_end_with_their_order() {
    let Some(bench) = need("delays_hold") else { return };
    let file = File::create_new(bench.path("f")).unwrap();
    bench.disk.set_faults(Faults {
        flush_delay: Duration::from_millis(40),
        ..Faults::default()
    });
    file.write_all_at(b"1", 0).unwrap();
    let began = Instant::now();
    file.sync_all().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(40));
    bench.disk.set_faults(Faults {
        flush_delay: Duration::from_secs(600),
        ..Faults::default()
    });
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| file.sync_all());
        // Whether it waits already or comes later: it does not wait ten minutes.
        bench.disk.set_faults(Faults::default());
        flush.join().unwrap().unwrap();
    });
}

#[test]
fn marks_stand_among_the_changes() {
    let Some(bench) = need("marks_stand") else { return };
    let file = File::create_new(bench.path("f")).unwrap();
    file.write_all_at(b"1", 0).unwrap();
    bench.disk.mark(5);
    file.write_all_at(b"2", 1).unwrap();
    let kinds: Vec<bool> = bench
        .disk
        .log()
        .iter()
        .filter(|change| matches!(change, Change::Mark(_) | Change::Write { .. }))
        .map(|change| matches!(change, Change::Mark(5)))
        .collect();
    assert_eq!(kinds, [false, true, false]);
}

#[test]
fn a_disk_that_is_mounted_again_has_its_numbers() {
    let Some(bench) = need("a_disk_that_is_mounted_again") else {
        return;
    };
    fs::create_dir(bench.path("d")).unwrap();
    for name in ["d/a", "b", "d/c"] {
        fs::write(bench.path(name), name).unwrap();
    }
    fs::remove_file(bench.path("b")).unwrap();
    let want = fs::metadata(bench.path("d/c")).unwrap().ino();
    let mut platter = Platter::default();
    bench.disk.log().iter().for_each(|change| platter.apply(change));
    let directory = tempfile::tempdir().unwrap();
    let (backing, root) = (directory.path().join("backing"), directory.path().join("disk"));
    fs::create_dir(&backing).unwrap();
    fs::create_dir(&root).unwrap();
    let again = Disk::mount_tree(&platter.current(), &backing, &root).unwrap();
    assert_eq!(fs::metadata(root.join("d/c")).unwrap().ino(), want);
    assert_eq!(fs::read(root.join("d/a")).unwrap(), b"d/a");
    fs::write(root.join("new"), "new").unwrap();
    assert!(fs::metadata(root.join("new")).unwrap().ino() > want);
    drop(again);
}
