//! Building what the tasks run: the release binaries, and the static ones that go into guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The one target that guests are built for.
pub(crate) const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The directory of the release binaries.
pub(crate) fn release_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from)
        .join("release")
}

/// Runs cargo in the workspace with `arguments`, letting its output through.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .current_dir(workspace())
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "cargo {} failed: {status}", arguments.join(" "));
    Ok(())
}

/// What a guest runs: the static agent and the static test server.
#[derive(Debug, Clone)]
pub(crate) struct GuestBinaries {
    /// The init of every guest.
    pub(crate) agent: PathBuf,
    /// The server that benches talk to.
    pub(crate) server: PathBuf,
}

/// Builds the daemon, the keeper and the command line; returns their directory.
pub(crate) fn binaries() -> Result<PathBuf> {
    cargo(&[
        "build",
        "--release",
        "--quiet",
        "-p",
        "dormoused",
        "-p",
        "dormouse",
        "-p",
        "dormouse-keeper-bin",
    ])?;
    Ok(release_directory())
}

/// Builds the program that stands in for QEMU where the monitor is not what is looked at.
pub(crate) fn stub_monitor() -> Result<PathBuf> {
    let program = "dormouse-stub-vmm";
    cargo(&[
        "build",
        "--release",
        "--quiet",
        "-p",
        "dormouse-tests",
        "--bin",
        program,
    ])?;
    Ok(release_directory().join(program))
}

/// The profile that this program was built in: what it starts is built alike.
const PROFILE: &[&str] = if cfg!(debug_assertions) {
    &[]
} else {
    &["--release"]
};

/// The directory of the binaries of [`PROFILE`].
fn profile_directory() -> PathBuf {
    let release = release_directory();
    if cfg!(debug_assertions) {
        release.with_file_name("debug")
    } else {
        release
    }
}

/// Builds what a harness without guests starts, in the profile of this program; returns the directory.
pub(crate) fn harness_binaries() -> Result<PathBuf> {
    let programs = ["dormoused", "dormouse", "dormouse-keeper-bin", "dormouse-agent"];
    let packages = programs.iter().flat_map(|name| ["-p", *name]);
    let arguments: Vec<&str> = ["build", "--quiet"]
        .into_iter()
        .chain(PROFILE.iter().copied())
        .chain(packages)
        .collect();
    cargo(&arguments)?;
    Ok(profile_directory())
}

/// Builds the virtual machine monitor without a machine.
pub(crate) fn scripted_vmm() -> Result<PathBuf> {
    let name = "dormouse-scripted-vmm";
    let program = ["build", "--quiet", "-p", "dormouse-tests", "--bin", name];
    let arguments: Vec<&str> = program.into_iter().chain(PROFILE.iter().copied()).collect();
    cargo(&arguments)?;
    Ok(profile_directory().join(name))
}

/// Builds the daemon with its fault points, and the keeper, in a target directory of their own: nothing
/// that is released ever lies there. Returns their directory.
pub(crate) fn planted_binaries() -> Result<PathBuf> {
    let target = release_directory().join("../plant");
    let text = target
        .to_str()
        .context("the target directory's path is not UTF-8")?;
    cargo(&[
        "build",
        "--release",
        "--quiet",
        "-p",
        "dormoused",
        "-p",
        "dormouse-keeper-bin",
        "--features",
        "dormouse-daemon/plant",
        "--target-dir",
        text,
    ])?;
    // As /proc will name it.
    target
        .join("release")
        .canonicalize()
        .with_context(|| format!("finding {text}"))
}

/// Builds the programs that run inside guests, linked statically, in a target directory of their own:
/// other flags would rebuild everything else.
pub(crate) fn guest_binaries() -> Result<GuestBinaries> {
    let target = release_directory().join("../guest");
    let text = target
        .to_str()
        .context("the target directory's path is not UTF-8")?
        .to_owned();
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--release",
            "--quiet",
            "--target",
            GUEST_TARGET,
            "--target-dir",
            &text,
        ])
        .args([
            "-p",
            "dormouse-agent",
            "-p",
            "dormouse-tests",
            "--bin",
            "dormouse-agent",
            "--bin",
            "dormouse-testserver",
        ])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(workspace())
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("building the static guest programs failed: {status}");
    }
    let out = target.join(GUEST_TARGET).join("release");
    Ok(GuestBinaries {
        agent: out.join("dormouse-agent"),
        server: out.join("dormouse-testserver"),
    })
}
