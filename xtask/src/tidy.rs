//! Checks that the compiler cannot make: the edges between rooms, their sizes, the purity of the
//! machines, that every crate inherits the lints, and that the reference pages say what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build::workspace;

mod codes;

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
    // The store: `dormouse store check --path` reads one that no daemon has open.
    ("dormouse", &["model", "client", "proto", "store"]),
    ("dormouse-agent", &["guest", "sys"]),
    ("dormouse-keeper", &["keeper", "sys"]),
    // For tests alone: in no other room's list.
    ("disklab", &[]),
];

/// Files and folders that must stay pure: no runtime, clock, file or socket.
const PURE: &[&str] = &[
    "crates/model/src",
    "crates/standby/src",
    "crates/instance/src/machine",
    "crates/instance/src/adoption.rs",
    "crates/instance/src/ledger/book.rs",
    "crates/network/src/pool.rs",
    "crates/conntrack/src/sync.rs",
    "crates/conntrack/src/wire",
    "crates/network/src/link.rs",
    "crates/hypervisor/src/qemu/translate.rs",
    "crates/hypervisor/src/cloud_hypervisor/translate.rs",
    "crates/hypervisor/src/firecracker/translate.rs",
    "disklab/src/content.rs",
    "disklab/src/platter.rs",
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
    "async move",
    "async {",
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
    codes::check(&root, &sources, &mut faults)?;
    check_names(&root, &sources, &METRICS, &mut faults)?;
    check_configuration(&root, &mut faults)?;
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
    let mut open: Vec<PathBuf> = ["crates", "bins", "sim", "xtask", "tests", "disklab"]
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
    let tests = place.contains("/tests/") || place.ends_with("_tests.rs");
    if !tests && PURE.iter().any(|pure| place.starts_with(pure)) {
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
    let mut rooms = vec![root.join("disklab")];
    for shelf in ["crates", "bins"] {
        for entry in fs::read_dir(root.join(shelf))? {
            rooms.push(entry?.path());
        }
    }
    for directory in rooms {
        let room = directory
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let manifest = directory.join("Cargo.toml");
        let text =
            fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
        check_edges(&room, &text, faults);
        check_plants(&room, &text, faults);
        let place = directory.strip_prefix(root).unwrap_or(&directory).display();
        if !text.contains("[lints]\nworkspace = true") && room != "sys" {
            faults.push(format!("{place}: does not inherit the lints of the workspace"));
        }
        if text.contains("path = \"../") {
            faults.push(format!("{place}: a dependency bypasses the workspace table"));
        }
    }
    let daemon = fs::read_to_string(root.join("bins/dormoused/Cargo.toml"))?;
    if daemon.contains("plant") {
        faults.push("bins/dormoused: planted faults must be absent from it".to_owned());
    }
    Ok(())
}

/// Planted faults and fault points are asked for by a harness, by name: no manifest that ships switches
/// them on, neither by default nor for a dependency.
fn check_plants(room: &str, manifest: &str, faults: &mut Vec<String>) {
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let by_default = section == "[features]" && line.trim_start().starts_with("default");
        let of_dependency =
            section.starts_with("[dependencies") || section.starts_with("[build-dependencies");
        if (by_default || of_dependency) && line.contains("plant") {
            faults.push(format!("{room}: switches planted faults on: {}", line.trim()));
        }
    }
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

/// Every path that docs/coverage.md names must exist and hold the item that is named with it, and every row
/// must say one of the four things that can be said.
fn check_coverage(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    const VERDICTS: [&str; 4] = [
        "ours at `",
        "refused because ",
        "not applicable because ",
        "later: issue ",
    ];
    let Some(page) = read_page(root, "docs/coverage.md", faults)? else {
        return Ok(());
    };
    for (number, line) in page.lines().enumerate() {
        let place = format!("docs/coverage.md:{}", number + 1);
        if line.starts_with("| `") && !VERDICTS.iter().any(|verdict| line.contains(verdict)) {
            faults.push(format!("{place}: says none of {VERDICTS:?}"));
        }
        for rest in line.split("ours at `").skip(1) {
            let named = rest.split('`').next().unwrap_or("");
            let mut parts = named.split("::");
            let file = parts.next().unwrap_or(named);
            let Ok(text) = fs::read_to_string(root.join(file)) else {
                faults.push(format!("{place}: {file} does not exist"));
                continue;
            };
            for item in parts.filter(|item| !words(&text).any(|word| word == *item)) {
                faults.push(format!("{place}: {file} has no {item}"));
            }
        }
    }
    Ok(())
}

/// The text of a page of docs; a fault when it is missing.
fn read_page(root: &Path, page: &str, faults: &mut Vec<String>) -> Result<Option<String>> {
    let path = root.join(page);
    if !path.is_file() {
        faults.push(format!("{page}: missing"));
        return Ok(None);
    }
    fs::read_to_string(&path)
        .with_context(|| format!("reading {page}"))
        .map(Some)
}

/// The words of a text, as a compiler would see them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
}

/// Names that a page lists, one a row, and how they look in the code.
struct Reference {
    page: &'static str,
    what: &'static str,
    is_name: fn(&str) -> bool,
}

/// Metrics: `dormouse`, a room, and what is measured.
const METRICS: Reference = Reference {
    page: "docs/metrics.md",
    what: "metric",
    is_name: |text| {
        text.starts_with("dormouse_")
            && text.matches('_').count() >= 2
            && !text.ends_with('_')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    },
};

