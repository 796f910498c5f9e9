//! Stable error codes as data: what each means and what to do about it.
//!
//! Every room lists the codes of its [`Fault`](crate::Fault)s in a module `codes`; docs/errors.md is written
//! from those lists, and tidy compares them with the code: no room can answer a code that is not listed, and
//! none can list one that nothing answers.

use crate::error::Kind;

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The code itself: capitals, digits and underscores, beginning with the room.
    pub name: &'static str,
    /// The kinds that an error with this code can have: one, or several where the cause decides. None for
    /// the codes of the command line, which nobody but a person sees.
    pub kinds: &'static [Kind],
    /// What it means, as the end of a sentence.
    pub meaning: &'static str,
    /// What to do about it; empty when there is nothing to do.
    pub advice: &'static str,
}

impl Code {
    /// A row of a list.
    #[must_use]
    pub const fn new(
        name: &'static str,
        kinds: &'static [Kind],
        meaning: &'static str,
        advice: &'static str,
    ) -> Self {
        Self {
            name,
            kinds,
            meaning,
            advice,
        }
    }
}

/// Codes that are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// The heading. Rooms may share one.
    pub title: &'static str,
    /// What is said of all of them; may be empty.
    pub intro: &'static str,
    /// The codes in the order in which they are listed.
    pub codes: &'static [Code],
}
