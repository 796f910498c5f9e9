//! The neighbour thresholds of the host, raised for the bench and put back.

use anyhow::Result;
use dormouse_network::limits::{self, Shortfall};

use crate::figures::Figures;
use crate::lab::Lab;

/// What was raised. The lab puts it back when it is removed, whatever happens.
pub(crate) struct Thresholds {
    raised: Vec<Shortfall>,
}

impl Thresholds {
    /// Raises what is too low for so many sleepers, and says so.
    pub(crate) fn raise(lab: &Lab, sleepers: u64) -> Result<Self> {
        let raised = limits::shortfalls(sleepers)?;
        lab.put_back_later(
            raised
                .iter()
                .map(|limit| (limit.path.clone(), limit.have.to_string())),
        );
        limits::apply(sleepers)?;
        for limit in &raised {
            println!("{}: {} -> {}", limit.path.display(), limit.have, limit.need);
        }
        Ok(Self { raised })
    }

    /// Checks that all is as it was.
    pub(crate) fn check_restored(&self, figures: &mut Figures) {
        let left = self.raised.iter().filter(|limit| {
            let now = std::fs::read_to_string(&limit.path).unwrap_or_default();
            println!("{}: restored to {}", limit.path.display(), now.trim());
            now.trim() != limit.have.to_string()
        });
        figures.count("thresholds_not_restored", left.count() as u64);
        figures.check_count("B.4", "thresholds_not_restored", 0);
    }
}
