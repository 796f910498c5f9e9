//! Checks that the compiler cannot make: the edges between rooms, their sizes, the purity of the
//! machines, and that every crate inherits the lints.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build::workspace;

/// The most lines of a source file.
const MAX_LINES: usize = 600;

/// Which rooms a room may depend on. An edge that is not here fails: add it in the change that needs
/// it, with its reason in the change's message.
const EDGES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sys", &[]),
    ("proto", &[]),
    ("keeper", &["model", "sys"]),
    ("telemetry", &[]),
    ("conntrack", &["model", "sys"]),
    ("network", &["model", "sys"]),
    ("cgroup", &["model"]),
    ("hypervisor", &["model", "sys"]),
    ("guest", &["model"]),
    ("store", &["model"]),
    ("image", &["model", "sys", "store"]),
    ("standby", &["model"]),
    (
        "instance",
        &[
            "model",
            "sys",
            "guest",
            "hypervisor",
            "network",
            "image",
            "store",
            "keeper",
            "cgroup",
        ],
    ),
    (
        "daemon",
        &[
            "model",
            "sys",
            "proto",
            "conntrack",
            "network",
            "hypervisor",
            "guest",
            "image",
            "store",
            "standby",
            "instance",
            "keeper",
            "cgroup",
        ],
    ),
    ("client", &["model", "proto"]),
    ("dormoused", &["daemon", "telemetry"]),
    ("dormouse", &["model", "client", "proto"]),
    ("dormouse-agent", &["guest", "sys"]),
    ("dormouse-keeper", &["keeper", "sys"]),
];

/// Files and folders that must stay pure: no runtime, clock, file or socket.
const PURE: &[&str] = &[
    "crates/model/src",
    "crates/standby/src",
    "crates/instance/src/machine",
    "crates/instance/src/adoption.rs",
    "crates/instance/src/addresses.rs",
    "crates/conntrack/src/sync.rs",
    "crates/conntrack/src/wire",
    "crates/network/src/link.rs",
    "crates/hypervisor/src/qemu/translate.rs",
    "crates/hypervisor/src/cloud_hypervisor/translate.rs",
    "crates/hypervisor/src/firecracker/translate.rs",
];

/// What a pure file may not name.
const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "Instant::now",
    "SystemTime",
    "async fn",
    ".await",
    "nix::",
    "libc::",
];

/// Words that name nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// Runs every check; prints each fault with its place.
pub(crate) fn run() -> Result<ExitCode> {
    let root = workspace();
    let mut faults = Vec::new();
    let sources = rust_files(&root)?;
    for file in &sources {
        check_file(&root, file, &mut faults)?;
    }
    check_manifests(&root, &mut faults)?;
    check_coverage(&root, &mut faults)?;
    for fault in &faults {
        println!("tidy: {fault}");
    }
    println!("tidy: {} files, {} faults", sources.len(), faults.len());
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// All Rust sources outside the target directories, in a stable order.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = ["crates", "bins", "sim", "xtask", "tests"]
        .iter()
        .map(|d| root.join(d))
        .collect();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn check_file(root: &Path, file: &Path, faults: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let place = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let generated = place.contains("/generated/");
    let lines = text.lines().count();
    if lines > MAX_LINES && !generated {
        faults.push(format!("{place}: {lines} lines, at most {MAX_LINES}"));
    }
    let stem = file
        .file_stem()
        .map(|s| s.to_string_lossy().into_owned())
        .unwrap_or_default();
    if EMPTY_NAMES.contains(&stem.as_str()) {
        faults.push(format!("{place}: the name says nothing"));
    }
    if !text.starts_with("//!") && !generated && !text.starts_with("#!") {
        faults.push(format!("{place}: does not open with what it is (`//!`)"));
    }
    if PURE.iter().any(|pure| place.starts_with(pure)) {
        // Tests at the end of a file may read golden files.
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or("");
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                faults.push(format!("{place}:{}: a pure file names `{word}`", number + 1));
            }
        }
    }
    for (number, line) in text.lines().enumerate() {
        if line.contains(concat!("TO", "DO")) && !line.contains('#') && !place.starts_with("xtask/src/tidy") {
            faults.push(format!("{place}:{}: a reminder without an issue", number + 1));
        }
    }
    Ok(())
}

fn check_manifests(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    for shelf in ["crates", "bins"] {
        for entry in fs::read_dir(root.join(shelf))? {
            let directory = entry?.path();
            let room = directory
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            let manifest = directory.join("Cargo.toml");
            let text =
                fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
            check_edges(&room, &text, faults);
            if !text.contains("[lints]\nworkspace = true") && room != "sys" {
                faults.push(format!(
                    "{shelf}/{room}: does not inherit the lints of the workspace"
                ));
            }
            if text.contains("path = \"../") {
                faults.push(format!(
                    "{shelf}/{room}: a dependency bypasses the workspace table"
                ));
            }
        }
    }
    let daemon = fs::read_to_string(root.join("bins/dormoused/Cargo.toml"))?;
    if daemon.contains("plant") {
        faults.push("bins/dormoused: planted faults must be absent from it".to_owned());
    }
    Ok(())
}

/// The workspace's own dependencies in the part of a manifest that ships.
fn check_edges(room: &str, manifest: &str, faults: &mut Vec<String>) {
    let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == room) else {
        faults.push(format!("{room}: has no line in the table of edges"));
        return;
    };
    let mut shipped = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            shipped = line == "[dependencies]";
        }
        let Some(rest) = line.strip_prefix("dormouse-").filter(|_| shipped) else {
            continue;
        };
        let name = rest.split(['.', ' ', '=']).next().unwrap_or("");
        if !allowed.contains(&name) {
            faults.push(format!(
                "{room}: depends on {name}, which the table of edges does not allow"
            ));
        }
    }
}

/// Every path that docs/coverage.md names must exist.
fn check_coverage(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let path = root.join("docs/coverage.md");
    if !path.is_file() {
        faults.push("docs/coverage.md: missing".to_owned());
        return Ok(());
    }
    for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
        let Some((_, rest)) = line.split_once("ours at `") else {
            continue;
        };
        let named = rest.split('`').next().unwrap_or("");
        let file = named.split("::").next().unwrap_or(named);
        if !root.join(file).exists() {
            faults.push(format!("docs/coverage.md:{}: {file} does not exist", number + 1));
        }
    }
    Ok(())
}
