//! Entries of a layer: names, links, kinds, numbers.

#![allow(
    clippy::too_many_lines,
    clippy::semicolon_if_nothing_returned,
    reason = "a function is a table of cases"
)]

use super::super::archive::{Entry, Image, Layer, directory, entry, file, hard_link, pax, symlink};
use super::{Case, case};

/// All of them.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut of = |name: &str, want: &'static str, entries: &[Entry]| {
        cases.push(case(name, want, Image::of(vec![Layer::of(entries)]).build()));
    };
    names(&mut of);
    links(&mut of);
    kinds(&mut of);
    numbers(&mut of);
    let two =
        |first: &[Entry], second: &[Entry]| Image::of(vec![Layer::of(first), Layer::of(second)]).build();
    for (name, want, first, second) in [
        (
            "a whiteout of nothing",
            "IMAGE_ENTRY_WHITEOUT",
            vec![file("a")],
            vec![file(".wh.")],
        ),
        (
            "a whiteout of the directory itself",
            "IMAGE_ENTRY_WHITEOUT",
            vec![file("a")],
            vec![file("d/.wh..")],
        ),
        (
            "a whiteout of the parent",
            "IMAGE_ENTRY_WHITEOUT|OK",
            vec![file("a")],
            vec![directory("d"), file("d/.wh...")],
        ),
        (
            "a whiteout outside",
            "IMAGE_ENTRY_ESCAPES",
            vec![symlink("up", "..")],
            vec![file("up/.wh.etc")],
        ),
        (
            "a whiteout with dots",
            "IMAGE_ENTRY_ESCAPES",
            vec![file("a")],
            vec![file("../.wh.a")],
        ),
        (
            "a whiteout of what is not there",
            "OK",
            vec![file("a")],
            vec![file(".wh.b")],
        ),
        (
            "everything whited out",
            "OK",
            vec![file("a")],
            vec![file(".wh..wh..opq")],
        ),
        (
            "a link through a lower layer's link",
            "IMAGE_ENTRY_ESCAPES",
            vec![symlink("up", "../..")],
            vec![file("up/x")],
        ),
        (
            "a directory over a lower layer's link out",
            "OK",
            vec![symlink("up", "/../..")],
            vec![directory("up"), file("up/x")],
        ),
    ] {
        cases.push(case(name, want, two(&first, &second)));
    }
    cases
}

type Add<'a> = dyn FnMut(&str, &'static str, &[Entry]) + 'a;

fn names(of: &mut Add<'_>) {
    let long = |length: usize| pax(&[("path", "x".repeat(length).as_bytes())]);
    let deep = |depth: usize| pax(&[("path", "d/".repeat(depth).as_bytes())]);
    of(
        "a name that leads up",
        "IMAGE_ENTRY_ESCAPES",
        &[file("../outside")],
    );
    of(
        "a name that leads up later",
        "IMAGE_ENTRY_ESCAPES",
        &[file("a/b/../../../outside")],
    );
    of(
        "a name that leads up and back",
        "IMAGE_ENTRY_ESCAPES",
        &[file("a/../a")],
    );
    of(
        "an absolute name",
        "IMAGE_ENTRY_ABSOLUTE",
        &[file("/etc/outside")],
    );
    of(
        "an absolute name with two slashes",
        "IMAGE_ENTRY_ABSOLUTE",
        &[file("//etc/outside")],
    );
    of(
        "an absolute name in an extended header",
        "IMAGE_ENTRY_ABSOLUTE",
        &[pax(&[("path", b"/etc/outside")]), file("a")],
    );
    of(
        "a name that leads up in an extended header",
        "IMAGE_ENTRY_ESCAPES",
        &[pax(&[("path", b"../a")]), file("a")],
    );
    of(
        "a name with a NUL byte",
        "IMAGE_ENTRY_NAME",
        &[pax(&[("path", b"a\0b")]), file("a")],
    );
    of("an empty name", "IMAGE_ENTRY_NAME", &[file("")]);
    of("a file that is the root", "IMAGE_ENTRY_NAME", &[file(".")]);
    of("a name of 256 bytes", "IMAGE_ENTRY_NAME", &[long(256), file("a")]);
    of("a name of 255 bytes", "OK", &[long(255), file("a")]);
    of(
        "a path of 5,000 bytes",
        "IMAGE_ENTRY_NAME",
        &[long(5000), file("a")],
    );
    of(
        "a path of 300 directories",
        "IMAGE_ENTRY_NAME",
        &[deep(300), directory("a")],
    );
    of("a path of 200 directories", "OK", &[deep(200), directory("a")]);
    of("a name that is no text", "OK", &[file(b"\xff\xfe\x80")]);
    of("a name of control characters", "OK", &[file(b"\x1b[31m\r\n")]);
    of("one name twice", "OK", &[file("a"), file("a")]);
    of(
        "one name as everything",
        "OK",
        &[
            file("a"),
            directory("a"),
            symlink("a", "b"),
            entry("a", b'6'),
            file("a"),
        ],
    );
    of(
        "a file for a directory",
        "IMAGE_ENTRY_THROUGH_FILE",
        &[file("a"), file("a/b")],
    );
    of(
        "a fifo for a directory",
        "IMAGE_ENTRY_THROUGH_FILE",
        &[entry("a", b'6'), file("a/b")],
    );
}

