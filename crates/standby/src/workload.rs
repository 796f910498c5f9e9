//! What the engine knows of one workload, and the questions that this alone answers. The machine that
//! moves it is in [`crate::engine`].

use std::time::Duration;

use dormouse_model::plant::{Plant, planted};
use dormouse_model::workload::{IdleRecord, SleepSupport};
use dormouse_model::{Attempt, MonoTime, StandbyPolicy, State, WakeCause, WallTime, WorkloadView};

use crate::config::Config;
use crate::effect::CancelWhy;
use crate::flows::Flows;
use crate::lane::Ticket;
use crate::sight::{Sight, SightStatus};
use crate::status::{self, Reason, Status};
use dormouse_model::SightLoss;

/// One moment on both clocks: decided by the first, shown and recorded by the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) mono: MonoTime,
    pub(crate) wall: WallTime,
}

/// What is under way for a workload. At most one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    Rest,
    /// Its time has come; it waits for a slot.
    SleepQueued { ticket: Ticket },
    /// The kernel is asked, until `until`.
    Confirming { attempt: Attempt, until: MonoTime },
    /// A sleep runs. `cancelled` once it was taken back; `seen_asleep` once the state said `Standby`,
    /// so that an outcome which comes later than newer states does not turn these back.
    Sleeping {
        attempt: Attempt,
        until: MonoTime,
        cancelled: Option<CancelWhy>,
        seen_asleep: bool,
    },
    /// A knock waits for a slot.
    WakeQueued { ticket: Ticket },
    /// A wake runs. `seen_awake` once the state said so, for the same reason.
    Waking { attempt: Attempt, seen_awake: bool },
    /// A wake failed; the next try is at `at`.
    WakeBackoff { at: MonoTime },
}

/// How waking goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WakeTries {
    /// Why it is wanted.
    pub(crate) cause: WakeCause,
    /// Failures in a row.
    pub(crate) failed: u32,
    /// When it was given up, if it was.
    pub(crate) gave_up: Option<MonoTime>,
}

impl WakeTries {
    pub(crate) const NONE: Self = Self {
        cause: WakeCause::Knock,
        failed: 0,
        gave_up: None,
    };
}

/// How often in a row a reply interrupted a sleep, and until when the next try waits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Replies {
    pub(crate) aborts: u32,
    pub(crate) until: Option<MonoTime>,
}

/// What is on disk as far as the engine asked for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ledger {
    pub(crate) written: Option<IdleRecord>,
    /// The attempt that wrote it.
    pub(crate) attempt: Attempt,
    /// Failures in a row.
    pub(crate) failed: u32,
    /// When it is written again after a failure.
    pub(crate) retry_at: Option<MonoTime>,
}

/// When the record must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// What is on disk is what should be.
    Done,
    /// Once the idle time has lasted the settle delay. Until then the disk claims less idle time than
    /// there was, which after a crash can only delay a sleep.
    Later,
    /// Now: the disk claims an idle time that is over, or lacks a hold.
    Now,
}

/// One workload.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) view: WorkloadView,
    pub(crate) flows: Flows,
    /// Since when no flow holds it awake; `None` while one does or it does not run.
    pub(crate) idle: Option<Stamp>,
    pub(crate) last_inbound: Option<WallTime>,
    /// Until when a caller asked that it stay awake; kept when past.
    pub(crate) hold: Option<Stamp>,
    pub(crate) replies: Replies,
    /// The number of the newest listing when its addresses or its filters became what they are;
    /// `None` when somebody else claimed its address.
    pub(crate) indexed: Option<u32>,
    pub(crate) act: Act,
    /// A packet or a caller that came while it could not be woken; served once it sleeps.
    pub(crate) kept: Option<WakeCause>,
    pub(crate) wake: WakeTries,
    pub(crate) ledger: Ledger,
    pub(crate) announced: Option<(Status, Reason)>,
    pub(crate) armed: Option<MonoTime>,
    pub(crate) last_failure: Option<String>,
}

impl Workload {
    /// A workload met for the first time, with what was recorded of it.
    ///
    /// A recorded idle time counts on: what the daemon did not see while it was down, the first listing
    /// and the confirm will show. It is cut where it cannot be true, because the wall clock stepped:
    /// nothing that runs has been idle for longer than the host is up, and a time to come is no idle
    /// time at all. A hold is cut to the longest that can be asked for, from now.
    pub(crate) fn new(view: WorkloadView, record: Option<IdleRecord>, now: MonoTime, wall: WallTime) -> Self {
        let recorded = record.unwrap_or_default();
        let idle = runs(view.state).then(|| match recorded.idle_since {
            Some(since) if since <= wall => {
                let idled = wall.since(since);
                Stamp {
                    mono: MonoTime::from_boot(now.since_boot().saturating_sub(idled)),
                    wall: since,
                }
            }
            Some(_) | None => Stamp { mono: now, wall },
        });
        let hold = view
            .policy
            .enabled()
            .zip(recorded.hold_until)
            .and_then(|(policy, until)| {
                let longest = LONGEST_HOLD.max(policy.idle_timeout());
                let left = until.since(wall).min(longest);
                let hold = Stamp {
                    mono: now.plus(left),
                    wall: wall_after(wall, left),
                };
                (!left.is_zero() && keeps_hold(view.state)).then_some(hold)
            });
        Self {
            view,
            flows: Flows::default(),
            idle,
            last_inbound: recorded.last_inbound,
            hold,
            replies: Replies::default(),
            indexed: None,
            act: Act::Rest,
            kept: None,
            wake: WakeTries::NONE,
            ledger: Ledger {
                written: record,
                ..Ledger::default()
            },
            announced: None,
            armed: None,
            last_failure: None,
        }
    }

