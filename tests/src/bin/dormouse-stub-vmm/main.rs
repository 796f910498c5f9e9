//! A program that stands in for QEMU where the monitor is not what is looked at: it takes the driver's
//! command line and descriptors, speaks the part of the control protocol that the driver uses, keeps its
//! guest's memory in the RAM file, and answers pings, connections and datagrams on the tap. It starts in
//! a millisecond and needs a megabyte, so thousands of wakes are a matter of seconds.
//!
//! | module | |
//! |---|---|
//! | `options` | the command line, read back; pure |
//! | `control` | the control protocol; pure |
//! | `packets` | what its guest answers; pure |
//! | `guest` | the guest: memory, agent, device state |
//! | `machine` | the loop over its descriptors |
//!
//! What it is strict about, because a harness relies on it: an option that the driver does not have; a
//! device state that is none, or of another machine; memory that is not what it was when the state was
//! saved. Each ends a restore with a line on standard error, as QEMU would end.

mod control;
mod guest;
mod machine;
mod options;
mod packets;

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use dormouse_sys::descriptor::inherited;
use nix::poll::{PollTimeout, poll};

use options::Role;

/// Between two beats of the probe's guest: a processor that turns its loop at full speed.
const BEAT: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let end = match options::read(&words) {
        Ok(Role::Version) => {
            let mut out = std::io::stdout();
            writeln!(out, "QEMU emulator version 7.2.0 (dormouse-stub-vmm)")
                .map_err(|error| error.to_string())
        }
        Ok(Role::Probe { serial }) => beat(serial).map_err(|error| error.to_string()),
        Ok(Role::Machine(options)) => machine::run(options),
        Err(why) => Err(why),
    };
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _lost = writeln!(std::io::stderr(), "dormouse-stub-vmm: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The probe's guest, until the line closes.
fn beat(serial: i32) -> std::io::Result<()> {
    let mut line = File::from(inherited(serial)?);
    while line.write_all(b".").is_ok() {
        let pause = PollTimeout::try_from(BEAT).unwrap_or(PollTimeout::MAX);
        // Ended early by a signal is as good.
        let _ = poll(&mut [], pause);
    }
    Ok(())
}
