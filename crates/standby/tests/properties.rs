//! The promises of the crate's page, over random sequences of inputs, against a reference that is made
//! differently. `tests/planted.rs` shows that the checks notice when a promise is broken.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "properties/ending.rs"]
mod ending;
#[path = "properties/game.rs"]
mod game;
#[path = "properties/judge.rs"]
mod judge;
#[path = "properties/moves.rs"]
mod moves;
#[path = "properties/reference.rs"]
mod reference;
mod support;

use dormouse_model::workload::IdleRecord;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::{FileFailurePersistence, TestCaseError};

use game::Game;
use support::{TIMEOUT, World, confirm_of, open, secs, view};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    /// Promises 1 to 6, 9 and 10, at every step; and nothing is stuck at the end.
    #[test]
    fn no_sequence_of_inputs_breaks_a_promise(moves in moves::game()) {
        let mut game = Game::play(&moves).map_err(TestCaseError::fail)?;
        game.end_well().map_err(|broken| TestCaseError::fail(format!("at the end: {broken}")))?;
    }

    /// Promise 7: the same inputs, the same effects.
    #[test]
    fn a_replay_is_exact(moves in moves::game()) {
        let once = Game::play(&moves).map_err(TestCaseError::fail)?;
        let twice = Game::play(&moves).map_err(TestCaseError::fail)?;
        prop_assert_eq!(once.log, twice.log);
    }

    /// Promise 8: a recorded idle time resumes once a listing shows no flow, to the second; one from the
    /// future begins anew; and nothing happens before the listing.
    #[test]
    fn a_restart_resumes_the_countdown(idled in 0_u64..600, future in any::<bool>(), blind in 0_u64..600) {
        let mut world = World::new();
        let since = if future { world.wall_after(secs(idled + 1)) } else { world.wall_before(secs(idled)) };
        world.add_recorded(view(1), IdleRecord { idle_since: Some(since), ..IdleRecord::default() });
        prop_assert!(confirm_of(&world.pass(secs(blind)), 1).is_none());
        world.sync(&[]);
        let left = TIMEOUT.saturating_sub(secs(if future { 0 } else { idled })).saturating_sub(secs(blind));
        prop_assert_eq!(world.status(1).countdown_remaining, Some(left));
        if !left.is_zero() {
            prop_assert!(confirm_of(&world.pass(left - secs(1)), 1).is_none());
        }
        prop_assert!(confirm_of(&world.pass(secs(1)), 1).is_some());
    }

    /// And with a flow it does not.
    #[test]
    fn a_restart_with_a_flow_is_active(idled in 0_u64..600) {
        let mut world = World::new();
        let since = world.wall_before(secs(idled));
        world.add_recorded(view(1), IdleRecord { idle_since: Some(since), ..IdleRecord::default() });
        world.sync(&[open(1, 1)]);
        prop_assert!(confirm_of(&world.pass(TIMEOUT * 2), 1).is_none());
    }
}
