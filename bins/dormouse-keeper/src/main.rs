//! `dormouse-keeper SOCKET`: keeps descriptors for a daemon that may end at any time.
//!
//! Also started by a service manager that passes the listening socket. Ends on SIGTERM; the signals
//! that a terminal sends to everything in it are for the daemon, not for its keeper.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use dormouse_keeper::Keeper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dormouse-keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Fails only for the leader of a process group, which then has what is wanted already.
    let _ = nix::unistd::setsid();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        // Having a listener is what keeps these two from ending the process.
        let _interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let _hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        let keeper = listen()?;
        tokio::select! {
            () = keeper.run() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

fn listen() -> anyhow::Result<Keeper> {
    let mut passed =
        dormouse_sys::descriptor::take_passed().context("taking the service manager's socket")?;
    let mut arguments = std::env::args_os().skip(1);
    match (passed.pop(), arguments.next(), arguments.next()) {
        (Some(socket), None, None) if passed.is_empty() => {
            Keeper::listen_on(socket).context("using the service manager's socket")
        }
        (None, Some(path), None) => Ok(Keeper::listen(Path::new(&path))?),
        (_, _, _) => bail!("usage: dormouse-keeper SOCKET, or one socket of the service manager"),
    }
}
