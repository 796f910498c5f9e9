//! Which kill comes when: a pure function of the seed.

use std::fmt;

/// Names of fault points, each with how often it is passed before it is meant.
pub(crate) type Passed = &'static [(&'static str, u32)];

const IMPORT: Passed = &[
    ("import_blob/before", 0),
    ("import_blob_place/before", 0),
    ("import_blob/after", 0),
    ("import_blob/before", 2),
    ("import_rootfs/before", 0),
    ("import_rootfs_place/before", 0),
    ("import_rootfs/after", 0),
    ("import_record/before", 0),
    ("import_record/after", 0),
    ("import_release/before", 0),
    ("import_release/after", 0),
];

const DROP_IMAGE: Passed = &[
    ("image_record_removal/before", 0),
    ("image_record_removal/after", 0),
    ("image_blob_removal/after", 0),
    ("image_blob_removal/after", 1),
    ("image_collection/after", 0),
];

const CREATE: Passed = &[("create_record/before", 0), ("create_record/after", 0)];

const START: Passed = &[
    ("write_starting/before", 0),
    ("write_starting/after", 0),
    ("prepare_disks/before", 0),
    ("prepare_disks/after", 0),
    ("attach_link/before", 0),
    ("attach_link/after", 0),
    ("make_tap/before", 0),
    ("make_tap/after", 0),
    ("launch/before", 0),
    ("launch/after", 0),
    ("write_running/before", 0),
    ("write_running/after", 0),
    ("open/before", 0),
    ("open/after", 0),
];

const STANDBY: Passed = &[
    ("shut/before", 0),
    ("shut/after", 0),
    ("drain/before", 0),
    ("drain/after", 0),
    ("pause/before", 0),
    ("pause/after", 0),
    ("save/before", 0),
    ("save/after", 0),
    ("write_standby/before", 0),
    ("write_standby/after", 0),
    ("let_go/before", 0),
    ("let_go/after", 0),
];

const SPILL: Passed = &[
    ("prove/before", 0),
    ("prove/after", 0),
    ("spill/before", 0),
    ("spill/after", 0),
    ("write_standby/before", 1),
    ("write_standby/after", 1),
    ("drop_resident/before", 0),
    ("drop_resident/after", 0),
];

const WAKE: Passed = &[
    ("make_tap/before", 0),
    ("make_tap/after", 0),
    ("restore/before", 0),
    ("restore/after", 0),
    ("write_running/before", 0),
    ("write_running/after", 0),
    ("resume/before", 0),
    ("resume/after", 0),
    ("open/before", 0),
    ("open/after", 0),
    ("greet/before", 0),
    ("greet/after", 0),
];

const STOP: Passed = &[
    ("write_stopping/before", 0),
    ("write_stopping/after", 0),
    ("shutdown/before", 0),
    ("shutdown/after", 0),
    ("end_process/before", 0),
    ("end_process/after", 0),
    ("release_link/before", 0),
    ("release_link/after", 0),
    ("drop_memory/before", 0),
    ("drop_memory/after", 0),
    ("write_stopped/before", 0),
    ("write_stopped/after", 0),
];

const DELETE: Passed = &[
    ("write_deleting/before", 0),
    ("write_deleting/after", 0),
    ("end_process/before", 0),
    ("end_process/after", 0),
    ("release_link/before", 0),
    ("release_link/after", 0),
    ("drop_memory/before", 0),
    ("drop_memory/after", 0),
    ("remove_files/before", 0),
    ("remove_files/after", 0),
    ("remove_record/before", 0),
    ("remove_record/after", 0),
    ("free_addresses/before", 0),
    ("free_addresses/after", 0),
];

/// What the API is asked for while somebody is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Act {
    /// An image comes.
    Import,
    /// An image goes.
    DropImage,
    /// An instance is made.
    Create,
    /// An instance is started.
    Start,
    /// A guest goes to sleep.
    Standby,
    /// A guest that nobody talks to goes to sleep, which is proven, and its memory goes to disk.
    Spill,
    /// A sleeper wakes.
    Wake,
    /// A guest stops.
    Stop,
    /// An instance goes.
    Delete,
}

impl Act {
    /// All acts.
    pub(crate) const ALL: [Self; 9] = [
        Self::Import,
        Self::DropImage,
        Self::Create,
        Self::Start,
        Self::Standby,
        Self::Spill,
        Self::Wake,
        Self::Stop,
        Self::Delete,
    ];

    /// The word in reports.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::DropImage => "drop_image",
            Self::Create => "create",
            Self::Start => "start",
            Self::Standby => "standby",
            Self::Spill => "spill",
            Self::Wake => "wake",
            Self::Stop => "stop",
            Self::Delete => "delete",
        }
    }

    /// The fault points that the act passes, in their order, with how often the same name is passed first.
    pub(crate) const fn points(self) -> Passed {
        match self {
            Self::Import => IMPORT,
            Self::DropImage => DROP_IMAGE,
            Self::Create => CREATE,
            Self::Start => START,
            Self::Standby => STANDBY,
            Self::Spill => SPILL,
            Self::Wake => WAKE,
            Self::Stop => STOP,
            Self::Delete => DELETE,
        }
    }

    /// Whether a VMM is there to be killed, at some time of the act.
    const fn has_process(self) -> bool {
        match self {
            Self::Import | Self::DropImage | Self::Create => false,
            Self::Start | Self::Standby | Self::Spill | Self::Wake | Self::Stop | Self::Delete => true,
        }
    }
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// The daemon.
    Daemon,
    /// The keeper of descriptors.
    Keeper,
    /// One VMM: that of the act, or any.
    Vmm,
    /// All three at once.
    All,
}

