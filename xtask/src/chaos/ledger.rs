//! What was asked for and what was acknowledged; judges what the API lists after a restart. Pure.
//!
//! Each object has the set of conditions that it may be in. An acknowledged act leaves one; an act that a
//! kill cut short leaves that before it and that after it, and the next judgement settles which it was.

use std::collections::{BTreeMap, BTreeSet};

use super::expect::{InstanceFact, Life, Listing, life};
use dormouse_client::v1::InstanceState;

/// What an instance may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Condition {
    /// There is none of this name.
    Absent,
    /// It is stopped.
    Stopped,
    /// It runs.
    Awake,
    /// It sleeps.
    Asleep,
    /// It has failed, with a reason.
    Failed,
}

/// The condition that a state is.
fn condition(state: InstanceState) -> Option<Condition> {
    match (life(state), state) {
        (Life::Awake, _) => Some(Condition::Awake),
        (Life::Asleep, _) => Some(Condition::Asleep),
        (Life::Resting, InstanceState::Failed) => Some(Condition::Failed),
        (Life::Resting, _) => Some(Condition::Stopped),
        (Life::Moving, _) => None,
    }
}

#[derive(Debug, Clone)]
struct Entry {
    id: Option<String>,
    may_be: BTreeSet<Condition>,
    /// Its sleeps that were acknowledged, or seen: it never goes back behind them.
    generation: u64,
    /// Packets wake it, so asleep and awake are one.
    talked_to: bool,
}

/// What is wrong with a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What was acknowledged and is no more.
    pub lost: Vec<String>,
    /// What there is twice, or without having been asked for.
    pub doubled: Vec<String>,
}

/// All that is known. See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    instances: BTreeMap<String, Entry>,
    /// Whether an image of this name is there; both when nobody knows.
    images: BTreeMap<String, BTreeSet<bool>>,
}

impl Ledger {
    /// Asks for `after` of the instance `name`; it may be either from now on.
    pub(crate) fn ask(&mut self, name: &str, after: Condition) {
        let entry = self.instances.entry(name.to_owned()).or_insert_with(|| Entry {
            id: None,
            may_be: BTreeSet::from([Condition::Absent]),
            generation: 0,
            talked_to: false,
        });
        entry.may_be.insert(after);
    }

    /// What was asked for last is acknowledged.
    pub(crate) fn acknowledged(&mut self, name: &str, after: Condition) {
        if let Some(entry) = self.instances.get_mut(name) {
            entry.may_be = BTreeSet::from([after]);
            // The id is of the instance that was there before.
            if after == Condition::Absent {
                entry.id = None;
            }
        }
    }

    /// Packets go to the instance, or do not any more.
    pub(crate) fn talked_to(&mut self, name: &str, talked_to: bool) {
        if let Some(entry) = self.instances.get_mut(name) {
            entry.talked_to = talked_to;
        }
    }

    /// Its VMM was killed.
    pub(crate) fn process_killed(&mut self, name: &str) {
        if let Some(entry) = self.instances.get_mut(name) {
            entry.may_be.insert(Condition::Failed);
        }
    }

    /// An image of this name is asked for, or asked to go.
    pub(crate) fn ask_image(&mut self, name: &str, there: bool) {
        let may_be = self
            .images
            .entry(name.to_owned())
            .or_insert_with(|| BTreeSet::from([false]));
        may_be.insert(there);
    }

    /// That is acknowledged.
    pub(crate) fn image_acknowledged(&mut self, name: &str, there: bool) {
        self.images.insert(name.to_owned(), BTreeSet::from([there]));
    }

    /// Compares a calm listing with what may be, and takes it for the truth from then on.
    pub(crate) fn judge(&mut self, listing: &Listing) -> Verdict {
        let mut verdict = Verdict::default();
        let mut by_name: BTreeMap<&str, Vec<&InstanceFact>> = BTreeMap::new();
        for fact in &listing.instances {
            by_name.entry(&fact.name).or_default().push(fact);
        }
        for (name, facts) in &by_name {
            if facts.len() > 1 {
                verdict
                    .doubled
                    .push(format!("{} instances are called {name}", facts.len()));
            }
            if !self.instances.contains_key(*name) {
                verdict
                    .doubled
                    .push(format!("the instance {name}, which nobody asked for"));
            }
        }
        for (name, entry) in &mut self.instances {
            let fact = by_name
                .get(name.as_str())
                .and_then(|facts| facts.first().copied());
            judge_one(name, entry, fact, &mut verdict);
        }
        self.instances
            .retain(|_, entry| !entry.may_be.contains(&Condition::Absent));
        self.judge_images(listing, &mut verdict);
        verdict
    }

    fn judge_images(&mut self, listing: &Listing, verdict: &mut Verdict) {
        let named: Vec<&str> = listing
            .images
            .iter()
            .flat_map(|image| image.names.iter().map(String::as_str))
            .collect();
        for name in &named {
            let count = named.iter().filter(|other| *other == name).count();
            if count > 1 || !self.images.contains_key(*name) {
                verdict.doubled.push(format!("the image {name}, {count} times"));
            }
        }
        for (name, may_be) in &mut self.images {
            let there = named.contains(&name.as_str());
            if !may_be.contains(&there) {
                let what = if there {
                    "removed and there again"
                } else {
                    "imported and gone"
                };
                verdict.lost.push(format!("the image {name}: {what}"));
            }
            *may_be = BTreeSet::from([there]);
        }
        self.images.retain(|_, may_be| may_be.contains(&true));
    }
}

