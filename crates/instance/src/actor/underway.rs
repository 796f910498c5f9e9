//! The steps under way of one instance: each in a task of its own, none lost, writes in their order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_model::Attempt;
use tokio::sync::{Notify, oneshot};
use tokio::task::{Id, JoinError, JoinSet};

use crate::machine::{Done, Step, StepFailure};
use crate::steps::{Change, StepReport};

/// How much earlier than the machine a step gives up: its word then comes before the machine's deadline,
/// and the step that follows finds it ended.
const MARGIN: Duration = Duration::from_millis(100);

/// The wish that a step end early.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    wished: AtomicBool,
    told: Notify,
}

impl Cut {
    /// Wishes it.
    pub(crate) fn wish(&self) {
        self.wished.store(true, Ordering::Release);
        // One step listens; the permit is kept for one that does not yet.
        self.told.notify_one();
    }

    /// For work that looks now and then.
    pub(crate) const fn flag(&self) -> &AtomicBool {
        &self.wished
    }

    /// Resolves when it is wished. For one listener.
    pub(crate) async fn wished(&self) {
        if !self.wished.load(Ordering::Acquire) {
            self.told.notified().await;
        }
    }
}

#[derive(Debug)]
struct Begun {
    number: Attempt,
    step: Step,
    cut: Arc<Cut>,
}

/// The steps that have begun and not reported.
#[derive(Debug, Default)]
pub(super) struct Underway {
    tasks: JoinSet<StepReport>,
    begun: HashMap<Id, Begun>,
    /// Resolves when the last write has ended, in whatever way.
    last_write: Option<oneshot::Receiver<()>>,
}

impl Underway {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Begins a step that has `remaining` until the machine's deadline. `work` gets the wish to end early.
    pub(super) fn begin<F>(
        &mut self,
        number: Attempt,
        step: Step,
        remaining: Duration,
        work: impl FnOnce(Arc<Cut>) -> F,
    ) where
        F: Future<Output = Result<(Done, Change), StepFailure>> + Send + 'static,
    {
        let cut = Arc::new(Cut::default());
        let work = work(Arc::clone(&cut));
        let late = Arc::clone(&cut);
        let turn = self.turn(&step);
        let patience = remaining.saturating_sub(MARGIN.min(remaining / 10));
        let told = step.clone();
        let task = self.tasks.spawn(async move {
            let began = tokio::time::Instant::now();
            let in_turn = async move {
                // Held until this ends or is given up, which is when the next write may begin.
                let _ended = match turn {
                    Some((before, ended)) => {
                        if let Some(before) = before {
                            // Closed without a word means ended too.
                            drop(before.await);
                        }
                        Some(ended)
                    }
                    None => None,
                };
                work.await
            };
            let outcome = match tokio::time::timeout(patience, in_turn).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    // For what of it goes on, on a thread.
                    late.wish();
                    Err(StepFailure::Passing {
                        why: format!("{told} took longer than {patience:?}"),
                    })
                }
            };
            StepReport {
                number,
                step: told,
                outcome,
                took: began.elapsed(),
            }
        });
        self.begun.insert(task.id(), Begun { number, step, cut });
    }

    /// A write's place behind the write before it, and what tells the one after it. The machine may have
    /// stopped waiting for an earlier write, and begin another while that is not yet handed to the store.
    fn turn(&mut self, step: &Step) -> Option<(Option<oneshot::Receiver<()>>, oneshot::Sender<()>)> {
        // What is read is what was written before it.
        if !matches!(step, Step::Write(_) | Step::RemoveRecord | Step::ReadBack) {
            return None;
        }
        let (ended, wait) = oneshot::channel();
        Some((self.last_write.replace(wait), ended))
    }

    /// Wishes that the step with this number end early.
    pub(super) fn cut_short(&self, number: Attempt) {
        for begun in self.begun.values().filter(|begun| begun.number == number) {
            begun.cut.wish();
        }
    }

    /// Wishes that everything end early that nobody waits for.
    pub(super) fn cut_background(&self) {
        for begun in self.begun.values().filter(|begun| is_background(&begun.step)) {
            begun.cut.wish();
        }
    }

    /// The next report; `None` when nothing is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<StepReport> {
        let ended = self.tasks.join_next_with_id().await?;
        Some(match ended {
            Ok((id, report)) => {
                self.begun.remove(&id);
                report
            }
            Err(error) => self.panicked(&error),
        })
    }

    /// A panic is a defect of ours: the machine hears of it at once, like of every other failure.
    fn panicked(&mut self, error: &JoinError) -> StepReport {
        tracing::error!(%error, "a step panicked");
        let (number, step) = match self.begun.remove(&error.id()) {
            Some(begun) => (begun.number, begun.step),
            // Every task is entered when it begins; a number that is nobody's is counted as late.
            None => (Attempt(0), Step::Greet),
        };
        StepReport {
            number,
            step,
            outcome: Err(StepFailure::Passing {
                why: "a defect: the step panicked".to_owned(),
            }),
            took: Duration::ZERO,
        }
    }
}

