//! Everything that `dormoused` is, as a library: configuration, the joined rooms, the API.
//!
//! | module | |
//! |---|---|
//! | [`config`] | configuration |
//! | [`wiring`] | the rooms joined; read this first |
//! | [`engine`] | the shell around the standby engine |
//! | [`api`] | the gRPC services |
//! | [`server`] | the server on its socket |
//! | [`events`] | the event log |
//! | [`images`] | images joined with the store and with instances |
//! | [`keeper`] | finding or starting the keeper of descriptors |
//! | [`system`] | facts of the host, the doctor |
//! | [`host`] | directories and mounts of ours |

pub mod api;
pub mod config;
pub mod engine;
pub mod error;
pub mod events;
pub mod host;
pub mod images;
pub mod keeper;
pub mod server;
pub mod system;
pub mod wiring;

use std::time::Duration;

use dormouse_model::error::chain;
use tokio_util::sync::CancellationToken;

pub use error::DaemonError;

/// How long requests under way may take at the end, and then outstanding steps.
const GRACE: Duration = Duration::from_secs(10);

/// How a run of the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to, and let go of everything in order.
    Asked,
    /// A task without which it is of no use ended.
    TaskEnded(&'static str),
    /// Something did not end within its grace.
    Forced,
}

/// Runs the daemon until `stop` is cancelled. Guests stay as they are.
///
/// # Errors
/// When a room cannot be had; nothing of the API was served then.
pub async fn run(config: config::Config, stop: CancellationToken) -> Result<Ending, DaemonError> {
    let mut house = wiring::join(&config).await?;
    let listener = server::bind(&config.api_socket)?;
    tracing::info!(socket = %config.api_socket.display(), "serving");
    let stopping = stop.clone();
    let mut serving = tokio::task::JoinSet::new();
    let api = house.api.clone();
    serving.spawn(async move { server::serve(listener, api, stopping.cancelled_owned()).await });
    let ended = tokio::select! {
        () = stop.cancelled() => None,
        Some(ended) = house.tasks.join_next() => Some(ended.unwrap_or("a task that panicked")),
        Some(served) = serving.join_next() => {
            if let Ok(Err(error)) = served {
                tracing::error!(%error, "the API's transport failed");
            }
            Some("api")
        }
    };
    if let Some(name) = ended {
        tracing::error!(name, "a critical task ended");
    }
    stop.cancel();
    let orderly = tokio::time::timeout(GRACE, async {
        while serving.join_next().await.is_some() {}
        house.instances.detach().await;
    })
    .await;
    if let Err(error) = std::fs::remove_file(&config.api_socket) {
        tracing::debug!(%error, "removing the socket");
    }
    Ok(match (ended, orderly) {
        (Some(name), _) => Ending::TaskEnded(name),
        (None, Ok(())) => Ending::Asked,
        (None, Err(_)) => Ending::Forced,
    })
}

/// Unpacks the guest kernel of a Debian package into the data directory; returns its release. Blocking.
///
/// # Errors
/// When the directory cannot be made or the package is none, or lacks a module that guests need.
pub fn unpack_kernel(package: &std::path::Path, config: &config::Config) -> Result<String, DaemonError> {
    host::prepare_data(config)?;
    let kernel = dormouse_image::GuestKernel::unpack_package(package, &config.data_directory)?;
    Ok(kernel.release().to_owned())
}

/// The chain of an error, for binaries.
#[must_use]
pub fn explain(error: &DaemonError) -> String {
    chain(error)
}
