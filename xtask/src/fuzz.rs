//! `fuzz`: every target of fuzz/ for so many seconds, as many at a time as there are processors. By libFuzzer,
//! which watches coverage, where it can be built; else by the driver of ours, which does not. Says which one
//! ran, and why.
//!
//! libFuzzer is built here without cargo-fuzz, with what a stable compiler can do: the counters of coverage, and
//! no sanitizer of addresses. That one takes a nightly compiler, and looks for what decoders without `unsafe`
//! cannot do. Whoever wants it has `cargo fuzz run TARGET --features libfuzzer` in fuzz/.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::build::{release_directory, workspace};
use crate::figures::Figures;
use crate::lab::{locked_value, tick};

/// The targets, as in fuzz/Cargo.toml. Those that learn most come first.
const TARGETS: [&str; 6] = ["netlink", "image", "records", "manifests", "agent", "qmp"];

/// The longest input, in bytes.
const LONGEST: u64 = 16 << 10;

/// The longest that one input may take, in seconds, and the most memory, in MiB.
const SLOWEST_SECONDS: u64 = 10;
const LARGEST_MIB: u64 = 1024;

/// How long a build may take: a check of everything has an hour.
const BUILT_WITHIN: Duration = Duration::from_secs(360);

/// How long after its time a target may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// What makes the compiler count coverage as libFuzzer reads it (clang's SanitizerCoverage), the same that
/// cargo-fuzz sets.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What the targets are run by.
#[derive(Debug, Clone)]
enum Fuzzer {
    /// A program a target, in this directory.
    Coverage { programs: PathBuf },
    /// Ours.
    Driver { program: PathBuf },
}

/// What came of one target.
struct Tried {
    runs: u64,
    /// Branches that inputs led to; `None` without a look at coverage.
    covered: Option<u64>,
    crashed: bool,
}

/// Runs all targets, or the one that is named.
pub(crate) fn run(seconds: u64, only: Option<&str>, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(only) = only {
        ensure!(
            TARGETS.contains(&only),
            "no target {only}; there are: {}",
            TARGETS.join(", ")
        );
    }
    let mut figures = Figures::begin("fuzz", "none");
    let begun = Instant::now();
    let fuzzer = match with_coverage() {
        Ok(fuzzer) => {
            println!("fuzzing by libFuzzer, {seconds} s a target");
            fuzzer
        }
        Err(why) => {
            println!("skipped: libFuzzer: {why:#}");
            println!("fuzzing by a driver without coverage, {seconds} s a target");
            figures.count("skipped", 1);
            driver()?
        }
    };
    figures.count("build_seconds", begun.elapsed().as_secs());
    let wanted = TARGETS
        .into_iter()
        .filter(|name| only.is_none_or(|only| only == *name))
        .collect();
    for (target, tried) in all(&fuzzer, wanted, seconds) {
        let tried = tried.with_context(|| format!("fuzzing {target}"))?;
        figures.count(&format!("{target}_runs"), tried.runs);
        figures.count("libfuzzer", u64::from(tried.covered.is_some()));
        figures.count("crashes", u64::from(tried.crashed));
    }
    figures.count("seconds", begun.elapsed().as_secs());
    figures.check_count("B.5", "crashes", 0);
    figures.finish(json)
}

