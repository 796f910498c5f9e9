//! `fuzz`: every target of fuzz/ for so many seconds. With a nightly compiler and cargo-fuzz by libFuzzer,
//! which watches coverage; else by the driver of ours, which does not. Says which one ran.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use anyhow::{Context, Result};

use crate::build::workspace;
use crate::figures::Figures;
use crate::setup::find_program;

/// The targets, as in fuzz/Cargo.toml.
const TARGETS: [&str; 5] = ["netlink", "agent", "qmp", "image", "records"];

/// The longest input, in bytes.
const LONGEST: u64 = 16 << 10;

/// What came of one target.
struct Tried {
    runs: u64,
    crashed: bool,
}

/// Runs all targets, or the one that is named.
pub(crate) fn run(seconds: u64, only: Option<&str>, json: Option<&Path>) -> Result<ExitCode> {
    let mut figures = Figures::begin("fuzz", "none");
    let fuzzer = cargo_fuzz();
    let with = fuzzer.as_ref().map_or(
        "a driver without coverage (no nightly compiler with cargo-fuzz)",
        |_| "libFuzzer",
    );
    println!("fuzzing with {with}, {seconds} s a target");
    figures.count("libfuzzer", u64::from(fuzzer.is_some()));
    for target in TARGETS
        .into_iter()
        .filter(|name| only.is_none_or(|only| only == *name))
    {
        let tried = match &fuzzer {
            Some(program) => by_libfuzzer(program, target, seconds),
            None => by_driver(target, seconds),
        };
        match tried {
            Ok(tried) => {
                let crashes = u64::from(tried.crashed);
                println!("{target}: {} runs, {crashes} crashes", tried.runs);
                figures.count(&format!("{target}_runs"), tried.runs);
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

/// The program, where a nightly compiler goes with it.
fn cargo_fuzz() -> Option<PathBuf> {
    let nightly = Command::new("cargo")
        .args(["+nightly", "--version"])
        .output()
        .ok()?;
    nightly
        .status
        .success()
        .then(|| find_program("cargo-fuzz"))
        .flatten()
}

fn by_libfuzzer(program: &Path, target: &str, seconds: u64) -> Result<Tried> {
    let build = cargo_fuzz_command(program, "build", target)
        .output()
        .context("starting cargo-fuzz")?;
    anyhow::ensure!(
        build.status.success(),
        "it cannot be built: {}",
        last_line(&build)
    );
    let output = cargo_fuzz_command(program, "run", target)
        .arg("--")
        .args([
            &format!("-max_total_time={seconds}"),
            &format!("-max_len={LONGEST}"),
            "-print_final_stats=1",
        ])
        .output()
        .context("starting cargo-fuzz")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let runs = said
        .lines()
        .find_map(|line| {
            line.strip_prefix("stat::number_of_executed_units:")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0);
    if !output.status.success() {
        println!("{said}");
    }
    Ok(Tried {
        runs,
        crashed: !output.status.success(),
    })
}

/// `cargo fuzz VERB TARGET`, as cargo itself calls it.
fn cargo_fuzz_command(program: &Path, verb: &str, target: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["fuzz", verb, "--features", "libfuzzer", target])
        .env("RUSTUP_TOOLCHAIN", "nightly")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .current_dir(workspace());
    command
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
        .with_context(|| format!("it did not run: {}", last_line(&output)))?;
    if !output.status.success() {
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Tried {
        runs,
        crashed: !output.status.success(),
    })
}

fn last_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").to_owned()
}
