//! 9 to 22, and 28, 29: following traffic, countdown, gaps.

use dormouse_model::flow::TcpState;
use dormouse_model::workload::IdleRecord;
use dormouse_model::{Epoch, Observation, SightLoss, SleepEnd, State, WakeEnd};
use dormouse_standby::{Config, ConfirmAnswer, Effect, Input, Reason, SightStatus, Status};

use crate::support::{
    TIMEOUT, World, confirm_of, id, last_record, open, records_of, secs, sleep_of, tcp, view, view_in,
    wake_of,
};

/// A record of 100 s of idle time.
fn idle_for_100_s(world: &World) -> IdleRecord {
    IdleRecord {
        idle_since: Some(world.wall_before(secs(100))),
        last_inbound: Some(world.wall_before(secs(100))),
        hold_until: None,
    }
}

#[test]
fn scenario_09_live_connection_at_start_clears_persisted_idle() {
    let mut world = World::new();
    let record = idle_for_100_s(&world);
    world.add_recorded(view(1), record);
    world.check(1, Status::Blind, Reason::Blind);
    let effects = world.sync(&[open(1, 1)]);
    world.check(1, Status::Active, Reason::ActiveInbound);
    let written = last_record(&effects, 1).unwrap();
    assert_eq!(
        written,
        IdleRecord {
            idle_since: None,
            ..record
        },
        "written at once, last traffic kept"
    );
    assert_eq!(world.status(1).next_standby_at, None);
}

#[test]
fn scenario_10_no_connection_at_start_resumes_persisted_countdown() {
    let mut world = World::new();
    let record = idle_for_100_s(&world);
    world.add_recorded(view(1), record);
    world.sync(&[]);
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    let status = world.status(1);
    assert_eq!(status.idle_since, record.idle_since);
    assert_eq!(
        status.next_standby_at,
        Some(world.wall_after(TIMEOUT - secs(100)))
    );
    // One that is over already fires at once, and is confirmed like any other.
    let mut world = World::new();
    let record = IdleRecord {
        idle_since: Some(world.wall_before(TIMEOUT * 2)),
        ..IdleRecord::default()
    };
    world.add_recorded(view(1), record);
    world.sync(&[]);
    assert!(confirm_of(&world.pass(secs(0)), 1).is_some());
}

#[test]
fn scenario_11_a_listing_picks_up_what_the_stream_missed() {
    let mut world = World::watching_one();
    world.pass(secs(100));
    world.sync(&[open(1, 1)]);
    world.check(1, Status::Active, Reason::ActiveInbound);
    assert_eq!(world.status(1).last_inbound_activity_at, Some(world.wall));
}

#[test]
fn scenario_12_becoming_ineligible_erases_the_record() {
    let mut world = World::watching_one();
    let effects = world.pass(secs(10));
    assert!(
        last_record(&effects, 1).is_some(),
        "the idle time was recorded once it had settled"
    );
    let effects = world.state(1, State::Stopping);
    world.check(1, Status::Ineligible, Reason::NotRunning);
    assert_eq!(last_record(&effects, 1), None);
}

#[test]
fn scenario_13_new_makes_active_and_destroy_starts_the_countdown() {
    let mut world = World::watching_one();
    world.pass(secs(10));
    let effects = world.opened(open(1, 1));
    world.check(1, Status::Active, Reason::ActiveInbound);
    assert_eq!(
        last_record(&effects, 1).unwrap().idle_since,
        None,
        "the disk claims no idle time now"
    );
    world.pass(secs(1_000));
    world.check(1, Status::Active, Reason::ActiveInbound);
    world.closed(open(1, 1));
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(world.status(1).idle_since, Some(world.wall));
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert!(confirm_of(&world.pass(TIMEOUT - secs(1)), 1).is_none());
    assert!(confirm_of(&world.pass(secs(1)), 1).is_some());
}

#[test]
fn scenario_14_new_half_open_is_active() {
    let mut world = World::watching_one();
    world.opened(tcp(1, 1, TcpState::SYN_SENT));
    world.check(1, Status::Active, Reason::ActiveInbound);
}

#[test]
fn scenario_15_listed_half_open_is_active() {
    let mut world = World::new();
    world.add(view(1));
    world.sync(&[tcp(1, 1, TcpState::SYN_SENT)]);
    world.check(1, Status::Active, Reason::ActiveInbound);
}