fn links(of: &mut Add<'_>) {
    of(
        "a file through a link up",
        "IMAGE_ENTRY_ESCAPES",
        &[symlink("up", "../../.."), file("up/outside")],
    );
    of(
        "a file through a link to above the root",
        "IMAGE_ENTRY_ESCAPES",
        &[symlink("up", "/.."), file("up/outside")],
    );
    of(
        "a file through an absolute link",
        "OK",
        &[symlink("etc", "/tmp"), file("etc/x")],
    );
    of(
        "a file through links that add up",
        "IMAGE_ENTRY_ESCAPES",
        &[
            directory("a"),
            symlink("a/up", ".."),
            symlink("b", "a/up/.."),
            file("b/x"),
        ],
    );
    of(
        "a directory through a link up",
        "IMAGE_ENTRY_ESCAPES",
        &[symlink("up", ".."), directory("up/x/y")],
    );
    of(
        "a link through a link up",
        "IMAGE_ENTRY_ESCAPES",
        &[symlink("up", ".."), symlink("up/x", "y")],
    );
    of(
        "links in a circle",
        "IMAGE_ENTRY_LINK_LOOP",
        &[symlink("a", "b"), symlink("b", "a"), file("a/x")],
    );
    of(
        "a link to itself",
        "IMAGE_ENTRY_LINK_LOOP",
        &[symlink("a", "a"), file("a/x")],
    );
    of(
        "a link to nothing",
        "IMAGE_ENTRY_SYMLINK_TARGET",
        &[symlink("a", "")],
    );
    of(
        "a link to 5,000 bytes",
        "IMAGE_ENTRY_SYMLINK_TARGET",
        &[
            pax(&[("linkpath", "x".repeat(5000).as_bytes())]),
            symlink("a", "b"),
        ],
    );
    of(
        "a link to a NUL byte",
        "IMAGE_ENTRY_SYMLINK_TARGET",
        &[pax(&[("linkpath", b"a\0b")]), symlink("a", "b")],
    );
    of(
        "a link that only points out",
        "OK",
        &[symlink("a", "../../../../etc/passwd")],
    );
    of(
        "a hard link out",
        "IMAGE_ENTRY_LINK_TARGET",
        &[hard_link("a", "../outside")],
    );
    of(
        "an absolute hard link",
        "IMAGE_ENTRY_LINK_TARGET",
        &[hard_link("a", "/etc/passwd")],
    );
    of(
        "a hard link to nothing",
        "IMAGE_ENTRY_LINK_TARGET",
        &[hard_link("a", "")],
    );
    of(
        "a hard link to what is not there",
        "IMAGE_ENTRY_LINK_TARGET",
        &[hard_link("a", "b")],
    );
    of(
        "a hard link to what comes later",
        "IMAGE_ENTRY_LINK_TARGET",
        &[hard_link("a", "b"), file("b")],
    );
    of(
        "a hard link to a directory",
        "IMAGE_ENTRY_LINK_TARGET",
        &[directory("d"), hard_link("a", "d")],
    );
    of(
        "a hard link through a link out",
        "IMAGE_ENTRY_ESCAPES",
        &[symlink("up", ".."), hard_link("a", "up/etc")],
    );
    of(
        "a hard link to a link out, then written",
        "OK",
        &[symlink("l", "/etc/passwd"), hard_link("h", "l"), file("h")],
    );
    of("a hard link to itself", "OK", &[file("a"), hard_link("a", "a")]);
}

