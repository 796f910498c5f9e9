//! The one shape of every figure: what `--json FILE` writes, and the table for people.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// One run of one bench.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    bench: String,
    commit: String,
    dirty: bool,
    host: Host,
    rows: Vec<Row>,
    counts: BTreeMap<String, u64>,
    checks: Vec<Check>,
}

/// Where it ran.
#[derive(Debug, Serialize)]
struct Host {
    cpus: usize,
    kernel: String,
    accel: String,
    load1: f64,
    memory_mib: u64,
}

/// One distribution.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    case: String,
    params: BTreeMap<String, Value>,
    unit: String,
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p90: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rivals: Vec<Rival>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

/// The same case done by another system in the same run.
#[derive(Debug, Clone, Serialize)]
struct Rival {
    name: String,
    n: usize,
    p50: f64,
    p99: f64,
    ratio_p50: f64,
}

/// One line of "Must show".
#[derive(Debug, Serialize)]
struct Check {
    line: String,
    what: String,
    want: String,
    got: Value,
    ok: bool,
}

/// All samples of one case; none is ever discarded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one measurement.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// All of them, in the order in which they were taken.
    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }

    /// Adds all of `other`.
    pub(crate) fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The quantile `q` by nearest rank; NaN of none.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is a small positive number"
    )]
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

impl Row {
    /// The row of `case` in `unit`.
    pub(crate) fn new(case: &str, unit: &str, samples: &Samples) -> Self {
        let some = |q| (samples.len() > 0).then(|| round(samples.quantile(q)));
        Self {
            case: case.to_owned(),
            params: BTreeMap::new(),
            unit: unit.to_owned(),
            n: samples.len(),
            p50: some(0.5),
            p90: some(0.9),
            p99: some(0.99),
            max: some(1.0),
            cpu_ms: None,
            rivals: Vec::new(),
            skipped: None,
        }
    }

    /// A case that this run could not do, and why.
    pub(crate) fn skipped(case: &str, unit: &str, why: &str) -> Self {
        Self {
            skipped: Some(why.to_owned()),
            ..Self::new(case, unit, &Samples::default())
        }
    }

    /// Adds a parameter.
    pub(crate) fn param(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.params.insert(name.to_owned(), value.into());
        self
    }

    /// Adds the CPU time, user and system, of all processes that the case needed, per sample.
    pub(crate) fn cpu_ms(mut self, cpu_ms: f64) -> Self {
        self.cpu_ms = Some(round(cpu_ms));
        self
    }

    /// Adds a rival's samples of the same case, taken interleaved with ours.
    pub(crate) fn rival(mut self, name: &str, samples: &Samples) -> Self {
        let p50 = samples.quantile(0.5);
        let ours = self.p50.unwrap_or(f64::NAN);
        self.rivals.push(Rival {
            name: name.to_owned(),
            n: samples.len(),
            p50: round(p50),
            p99: round(samples.quantile(0.99)),
            ratio_p50: round(ours / p50),
        });
        self
    }
}