    pub(crate) fn policy(&self) -> Option<&StandbyPolicy> {
        self.view.policy.enabled()
    }

    /// Whether its flows are followed. The state plays no part: what connects while it sleeps counts
    /// the moment it is back.
    pub(crate) fn is_followed(&self) -> bool {
        self.policy().is_some() && self.view.addresses.is_some()
    }

    /// Whether its flows are followed and it runs, so that a flow that was missed would matter.
    pub(crate) fn is_followed_awake(&self) -> bool {
        self.is_followed() && runs(self.view.state)
    }

    /// Whether a sleep that the engine asked for runs.
    pub(crate) const fn is_put_to_sleep(&self) -> bool {
        matches!(self.act, Act::Sleeping { .. })
    }

    /// Whether it may sleep by itself, as far as it alone is concerned. On the way to sleep it still
    /// may, when it was the engine that sent it.
    pub(crate) fn is_eligible(&self) -> bool {
        let awake = match self.view.state {
            State::Running => true,
            State::Sleeping => self.is_put_to_sleep(),
            State::Stopped
            | State::Starting
            | State::Initializing
            | State::Dozing
            | State::Standby
            | State::Waking
            | State::Stopping
            | State::Failed
            | State::Deleting => false,
        };
        awake && self.can_ever_sleep()
    }

    /// Whether it may sleep by itself in some state.
    pub(crate) fn can_ever_sleep(&self) -> bool {
        self.is_followed() && self.view.sleep_support == SleepSupport::Able
    }

    /// When its time comes, and what decides that; `None` when it is not idle.
    pub(crate) fn due(&self) -> Option<(MonoTime, Reason)> {
        let policy = self.policy()?;
        let idle = self.idle.filter(|_| self.flows.is_empty())?;
        let mut due = (
            idle.mono.plus(policy.idle_timeout()),
            Reason::IdleTimeoutNotElapsed,
        );
        if let Some(hold) = self.hold
            && hold.mono > due.0
            && !planted(Plant::HoldIgnored)
        {
            due = (hold.mono, Reason::Holding);
        }
        if let Some(until) = self.replies.until
            && until > due.0
        {
            due = (until, Reason::ReplyBackoff);
        }
        Some(due)
    }

    /// Whether the engine sees all that there is to see of it.
    pub(crate) fn is_seen(&self, sight: &Sight) -> bool {
        sight.is_clear() && sight.covers(self.indexed)
    }

    /// Whether what cannot be seen keeps it awake: blind means hold.
    pub(crate) fn is_held_blind(&self, sight: &Sight) -> bool {
        !self.is_seen(sight) && !planted(Plant::BlindNotHolding)
    }

    /// Whether it should sleep now. This is the whole decision: what runs is taken back when it turns
    /// false, what rests is begun when time makes it true.
    pub(crate) fn should_sleep(&self, now: MonoTime, sight: &Sight) -> bool {
        self.is_eligible() && !self.is_held_blind(sight) && self.due().is_some_and(|(due, _)| due <= now)
    }