impl Target {
    /// The word in reports.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Keeper => "keeper",
            Self::Vmm => "vmm",
            Self::All => "all",
        }
    }
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Moment {
    /// When this fault point is reached for the time after so many.
    Point(&'static str, u32),
    /// So many milliseconds after the act was asked for.
    After(u32),
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kill {
    /// During what.
    pub act: Act,
    /// When.
    pub moment: Moment,
    /// Whom.
    pub target: Target,
    /// Bits for choices of the harness, such as which guest.
    pub bits: u32,
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}/", self.target.as_str(), self.act.as_str())?;
        match self.moment {
            Moment::Point(name, 0) => f.write_str(name),
            Moment::Point(name, skip) => write!(f, "{name} ({})", skip + 1),
            Moment::After(ms) => write!(f, "{ms} ms"),
        }
    }
}

/// Numbers of a seed (SplitMix64), the same on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Those of `seed`.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`; 0 when that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = end.max(1) as u64;
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    /// One of `all`.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        all.get(self.below(all.len())).copied()
    }

    /// 32 bits.
    fn bits(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap_or(0)
    }
}

/// Every fault point with the daemon killed there.
fn every_point(numbers: &mut Numbers) -> Vec<Kill> {
    let mut kills = Vec::new();
    for act in Act::ALL {
        for (name, skip) in act.points() {
            kills.push(Kill {
                act,
                moment: Moment::Point(name, *skip),
                target: Target::Daemon,
                bits: numbers.bits(),
            });
        }
    }
    kills
}

/// `count` kills: the daemon at every point first, then at every fourth point somebody else, then all at
/// random. Fewer than the first two make are a sample of them in which every act and target is.
pub(crate) fn schedule(seed: u64, count: u32) -> Vec<Kill> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut numbers = Numbers::new(seed);
    let mut kills = every_point(&mut numbers);
    let others: Vec<Kill> = kills
        .iter()
        .filter(|kill| kill.act.has_process())
        .step_by(4)
        .zip([Target::Vmm, Target::Keeper, Target::All].into_iter().cycle())
        .map(|(kill, target)| Kill { target, ..*kill })
        .collect();
    if count < kills.len() + others.len() {
        return sample(&mut numbers, kills, others, count);
    }
    kills.extend(others);
    while kills.len() < count {
        kills.push(any(&mut numbers));
    }
    kills
}

fn any(numbers: &mut Numbers) -> Kill {
    let act = numbers.pick(&Act::ALL).unwrap_or(Act::Standby);
    let target = match numbers.below(10) {
        0..=5 => Target::Daemon,
        6 => Target::Keeper,
        7 => Target::Vmm,
        _ => Target::All,
    };
    let moment = if numbers.below(3) == 0 {
        let (name, skip) = numbers.pick(act.points()).unwrap_or(("open/after", 0));
        Moment::Point(name, skip)
    } else {
        Moment::After(numbers.bits() % 150)
    };
    Kill {
        act,
        moment,
        target,
        bits: numbers.bits(),
    }
}

/// Some of both, spread over the acts: every act is in it once before any is twice.
fn sample(numbers: &mut Numbers, mut daemon: Vec<Kill>, mut others: Vec<Kill>, count: usize) -> Vec<Kill> {
    let mut kills = Vec::new();
    let mut round = 0;
    while kills.len() < count && !(daemon.is_empty() && others.is_empty()) {
        let act = Act::ALL[round % Act::ALL.len()];
        let from = if round % 3 == 2 { &mut others } else { &mut daemon };
        let fitting: Vec<usize> = (0..from.len()).filter(|at| from[*at].act == act).collect();
        if let Some(at) = numbers.pick(&fitting) {
            kills.push(from.swap_remove(at));
        }
        round += 1;
    }
    kills
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_is_a_schedule_and_every_point_is_in_it() {
        let kills = schedule(7, 200);
        assert_eq!(kills.len(), 200);
        assert_eq!(kills, schedule(7, 200));
        assert_ne!(kills, schedule(8, 200));
        let met: BTreeSet<_> = kills.iter().map(|kill| (kill.act, kill.moment)).collect();
        for act in Act::ALL {
            for (name, skip) in act.points() {
                assert!(met.contains(&(act, Moment::Point(name, *skip))), "{act:?} {name}");
            }
        }
        let targets: BTreeSet<_> = kills.iter().map(|kill| kill.target).collect();
        assert_eq!(targets.len(), 4);
    }

    #[test]
    fn a_short_one_has_every_act() {
        for seed in 0..50 {
            let kills = schedule(seed, 18);
            assert_eq!(kills.len(), 18);
            let acts: BTreeSet<_> = kills.iter().map(|kill| kill.act).collect();
            assert!(acts.len() >= 8, "{acts:?}");
        }
        assert!(schedule(1, 0).is_empty());
    }
}
