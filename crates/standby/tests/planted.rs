//! The checks of `tests/properties.rs` notice when a promise is broken: each fault of this crate, switched
//! on, is found by some random game. Runs with `--features plant`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![cfg(feature = "plant")]

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

use dormouse_model::plant::{Plant, plant};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use game::Game;

/// Most games until a fault must have been found.
const GAMES: usize = 2_000;

/// Plays until a check fails; after how many games, and how.
fn find(fault: Option<Plant>) -> Option<(usize, String)> {
    let mut runner = TestRunner::deterministic();
    let strategy = moves::game();
    plant(fault);
    let found = (1..=GAMES).find_map(|game| {
        let moves = strategy.new_tree(&mut runner).unwrap().current();
        let broken = Game::play(&moves).and_then(|mut game| game.end_well()).err()?;
        Some((game, broken))
    });
    plant(None);
    found
}

#[test]
fn without_a_fault_nothing_is_found() {
    assert_eq!(find(None), None);
}

#[test]
fn each_fault_is_found() {
    let faults = [
        Plant::StaleAttemptAccepted,
        Plant::HoldIgnored,
        Plant::BlindNotHolding,
        Plant::DoubleWake,
    ];
    for fault in faults {
        match find(Some(fault)) {
            Some((games, broken)) => println!("{}: found by game {games}: {broken}", fault.as_str()),
            None => panic!("{} was not found by {GAMES} games", fault.as_str()),
        }
    }
}
