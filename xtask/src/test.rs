//! `test`: everything, with counts; `test scenarios`: those of a specification, by their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::build::{self, release_directory, workspace};
use crate::{bench, chaos, corruption, hostile, power_loss, setup, sim};

/// Seeds of the short simulation.
const SHORT_SEEDS: u64 = 200;
/// Cut points of the short power loss.
const SHORT_CUTS: u64 = 50;
/// Storms of each half in the short storm.
const SHORT_STORMS: usize = 1;
/// Restarts of the daemon in the short bench of them, and requests a second meanwhile.
const SHORT_RESTARTS: usize = 4;
const SHORT_RATE: u32 = 50;
/// Cases of the short corruption.
const SHORT_CASES: usize = 400;
/// Kills of the short chaos.
const SHORT_KILLS: u32 = 12;

/// What libtest said about one test, by its name with its program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It ran and held.
    Passed,
    /// It ran and did not hold.
    Failed,
    /// It could not run, and said so.
    Skipped,
}

/// All tests of a run, in the order of their names.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    /// Of each test.
    pub by_name: BTreeMap<String, Verdict>,
    /// Why, of those that were skipped.
    pub reasons: BTreeMap<String, String>,
}

impl Verdicts {
    fn count(&self, verdict: Verdict) -> usize {
        self.by_name.values().filter(|found| **found == verdict).count()
    }

    fn add(&mut self, name: &str, verdict: Verdict, why: Option<&str>) {
        self.by_name.insert(name.to_owned(), verdict);
        if let Some(why) = why {
            self.reasons.insert(name.to_owned(), why.to_owned());
        }
    }
}

/// Runs all tests, the short simulation, and the short forms of the other suites.
pub(crate) fn run(json: Option<&Path>) -> Result<ExitCode> {
    println!("building what guests run");
    build::guest_binaries()?;
    let (mut verdicts, cargo_ok) = cargo_test(None)?;
    println!("simulation, {SHORT_SEEDS} seeds");
    let simulated = sim::command(SHORT_SEEDS, None, None)
        .status()
        .context("starting the simulation")?;
    verdicts.add(
        "simulation",
        if simulated.success() {
            Verdict::Passed
        } else {
            Verdict::Failed
        },
        None,
    );
    shorts(&mut verdicts);
    if !cargo_ok && verdicts.count(Verdict::Failed) == 0 {
        // Something did not even build.
        verdicts.add("cargo test", Verdict::Failed, None);
    }
    finish(&verdicts, json)
}

/// The short forms of the suites that have figures of their own.
fn shorts(verdicts: &mut Verdicts) {
    let not_root = (!setup::is_root()).then_some("not root");
    let no_guests = not_root.or_else(|| {
        let qemu = setup::find_program("qemu-system-x86_64");
        qemu.is_none().then_some("no QEMU; cargo xtask setup --install")
    });
    println!("storm, {SHORT_STORMS} of each half");
    short(verdicts, "storm", no_guests, || {
        bench::wake_storm::run(SHORT_STORMS, bench::Judged::Losses, None)
    });
    println!("{SHORT_RESTARTS} restarts");
    short(verdicts, "restarts", no_guests, || {
        bench::restarts::run(SHORT_RESTARTS, SHORT_RATE, bench::Judged::Losses, None)
    });
    println!("chaos, planted leaks and {SHORT_KILLS} kills");
    let chaos = |plant_leak: Option<&str>| chaos::Request {
        kills: SHORT_KILLS,
        seed: 1,
        plant_leak: plant_leak.map(str::to_owned),
    };
    short(verdicts, "chaos leaks", no_guests, || {
        chaos::run(&chaos(Some("all")), None)
    });
    short(verdicts, "chaos kills", no_guests, || {
        chaos::run(&chaos(None), None)
    });
    println!("hostile input, short");
    short(verdicts, "hostile", not_root, || hostile::run(true, None, None));
    println!("power loss, {SHORT_CUTS} cut points");
    short(verdicts, "power-loss", power_loss::lacking(), || {
        power_loss::run(SHORT_CUTS, 1, None)
    });
    println!("corruption, {SHORT_CASES} cases");
    short(verdicts, "corruption", not_root, || {
        corruption::run(SHORT_CASES, 1, None)
    });
}

