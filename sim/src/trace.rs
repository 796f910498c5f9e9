//! The trace: every event and every effect as a line, on demand. A seed that broke something is run
//! again with its trace kept, so the many that break nothing do not pay for the text.

use std::fmt::{self, Write as _};

use dormouse_model::MonoTime;

/// What a trace keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: for speed.
    Nothing,
    /// Every line.
    Lines,
}

/// The record of one run.
#[derive(Debug)]
pub struct Trace {
    keep: Keep,
    text: String,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub const fn new(keep: Keep) -> Self {
        Self {
            keep,
            text: String::new(),
        }
    }

    /// Adds a line. The arguments are formatted only when lines are kept.
    pub fn line(&mut self, now: MonoTime, what: fmt::Arguments<'_>) {
        match self.keep {
            Keep::Nothing => {}
            Keep::Lines => {
                let since = now.since_boot();
                // Writing to a String cannot fail.
                let _ = writeln!(
                    self.text,
                    "{:>6}.{:06} {what}",
                    since.as_secs(),
                    since.subsec_micros()
                );
            }
        }
    }

    /// The lines.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}
