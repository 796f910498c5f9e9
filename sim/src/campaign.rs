//! Many seeds: what they found, how to see it again, and whether planted faults are found.

use crate::breach::Breach;
use crate::tally::Tally;
use crate::trace::Keep;
use crate::world::{Outcome, Plan, run};

/// A range of seeds.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// Acts a seed.
    pub steps: u64,
}

/// A seed that broke something.
#[derive(Debug, Clone)]
pub struct Find {
    /// The seed.
    pub seed: u64,
    /// The acts with which it was run.
    pub steps: u64,
    /// What broke.
    pub breach: Breach,
}

/// What a campaign found.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds that were run.
    pub seeds: u64,
    /// What happened in all of them.
    pub tally: Tally,
    /// Seeds that broke something, in the order of the seeds.
    pub finds: Vec<Find>,
}

impl Campaign {
    /// Runs every seed.
    #[must_use]
    pub fn run(&self) -> Summary {
        let mut summary = Summary::default();
        for seed in self.range() {
            let outcome = run_one(seed, self.steps, Keep::Nothing);
            summary.seeds += 1;
            summary.tally.add(&outcome.tally);
            if let Some(breach) = outcome.breach {
                summary.finds.push(Find {
                    seed,
                    steps: self.steps,
                    breach,
                });
            }
        }
        summary
    }

    /// Runs seeds until one breaks something; says how many were run.
    #[must_use]
    pub fn first(&self) -> (u64, Option<Find>) {
        for (before, seed) in self.range().enumerate() {
            if let Some(breach) = run_one(seed, self.steps, Keep::Nothing).breach {
                return (
                    before as u64 + 1,
                    Some(Find {
                        seed,
                        steps: self.steps,
                        breach,
                    }),
                );
            }
        }
        (self.seeds, None)
    }

    fn range(&self) -> std::ops::Range<u64> {
        self.from..self.from.saturating_add(self.seeds)
    }
}

/// Runs one seed.
#[must_use]
pub fn run_one(seed: u64, steps: u64, keep: Keep) -> Outcome {
    run(&Plan { seed, steps, keep })
}

/// The find whose run is shortest: fewest events, then with as few acts as still break the same thing.
#[must_use]
pub fn shortest(finds: &[Find]) -> Option<Find> {
    let find = finds.iter().min_by_key(|find| find.breach.event)?.clone();
    let mut steps = 5;
    while steps < find.steps {
        if let Some(breach) = run_one(find.seed, steps, Keep::Nothing).breach
            && breach.invariant == find.breach.invariant
        {
            return Some(Find {
                seed: find.seed,
                steps,
                breach,
            });
        }
        steps += steps / 4 + 1;
    }
    Some(find)
}

/// The last lines of a trace.
#[must_use]
pub fn tail(trace: &str, lines: usize) -> String {
    let all: Vec<&str> = trace.lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or(&[]).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_to_the_same_trace() {
        for seed in [1, 7, 1_000_003] {
            let one = run_one(seed, 120, Keep::Lines);
            let other = run_one(seed, 120, Keep::Lines);
            assert!(one.trace.lines().count() > 100, "seed {seed} does something");
            assert_eq!(one.trace.as_bytes(), other.trace.as_bytes());
            assert_eq!(one.tally, other.tally);
        }
        let kept = run_one(3, 120, Keep::Lines);
        assert_eq!(
            kept.tally,
            run_one(3, 120, Keep::Nothing).tally,
            "looking changes nothing"
        );
    }

    #[test]
    fn a_few_seeds_break_nothing_and_meet_everything() {
        let summary = Campaign {
            from: 1,
            seeds: 200,
            steps: 250,
        }
        .run();
        let found: Vec<String> = summary
            .finds
            .iter()
            .map(|find| format!("seed {}: {}", find.seed, find.breach))
            .collect();
        assert!(found.is_empty(), "{found:?}");
        for (name, count) in summary.tally.named() {
            assert!(count > 0, "200 seeds had no {name}");
        }
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }

    #[cfg(feature = "plant")]
    #[test]
    fn planted_faults_are_found() {
        use dormouse_model::plant::{Plant, plant};
        for fault in Plant::ALL {
            plant(Some(fault));
            let (_, find) = Campaign {
                from: 1,
                seeds: 2_000,
                steps: 250,
            }
            .first();
            plant(None);
            assert!(find.is_some(), "{} is not found", fault.as_str());
        }
    }
}