/// One of them, unless something is lacking.
fn short(
    verdicts: &mut Verdicts,
    name: &str,
    lacking: Option<&str>,
    suite: impl FnOnce() -> Result<ExitCode>,
) {
    if let Some(why) = lacking {
        verdicts.add(name, Verdict::Skipped, Some(why));
        return;
    }
    let verdict = match suite() {
        Ok(code) if code == ExitCode::SUCCESS => Verdict::Passed,
        Ok(_) => Verdict::Failed,
        Err(error) => {
            println!("{name}: {error:#}");
            Verdict::Failed
        }
    };
    verdicts.add(name, verdict, None);
}

fn finish(verdicts: &Verdicts, json: Option<&Path>) -> Result<ExitCode> {
    let (passed, failed, skipped) = (
        verdicts.count(Verdict::Passed),
        verdicts.count(Verdict::Failed),
        verdicts.count(Verdict::Skipped),
    );
    if let Some(json) = json {
        let mut figures = crate::figures::Figures::begin("test", "none");
        for (name, value) in [("passed", passed), ("failed", failed), ("skipped", skipped)] {
            figures.count(name, value as u64);
        }
        figures.check_count("A.7", "failed", 0);
        figures.finish(Some(json))?;
    }
    for (name, why) in &verdicts.reasons {
        println!("skipped: {name}: {why}");
    }
    for (name, _) in verdicts
        .by_name
        .iter()
        .filter(|(_, verdict)| **verdict == Verdict::Failed)
    {
        println!("failed: {name}");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn log_path() -> PathBuf {
    release_directory().join("../test.log")
}

/// Runs `cargo test` over the workspace, only tests with `filter` in their name when given. All output
/// goes to a log; what matters is shown. Says besides whether cargo itself was content.
pub(crate) fn cargo_test(filter: Option<&str>) -> Result<(Verdicts, bool)> {
    let log = log_path();
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    println!(
        "cargo test --workspace (all of its output is in {})",
        log.display()
    );
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--workspace", "--no-fail-fast"]);
    command.args(["--", "--show-output"]).args(filter);
    // One pipe for both streams keeps the names of programs beside their tests.
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    command
        .current_dir(workspace())
        .stdin(Stdio::null())
        .env("CARGO_TERM_COLOR", "never");
    if setup::is_root() {
        // Tests that boot guests skip without these.
        let kernel = setup::ensure_ready(setup::Need::Tests)?;
        command
            .env("DORMOUSE_TEST_GUEST_KERNEL", kernel.directory)
            .env("DORMOUSE_TEST_AGENT", build::guest_binaries()?.agent);
    }
    command
        .stdout(writer.try_clone().context("sharing a pipe")?)
        .stderr(writer);
    let mut child = command.spawn().context("starting cargo")?;
    // The command holds the writing end, which would keep the pipe open.
    drop(command);
    let mut keep = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let mut parser = Parser::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("reading the output of the tests")?;
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(keep, "{line}").context("writing the log of the tests")?;
        if parser.line(&line) {
            println!("{line}");
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    ensure!(
        status.success() || !parser.verdicts.by_name.is_empty(),
        "cargo test did not run: {status}"
    );
    Ok((parser.verdicts, status.success()))
}

/// Reads the output of `cargo test -- --show-output`.
#[derive(Debug, Default)]
struct Parser {
    verdicts: Verdicts,
    /// The program whose tests are being told.
    program: String,
    /// The test whose output is being shown.
    shown: Option<String>,
}

impl Parser {
    /// Takes a line; says whether a person wants to see it.
    fn line(&mut self, line: &str) -> bool {
        let trimmed = line.trim_start();
        if let Some(rest) = trimmed
            .strip_prefix("Running ")
            .or_else(|| trimmed.strip_prefix("Doc-tests "))
        {
            self.program = program_name(rest);
            self.shown = None;
            return false;
        }
        if let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            let verdict = match verdict {
                "ok" => Verdict::Passed,
                "FAILED" => Verdict::Failed,
                _ => Verdict::Skipped,
            };
            let name = self.qualified(name);
            self.verdicts
                .add(&name, verdict, (verdict == Verdict::Skipped).then_some("ignored"));
            return verdict == Verdict::Failed;
        }
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.shown = Some(self.qualified(name));
            return self.is_failed();
        }
        if line.starts_with("test result:") || line == "failures:" || line == "successes:" {
            self.shown = None;
            return false;
        }
        if let (Some(shown), Some(why)) = (&self.shown, line.strip_prefix("skipped: ")) {
            let (name, why) = (shown.clone(), why.split_once(": ").map_or(why, |(_, why)| why));
            if self.verdicts.by_name.get(&name) == Some(&Verdict::Passed) {
                self.verdicts.add(&name, Verdict::Skipped, Some(why));
            }
            return false;
        }
        self.is_failed() || line.starts_with("error") || line.starts_with("  --> ")
    }

    fn qualified(&self, name: &str) -> String {
        format!("{} {name}", self.program)
    }

    fn is_failed(&self) -> bool {
        self.shown
            .as_ref()
            .is_some_and(|name| self.verdicts.by_name.get(name) == Some(&Verdict::Failed))
    }
}

/// `unittests src/lib.rs (target/debug/deps/dormouse_store-0123456789abcdef)` is `dormouse_store`.
fn program_name(rest: &str) -> String {
    let path = rest
        .rsplit_once('(')
        .map_or(rest, |(_, path)| path)
        .trim_end_matches(')');
    let file = path.rsplit('/').next().unwrap_or(path);
    file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned()
}

/// The scenario numbers that do not apply, with their reasons.
pub(crate) fn not_applicable(text: &str) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let number: String = line.chars().take_while(char::is_ascii_digit).collect();
        let why = line
            .get(number.len()..)
            .unwrap_or("")
            .trim_start_matches([':', '.', ' ', '\t', '|']);
        if let Ok(number) = number.parse() {
            found.insert(number, why.to_owned());
        }
    }
    found
}

