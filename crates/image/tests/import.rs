//! Importing images: what comes out of good ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod bench;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use bench::{Bench, Entry, NOW, archive, dir, entry, file, symlink, tar_of};
use dormouse_image::layout::{self, File};
use dormouse_image::{ContentStore, Digest, ImageConfig, ImportOptions, Limits, MemoryIndex};
use dormouse_model::Fault;

/// An archive of an image with something of everything, its digest and configuration.
fn rich_image(bench: &Bench) -> (PathBuf, Digest, ImageConfig) {
    let mut suid = File::bytes("bin/su", 0o4755, "su");
    (suid.uid, suid.gid) = (0, 42);
    let files = vec![
        suid,
        File::bytes("etc/deep/er/file", 0o640, vec![7; 10_000]),
        File::directory("tmp", 0o1777),
        File::symlink("bin/sh", "su"),
        File {
            content: layout::Content::HardLink("bin/su".to_owned()),
            ..File::symlink("bin/su2", "")
        },
    ];
    let config = ImageConfig {
        entrypoint: vec!["/bin/su".to_owned()],
        environment: vec![("A".to_owned(), "b=c".to_owned())],
        working_directory: "/tmp".to_owned(),
        user: "www".to_owned(),
        stop_signal: 3,
        ..ImageConfig::default()
    };
    let mut bytes = Vec::new();
    let digest = layout::write_archive(&mut bytes, &"team/web:2".parse().unwrap(), &files, &config).unwrap();
    let path = bench.file("x.tar", &bytes);
    (path, digest, config)
}

