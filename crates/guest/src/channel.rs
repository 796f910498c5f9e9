//! A session over a stream that breaks: numbering, acknowledgement, resending. Pure: bytes in,
//! events and bytes out. Both sides use this one machine.
//!
//! ```text
//!  host    Down ──connected()──▶ Greeting ──HelloAck──▶ Open
//!            ▲  ◀─disconnected()────┴── Refused           │
//!            └──────────────────disconnected()────────────┘   session and queue stay
//!
//!  guest   Down ──Hello──▶ Open ──disconnected()──▶ Down      a Hello while Open starts over
//! ```
//!
//! - A session is a random number that the host brings. The same number again resumes: both sides
//!   resend what the other has not acknowledged, and drop what they have seen. Within a session an
//!   ordered message arrives once and in order.
//! - A new number (a new daemon) begins at 1 on both sides. What the guest had not got through yet,
//!   its readiness or its exit, is sent again under the new session, so across sessions a message
//!   may arrive twice; answers to the old session's requests are dropped. Requests that a dead
//!   daemon had sent may or may not have been carried out: the new one asks again.
//! - Both sides' counts are part of what a session is. A guest that was put back to an earlier moment
//!   (a named snapshot, a fork, a cold boot) does not know what was said since: greet it with a new
//!   channel, that is a new session.
//! - A hole in the numbers (a frame damaged on the way) is answered by one `Nack` and everything
//!   behind it is dropped until the missing one comes.
//! - The host does not wait for the answer to its greeting: what it has to say follows at once.

use std::collections::VecDeque;

use crate::error::GuestError;
use crate::frame::{Decoder, Frame, MAX_BODY};
use crate::message::{Hello, HelloAck, Message, Phase, Side};
use crate::{OLDEST_VERSION, VERSION};

/// Frames of the session itself; [`crate::message::kind`] has the others.
mod link {
    pub(super) const HELLO: u8 = 1;
    pub(super) const HELLO_ACK: u8 = 2;
    pub(super) const HELLO_REFUSED: u8 = 3;
    pub(super) const ACK: u8 = 4;
    pub(super) const NACK: u8 = 5;
}

/// Most unacknowledged frames; [`Channel::send`] refuses beyond it.
pub const MAX_UNACKNOWLEDGED: usize = 256;

/// Most unacknowledged bytes of bodies.
pub const MAX_UNACKNOWLEDGED_BYTES: usize = 4 * MAX_BODY;

/// Most frames that wait to be written; unordered ones (pings, acknowledgements) beyond are dropped.
const MAX_OUTGOING: usize = 2 * MAX_UNACKNOWLEDGED;

/// What the channel tells its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Host: the guest answered the greeting.
    Opened {
        /// The protocol release in use.
        version: u32,
        /// Whether the guest knew the session.
        resumed: bool,
        /// The guest kernel's boot id: another one means that the guest booted anew.
        boot_id: String,
        /// The agent's own release.
        release: String,
        /// How far the guest is.
        phase: Phase,
    },
    /// Guest: a daemon greeted.
    Greeted {
        /// The protocol release in use.
        version: u32,
        /// Whether the session went on.
        resumed: bool,
    },
    /// A message, in order and for the first time in this session.
    Message {
        /// Its sequence, 0 for unordered ones; a `Done` names it.
        sequence: u64,
        /// What it says.
        message: Message,
    },
    /// There is no release that both sides speak: the session cannot open.
    Refused(GuestError),
    /// Something on the stream was wrong and was dropped.
    Problem(GuestError),
}

/// What a guest says about itself when greeted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestIdentity {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The agent's release.
    pub release: String,
}

#[derive(Debug)]
enum Role {
    Host { greeting: bool },
    Guest { identity: GuestIdentity, phase: Phase },
}

#[derive(Debug)]
struct Unacknowledged {
    sequence: u64,
    kind: u8,
    body: Vec<u8>,
}

