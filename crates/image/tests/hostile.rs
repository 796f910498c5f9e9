//! Hostile and damaged images: refused with a code, and nothing is left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod bench;

use std::collections::BTreeSet;
use std::fs;

use bench::{Bench, Entry, archive, dir, entry, file, hard, symlink, tar_of};
use dormouse_image::{Digest, Limits};
use dormouse_model::Fault;

/// Imports `layers` and expects `code`; nothing may be left, inside the store or out of it.
fn check_refused(bench: &Bench, layers: &[Vec<u8>], code: &str) {
    let error = bench
        .import_layers(layers)
        .err()
        .unwrap_or_else(|| panic!("imported; wanted {code}"));
    assert_eq!(error.code(), code, "{}", dormouse_model::error::chain(&error));
    assert_eq!(bench.contents(), BTreeSet::new(), "left after {code}");
    assert!(bench.store.list().unwrap().is_empty());
}

/// Layers that no image needs, and the code of each.
fn hostile_layers() -> Vec<(&'static str, Vec<Entry>)> {
    vec![
        ("IMAGE_ENTRY_ESCAPES", vec![file("../outside")]),
        ("IMAGE_ENTRY_ESCAPES", vec![file("a/../../outside")]),
        ("IMAGE_ENTRY_ABSOLUTE", vec![file("/outside")]),
        (
            "IMAGE_ENTRY_ESCAPES",
            vec![symlink("up", "../../.."), file("up/outside")],
        ),
        (
            "IMAGE_ENTRY_ESCAPES",
            vec![
                dir("a"),
                symlink("a/up", ".."),
                symlink("b", "a/up/.."),
                file("b/outside"),
            ],
        ),
        (
            "IMAGE_ENTRY_ESCAPES",
            vec![symlink("up", "/.."), file("up/outside")],
        ),
        (
            "IMAGE_ENTRY_ESCAPES",
            vec![symlink("up", ".."), file("up/.wh.outside")],
        ),
        (
            "IMAGE_ENTRY_LINK_LOOP",
            vec![symlink("a", "b"), symlink("b", "a"), file("a/x")],
        ),
        ("IMAGE_ENTRY_LINK_TARGET", vec![hard("x", "../outside")]),
        ("IMAGE_ENTRY_LINK_TARGET", vec![hard("x", "/etc/passwd")]),
        ("IMAGE_ENTRY_LINK_TARGET", vec![hard("x", "missing")]),
        ("IMAGE_ENTRY_LINK_TARGET", vec![dir("d"), hard("x", "d")]),
        (
            "IMAGE_ENTRY_ESCAPES",
            vec![symlink("up", ".."), hard("x", "up/outside")],
        ),
        ("IMAGE_ENTRY_THROUGH_FILE", vec![file("f"), file("f/x")]),
        ("IMAGE_ENTRY_DEVICE", vec![entry("sda", tar::EntryType::Block)]),
        (
            "IMAGE_ENTRY_DEVICE",
            vec![entry("a/dev/null", tar::EntryType::Char)],
        ),
        ("IMAGE_ENTRY_WHITEOUT", vec![file(".wh.")]),
        ("IMAGE_ENTRY_WHITEOUT", vec![file(".wh...")]),
        ("IMAGE_ENTRY_SYMLINK_TARGET", vec![symlink("x", "")]),
        ("IMAGE_ENTRY_KIND", vec![entry("x", tar::EntryType::GNUSparse)]),
        (
            "IMAGE_ENTRY_NAME",
            vec![file("./")]
                .into_iter()
                .map(|e| Entry {
                    kind: tar::EntryType::Symlink,
                    link: "x",
                    contents: b"",
                    ..e
                })
                .collect(),
        ),
    ]
}

