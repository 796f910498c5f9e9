//! 30 to 39: bounded sleeps, what happens while they wait and run, records, the end.

use std::num::NonZeroUsize;

use dormouse_model::{Attempt, SleepEnd, State, WakeEnd};
use dormouse_standby::{CancelWhy, Config, ConfirmAnswer, Effect, Input, Reason, Status};

use crate::support::{
    TIMEOUT, World, cancel_of, confirm_of, id, last_record, open, records_of, secs, sleep_of, view, wake_of,
};

/// `count` idle workloads whose countdowns end together, and room for `slots` sleeps.
fn crowd(count: u8, slots: usize) -> World {
    let mut world = World::with(Config {
        max_sleeps: NonZeroUsize::new(slots).unwrap(),
        ..Config::default()
    });
    for number in 1..=count {
        world.add(view(number));
    }
    world.sync(&[]);
    world
}

/// The workloads that a confirm is asked for, in order, with the attempts.
fn confirms(effects: &[Effect]) -> Vec<(u8, Attempt)> {
    (1..=20)
        .filter_map(|number| confirm_of(effects, number).map(|attempt| (number, attempt)))
        .collect()
}

#[test]
fn scenario_30_no_more_than_the_cap_and_all_finish_in_order() {
    let mut world = crowd(4, 2);
    let mut going = confirms(&world.pass(TIMEOUT));
    assert_eq!(
        going.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [1, 2]
    );
    world.check(3, Status::ReadyForStandby, Reason::WaitingForSlot);
    let mut order = Vec::new();
    while !going.is_empty() {
        assert!(going.len() <= 2);
        let (number, attempt) = going.remove(0);
        assert!(sleep_of(&world.confirmed(number, attempt, ConfirmAnswer::Idle), number).is_some());
        let next = world.sleep_ended(number, attempt, SleepEnd::Committed);
        order.push(number);
        going.extend(confirms(&next));
    }
    assert_eq!(order, [1, 2, 3, 4]);
    assert_eq!(world.engine.counters().sleeps_committed, 4);
}

#[test]
fn scenario_31_traffic_for_a_queued_one_cancels_that_one() {
    let mut world = crowd(3, 1);
    let going = confirms(&world.pass(TIMEOUT));
    world.opened(open(2, 1));
    world.check(2, Status::Active, Reason::ActiveInbound);
    world.check(3, Status::ReadyForStandby, Reason::WaitingForSlot);
    let next = world.confirmed(
        1,
        going[0].1,
        ConfirmAnswer::Unsure {
            why: "test".to_owned(),
        },
    );
    assert_eq!(
        confirms(&next).first().map(|(number, _)| *number),
        Some(3),
        "the one behind moves up"
    );
}

#[test]
fn scenario_32_a_second_deadline_asks_for_nothing() {
    let mut world = World::watching_one();
    world.until_confirm(1);
    assert_eq!(world.give(Input::DeadlineReached), []);
    assert_eq!(world.engine.counters().confirms_requested, 1);
}

#[test]
fn scenario_33_not_found_drops_the_workload() {
    let mut world = World::watching_one();
    let attempt = world.until_sleep(1);
    world.sleep_ended(1, attempt, SleepEnd::Gone);
    assert_eq!(world.engine.status(id(1), world.now, world.wall), None);
    let effects = world.pass(TIMEOUT * 3);
    assert!(
        effects.iter().all(|effect| effect.id().is_none()),
        "nothing is armed: {effects:?}"
    );
}

#[test]
fn scenario_34_a_change_during_a_sleep_starts_no_second() {
    let mut world = World::watching_one();
    let attempt = world.until_sleep(1);
    assert_eq!(world.state(1, State::Sleeping), []);
    world.sync(&[]);
    world.pass(secs(10));
    world.check(1, Status::StandbyRequested, Reason::Sleeping);
    let counters = world.engine.counters();
    assert_eq!((counters.sleeps_requested, counters.sleeps_cancelled), (1, 0));
    world.sleep_ended(1, attempt, SleepEnd::Committed);
    world.check(1, Status::Asleep, Reason::Asleep);
}

#[test]
fn scenario_35_a_listing_that_finds_activity_cancels_a_queued_sleep() {
    let mut world = crowd(2, 1);
    world.pass(TIMEOUT);
    world.check(2, Status::ReadyForStandby, Reason::WaitingForSlot);
    world.sync(&[open(2, 1)]);
    world.check(2, Status::Active, Reason::ActiveInbound);
    world.check(1, Status::ReadyForStandby, Reason::Confirming);
}

