//! What is written where: a child process logs, its standard error is read.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::process::Command;

use dormouse_telemetry::{Format, TelemetryError, init};

const CHILD: &str = "DORMOUSE_TEST_TELEMETRY_TEST_CHILD";

/// Not a test of its own: the process whose lines the next one reads.
#[test]
fn child_that_logs() {
    let Ok(format) = std::env::var(CHILD) else { return };
    let format: Format = format.parse().unwrap();
    let handle = init(&"warn".parse().unwrap(), format).unwrap();
    tracing::info!("not yet");
    handle.set(&"info".parse().unwrap()).unwrap();
    tracing::info!(instance = "web", "awake");
    let again = init(&"info".parse().unwrap(), format).unwrap_err();
    assert_eq!(again, TelemetryError::Running);
}

fn lines(format: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_logs", "--nocapture"])
        .env(CHILD, format)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn lines_go_to_stderr_and_the_filter_can_be_changed() {
    let text = lines("text");
    assert!(
        text.contains("awake") && text.contains("instance=\"web\""),
        "{text}"
    );
    assert!(!text.contains("not yet"), "{text}");
    let json = lines("json");
    assert!(json.contains(r#""message":"awake","instance":"web""#), "{json}");
    assert!(json.lines().all(|line| line.starts_with('{')), "{json}");
}
