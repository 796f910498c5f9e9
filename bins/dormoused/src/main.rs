//! `dormoused`: the host daemon. Everything that it is lives in `dormouse-daemon`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dormouse_daemon::config::{self, RawConfig};
use dormouse_daemon::{Activation, DaemonError, Ending, explain};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit codes: sysexits(3) where it has a word.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const TASK_ENDED: u8 = 70;
const FORCED: u8 = 75;

/// How long work on the blocking pool may take when everything else has ended.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// Runs microVMs that sleep when nobody talks to them and wake on the first packet.
#[derive(Debug, Parser)]
#[command(name = "dormoused", version)]
struct Arguments {
    /// The configuration file; without it defaults and the environment are used.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and end.
    #[arg(long)]
    check: bool,
    /// Unpack the guest kernel of a Debian kernel package into the data directory, and end. Nothing is
    /// installed on the host.
    #[arg(long, value_name = "PACKAGE.deb")]
    unpack_kernel: Option<PathBuf>,
    /// What to log, such as `info` or `dormouse_network=debug,info`.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = start_logging(&arguments) {
        eprintln!("dormoused: {error:#}");
        return ExitCode::from(USAGE);
    }
    let config = match config::load(arguments.config.as_deref()).and_then(|raw: RawConfig| raw.resolve()) {
        Ok(config) => config,
        Err(error) => {
            for problem in error.to_string().split("; ") {
                eprintln!("dormoused: configuration: {problem}");
            }
            return ExitCode::from(USAGE);
        }
    };
    if arguments.check {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    if let Some(package) = &arguments.unpack_kernel {
        return match dormouse_daemon::unpack_kernel(package, &config) {
            Ok(release) => {
                println!("{release}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("dormoused: {}", explain(&error));
                ExitCode::from(UNAVAILABLE)
            }
        };
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("dormoused: starting the runtime: {error}");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let code = runtime.block_on(run(config));
    // Work that nobody can stop, such as the end of a copy of memory, must not keep the daemon: what it
    // leaves half done the next one begins anew.
    runtime.shutdown_timeout(if code == ExitCode::from(FORCED) {
        Duration::ZERO
    } else {
        LEFTOVERS
    });
    code
}

fn start_logging(arguments: &Arguments) -> anyhow::Result<()> {
    let format = if arguments.log_json {
        dormouse_telemetry::Format::Json
    } else {
        dormouse_telemetry::Format::Text
    };
    dormouse_telemetry::init(&arguments.log.parse()?, format)?;
    Ok(())
}

async fn run(config: config::Config) -> ExitCode {
    let activation = match Activation::take() {
        Ok(activation) => activation,
        Err(error) => {
            eprintln!("dormoused: what the service manager hands over: {error}");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let (terminate, interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("dormoused: listening for signals: {error}");
            return ExitCode::from(UNAVAILABLE);
        }
    };
    let stop = CancellationToken::new();
    // The daemon is a large future; the other arm is a few words.
    let daemon = Box::pin(dormouse_daemon::run(config, stop.clone(), activation));
    tokio::select! {
        ended = daemon => exit_code(ended),
        () = until_forced(stop, terminate, interrupt) => ExitCode::from(FORCED),
    }
}

/// The first signal asks for an orderly end, the second for one at once: that is what a crash would leave,
/// which the next daemon can deal with.
async fn until_forced(stop: CancellationToken, mut terminate: Signal, mut interrupt: Signal) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tracing::info!("stopping; guests stay as they are");
    stop.cancel();
    next().await;
    tracing::warn!("a second signal: ending at once; guests stay as they are");
}

fn exit_code(ended: Result<Ending, DaemonError>) -> ExitCode {
    match ended {
        Ok(Ending::Asked) => ExitCode::SUCCESS,
        Ok(Ending::TaskEnded(name)) => {
            eprintln!("dormoused: {name} ended");
            ExitCode::from(TASK_ENDED)
        }
        Ok(Ending::Forced) => ExitCode::from(FORCED),
        Err(error) => {
            eprintln!("dormoused: {}", explain(&error));
            ExitCode::from(UNAVAILABLE)
        }
    }
}