fn kinds(of: &mut Add<'_>) {
    of("a block device", "IMAGE_ENTRY_DEVICE", &[entry("sda", b'4')]);
    of(
        "a character device",
        "IMAGE_ENTRY_DEVICE",
        &[entry("etc/null", b'3')],
    );
    of(
        "a device below dev",
        "OK",
        &[directory("dev"), entry("dev/null", b'3')],
    );
    of(
        "a device below dev by a link",
        "IMAGE_ENTRY_DEVICE|OK",
        &[symlink("dev", "etc"), entry("dev/null", b'3')],
    );
    of("a fifo", "OK", &[entry("fifo", b'6')]);
    of(
        "an entry of no known kind",
        "IMAGE_ENTRY_KIND",
        &[entry("a", b'Q')],
    );
    of(
        "a part of several volumes",
        "IMAGE_ENTRY_KIND",
        &[entry("a", b'M')],
    );
    of("the label of a volume", "IMAGE_ENTRY_KIND", &[entry("a", b'V')]);
    of("a sparse file", "IMAGE_ENTRY_KIND", &[entry("a", b'S')]);
    of(
        "a sparse file of the extended kind",
        "IMAGE_ENTRY_KIND",
        &[pax(&[("GNU.sparse.major", b"1")]), file("a")],
    );
    of(
        "a file with set-user-id",
        "OK",
        &[Entry {
            owner: b"0000000\0".to_vec(),
            ..file("su")
        }],
    );
}

fn numbers(of: &mut Add<'_>) {
    let sized = |size: &[u8]| Entry {
        size: Some(size.to_vec()),
        ..file("a")
    };
    let owned = |owner: &[u8]| Entry {
        owner: owner.to_vec(),
        ..file("a")
    };
    of(
        "a size beyond the archive",
        "IMAGE_LAYER_UNREADABLE",
        &[sized(b"00000100000\0")],
    );
    of(
        "a size of 8 GiB",
        "IMAGE_LAYER_UNREADABLE",
        &[sized(b"77777777777\0")],
    );
    of(
        "a size that is no number",
        "IMAGE_LAYER_UNREADABLE|IMAGE_ENTRY_HEADER",
        &[sized(b"9x9x9x9x9x9\0")],
    );
    of(
        "a size below nothing",
        "IMAGE_LAYER_UNREADABLE|IMAGE_ENTRY_HEADER",
        &[sized(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")],
    );
    of(
        "a size of 2^63",
        "IMAGE_LAYER_UNREADABLE|IMAGE_ENTRY_HEADER",
        &[sized(b"\x80\0\0\0\x80\0\0\0\0\0\0\0")],
    );
    of(
        "a header with a wrong checksum",
        "IMAGE_LAYER_UNREADABLE",
        &[Entry {
            sealed: false,
            ..file("a")
        }],
    );
    of(
        "an owner that is no number",
        "IMAGE_ENTRY_HEADER",
        &[owned(b"zzzzzzz\0")],
    );
    of(
        "an owner beyond 32 bits",
        "IMAGE_ENTRY_HEADER",
        &[pax(&[("uid", b"4294967296")]), file("a")],
    );
    of(
        "an owner that means no change",
        "IMAGE_ENTRY_HEADER",
        &[pax(&[("uid", b"4294967295")]), file("a")],
    );
    of(
        "an extended size that lies",
        "IMAGE_ENTRY_EXTENSION",
        &[pax(&[("size", b"99999")]), file("a")],
    );
    of(
        "an extended size that is no number",
        "IMAGE_ENTRY_EXTENSION",
        &[pax(&[("size", b"-1")]), file("a")],
    );
    of(
        "an extended header of 2 MiB",
        "IMAGE_ENTRY_EXTENSION",
        &[pax(&[("comment", &vec![b'x'; 2 << 20])]), file("a")],
    );
    of(
        "an extended header that is none",
        "IMAGE_ENTRY_EXTENSION",
        &[
            Entry {
                contents: b"13 size=99999\n".to_vec(),
                ..entry("p", b'x')
            },
            file("a"),
        ],
    );
    of(
        "a long name of 2 MiB",
        "IMAGE_ENTRY_EXTENSION",
        &[
            Entry {
                contents: vec![b'x'; 2 << 20],
                ..entry("././@LongLink", b'L')
            },
            file("a"),
        ],
    );
    of(
        "an extended header for nothing",
        "OK",
        &[file("a"), pax(&[("path", b"b")])],
    );
}