#[test]
fn an_image_becomes_a_root_file_system() {
    let Some(bench) = Bench::new("an_image_becomes_a_root_file_system") else {
        return;
    };
    let (path, digest, config) = rich_image(&bench);
    let mut reports = Vec::new();
    let record = bench
        .store
        .import(&path, &ImportOptions::default(), NOW, &mut |progress| {
            reports.push(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        (record.name.to_string().as_str(), record.digest, &record.config),
        ("team/web:2", digest, &config)
    );
    assert_eq!(record.blobs.len(), 3);
    for phase in ["copying", "unpacking", "building"] {
        let last = reports
            .iter()
            .rfind(|report| report.phase.as_str() == phase)
            .unwrap();
        assert_eq!(last.done, last.total, "{phase}");
    }
    let stat = bench.debugfs(&digest, "stat /bin/su");
    assert!(
        stat.contains("Mode:  04755") && stat.contains("Group:    42") && stat.contains("Links: 2"),
        "{stat}"
    );
    assert!(bench.debugfs(&digest, "stat /").contains("Mode:  0755"));
    assert!(bench.debugfs(&digest, "stat /tmp").contains("Mode:  01777"));
    assert!(
        bench
            .debugfs(&digest, "stat /etc/deep/er/file")
            .contains("Size: 10000")
    );
    assert!(
        bench
            .debugfs(&digest, "stat /bin/sh")
            .contains("Fast link dest: \"su\"")
    );
    let checked = Command::new("e2fsck")
        .args(["-fn"])
        .arg(bench.store.rootfs_path(&digest))
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
}

#[test]
fn an_image_imported_again_is_shared_and_found_by_all_its_names() {
    let Some(bench) = Bench::new("an_image_imported_again_is_shared") else {
        return;
    };
    let (path, digest, _) = rich_image(&bench);
    bench.import(&path).unwrap();
    let before = bench.contents();
    assert_eq!(bench.import(&path).unwrap().digest, digest);
    let options = ImportOptions {
        name: Some("other".parse().unwrap()),
        choose: None,
    };
    bench
        .store
        .import(&path, &options, NOW, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(bench.contents(), before);
    assert_eq!(bench.store.list().unwrap().len(), 2);
    for reference in [
        "team/web:2",
        "other",
        "other:latest",
        &digest.to_string(),
        &digest.hex()[..12],
    ] {
        assert_eq!(bench.store.get(reference).unwrap().digest, digest, "{reference}");
    }
    assert_eq!(bench.store.get("team/web").unwrap_err().code(), "IMAGE_NOT_FOUND");

    let used = BTreeSet::from([digest]);
    bench.store.remove("other", &used).unwrap();
    assert_eq!(
        bench.store.remove("team/web:2", &used).unwrap_err().code(),
        "IMAGE_IN_USE"
    );
    bench.store.remove("team/web:2", &BTreeSet::new()).unwrap();
    assert_eq!(bench.contents(), BTreeSet::new());
}

#[test]
fn the_same_image_gives_the_same_bytes() {
    let Some(one) = Bench::new("the_same_image_gives_the_same_bytes") else {
        return;
    };
    let two = Bench::new("").unwrap();
    let layers = [tar_of(&[dir("a"), file("a/x"), file("b"), symlink("c", "a/x")])];
    let (first, second) = (
        one.import_layers(&layers).unwrap(),
        two.import_layers(&layers).unwrap(),
    );
    assert_eq!(first.digest, second.digest);
    let uuid = |bench: &Bench| {
        let text = bench.debugfs(&first.digest, "show_super_stats -h");
        text.lines()
            .find(|line| line.contains("UUID"))
            .unwrap()
            .to_owned()
    };
    assert_eq!(uuid(&one), uuid(&two));
    assert_eq!(first.rootfs_size, second.rootfs_size);
}

/// A layer, and one that covers and removes what it has.
fn two_layers() -> (Vec<u8>, Vec<u8>) {
    let lower = tar_of(&[
        dir("gone"),
        file("gone/x"),
        dir("opaque"),
        file("opaque/old"),
        dir("opaque/kept"),
        file("opaque/kept/old"),
        dir("usr/bin"),
        symlink("bin", "usr/bin"),
        symlink("run", "/var/run"),
        dir("var/run"),
        file("file-to-dir"),
        dir("dir-to-file"),
        file("dir-to-file/x"),
        symlink("link-to-file", "/etc/passwd"),
        file("hidden"),
    ]);
    let upper = tar_of(&[
        file(".wh.gone"),
        file("opaque/kept/new"),
        file("opaque/.wh..wh..opq"),
        file("opaque/after"),
        file("bin/tool"),
        file("run/pid"),
        dir("file-to-dir"),
        file("file-to-dir/y"),
        file("dir-to-file"),
        file("link-to-file"),
        file(".wh.hidden"),
        file("hidden"),
        file("nowhere/.wh.x"),
        file(".wh..wh.plnk"),
        entry("dev/null", tar::EntryType::Char),
        entry("fifo", tar::EntryType::Fifo),
    ]);
    (lower, upper)
}

#[test]
fn layers_cover_and_remove() {
    let Some(bench) = Bench::new("layers_cover_and_remove") else {
        return;
    };
    let (lower, upper) = two_layers();
    let image = bench.import_layers(&[lower, upper]).unwrap();
    assert_eq!(image.skipped_devices, 1);
    for (path, want) in [
        ("/gone", false),
        ("/opaque/old", false),
        ("/opaque/kept/old", false),
        ("/opaque/kept/new", true),
        ("/opaque/after", true),
        ("/usr/bin/tool", true),
        ("/var/run/pid", true),
        ("/file-to-dir/y", true),
        ("/dir-to-file/x", false),
        ("/hidden", true),
        ("/dev/null", false),
        ("/fifo", true),
    ] {
        assert_eq!(bench.exists(&image.digest, path), want, "{path}");
    }
    assert!(
        bench
            .debugfs(&image.digest, "stat /link-to-file")
            .contains("Type: regular")
    );
    assert!(
        bench
            .debugfs(&image.digest, "stat /bin")
            .contains("Type: symlink")
    );
    assert!(
        bench
            .debugfs(&image.digest, "stat /usr/bin/tool")
            .contains("User:     7")
    );
    assert_eq!(bench.debugfs(&image.digest, "cat /usr/bin/tool"), "bin/tool");
}

#[test]
fn imports_at_once_share_and_cancelled_ones_take_nothing_away() {
    let Some(bench) = Bench::new("imports_at_once_share") else {
        return;
    };
    let layer: Vec<u8> = {
        let contents: &'static [u8] = Box::leak(vec![9; 3 << 20].into_boxed_slice());
        tar_of(&[Entry {
            contents,
            ..file("x")
        }])
    };
    let path = bench.file("image.tar", &archive(&[layer]));
    let named = |n: usize| ImportOptions {
        name: Some(format!("image-{n}").parse().unwrap()),
        choose: None,
    };
    let digests: Vec<Option<Digest>> = std::thread::scope(|scope| {
        let import = |n: usize| {
            let (bench, path) = (&bench, &path);
            scope.spawn(move || {
                let mut left = 3;
                // Every other import is taken back half-way.
                let mut tick = |_| {
                    left -= 1;
                    if n % 2 == 1 && left == 0 {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                };
                match bench.store.import(path, &named(n), NOW, &mut tick) {
                    Ok(record) => Some(record.digest),
                    Err(error) => {
                        assert_eq!(error.code(), "IMAGE_CANCELLED");
                        None
                    }
                }
            })
        };
        let running: Vec<_> = (0..8).map(import).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(digests.iter().step_by(2).all(Option::is_some), "{digests:?}");
    assert_eq!(bench.store.list().unwrap().len(), 4);
    assert_eq!(bench.contents().len(), 3 + 1, "{:?}", bench.contents());
    for record in bench.store.list().unwrap() {
        bench
            .store
            .remove(&record.name.to_string(), &BTreeSet::new())
            .unwrap();
    }
    assert_eq!(bench.contents(), BTreeSet::new());
}

#[test]
fn a_start_removes_what_a_dead_import_left() {
    let Some(bench) = Bench::new("a_start_removes_what_a_dead_import_left") else {
        return;
    };
    let record = bench.import_layers(&[tar_of(&[file("x")])]).unwrap();
    let images = bench.directory.path().join("images");
    fs::create_dir_all(images.join("staging/.x.1.0.partial/tree")).unwrap();
    fs::File::create(images.join("blobs/sha256/.y.1.0.partial"))
        .unwrap()
        .write_all(b"half")
        .unwrap();
    let orphan = Digest::of(b"orphan");
    fs::write(images.join("blobs/sha256").join(orphan.hex()), b"orphan").unwrap();
    fs::write(
        images.join("rootfs").join(format!("{}.ext4", orphan.hex())),
        b"orphan",
    )
    .unwrap();
    let index = MemoryIndex::default();
    dormouse_image::ImageIndex::put(&index, &record).unwrap();
    let store = ContentStore::open(bench.directory.path(), Arc::new(index), Limits::default()).unwrap();
    assert_eq!(bench.contents().len(), 4, "{:?}", bench.contents());
    assert_eq!(store.get("test:1").unwrap(), record);
}
