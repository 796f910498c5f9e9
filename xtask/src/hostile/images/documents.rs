//! Documents of an image: index, manifest, configuration.

#![allow(
    clippy::too_many_lines,
    clippy::semicolon_if_nothing_returned,
    reason = "a function is a table of cases"
)]

use serde_json::{Value, json};

use super::super::archive::{INDEX, Image, MANIFEST, descriptor, digest, tar, with};
use super::{Case, case};

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    const UNREADABLE: &str = "IMAGE_DOCUMENT_UNREADABLE";
    let index = |text: Vec<u8>| {
        let layout = with("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        tar(&[layout, with("index.json", text)])
    };
    let deep = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
    let mut cases = vec![
        case("an empty index", UNREADABLE, index(Vec::new())),
        case("half an index", UNREADABLE, index(b"{\"manifests\": [".to_vec())),
        case("an index nested 200,000 deep", UNREADABLE, index(deep)),
        case(
            "an index of 5 MiB",
            "IMAGE_LIMIT_EXCEEDED|IMAGE_LAYOUT_FOREIGN|IMAGE_DOCUMENT_UNREADABLE",
            index(vec![b' '; 5 << 20]),
        ),
        case(
            "an index without images",
            UNREADABLE,
            Image::index(|v| v["manifests"] = json!([])).build(),
        ),
        case(
            "a manifest that is not there",
            "IMAGE_BLOB_MISSING",
            Image {
                without: Some(1),
                ..Image::default()
            }
            .build(),
        ),
        case(
            "a configuration that is not there",
            "IMAGE_BLOB_MISSING",
            Image {
                without: Some(0),
                ..Image::default()
            }
            .build(),
        ),
        case(
            "a layer that is not there",
            "IMAGE_BLOB_MISSING",
            Image {
                without: Some(2),
                ..Image::default()
            }
            .build(),
        ),
        case(
            "indexes in a circle as far as digests allow",
            "IMAGE_LIMIT_EXCEEDED",
            nested(6),
        ),
        case(
            "two images and no choice",
            "IMAGE_CHOICE_NEEDED",
            Image::index(|v| {
                let mut second = v["manifests"][0].clone();
                second["digest"] = json!(digest(b"other"));
                second["annotations"] = json!({ "org.opencontainers.image.ref.name": "other:1" });
                v["manifests"] = json!([v["manifests"][0], second]);
            })
            .build(),
        ),
    ];
    for (name, value) in [
        ("out of the store", json!("sha256:../../../../etc/passwd")),
        ("without a name", json!("")),
        (
            "of an unknown kind",
            json!("md5:d41d8cd98f00b204e9800998ecf8427e"),
        ),
        ("of SHA-512", json!(format!("sha512:{}", "a".repeat(128)))),
        ("with too few digits", json!("sha256:abcd")),
        ("that is a number", json!(7)),
    ] {
        let twist = move |v: &mut Value| v["manifests"][0]["digest"] = value.clone();
        cases.push(case(
            &format!("a digest {name}"),
            UNREADABLE,
            Image::index(twist).build(),
        ));
    }
    for (name, want, size) in [
        ("one more", "IMAGE_SIZE_WRONG", json!(100_000)),
        ("nothing", "IMAGE_SIZE_WRONG", json!(0)),
        ("less than nothing", UNREADABLE, json!(-1)),
        ("more than a document", "IMAGE_LIMIT_EXCEEDED", json!(u64::MAX)),
    ] {
        let twist = move |v: &mut Value| v["manifests"][0]["size"] = size.clone();
        cases.push(case(
            &format!("a manifest said to have {name}"),
            want,
            Image::index(twist).build(),
        ));
    }
    cases.extend(manifests());
    cases.extend(configurations());
    cases
}

