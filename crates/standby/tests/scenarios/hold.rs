//! 40 to 50: holds.

use dormouse_model::policy::PolicySetting;
use dormouse_model::workload::IdleRecord;
use dormouse_model::{Attempt, SleepEnd, State, WakeEnd};
use dormouse_standby::{
    CancelWhy, Config, ConfirmAnswer, Effect, Held, HoldError, Input, LONGEST_HOLD, Reason, Status,
    TRACKING_MODE,
};

use crate::support::{
    TIMEOUT, World, cancel_of, confirm_of, id, last_record, open, policy, records_of, secs, sleep_of, view,
    wake_of,
};

fn hold(world: &mut World, number: u8) -> (Result<Held, HoldError>, Vec<Effect>) {
    let mut out = Vec::new();
    let held = world.engine.hold(world.now, world.wall, id(number), &mut out);
    (held, out)
}

#[test]
fn scenario_40_a_hold_waits_for_no_write() {
    let mut world = World::watching_one();
    world.pass(secs(250));
    // Every write so far hangs: none is answered. The hold answers all the same, in the same call.
    let (held, effects) = hold(&mut world, 1);
    assert_eq!(
        held,
        Ok(Held::Awake {
            until: world.wall_after(TIMEOUT)
        })
    );
    assert!(
        last_record(&effects, 1).unwrap().hold_until.is_some(),
        "its write is one of the effects"
    );
    assert!(confirm_of(&world.pass(secs(299)), 1).is_none());
}

#[test]
fn scenario_41_a_hold_extends_the_countdown_and_survives_a_listing() {
    let mut world = World::watching_one();
    world.pass(secs(100));
    let idle_since = world.status(1).idle_since;
    let (_, effects) = hold(&mut world, 1);
    world.check(1, Status::IdleCountdown, Reason::Holding);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert_eq!(world.status(1).hold_until, Some(world.wall_after(TIMEOUT)));
    assert_eq!(
        last_record(&effects, 1).unwrap().idle_since,
        idle_since,
        "the idle time goes on beside it"
    );
    world.sync(&[]);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert!(confirm_of(&world.pass(TIMEOUT - secs(1)), 1).is_none());
    assert!(confirm_of(&world.pass(secs(1)), 1).is_some());
    // Ours survives a restart of the daemon too.
    let mut world = World::new();
    let record = IdleRecord {
        idle_since: Some(world.wall_before(secs(1_000))),
        last_inbound: None,
        hold_until: Some(world.wall_after(secs(40))),
    };
    world.add_recorded(view(1), record);
    world.sync(&[]);
    world.check(1, Status::IdleCountdown, Reason::Holding);
    assert_eq!(world.status(1).countdown_remaining, Some(secs(40)));
}

/// A duration of its own, longer than the idle timeout; ours too.
#[test]
fn scenario_41_a_hold_has_the_duration_that_was_asked_for() {
    for (asked, held) in [(secs(7_200), secs(7_200)), (LONGEST_HOLD + secs(1), LONGEST_HOLD)] {
        let mut world = World::watching_one();
        let mut out = Vec::new();
        let answer = world
            .engine
            .hold_for(world.now, world.wall, id(1), asked, &mut out);
        let until = world.wall_after(held);
        assert_eq!(answer, Ok(Held::Awake { until }));
        let record = last_record(&out, 1).unwrap();
        // The next daemon keeps the word of this one.
        let mut world = World::new();
        world.add_recorded(view(1), record);
        world.sync(&[]);
        assert_eq!(world.status(1).hold_until, Some(until));
        assert_eq!(world.status(1).countdown_remaining, Some(held));
    }
}

#[test]
fn scenario_42_a_shorter_hold_replaces_a_longer_one() {
    let mut world = World::watching_one();
    hold(&mut world, 1).0.unwrap();
    let mut shorter = view(1);
    shorter.policy = policy(secs(60));
    world.add(shorter);
    assert_eq!(
        world.status(1).countdown_remaining,
        Some(TIMEOUT),
        "the old hold stands"
    );
    hold(&mut world, 1).0.unwrap();
    assert_eq!(world.status(1).countdown_remaining, Some(secs(60)));
}

#[test]
fn scenario_43_a_hold_cancels_a_queued_sleep() {
    let mut world = World::with(Config {
        max_sleeps: std::num::NonZeroUsize::MIN,
        ..Config::default()
    });
    world.add(view(1));
    world.add(view(2));
    world.sync(&[]);
    world.pass(TIMEOUT);
    world.check(2, Status::ReadyForStandby, Reason::WaitingForSlot);
    hold(&mut world, 2).0.unwrap();
    world.check(2, Status::IdleCountdown, Reason::Holding);
}

/// By our rule there is no "in progress" error: a hold takes the sleep back before the commit and wakes
/// after it.
#[test]
fn scenario_44_a_hold_cancels_before_the_commit_and_wakes_after_it() {
    let going = || {
        let mut world = World::watching_one();
        let attempt = world.until_sleep(1);
        world.state(1, State::Sleeping);
        let (held, effects) = hold(&mut world, 1);
        assert_eq!(
            held,
            Ok(Held::ComesBack {
                until: world.wall_after(TIMEOUT)
            })
        );
        assert_eq!(cancel_of(&effects, 1), Some(CancelWhy::Hold));
        (world, attempt)
    };
    let (mut world, attempt) = going();
    world.sleep_ended(1, attempt, SleepEnd::Interrupted);
    world.check(1, Status::IdleCountdown, Reason::Holding);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));

    let (mut world, attempt) = going();
    let effects = world.sleep_ended(1, attempt, SleepEnd::Committed);
    let wake = wake_of(&effects, 1).expect("the commit was faster: it is woken");
    world.wake_ended(1, wake, WakeEnd::Running);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));

    // Asleep for long, or on its way there at a caller's wish: woken, at once or after the commit.
    let mut world = World::watching_one();
    world.until_asleep(1);
    let (held, effects) = hold(&mut world, 1);
    assert!(matches!(held, Ok(Held::ComesBack { .. })) && wake_of(&effects, 1).is_some());
    let mut world = World::watching_one();
    world.state(1, State::Sleeping);
    let (held, effects) = hold(&mut world, 1);
    assert!(matches!(held, Ok(Held::ComesBack { .. })) && wake_of(&effects, 1).is_none());
    assert!(wake_of(&world.state(1, State::Standby), 1).is_some());
}

