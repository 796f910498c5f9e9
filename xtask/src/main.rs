//! The chores of the workspace, one file a task: `cargo xtask --help` lists them.

mod bench;
mod build;
mod chaos;
mod codegen;
mod corruption;
mod demo;
mod figures;
mod fuzz;
mod hostile;
mod lab;
mod power_loss;
mod scenarios;
mod setup;
mod sim;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// The chores of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show it: an image, a request, asleep, a request; then the figures of sleep and wake.
    Demo {
        /// Wakes measured at each size of RAM.
        #[arg(long, default_value_t = 30)]
        rounds: usize,
        #[command(flatten)]
        output: Output,
    },
    /// Say what this machine lacks for the other tasks.
    Setup {
        /// Install it.
        #[arg(long)]
        install: bool,
    },
    /// Run the tests, or with `scenarios` those of a specification by their numbers.
    Test {
        #[command(subcommand)]
        suite: Option<Suite>,
        #[command(flatten)]
        output: Output,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Fuzz every decoder of bytes that somebody else wrote.
    Fuzz {
        /// How long each target runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only this target: netlink, agent, qmp, image, records or manifests.
        #[arg(long)]
        target: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Run the simulation.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 2000)]
        seeds: u64,
        /// Plant this fault, or `all` of them one by one: some seed must find it.
        #[arg(long)]
        plant: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Kill daemon, keeper and VMMs in the middle of everything, and count what is left.
    Chaos {
        /// How many kills.
        #[arg(long, default_value_t = 200)]
        kills: u32,
        /// Of the schedule: the same again does the same again.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// No kills: make a leak of this kind, or one of each with `all`; the census must find it.
        #[arg(long, value_name = "KIND")]
        plant_leak: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Write the Rust code of proto/, and docs/errors.md.
    Codegen {
        /// Only say whether the committed code is what would be written.
        #[arg(long)]
        check: bool,
    },
    /// Check what the compiler cannot: edges between crates, sizes, purity of the machines.
    Tidy,
}

#[derive(Debug, Args)]
struct Output {
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// The scenarios of a specification.
    Scenarios {
        /// Which.
        #[arg(long)]
        spec: String,
        #[command(flatten)]
        output: Output,
    },
    /// The power goes at many points while a store is written and instances sleep: replays of logged disks.
    PowerLoss {
        /// Cut points of both workloads together.
        #[arg(long, default_value_t = 1000)]
        cuts: u64,
        /// Which of the legal contents are tried.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Sleepers whose files and records were changed behind their backs: each must be refused.
    Corruption {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        cases: usize,
        /// Where chance begins.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Hostile input at every edge: each case's code, and that nothing changed.
    Hostile {
        /// Only areas with this in their names.
        #[arg(long)]
        area: Option<String>,
        /// Leave out what takes longer than seconds.
        #[arg(long)]
        short: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Sleep and wake beside QEMU's own ways, and what a busy guest writes to the disk.
    Standby {
        /// Wakes measured at each size of RAM.
        #[arg(long, default_value_t = 30)]
        rounds: usize,
        #[command(flatten)]
        output: Output,
    },
    /// Thousands of clients at one sleeper; also with the daemon killed meanwhile.
    WakeStorm {
        /// Storms with the daemon alive, and as many with it killed.
        #[arg(long, default_value_t = 10)]
        repetitions: usize,
        #[command(flatten)]
        output: Output,
    },
    /// Ten thousand sleepers: what each costs, how soon the daemon serves, that all are silent, and that a
    /// scan of all of them parks. Boots nothing: a stub stands in for QEMU.
    Sleepers {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        count: u32,
        /// Seconds in which nothing may happen.
        #[arg(long, default_value_t = 60)]
        idle: u64,
        #[command(flatten)]
        output: Output,
    },
    /// The daemon ends and starts again, again and again, under requests and wakes.
    Restarts {
        /// How often; half of them by SIGKILL.
        #[arg(long, default_value_t = 100)]
        restarts: usize,
        /// Requests a second to guests that are awake.
        #[arg(long, default_value_t = 500)]
        rate: u32,
        #[command(flatten)]
        output: Output,
    },
    /// Open connections over many sleeps.
    Connections {
        /// Sleeps and wakes.
        #[arg(long, default_value_t = 100)]
        cycles: usize,
        #[command(flatten)]
        output: Output,
    },
}

fn main() -> ExitCode {
    let outcome = lab::watch_interrupts().and_then(|()| run(Arguments::parse().task));
    lab::leave_to_interrupt();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo { rounds, output } => demo::run(rounds, output.json.as_deref()),
        Task::Setup { install } => setup::run(install),
        Task::Test { suite: None, output } => test::run(output.json.as_deref()),
        Task::Test {
            suite: Some(Suite::Scenarios { spec, output }),
            ..
        } => scenarios::run(&spec, output.json.as_deref()),
        Task::Test {
            suite: Some(Suite::PowerLoss { cuts, seed, output }),
            ..
        } => power_loss::run(cuts, seed, output.json.as_deref()),
        Task::Test {
            suite: Some(Suite::Corruption { cases, seed, output }),
            ..
        } => corruption::run(cases, seed, output.json.as_deref()),
        Task::Test {
            suite: Some(Suite::Hostile { area, short, output }),
            ..
        } => hostile::run(short, area.as_deref(), output.json.as_deref()),
        Task::Fuzz {
            seconds,
            target,
            output,
        } => fuzz::run(seconds, target.as_deref(), output.json.as_deref()),
        Task::Bench { bench } => run_bench(&bench),
        Task::Sim { seeds, plant, output } => sim::run(seeds, plant.as_deref(), output.json.as_deref()),
        Task::Chaos {
            kills,
            seed,
            plant_leak,
            output,
        } => {
            let request = chaos::Request {
                kills,
                seed,
                plant_leak,
            };
            chaos::run(&request, output.json.as_deref())
        }
        Task::Codegen { check } => codegen::run(check),
        Task::Tidy => tidy::run(),
    }
}

fn run_bench(bench: &Bench) -> Result<ExitCode> {
    fn file(output: &Output) -> Option<&Path> {
        output.json.as_deref()
    }
    match bench {
        Bench::Standby { rounds, output } => bench::standby::run(*rounds, file(output)),
        Bench::WakeStorm { repetitions, output } => {
            bench::wake_storm::run(*repetitions, bench::Judged::LossesAndTimes, file(output))
        }
        Bench::Sleepers { count, idle, output } => bench::sleepers::run(*count, *idle, file(output)),
        Bench::Restarts {
            restarts,
            rate,
            output,
        } => bench::restarts::run(*restarts, *rate, bench::Judged::LossesAndTimes, file(output)),
        Bench::Connections { cycles, output } => bench::connections::run(*cycles, file(output)),
    }
}
