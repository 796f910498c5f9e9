//! Everything that `dormoused` is, as a library: configuration, the joined rooms, the API.
//!
//! | module | |
//! |---|---|
//! | [`config`] | configuration |
//! | [`wiring`] | the rooms joined; read this first |
//! | [`engine`] | the shell around the standby engine |
//! | [`api`] | the gRPC services |
//! | [`server`] | the server on its socket |
//! | [`door`] | requests under way and requests refused at the end |
//! | [`health`] | the health service |
//! | [`activation`] | what a service manager hands over and is told |
//! | [`events`] | the event log |
//! | [`images`] | images joined with the store and with instances |
//! | [`keeper`] | finding or starting the keeper of descriptors |
//! | [`setup`] | settings of the host, raised and put back |
//! | [`system`] | facts of the host, the doctor |
//! | [`health`] | what `grpc.health.v1` says |
//! | [`host`] | directories and mounts of ours |
//! | [`codes`] | the codes of its errors, with meaning and advice |

pub mod activation;
pub mod api;
mod causes;
pub mod codes;
pub mod config;
pub mod door;
pub mod engine;
pub mod error;
pub mod events;
pub mod health;
pub mod host;
pub mod images;
pub mod keeper;
pub mod server;
pub mod setup;
pub mod system;
pub mod wiring;

use std::time::Duration;

use dormouse_model::error::chain;
use tokio_util::sync::CancellationToken;

use dormouse_keeper::notify::News;

pub use activation::Activation;
pub use error::DaemonError;
use server::ApiSocket;

/// How long requests under way may take at the end, and then plans under way.
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
pub async fn run(
    config: config::Config,
    stop: CancellationToken,
    mut activation: Activation,
) -> Result<Ending, DaemonError> {
    dormouse_sys::memory::keep_little_free();
    let manager = activation.manager.clone();
    manager
        .tell(&[News::Status("taking over what an earlier daemon left")])
        .await;
    let mut house = wiring::join(&config, stop.clone(), &mut activation).await?;
    let socket = match activation.api.take() {
        Some(passed) => ApiSocket::of_manager(passed, &config.api_socket)?,
        None => ApiSocket::bind(&config.api_socket).await?,
    };
    let place = socket.place();
    tracing::info!(socket = %config.api_socket.display(), "serving");
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(server::serve(socket, house.api.clone(), stop.clone()));
    manager.tell(&[News::Ready, News::Status("serving")]).await;
    let ended = tokio::select! {
        // First: what ends because it was asked to has not failed.
        biased;
        () = stop.cancelled() => None,
        Some(ended) = house.tasks.join_next() => Some(ended.unwrap_or("a task that panicked")),
        Some(served) = serving.join_next() => {
            if let Ok(Err(error)) = served {
                tracing::error!(%error, "the API's transport failed");
            }
            Some("api")
        }
        // Never ends.
        () = manager.watch() => None,
    };
    if let Some(name) = ended {
        tracing::error!(name, "a critical task ended");
    }
    stop.cancel();
    manager
        .tell(&[News::Stopping, News::Status("letting go of guests")])
        .await;
    let orderly = tokio::select! {
        orderly = let_go(&house, serving) => orderly,
        () = manager.watch() => false,
    };
    if let Some(place) = place {
        place.remove();
    }
    Ok(match (ended, orderly) {
        (Some(name), _) => Ending::TaskEnded(name),
        (None, true) => Ending::Asked,
        (None, false) => Ending::Forced,
    })
}

/// The end, each part within its own grace, so that a client that does not go away keeps no guest from
/// being let go of: the engine begins nothing more, requests under way are answered, and plans under way
/// run to their ends. Whether all did.
async fn let_go(house: &wiring::House, mut serving: tokio::task::JoinSet<Served>) -> bool {
    let quiet = tokio::time::timeout(GRACE, house.engine.shut_down());
    let answered = tokio::time::timeout(GRACE, async { while serving.join_next().await.is_some() {} });
    let (quiet, answered) = tokio::join!(quiet, answered);
    let detached = tokio::time::timeout(GRACE, house.instances.detach()).await;
    for (what, ended) in [
        ("engine", quiet.is_ok()),
        ("api", answered.is_ok()),
        ("instances", detached.is_ok()),
    ] {
        if !ended {
            tracing::error!(what, "not ended within its grace");
        }
    }
    quiet.is_ok() && answered.is_ok() && detached.is_ok()
}

type Served = Result<(), tonic::transport::Error>;

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
