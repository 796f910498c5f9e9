//! Two channels and a stream between them that breaks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use dormouse_guest::message::Exit;
use dormouse_guest::{Channel, Event, GuestError, GuestIdentity, Message, Phase};
use proptest::prelude::*;

fn guest() -> Channel {
    Channel::guest(GuestIdentity {
        boot_id: "boot-1".to_owned(),
        release: "0.1.0".to_owned(),
    })
}

/// Moves all that `from` has to say to `to`; returns what `to` made of it.
fn carry(from: &mut Channel, to: &mut Channel) -> Vec<Event> {
    let mut events = Vec::new();
    while !from.outgoing().is_empty() {
        let bytes = from.outgoing().to_vec();
        from.wrote(bytes.len());
        to.receive(&bytes, &mut events);
    }
    events
}

/// Lets both talk until both are silent; returns the messages that (host, guest) got.
fn settle(host: &mut Channel, guest: &mut Channel) -> (Vec<Message>, Vec<Message>) {
    let messages = |events: Vec<Event>| {
        events.into_iter().filter_map(|e| {
            if let Event::Message { message, .. } = e {
                Some(message)
            } else {
                None
            }
        })
    };
    let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
    while !host.outgoing().is_empty() || !guest.outgoing().is_empty() {
        at_guest.extend(messages(carry(host, guest)));
        at_host.extend(messages(carry(guest, host)));
    }
    (at_host, at_guest)
}

fn clock(n: u64) -> Message {
    Message::ClockSet { unix_nanos: n }
}

#[test]
fn a_session_opens_and_acknowledges() {
    let (mut host, mut guest) = (Channel::host(7), guest());
    host.send(&clock(1)).unwrap();
    host.connected();
    let events = carry(&mut host, &mut guest);
    assert_eq!(
        events[0],
        Event::Greeted {
            version: 1,
            resumed: false
        }
    );
    assert_eq!(
        events[1],
        Event::Message {
            sequence: 1,
            message: clock(1)
        }
    );
    let events = carry(&mut guest, &mut host);
    let Event::Opened {
        resumed: false,
        phase: Phase::Waiting,
        boot_id,
        ..
    } = &events[0]
    else {
        panic!("{events:?}")
    };
    assert_eq!(boot_id, "boot-1");
    assert_eq!(host.unacknowledged(), 0);
}

#[test]
fn the_same_daemon_resumes_and_nothing_arrives_twice() {
    let (mut host, mut guest) = (Channel::host(7), guest());
    host.connected();
    settle(&mut host, &mut guest);
    // The stream dies after the guest has read the request and before its answer got through.
    host.send(&clock(1)).unwrap();
    carry(&mut host, &mut guest);
    guest.send(&Message::Ready { pid: 9 }).unwrap();
    guest.disconnected();
    host.disconnected();
    host.send(&clock(2)).unwrap();
    host.connected();
    let (at_host, at_guest) = settle(&mut host, &mut guest);
    assert_eq!(at_guest, [clock(2)]);
    assert_eq!(at_host, [Message::Ready { pid: 9 }]);
    assert_eq!((host.unacknowledged(), guest.unacknowledged()), (0, 0));
}

