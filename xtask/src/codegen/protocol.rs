//! The Rust code of proto/ and its descriptor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

/// What is generated, and where in the workspace it is kept.
const KEPT: [(&str, &str); 2] = [
    ("dormouse.v1.rs", "crates/proto/src/generated/dormouse.v1.rs"),
    ("descriptor.bin", DESCRIPTOR),
];

/// The committed descriptor, which a new one must not break.
const DESCRIPTOR: &str = "crates/proto/src/descriptor.bin";

pub(crate) fn run(check: bool) -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask has no parent directory")?
        .to_owned();
    let out = root.join("target/codegen");
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    generate(&root, &out)?;
    let broken = super::compatibility::broken(&root.join(DESCRIPTOR), &out.join("descriptor.bin"))?;
    for change in &broken {
        println!("codegen: breaks clients: {change}");
    }
    if !broken.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let mut fresh = Vec::new();
    for (file, place) in KEPT {
        let made = out.join(file);
        let bytes = fs::read(&made).with_context(|| format!("reading {}", made.display()))?;
        fresh.push((root.join(place), bytes));
    }
    super::keep(&fresh, check)
}

fn generate(root: &Path, out: &Path) -> anyhow::Result<()> {
    let proto = root.join("proto");
    let mut files: Vec<PathBuf> = Vec::new();
    let folder = proto.join("dormouse/v1");
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    // The order of a directory is chance; that of the generated code must not be.
    files.sort();
    if files.is_empty() {
        bail!("{} has no .proto files", folder.display());
    }
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .emit_rerun_if_changed(false)
        .btree_map(".")
        .out_dir(out)
        .file_descriptor_set_path(out.join("descriptor.bin"))
        .compile_protos(&files, &[proto])
        .context("running protoc (Debian packages protobuf-compiler and libprotobuf-dev)")
}