/// Whether a step runs beside the instance's life: what follows does not wait for it.
const fn is_background(step: &Step) -> bool {
    matches!(
        step,
        Step::Spill { .. } | Step::Settle { .. } | Step::Verify { .. } | Step::Greet
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    const LONG: Duration = Duration::from_secs(60);

    fn write() -> Step {
        Step::Write(crate::machine::Record::NEW)
    }

    #[tokio::test]
    async fn a_write_begins_after_the_one_before_it_has_ended() {
        let mut underway = Underway::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (release, held) = oneshot::channel::<()>();
        let (first, second) = (Arc::clone(&order), Arc::clone(&order));
        underway.begin(Attempt(1), write(), LONG, |_| async move {
            held.await.unwrap();
            first.lock().unwrap().push(1);
            Ok((Done::Plain, Change::Nothing))
        });
        // The machine gave up waiting for the first one.
        underway.begin(Attempt(2), Step::RemoveRecord, LONG, |_| async move {
            second.lock().unwrap().push(2);
            Ok((Done::Plain, Change::Nothing))
        });
        // What is no write does not wait.
        underway.begin(Attempt(3), Step::Resume, LONG, |_| async {
            Ok((Done::Plain, Change::Nothing))
        });
        assert_eq!(underway.next().await.unwrap().number, Attempt(3));
        release.send(()).unwrap();
        assert_eq!(underway.next().await.unwrap().number, Attempt(1));
        assert_eq!(underway.next().await.unwrap().number, Attempt(2));
        assert_eq!(*order.lock().unwrap(), [1, 2]);
        assert!(underway.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_gives_up_before_the_machine_does_and_lets_the_next_write_go() {
        let mut underway = Underway::default();
        let began = tokio::time::Instant::now();
        let limit = Duration::from_secs(10);
        underway.begin(Attempt(1), write(), limit, |_| std::future::pending());
        underway.begin(Attempt(2), write(), LONG, |_| async {
            Ok((Done::Plain, Change::Nothing))
        });
        let report = underway.next().await.unwrap();
        assert_eq!(report.number, Attempt(1));
        assert!(report.outcome.unwrap_err().why().contains("took longer"));
        assert!(began.elapsed() < limit);
        assert_eq!(underway.next().await.unwrap().number, Attempt(2));
    }

    #[tokio::test]
    async fn a_panic_is_reported_with_its_number() {
        let mut underway = Underway::default();
        underway.begin(Attempt(7), Step::Pause, LONG, |_| async { panic!("planted") });
        let report = underway.next().await.unwrap();
        assert_eq!((report.number, report.step), (Attempt(7), Step::Pause));
        assert!(report.outcome.is_err());
    }

    #[tokio::test]
    async fn a_cut_reaches_the_step_that_it_means() {
        let mut underway = Underway::default();
        underway.begin(
            Attempt(1),
            Step::Shutdown { grace: LONG },
            LONG,
            |cut| async move {
                cut.wished().await;
                Ok((Done::Plain, Change::Nothing))
            },
        );
        underway.begin(Attempt(2), Step::Greet, LONG, |cut| async move {
            cut.wished().await;
            Ok((Done::Plain, Change::Nothing))
        });
        underway.cut_background();
        assert_eq!(underway.next().await.unwrap().number, Attempt(2));
        underway.cut_short(Attempt(1));
        assert_eq!(underway.next().await.unwrap().number, Attempt(1));
    }
}
