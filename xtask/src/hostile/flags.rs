//! Flags and keys that a person writes: the programs say what is wrong, and end.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::bed::Bed;

const AREA: &str = "flags";

/// What a configuration has, and the word that the complaint must have.
const KEYS: &[(&str, &str)] = &[
    ("no_such_key = 1", "no_such_key"),
    ("[network]\nipv4_poll = \"10.0.0.0/16\"", "ipv4_poll"),
    ("[network]\nipv4_pool = \"10.0.0.0\"", "network.ipv4_pool"),
    ("[network]\nipv4_pool = \"10.0.0.0/31\"", "network.ipv4_pool"),
    ("[network]\nipv4_pool = 7", "network.ipv4_pool"),
    ("[network]\nipv6_prefix = \"fd00::/129\"", "network.ipv6_prefix"),
    ("[network]\ndevice_prefix = \"../x\"", "network.device_prefix"),
    ("[network]\ndevice_prefix = \"\"", "network.device_prefix"),
    (
        "[network]\nparked_per_sleeper = \"-1\"",
        "network.parked_per_sleeper",
    ),
    (
        "[network]\nname_servers = [\"example.org\"]",
        "network.name_servers",
    ),
    ("[hypervisor]\naccelerator = \"hax\"", "hypervisor.accelerator"),
    ("[hypervisor]\nfirst_uid = 0", "hypervisor.first_uid"),
    ("[hypervisor]\nfirst_uid = -1", "hypervisor.first_uid"),
    ("[hypervisor]\nuid_count = 0", "hypervisor.uid_count"),
    ("[guest]\nboot_timeout = \"0s\"", "guest.boot_timeout"),
    (
        "[guest]\nboot_timeout = \"99999999999999999999h\"",
        "guest.boot_timeout",
    ),
    ("[memory]\nplacement = \"cloud\"", "memory.placement"),
    (
        "[memory]\ntmpfs_size = \"99999999999999999999T\"",
        "memory.tmpfs_size",
    ),
    ("[images]\nmax_entries = 0", "images.max_entries"),
    ("[images]\nmax_ratio = 0", "images.max_ratio"),
    ("[images]\nmax_packed = \"many\"", "images.max_packed"),
    ("[ledger]\ndisk_floor = \"-1G\"", "ledger.disk_floor"),
    ("[ledger]\nmemory_percent = 5", "ledger.memory_percent"),
    ("[standby]\nmax_concurrent = 0", "standby.max_concurrent"),
    ("[standby]\nsync_interval = \"soon\"", "standby.sync_interval"),
    ("data_directory = \"relative\"", "data_directory"),
    ("run_directory = \"\"", "run_directory"),
    ("this is = = no TOML", ""),
    ("\u{0}", ""),
];

/// What the command line is given; it must end with 125 and words.
const LINES: &[&[&str]] = &[
    &["run"],
    &["run", "--memory", "much", "web"],
    &["run", "--memory", "-1", "web"],
    &["run", "--memory", "99999999999999999999G", "web"],
    &["run", "--cpus", "0x10", "web"],
    &["run", "--no-such-flag", "web"],
    &["run", "--name", "../x", "web"],
    &["create", "--disk", "1", "hostile:case"],
    &["inspect", "nobody"],
    &["wake", ""],
    &["rm", "nobody"],
    &["image", "import", "/nonexistent"],
    &["image", "rm", "nobody"],
    &["wait", "--timeout", "never", "nobody"],
    &["no-such-verb"],
    &["--host", "tcp://127.0.0.1:1", "ps"],
    &["--host", "unix:///nonexistent.sock", "ps"],
];

/// All of them.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    let daemon = bed.lab.parts().daemon().to_owned();
    let file = bed.lab.disk_directory().join("wrong.toml");
    for (text, word) in KEYS {
        fs::write(&file, text)?;
        let output = Command::new(&daemon)
            .args(["--check", "--config"])
            .arg(&file)
            .output()
            .context("starting the daemon")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // sysexits(3): EX_USAGE.
        let right = output.status.code() == Some(64) && said.contains(word) && said.len() > 20;
        let fault = (!right).then(|| format!("{}: {said}", output.status));
        bed.tally
            .note(AREA, &format!("the configuration {text:?}"), fault);
    }
    fs::remove_file(&file)?;
    let client = daemon.with_file_name("dormouse");
    let socket = format!(
        "unix://{}",
        bed.lab.run_directory().join("dormoused.sock").display()
    );
    for words in LINES {
        let before = bed.picture()?;
        let output = Command::new(&client)
            .args(*words)
            .env("DORMOUSE_HOST", &socket)
            .output()
            .context("starting the command line")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused = output.status.code() == Some(125) && said.contains("error");
        let fault = if !refused {
            Some(format!("{}: {said}", output.status))
        } else if bed.picture()? != before {
            Some("something changed".to_owned())
        } else {
            None
        };
        bed.tally
            .note(AREA, &format!("dormouse {}", words.join(" ")), fault);
    }
    Ok(())
}