/// The code of a file that ships, without its tests; `None` for a file that does not ship.
fn shipped(root: &Path, file: &Path) -> Result<Option<(String, String)>> {
    let place = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let room = place.starts_with("crates/") || place.starts_with("bins/");
    let unshipped = ["/tests/", "/examples/", "/generated/", "_tests.rs", "/tests.rs"];
    if !room || unshipped.iter().any(|part| place.contains(part)) {
        return Ok(None);
    }
    let text = fs::read_to_string(file).with_context(|| format!("reading {place}"))?;
    let code = text.split("#[cfg(test)]").next().unwrap_or("").to_owned();
    Ok(Some((place, code)))
}

/// The strings of a piece of code, one line at a time: every second piece between quotes is one; an escaped
/// quote spoils its own line only.
fn strings(code: &str) -> impl Iterator<Item = &str> {
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split('"').skip(1).step_by(2))
}

/// The page has a row for every name that a string of the shipped code spells, and for no other.
fn check_names(
    root: &Path,
    sources: &[PathBuf],
    reference: &Reference,
    faults: &mut Vec<String>,
) -> Result<()> {
    let Reference { page, what, is_name } = reference;
    let mut used = BTreeMap::new();
    for file in sources {
        let Some((place, code)) = shipped(root, file)? else {
            continue;
        };
        for name in strings(&code).filter(|text| is_name(text)) {
            used.entry(name.to_owned()).or_insert_with(|| place.clone());
        }
    }
    let Some(text) = read_page(root, page, faults)? else {
        return Ok(());
    };
    let listed: BTreeSet<&str> = first_cells(&text).filter(|cell| is_name(cell)).collect();
    for (name, place) in used.iter().filter(|(name, _)| !listed.contains(name.as_str())) {
        faults.push(format!("{page}: no row for the {what} {name} of {place}"));
    }
    for name in listed.iter().filter(|name| !used.contains_key(**name)) {
        faults.push(format!("{page}: no code has the {what} {name}"));
    }
    Ok(())
}

/// What stands in backquotes at the beginning of each row of a page's tables.
fn first_cells(page: &str) -> impl Iterator<Item = &str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
}

/// The page of configuration has a row for every key, with its variable, and for no other.
fn check_configuration(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    const PAGE: &str = "docs/configuration.md";
    let path = root.join("crates/daemon/src/config/raw.rs");
    let source = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let keys = configuration_keys(&source);
    let Some(page) = read_page(root, PAGE, faults)? else {
        return Ok(());
    };
    // Rows of flags are on the page too.
    let listed: BTreeSet<&str> = first_cells(&page)
        .filter(|cell| !cell.starts_with("--"))
        .collect();
    for key in &keys {
        let variable = format!("`DORMOUSE_{}`", key.to_uppercase().replace('.', "__"));
        if !listed.contains(key.as_str()) {
            faults.push(format!("{PAGE}: no row for the key {key}"));
        }
        if !page.contains(&variable) {
            faults.push(format!("{PAGE}: does not name {variable}"));
        }
    }
    for key in listed.iter().filter(|key| !keys.contains(**key)) {
        faults.push(format!("{PAGE}: there is no key {key}"));
    }
    Ok(())
}

/// The keys of the structures `RawConfig` (whose fields of a type `Raw…` are sections) and `Raw…`.
fn configuration_keys(source: &str) -> BTreeSet<String> {
    let mut section: Option<String> = None;
    let mut keys = BTreeSet::new();
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("pub struct Raw") {
            section = Some(name.trim_end_matches(" {").to_lowercase());
        } else if line.starts_with('}') {
            section = None;
        }
        let field = line
            .strip_prefix("    pub ")
            .and_then(|field| field.split_once(": "));
        match (&section, field) {
            (Some(name), Some((field, kind))) if name == "config" && !kind.starts_with("Raw") => {
                keys.insert(field.to_owned());
            }
            (Some(name), Some((field, _))) if name != "config" => {
                keys.insert(format!("{name}.{field}"));
            }
            (_, _) => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_switches_plants_on_is_found() {
        for (manifest, wrong) in [
            ("[features]\nplant = [\"dormouse-sys/plant\"]\n", 0),
            ("[features]\ndefault = [\"plant\"]\n", 1),
            (
                "[dependencies]\ndormouse-sys = { workspace = true, features = [\"plant\"] }\n",
                1,
            ),
            (
                "[dev-dependencies]\ndormouse-sys = { workspace = true, features = [\"plant\"] }\n",
                0,
            ),
        ] {
            let mut faults = Vec::new();
            check_plants("x", manifest, &mut faults);
            assert_eq!(faults.len(), wrong, "{manifest}");
        }
    }

    #[test]
    fn keys_are_read_from_the_structures() {
        let source = "pub struct RawConfig {\n    pub run: PathBuf,\n    pub api: RawApi,\n}\n\
                      pub struct RawApi {\n    pub socket: String,\n}\nimpl X {\n    pub fn f() {}\n}\n";
        let keys: Vec<String> = configuration_keys(source).into_iter().collect();
        assert_eq!(keys, ["api.socket", "run"]);
    }

    #[test]
    fn names_are_told_from_what_only_looks_like_them() {
        for (reference, text, want) in [
            (&METRICS, "dormouse_observer_synced", true),
            (&METRICS, "dormouse_dm", false),
            (&METRICS, "dormouse_network=debug", false),
        ] {
            assert_eq!((reference.is_name)(text), want, "{text}");
        }
    }
}
