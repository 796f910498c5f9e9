//! What the engine says about a workload: one status, and exactly one reason for it.

use std::fmt;
use std::time::Duration;

use dormouse_model::policy::PolicySetting;
use dormouse_model::workload::SleepSupport;
use dormouse_model::{State, WallTime, WorkloadView};

/// How the engine follows traffic.
pub const TRACKING_MODE: &str = "conntrack_events";

/// Where a workload is on its way to sleep and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// This host has no engine.
    Unsupported,
    /// It has no policy, or one that is switched off.
    Disabled,
    /// It cannot sleep as it is now.
    Ineligible,
    /// It may have traffic that the engine does not know of; it will not sleep until that is over.
    Blind,
    /// As `Blind`, because the observer does not work.
    Error,
    /// Somebody is connected.
    Active,
    /// Nobody is; it waits for its time.
    IdleCountdown,
    /// Its time has come.
    ReadyForStandby,
    /// It is on its way to standby, wanted by the engine or by a caller.
    StandbyRequested,
    /// It sleeps.
    Asleep,
    /// It is on its way back.
    Waking,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 11] = [
        Self::Unsupported,
        Self::Disabled,
        Self::Ineligible,
        Self::Blind,
        Self::Error,
        Self::Active,
        Self::IdleCountdown,
        Self::ReadyForStandby,
        Self::StandbyRequested,
        Self::Asleep,
        Self::Waking,
    ];

    /// The name on the API, in tables and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Disabled => "disabled",
            Self::Ineligible => "ineligible",
            Self::Blind => "blind",
            Self::Error => "error",
            Self::Active => "active",
            Self::IdleCountdown => "idle_countdown",
            Self::ReadyForStandby => "ready_for_standby",
            Self::StandbyRequested => "standby_requested",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a status is what it is.
///
/// Against the names of the superseded systems: `instance_not_running` is [`Reason::NotRunning`],
/// `missing_ip` is [`Reason::NetworkDisabled`] (an address is there or there is no network), `has_vgpu`
/// is [`Reason::DevicePassedThrough`]; the others keep their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// No engine on this platform.
    UnsupportedPlatform,
    /// Nothing was said about sleeping.
    PolicyMissing,
    /// It was said: never by itself.
    PolicyDisabled,
    /// The guest does not run, or is not ready.
    NotRunning,
    /// It has no addresses, so nobody could wake it.
    NetworkDisabled,
    /// The driver cannot save this guest's devices.
    DriverCannotSleep,
    /// A passed-through device cannot be saved.
    DevicePassedThrough,
    /// The observer's socket failed.
    ObserverError,
    /// A listing is needed that covers this workload: after a start, a loss, or because it is new.
    Blind,
    /// Somebody is connected.
    ActiveInbound,
    /// The idle timeout has not passed since the last connection ended.
    IdleTimeoutNotElapsed,
    /// A caller asked that it stay awake.
    Holding,
    /// Its last sleep was interrupted by a reply to the guest; the next try waits.
    ReplyBackoff,
    /// The engine stops and begins nothing.
    ShuttingDown,
    /// Its time has come.
    ReadyForStandby,
    /// As many as may are on their way to sleep; it waits its turn.
    WaitingForSlot,
    /// The kernel is asked whether it is idle for certain.
    Confirming,
    /// It is being put to sleep.
    Sleeping,
    /// It was being put to sleep and is called back.
    Interrupting,
    /// It sleeps, without a process.
    Asleep,
    /// It sleeps, processors stopped and process kept.
    Dozing,
    /// Waking it failed as often as it may; the next knock tries again.
    WakeGaveUp,
    /// As many as may are waking; it waits its turn.
    WaitingToWake,
    /// It is being woken.
    Waking,
    /// Waking it failed; the next try waits.
    WakeRetrying,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 25] = [
        Self::UnsupportedPlatform,
        Self::PolicyMissing,
        Self::PolicyDisabled,
        Self::NotRunning,
        Self::NetworkDisabled,
        Self::DriverCannotSleep,
        Self::DevicePassedThrough,
        Self::ObserverError,
        Self::Blind,
        Self::ActiveInbound,
        Self::IdleTimeoutNotElapsed,
        Self::Holding,
        Self::ReplyBackoff,
        Self::ShuttingDown,
        Self::ReadyForStandby,
        Self::WaitingForSlot,
        Self::Confirming,
        Self::Sleeping,
        Self::Interrupting,
        Self::Asleep,
        Self::Dozing,
        Self::WakeGaveUp,
        Self::WaitingToWake,
        Self::Waking,
        Self::WakeRetrying,
    ];

    /// The name on the API, in tables and metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnsupportedPlatform => "unsupported_platform",
            Self::PolicyMissing => "policy_missing",
            Self::PolicyDisabled => "policy_disabled",
            Self::NotRunning => "not_running",
            Self::NetworkDisabled => "network_disabled",
            Self::DriverCannotSleep => "driver_cannot_sleep",
            Self::DevicePassedThrough => "device_passed_through",
            Self::ObserverError => "observer_error",
            Self::Blind => "blind",
            Self::ActiveInbound => "active_inbound_connections",
            Self::IdleTimeoutNotElapsed => "idle_timeout_not_elapsed",
            Self::Holding => "holding",
            Self::ReplyBackoff => "reply_backoff",
            Self::ShuttingDown => "shutting_down",
            Self::ReadyForStandby => "ready_for_standby",
            Self::WaitingForSlot => "waiting_for_slot",
            Self::Confirming => "confirming",
            Self::Sleeping => "sleeping",
            Self::Interrupting => "interrupting",
            Self::Asleep => "asleep",
            Self::Dozing => "dozing",
            Self::WakeGaveUp => "wake_gave_up",
            Self::WaitingToWake => "waiting_to_wake",
            Self::Waking => "waking",
            Self::WakeRetrying => "wake_retrying",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that the engine says about one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSnapshot {
    /// Whether this host has an engine.
    pub supported: bool,
    /// Whether something was said about sleeping.
    pub configured: bool,
    /// Whether its policy is switched on.
    pub enabled: bool,
    /// Whether it may sleep by itself as it is now.
    pub eligible: bool,
    /// Where it is.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// Known flows that hold it awake.
    pub active_inbound_count: usize,
    /// Its idle timeout; `None` without a policy that is switched on.
    pub idle_timeout: Option<Duration>,
    /// Since when no flow holds it awake; `None` while one does or it does not run.
    pub idle_since: Option<WallTime>,
    /// When inbound traffic was last seen.
    pub last_inbound_activity_at: Option<WallTime>,
    /// When it will sleep if nothing happens; `None` when no time can be named, as while blind.
    pub next_standby_at: Option<WallTime>,
    /// How long until then, at least zero. While blind it stands still.
    pub countdown_remaining: Option<Duration>,
    /// Until when a caller asked that it stay awake; `None` once that is past.
    pub hold_until: Option<WallTime>,
    /// What last went wrong on the way to sleep or back; `None` once a sleep or wake succeeded.
    pub last_failure: Option<String>,
    /// How traffic is followed: [`TRACKING_MODE`].
    pub tracking_mode: &'static str,
}

