//! `sim`: runs the simulation over many seeds.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::time::Instant;

use dormouse_sim::campaign::{Campaign, Find, Summary, run_one, shortest, tail};
use dormouse_sim::trace::Keep;

const USAGE: &str = "\
usage: sim [--seeds N] [--from S] [--steps M] [--plant NAME|all] [--replay SEED] [--trace] [--json FILE]

  --seeds N      how many seeds (2000)
  --from S       the first seed (1)
  --steps M      acts of clients, callers and faults a seed (250)
  --plant NAME   switch a fault on and succeed if a seed finds it; `all` tries every fault
  --replay SEED  run one seed and print the end of its trace
  --trace        print the whole trace of a replay
  --json FILE    write figures
";

/// Lines of a failing trace that are printed.
const TAIL: usize = 60;

#[derive(Debug)]
struct Arguments {
    campaign: Campaign,
    plant: Option<String>,
    replay: Option<u64>,
    whole_trace: bool,
    json: Option<String>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments {
        campaign: Campaign {
            from: 1,
            seeds: 2_000,
            steps: 250,
        },
        plant: None,
        replay: None,
        whole_trace: false,
        json: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{text:?} is not a number"))
        };
        match word.as_str() {
            "--seeds" => arguments.campaign.seeds = number(value()?)?,
            "--from" => arguments.campaign.from = number(value()?)?,
            "--steps" => arguments.campaign.steps = number(value()?)?,
            "--plant" => arguments.plant = Some(value()?),
            "--replay" => arguments.replay = Some(number(value()?)?),
            "--trace" => arguments.whole_trace = true,
            "--json" => arguments.json = Some(value()?),
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("{other:?} is not an argument")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "{problem}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let mut text = String::new();
    let (ok, figures) = if let Some(seed) = arguments.replay {
        (replay(&arguments, seed, &mut text), None)
    } else {
        let figures = match &arguments.plant {
            Some(name) => planted(&arguments, name, &mut text),
            None => seeds(&arguments, &mut text),
        };
        (figures.ok(), Some(figures))
    };
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if let (Some(path), Some(figures)) = (&arguments.json, figures)
        && let Err(error) = std::fs::write(path, figures.json())
    {
        let _ = writeln!(std::io::stderr(), "writing {path}: {error}");
        return ExitCode::FAILURE;
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What goes to people and into the file of figures.
#[derive(Debug, Default)]
struct Figures {
    counts: Vec<(String, u64)>,
    /// What, wanted, got as JSON, ok.
    checks: Vec<(String, String, String, bool)>,
}

impl Figures {
    fn ok(&self) -> bool {
        self.checks.iter().all(|(_, _, _, ok)| *ok)
    }

    /// The shape of every figure of this project; by hand, because it is the only JSON here.
    fn json(&self) -> String {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(name, count)| format!("    {}: {count}", quote(name)))
            .collect();
        let checks: Vec<String> = self
            .checks
            .iter()
            .map(|(what, want, got, ok)| {
                let (what, want) = (quote(what), quote(want));
                format!(r#"    {{"line": "A.5", "what": {what}, "want": {want}, "got": {got}, "ok": {ok}}}"#)
            })
            .collect();
        let (commit, dirty) = commit();
        format!(
            "{{\n  \"bench\": \"sim\",\n  \"commit\": {},\n  \"dirty\": {dirty},\n  \"host\": {},\n  \
             \"rows\": [],\n  \"counts\": {{\n{}\n  }},\n  \"checks\": [\n{}\n  ]\n}}\n",
            quote(&commit),
            host(),
            counts.join(",\n"),
            checks.join(",\n"),
        )
    }
}

fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if u32::from(control) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn commit() -> (String, bool) {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let dirty = git(&["status", "--porcelain"]).is_none_or(|changes| !changes.is_empty());
    (commit, dirty)
}

fn host() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg")
        .split(' ')
        .next()
        .and_then(|text| text.parse::<f64>().ok())
        .unwrap_or(0.0);
    let kib: u64 = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    format!(
        r#"{{"cpus": {cpus}, "kernel": {}, "accel": "none", "load1": {load}, "memory_mib": {}}}"#,
        quote(kernel.trim()),
        kib / 1024
    )
}

fn replay(arguments: &Arguments, seed: u64, text: &mut String) -> bool {
    if let Some(name) = &arguments.plant
        && let Err(problem) = switch(Some(name))
    {
        let _ = writeln!(text, "{problem}");
        return false;
    }
    let outcome = run_one(seed, arguments.campaign.steps, Keep::Lines);
    if arguments.whole_trace {
        text.push_str(&outcome.trace);
    } else {
        let _ = writeln!(text, "{}", tail(&outcome.trace, TAIL));
    }
    let ended = outcome
        .breach
        .as_ref()
        .map_or_else(|| "nothing broke".to_owned(), ToString::to_string);
    let _ = writeln!(text, "seed {seed}: {ended}");
    outcome.breach.is_none()
}

fn seeds(arguments: &Arguments, text: &mut String) -> Figures {
    let started = Instant::now();
    let summary = arguments.campaign.run();
    let seconds = started.elapsed().as_secs_f64();
    let rate = summary.seeds as f64 / seconds.max(0.001);
    let _ = writeln!(
        text,
        "{} seeds in {seconds:.1} s: {rate:.0} seeds/s",
        summary.seeds
    );
    for (name, count) in summary.tally.named() {
        let _ = writeln!(text, "  {name:<18} {count:>12}");
    }
    explain(&summary, arguments.campaign.steps, text);
    let mut figures = Figures::default();
    figures
        .counts
        .push(("violations".to_owned(), summary.finds.len() as u64));
    figures.counts.push(("seeds".to_owned(), summary.seeds));
    figures.counts.extend(
        summary
            .tally
            .named()
            .map(|(name, count)| (name.to_owned(), count)),
    );
    figures.checks.push((
        format!("violations in {} seeds", summary.seeds),
        "0".to_owned(),
        summary.finds.len().to_string(),
        summary.finds.is_empty(),
    ));
    figures
}

fn explain(summary: &Summary, steps: u64, text: &mut String) {
    for find in summary.finds.iter().take(20) {
        let _ = writeln!(text, "seed {}: {}", find.seed, find.breach);
    }
    let Some(find) = shortest(&summary.finds) else {
        let _ = writeln!(text, "no violation");
        return;
    };
    let _ = writeln!(
        text,
        "{} of {} seeds broke something",
        summary.finds.len(),
        summary.seeds
    );
    show(&find, steps, "", text);
}

fn show(find: &Find, steps: u64, more: &str, text: &mut String) {
    let outcome = run_one(find.seed, find.steps, Keep::Lines);
    let _ = writeln!(text, "the shortest, with {} of {steps} acts:", find.steps);
    let _ = writeln!(text, "{}", tail(&outcome.trace, TAIL));
    let _ = writeln!(text, "{}", find.breach);
    let _ = writeln!(
        text,
        "again: sim --replay {} --steps {}{more} --trace",
        find.seed, find.steps
    );
}

/// Switches the fault with this name on, or all off.
#[cfg(feature = "plant")]
fn switch(name: Option<&str>) -> Result<(), String> {
    use dormouse_model::plant::{Plant, plant};
    let fault = match name {
        None => None,
        Some(name) => match Plant::ALL.into_iter().find(|fault| fault.as_str() == name) {
            None => return Err(format!("{name:?} is not a fault: {}", names().join(", "))),
            found => found,
        },
    };
    plant(fault);
    Ok(())
}

/// Without the feature there is nothing to switch.
#[cfg(not(feature = "plant"))]
fn switch(name: Option<&str>) -> Result<(), String> {
    match name {
        None => Ok(()),
        Some(_) => Err("this binary was built without the feature `plant`".to_owned()),
    }
}

fn names() -> Vec<&'static str> {
    dormouse_model::plant::Plant::ALL
        .iter()
        .map(|fault| fault.as_str())
        .collect()
}

fn planted(arguments: &Arguments, name: &str, text: &mut String) -> Figures {
    let wanted = if name == "all" { names() } else { vec![name] };
    let mut figures = Figures::default();
    let mut found = 0;
    for name in &wanted {
        if let Err(problem) = switch(Some(name)) {
            let _ = writeln!(text, "{problem}");
            figures.checks.push((
                format!("{name} is found"),
                "found".to_owned(),
                quote(&problem),
                false,
            ));
            continue;
        }
        let (tried, find) = arguments.campaign.first();
        let got = match &find {
            Some(find) => {
                found += 1;
                format!("seed {}, {}", find.seed, find.breach.invariant)
            }
            None => format!("not in {tried} seeds"),
        };
        let _ = writeln!(text, "{name:<30} {got}");
        if let (Some(find), 1) = (&find, wanted.len()) {
            let find = shortest(std::slice::from_ref(find)).unwrap_or_else(|| find.clone());
            show(&find, arguments.campaign.steps, &format!(" --plant {name}"), text);
        }
        figures.checks.push((
            format!("{name} is found"),
            "found".to_owned(),
            quote(&got),
            find.is_some(),
        ));
    }
    // Nothing is planted for whoever calls next.
    let _ = switch(None);
    figures
        .counts
        .push(("seeds_at_most".to_owned(), arguments.campaign.seeds));
    figures.counts.push(("plants".to_owned(), wanted.len() as u64));
    figures.counts.push(("plants_found".to_owned(), found));
    figures
}
