//! `fuzz`: every target of fuzz/ for so many seconds. With a nightly compiler and cargo-fuzz by libFuzzer,
//! which watches coverage; else by the driver of ours, which does not. Says which one ran, and why.
//!
//! cargo-fuzz is looked for on `PATH`, in the root that `CARGO_INSTALL_ROOT` names, and in the target
//! directory, where `--install` puts it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::build::{release_directory, workspace};
use crate::figures::Figures;
use crate::lab::tick;
use crate::setup::find_program;

/// The targets, as in fuzz/Cargo.toml.
const TARGETS: [&str; 6] = ["netlink", "agent", "qmp", "image", "records", "manifests"];

/// The longest input, in bytes.
const LONGEST: u64 = 16 << 10;

/// How long it may take to install cargo-fuzz, and to build a target.
const BUILT_WITHIN: Duration = Duration::from_secs(600);

/// How long after its time a target may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// What came of one target.
struct Tried {
    runs: u64,
    /// Branches that inputs led to; `None` without a look at coverage.
    covered: Option<u64>,
    crashed: bool,
}

/// Runs all targets, or the one that is named. With `install`, a cargo-fuzz that is missing is installed.
pub(crate) fn run(seconds: u64, only: Option<&str>, install: bool, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(only) = only {
        ensure!(
            TARGETS.contains(&only),
            "no target {only}; there are: {}",
            TARGETS.join(", ")
        );
    }
    let mut figures = Figures::begin("fuzz", "none");
    let fuzzer = cargo_fuzz(install).and_then(|program| built(&program).map(|()| program));
    match &fuzzer {
        Ok(program) => println!(
            "fuzzing by libFuzzer ({}), {seconds} s a target",
            program.display()
        ),
        Err(error) => println!("fuzzing by a driver without coverage, {seconds} s a target: {error:#}"),
    }
    for target in TARGETS
        .into_iter()
        .filter(|name| only.is_none_or(|only| only == *name))
    {
        match try_target(fuzzer.as_ref().ok(), target, seconds) {
            Ok(tried) => {
                let crashes = u64::from(tried.crashed);
                let covered = tried
                    .covered
                    .map_or_else(String::new, |covered| format!(", {covered} branches"));
                println!("{target}: {} runs, {crashes} crashes{covered}", tried.runs);
                figures.count(&format!("{target}_runs"), tried.runs);
                figures.count("libfuzzer", u64::from(tried.covered.is_some()));
                figures.count("crashes", crashes);
            }
            Err(error) => {
                println!("skipped: {target}: {error:#}");
                figures.count("skipped", 1);
            }
        }
    }
    figures.check_count("B.5", "crashes", 0);
    figures.finish(json)
}

/// By libFuzzer where there is one, else by the driver.
fn try_target(fuzzer: Option<&PathBuf>, target: &str, seconds: u64) -> Result<Tried> {
    fuzzer.map_or_else(
        || by_driver(target, seconds),
        |program| by_libfuzzer(program, target, seconds),
    )
}

/// Builds all targets. Done once and in so much time: who cannot build one can build none.
fn built(program: &Path) -> Result<()> {
    let mut command = cargo_fuzz_command(program, "build", None);
    let ended = bounded(&mut command, BUILT_WITHIN).context("building for libFuzzer")?;
    ensure!(
        ended.success,
        "libFuzzer cannot be built: {}",
        last_line(&ended.said)
    );
    Ok(())
}

/// The program, where a nightly compiler goes with it.
fn cargo_fuzz(install: bool) -> Result<PathBuf> {
    let nightly = Command::new("cargo")
        .args(["+nightly", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    ensure!(nightly, "there is no nightly compiler");
    let own = release_directory().join("../cargo-fuzz");
    let roots = std::env::var_os("CARGO_INSTALL_ROOT").map(PathBuf::from);
    let in_root = |root: &Path| Some(root.join("bin/cargo-fuzz")).filter(|place| place.is_file());
    let found = find_program("cargo-fuzz")
        .or_else(|| roots.as_deref().and_then(in_root))
        .or_else(|| in_root(&own));
    if let Some(found) = found {
        return Ok(found);
    }
    ensure!(install, "there is no cargo-fuzz; --install installs it");
    println!("installing cargo-fuzz");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", "--quiet", "--locked", "cargo-fuzz", "--root"])
        .arg(&own)
        // Not into the workspace, whose settings are not its own.
        .current_dir("/");
    let ended = bounded(&mut command, BUILT_WITHIN).context("installing cargo-fuzz")?;
    ensure!(
        ended.success,
        "cargo-fuzz cannot be installed: {}",
        last_line(&ended.said)
    );
    in_root(&own).context("cargo-fuzz was installed and is not there")
}

fn by_libfuzzer(program: &Path, target: &str, seconds: u64) -> Result<Tried> {
    let mut command = cargo_fuzz_command(program, "run", Some(target));
    command.arg("--").args([
        &format!("-max_total_time={seconds}"),
        &format!("-max_len={LONGEST}"),
        "-print_final_stats=1",
    ]);
    let ended = bounded(
        &mut command,
        BUILT_WITHIN + Duration::from_secs(seconds) + ENDS_WITHIN,
    )?;
    let number_after = |mark: &str| {
        let line = ended.said.lines().rfind(|line| line.contains(mark))?;
        let (_, rest) = line.split_once(mark)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    if !ended.success {
        println!("{}", ended.said);
    }
    Ok(Tried {
        runs: number_after("stat::number_of_executed_units:").unwrap_or(0),
        covered: Some(number_after(" cov: ").unwrap_or(0)),
        crashed: !ended.success,
    })
}

/// `cargo fuzz VERB TARGET`, as cargo itself calls it; of all targets when none is named.
fn cargo_fuzz_command(program: &Path, verb: &str, target: Option<&str>) -> Command {
    let mut command = Command::new(program);
    command
        .args(["fuzz", verb, "--features", "libfuzzer"])
        .args(target)
        .env("RUSTUP_TOOLCHAIN", "nightly")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .current_dir(workspace());
    command
}

/// How a program ended, and what it said.
struct Ended {
    success: bool,
    said: String,
}

/// Runs a program that may take so long; after that it is killed with all that it started.
fn bounded(command: &mut Command, limit: Duration) -> Result<Ended> {
    let mut said = tempfile::tempfile().context("making a file for what it says")?;
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > limit {
            let group = i32::try_from(child.id()).context("a process id out of range")?;
            killpg(Pid::from_raw(group), Signal::SIGKILL).context("killing what takes too long")?;
            child.wait()?;
            bail!("not ended after {limit:?}");
        }
        tick(Duration::from_millis(50));
    };
    Ok(Ended {
        success: status.success(),
        said: text_of(&mut said)?,
    })
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn by_driver(target: &str, seconds: u64) -> Result<Tried> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--quiet", "--release", "--bin", "mutate", "--"])
        .args([target, &seconds.to_string()])
        .current_dir(workspace().join("fuzz"))
        .output()
        .context("starting cargo")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let runs = said
        .split_once(": ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .with_context(|| format!("it did not run: {}", last_line(&stderr_of(&output))))?;
    if !output.status.success() {
        println!("{}", stderr_of(&output));
    }
    Ok(Tried {
        runs,
        covered: None,
        crashed: !output.status.success(),
    })
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_line(said: &str) -> &str {
    let line = said.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing")
}