/// One side of the agent channel.
#[derive(Debug)]
pub struct Channel {
    role: Role,
    up: bool,
    /// `None` in a guest that nobody has greeted.
    session: Option<u64>,
    next_sequence: u64,
    /// Highest sequence received in order.
    received: u64,
    /// The peer waits for `received`.
    ack_owed: bool,
    /// A hole was reported and is not filled yet.
    hole_reported: bool,
    unacknowledged: VecDeque<Unacknowledged>,
    unacknowledged_bytes: usize,
    outgoing: VecDeque<Vec<u8>>,
    /// Bytes of the first outgoing frame that are written.
    written: usize,
    decoder: Decoder,
    /// Frames of other sessions, dropped.
    strays: u64,
}

impl Channel {
    /// The daemon's side. `session` is random: a fresh one in each daemon process and for each guest.
    #[must_use]
    pub fn host(session: u64) -> Self {
        Self::new(Role::Host { greeting: false }, Some(session))
    }

    /// The agent's side.
    #[must_use]
    pub fn guest(identity: GuestIdentity) -> Self {
        Self::new(
            Role::Guest {
                identity,
                phase: Phase::Waiting,
            },
            None,
        )
    }

    fn new(role: Role, session: Option<u64>) -> Self {
        Self {
            role,
            up: false,
            session,
            next_sequence: 1,
            received: 0,
            ack_owed: false,
            hole_reported: false,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            outgoing: VecDeque::new(),
            written: 0,
            decoder: Decoder::new(),
            strays: 0,
        }
    }

    /// The stream is open from here on. The host greets and resends what is unacknowledged; call it
    /// again on an open stream when no answer came in time.
    pub fn connected(&mut self) {
        self.up = true;
        if let Role::Host { greeting } = &mut self.role {
            *greeting = true;
            self.drop_outgoing();
            let hello = Hello {
                newest: VERSION,
                oldest: OLDEST_VERSION,
            };
            self.put(link::HELLO, 0, &hello.encode());
            self.resend();
        }
    }

    /// The stream ended: half-read and half-written frames are gone, the session and what is
    /// unacknowledged stay.
    pub fn disconnected(&mut self) {
        self.up = false;
        self.outgoing.clear();
        self.written = 0;
        self.decoder = Decoder::new();
    }

    /// Guest: what the next greeting is answered with.
    pub fn set_phase(&mut self, new: Phase) {
        if let Role::Guest { phase, .. } = &mut self.role {
            *phase = new;
        }
    }

    /// Queues a message, also while the stream is down. Returns its sequence (0 for unordered ones,
    /// which are dropped while the stream is down).
    ///
    /// # Errors
    /// [`GuestError::QueueFull`], [`GuestError::BodyLarge`], or [`GuestError::WrongDirection`] for a
    /// message of the other side.
    pub fn send(&mut self, message: &Message) -> Result<u64, GuestError> {
        let kind = message.kind();
        if message.sender() != self.side() {
            return Err(GuestError::WrongDirection { kind });
        }
        let body = message.encode();
        if body.len() > MAX_BODY {
            return Err(GuestError::BodyLarge {
                kind,
                got: body.len(),
            });
        }
        if !message.is_ordered() {
            if self.up {
                self.put(kind, 0, &body);
            }
            return Ok(0);
        }
        let (frames, bytes) = (self.unacknowledged.len(), self.unacknowledged_bytes);
        if frames >= MAX_UNACKNOWLEDGED || bytes + body.len() > MAX_UNACKNOWLEDGED_BYTES {
            return Err(GuestError::QueueFull { frames, bytes });
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        if self.up && self.session.is_some() {
            self.put(kind, sequence, &body);
        }
        self.unacknowledged_bytes += body.len();
        self.unacknowledged
            .push_back(Unacknowledged { sequence, kind, body });
        Ok(sequence)
    }

    /// Takes bytes from the stream and appends what they mean to `events`.
    pub fn receive(&mut self, bytes: &[u8], events: &mut Vec<Event>) {
        self.up = true;
        self.decoder.push(bytes);
        self.read_frames(events);
    }

    /// Whether a frame is half read: if it stays so for [`crate::STALL_LIMIT`], call
    /// [`Self::abandon_partial`].
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.decoder.is_partial()
    }