#[test]
fn a_new_daemon_gets_what_the_old_one_never_acknowledged() {
    let (mut old, mut guest) = (Channel::host(7), guest());
    old.connected();
    settle(&mut old, &mut guest);
    guest
        .send(&Message::Done {
            request: 1,
            problem: String::new(),
        })
        .unwrap();
    guest
        .send(&Message::Exited {
            exit: Exit::Code(3),
            problem: String::new(),
        })
        .unwrap();
    guest.set_phase(Phase::Ending);
    // The guest does not notice that the daemon was replaced: a greeting is enough.
    let mut new = Channel::host(8);
    new.connected();
    carry(&mut new, &mut guest);
    let events = carry(&mut guest, &mut new);
    assert!(
        matches!(
            events[0],
            Event::Opened {
                resumed: false,
                phase: Phase::Ending,
                ..
            }
        ),
        "{events:?}"
    );
    assert_eq!(
        events[1..],
        [Event::Message {
            sequence: 1,
            message: Message::Exited {
                exit: Exit::Code(3),
                problem: String::new()
            }
        }],
        "the answer to the old daemon's request is gone"
    );
    settle(&mut new, &mut guest);
    assert_eq!(guest.unacknowledged(), 0);
    // The old daemon's late frames are strays.
    old.send(&clock(1)).unwrap();
    assert_eq!(carry(&mut old, &mut guest), []);
    assert_eq!(guest.strays(), 1);
}

#[test]
fn a_damaged_frame_is_resent_in_order() {
    let (mut host, mut guest) = (Channel::host(7), guest());
    host.connected();
    settle(&mut host, &mut guest);
    for n in 1..=3 {
        host.send(&clock(n)).unwrap();
    }
    let mut first = host.outgoing().to_vec();
    host.wrote(first.len());
    *first.last_mut().unwrap() ^= 1;
    let mut events = Vec::new();
    guest.receive(&first, &mut events);
    assert!(
        matches!(events[0], Event::Problem(GuestError::BodyDamaged { .. })),
        "{events:?}"
    );
    let (_, at_guest) = settle(&mut host, &mut guest);
    assert_eq!(at_guest, [clock(1), clock(2), clock(3)]);
}

#[test]
fn foreign_versions_unknown_kinds_and_wrong_directions() {
    let mut guest = guest();
    // A daemon of the future: Hello{newest 9, oldest 5}.
    let hello = dormouse_guest::Frame {
        kind: 1,
        session: 7,
        sequence: 0,
        ack: 0,
        body: vec![8, 9, 16, 5],
    };
    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    hello.encode(&mut bytes).unwrap();
    guest.receive(&bytes, &mut events);
    assert!(matches!(
        events[..],
        [Event::Refused(GuestError::VersionForeign {
            oldest: 5,
            newest: 9,
            ..
        })]
    ));
    let mut host = Channel::host(7);
    host.connected();
    let at_host = carry(&mut guest, &mut host);
    assert!(matches!(at_host[..], [Event::Refused(_)]), "{at_host:?}");

    // An order that this agent does not know is answered, not ignored.
    carry(&mut host, &mut guest);
    let unknown = dormouse_guest::Frame {
        kind: 63,
        session: 7,
        sequence: 1,
        ack: 0,
        body: vec![],
    };
    bytes.clear();
    unknown.encode(&mut bytes).unwrap();
    guest.receive(&bytes, &mut Vec::new());
    let events = carry(&mut guest, &mut host);
    assert!(
        events.iter().any(|e| matches!(e, Event::Message { message: Message::Done { request: 1, problem }, .. } if !problem.is_empty())),
        "{events:?}"
    );

    assert!(matches!(
        guest.send(&clock(1)),
        Err(GuestError::WrongDirection { .. })
    ));
    let ready = dormouse_guest::Frame {
        kind: 18,
        session: 7,
        sequence: 0,
        ack: 0,
        body: vec![10, 1, 0],
    };
    bytes.clear();
    ready.encode(&mut bytes).unwrap();
    let mut events = Vec::new();
    guest.receive(&bytes, &mut events);
    assert!(
        matches!(
            events[..],
            [Event::Problem(GuestError::BodyUnreadable { kind: 18, .. })]
        ),
        "{events:?}"
    );
}

