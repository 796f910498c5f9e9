//! Random moves: everything that can happen, in any order, sensible or not. What answers an effect picks
//! among the attempts that are outstanding when it is played, so that most answers are fresh and some are
//! not.

use std::time::Duration;

use dormouse_model::{SightLoss, State};
use proptest::prelude::{Just, Strategy, any, prop_oneof};

/// How many workloads, client ports and caps there are: few, so that moves meet.
pub(crate) const WORKLOADS: u8 = 4;

/// A flow among few: of a workload (one beyond the last is nobody), a client port, perhaps over a
/// published port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AFlow {
    pub(crate) who: u8,
    pub(crate) port: u16,
    pub(crate) published: bool,
    /// 0 NONE, 1 half open, 3 established, 7 TIME_WAIT, 12 nobody knows.
    pub(crate) state: u8,
}

/// How an answer relates to what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The attempt that is outstanding.
    Fresh,
    /// The attempt before it.
    Late,
    /// One never given.
    Invented,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Idle,
    Live,
    Unsure,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Done,
    Interrupted,
    Failed,
    Gone,
    Refused(State),
}

/// What a workload's view becomes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    State(State),
    Timeout(u64),
    PolicyOff,
    IgnorePort,
    NetworkOff,
    NetworkOn,
    DriverCannot,
    Able,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Move {
    /// Time passes; deadlines on the way are reached.
    Pass(Duration),
    /// Time passes up to the next deadline, which is reached.
    NextDeadline,
    Opened(AFlow),
    Changed(AFlow),
    Closed(AFlow),
    SyncBegan,
    Listed(AFlow),
    SyncDone,
    /// A whole listing without a flow.
    Sync,
    SightLost(SightLoss),
    Knock(u8, bool),
    Hold(u8),
    Change(u8, Change),
    Gone(u8),
    Confirm(u8, Freshness, Answer),
    Slept(u8, Freshness, End),
    Woke(u8, Freshness, End),
    RecordFailed(u8, Freshness),
    WallStep(bool),
    Shutdown,
}

fn who() -> impl Strategy<Value = u8> {
    1..=WORKLOADS
}

fn flow() -> impl Strategy<Value = AFlow> {
    let state = prop_oneof![Just(3), Just(3), Just(1), Just(7), Just(12), Just(0)];
    (1..=WORKLOADS + 1, 1_u16..4, any::<bool>(), state).prop_map(|(who, port, published, state)| AFlow {
        who,
        port,
        published,
        state,
    })
}

fn freshness() -> impl Strategy<Value = Freshness> {
    prop_oneof![
        8 => Just(Freshness::Fresh),
        1 => Just(Freshness::Late),
        1 => Just(Freshness::Invented),
    ]
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        6 => Just(State::Running),
        4 => Just(State::Standby),
        3 => Just(State::Sleeping),
        2 => Just(State::Waking),
        1 => Just(State::Dozing),
        1 => Just(State::Initializing),
        1 => Just(State::Stopped),
        1 => Just(State::Failed),
        1 => Just(State::Deleting),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        6 => Just(End::Done),
        3 => Just(End::Interrupted),
        3 => Just(End::Failed),
        1 => Just(End::Gone),
        2 => state().prop_map(End::Refused),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => state().prop_map(Change::State),
        2 => (1_u64..100).prop_map(Change::Timeout),
        1 => Just(Change::PolicyOff),
        1 => Just(Change::IgnorePort),
        1 => Just(Change::NetworkOff),
        1 => Just(Change::NetworkOn),
        1 => Just(Change::DriverCannot),
        1 => Just(Change::Able),
        2 => Just(Change::Nothing),
    ]
}

fn loss() -> impl Strategy<Value = SightLoss> {
    prop_oneof![
        Just(SightLoss::Overrun),
        Just(SightLoss::SocketFailed),
        Just(SightLoss::ListingFailed)
    ]
}

/// A move of any kind.
pub(crate) fn any_move() -> impl Strategy<Value = Move> {
    let answer = prop_oneof![6 => Just(Answer::Idle), 1 => Just(Answer::Live), 1 => Just(Answer::Unsure)];
    prop_oneof![
        12 => Just(Move::NextDeadline),
        6 => (0_u64..70_000).prop_map(|millis| Move::Pass(Duration::from_millis(millis))),
        6 => flow().prop_map(Move::Opened),
        4 => flow().prop_map(Move::Changed),
        6 => flow().prop_map(Move::Closed),
        2 => Just(Move::SyncBegan),
        3 => flow().prop_map(Move::Listed),
        2 => Just(Move::SyncDone),
        6 => Just(Move::Sync),
        2 => loss().prop_map(Move::SightLost),
        4 => (who(), any::<bool>()).prop_map(|(who, reply)| Move::Knock(who, reply)),
        2 => who().prop_map(Move::Hold),
        6 => (who(), change()).prop_map(|(who, change)| Move::Change(who, change)),
        1 => who().prop_map(Move::Gone),
        14 => (who(), freshness(), answer).prop_map(|(who, fresh, answer)| Move::Confirm(who, fresh, answer)),
        8 => (who(), freshness(), end()).prop_map(|(who, fresh, end)| Move::Slept(who, fresh, end)),
        6 => (who(), freshness(), end()).prop_map(|(who, fresh, end)| Move::Woke(who, fresh, end)),
        2 => (who(), freshness()).prop_map(|(who, fresh)| Move::RecordFailed(who, fresh)),
        1 => any::<bool>().prop_map(Move::WallStep),
    ]
}

/// A game of moves, one in ten with a shutdown in it.
pub(crate) fn game() -> impl Strategy<Value = Vec<Move>> {
    let shutdown = proptest::option::weighted(0.1, any::<proptest::sample::Index>());
    (proptest::collection::vec(any_move(), 1..150), shutdown).prop_map(|(mut game, shutdown)| {
        if let Some(at) = shutdown {
            game.insert(at.index(game.len()), Move::Shutdown);
        }
        game
    })
}
