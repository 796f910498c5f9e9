//! What is to go wrong, and the counting of calls.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::log::Change;

/// Sorts of mutating calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// write, truncate, fallocate.
    Data,
    /// create, mkdir, symlink, link, rename, chmod, chown.
    Name,
    /// unlink, rmdir. They need no room: [`Failure::Full`] passes them over, uncounted.
    Removal,
    /// fsync, fdatasync, of files and directories.
    Flush,
}

/// With what a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// ENOSPC.
    Full,
    /// EIO.
    Io,
    /// EROFS.
    ReadOnly,
}

impl Failure {
    const fn errno(self) -> Errno {
        match self {
            Self::Full => Errno::ENOSPC,
            Self::Io => Errno::EIO,
            Self::ReadOnly => Errno::EROFS,
        }
    }
}

/// Which calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fail {
    /// The first call that fails, counted from [`crate::Disk::set_faults`]; 1 is the next.
    pub at: u64,
    /// With what.
    pub failure: Failure,
    /// Whether all later ones fail too.
    pub lasting: bool,
    /// Only calls of this sort are counted and fail; `None`: of every sort.
    pub only: Option<Call>,
}

impl Fail {
    /// The `at`-th mutating call fails, later ones work again.
    #[must_use]
    pub const fn once(at: u64, failure: Failure) -> Self {
        Self {
            at,
            failure,
            lasting: false,
            only: None,
        }
    }

    /// The `at`-th mutating call fails and all after it.
    #[must_use]
    pub const fn from(at: u64, failure: Failure) -> Self {
        Self {
            at,
            failure,
            lasting: true,
            only: None,
        }
    }
}

/// What goes wrong on a disk. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Calls that fail.
    pub fail: Option<Fail>,
    /// Bytes that the disk has room for, what is on it included; then ENOSPC, after a short write
    /// where part of it fitted. Counted in blocks of the backing file system. statfs says so too.
    pub quota_bytes: Option<u64>,
    /// How long every write takes.
    pub write_delay: Duration,
    /// How long every flush takes.
    pub flush_delay: Duration,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Mutating calls, failed ones included, since the disk was mounted.
    pub calls: u64,
    /// Of them: made to fail by [`Fail`] or the quota.
    pub failed: u64,
    /// Flushes that were done.
    pub flushes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes that files hold now, in blocks of the backing file system.
    pub used_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    /// Calls of the counted sort since the faults were set.
    counted: u64,
    tally: Tally,
    log: Vec<Change>,
    silent: bool,
}

/// What the server and the holder of a disk share.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Rung when the faults change, so that no delay outlives its order.
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        let mut state = self.state();
        state.faults = faults;
        state.counted = 0;
        self.changed.notify_all();
    }

    /// Counts a call and lets it pass, fails it, or holds it for the ordered delay.
    pub(crate) fn admit(&self, call: Call) -> Result<(), Errno> {
        let mut state = self.state();
        state.tally.calls += 1;
        let delay = match call {
            Call::Data => state.faults.write_delay,
            Call::Flush => state.faults.flush_delay,
            Call::Name | Call::Removal => Duration::ZERO,
        };
        if !delay.is_zero() {
            state = self.hold(state, delay);
        }
        let Some(fail) = state.faults.fail else {
            return Ok(());
        };
        let needs_no_room = fail.failure == Failure::Full && call == Call::Removal;
        if needs_no_room || fail.only.is_some_and(|only| only != call) {
            return Ok(());
        }
        state.counted += 1;
        if state.counted == fail.at || (fail.lasting && state.counted > fail.at) {
            state.tally.failed += 1;
            return Err(fail.failure.errno());
        }
        Ok(())
    }

    /// Waits until the delay has passed or the faults were set anew.
    fn hold<'a>(&'a self, mut state: MutexGuard<'a, State>, delay: Duration) -> MutexGuard<'a, State> {
        let until = Instant::now() + delay;
        let ordered = state.faults;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.faults != ordered {
                return state;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How many bytes more the quota lets files hold; `None` without a quota.
    pub(crate) fn room(&self) -> Option<u64> {
        let state = self.state();
        let quota = state.faults.quota_bytes?;
        Some(quota.saturating_sub(state.tally.used_bytes))
    }

    pub(crate) fn quota(&self) -> Option<u64> {
        self.state().faults.quota_bytes
    }

    pub(crate) fn count_failed(&self) {
        self.state().tally.failed += 1;
    }

    /// A file holds `after` bytes instead of `before`.
    pub(crate) fn count_used(&self, before: u64, after: u64) {
        let tally = &mut self.state().tally;
        tally.used_bytes = tally.used_bytes.saturating_sub(before).saturating_add(after);
    }

    /// Writes down what was done.
    pub(crate) fn done(&self, change: Change) {
        let mut state = self.state();
        match &change {
            Change::Write { data, .. } => state.tally.written_bytes += data.len() as u64,
            Change::Flush { .. } | Change::FlushDirectory { .. } | Change::FlushAll => {
                state.tally.flushes += 1;
            }
            Change::Made { .. }
            | Change::Attributes { .. }
            | Change::Truncate { .. }
            | Change::Zero { .. }
            | Change::Name { .. }
            | Change::Unname { .. }
            | Change::Rename { .. }
            | Change::Mark(_) => {}
        }
        if !state.silent {
            state.log.push(change);
        }
    }

    pub(crate) fn set_silent(&self, silent: bool) {
        self.state().silent = silent;
    }

    pub(crate) fn tally(&self) -> Tally {
        self.state().tally
    }

    pub(crate) fn log(&self) -> Vec<Change> {
        self.state().log.clone()
    }

    pub(crate) fn length(&self) -> usize {
        self.state().log.len()
    }
}

/// Shared by the server's thread and the holder.
pub(crate) type SharedGate = Arc<Gate>;
