//! 23 to 27: confirm before act.

use dormouse_model::{SightLoss, State};
use dormouse_standby::{ConfirmAnswer, Effect, Reason, Status};

use crate::support::{TIMEOUT, World, confirm_of, id, open, policy, secs, sleep_of, view};

fn unsure() -> ConfirmAnswer {
    ConfirmAnswer::Unsure {
        why: "the barrier did not come back".to_owned(),
    }
}

#[test]
fn scenario_23_a_missed_connection_is_found_by_the_confirm() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    let effects = world.confirmed(
        1,
        attempt,
        ConfirmAnswer::Live {
            flows: vec![open(1, 1)],
        },
    );
    assert_eq!(sleep_of(&effects, 1), None);
    world.check(1, Status::Active, Reason::ActiveInbound);
    assert_eq!(world.status(1).last_inbound_activity_at, Some(world.wall));
    // What else was missed? A listing is asked for.
    assert!(world.pass(secs(0)).contains(&Effect::RequestResync));
}

#[test]
fn scenario_24_a_confirm_that_fails_starts_the_countdown_again() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    let effects = world.confirmed(1, attempt, unsure());
    assert_eq!(sleep_of(&effects, 1), None);
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert_eq!(
        world.status(1).last_failure.as_deref(),
        Some("the barrier did not come back")
    );
    // No answer at all is no better.
    let late = world.until_confirm(1);
    world.pass(secs(5));
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert_eq!(
        world.confirmed(1, late, ConfirmAnswer::Idle),
        [],
        "and comes too late"
    );
    assert_eq!(world.engine.counters().stale_outcomes, 1);
}

#[test]
fn scenario_25_activity_before_a_failing_confirm_is_kept() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    world.opened(open(1, 1));
    world.pass(secs(1));
    assert_eq!(world.confirmed(1, attempt, unsure()), []);
    world.check(1, Status::Active, Reason::ActiveInbound);
    assert_eq!(world.status(1).idle_since, None);
}

#[test]
fn scenario_26_a_later_deadline_during_the_confirm_aborts_it() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    let mut longer = view(1);
    longer.policy = policy(TIMEOUT * 2);
    world.add(longer);
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(world.confirmed(1, attempt, ConfirmAnswer::Idle), []);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert!(confirm_of(&world.pass(TIMEOUT), 1).is_some_and(|next| next > attempt));
}

#[test]
fn scenario_27_a_hold_during_the_confirm_aborts_it() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    let (now, wall, mut out) = (world.now, world.wall, Vec::new());
    world.engine.hold(now, wall, id(1), &mut out).unwrap();
    assert_eq!(world.confirmed(1, attempt, ConfirmAnswer::Idle), []);
    world.check(1, Status::IdleCountdown, Reason::Holding);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
}

#[test]
fn losing_sight_during_the_confirm_aborts_it() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    world.lose_sight(SightLoss::Overrun);
    assert_eq!(world.confirmed(1, attempt, ConfirmAnswer::Idle), []);
    world.check(1, Status::Blind, Reason::Blind);
    world.sync(&[]);
    let next = confirm_of(&world.pass(secs(0)), 1).expect("its time had come before");
    assert!(next > attempt);
}

#[test]
fn a_caller_who_puts_it_to_sleep_during_the_confirm_wins() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    world.state(1, State::Sleeping);
    assert_eq!(world.confirmed(1, attempt, ConfirmAnswer::Idle), []);
    world.check(1, Status::StandbyRequested, Reason::Sleeping);
}