/// Three decimals: microseconds of milliseconds.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Figures {
    /// Begins the figures of `bench`; `accel` is how guests ran, `none` where there were none.
    pub(crate) fn begin(bench: &str, accel: &str) -> Self {
        let words = |path: &str, at: usize| {
            std::fs::read_to_string(path)
                .ok()?
                .split_whitespace()
                .nth(at)
                .map(str::to_owned)
        };
        let memory_kib: u64 = words("/proc/meminfo", 1)
            .and_then(|w| w.parse().ok())
            .unwrap_or(0);
        Self {
            bench: bench.to_owned(),
            commit: git(&["rev-parse", "HEAD"])
                .or_else(|| head_commit(&crate::build::workspace().join(".git")))
                .unwrap_or_else(|| "unknown".to_owned()),
            dirty: git(&["status", "--porcelain"]).is_none_or(|text| !text.is_empty()),
            host: Host {
                cpus: std::thread::available_parallelism().map_or(0, usize::from),
                kernel: words("/proc/sys/kernel/osrelease", 0).unwrap_or_default(),
                accel: accel.to_owned(),
                load1: words("/proc/loadavg", 0)
                    .and_then(|w| w.parse().ok())
                    .unwrap_or(0.0),
                memory_mib: memory_kib / 1024,
            },
            rows: Vec::new(),
            counts: BTreeMap::new(),
            checks: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds to a count; a count that is only named is 0.
    pub(crate) fn count(&mut self, name: &str, more: u64) {
        *self.counts.entry(name.to_owned()).or_default() += more;
    }

    /// The value of a count.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// Checks that a measured value is at most `most`. NaN is not ok.
    pub(crate) fn check_at_most(&mut self, line: &str, what: &str, got: f64, most: f64, unit: &str) {
        self.check(
            line,
            what,
            &format!("<= {most} {unit}"),
            round(got).into(),
            got <= most,
        );
    }

    /// Checks that a count is `want`.
    pub(crate) fn check_count(&mut self, line: &str, name: &str, want: u64) {
        let got = self.counted(name);
        self.counts.entry(name.to_owned()).or_default();
        self.check(line, name, &format!("{want}"), got.into(), got == want);
    }

    /// Adds any other check.
    pub(crate) fn check(&mut self, line: &str, what: &str, want: &str, got: Value, ok: bool) {
        self.checks.push(Check {
            line: line.to_owned(),
            what: what.to_owned(),
            want: want.to_owned(),
            got,
            ok,
        });
    }

    /// Prints the table, writes `file` when given, and says by the exit code whether all checks hold.
    pub(crate) fn finish(self, file: Option<&Path>) -> Result<ExitCode> {
        self.print();
        if let Some(file) = file {
            let text = serde_json::to_string_pretty(&self).context("encoding the figures")?;
            std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
        }
        let failed = self.checks.iter().filter(|check| !check.ok).count();
        let code = if failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        println!(
            "{}: {} checks ok, {failed} not ok",
            self.bench,
            self.checks.len() - failed
        );
        Ok(code)
    }

    fn print(&self) {
        let mut rows = comfy_table::Table::new();
        rows.load_style(comfy_table::presets::NOTHING);
        rows.set_header([
            "case",
            "params",
            "unit",
            "n",
            "p50",
            "p90",
            "p99",
            "max",
            "cpu ms",
            "rivals (p50, ratio)",
        ]);
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.2}"));
        for row in &self.rows {
            let params: Vec<_> = row
                .params
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let rivals: Vec<_> = row
                .rivals
                .iter()
                .map(|r| format!("{} {:.1} x{:.3}", r.name, r.p50, r.ratio_p50))
                .collect();
            let last = row
                .skipped
                .as_ref()
                .map_or_else(|| rivals.join("; "), |why| format!("skipped: {why}"));
            rows.add_row([
                row.case.clone(),
                params.join(" ").replace('"', ""),
                row.unit.clone(),
                row.n.to_string(),
                number(row.p50),
                number(row.p90),
                number(row.p99),
                number(row.max),
                number(row.cpu_ms),
                last,
            ]);
        }
        let host = &self.host;
        println!(
            "{} on {} cpus, kernel {}, accel {}, load {:.2}, commit {}{}",
            self.bench,
            host.cpus,
            host.kernel,
            host.accel,
            host.load1,
            self.commit.get(..12).unwrap_or(&self.commit),
            if self.dirty { " (dirty)" } else { "" }
        );
        println!("{rows}");
        for (name, value) in &self.counts {
            println!("count {name} = {value}");
        }
        for check in &self.checks {
            let verdict = if check.ok { "ok    " } else { "NOT OK" };
            println!(
                "{verdict} {} {}: want {}, got {}",
                check.line, check.what, check.want, check.got
            );
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commit that HEAD names, where there is no git to ask (gitrepository-layout(5)).
fn head_commit(repository: &Path) -> Option<String> {
    let head = std::fs::read_to_string(repository.join("HEAD")).ok()?;
    let Some(reference) = head.trim().strip_prefix("ref: ") else {
        return Some(head.trim().to_owned());
    };
    if let Ok(commit) = std::fs::read_to_string(repository.join(reference)) {
        return Some(commit.trim().to_owned());
    }
    let packed = std::fs::read_to_string(repository.join("packed-refs")).ok()?;
    let line = packed.lines().find(|line| line.ends_with(reference))?;
    line.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank_over_all_samples() {
        let mut samples = Samples::default();
        for value in (1..=100).rev() {
            samples.push(f64::from(value));
        }
        for (q, want) in [(0.5, 50.0), (0.9, 90.0), (0.99, 99.0), (1.0, 100.0)] {
            assert!((samples.quantile(q) - want).abs() < 1e-9);
        }
        assert!(Samples::default().quantile(0.5).is_nan());
    }

    #[test]
    fn the_commit_is_found_without_git() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        assert_eq!(head_commit(root), None);
        std::fs::write(root.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        std::fs::write(root.join("packed-refs"), "# pack-refs\nabc refs/heads/main\n").unwrap();
        assert_eq!(head_commit(root).as_deref(), Some("abc"));
        std::fs::create_dir_all(root.join("refs/heads")).unwrap();
        std::fs::write(root.join("refs/heads/main"), "def\n").unwrap();
        assert_eq!(head_commit(root).as_deref(), Some("def"));
    }

    #[test]
    fn a_nan_is_not_ok() {
        let mut figures = Figures::begin("test", "none");
        figures.check_at_most("X.1", "nothing measured", f64::NAN, 1.0, "ms");
        assert!(!figures.checks[0].ok);
    }
}