#[test]
fn queues_are_bounded() {
    let mut guest = guest();
    let mut sent = 0;
    while guest.send(&Message::Ready { pid: 1 }).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, dormouse_guest::channel::MAX_UNACKNOWLEDGED);
    // A peer that only ever says Nack gets no more than the queue holds.
    let mut host = Channel::host(7);
    host.connected();
    carry(&mut host, &mut guest);
    let nack = dormouse_guest::Frame {
        kind: 5,
        session: 7,
        sequence: 0,
        ack: 0,
        body: vec![],
    };
    let mut bytes = Vec::new();
    nack.encode(&mut bytes).unwrap();
    guest.receive(&bytes.repeat(10_000), &mut Vec::new());
    let mut waiting = 0;
    while !guest.outgoing().is_empty() {
        guest.wrote(guest.outgoing().len());
        waiting += 1;
    }
    assert!(waiting <= sent + 2, "{waiting}");
}

/// What happens to the pair in the property below.
#[derive(Debug, Clone, Copy)]
enum Step {
    HostSays,
    GuestSays,
    /// Moves at most this many bytes from the host, then from the guest.
    Carry(usize, usize),
    /// The stream dies and the same daemon comes back; only then may the guest notice.
    Break {
        guest_notices: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::HostSays),
        3 => Just(Step::GuestSays),
        6 => (0_usize..200, 0_usize..200).prop_map(|(a, b)| Step::Carry(a, b)),
        1 => any::<bool>().prop_map(|guest_notices| Step::Break { guest_notices }),
    ]
}

fn carry_some(from: &mut Channel, to: &mut Channel, budget: usize, got: &mut Vec<u64>) {
    let mut events = Vec::new();
    let mut left = budget;
    while left > 0 && !from.outgoing().is_empty() {
        let bytes = from.outgoing()[..left.min(from.outgoing().len())].to_vec();
        from.wrote(bytes.len());
        left -= bytes.len();
        to.receive(&bytes, &mut events);
    }
    for event in events {
        match event {
            Event::Message {
                message: Message::ClockSet { unix_nanos },
                ..
            } => got.push(unix_nanos),
            Event::Message {
                message: Message::Ready { pid },
                ..
            } => got.push(pid.into()),
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn within_a_session_everything_arrives_once_and_in_order(steps in prop::collection::vec(step(), 1..120)) {
        let (mut host, mut guest) = (Channel::host(7), guest());
        let (mut host_said, mut guest_said) = (0_u64, 0_u64);
        let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
        host.connected();
        for step in steps {
            match step {
                Step::HostSays => {
                    host_said += 1;
                    host.send(&clock(host_said)).unwrap();
                }
                Step::GuestSays => {
                    guest_said += 1;
                    guest.send(&Message::Ready { pid: u32::try_from(guest_said).unwrap() }).unwrap();
                }
                Step::Carry(down, up) => {
                    carry_some(&mut host, &mut guest, down, &mut at_guest);
                    carry_some(&mut guest, &mut host, up, &mut at_host);
                }
                Step::Break { guest_notices } => {
                    host.disconnected();
                    if guest_notices {
                        guest.disconnected();
                    }
                    host.connected();
                }
            }
        }
        // At the end the stream holds; a half-read frame is given up as its deadline passes, and
        // the host greets until it is answered and all is acknowledged.
        for _ in 0..20 {
            carry_some(&mut host, &mut guest, usize::MAX, &mut at_guest);
            carry_some(&mut guest, &mut host, usize::MAX, &mut at_host);
            while guest.is_partial() {
                let mut events = Vec::new();
                guest.abandon_partial(&mut events);
                for event in events {
                    if let Event::Message { message: Message::ClockSet { unix_nanos }, .. } = event {
                        at_guest.push(unix_nanos);
                    }
                }
            }
            while host.is_partial() {
                host.abandon_partial(&mut Vec::new());
            }
            if host.unacknowledged() == 0 && guest.unacknowledged() == 0 {
                break;
            }
            host.connected();
        }
        prop_assert_eq!(at_guest, (1..=host_said).collect::<Vec<_>>());
        prop_assert_eq!(at_host, (1..=guest_said).collect::<Vec<_>>());
    }
}