    /// Where it is and why.
    pub(crate) fn verdict(&self, now: MonoTime, sight: &Sight, stopping: bool) -> (Status, Reason) {
        match self.act {
            Act::Sleeping {
                cancelled: Some(_), ..
            } => {
                return (Status::StandbyRequested, Reason::Interrupting);
            }
            Act::Sleeping { cancelled: None, .. } => return (Status::StandbyRequested, Reason::Sleeping),
            Act::WakeQueued { .. } => return (Status::Waking, Reason::WaitingToWake),
            Act::Waking { .. } => return (Status::Waking, Reason::Waking),
            Act::WakeBackoff { .. } => return (Status::Waking, Reason::WakeRetrying),
            Act::Rest | Act::SleepQueued { .. } | Act::Confirming { .. } => {}
        }
        if let Some((status, reason)) = status::obstacle(&self.view) {
            if status == Status::Asleep && self.wake.gave_up.is_some() {
                return (status, Reason::WakeGaveUp);
            }
            return (status, reason);
        }
        if let SightStatus::Blind { loss } = sight.status() {
            return if loss == Some(SightLoss::SocketFailed) {
                (Status::Error, Reason::ObserverError)
            } else {
                (Status::Blind, Reason::Blind)
            };
        }
        if !self.flows.is_empty() {
            return (Status::Active, Reason::ActiveInbound);
        }
        if !sight.covers(self.indexed) {
            return (Status::Blind, Reason::Blind);
        }
        if matches!(self.act, Act::SleepQueued { .. }) {
            return (Status::ReadyForStandby, Reason::WaitingForSlot);
        }
        if matches!(self.act, Act::Confirming { .. }) {
            return (Status::ReadyForStandby, Reason::Confirming);
        }
        match self.due() {
            Some((due, reason)) if due > now => (Status::IdleCountdown, reason),
            Some(_) if stopping => (Status::ReadyForStandby, Reason::ShuttingDown),
            Some(_) => (Status::ReadyForStandby, Reason::ReadyForStandby),
            None => (Status::IdleCountdown, Reason::IdleTimeoutNotElapsed),
        }
    }

    /// What should be on disk.
    pub(crate) fn record(&self) -> Option<IdleRecord> {
        if !self.is_followed() {
            return None;
        }
        let runs = runs(self.view.state);
        if !runs && self.hold.is_none() {
            return None;
        }
        Some(IdleRecord {
            idle_since: self.idle.map(|idle| idle.wall),
            last_inbound: self.last_inbound.filter(|_| runs),
            hold_until: self.hold.map(|hold| hold.wall),
        })
    }

    /// When `record` must be written. The time of the last traffic alone is no reason: it moves with
    /// every connection, and goes along when something else is written.
    pub(crate) fn writing(&self, record: Option<&IdleRecord>) -> Writing {
        let written = self.ledger.written.as_ref();
        let (Some(new), old) = (record, written.copied().unwrap_or_default()) else {
            return if written.is_some() {
                Writing::Now
            } else {
                Writing::Done
            };
        };
        if new.hold_until != old.hold_until {
            Writing::Now
        } else if new.idle_since == old.idle_since {
            Writing::Done
        } else if old.idle_since.is_some() {
            Writing::Now
        } else {
            Writing::Later
        }
    }

    /// When its idle time is long enough to be recorded and announced.
    pub(crate) fn settles_at(&self, config: &Config) -> Option<MonoTime> {
        self.idle.map(|idle| idle.mono.plus(config.settle_delay))
    }

    /// The countdown begins again, if it is in one.
    pub(crate) fn restart_countdown(&mut self, now: MonoTime, wall: WallTime) {
        self.idle = (self.flows.is_empty() && runs(self.view.state)).then_some(Stamp { mono: now, wall });
    }

    /// A reply interrupted a sleep: the next try waits, longer each time.
    pub(crate) fn put_off(&mut self, now: MonoTime, first: Duration) {
        let Some(most) = self.policy().map(StandbyPolicy::idle_timeout) else {
            return;
        };
        self.replies.aborts = self.replies.aborts.saturating_add(1);
        let pause = crate::config::Backoff { first, most }.after(self.replies.aborts);
        self.replies.until = Some(now.plus(pause));
    }
}

/// Whether the guest runs as far as idle time is concerned. On the way to sleep it may still come back
/// as if nothing had been.
pub(crate) const fn runs(state: State) -> bool {
    match state {
        State::Running | State::Sleeping => true,
        State::Stopped
        | State::Starting
        | State::Initializing
        | State::Dozing
        | State::Standby
        | State::Waking
        | State::Stopping
        | State::Failed
        | State::Deleting => false,
    }
}

/// Whether the guest runs and packets reach it.
pub(crate) const fn is_awake(state: State) -> bool {
    matches!(state, State::Running | State::Initializing)
}

/// Whether it sleeps and a knock can wake it.
pub(crate) const fn sleeps(state: State) -> bool {
    match state {
        State::Dozing | State::Standby => true,
        State::Stopped
        | State::Starting
        | State::Initializing
        | State::Running
        | State::Sleeping
        | State::Waking
        | State::Stopping
        | State::Failed
        | State::Deleting => false,
    }
}

/// The longest time that a hold may be asked for; an idle timeout may be longer.
pub const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// Whether a hold means anything: it runs, or it will run because of the hold.
pub(crate) const fn keeps_hold(state: State) -> bool {
    match state {
        State::Running | State::Sleeping | State::Dozing | State::Standby | State::Waking => true,
        State::Stopped
        | State::Starting
        | State::Initializing
        | State::Stopping
        | State::Failed
        | State::Deleting => false,
    }
}

/// `wall` plus `delay`, saturating.
pub(crate) fn wall_after(wall: WallTime, delay: Duration) -> WallTime {
    let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    WallTime::from_unix_nanos(wall.unix_nanos().saturating_add(nanos))
}
