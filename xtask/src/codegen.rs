//! `codegen`: the Rust code of proto/, which is committed so that a build needs no protoc; and
//! docs/errors.md, from the lists of codes that the rooms keep.
//!
//! The generators are heavy, so each is behind a cargo feature, and this task runs cargo again with
//! first the one and then the other on: the daemon, which knows all codes, may need what the first has
//! written. Needs `protoc` and the well-known protos (Debian packages protobuf-compiler and
//! libprotobuf-dev).

#[cfg(feature = "codegen")]
mod compatibility;
#[cfg(feature = "codes")]
mod errors;
#[cfg(feature = "codegen")]
mod protocol;

#[cfg(feature = "codegen")]
pub(crate) use protocol::run;

#[cfg(all(feature = "codes", not(feature = "codegen")))]
pub(crate) use errors::run;

/// Generates everything, or with `check` only says whether what is committed is what would be generated.
///
/// # Errors
/// When cargo cannot be started.
#[cfg(not(any(feature = "codegen", feature = "codes")))]
pub(crate) fn run(check: bool) -> anyhow::Result<std::process::ExitCode> {
    for feature in ["codegen", "codes"] {
        let mut cargo = std::process::Command::new("cargo");
        cargo.args(["run", "--quiet", "--package", "xtask", "--features", feature]);
        cargo.args(["--", "codegen"]);
        if check {
            cargo.arg("--check");
        }
        if !cargo.status()?.success() {
            return Ok(std::process::ExitCode::FAILURE);
        }
    }
    Ok(std::process::ExitCode::SUCCESS)
}

/// Writes what differs from what is kept, or with `check` only says it.
#[cfg(any(feature = "codegen", feature = "codes"))]
fn keep(fresh: &[(std::path::PathBuf, Vec<u8>)], check: bool) -> anyhow::Result<std::process::ExitCode> {
    use anyhow::Context as _;

    let mut stale = Vec::new();
    for (kept, bytes) in fresh {
        if std::fs::read(kept).ok().as_ref() == Some(bytes) {
            continue;
        }
        stale.push(kept.display().to_string());
        if !check {
            std::fs::write(kept, bytes).with_context(|| format!("writing {}", kept.display()))?;
        }
    }
    if stale.is_empty() {
        println!("codegen: up to date");
    } else if check {
        println!(
            "codegen: not what proto/ and the lists of codes say: {}; run cargo xtask codegen",
            stale.join(", ")
        );
        return Ok(std::process::ExitCode::FAILURE);
    } else {
        println!("codegen: wrote {}", stale.join(", "));
    }
    Ok(std::process::ExitCode::SUCCESS)
}