#[test]
fn scenario_16_time_wait_starts_the_countdown() {
    let mut world = World::watching_one();
    world.opened(open(1, 1));
    world.changed(tcp(1, 1, TcpState::TIME_WAIT));
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    world.changed(tcp(1, 2, TcpState::CLOSE));
    assert_eq!(
        world.status(1).active_inbound_count,
        0,
        "one that was never known changes nothing"
    );
}

#[test]
fn scenario_17_a_listed_connection_that_vanished_starts_the_countdown() {
    let mut world = World::new();
    world.add(view(1));
    world.sync(&[open(1, 1)]);
    world.pass(secs(2));
    world.sync(&[]);
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(
        world.status(1).countdown_remaining,
        Some(TIMEOUT),
        "when it ended is not known: from now"
    );
}

#[test]
fn scenario_18_a_second_destroy_changes_nothing() {
    let mut world = World::watching_one();
    world.opened(open(1, 1));
    world.closed(open(1, 1));
    world.pass(secs(10));
    let before = world.status(1);
    assert_eq!(world.closed(open(1, 1)), []);
    assert_eq!(world.status(1), before);
    assert_eq!(before.active_inbound_count, 0);
}

#[test]
fn scenario_19_observer_error_is_status_error() {
    let mut world = World::watching_one();
    let effects = world.lose_sight(SightLoss::SocketFailed);
    assert!(format!("{effects:?}").contains("AnnounceSight"), "{effects:?}");
    world.check(1, Status::Error, Reason::ObserverError);
    assert!(world.status(1).eligible);
    assert_eq!(world.status(1).next_standby_at, None, "no time can be named");
}

#[test]
fn scenario_20_a_failed_listing_ends_nothing_and_shutdown_is_clean() {
    let mut world = World::new();
    world.add(view(1));
    world.lose_sight(SightLoss::ListingFailed);
    assert!(
        confirm_of(&world.pass(TIMEOUT * 3), 1).is_none(),
        "blind means hold"
    );
    world.sync(&[]);
    assert!(
        matches!(world.engine.sight(), SightStatus::Clear { .. }),
        "and it goes on"
    );
    world.give(Input::Shutdown);
    assert!(world.engine.is_drained());
    assert_eq!(world.engine.next_deadline(), None);
}

#[test]
fn scenario_21_the_deadline_sleeps_once_and_clears() {
    let mut world = World::watching_one();
    let attempt = world.until_confirm(1);
    world.check(1, Status::ReadyForStandby, Reason::Confirming);
    let effects = world.confirmed(1, attempt, ConfirmAnswer::Idle);
    assert_eq!(sleep_of(&effects, 1), Some(attempt));
    world.check(1, Status::StandbyRequested, Reason::Sleeping);
    world.state(1, State::Sleeping);
    let effects = world.sleep_ended(1, attempt, SleepEnd::Committed);
    assert_eq!(last_record(&effects, 1), None);
    world.check(1, Status::Asleep, Reason::Asleep);
    assert_eq!(world.status(1).idle_since, None);
    assert_eq!(
        world
            .pass(TIMEOUT * 3)
            .iter()
            .filter(|effect| effect.id().is_some())
            .count(),
        0
    );
    assert_eq!(world.engine.counters().sleeps_requested, 1);
}

#[test]
fn scenario_22_a_failed_sleep_starts_the_countdown_again() {
    let mut world = World::watching_one();
    let attempt = world.until_sleep(1);
    world.state(1, State::Sleeping);
    world.pass(secs(3));
    world.sleep_ended(
        1,
        attempt,
        SleepEnd::Failed {
            why: "the disk is full".to_owned(),
        },
    );
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert_eq!(world.status(1).idle_since, Some(world.wall));
    assert_eq!(world.status(1).last_failure.as_deref(), Some("the disk is full"));
    assert!(sleep_of(&world.pass(TIMEOUT - secs(1)), 1).is_none());
    assert!(confirm_of(&world.pass(secs(1)), 1).is_some_and(|next| next > attempt));
}

#[test]
fn scenario_28_a_connection_made_during_an_outage_is_active_after_it() {
    let mut world = World::watching_one();
    world.lose_sight(SightLoss::SocketFailed);
    world.pass(secs(5));
    world.sync(&[open(1, 1)]);
    world.check(1, Status::Active, Reason::ActiveInbound);
    // And without one the countdown goes on from where it stood: what nobody saw counts for nothing.
    let mut world = World::watching_one();
    world.pass(secs(100));
    world.lose_sight(SightLoss::Overrun);
    world.pass(secs(50));
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT - secs(100)));
    world.sync(&[]);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT - secs(100)));
    assert!(confirm_of(&world.pass(TIMEOUT - secs(101)), 1).is_none());
    assert!(confirm_of(&world.pass(secs(1)), 1).is_some());
}

