//! Deleting taps, on a thread of its own: the kernel waits for every processor before a device is
//! gone, some 20 ms, and nobody's wake should wait along. The name is free long before that.

use std::io;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use crate::error::NetworkError;
use crate::kernel::Tap;
use crate::netlink::RequestSocket;
use crate::request::{self, Device};

/// Taps that may wait to be deleted. When it is full the data plane's thread waits for a place:
/// taps are not made faster than they go.
const QUEUE_LENGTH: usize = 256;

/// The end of a deletion.
pub(crate) type Deletion = oneshot::Receiver<Result<(), NetworkError>>;

struct Doomed {
    tap: Tap,
    done: oneshot::Sender<Result<(), NetworkError>>,
}

/// A handle on the thread, which ends with it.
#[derive(Debug)]
pub(crate) struct Reaper {
    queue: mpsc::Sender<Doomed>,
}

impl Reaper {
    /// Starts the thread, in the namespace of the calling thread.
    pub(crate) fn start() -> Result<Self, NetworkError> {
        let mut route = RequestSocket::open(netlink_sys::protocols::NETLINK_ROUTE)?;
        let (queue, mut doomed) = mpsc::channel::<Doomed>(QUEUE_LENGTH);
        thread::Builder::new()
            .name("dormouse-reaper".to_owned())
            .spawn(move || {
                while let Some(Doomed { tap, done }) = doomed.blocking_recv() {
                    let result = route.run(&[request::remove_link(Device::Index(tap.index))]);
                    // Our descriptor goes after the device: closing the last one would do the same
                    // work, elsewhere. Nobody may be waiting for the news.
                    drop(tap);
                    let _ = done.send(result);
                }
            })
            .map_err(|source| NetworkError::Thread { source })?;
        Ok(Self { queue })
    }

    /// Deletes a tap, whoever holds descriptors of it. Returns at once; the deletion goes on even
    /// when nobody waits for its end.
    pub(crate) fn delete(&self, tap: Tap) -> Deletion {
        let (done, deletion) = oneshot::channel();
        if let Err(refused) = self.queue.blocking_send(Doomed { tap, done }) {
            let Doomed { tap, done } = refused.0;
            let about = format!("number {}", tap.index);
            let source = io::Error::other("the thread that deletes taps has ended");
            let _ = done.send(Err(NetworkError::Kernel {
                doing: "deleting the device",
                about,
                source,
            }));
        }
        deletion
    }
}
