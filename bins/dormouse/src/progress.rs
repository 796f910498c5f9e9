//! What is shown while something takes its time: on standard error, never on standard output.

use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::arguments::ProgressMode;

/// What takes less is not worth a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A line that moves.
    Bars,
    /// One line a phase.
    Plain,
    /// One JSON object a line, at most one a second but for the ends of phases.
    Json,
    /// Nothing.
    Silent,
}

impl Progress {
    pub(crate) fn new(mode: ProgressMode) -> Self {
        match mode {
            ProgressMode::Auto if io::stderr().is_terminal() => Self::Bars,
            ProgressMode::Auto | ProgressMode::Plain => Self::Plain,
            ProgressMode::Json => Self::Json,
            ProgressMode::None => Self::Silent,
        }
    }

    /// Runs `work`, and shows `label` when it takes longer than a second.
    pub(crate) async fn during<T>(self, label: &str, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let mut work = std::pin::pin!(work);
        if let Ok(done) = tokio::time::timeout(PATIENCE, work.as_mut()).await {
            return done;
        }
        let mut phase = Phase::begin(self, label, began);
        let done = work.await;
        phase.end();
        done
    }

    /// Shows work that reports its phases itself.
    pub(crate) const fn phases(self) -> Phases {
        Phases {
            mode: self,
            open: None,
        }
    }
}

/// The phases of one piece of work, one open at a time.
#[derive(Debug)]
pub(crate) struct Phases {
    mode: Progress,
    open: Option<Phase>,
}

impl Phases {
    /// `done` of `total` bytes of the phase `label`; `total` 0 when it is not known.
    pub(crate) fn update(&mut self, label: &str, done: u64, total: u64) {
        if self.open.as_ref().is_none_or(|phase| phase.label != label) {
            self.end();
            self.open = Some(Phase::begin(self.mode, label, Instant::now()));
        }
        if let Some(phase) = &mut self.open {
            phase.update(done, total);
        }
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self) {
        if let Some(mut phase) = self.open.take() {
            phase.end();
        }
    }
}

#[derive(Debug)]
struct Phase {
    mode: Progress,
    label: String,
    began: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Phase {
    fn begin(mode: Progress, label: &str, began: Instant) -> Self {
        let bar = (mode == Progress::Bars).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_message(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let phase = Self {
            mode,
            label: label.to_owned(),
            began,
            told: Instant::now(),
            bar,
        };
        match mode {
            Progress::Plain => phase.say(&format!("{label} …")),
            Progress::Json => phase.tell("begun", 0, 0),
            Progress::Bars | Progress::Silent => {}
        }
        phase
    }

    fn update(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if total > 0 && bar.length() != Some(total) {
                bar.set_length(total);
                // The template is a constant; should it be wrong, the bar looks plain.
                if let Ok(style) =
                    ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {elapsed}")
                {
                    bar.set_style(style);
                }
            }
            bar.set_position(done);
        }
        if self.mode == Progress::Json && self.told.elapsed() >= PATIENCE {
            self.told = Instant::now();
            self.tell("running", done, total);
        }
    }

    fn end(&mut self) {
        match self.mode {
            Progress::Bars => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
                self.say(&format!(
                    "{} done in {:.1} s",
                    self.label,
                    self.began.elapsed().as_secs_f64()
                ));
            }
            Progress::Plain => {
                self.say(&format!(
                    "{} done in {:.1} s",
                    self.label,
                    self.began.elapsed().as_secs_f64()
                ));
            }
            Progress::Json => self.tell("done", 0, 0),
            Progress::Silent => {}
        }
    }

    fn tell(&self, event: &str, done: u64, total: u64) {
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let value = serde_json::json!({
            "progress": event, "phase": self.label, "elapsed_ms": elapsed_ms,
            "done_bytes": done, "total_bytes": total,
        });
        self.say(&value.to_string());
    }

    fn say(&self, text: &str) {
        // Progress that cannot be shown is no reason to stop.
        let _ = writeln!(io::stderr(), "{text}");
    }
}
