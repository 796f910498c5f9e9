//! The states of a link and what each step does. Pure: inputs in, effects out.
//!
//! ```text
//!             TapMade                     Open
//!  Parked ───────────────▶ Parked ──────────────────▶ Releasing ◀──┐ Knock: a late parker
//!  (no tap) ◀───────────── (tap)  ◀──┐                 │    │      │
//!     ▲       TapDropped             │ Shut            │    │ Tick │
//!     │                              ├─────────────────┘    ▼      │
//!     │                              └──────────────────── Open ───┘
//!     │  TapDropped, from every state: shut first            │
//!     └──────────────────────────────────────────────────────┘
//!  Removed ◀── Remove, from every state
//! ```
//!
//! * `Parked`: packets wait on the parking device and knock.
//! * `Releasing`: packets go to the tap; what waits, or still comes to wait, is let through at once.
//! * `Open`: packets go to the tap; the parking device knows nothing of the workload.
//!
//! Why `Releasing`: a packet may have been routed to the parking device before the routes moved, on
//! another processor or by a sender that was preempted. While the entry there stays valid such a
//! packet passes through; taking the entry back in the same moment would drop the one that is just
//! being handed to it (the kernel frees what reaches a dead neighbour). So the entry is kept for
//! [`LinkMachine::SETTLE`], and who comes later still only knocks, and is released by that.
//!
//! Every effect is idempotent and no step depends on how far a failed one got. So a move that fails
//! is answered by moving back ([`LinkInput::Failed`]), and a deletion that fails by going on.

use std::time::Duration;

use dormouse_model::MonoTime;

/// Where packets for a workload go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// To the parking device.
    Parked,
    /// To the tap, and what comes to the parking device is let through until `until`.
    Releasing {
        /// When the parking device forgets the workload.
        until: MonoTime,
    },
    /// To the tap.
    Open,
    /// Nowhere: the link is gone.
    Removed,
}

/// What happens to a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkInput {
    /// A tap was made, or was found by an adoption.
    TapMade,
    /// The workload runs: let it have its packets.
    Open,
    /// The workload is about to stop: no more packets.
    Shut,
    /// The kernel asked for the workload's neighbour on the parking device.
    Knock,
    /// Time passed.
    Tick,
    /// The tap is to go, or is found gone.
    DropTap,
    /// The workload is being deleted.
    Remove,
    /// An effect of the last input failed and its [`OnFailure`] is to go back.
    Failed,
}

/// What to do when an effect fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnFailure {
    /// Stop, and feed [`LinkInput::Failed`]: packets go where they went before.
    GoBack,
    /// Carry out the other effects all the same.
    GoOn,
}

impl LinkInput {
    /// What to do when an effect of this input fails.
    #[must_use]
    pub const fn on_failure(self) -> OnFailure {
        match self {
            Self::Open | Self::Shut | Self::Knock | Self::TapMade => OnFailure::GoBack,
            // To go back from settling would be to cut off a guest that has all its packets; and
            // nothing that was deleted comes back.
            Self::Tick | Self::DropTap | Self::Remove | Self::Failed => OnFailure::GoOn,
        }
    }
}

/// What to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkEffect {
    /// Add the routes to the tap, which beat those to the parking device.
    RouteToTap,
    /// Take the routes to the tap away; those to the parking device remain.
    RouteToParking,
    /// Give the parking device a valid neighbour: what waits comes back in by the other end.
    Release,
    /// Take that neighbour away again, if it is valid. One that is not holds packets, and stays.
    Forget,
    /// Delete the tap.
    DeleteTap,
    /// Take away whatever there is of the workload: tap, routes, neighbours, permissions, and the
    /// packets that wait for it.
    Withdraw,
    /// Tell whoever wakes workloads.
    Report,
}

/// Why an input was refused; nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LinkRefusal {
    /// There is no tap to open to.
    #[error("the link has no tap")]
    NoTap,
    /// There is a tap already.
    #[error("the link has a tap")]
    TapExists,
    /// The link was removed.
    #[error("the link was removed")]
    Removed,
}

/// The state of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkMachine {
    state: LinkState,
    tap: bool,
}

impl Default for LinkMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl LinkMachine {
    /// How long the parking device lets packets through after an opening. Far longer than a packet
    /// takes from its routing decision to its device; nothing waits for it to pass.
    pub const SETTLE: Duration = Duration::from_millis(250);

