//! `codegen`: the Rust code of proto/, which is committed so that a build needs no protoc; and
//! docs/errors.md, from the lists of codes that the rooms keep.
//!
//! The generator is heavy, so it is behind the cargo feature `codegen`: without it this task runs
//! cargo again with the feature on. Needs `protoc` and the well-known protos (Debian packages
//! protobuf-compiler and libprotobuf-dev).

#[cfg(not(feature = "codegen"))]
use std::process::ExitCode;

/// Generates the code, or with `check` only says whether what is committed is what would be
/// generated.
///
/// # Errors
/// When protoc or the files cannot be read or written.
#[cfg(not(feature = "codegen"))]
pub(crate) fn run(check: bool) -> anyhow::Result<ExitCode> {
    let mut cargo = std::process::Command::new("cargo");
    cargo.args([
        "run",
        "--quiet",
        "--package",
        "xtask",
        "--features",
        "codegen",
        "--",
        "codegen",
    ]);
    if check {
        cargo.arg("--check");
    }
    let status = cargo.status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(feature = "codegen")]
mod compatibility;
#[cfg(feature = "codegen")]
mod errors;

#[cfg(feature = "codegen")]
pub(crate) use generator::run;

#[cfg(feature = "codegen")]
mod generator {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;

    use anyhow::{Context as _, bail};

    /// What is generated, and where in the workspace it is kept.
    const KEPT: [(&str, &str); 3] = [
        ("dormouse.v1.rs", "crates/proto/src/generated/dormouse.v1.rs"),
        ("descriptor.bin", DESCRIPTOR),
        ("errors.md", "docs/errors.md"),
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
        let page = out.join("errors.md");
        fs::write(&page, super::errors::page()).with_context(|| format!("writing {}", page.display()))?;
        let broken = super::compatibility::broken(&root.join(DESCRIPTOR), &out.join("descriptor.bin"))?;
        for change in &broken {
            println!("codegen: breaks clients: {change}");
        }
        if !broken.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
        let mut stale = Vec::new();
        for (file, place) in KEPT {
            let (made, kept) = (out.join(file), root.join(place));
            let fresh = fs::read(&made).with_context(|| format!("reading {}", made.display()))?;
            if fs::read(&kept).ok().as_deref() == Some(fresh.as_slice()) {
                continue;
            }
            stale.push(kept.display().to_string());
            if !check {
                fs::write(&kept, fresh).with_context(|| format!("writing {}", kept.display()))?;
            }
        }
        if stale.is_empty() {
            println!("codegen: up to date");
        } else if check {
            println!(
                "codegen: not what proto/ and the lists of codes say: {}; run cargo xtask codegen",
                stale.join(", ")
            );
            return Ok(ExitCode::FAILURE);
        } else {
            println!("codegen: wrote {}", stale.join(", "));
        }
        Ok(ExitCode::SUCCESS)
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
}