impl StatusSnapshot {
    /// What is said where no engine runs.
    #[must_use]
    pub fn unsupported(view: &WorkloadView) -> Self {
        Self {
            supported: false,
            ..Self::of_view(view, Status::Unsupported, Reason::UnsupportedPlatform)
        }
    }

    /// What can be said from the view alone, under `status` and `reason`.
    pub(crate) fn of_view(view: &WorkloadView, status: Status, reason: Reason) -> Self {
        let policy = view.policy.enabled();
        Self {
            supported: true,
            configured: view.policy != PolicySetting::Missing,
            enabled: policy.is_some(),
            eligible: false,
            status,
            reason,
            active_inbound_count: 0,
            idle_timeout: policy.map(|policy| policy.idle_timeout()),
            idle_since: None,
            last_inbound_activity_at: None,
            next_standby_at: None,
            countdown_remaining: None,
            hold_until: None,
            last_failure: None,
            tracking_mode: TRACKING_MODE,
        }
    }
}

/// Why a workload with this view cannot sleep by itself; `None` when it can. Asleep or on the way there
/// or back is said first, because it is what a person wants to know even without a policy.
pub(crate) fn obstacle(view: &WorkloadView) -> Option<(Status, Reason)> {
    match view.state {
        State::Standby => return Some((Status::Asleep, Reason::Asleep)),
        State::Dozing => return Some((Status::Asleep, Reason::Dozing)),
        State::Waking => return Some((Status::Waking, Reason::Waking)),
        State::Sleeping => return Some((Status::StandbyRequested, Reason::Sleeping)),
        State::Running
        | State::Stopped
        | State::Starting
        | State::Initializing
        | State::Stopping
        | State::Failed
        | State::Deleting => {}
    }
    match view.policy {
        PolicySetting::Missing => return Some((Status::Disabled, Reason::PolicyMissing)),
        PolicySetting::Disabled => return Some((Status::Disabled, Reason::PolicyDisabled)),
        PolicySetting::Enabled(_) => {}
    }
    if view.state != State::Running {
        return Some((Status::Ineligible, Reason::NotRunning));
    }
    if view.addresses.is_none() {
        return Some((Status::Ineligible, Reason::NetworkDisabled));
    }
    match view.sleep_support {
        SleepSupport::Able => None,
        SleepSupport::DriverCannot => Some((Status::Ineligible, Reason::DriverCannotSleep)),
        SleepSupport::DevicePassedThrough => Some((Status::Ineligible, Reason::DevicePassedThrough)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let statuses: BTreeSet<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        assert_eq!(statuses.len(), Status::ALL.len());
        let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(reasons.len(), Reason::ALL.len());
    }
}
