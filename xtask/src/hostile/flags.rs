//! Flags and keys that a person writes: the programs say what is wrong, and end.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};

use super::bed::Bed;
use super::guests::small;

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

/// What the daemon's environment has, and the word that the complaint must have.
const VARIABLES: &[(&str, &[u8], &str)] = &[
    ("DORMOUSE_NO_SUCH_KEY", b"1", "no_such_key"),
    ("DORMOUSE_NETWROK__IPV4_POOL", b"10.0.0.0/16", "netwrok"),
    ("DORMOUSE_NETWORK__IPV4_POLL", b"10.0.0.0/16", "ipv4_poll"),
    ("DORMOUSE_NETWORK", b"10.0.0.0/16", "network"),
    ("DORMOUSE_NETWORK__IPV4_POOL__X", b"1", "network.ipv4_pool"),
    ("DORMOUSE_NETWORK__IPV4_POOL", b"garbage", "network.ipv4_pool"),
    ("DORMOUSE_NETWORK__IPV4_POOL", b"", "network.ipv4_pool"),
    ("DORMOUSE_NETWORK__IPV4_POOL", b"\xff\xfe", "network.ipv4_pool"),
    (
        "DORMOUSE_NETWORK__NAME_SERVERS",
        b"[\"10.0.0.53\"",
        "network.name_servers",
    ),
    ("DORMOUSE_HYPERVISOR__FIRST_UID", b"-1", "hypervisor.first_uid"),
    ("DORMOUSE_HYPERVISOR__UID_COUNT", b"many", "hypervisor.uid_count"),
    ("DORMOUSE_MEMORY__TMPFS_SIZE", b"1e99", "memory.tmpfs_size"),
    ("DORMOUSE_STANDBY__SYNC_INTERVAL", b"\n", "standby.sync_interval"),
    ("DORMOUSE_DATA_DIRECTORY", b"../../etc", "data_directory"),
    ("DORMOUSE_", b"1", ""),
    ("DORMOUSE___", b"1", ""),
];

/// Addresses of a daemon that the command line finds in its environment; each must end with 125 and this code.
const HOSTS: &[(&[u8], &str)] = &[
    (b"nonsense", NO_ADDRESS),
    (b"unix://", NO_ADDRESS),
    (b"unix://relative.sock", NO_ADDRESS),
    (b"http://[::1", NO_ADDRESS),
    (b"tcp://nobody", NO_ADDRESS),
    (b"tcp://127.0.0.1:99999", NO_ADDRESS),
    (b"\xff\xfe", NO_ADDRESS),
    (b"unix:///nonexistent.sock", "CLIENT_DAEMON_ABSENT"),
    (b"unix:///dev/null", "CLIENT_DAEMON_ABSENT"),
];
const NO_ADDRESS: &str = "CLIENT_ADDRESS_INVALID";

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
    &["--host", "", "ps"],
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
        // sysexits(3): EX_USAGE.
        let fault = refusal(&output, 64, word);
        bed.tally
            .note(AREA, &format!("the configuration {text:?}"), fault);
    }
    fs::remove_file(&file)?;
    variables(bed, &daemon)?;
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
    ambiguous(bed, &client, &socket)?;
    hosts(bed, &client)
}

/// What begins the ids of two: nothing is done to either, and the complaint has both names.
fn ambiguous(bed: &mut Bed, client: &Path, socket: &str) -> Result<()> {
    bed.import_guest_image()?;
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let mut request = small(name);
        request.start = false;
        ids.push(bed.create(request)?.id);
    }
    // Made within the same minute: the time is the first part of an id.
    let beginning = ids
        .first()
        .and_then(|id| id.get(..4))
        .context("a short id")?
        .to_owned();
    for words in [&["inspect"][..], &["rm", "-f"], &["wake"], &["logs"], &["stop"]] {
        let before = bed.picture()?;
        let output = Command::new(client)
            .args(words)
            .arg(&beginning)
            .env("DORMOUSE_HOST", socket)
            .output()
            .context("starting the command line")?;
        let fault = refusal(&output, 125, "INSTANCE_AMBIGUOUS")
            .or_else(|| refusal(&output, 125, "first"))
            .or_else(|| refusal(&output, 125, "second"))
            .or_else(|| (bed.picture().ok()? != before).then(|| "something changed".to_owned()));
        let name = format!("dormouse {} with the beginning of two ids", words.join(" "));
        bed.tally.note(AREA, &name, fault);
    }
    bed.remove("first")?;
    bed.remove("second")
}

/// Whether an end says what is wrong: its status, a word of it, and more than that.
fn refusal(output: &Output, status: i32, word: &str) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let right = output.status.code() == Some(status) && said.contains(word) && said.len() > 20;
    (!right).then(|| format!("{}: {said}", output.status))
}

/// The daemon's environment.
fn variables(bed: &mut Bed, daemon: &Path) -> Result<()> {
    for (name, value, word) in VARIABLES {
        let output = Command::new(daemon)
            .arg("--check")
            .env(name, OsStr::from_bytes(value))
            .output()
            .context("starting the daemon")?;
        let shown = value.escape_ascii();
        // sysexits(3): EX_USAGE.
        bed.tally
            .note(AREA, &format!("{name}={shown}"), refusal(&output, 64, word));
    }
    Ok(())
}

/// The command line's.
fn hosts(bed: &mut Bed, client: &Path) -> Result<()> {
    for (value, word) in HOSTS {
        let output = Command::new(client)
            .arg("ps")
            .env("DORMOUSE_HOST", OsStr::from_bytes(value))
            .output()
            .context("starting the command line")?;
        let name = format!("DORMOUSE_HOST={}", value.escape_ascii());
        bed.tally.note(AREA, &name, refusal(&output, 125, word));
    }
    Ok(())
}