/// The numbers in the name of a test: `scenario_30_31_cap` has two.
pub(crate) fn scenario_numbers(name: &str) -> BTreeSet<u32> {
    let Some((_, rest)) = name.split_once("scenario_") else {
        return BTreeSet::new();
    };
    rest.split('_').map_while(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_tests_is_read() {
        let text = "     Running unittests src/lib.rs (target/debug/deps/dormouse_sys-0123456789abcdef)\n\
            running 3 tests\ntest a::works ... ok\ntest a::cannot ... ok\ntest a::fails ... FAILED\n\
            test a::later ... ignored\n\nsuccesses:\n\n---- a::cannot stdout ----\nskipped: cannot: not root\n\n\n\
            successes:\n    a::cannot\n    a::works\n\nfailures:\n\n---- a::fails stdout ----\nthread panicked\n\n\
            failures:\n    a::fails\n\ntest result: FAILED. 2 passed; 1 failed\n   Doc-tests dormouse_sys\n\
            test crates/sys/src/lib.rs - (line 3) ... ok\n";
        let mut parser = Parser::default();
        let shown: Vec<&str> = text.lines().filter(|line| parser.line(line)).collect();
        let verdicts = parser.verdicts;
        assert_eq!(verdicts.count(Verdict::Passed), 2);
        assert_eq!(verdicts.count(Verdict::Failed), 1);
        assert_eq!(verdicts.count(Verdict::Skipped), 2);
        assert_eq!(verdicts.reasons["dormouse_sys a::cannot"], "not root");
        assert!(
            shown.contains(&"thread panicked") && !shown.iter().any(|line| line.contains("works")),
            "{shown:?}"
        );
    }

    #[test]
    fn numbers_are_read_from_names_and_lists() {
        assert_eq!(
            scenario_numbers("standby::tests::scenario_30_31_cap_2"),
            [30, 31].into()
        );
        assert!(scenario_numbers("other").is_empty());
        let found = not_applicable("# why\n4: no bad address can be made\n20. no run\n\n");
        assert_eq!(found[&4], "no bad address can be made");
        assert_eq!(found[&20], "no run");
    }
}
