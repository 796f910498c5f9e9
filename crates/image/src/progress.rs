//! How far an import is, and taking it back.

use std::ops::ControlFlow;

use crate::error::ImageError;

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Copying blobs into the store; counted in bytes.
    Copying,
    /// Unpacking layers; counted in bytes of their blobs.
    Unpacking,
    /// Making the root file system; not counted.
    Building,
}

impl Phase {
    /// The name on the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Unpacking => "unpacking",
            Self::Building => "building",
        }
    }
}

/// A report. `done` only grows within a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of it is done, in bytes.
    pub done: u64,
    /// How much there is, in bytes; 0 when unknown.
    pub total: u64,
}

/// Called after every mebibyte or so, from the thread that imports; must not block. `Break` cancels:
/// the import ends with [`ImageError::Cancelled`] and leaves nothing.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Reports and asks whether to go on.
pub(crate) struct Watch<'a> {
    report: &'a mut OnProgress<'a>,
    current: Progress,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(report: &'a mut OnProgress<'a>) -> Self {
        Self {
            report,
            current: Progress {
                phase: Phase::Copying,
                done: 0,
                total: 0,
            },
        }
    }

    /// Begins a phase of `total` bytes.
    pub(crate) fn begin(&mut self, phase: Phase, total: u64) -> Result<(), ImageError> {
        self.current = Progress {
            phase,
            done: 0,
            total,
        };
        self.tell()
    }

    /// `more` bytes of `phase` are done; other phases' bytes are not counted.
    pub(crate) fn advance(&mut self, phase: Phase, more: u64) -> Result<(), ImageError> {
        if phase == self.current.phase {
            self.current.done = self.current.done.saturating_add(more);
        }
        self.tell()
    }

    fn tell(&mut self) -> Result<(), ImageError> {
        match (self.report)(self.current) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ImageError::Cancelled),
        }
    }
}