fn judge_one(name: &str, entry: &mut Entry, fact: Option<&InstanceFact>, verdict: &mut Verdict) {
    let Some(fact) = fact else {
        if !entry.may_be.contains(&Condition::Absent) {
            verdict
                .lost
                .push(format!("{name} is gone; it was to be {:?}", entry.may_be));
        }
        entry.may_be = BTreeSet::from([Condition::Absent]);
        return;
    };
    let Some(found) = condition(fact.state) else {
        verdict
            .lost
            .push(format!("{name} stays {}", fact.state.as_str_name()));
        return;
    };
    let awake_or_asleep = |condition: &Condition| matches!(condition, Condition::Awake | Condition::Asleep);
    let fits = entry.may_be.contains(&found)
        || (entry.talked_to && awake_or_asleep(&found) && entry.may_be.iter().any(awake_or_asleep));
    if !fits {
        verdict.lost.push(format!(
            "{name} is {found:?} ({}); it was to be {:?}",
            fact.reason, entry.may_be
        ));
    }
    if found == Condition::Failed && fact.reason.is_empty() {
        verdict.lost.push(format!("{name} has failed without a reason"));
    }
    if let Some(id) = &entry.id
        && *id != fact.id
        && !entry.may_be.contains(&Condition::Absent)
    {
        verdict.lost.push(format!("{name} was {id} and is {}", fact.id));
    }
    if entry.id.as_ref() == Some(&fact.id) && fact.generation < entry.generation {
        verdict.lost.push(format!(
            "{name} is back at generation {} of {}",
            fact.generation, entry.generation
        ));
    }
    entry.id = Some(fact.id.clone());
    entry.generation = fact.generation;
    entry.may_be = BTreeSet::from([found]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &str, state: InstanceState, generation: u64) -> InstanceFact {
        InstanceFact {
            id: format!("id-of-{name}"),
            name: name.to_owned(),
            state,
            reason: "because".to_owned(),
            addresses: [String::new(), String::new()],
            pid: 0,
            generation,
            digest: String::new(),
            monitor: String::new(),
        }
    }

    fn listing(instances: Vec<InstanceFact>) -> Listing {
        Listing {
            instances,
            images: Vec::new(),
        }
    }

    fn with(after: Condition, acknowledged: bool) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.ask("a", Condition::Stopped);
        ledger.acknowledged("a", Condition::Stopped);
        assert_eq!(
            ledger.judge(&listing(vec![fact("a", InstanceState::Stopped, 0)])),
            Verdict::default()
        );
        ledger.ask("a", after);
        if acknowledged {
            ledger.acknowledged("a", after);
        }
        ledger
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_what_was_cut_short_may_be() {
        let stopped = || listing(vec![fact("a", InstanceState::Stopped, 0)]);
        let running = || listing(vec![fact("a", InstanceState::Running, 0)]);
        for (acknowledged, wrong) in [(true, 1), (false, 0)] {
            assert_eq!(
                with(Condition::Awake, acknowledged).judge(&stopped()).lost.len(),
                wrong
            );
            assert_eq!(
                with(Condition::Awake, acknowledged).judge(&running()).lost.len(),
                0
            );
            // Neither was asked for.
            assert_eq!(
                with(Condition::Awake, acknowledged)
                    .judge(&listing(Vec::new()))
                    .lost
                    .len(),
                1
            );
            assert_eq!(
                with(Condition::Absent, acknowledged).judge(&stopped()).lost.len(),
                wrong
            );
            assert_eq!(
                with(Condition::Absent, acknowledged)
                    .judge(&listing(Vec::new()))
                    .lost
                    .len(),
                0
            );
        }
    }

    #[test]
    fn a_sleeper_may_be_woken_by_packets_only_and_fail_only_when_killed() {
        let asleep = || with(Condition::Asleep, true);
        let running = listing(vec![fact("a", InstanceState::Running, 1)]);
        assert_eq!(asleep().judge(&running).lost.len(), 1);
        let mut talked_to = asleep();
        talked_to.talked_to("a", true);
        assert_eq!(talked_to.judge(&running).lost.len(), 0);
        let failed = listing(vec![fact("a", InstanceState::Failed, 1)]);
        assert_eq!(asleep().judge(&failed).lost.len(), 1);
        let mut killed = asleep();
        killed.process_killed("a");
        assert_eq!(killed.judge(&failed).lost.len(), 0);
    }

    #[test]
    fn nothing_is_there_twice_or_goes_back() {
        let mut ledger = with(Condition::Awake, true);
        let twice = listing(vec![
            fact("a", InstanceState::Running, 3),
            fact("a", InstanceState::Running, 3),
            fact("b", InstanceState::Running, 0),
        ]);
        assert_eq!(ledger.judge(&twice).doubled.len(), 2);
        let back = listing(vec![fact("a", InstanceState::Running, 2)]);
        assert_eq!(ledger.judge(&back).lost.len(), 1);
    }

    #[test]
    fn images_are_held_to_the_same() {
        let image = |name: &str| super::super::expect::ImageFact {
            digest: "sha256:1".to_owned(),
            names: vec![name.to_owned()],
            blobs: Vec::new(),
        };
        let with_image = Listing {
            images: vec![image("i:1")],
            ..Listing::default()
        };
        let mut ledger = Ledger::default();
        assert_eq!(ledger.judge(&with_image).doubled.len(), 1);
        ledger.ask_image("i:1", true);
        assert_eq!(ledger.judge(&with_image), Verdict::default());
        assert_eq!(ledger.judge(&Listing::default()).lost.len(), 1);
        ledger.ask_image("i:1", true);
        assert_eq!(ledger.judge(&Listing::default()), Verdict::default());
        ledger.ask_image("i:1", true);
        ledger.image_acknowledged("i:1", true);
        assert_eq!(ledger.judge(&Listing::default()).lost.len(), 1);
    }
}