    /// Gives up the half-read frame, whose sender is taken for dead, and reads on inside it.
    pub fn abandon_partial(&mut self, events: &mut Vec<Event>) {
        if let Some(error) = self.decoder.abandon() {
            events.push(Event::Problem(error));
        }
        self.read_frames(events);
    }

    /// The bytes to write next; empty when there are none.
    #[must_use]
    pub fn outgoing(&self) -> &[u8] {
        self.outgoing
            .front()
            .and_then(|frame| frame.get(self.written..))
            .unwrap_or_default()
    }

    /// `count` bytes of [`Self::outgoing`] were written.
    pub fn wrote(&mut self, count: usize) {
        self.written += count;
        if self
            .outgoing
            .front()
            .is_some_and(|frame| self.written >= frame.len())
        {
            self.outgoing.pop_front();
            self.written = 0;
        }
    }

    /// How many messages the peer has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Frames of other sessions that were dropped.
    #[must_use]
    pub const fn strays(&self) -> u64 {
        self.strays
    }

    const fn side(&self) -> Side {
        match self.role {
            Role::Host { .. } => Side::Host,
            Role::Guest { .. } => Side::Guest,
        }
    }

    fn read_frames(&mut self, events: &mut Vec<Event>) {
        while let Some(item) = self.decoder.next_frame() {
            match item {
                Ok(frame) => self.take(frame, events),
                Err(error) => events.push(Event::Problem(error)),
            }
        }
        if std::mem::take(&mut self.ack_owed) {
            self.put(link::ACK, 0, &[]);
        }
    }

    fn take(&mut self, frame: Frame, events: &mut Vec<Event>) {
        match (frame.kind, self.side()) {
            (link::HELLO, Side::Guest) => return self.greeted(&frame, events),
            (link::HELLO_REFUSED, Side::Host) => return Self::refused(&frame, events),
            (link::HELLO, Side::Host) | (link::HELLO_ACK | link::HELLO_REFUSED, Side::Guest) => {
                return events.push(Event::Problem(GuestError::WrongDirection { kind: frame.kind }));
            }
            _ => {}
        }
        if self.session != Some(frame.session) {
            self.strays = self.strays.saturating_add(1);
            return;
        }
        self.acknowledged(frame.ack);
        match frame.kind {
            link::HELLO_ACK => self.opened(&frame, events),
            link::ACK => {}
            link::NACK => {
                self.drop_outgoing();
                self.resend();
            }
            _ if frame.sequence == 0 => self.deliver(&frame, events),
            _ if frame.sequence == self.received + 1 => {
                self.received = frame.sequence;
                self.hole_reported = false;
                self.ack_owed = true;
                self.deliver(&frame, events);
            }
            // Seen already: the peer missed our acknowledgement.
            _ if frame.sequence <= self.received => self.ack_owed = true,
            _ => {
                if !std::mem::replace(&mut self.hole_reported, true) {
                    self.put(link::NACK, 0, &[]);
                }
            }
        }
    }

    fn deliver(&mut self, frame: &Frame, events: &mut Vec<Event>) {
        let error = match Message::decode(frame.kind, &frame.body) {
            Ok(message) if message.sender() == self.side() => GuestError::WrongDirection { kind: frame.kind },
            Ok(message) => {
                return events.push(Event::Message {
                    sequence: frame.sequence,
                    message,
                });
            }
            Err(error) => error,
        };
        // A newer daemon learns from an old agent that it cannot do this. A full queue loses only
        // this answer, and the daemon's wait has a deadline.
        if self.side() == Side::Guest && frame.sequence > 0 {
            let answer = Message::Done {
                request: frame.sequence,
                problem: error.to_string(),
            };
            if let Err(full) = self.send(&answer) {
                events.push(Event::Problem(full));
            }
        }
        events.push(Event::Problem(error));
    }