#[test]
fn hostile_entries_are_refused_and_leave_nothing() {
    let Some(bench) = Bench::new("hostile_entries_are_refused_and_leave_nothing") else {
        return;
    };
    let outside = bench.file("outside", b"untouched");
    for (code, entries) in hostile_layers() {
        check_refused(&bench, &[tar_of(&entries)], code);
    }
    assert_eq!(fs::read(outside).unwrap(), b"untouched");
    // A link out of the image is only text until something goes through it.
    let image = bench
        .import_layers(&[tar_of(&[symlink("etc", "/outside"), file("etc/x")])])
        .unwrap();
    assert!(
        bench.exists(&image.digest, "/outside/x"),
        "absolute links lead to the image's own root"
    );
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let Some(bench) = Bench::new("damaged_archives_are_refused_and_leave_nothing") else {
        return;
    };
    let layer = tar_of(&[
        dir("a"),
        Entry {
            contents: &[5; 70_000],
            ..file("a/x")
        },
    ]);
    check_refused(
        &bench,
        &[layer[..layer.len() / 2].to_vec()],
        "IMAGE_LAYER_UNREADABLE",
    );
    check_refused(
        &bench,
        &[b"not a tar archive".repeat(100)],
        "IMAGE_LAYER_UNREADABLE",
    );
    // An extended header of two mebibytes.
    let long = Entry {
        contents: Box::leak(vec![b'x'; 2 << 20].into_boxed_slice()),
        ..entry("n", tar::EntryType::GNULongName)
    };
    check_refused(&bench, &[tar_of(&[long, file("y")])], "IMAGE_ENTRY_EXTENSION");
    let pax = Entry {
        contents: b"13 size=99999\n",
        ..entry("p", tar::EntryType::XHeader)
    };
    check_refused(&bench, &[tar_of(&[pax, file("y")])], "IMAGE_ENTRY_EXTENSION");
    check_refused(&bench, &vec![tar_of(&[file("x")]); 129], "IMAGE_LIMIT_EXCEEDED");
}

#[test]
fn damaged_layouts_are_refused_and_leave_nothing() {
    let Some(bench) = Bench::new("damaged_layouts_are_refused_and_leave_nothing") else {
        return;
    };
    let good = archive(&[tar_of(&[file("x")])]);
    let expect = |bytes: &[u8], codes: &[&str]| {
        let path = bench.file("bad.tar", bytes);
        let error = bench.import(&path).unwrap_err();
        assert!(
            codes.contains(&error.code()),
            "{} not in {codes:?}: {error}",
            error.code()
        );
        assert_eq!(bench.contents(), BTreeSet::new());
    };
    expect(
        &good[..good.len() - 3000],
        &["IMAGE_LAYOUT_FOREIGN", "IMAGE_BLOB_MISSING"],
    );
    expect(b"hello", &["IMAGE_LAYOUT_FOREIGN"]);
    expect(&[0x1f, 0x8b, 8, 0, 0, 0], &["IMAGE_LAYOUT_FOREIGN"]);
    let layer_at = good
        .windows(10)
        .position(|w| w == [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255]);
    let layer_at = layer_at.unwrap_or_else(|| good.windows(3).position(|w| w == [0x1f, 0x8b, 8]).unwrap());
    let mut flipped = good.clone();
    flipped[layer_at + 30] ^= 1;
    expect(&flipped, &["IMAGE_DIGEST_WRONG"]);
    let text_at = |text: &[u8]| good.windows(text.len()).position(|w| w == text).unwrap();
    let mut flipped = good.clone();
    flipped[text_at(b"\"diff_ids\"")] ^= 1;
    expect(&flipped, &["IMAGE_DIGEST_WRONG"]);
    for tried in (0..good.len()).step_by(97) {
        let mut flipped = good.clone();
        flipped[tried] ^= 0x20;
        let path = bench.file("bad.tar", &flipped);
        // Padding and times carry nothing: such a flip may import, and then it is the same image.
        match bench.import(&path) {
            Ok(record) => drop(
                bench
                    .store
                    .remove(&record.digest.to_string(), &BTreeSet::new())
                    .unwrap(),
            ),
            Err(error) => assert!(error.code().starts_with("IMAGE_"), "{error}"),
        }
        assert_eq!(bench.contents(), BTreeSet::new(), "flip at {tried}");
    }
}