/// Runs the targets, as many at a time as there are processors.
fn all(fuzzer: &Fuzzer, targets: VecDeque<&'static str>, seconds: u64) -> Vec<(&'static str, Result<Tried>)> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = processors.min(targets.len());
    let (waiting, done) = (Mutex::new(targets), Mutex::new(Vec::new()));
    std::thread::scope(|threads| {
        for _ in 0..at_once {
            threads.spawn(|| {
                loop {
                    let next = locked_value(&waiting).pop_front();
                    let Some(target) = next else { return };
                    let tried = try_target(fuzzer, target, seconds);
                    match &tried {
                        Ok(tried) => {
                            let covered = tried
                                .covered
                                .map_or_else(String::new, |covered| format!(", {covered} branches"));
                            let crashes = u64::from(tried.crashed);
                            println!("{target}: {} runs, {crashes} crashes{covered}", tried.runs);
                        }
                        Err(error) => println!("{target}: {error:#}"),
                    }
                    locked_value(&done).push((target, tried));
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn try_target(fuzzer: &Fuzzer, target: &str, seconds: u64) -> Result<Tried> {
    match fuzzer {
        Fuzzer::Coverage { programs } => by_libfuzzer(programs, target, seconds),
        Fuzzer::Driver { program } => by_driver(program, target, seconds),
    }
}

/// Where fuzz/ is built: its flags would rebuild everything else.
fn target_directory() -> PathBuf {
    release_directory().join("../fuzz")
}

/// Builds all targets for libFuzzer, in one go.
fn with_coverage() -> Result<Fuzzer> {
    // Named, though it is the host's own: the programs that the build runs are then built without the flags.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo_build();
    command
        .args(["--features", "libfuzzer", "--target", &target])
        // Not the driver: it has no libFuzzer to count for.
        .args(TARGETS.iter().flat_map(|name| ["--bin", *name]))
        .env("RUSTFLAGS", COVERAGE.join(" "));
    built(&mut command)?;
    Ok(Fuzzer::Coverage {
        programs: target_directory().join(target).join("release"),
    })
}

/// Builds the driver without coverage.
fn driver() -> Result<Fuzzer> {
    built(cargo_build().args(["--bin", "mutate"]))?;
    Ok(Fuzzer::Driver {
        program: target_directory().join("release/mutate"),
    })
}

fn cargo_build() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(target_directory())
        .current_dir(workspace().join("fuzz"));
    command
}

fn built(command: &mut Command) -> Result<()> {
    let ended = bounded(command, BUILT_WITHIN).context("building")?;
    ensure!(ended.success, "it cannot be built: {}", first_error(&ended.said));
    Ok(())
}

fn by_libfuzzer(programs: &Path, target: &str, seconds: u64) -> Result<Tried> {
    let fuzz = workspace().join("fuzz");
    let (corpus, artifacts) = (
        fuzz.join("corpus").join(target),
        fuzz.join("artifacts").join(target),
    );
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command
        .arg(corpus)
        .args([
            format!("-artifact_prefix={}/", artifacts.display()),
            format!("-max_total_time={seconds}"),
            format!("-max_len={LONGEST}"),
            format!("-timeout={SLOWEST_SECONDS}"),
            format!("-rss_limit_mb={LARGEST_MIB}"),
            "-print_final_stats=1".to_owned(),
        ])
        .current_dir(fuzz);
    let ended = bounded(&mut command, Duration::from_secs(seconds) + ENDS_WITHIN)?;
    let number_after = |mark: &str| {
        let line = ended.said.lines().rfind(|line| line.contains(mark))?;
        let (_, rest) = line.split_once(mark)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    if !ended.success {
        println!("{}", ended.said);
    }
    let runs = number_after("stat::number_of_executed_units:");
    ensure!(
        runs.is_some() || !ended.success,
        "it ran nothing: {}",
        last_line(&ended.said)
    );
    Ok(Tried {
        runs: runs.unwrap_or(0),
        covered: Some(number_after(" cov: ").unwrap_or(0)),
        crashed: !ended.success,
    })
}

fn by_driver(program: &Path, target: &str, seconds: u64) -> Result<Tried> {
    let mut command = Command::new(program);
    command.args([target, &seconds.to_string()]);
    let ended = bounded(&mut command, Duration::from_secs(seconds) + ENDS_WITHIN)?;
    let mark = format!("{target}: ");
    let runs = ended
        .said
        .lines()
        .find_map(|line| line.strip_prefix(&mark)?.split(' ').next()?.parse().ok())
        .with_context(|| format!("it did not run: {}", last_line(&ended.said)))?;
    if !ended.success {
        println!("{}", ended.said);
    }
    Ok(Tried {
        runs,
        covered: None,
        crashed: !ended.success,
    })
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

/// What a build stumbled over first.
fn first_error(said: &str) -> &str {
    let line = said.lines().find(|line| line.starts_with("error"));
    line.unwrap_or_else(|| last_line(said))
}

fn last_line(said: &str) -> &str {
    let line = said.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing")
}
