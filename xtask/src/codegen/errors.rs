//! docs/errors.md, from the lists of codes that the rooms keep and from the table of statuses.

use std::fmt::Write as _;

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

const HEAD: &str = "# Errors

This page is written by `cargo xtask codegen` from the modules `codes` of the crates; `cargo xtask tidy` compares those with the code.

Every error has a stable **code** and a **kind**. A code keeps its meaning once published. With every status that is not OK the daemon sends an
`ErrorDetail` (proto/dormouse/v1/error.proto) as the one detail of the `google.rpc.Status` in `grpc-status-details-bin`: code, kind, retry advice,
the message, the field that is wrong, the least pause before another try, the request's id. Code, kind and advice are also in the trailers
`dormouse-code`, `dormouse-kind` and `dormouse-retry`, for whoever reads text. The command line prints `error[CODE]: what · why · try: command` and
exits with 125; under `--json` it prints all of that as the object `error`.

Every answer has `dormouse-request-id` in its header and its trailers: what the caller sent in the metadata under that name, else a fresh one. The
daemon's log has it in every line of the request (`request_id`), and so have the events of what the request changed.

The kind decides the gRPC status and the advice, in one table (`crates/daemon/src/api/status.rs`). A `bug` is told without its insides; they are in
the daemon's log.

A step of an instance's plan that fails keeps its causes as text. Errors of the rooms below it (memory images, virtual machine monitor, network,
observer, keeper) then reach a caller as `INSTANCE_FAILED` with those causes; their own codes are seen when the daemon does not start, and by
embedders.

## Kinds

Where a code has several kinds below, its cause decides.

| kind | gRPC status | retry advice |
|---|---|---|
";

/// Writes the page, or with `check` only says whether it is what would be written.
///
/// # Errors
/// When it cannot be written.
#[cfg(not(feature = "codegen"))]
pub(crate) fn run(check: bool) -> anyhow::Result<std::process::ExitCode> {
    let page = crate::build::workspace().join("docs/errors.md");
    super::keep(&[(page, self::page().into_bytes())], check)
}

/// The whole page.
#[cfg_attr(
    feature = "codegen",
    allow(dead_code, reason = "written by the run without that feature")
)]
fn page() -> String {
    let mut page = HEAD.to_owned();
    for kind in Kind::ALL {
        let advice = match kind {
            Kind::Timeout => "caller_decides: what was asked may have happened",
            other => other.retry().as_str(),
        };
        row(&mut page, &[kind.as_str(), &status(kind), advice]);
    }
    let mut sections: Vec<(&str, String, Vec<Code>)> = Vec::new();
    let all: Vec<&Section> = dormouse_daemon::codes::all()
        .chain(dormouse_client::codes::SECTIONS)
        .collect();
    for section in all {
        match sections.iter_mut().find(|(title, _, _)| *title == section.title) {
            Some((_, intro, codes)) => {
                intro.push_str(section.intro);
                codes.extend_from_slice(section.codes);
            }
            None => sections.push((section.title, section.intro.to_owned(), section.codes.to_vec())),
        }
    }
    for (title, intro, codes) in sections {
        let between = if intro.is_empty() { "" } else { "\n\n" };
        write(&mut page, &format!("\n## {title}\n\n{intro}{between}"));
        write(
            &mut page,
            "| code | kind | gRPC status | meaning | what to do |\n|---|---|---|---|---|\n",
        );
        for code in codes {
            code_row(&mut page, &code);
        }
    }
    page
}

fn code_row(page: &mut String, code: &Code) {
    let each = |name: &dyn Fn(Kind) -> String| {
        let mut names: Vec<String> = Vec::new();
        for kind in code.kinds {
            let name = name(*kind);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        match names.as_slice() {
            [] => "-".to_owned(),
            names => names.join(", "),
        }
    };
    let kinds = each(&|kind| kind.as_str().to_owned());
    let advice = if code.advice.is_empty() { "-" } else { code.advice };
    let name = format!("`{}`", code.name);
    row(page, &[&name, &kinds, &each(&status), code.meaning, advice]);
}

/// The name of a kind's gRPC status, as gRPC writes it.
fn status(kind: Kind) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", dormouse_daemon::api::code(kind)).chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn row(page: &mut String, cells: &[&str]) {
    write(page, &format!("| {} |\n", cells.join(" | ")));
}

fn write(page: &mut String, text: &str) {
    // Into a string nothing can fail.
    let _ = page.write_str(text);
}