#[test]
fn scenario_36_a_sleep_that_fails_after_activity_leaves_it_active() {
    let mut world = World::watching_one();
    let attempt = world.until_sleep(1);
    let effects = world.opened(open(1, 1));
    assert_eq!(cancel_of(&effects, 1), Some(CancelWhy::InboundFlow));
    world.check(1, Status::StandbyRequested, Reason::Interrupting);
    let effects = world.sleep_ended(
        1,
        attempt,
        SleepEnd::Failed {
            why: "test".to_owned(),
        },
    );
    world.check(1, Status::Active, Reason::ActiveInbound);
    assert!(
        records_of(&effects, 1)
            .iter()
            .all(|(_, record)| record.is_none_or(|it| it.idle_since.is_none()))
    );
    // And one that committed all the same is woken at once.
    let mut world = World::watching_one();
    let attempt = world.until_sleep(1);
    world.opened(open(1, 1));
    assert!(wake_of(&world.sleep_ended(1, attempt, SleepEnd::Committed), 1).is_some());
}

#[test]
fn scenario_37_shutdown_abandons_the_queued_and_drains_the_running() {
    let mut world = crowd(3, 2);
    let going = confirms(&world.pass(TIMEOUT));
    world.confirmed(1, going[0].1, ConfirmAnswer::Idle);
    let effects = world.give(Input::Shutdown);
    assert_eq!(
        cancel_of(&effects, 1),
        None,
        "what runs is awaited, not taken back"
    );
    assert!(!world.engine.is_drained());
    world.check(3, Status::ReadyForStandby, Reason::ShuttingDown);
    assert_eq!(world.confirmed(2, going[1].1, ConfirmAnswer::Idle), []);
    let effects = world.sleep_ended(1, going[0].1, SleepEnd::Committed);
    assert_eq!(confirms(&effects), []);
    assert!(world.engine.is_drained());
    assert_eq!(world.pass(TIMEOUT * 2), []);
    assert_eq!(world.engine.next_deadline(), None);
}

/// A refresh that brings nothing: a change that changes nothing, a listing that is begun again and
/// never ends.
#[test]
fn scenario_38_a_refresh_without_news_leaves_the_queued_in_its_place() {
    let mut world = crowd(3, 1);
    let going = confirms(&world.pass(TIMEOUT));
    world.add(view(2));
    for epoch in [50, 51] {
        world.observe(dormouse_model::Observation::SyncBegan {
            epoch: dormouse_model::Epoch(epoch),
        });
    }
    world.check(2, Status::ReadyForStandby, Reason::WaitingForSlot);
    let next = world.confirmed(
        1,
        going[0].1,
        ConfirmAnswer::Unsure {
            why: "test".to_owned(),
        },
    );
    assert_eq!(confirms(&next).first().map(|(number, _)| *number), Some(2));
}

#[test]
fn scenario_39_a_record_that_fails_delays_nothing_and_is_tried_again() {
    let mut world = World::watching_one();
    let effects = world.pass(secs(2));
    let (attempt, record) = records_of(&effects, 1)[0];
    assert!(record.is_some());
    world.give(Input::RecordFailed { id: id(1), attempt });
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    let effects = world.pass(secs(1));
    assert_eq!(last_record(&effects, 1), record);
    let mut attempt = records_of(&effects, 1)[0].0;
    // The same record is not tried for ever.
    for _ in 0..20 {
        world.give(Input::RecordFailed { id: id(1), attempt });
        let effects = world.pass(secs(10));
        let Some((next, _)) = records_of(&effects, 1).first().copied() else {
            continue;
        };
        attempt = next;
    }
    assert!(world.engine.counters().records_requested <= 8);
    assert!(sleep_of(&world.pass(TIMEOUT), 1).is_none() && world.engine.counters().confirms_requested == 1);
}

#[test]
fn wakes_are_bounded_and_served_in_order() {
    let mut world = World::with(Config {
        max_wakes: NonZeroUsize::MIN,
        ..Config::default()
    });
    for number in 1..=3 {
        world.state(number, State::Standby);
    }
    let first = wake_of(&world.knock(2), 2).unwrap();
    for number in [3, 1, 3] {
        assert_eq!(wake_of(&world.knock(number), number), None);
        world.check(number, Status::Waking, Reason::WaitingToWake);
    }
    let effects = world.wake_ended(2, first, WakeEnd::Running);
    let second = wake_of(&effects, 3).expect("3 knocked before 1");
    assert_eq!(wake_of(&effects, 1), None);
    assert!(wake_of(&world.wake_ended(3, second, WakeEnd::Gone), 1).is_some());
}