#[test]
fn scenario_45_a_deadline_from_before_the_hold_does_nothing() {
    let mut world = World::watching_one();
    world.pass(TIMEOUT - secs(1));
    let stale = world.engine.next_deadline().unwrap();
    hold(&mut world, 1).0.unwrap();
    assert!(
        world.engine.next_deadline().is_none_or(|next| next > stale),
        "it is not there any more"
    );
    world.now = stale;
    assert_eq!(world.give(Input::DeadlineReached), []);
    world.check(1, Status::IdleCountdown, Reason::Holding);
}

#[test]
fn scenario_46_a_hold_survives_connections_that_come_and_go() {
    let mut world = World::watching_one();
    hold(&mut world, 1).0.unwrap();
    let until = world.status(1).hold_until;
    for port in 1..5 {
        world.opened(open(1, port));
        world.pass(secs(1));
        world.closed(open(1, port));
    }
    assert_eq!(world.status(1).hold_until, until);
    let mut short = view(1);
    short.policy = policy(secs(10));
    world.add(short);
    world.check(1, Status::IdleCountdown, Reason::Holding);
}

#[test]
fn scenario_47_a_hold_before_the_first_listing_is_honoured() {
    let mut world = World::new();
    world.add_recorded(
        view(1),
        IdleRecord {
            idle_since: Some(world.wall_before(TIMEOUT * 2)),
            ..IdleRecord::default()
        },
    );
    let (held, _) = hold(&mut world, 1);
    assert!(matches!(held, Ok(Held::Awake { .. })));
    world.sync(&[]);
    assert!(confirm_of(&world.pass(secs(0)), 1).is_none());
    world.check(1, Status::IdleCountdown, Reason::Holding);
    let (held, _) = hold(&mut world, 9);
    assert_eq!(held, Err(HoldError::Unknown { id: id(9) }));
}

#[test]
fn scenario_48_a_hold_of_a_disabled_one_does_nothing() {
    for setting in [PolicySetting::Missing, PolicySetting::Disabled] {
        let mut world = World::new();
        let mut disabled = view(1);
        disabled.policy = setting;
        world.add(disabled);
        let (held, effects) = hold(&mut world, 1);
        assert_eq!((held, effects), (Ok(Held::NothingToHold), Vec::new()));
        let status = world.status(1);
        assert_eq!((status.status, status.hold_until), (Status::Disabled, None));
        assert_eq!((status.idle_timeout, status.tracking_mode), (None, TRACKING_MODE));
    }
    let mut world = World::watching_one();
    world.state(1, State::Stopped);
    assert_eq!(hold(&mut world, 1).0, Ok(Held::NothingToHold));
}

/// Deadlines are on a clock that does not step; an early call is still only an early call.
#[test]
fn scenario_49_an_early_deadline_does_nothing_and_stays_armed() {
    let mut world = World::watching_one();
    world.pass(secs(100));
    let armed = world.engine.next_deadline();
    assert_eq!(world.give(Input::DeadlineReached), []);
    assert_eq!(world.engine.next_deadline(), armed);
    // A wall clock that steps back by a day moves what is shown and nothing that is decided.
    world.wall = world.wall_before(secs(86_400));
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT - secs(100)));
    assert!(confirm_of(&world.pass(TIMEOUT - secs(101)), 1).is_none());
    assert!(confirm_of(&world.pass(secs(1)), 1).is_some());
}

#[test]
fn scenario_50_an_expired_hold_is_not_shown() {
    let mut world = World::watching_one();
    hold(&mut world, 1).0.unwrap();
    world.opened(open(1, 1));
    world.pass(TIMEOUT - secs(1));
    assert!(world.status(1).hold_until.is_some());
    world.pass(secs(1));
    assert_eq!(world.status(1).hold_until, None);
    world.check(1, Status::Active, Reason::ActiveInbound);
}

#[test]
fn a_record_from_the_future_costs_one_longest_hold() {
    let mut world = World::new();
    let record = IdleRecord {
        idle_since: Some(world.wall_after(secs(5_000))),
        last_inbound: None,
        hold_until: Some(world.wall_after(secs(500_000))),
    };
    let effects = world.add_recorded(view(1), record);
    world.sync(&[]);
    assert_eq!(world.status(1).countdown_remaining, Some(LONGEST_HOLD));
    let corrected = last_record(&effects, 1).unwrap();
    assert_eq!(corrected.idle_since, Some(world.wall));
    assert_eq!(
        corrected.hold_until,
        Some(world.wall_after(LONGEST_HOLD)),
        "no hold is longer"
    );
    let attempt = world.until_sleep(1);
    assert!(attempt > Attempt::default());
    assert!(records_of(&world.sleep_ended(1, attempt, SleepEnd::Committed), 1).len() == 1);
    assert_eq!(
        sleep_of(&world.confirmed(1, attempt, ConfirmAnswer::Idle), 1),
        None
    );
}