fn manifests() -> Vec<Case> {
    const UNREADABLE: &str = "IMAGE_DOCUMENT_UNREADABLE";
    let of = |name: &str, want, twist: fn(&mut Value)| case(name, want, Image::manifest(twist).build());
    vec![
        of("a manifest without layers", UNREADABLE, |v| {
            v["layers"] = json!([]);
        }),
        of("a manifest whose layers are a number", UNREADABLE, |v| {
            v["layers"] = json!(5)
        }),
        of("a manifest without a configuration", UNREADABLE, |v| {
            v["config"] = json!(null)
        }),
        of("a manifest of schema 1", UNREADABLE, |v| {
            *v = json!({ "schemaVersion": 1, "fsLayers": [] })
        }),
        of("a manifest that is an index", UNREADABLE, |v| {
            *v = json!({ "schemaVersion": 2, "manifests": [] })
        }),
        of("a manifest that is a list", UNREADABLE, |v| *v = json!([])),
        of("a layer under zstd", "IMAGE_MEDIA_UNSUPPORTED", |v| {
            v["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+zstd");
        }),
        of("a layer that is elsewhere", "IMAGE_MEDIA_UNSUPPORTED", |v| {
            v["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar");
        }),
        of("an encrypted layer", "IMAGE_MEDIA_UNSUPPORTED", |v| {
            v["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted");
        }),
        of("a layer of no type", "IMAGE_MEDIA_UNSUPPORTED", |v| {
            v["layers"][0]["mediaType"] = json!("")
        }),
        of("a layer that is a program", "IMAGE_MEDIA_UNSUPPORTED", |v| {
            v["layers"][0]["mediaType"] = json!("application/octet-stream");
        }),
        of("a layer said to be longer", "IMAGE_SIZE_WRONG", |v| {
            v["layers"][0]["size"] = json!(999_999)
        }),
        of("a layer said to be shorter", "IMAGE_SIZE_WRONG", |v| {
            v["layers"][0]["size"] = json!(5)
        }),
        of(
            "a layer said to be larger than a disk",
            "IMAGE_LIMIT_EXCEEDED",
            |v| {
                v["layers"][0]["size"] = json!(u64::MAX / 2);
            },
        ),
        of(
            "a layer twice, whose sizes differ",
            "IMAGE_DOCUMENT_UNREADABLE|IMAGE_SIZE_WRONG",
            |v| {
                let mut again = v["layers"][0].clone();
                again["size"] = json!(1);
                v["layers"] = json!([v["layers"][0], again]);
            },
        ),
        of("a layer with another digest", "IMAGE_BLOB_MISSING", |v| {
            v["layers"][0]["digest"] = json!(digest(b"nothing"));
        }),
        of("more layers than contents", UNREADABLE, |v| {
            v["layers"] = json!([v["layers"][0], v["layers"][0]]);
        }),
        of("10,000 layers", "IMAGE_LIMIT_EXCEEDED", |v| {
            v["layers"] = Value::Array(vec![v["layers"][0].clone(); 10_000]);
        }),
    ]
}

fn configurations() -> Vec<Case> {
    const UNREADABLE: &str = "IMAGE_DOCUMENT_UNREADABLE";
    let of = |name: &str, want, twist: fn(&mut Value)| case(name, want, Image::config(twist).build());
    vec![
        of("a configuration that is a list", UNREADABLE, |v| *v = json!([])),
        of(
            "a configuration for another machine",
            "IMAGE_PLATFORM_FOREIGN",
            |v| v["architecture"] = json!("s390x"),
        ),
        of(
            "a configuration for another system",
            "IMAGE_PLATFORM_FOREIGN",
            |v| v["os"] = json!("windows"),
        ),
        of("too few digests of contents", UNREADABLE, |v| {
            v["rootfs"]["diff_ids"] = json!([])
        }),
        of("a digest of contents that is none", UNREADABLE, |v| {
            v["rootfs"]["diff_ids"] = json!(["x"])
        }),
        of("another digest of contents", "IMAGE_DIGEST_WRONG", |v| {
            v["rootfs"]["diff_ids"] = json!([digest(b"other")]);
        }),
        of("a variable without a name", UNREADABLE, |v| {
            v["config"]["Env"] = json!(["=x"])
        }),
        of("a NUL byte in an argument", UNREADABLE, |v| {
            v["config"]["Entrypoint"] = json!(["a\0b"])
        }),
        of("a NUL byte in a user", UNREADABLE, |v| {
            v["config"]["User"] = json!("a\0b")
        }),
        of("a NUL byte in a directory", UNREADABLE, |v| {
            v["config"]["WorkingDir"] = json!("/a\0b")
        }),
        of("a signal that is none", UNREADABLE, |v| {
            v["config"]["StopSignal"] = json!("SIGNOTHING")
        }),
        of("variables of 2 MiB", "IMAGE_LIMIT_EXCEEDED", |v| {
            v["config"]["Env"] = json!([format!("X={}", "y".repeat(2 << 20))]);
        }),
        of("100,000 arguments", "IMAGE_LIMIT_EXCEEDED", |v| {
            v["config"]["Cmd"] = Value::Array(vec![json!("argument"); 100_000]);
        }),
    ]
}

/// An image inside of `depth` indexes.
fn nested(depth: usize) -> Vec<u8> {
    let mut image = Image::default();
    let mut inner = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST, b"{}")] });
    for _ in 0..depth {
        let bytes = inner.to_string().into_bytes();
        inner = json!({ "schemaVersion": 2, "manifests": [descriptor(INDEX, &bytes)] });
        image.blobs.push(bytes);
    }
    let top = inner["manifests"].clone();
    image.index = Box::new(move |v| v["manifests"] = top.clone());
    image.build()
}