    fn greeted(&mut self, frame: &Frame, events: &mut Vec<Event>) {
        let hello = match Hello::decode(frame.kind, &frame.body) {
            Ok(hello) => hello,
            Err(error) => return events.push(Event::Problem(error)),
        };
        let Role::Guest { identity, phase } = &self.role else {
            return;
        };
        let version = VERSION.min(hello.newest);
        if version < OLDEST_VERSION.max(hello.oldest) {
            let ours = Hello {
                newest: VERSION,
                oldest: OLDEST_VERSION,
            };
            self.put_in(frame.session, link::HELLO_REFUSED, 0, &ours.encode());
            return events.push(Event::Refused(foreign(&hello)));
        }
        let resumed = self.session == Some(frame.session);
        let answer = HelloAck {
            version,
            resumed,
            boot_id: identity.boot_id.clone(),
            release: identity.release.clone(),
            phase: *phase,
        };
        if resumed {
            self.acknowledged(frame.ack);
        } else {
            self.begin_session(frame.session);
        }
        self.drop_outgoing();
        self.put(link::HELLO_ACK, 0, &answer.encode());
        self.resend();
        events.push(Event::Greeted { version, resumed });
    }

    /// Numbers what is left to say from 1, without the answers that only the old daemon awaited.
    fn begin_session(&mut self, session: u64) {
        self.session = Some(session);
        self.received = 0;
        self.hole_reported = false;
        self.ack_owed = false;
        self.unacknowledged
            .retain(|waiting| waiting.kind != crate::message::kind::DONE);
        self.next_sequence = 1;
        self.unacknowledged_bytes = 0;
        for waiting in &mut self.unacknowledged {
            waiting.sequence = self.next_sequence;
            self.next_sequence += 1;
            self.unacknowledged_bytes += waiting.body.len();
        }
    }

    fn opened(&mut self, frame: &Frame, events: &mut Vec<Event>) {
        let answer = match HelloAck::decode(frame.kind, &frame.body) {
            Ok(answer) => answer,
            Err(error) => return events.push(Event::Problem(error)),
        };
        let Role::Host { greeting } = &mut self.role else {
            return;
        };
        if !std::mem::take(greeting) {
            return;
        }
        let HelloAck {
            version,
            resumed,
            boot_id,
            release,
            phase,
        } = answer;
        if !resumed {
            // The guest began at 1 (it booted anew, or this is the first greeting), so do we.
            self.received = 0;
            self.hole_reported = false;
        }
        events.push(Event::Opened {
            version,
            resumed,
            boot_id,
            release,
            phase,
        });
    }

    fn refused(frame: &Frame, events: &mut Vec<Event>) {
        events.push(match Hello::decode(frame.kind, &frame.body) {
            Ok(theirs) => Event::Refused(foreign(&theirs)),
            Err(error) => Event::Problem(error),
        });
    }

    fn acknowledged(&mut self, through: u64) {
        while let Some(first) = self.unacknowledged.front() {
            if first.sequence > through {
                break;
            }
            self.unacknowledged_bytes -= first.body.len();
            self.unacknowledged.pop_front();
        }
    }

    fn resend(&mut self) {
        let waiting = std::mem::take(&mut self.unacknowledged);
        for frame in &waiting {
            self.put(frame.kind, frame.sequence, &frame.body);
        }
        self.unacknowledged = waiting;
    }

    /// Forgets what waits to be written, but for a frame that is half written.
    fn drop_outgoing(&mut self) {
        self.outgoing.truncate(usize::from(self.written > 0));
    }

    fn put(&mut self, kind: u8, sequence: u64, body: &[u8]) {
        if let Some(session) = self.session {
            self.put_in(session, kind, sequence, body);
        }
    }

    fn put_in(&mut self, session: u64, kind: u8, sequence: u64, body: &[u8]) {
        if sequence == 0 && self.outgoing.len() >= MAX_OUTGOING {
            return;
        }
        let frame = Frame {
            kind,
            session,
            sequence,
            ack: self.received,
            body: body.to_vec(),
        };
        let mut bytes = Vec::new();
        // `send` has checked the size and every other body is a few bytes.
        if frame.encode(&mut bytes).is_ok() {
            self.outgoing.push_back(bytes);
        }
    }
}

fn foreign(theirs: &Hello) -> GuestError {
    GuestError::VersionForeign {
        oldest: theirs.oldest,
        newest: theirs.newest,
        ours_oldest: OLDEST_VERSION,
        ours_newest: VERSION,
    }
}
