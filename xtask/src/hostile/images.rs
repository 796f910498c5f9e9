//! Images: archives that are damaged, lie, lead out, or are too much.

#![allow(
    clippy::too_many_lines,
    clippy::semicolon_if_nothing_returned,
    reason = "a function is a table of cases"
)]

mod documents;
mod entries;

use anyhow::Result;

use super::archive::{
    CONFIG, Entry, GZIP, Image, Layer, PLAIN, descriptor, directory, entry, file, gzip, hard_link, open_tar,
    symlink, tar, with,
};
use super::bed::Bed;

const AREA: &str = "images";

/// What the bed allows an image, so that bombs are small.
pub(crate) const LIMITS: [(&str, &str); 4] = [
    ("DORMOUSE_IMAGES__MAX_UNPACKED", "64MiB"),
    ("DORMOUSE_IMAGES__MAX_PACKED", "16MiB"),
    ("DORMOUSE_IMAGES__MAX_ENTRIES", "5000"),
    ("DORMOUSE_IMAGES__MAX_RATIO", "20"),
];

/// One case: its name, the code, the bytes to import.
struct Case {
    name: String,
    want: &'static str,
    bytes: Vec<u8>,
}

fn case(name: &str, want: &'static str, bytes: Vec<u8>) -> Case {
    Case {
        name: name.to_owned(),
        want,
        bytes,
    }
}

/// Imports every archive of the table.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    let mut cases = archives()?;
    cases.extend(documents::cases());
    cases.extend(blobs()?);
    cases.extend(layers()?);
    cases.extend(entries::cases());
    cases.extend(amounts()?);
    let place = bed.lab.disk_directory().join("hostile.tar");
    for case in cases {
        std::fs::write(&place, &case.bytes)?;
        bed.case(AREA, &case.name, case.want, |bed| bed.lab.import(&place))?;
        let _none_when_refused = bed.remove_image("hostile:case");
    }
    std::fs::remove_file(&place)?;
    paths(bed)
}

/// What the request itself names.
fn paths(bed: &mut Bed) -> Result<()> {
    for (name, path, want) in [
        ("a relative path", "image.tar", "REQUEST_INVALID"),
        ("an empty path", "", "REQUEST_INVALID"),
        ("a path to nothing", "/nonexistent/image.tar", "IMAGE_IO"),
        ("a path with a NUL byte", "/tmp/a\0b", "REQUEST_INVALID|IMAGE_IO"),
        ("a device without an end", "/dev/zero", "IMAGE_LAYOUT_FOREIGN"),
        ("a device without contents", "/dev/null", "IMAGE_LAYOUT_FOREIGN"),
        ("a directory that is no layout", "/proc", "IMAGE_LAYOUT_FOREIGN"),
        (
            "a file of the kernel",
            "/proc/self/mem",
            "IMAGE_LAYOUT_FOREIGN|IMAGE_IO",
        ),
    ] {
        bed.case(AREA, name, want, |bed| bed.lab.import(path.as_ref()))?;
    }
    let fifo = bed.lab.disk_directory().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    bed.case(
        AREA,
        "a fifo that nobody writes to",
        "IMAGE_LAYOUT_FOREIGN",
        |bed| bed.lab.import(&fifo),
    )?;
    std::fs::remove_file(&fifo)?;
    Ok(())
}