    /// A link without a tap, parked.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: LinkState::Parked,
            tap: false,
        }
    }

    /// Where packets go.
    #[must_use]
    pub const fn state(&self) -> LinkState {
        self.state
    }

    /// Whether there is a tap.
    #[must_use]
    pub const fn has_tap(&self) -> bool {
        self.tap
    }

    /// When [`LinkInput::Tick`] is due.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<MonoTime> {
        match self.state {
            LinkState::Releasing { until } => Some(until),
            LinkState::Parked | LinkState::Open | LinkState::Removed => None,
        }
    }

    /// Takes an input; appends what is to be done to `effects`. Total: facts (`Knock`, `Tick`,
    /// `Failed`) are never refused.
    ///
    /// # Errors
    /// When a request does not fit the state; then nothing changed and nothing is to be done.
    pub fn handle(
        &mut self,
        now: MonoTime,
        input: LinkInput,
        effects: &mut Vec<LinkEffect>,
    ) -> Result<(), LinkRefusal> {
        if self.state == LinkState::Removed {
            return match input {
                LinkInput::Knock | LinkInput::Tick | LinkInput::Failed => Ok(()),
                // Again, because the first time may have failed.
                LinkInput::Remove => {
                    effects.push(LinkEffect::Withdraw);
                    Ok(())
                }
                LinkInput::TapMade | LinkInput::Open | LinkInput::Shut | LinkInput::DropTap => {
                    Err(LinkRefusal::Removed)
                }
            };
        }
        match input {
            LinkInput::TapMade if self.tap => return Err(LinkRefusal::TapExists),
            LinkInput::TapMade => self.tap = true,
            LinkInput::Open if !self.tap => return Err(LinkRefusal::NoTap),
            LinkInput::Open => {
                if self.state == LinkState::Parked {
                    self.open(now, effects);
                }
            }
            LinkInput::Shut => self.shut(effects),
            LinkInput::Knock => match self.state {
                LinkState::Parked => effects.push(LinkEffect::Report),
                LinkState::Open | LinkState::Releasing { .. } => self.open(now, effects),
                LinkState::Removed => {}
            },
            LinkInput::Tick => {
                if self.next_deadline().is_some_and(|due| due <= now) {
                    self.state = LinkState::Open;
                    effects.push(LinkEffect::Forget);
                }
            }
            LinkInput::DropTap => self.drop_tap(effects),
            LinkInput::Remove => {
                self.drop_tap(effects);
                self.state = LinkState::Removed;
                effects.push(LinkEffect::Withdraw);
            }
            LinkInput::Failed => self.go_back(now, effects),
        }
        Ok(())
    }

    /// The routes come first: a release before them would send the packets round in a circle.
    fn open(&mut self, now: MonoTime, effects: &mut Vec<LinkEffect>) {
        self.state = LinkState::Releasing {
            until: now.plus(Self::SETTLE),
        };
        effects.extend([LinkEffect::RouteToTap, LinkEffect::Release]);
    }

    /// The valid neighbour goes first, for the same reason.
    fn shut(&mut self, effects: &mut Vec<LinkEffect>) {
        match self.state {
            LinkState::Releasing { .. } | LinkState::Open => {
                self.state = LinkState::Parked;
                effects.extend([LinkEffect::Forget, LinkEffect::RouteToParking]);
            }
            LinkState::Parked | LinkState::Removed => {}
        }
    }

    fn drop_tap(&mut self, effects: &mut Vec<LinkEffect>) {
        self.shut(effects);
        if self.tap {
            self.tap = false;
            effects.push(LinkEffect::DeleteTap);
        }
    }

    /// An opening that failed parks again, a shutting that failed opens again.
    fn go_back(&mut self, now: MonoTime, effects: &mut Vec<LinkEffect>) {
        match self.state {
            LinkState::Releasing { .. } | LinkState::Open => self.shut(effects),
            LinkState::Parked if self.tap => self.open(now, effects),
            LinkState::Parked | LinkState::Removed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LinkEffect as E;
    use LinkInput as I;
    use proptest::prelude::*;

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_boot(Duration::from_millis(millis))
    }

    #[test]
    fn a_life() {
        let mut link = LinkMachine::new();
        let mut step = |millis, input, want: &[E]| {
            let mut effects = Vec::new();
            link.handle(at(millis), input, &mut effects).unwrap();
            assert_eq!(effects, want, "{input:?} at {millis}");
            link.clone()
        };
        step(0, I::Knock, &[E::Report]);
        step(1, I::TapMade, &[]);
        step(2, I::Knock, &[E::Report]);
        let releasing = step(3, I::Open, &[E::RouteToTap, E::Release]);
        assert_eq!(releasing.next_deadline(), Some(at(253)));
        step(4, I::Open, &[]);
        step(252, I::Tick, &[]);
        step(253, I::Tick, &[E::Forget]);
        step(254, I::Tick, &[]);
        // A late parker is let in and the entry is kept once more.
        step(300, I::Knock, &[E::RouteToTap, E::Release]);
        step(310, I::Shut, &[E::Forget, E::RouteToParking]);
        step(311, I::Shut, &[]);
        step(312, I::Knock, &[E::Report]);
        step(313, I::Tick, &[]);
        step(314, I::DropTap, &[E::DeleteTap]);
        step(315, I::DropTap, &[]);
        step(316, I::TapMade, &[]);
        step(317, I::Open, &[E::RouteToTap, E::Release]);
        step(
            318,
            I::Remove,
            &[E::Forget, E::RouteToParking, E::DeleteTap, E::Withdraw],
        );
        let removed = step(319, I::Remove, &[E::Withdraw]);
        assert_eq!(removed.state(), LinkState::Removed);
        step(320, I::Knock, &[]);
    }

    #[test]
    fn requests_that_do_not_fit_change_nothing() {
        let mut link = LinkMachine::new();
        let mut effects = Vec::new();
        assert_eq!(link.handle(at(0), I::Open, &mut effects), Err(LinkRefusal::NoTap));
        link.handle(at(0), I::TapMade, &mut effects).unwrap();
        assert_eq!(
            link.handle(at(0), I::TapMade, &mut effects),
            Err(LinkRefusal::TapExists)
        );
        link.handle(at(0), I::Remove, &mut effects).unwrap();
        effects.clear();
        for input in [I::TapMade, I::Open, I::Shut, I::DropTap] {
            assert_eq!(link.handle(at(0), input, &mut effects), Err(LinkRefusal::Removed));
        }
        assert_eq!(effects, []);
    }

    #[test]
    fn failures_go_back() {
        let mut link = LinkMachine::new();
        let mut effects = Vec::new();
        link.handle(at(0), I::TapMade, &mut effects).unwrap();
        link.handle(at(0), I::Open, &mut effects).unwrap();
        effects.clear();
        link.handle(at(1), I::Failed, &mut effects).unwrap();
        assert_eq!(
            (link.state(), &effects[..]),
            (LinkState::Parked, &[E::Forget, E::RouteToParking][..])
        );
        effects.clear();
        link.handle(at(2), I::Failed, &mut effects).unwrap();
        assert_eq!(effects, [E::RouteToTap, E::Release]);
    }

    fn input() -> impl Strategy<Value = LinkInput> {
        prop::sample::select(vec![
            I::TapMade,
            I::Open,
            I::Shut,
            I::Knock,
            I::Tick,
            I::DropTap,
            I::Remove,
            I::Failed,
        ])
    }

    /// The kernel as far as one link matters: which routes there are, whether the parking device's
    /// entry is valid, and the rule that the two must never make a circle.
    #[derive(Debug, Default)]
    struct Model {
        tap_route: bool,
        valid_entry: bool,
        tap: bool,
    }

    impl Model {
        fn apply(&mut self, effect: LinkEffect) {
            match effect {
                E::RouteToTap => {
                    assert!(self.tap, "a route to a tap that is not there");
                    self.tap_route = true;
                }
                E::Release => self.valid_entry = true,
                E::Forget => self.valid_entry = false,
                E::RouteToParking => self.tap_route = false,
                E::DeleteTap => (self.tap, self.tap_route) = (false, false),
                E::Withdraw => *self = Self::default(),
                E::Report => assert!(!self.tap_route, "reported although the packet has a way"),
            }
            assert!(
                !self.valid_entry || self.tap_route,
                "packets would go round in a circle"
            );
        }
    }

    proptest! {
        #[test]
        fn no_circle_and_the_state_tells_the_truth(
            steps in prop::collection::vec((input(), 0_u64..400), 1..60),
        ) {
            let (mut link, mut kernel, mut now) = (LinkMachine::new(), Model::default(), 0);
            for (input, wait) in steps {
                now += wait;
                let before = link.clone();
                let mut effects = Vec::new();
                let answer = link.handle(at(now), input, &mut effects);
                if answer.is_err() {
                    prop_assert_eq!(&link, &before);
                    prop_assert!(effects.is_empty());
                }
                kernel.tap |= link.has_tap();
                for effect in effects {
                    kernel.apply(effect);
                }
                prop_assert_eq!(kernel.tap, link.has_tap());
                let (route, entry) = match link.state() {
                    LinkState::Parked | LinkState::Removed => (false, false),
                    LinkState::Releasing { .. } => (true, true),
                    LinkState::Open => (true, false),
                };
                prop_assert_eq!((kernel.tap_route, kernel.valid_entry), (route, entry));
                prop_assert_eq!(link.next_deadline().is_some(), entry);
            }
        }
    }
}
