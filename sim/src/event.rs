//! What is scheduled, and the queue that says what comes next.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_instance::machine::{Exit, ProcessIdentity};
use dormouse_model::{Attempt, Epoch, FlowKey, MonoTime, WorkloadId};
use dormouse_standby::Knock;

/// Something that will happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client, a caller or a fault does its next act.
    Act,
    /// The guest reads what is queued at its tap.
    GuestReads(WorkloadId),
    /// The guest answers the handshake of this flow.
    HandshakeAnswered(FlowKey, u64),
    /// Both sides have said that the flow is over.
    CloseAnswered(FlowKey, u64),
    /// The kernel drops the flow's entry, unless it was used since.
    EntryExpires(FlowKey, u64),
    /// The kernel drops the flow's entry, whatever became of it.
    EntryForgotten(FlowKey),
    /// The kernel asks for the neighbour again while packets are parked.
    Solicit(WorkloadId),
    /// A dead daemon is started again.
    DaemonStarts,
    /// Something happens to the daemon with this incarnation; others are past.
    Daemon(u64, DaemonEvent),
}

/// What happens to a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonEvent {
    /// The observer's socket is open, or is not.
    Connected(Attempt),
    /// The observer's socket failed.
    SocketFails,
    /// The observer reads its socket.
    SocketReadable,
    /// The next part of the listing of this epoch.
    Listing(Epoch, Option<FlowKey>),
    /// The engine's task takes from its queue.
    ChannelReadable,
    /// The link's knock arrives.
    Knock(WorkloadId, Knock),
    /// Knocks were lost, and the kernel says so: the parking lot is looked through.
    KnocksLost,
    /// The current deed of a workload ends.
    DeedEnds(WorkloadId, Attempt),
    /// The background deed of a workload ends.
    AsideEnds(WorkloadId, Attempt),
    /// A process is seen to have ended.
    Exited(WorkloadId, ProcessIdentity, Exit),
    /// An agent says ready.
    Ready(WorkloadId, ProcessIdentity),
    /// The engine's note is written, or is not.
    NoteWritten(WorkloadId, Attempt),
    /// The confirm was not answered by the barrier in time.
    ConfirmGivenUp(WorkloadId, Attempt),
}

/// What is to come, in order of time and, at one time, in the order of scheduling.
#[derive(Debug, Default)]
pub struct Queue {
    events: BTreeMap<(MonoTime, u64), Event>,
    scheduled: u64,
}

impl Queue {
    /// Schedules `event` at `at`.
    pub fn push(&mut self, at: MonoTime, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    /// When the next one is due.
    #[must_use]
    pub fn next_at(&self) -> Option<MonoTime> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<(MonoTime, Event)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}

/// Names of delays, so that no bare number stands in the world's code.
pub mod delay {
    use super::Duration;

    /// Between two requests of the kernel for one neighbour (`retrans_time_ms`).
    pub const SOLICIT: Duration = Duration::from_secs(1);
    /// How long a half-open flow is kept (shorter than the kernel's 120 s, as all of these).
    pub const SYN_SENT: Duration = Duration::from_secs(15);
    /// How long a datagram flow is kept after its last packet.
    pub const DATAGRAMS: Duration = Duration::from_secs(6);
    /// How long a closed flow is kept.
    pub const TIME_WAIT: Duration = Duration::from_secs(3);
    /// How long a reset flow is kept.
    pub const CLOSE: Duration = Duration::from_secs(1);
}
