//! Text traces: timed inputs, and below each what it brought about. `UPDATE=1 cargo test -p
//! dormouse-standby --test traces` rewrites what is expected; the difference is then reviewed like code.
//!
//! ```text
//! # A comment.
//! 5m    opened web 1001          an input, at its time since the trace began
//!     > announce web active …    an effect of it
//!     > [4m] record_idle web …   an effect of a deadline on the way to it, with its time
//! ```
//!
//! The words of inputs are those of `script::give`; an attempt that is left out is the latest of its kind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

#[path = "traces/script.rs"]
mod script;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use script::Script;

/// Runs the trace in `path`; what the file should say.
fn run(path: &Path, text: &str) -> String {
    let mut script = Script::new();
    let mut out = String::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with('>') {
            continue;
        }
        writeln!(out, "{line}").unwrap();
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{}:{}", path.display(), at + 1);
        for said in script
            .line(line)
            .unwrap_or_else(|why| panic!("{place}: {why}: {line:?}"))
        {
            writeln!(out, "    > {said}").unwrap();
        }
    }
    out
}

fn trace_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "trace"))
        .collect();
    found.sort();
    found
}

#[test]
fn traces_say_what_the_engine_does() {
    let update = std::env::var_os("UPDATE").is_some();
    let files = trace_files();
    assert!(files.len() >= 10, "the traces are there");
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let now = run(&path, &text);
        assert_eq!(
            now,
            run(&path, &text),
            "{}: the same inputs, the same effects",
            path.display()
        );
        if now == text {
            continue;
        }
        if update {
            std::fs::write(&path, now).unwrap();
        } else {
            let line = now.lines().zip(text.lines()).position(|(now, then)| now != then);
            let line = line.unwrap_or_else(|| now.lines().count().min(text.lines().count()));
            let name = path.file_name().unwrap().display().to_string();
            let (now, then) = (now.lines().nth(line), text.lines().nth(line));
            wrong.push(format!(
                "{name}:{}\n  expected {then:?}\n  got      {now:?}",
                line + 1
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
