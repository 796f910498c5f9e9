//! `sim`: the simulation of the daemon's decisions, thousands of seeds; with planted faults, each of
//! which some seed must find.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::build::workspace;

/// Runs the simulation's own program, which writes the figures.
pub(crate) fn run(seeds: u64, plant: Option<&str>, json: Option<&Path>) -> Result<ExitCode> {
    let status = command(seeds, plant, json).status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The command that runs `seeds` seeds.
pub(crate) fn command(seeds: u64, plant: Option<&str>, json: Option<&Path>) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace())
        .args(["run", "--quiet", "--release", "--package", "dormouse-sim"]);
    if plant.is_some() {
        // Planted faults are behind a feature: absent from every other build.
        command.args(["--features", "plant"]);
    }
    command.args(["--bin", "sim", "--", "--seeds", &seeds.to_string()]);
    if let Some(plant) = plant {
        command.args(["--plant", plant]);
    }
    if let Some(json) = json {
        command
            .arg("--json")
            .arg(std::path::absolute(json).unwrap_or_else(|_| json.to_owned()));
    }
    command
}
