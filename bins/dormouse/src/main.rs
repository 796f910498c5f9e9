//! `dormouse`: the command line of the daemon.
//!
//! What a program may want is on standard output, what a person wants to know on standard error. Our
//! own errors exit with 125; `run` in the foreground exits with its command's code.
//!
//! | module | does |
//! |---|---|
//! | [`arguments`] | what may be typed |
//! | [`verbs`] | one file a group of verbs: calls the API, prints the answer |
//! | [`json`] | the API's messages as JSON: the stable field names |
//! | [`table`], [`text`] | the same for people |
//! | [`progress`] | what is shown while something takes its time |
//! | [`failure`] | errors as they are printed, and exit codes |

mod arguments;
mod failure;
mod json;
mod progress;
mod session;
mod table;
mod text;
mod verbs;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::Arguments;
use failure::Failure;
use session::Session;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::usage(&error),
    };
    let (json, verbose) = (arguments.global.json, arguments.global.verbose);
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => failure.report(json, verbose),
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("CLI_RUNTIME", "starting").because(&error))?;
    let session = Session::new(&arguments.global)?;
    runtime.block_on(verbs::dispatch(&session, arguments.verb))
}
