//! Bytes to begin with: what the right programs say.

use std::path::Path;
use std::{fs, io};

mod durable;

/// The seeds of a target.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "netlink" => files("crates/conntrack/tests/captures"),
        "agent" => files("crates/guest/tests/golden/v1"),
        "qmp" => vec![
            b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}}}\r\n".to_vec(),
            b"{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": 2}\r\n".to_vec(),
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 3}\r\n".to_vec(),
            b"{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n"
                .to_vec(),
        ],
        "image" => vec![tar(), documents()],
        "records" => durable::records(),
        "manifests" => durable::manifests(),
        _ => Vec::new(),
    }
}

/// Puts the seeds of a target where libFuzzer looks for what to begin with.
///
/// # Panics
/// When they cannot be written: a fuzzer without them finds its way into nothing.
pub fn place(target: &str) {
    write(target).expect("placing seeds");
}

fn write(target: &str) -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&corpus)?;
    for (number, seed) in of(target).into_iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number:03}")), seed)?;
    }
    Ok(())
}

/// All small files below a folder of the repository.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let (mut found, mut open) = (Vec::new(), vec![root]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if let Ok(bytes) = std::fs::read(path) {
                found.push(bytes.into_iter().take(16 << 10).collect());
            }
        }
    }
    found.sort();
    found
}

/// An archive with a file, an extended header and a link.
fn tar() -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, link, contents) in [
        ("bin/", b'5', "", ""),
        ("pax", b'x', "", "19 path=bin/longer\n"),
        ("bin/a", b'0', "", "contents"),
        ("bin/b", b'2', "../etc", ""),
        ("bin/c", b'1', "bin/longer", ""),
        ("bin/.wh.d", b'0', "", ""),
    ] {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000755\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(contents.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// An index, a manifest and a configuration, with NUL bytes between.
fn documents() -> Vec<u8> {
    let digest = format!("sha256:{}", "a".repeat(64));
    format!(
        "{{\"schemaVersion\":2,\"manifests\":[{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
         \"digest\":\"{digest}\",\"size\":5}}]}}\0{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\
         \"application/vnd.oci.image.config.v1+json\",\"digest\":\"{digest}\",\"size\":5}},\"layers\":[{{\
         \"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"{digest}\",\"size\":5}}]}}\0\
         {{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Env\":[\"A=b\"],\"Cmd\":[\"x\"],\
         \"StopSignal\":\"SIGTERM\"}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{digest}\"]}}}}"
    )
    .into_bytes()
}