fn archives() -> Result<Vec<Case>> {
    const FOREIGN: &str = "IMAGE_LAYOUT_FOREIGN";
    let good = Image::default().build();
    let part = |share: usize| good.get(..good.len() * share / 8).unwrap_or_default().to_vec();
    let docker = tar(&[with("manifest.json", b"[]".to_vec())]);
    let without_layout = Image {
        layout: None,
        ..Image::default()
    };
    let layout = |text: &str| Image {
        layout: Some(text.as_bytes().to_vec()),
        ..Image::default()
    };
    let many: Vec<Entry> = (0..10_001).map(|number| file(format!("f{number}"))).collect();
    let mut cases = vec![
        case("nothing", FOREIGN, Vec::new()),
        case("text", FOREIGN, b"hello".repeat(1000)),
        case("zeros", FOREIGN, vec![0; 100_000]),
        case("under gzip", FOREIGN, gzip(&good)?),
        case(
            "under zstd",
            FOREIGN,
            [&[0x28, 0xb5, 0x2f, 0xfd][..], &good].concat(),
        ),
        case("of another program", FOREIGN, docker),
        case("without oci-layout", "OK", without_layout.build()),
        case(
            "of a later layout",
            FOREIGN,
            layout(r#"{"imageLayoutVersion":"9.0.0"}"#).build(),
        ),
        case("with a layout that is no JSON", FOREIGN, layout("{").build()),
        case("with 10,001 files", "IMAGE_LIMIT_EXCEEDED", tar(&many)),
        case(
            "without an index",
            FOREIGN,
            tar(&[with("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())]),
        ),
    ];
    for share in 1..7 {
        let want = "IMAGE_LAYOUT_FOREIGN|IMAGE_BLOB_MISSING|IMAGE_DOCUMENT_UNREADABLE";
        cases.push(case(&format!("cut after {share} of 8 parts"), want, part(share)));
    }
    for (name, before) in [
        ("a link for an index", symlink("index.json", "/etc/passwd")),
        ("a fifo for an index", entry("index.json", b'6')),
        ("a directory for an index", directory("index.json")),
        ("a hard link for an index", hard_link("index.json", "/etc/passwd")),
        ("files outside", file("../../outside")),
        ("an absolute file", file("/etc/outside")),
    ] {
        let image = Image {
            before: vec![before],
            ..Image::default()
        };
        // Only what a layout has is read of it, and nothing is unpacked.
        cases.push(case(&format!("with {name} in front"), "OK", image.build()));
    }
    Ok(cases)
}

/// Blobs whose bytes are not what their names say.
fn blobs() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, place) in [("configuration", 0), ("manifest", 1), ("layer", 2)] {
        let image = Image {
            layers: vec![Layer::zipped(&tar(&[file("a")]))?],
            ..Image::default()
        };
        let mut bytes = image.build();
        // Entries are: oci-layout, index.json, then the blobs.
        if let Some(at) = nth_contents(&bytes, place + 2)
            && let Some(byte) = bytes.get_mut(at + 12)
        {
            *byte ^= 0x20;
        }
        cases.push(case(
            &format!("one bit of the {name} flipped"),
            "IMAGE_DIGEST_WRONG",
            bytes,
        ));
    }
    let foreign = descriptor(CONFIG, b"\xff\xfe\x00");
    let mut image = Image::manifest(move |v| v["config"] = foreign.clone());
    image.blobs.push(b"\xff\xfe\x00".to_vec());
    cases.push(case(
        "a configuration that is no text",
        "IMAGE_DOCUMENT_UNREADABLE",
        image.build(),
    ));
    Ok(cases)
}

/// Where the contents of the entry number `wanted` begin.
fn nth_contents(archive: &[u8], wanted: usize) -> Option<usize> {
    let mut at = 0;
    for _ in 0..wanted {
        let size = archive.get(at + 124..at + 135)?;
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 8).ok()?;
        at += 512 + size.next_multiple_of(512);
    }
    Some(at + 512)
}

/// Layers whose packing is wrong.
fn layers() -> Result<Vec<Case>> {
    const UNREADABLE: &str = "IMAGE_LAYER_UNREADABLE";
    let contents = tar(&[file("a"), with("b", (0..=255).cycle().take(100_000).collect())]);
    let zipped = Layer::zipped(&contents)?;
    let packed = |bytes: Vec<u8>| Layer {
        packed: bytes,
        ..zipped.clone()
    };
    let cut = |share: usize| {
        zipped
            .packed
            .get(..zipped.packed.len() * share / 4)
            .unwrap_or_default()
            .to_vec()
    };
    let mut damaged = zipped.packed.clone();
    if let Some(byte) = damaged.get_mut(40) {
        *byte ^= 0xff;
    }
    let mut wrong_sum = zipped.packed.clone();
    let end = wrong_sum.len();
    if let Some(byte) = wrong_sum.get_mut(end - 6) {
        *byte ^= 1;
    }
    let typed = |media_type: &str, layer: &Layer| Layer {
        media_type: media_type.to_owned(),
        ..layer.clone()
    };
    let plain = Layer::plain(contents.clone());
    let of = |name: &str, want, layer: Layer| case(name, want, Image::of(vec![layer]).build());
    Ok(vec![
        of("gzip cut at a quarter", UNREADABLE, packed(cut(1))),
        of("gzip cut at the half", UNREADABLE, packed(cut(2))),
        of("gzip without its end", UNREADABLE, packed(cut(3))),
        of(
            "gzip of which only the header is there",
            UNREADABLE,
            packed(zipped.packed.get(..10).unwrap_or_default().to_vec()),
        ),
        of(
            "gzip damaged inside",
            "IMAGE_LAYER_UNREADABLE|IMAGE_DIGEST_WRONG|IMAGE_ENTRY_HEADER",
            packed(damaged),
        ),
        of("gzip with a wrong checksum", UNREADABLE, packed(wrong_sum)),
        of(
            "gzip with garbage behind it",
            UNREADABLE,
            packed([zipped.packed.clone(), b"garbage behind the end".to_vec()].concat()),
        ),
        of(
            "gzip with another one behind it",
            "IMAGE_DIGEST_WRONG",
            packed([zipped.packed.clone(), gzip(&contents)?].concat()),
        ),
        of(
            "nothing where gzip should be",
            "IMAGE_LAYER_UNREADABLE|IMAGE_DIGEST_WRONG",
            packed(Vec::new()),
        ),
        of("a plain archive said to be gzip", UNREADABLE, typed(GZIP, &plain)),
        of(
            "gzip said to be plain",
            "IMAGE_LAYER_UNREADABLE|IMAGE_DIGEST_WRONG",
            typed(PLAIN, &zipped),
        ),
        of(
            "text for a layer",
            UNREADABLE,
            Layer::plain(b"this is no archive at all ".repeat(100)),
        ),
        of(
            "an archive cut in its contents",
            UNREADABLE,
            Layer::plain(contents.get(..5000).unwrap_or_default().to_vec()),
        ),
        of(
            "an archive cut in its header",
            UNREADABLE,
            Layer::plain(contents.get(..200).unwrap_or_default().to_vec()),
        ),
        of(
            "an archive without its end",
            "OK",
            Layer::plain(open_tar(&[file("a")])),
        ),
        of("a layer with nothing in it", "OK", Layer::plain(tar(&[]))),
    ])
}

/// Bombs of every kind.
fn amounts() -> Result<Vec<Case>> {
    const EXCEEDED: &str = "IMAGE_LIMIT_EXCEEDED";
    let zeros = |mib: usize| vec![0_u8; mib << 20];
    let noise: Vec<u8> = (0..5_u32 << 20)
        .map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let bomb = tar(&[with("zeros", zeros(70))]);
    let ratio = tar(&[with("zeros", zeros(48))]);
    let padded = [tar(&[file("a")]), zeros(70)].concat();
    let many: Vec<Entry> = (0..5001).map(|number| file(format!("f{number}"))).collect();
    let half: Vec<Entry> = (0..2600).map(|number| file(format!("f{number}"))).collect();
    let part = Layer::zipped(&tar(&[with("part", noise.clone())]))?;
    Ok(vec![
        case(
            "70 MiB of zeros under gzip",
            EXCEEDED,
            Image::of(vec![Layer::zipped(&bomb)?]).build(),
        ),
        case(
            "a layer of which one part in 1,000 is there",
            EXCEEDED,
            Image::of(vec![Layer::zipped(&ratio)?]).build(),
        ),
        case(
            "zeros behind the end of the archive",
            EXCEEDED,
            Image::of(vec![Layer::zipped(&padded)?]).build(),
        ),
        case(
            "5,001 entries",
            EXCEEDED,
            Image::of(vec![Layer::of(&many)]).build(),
        ),
        case(
            "5,200 entries in two layers",
            EXCEEDED,
            Image::of(vec![Layer::of(&half), Layer::of(&half)]).build(),
        ),
        case(
            "20 MiB packed",
            EXCEEDED,
            Image::of(vec![Layer::plain(tar(&[with("a", zeros(20))]))]).build(),
        ),
        case(
            "129 layers",
            EXCEEDED,
            Image::of(vec![Layer::of(&[file("a")]); 129]).build(),
        ),
        case(
            "128 layers",
            "OK",
            Image::of(vec![Layer::of(&[file("a")]); 128]).build(),
        ),
        case(
            "five layers of 5 MiB of noise",
            "OK|IMAGE_LIMIT_EXCEEDED",
            Image::of(vec![part; 5]).build(),
        ),
    ])
}
