//! The data plane's thread. It lives inside the namespace, owns everything that talks to the kernel,
//! and does one job at a time: so a step of a link is never interleaved with another, and a caller
//! that is cancelled leaves a job either done whole or not begun.

use std::time::Duration;

use dormouse_sys::netns::Namespace;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::kernel::Kernel;

/// Jobs that may wait. Whoever comes when it is full waits for a place, until [`DEADLINE`].
const QUEUE_LENGTH: usize = 256;

/// How long a caller waits for its turn and its answer. A job takes about a millisecond, a listing
/// of ten thousand routes some tens.
const DEADLINE: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

/// A handle on the thread, which ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread inside the configured namespace, and there sets up the data plane.
    pub(crate) async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let namespace = config
            .namespace
            .as_deref()
            .map_or_else(Namespace::current, Namespace::open)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_LENGTH);
        let (ready, wait) = oneshot::channel();
        namespace.spawn("dormouse-network", move || {
            let mut kernel = match Kernel::set_up(config) {
                Ok(kernel) => kernel,
                Err(error) => {
                    // Whoever waits for this may have been cancelled.
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            while let Some(job) = queue.blocking_recv() {
                job(&mut kernel);
            }
        })?;
        answer(wait).await??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the thread and returns what it returned.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Kernel) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (done, wait) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            // The caller may have been cancelled; what was done stays done.
            let _ = done.send(job(kernel));
        });
        match timeout(DEADLINE, self.jobs.send(job)).await {
            Ok(Ok(())) => answer(wait).await?,
            Ok(Err(_)) => Err(NetworkError::WorkerGone),
            Err(_) => Err(NetworkError::Slow { waited: DEADLINE }),
        }
    }
}

async fn answer<T>(wait: oneshot::Receiver<T>) -> Result<T, NetworkError> {
    match timeout(DEADLINE, wait).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(NetworkError::WorkerGone),
        Err(_) => Err(NetworkError::Slow { waited: DEADLINE }),
    }
}
