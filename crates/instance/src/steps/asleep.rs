//! What is done with the memory of a sleeper: it moves to disk, it is made to outlive a reboot, it is
//! compared after one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Change, Outcome, StepContext, blocking, distrust, failure, plain};
use crate::machine::{Done, Kept, MemoryImage, Settled, StepFailure};
use crate::memory::{GuestRam, Home, Spill, SpillEnd};
use crate::trust::check::Check;
use crate::trust::pace::{Pace, Precedence};

impl StepContext {
    /// Copies memory to disk, with its digest: what was copied is settled at once.
    pub(super) async fn spill(self, image: MemoryImage) -> Outcome {
        let id = self.remembered.view.id;
        let files = self.rooms.layout.images();
        let (uid, cut) = (self.remembered.uid, Arc::clone(&self.cut));
        let precedence = Arc::clone(&self.rooms.background.precedence);
        let ram = self.remembered.view.memory;
        let copy = move || {
            let spill = Spill {
                files: &files,
                id,
                uid,
                pace: Pace::behind(cut.flag(), &precedence),
            };
            spill.run().map_err(|error| failure(&error))
        };
        // Copies take threads that wakes need too: so many at a time, in the order in which they fell asleep.
        let turn = self.turn(&self.rooms.background.spilling).await?;
        let copied = self.alone(copy).await?;
        drop(turn);
        match copied {
            SpillEnd::Durable {
                copied,
                inode,
                digest,
            } => {
                metrics::counter!(crate::metrics::SPILLED_BYTES).increment(copied.0);
                let image = MemoryImage {
                    kept: Kept::Spilled { inode },
                    settled: Settled::At(digest),
                    ..image
                };
                let ram = GuestRam {
                    home: Home::Disk,
                    ..ram
                };
                Ok((Done::Image(image), Change::Ram(ram)))
            }
            SpillEnd::Cancelled => Err(StepFailure::Passing {
                why: "a wake wanted the memory".to_owned(),
            }),
        }
    }

    pub(super) async fn drop_resident(self) -> Outcome {
        let id = self.remembered.view.id;
        let files = self.rooms.layout.images();
        let drop_it = move || files.drop_image(id, Home::Tmpfs).map_err(|error| failure(&error));
        self.alone(drop_it).await.map(plain)
    }

    /// In the background, behind other sleepers: reading memory must not keep the host's disk from those
    /// that somebody waits for.
    pub(super) async fn settle(self, image: MemoryImage) -> Outcome {
        let turn = self.turn(&self.rooms.background.settling).await?;
        let precedence = Arc::clone(&self.rooms.background.precedence);
        let outcome = self.compare_memory(image, Some(precedence)).await;
        drop(turn);
        outcome
    }

    /// Waits for a turn, unless a wake comes first.
    async fn turn(&self, turns: &Arc<Semaphore>) -> Result<Option<OwnedSemaphorePermit>, StepFailure> {
        tokio::select! {
            // Nobody closes it.
            turn = Arc::clone(turns).acquire_owned() => Ok(turn.ok()),
            () = self.cut.wished() => {
                let why = "a wake wanted the memory".to_owned();
                Err(StepFailure::Passing { why })
            }
        }
    }

    /// Now: somebody waits.
    pub(super) async fn verify(self, image: MemoryImage) -> Outcome {
        self.compare_memory(image, None).await
    }

    /// Pauses for those who have precedence, if that is given.
    async fn compare_memory(&self, image: MemoryImage, behind: Option<Arc<Precedence>>) -> Outcome {
        let began = tokio::time::Instant::now();
        let (layout, id, boot) = (
            self.rooms.layout.clone(),
            self.remembered.view.id,
            self.rooms.boot(),
        );
        let cut = Arc::clone(&self.cut);
        let settled = blocking(move || {
            let check = Check {
                layout: &layout,
                id,
                image,
                boot,
            };
            let pace = match &behind {
                Some(precedence) => Pace::behind(cut.flag(), precedence),
                None => Pace::straight(cut.flag()),
            };
            check.settle(&pace).map_err(distrust)
        })
        .await?;
        metrics::histogram!(crate::metrics::SETTLE_SECONDS).record(began.elapsed().as_secs_f64());
        Ok((Done::Image(settled), Change::Nothing))
    }
}
