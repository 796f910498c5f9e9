//! Finding the keeper of descriptors, or starting it. It outlives the daemon, so it gets a session of its
//! own and nothing that would end with us.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_keeper::{Holder, KeeperClient, KeeperError};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a keeper that was started is asked whether it listens, and after which pause.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The keeper of the run directory.
///
/// # Errors
/// When none answers and none could be started.
pub async fn reach(run: &Path) -> Result<KeeperClient, KeeperError> {
    let socket = run.join("keeper.sock");
    let client = KeeperClient::new(&socket, PATIENCE);
    if client.list().await.is_ok() {
        return Ok(client);
    }
    start(run, &socket);
    for _ in 1..TRIES {
        if client.list().await.is_ok() {
            return Ok(client);
        }
        tokio::time::sleep(PAUSE).await;
    }
    client.list().await.map(|_| client)
}

/// Starts the keeper that lies beside the daemon. What goes wrong shows when it does not answer.
fn start(run: &Path, socket: &Path) {
    let Ok(program) = std::env::current_exe().map(|path| path.with_file_name("dormouse-keeper")) else {
        return;
    };
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(run.join("keeper.log"));
    let output = || {
        log.as_ref()
            .ok()
            .and_then(|log| log.try_clone().ok())
            .map_or_else(Stdio::null, Stdio::from)
    };
    let mut command = Command::new(&program);
    // It makes a session of its own: a terminal's signals, and a supervisor's to our group, pass it by.
    command
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(output())
        .stderr(output());
    match command.spawn() {
        // Reaped by nobody while we live, which costs one entry of the process table at its end.
        Ok(child) => tracing::info!(pid = child.id(), "keeper started"),
        Err(error) => tracing::error!(program = %program.display(), %error, "keeper not started"),
    }
}
