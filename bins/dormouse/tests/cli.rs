//! The program itself against a daemon that runs nothing: what is printed where, and exit codes.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]
#![allow(unreachable_pub, reason = "a module of this test only")]

mod daemon;

use daemon::{Daemon, dormouse};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn run_prints_the_id_and_nothing_else() {
    let daemon = Daemon::start();
    let made = daemon.dormouse("run -d --name web nginx").exits(0);
    assert_eq!(
        (made.stdout.as_str(), made.stderr.as_str()),
        ("01kfakefakefakefakefakefa0\n", "")
    );
    let listed = daemon.dormouse("ps -q").exits(0);
    assert_eq!(listed.stdout, made.stdout);
}

#[test]
fn run_in_the_foreground_is_its_command() {
    let daemon = Daemon::start();
    let ran = daemon.dormouse("run --name a web 7").exits(7);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("hello\u{fffd}\n", "trouble\n")
    );
    daemon.dormouse("inspect a").exits(0);
    daemon.dormouse("run --rm --name b web 127").exits(127);
    daemon.dormouse("inspect b").exits(125);
    // No exit code at all is an error of ours.
    let ran = daemon.dormouse("run --name c web").exits(125);
    assert!(
        ran.stderr
            .contains("error[INSTANCE_FAILED]: c is running without an exit code"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_sleeper_is_listed_and_a_stopped_one_only_when_asked_for() {
    let daemon = Daemon::start();
    for name in ["a", "b"] {
        daemon.dormouse(&format!("run -d --name {name} web")).exits(0);
    }
    assert_eq!(daemon.dormouse("sleep a").exits(0).stdout, "a\n");
    daemon.dormouse("stop -t 1s b").exits(0);
    let listed = daemon.dormouse("ps").exits(0).stdout;
    assert!(
        listed.contains("standby") && !listed.contains("stopped"),
        "{listed}"
    );
    let listed = json(&daemon.dormouse("ps -a --json").exits(0).stdout);
    let states: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["standby", "stopped"]);
    assert_eq!(
        daemon.dormouse("ps -q --filter state=stopped").exits(0).stdout,
        "01kfakefakefakefakefakefa1\n"
    );
    assert_eq!(daemon.dormouse("resume a").exits(0).stdout, "a\n");
    assert_eq!(
        json(&daemon.dormouse("wake a --json").exits(0).stdout)["state"],
        "running"
    );
}

#[test]
fn an_error_of_the_daemon_names_code_and_next_step() {
    let daemon = Daemon::start();
    let failed = daemon.dormouse("inspect nobody").exits(125);
    assert_eq!(failed.stdout, "");
    assert_eq!(
        failed.stderr,
        "error[INSTANCE_NOT_FOUND]: no instance is named nobody · try: dormouse ps -a\n"
    );
    let failed = daemon.dormouse("inspect nobody --verbose").exits(125);
    assert!(failed.stderr.ends_with(" · request req-1\n"), "{}", failed.stderr);
    let failed = json(&daemon.dormouse("inspect nobody --json").exits(125).stderr);
    assert_eq!(failed["error"]["code"], "INSTANCE_NOT_FOUND");
}

#[test]
fn many_names_are_each_tried() {
    let daemon = Daemon::start();
    daemon.dormouse("run -d --name a web").exits(0);
    let removed = daemon.dormouse("rm -f nobody a").exits(125);
    assert_eq!(removed.stdout, "a\n");
    assert!(
        removed.stderr.starts_with("error[INSTANCE_NOT_FOUND]"),
        "{}",
        removed.stderr
    );
    assert_eq!(daemon.dormouse("ps -aq").exits(0).stdout, "");
}

#[test]
fn removing_what_runs_needs_force() {
    let daemon = Daemon::start();
    daemon.dormouse("run -d --name a web").exits(0);
    let refused = daemon.dormouse("rm a").exits(125);
    assert!(
        refused.stderr.starts_with("error[INSTANCE_NOT_STOPPED]"),
        "{}",
        refused.stderr
    );
    daemon.dormouse("rm --force a").exits(0);
}

#[test]
fn waits_end_when_the_state_is_reached_or_the_time_is_over() {
    let daemon = Daemon::start();
    daemon.dormouse("run -d --name a web").exits(0);
    assert_eq!(
        daemon.dormouse("wait a --for ready --timeout 5s").exits(0).stdout,
        "running\n"
    );
    let late = daemon.dormouse("wait a --for asleep --timeout 0s").exits(125);
    assert!(
        late.stderr
            .starts_with("error[CLI_WAIT_TIMEOUT]: a is not asleep after 0s"),
        "{}",
        late.stderr
    );
    daemon.dormouse("rm -f a").exits(0);
    assert_eq!(
        daemon
            .dormouse("wait a --for deleted --timeout 5s")
            .exits(0)
            .stdout,
        "deleted\n"
    );
}

#[test]
fn an_import_shows_phases_on_stderr_and_the_digest_on_stdout() {
    let daemon = Daemon::start();
    let imported = daemon.dormouse("image import some/web.tar").exits(0);
    assert_eq!(imported.stdout, "sha256:abc\n");
    assert!(imported.stderr.contains("reading …\n"), "{}", imported.stderr);
    assert!(
        imported.stderr.contains("unpacking done in "),
        "{}",
        imported.stderr
    );
    let imported = daemon
        .dormouse("--progress none --json image import /web.tar")
        .exits(0);
    assert_eq!(imported.stderr, "");
    assert_eq!(json(&imported.stdout)["names"][0], "web:latest");
    let failed = daemon.dormouse("image inspect nothing").exits(125);
    assert!(
        failed.stderr.ends_with("try: dormouse image ls\n"),
        "{}",
        failed.stderr
    );
}

#[test]
fn the_rest_answers() {
    let daemon = Daemon::start();
    daemon.dormouse("create --name a web").exits(0);
    daemon.dormouse("start a").exits(0);
    assert_eq!(daemon.dormouse("logs a").exits(0).stdout, "hello\u{fffd}\n");
    assert_eq!(
        json(
            daemon
                .dormouse("logs --json a")
                .exits(0)
                .stdout
                .lines()
                .last()
                .unwrap()
        )["stream"],
        "stderr"
    );
    assert_eq!(
        json(&daemon.dormouse("standby status a --json").exits(0).stdout)["status"],
        "active"
    );
    assert_eq!(
        json(&daemon.dormouse("hold a 5m --json").exits(0).stdout)["status"],
        "held"
    );
    assert!(daemon.dormouse("status").exits(0).stdout.starts_with("NAME"));
    assert_eq!(
        json(&daemon.dormouse("system info --json").exits(0).stdout)["version"],
        "9.9"
    );
    assert!(daemon.dormouse("system info").exits(0).stdout.contains("version"));
    assert!(daemon.dormouse("doctor").exits(0).stdout.contains("warning"));
    let raised = daemon.dormouse("setup --sleepers 10000").exits(0).stdout;
    assert!(
        raised.contains("44096") && raised.contains("setup --undo"),
        "{raised}"
    );
    let same = daemon.dormouse("setup --sleepers 1").exits(0).stdout;
    assert!(same.contains("nothing changed"), "{same}");
    assert!(daemon.dormouse("version").exits(0).stdout.contains("daemon  9.9"));
    let events = daemon.dormouse("events").exits(125);
    assert_eq!(events.stdout, "- 2 events were missed\n");
    assert!(
        events.stderr.contains("try: dormouse events --after c7"),
        "{}",
        events.stderr
    );
}

#[test]
fn the_store_is_checked_copied_and_tidied() {
    let daemon = Daemon::start();
    let check = daemon.dormouse("store check").exits(1);
    for part in ["3 sound", "quarantined: wrong checksum", "not sound"] {
        assert!(check.stdout.contains(part), "{}", check.stdout);
    }
    let json = daemon.dormouse("store check --json").exits(1).stdout;
    assert!(json.contains("\"quarantined\""), "{json}");
    assert!(
        daemon
            .dormouse("store quarantine ls")
            .exits(0)
            .stdout
            .contains("k1")
    );
    assert_eq!(
        daemon.dormouse("store quarantine rm instance k1").exits(0).stdout,
        "k1\n"
    );
    daemon.dormouse("store quarantine rm instance k2").exits(125);
    let copied = daemon.dormouse("store backup copy.db").exits(0).stdout;
    assert!(copied.contains("copy.db: 3 records, 8192 bytes"), "{copied}");
}

#[test]
fn a_store_is_checked_without_a_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records.db");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let nowhere = "unix:///nonexistent/d.sock";
    let look = format!("store check --path {}", path.display());
    let absent = dormouse(nowhere, &look).exits(125);
    assert!(
        absent.stderr.starts_with("error[STORE_OPEN_FAILED]"),
        "{}",
        absent.stderr
    );
    let store = runtime.block_on(dormouse_store::Store::open(&path)).unwrap();
    let held = dormouse(nowhere, &look).exits(125);
    let us = format!("process {}", std::process::id());
    assert!(
        held.stderr.contains("error[STORE_LOCKED]") && held.stderr.contains(&us),
        "{}",
        held.stderr
    );
    drop(store);
    assert!(dormouse(nowhere, &look).exits(0).stdout.contains("sound"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let damaged = dormouse(nowhere, &look).exits(125);
    assert!(
        damaged.stderr.starts_with("error[STORE_DAMAGED]"),
        "{}",
        damaged.stderr
    );
}

#[test]
fn what_was_mistyped_is_explained() {
    let nowhere = "unix:///nonexistent/d.sock";
    let mistyped = dormouse(nowhere, "slep a").exits(125);
    assert!(
        mistyped.stderr.starts_with("error[CLI_USAGE]: "),
        "{}",
        mistyped.stderr
    );
    assert!(mistyped.stderr.contains("'sleep'"), "{}", mistyped.stderr);
    let wrong = dormouse("tcp://elsewhere", "ps").exits(125);
    assert!(
        wrong.stderr.starts_with("error[CLIENT_ADDRESS_INVALID]"),
        "{}",
        wrong.stderr
    );
    assert!(dormouse(nowhere, "--help").exits(0).stdout.contains("Usage"));
}

#[test]
fn an_absent_daemon_is_told_with_its_socket_and_how_to_start_it() {
    let nowhere = "unix:///nonexistent/d.sock";
    let absent = dormouse(nowhere, "ps").exits(125);
    assert!(
        absent
            .stderr
            .starts_with("error[CLIENT_DAEMON_ABSENT]: no daemon listens at /nonexistent/d.sock")
    );
    assert!(absent.stderr.contains("try: sudo dormoused"), "{}", absent.stderr);
    let doctor = dormouse(nowhere, "doctor").exits(1);
    assert!(
        doctor.stdout.contains("daemon") && doctor.stdout.contains("failed"),
        "{}",
        doctor.stdout
    );
    assert!(
        dormouse(nowhere, "version")
            .exits(0)
            .stdout
            .contains("not reached")
    );
}