#[test]
fn bombs_are_stopped() {
    let limits = Limits {
        entries: 100,
        unpacked_bytes: 1 << 20,
        packed_bytes: 1 << 20,
        ratio: 1000,
    };
    let Some(bench) = Bench::with_limits("bombs_are_stopped", limits) else {
        return;
    };
    let zeros: &'static [u8] = Box::leak(vec![0; 8 << 20].into_boxed_slice());
    check_refused(
        &bench,
        &[tar_of(&[Entry {
            contents: zeros,
            ..file("x")
        }])],
        "IMAGE_LIMIT_EXCEEDED",
    );
    check_refused(&bench, &[tar_of(&vec![file("x"); 101])], "IMAGE_LIMIT_EXCEEDED");
    // Padding behind the end of the archive counts too.
    check_refused(
        &bench,
        &[[tar_of(&[file("x")]), zeros.to_vec()].concat()],
        "IMAGE_LIMIT_EXCEEDED",
    );
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(2 << 20)
    .collect();
    let noise: &'static [u8] = Box::leak(noise.into_boxed_slice());
    check_refused(
        &bench,
        &[tar_of(&[Entry {
            contents: noise,
            ..file("x")
        }])],
        "IMAGE_LIMIT_EXCEEDED",
    );
}

#[test]
fn layouts_that_are_something_else_are_told() {
    let Some(bench) = Bench::new("layouts_that_are_something_else_are_told") else {
        return;
    };
    let directory = bench.directory.path().join("layout");
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let put = |text: &str| {
        let digest = Digest::of(text.as_bytes());
        fs::write(directory.join("blobs/sha256").join(digest.hex()), text).unwrap();
        format!(
            r#"{{"mediaType":"TYPE","digest":"{digest}","size":{}}}"#,
            text.len()
        )
    };
    let typed = |descriptor: String, kind: &str| descriptor.replace("TYPE", kind);
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    let image = |architecture: &str, layer_kind: &str| {
        let configuration = put(&format!(
            r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(b"layer")
        ));
        let configuration = typed(configuration, "application/vnd.oci.image.config.v1+json");
        let layer = typed(put("layer"), layer_kind);
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{manifest_kind}","config":{configuration},"layers":[{layer}]}}"#
        );
        typed(put(&text), manifest_kind)
    };
    let try_index = |manifests: &str, code: &str| {
        fs::write(
            directory.join("index.json"),
            format!(r#"{{"schemaVersion":2,"manifests":[{manifests}]}}"#),
        )
        .unwrap();
        let error = bench.import(&directory).unwrap_err();
        assert_eq!(error.code(), code, "{}", dormouse_model::error::chain(&error));
        assert_eq!(bench.contents(), BTreeSet::new());
    };
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    try_index("", "IMAGE_DOCUMENT_UNREADABLE");
    try_index("{", "IMAGE_DOCUMENT_UNREADABLE");
    try_index(&image("amd64", zstd), "IMAGE_MEDIA_UNSUPPORTED");
    try_index(&image("s390x", plain), "IMAGE_PLATFORM_FOREIGN");
    try_index(&image("amd64", plain), "IMAGE_LAYER_UNREADABLE");
    try_index(
        &format!("{},{}", image("amd64", plain), image("s390x", plain)),
        "IMAGE_CHOICE_NEEDED",
    );
    let nested = typed(
        put(&format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            image("amd64", plain)
        )),
        "application/vnd.oci.image.index.v1+json",
    );
    try_index(&nested, "IMAGE_LAYER_UNREADABLE");
    try_index(
        &image("amd64", plain).replace("sha256:", "sha512:"),
        "IMAGE_DOCUMENT_UNREADABLE",
    );
    let wrong = format!(
        r#"{{"mediaType":"{manifest_kind}","digest":"{}","size":5}}"#,
        Digest::of(b"none")
    );
    try_index(&wrong, "IMAGE_BLOB_MISSING");
}

#[test]
fn what_is_no_layout_is_told() {
    let Some(bench) = Bench::new("what_is_no_layout_is_told") else {
        return;
    };
    let mut docker = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    docker
        .append_data(&mut header, "manifest.json", &b"[]"[..])
        .unwrap();
    let path = bench.file("docker.tar", &docker.into_inner().unwrap());
    let error = bench.import(&path).unwrap_err();
    assert!(error.to_string().contains("skopeo"), "{error}");
    assert_eq!(
        bench
            .import(&bench.directory.path().join("none"))
            .unwrap_err()
            .code(),
        "IMAGE_IO"
    );
}
