//! The first process of a guest: it mounts, sets up the network, starts the workload, reaps, and
//! tells the daemon how it goes.
//!
//! | module | what |
//! |---|---|
//! | `life` | the decisions: a pure machine over messages, exits and deadlines |
//! | `agent` | its shell: one loop over the port and the reaper |
//! | `port` | the virtio-serial port to the daemon |
//! | `early` | mounts and kernel modules, before anything can be asked |
//! | `boot` | the boot steps in their order |
//! | `root` | the root file system: overlay, and moving into it |
//! | `network`, `netlink` | addresses, routes and neighbours |
//! | `account` | whose rights the workload gets |
//! | `workload` | starting the workload and reaping what it leaves |
//! | `uevent` | waiting for devices |
//!
//! The agent never waits for the daemon: a workload runs on when nobody listens, and what there is
//! to say waits in the channel.

mod account;
mod agent;
mod boot;
mod early;
mod life;
mod netlink;
mod network;
mod port;
mod root;
mod uevent;
mod workload;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    if nix::unistd::getpid().as_raw() != 1 {
        say(format_args!(
            "release {}; this is the first process of a dormouse guest and does nothing elsewhere",
            env!("CARGO_PKG_VERSION")
        ));
        return ExitCode::from(2);
    }
    if let Err(error) = agent::run() {
        say(format_args!("cannot go on: {error:#}"));
    }
    // Whatever happened, a guest without its agent is of no use: end it, so that the VMM ends.
    nix::unistd::sync();
    let Err(error) = dormouse_sys::guest::power_off();
    say(format_args!("cannot power off: {error}"));
    // Returning panics the kernel, which ends the VMM as well.
    ExitCode::FAILURE
}

/// Writes a line to the console. A console that does not take it is no reason to stop.
pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    let _lost = writeln!(std::io::stderr(), "dormouse-agent: {line}");
}
