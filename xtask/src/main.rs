//! The chores of the workspace, one file a task: `cargo xtask --help` lists them.

mod build;
mod codegen;
mod figures;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_version_flag = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Write the Rust code of proto/.
    Codegen {
        /// Only say whether the committed code is what would be written.
        #[arg(long)]
        check: bool,
    },
    /// Check what the compiler cannot: edges between crates, sizes, purity of the machines.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Codegen { check } => codegen::run(check),
        Task::Tidy => tidy::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