/// By our rule a reconnected observer whose listing failed is not in error; but it is blind, and
/// nothing sleeps.
#[test]
fn scenario_29_reconnected_with_a_failing_listing_is_not_an_error() {
    let mut world = World::watching_one();
    world.lose_sight(SightLoss::SocketFailed);
    world.check(1, Status::Error, Reason::ObserverError);
    world.observe(Observation::SyncBegan { epoch: Epoch(7) });
    world.check(1, Status::Blind, Reason::Blind);
    world.lose_sight(SightLoss::ListingFailed);
    world.check(1, Status::Blind, Reason::Blind);
    assert!(confirm_of(&world.pass(TIMEOUT * 2), 1).is_none());
}

#[test]
fn a_fresh_workload_waits_for_a_listing_that_covers_it() {
    let mut world = World::new();
    world.sync(&[]);
    world.add(view(1));
    world.check(1, Status::Blind, Reason::Blind);
    let effects = world.pass(secs(0));
    assert_eq!(effects, [Effect::RequestResync]);
    world.observe(Observation::SyncBegan { epoch: Epoch(9) });
    world.add(view(2));
    let effects = world.observe(Observation::SyncDone { epoch: Epoch(9) });
    assert!(
        records_of(&effects, 1).is_empty(),
        "idle for less than the settle delay"
    );
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    world.check(2, Status::Blind, Reason::Blind);
    // The next request keeps its distance from the last.
    assert_eq!(world.pass(secs(0)), []);
    assert!(world.pass(secs(1)).contains(&Effect::RequestResync));
    world.sync(&[]);
    world.check(2, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
}

#[test]
fn listings_are_asked_for_now_and_then_and_take_no_sight_away() {
    let mut world = World::with(Config::default());
    world.add(view(1));
    world.sync(&[]);
    world.opened(open(1, 1));
    assert_eq!(world.pass(secs(299)), []);
    assert_eq!(world.pass(secs(1)), [Effect::RequestResync]);
    world.observe(Observation::SyncBegan { epoch: Epoch(9) });
    assert!(matches!(world.engine.sight(), SightStatus::Clear { .. }));
    world.closed(open(1, 1));
    world.opened(open(1, 2));
    assert_eq!(world.observe(Observation::SyncDone { epoch: Epoch(9) }), []);
    assert_eq!(
        world.status(1).active_inbound_count,
        1,
        "events during a listing count for it too"
    );
    assert_eq!(world.pass(secs(300)), [Effect::RequestResync]);
    world.observe(Observation::SyncDone { epoch: Epoch(9) });
    assert_eq!(world.engine.counters().stale_syncs, 1);
}

#[test]
fn a_woken_workload_has_one_whole_idle_timeout() {
    let mut world = World::watching_one();
    world.until_asleep(1);
    world.pass(secs(1_000));
    let attempt = wake_of(&world.knock(1), 1).expect("a knock wakes");
    assert_eq!(world.knock(1), [], "another does not wake it twice");
    world.state(1, State::Waking);
    world.pass(secs(1));
    world.wake_ended(1, attempt, WakeEnd::Running);
    world.add(view_in(1, State::Running));
    world.check(1, Status::IdleCountdown, Reason::IdleTimeoutNotElapsed);
    assert_eq!(world.status(1).countdown_remaining, Some(TIMEOUT));
    assert_eq!(world.engine.status(id(9), world.now, world.wall), None);
}

#[test]
fn nothing_comes_by_itself_while_all_sleep() {
    let mut world = World::with(Config::default());
    world.add(view_in(1, State::Standby));
    world.sync(&[]);
    let day = world.pass(secs(86_400));
    assert!(!day.contains(&Effect::RequestResync), "{day:?}");
    assert_eq!(world.engine.next_deadline(), None);
    // The first that runs is followed again, and the last one ends it.
    world.state(1, State::Running);
    let awake = world.pass(Config::default().resync_interval);
    assert!(awake.contains(&Effect::RequestResync), "{awake:?}");
    world.state(1, State::Standby);
    world.pass(Config::default().resync_interval * 2);
    let day = world.pass(secs(86_400));
    assert!(!day.contains(&Effect::RequestResync), "{day:?}");
}
