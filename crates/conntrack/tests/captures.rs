//! Recorded netlink bytes of a real kernel, and what they say. `UPDATE=1` rewrites the second half of
//! each file; the difference is reviewed like code.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod oracle;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use dormouse_conntrack::wire::{Body, Message, WireError, messages};
use dormouse_model::{Flow, FlowKey, Protocol};

/// The recordings were made on a little-endian machine, and netlink speaks the host's order.
fn need_little_endian(test: &str) -> Option<()> {
    if cfg!(target_endian = "big") {
        println!("skipped: {test}: the captures are little endian");
        return None;
    }
    Some(())
}

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "capture"));
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    files
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex
        .trim()
        .chars()
        .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn datagrams(path: &Path) -> Vec<Vec<u8>> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("< "))
        .map(bytes)
        .collect()
}

fn capture(name: &str) -> Vec<Message> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/captures/{name}.capture"));
    datagrams(&path)
        .iter()
        .flat_map(|one| messages(one).map(Result::unwrap).collect::<Vec<_>>())
        .collect()
}

fn describe_key(key: &FlowKey) -> String {
    let protocol = match key.protocol {
        Protocol::Tcp => "tcp".to_owned(),
        Protocol::Udp => "udp".to_owned(),
        Protocol::Icmp => "icmp".to_owned(),
        Protocol::Other(number) => format!("protocol {number}"),
    };
    format!(
        "{protocol} zone {} [{}]:{} -> [{}]:{}",
        key.zone, key.source, key.source_port, key.destination, key.destination_port
    )
}

fn describe_flow(flow: &Flow) -> String {
    let mut text = describe_key(&flow.key);
    write!(text, ", answered by [{}]:{}", flow.responder, flow.responder_port).unwrap();
    if let Some(state) = flow.tcp_state {
        write!(text, ", state {}", state.0).unwrap();
    }
    text
}

fn describe(message: &Result<Message, WireError>) -> String {
    match message {
        Err(error) => format!("unreadable: {error}"),
        Ok(message) => match &message.body {
            Body::Made(flow) => format!("made {}", describe_flow(flow)),
            Body::Entry(flow) => format!("entry {}", describe_flow(flow)),
            Body::Gone(key) => format!("gone {}", describe_key(key)),
            Body::Answer { errno } => format!("answer to {}: error {errno}", message.sequence),
            Body::Done { errno } => format!("end of {}: error {errno}", message.sequence),
            Body::Overrun => "overrun".to_owned(),
            Body::Other => "other".to_owned(),
        },
    }
}

#[test]
fn captures_say_what_they_said() {
    let Some(()) = need_little_endian("captures_say_what_they_said") else {
        return;
    };
    for path in captures() {
        let old = fs::read_to_string(&path).unwrap();
        let mut new = String::new();
        for line in old.lines().filter(|line| !line.starts_with("= ")) {
            writeln!(new, "{line}").unwrap();
            if let Some(hex) = line.strip_prefix("< ") {
                for message in messages(&bytes(hex)) {
                    writeln!(new, "= {}", describe(&message)).unwrap();
                }
            }
        }
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &new).unwrap();
        }
        assert_eq!(new, fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

#[test]
fn captures_agree_with_the_oracle() {
    let Some(()) = need_little_endian("captures_agree_with_the_oracle") else {
        return;
    };
    for path in captures() {
        for datagram in datagrams(&path) {
            oracle::agree(&datagram, oracle::Trust::Whole);
        }
    }
}

#[test]
fn scenario_06_raw_bytes_are_a_new_connection_in_state_close() {
    let Some(()) = need_little_endian("scenario_06") else {
        return;
    };
    let [
        Message {
            body: Body::Made(flow),
            ..
        },
    ] = capture("closed")[..]
    else {
        panic!("not one new entry")
    };
    assert_eq!(
        describe_flow(&flow),
        "tcp zone 0 [192.168.0.10]:42625 -> [192.168.77.73]:3333, answered by [192.168.77.73]:3333, state 8"
    );
    assert!(!flow.is_live());
}

#[test]
fn scenario_07_an_error_number_in_the_host_order_surfaces() {
    let mut datagram = 36_u32.to_ne_bytes().to_vec();
    datagram.extend(2_u16.to_ne_bytes());
    datagram.extend(0_u16.to_ne_bytes());
    datagram.extend(9_u32.to_ne_bytes());
    datagram.extend(0_u32.to_ne_bytes());
    datagram.extend((-1_i32).to_ne_bytes());
    datagram.extend([0; 16]);
    let read: Vec<_> = messages(&datagram).map(Result::unwrap).collect();
    assert_eq!(
        read,
        [Message {
            sequence: 9,
            interrupted: false,
            body: Body::Answer { errno: 1 }
        }]
    );

    let Some(()) = need_little_endian("scenario_07, recorded part") else {
        return;
    };
    let answers: Vec<_> = capture("errors")
        .into_iter()
        .map(|message| message.body)
        .collect();
    assert!(
        answers.contains(&Body::Answer { errno: 1 }),
        "the kernel's own EPERM: {answers:?}"
    );
}

#[test]
fn scenario_08_a_listed_flow_is_the_flow_of_its_events() {
    let Some(()) = need_little_endian("scenario_08") else {
        return;
    };
    let listed: Vec<Flow> = capture("dump")
        .into_iter()
        .filter_map(|message| match message.body {
            Body::Entry(flow) => Some(flow),
            Body::Made(_)
            | Body::Gone(_)
            | Body::Answer { .. }
            | Body::Done { .. }
            | Body::Overrun
            | Body::Other => None,
        })
        .collect();
    let texts: Vec<_> = listed.iter().map(describe_flow).collect();
    let tcp =
        "tcp zone 0 [192.168.0.10]:40011 -> [192.168.77.73]:3333, answered by [192.168.77.73]:3333, state 7";
    assert!(texts.iter().any(|text| text == tcp), "{texts:?}");
    let zoned = "udp zone 7 [192.168.0.10]:40004 -> [192.168.77.73]:5353, answered by [192.168.77.73]:5353";
    assert!(texts.iter().any(|text| text == zoned), "{texts:?}");
    // The same text as the events of the same flows have, so the same key.
    let events: Vec<_> = capture("zones")
        .iter()
        .filter_map(Message::delta)
        .map(|delta| delta.key())
        .collect();
    assert!(listed.iter().any(|flow| events.contains(&flow.key)));
}

#[test]
fn scenario_05_states_on_the_wire_are_live_or_not_by_the_kernels_numbers() {
    let Some(()) = need_little_endian("scenario_05") else {
        return;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/closed.capture");
    let recorded = datagrams(&path).remove(0);
    // CTA_PROTOINFO_TCP_STATE: length 5, kind 1, value 8.
    let at = recorded
        .windows(8)
        .position(|window| window == [5, 0, 1, 0, 8, 0, 0, 0])
        .unwrap()
        + 4;
    for (state, live) in [
        (0, false),
        (1, true),
        (2, true),
        (3, true),
        (4, true),
        (5, true),
        (6, true),
        (7, false),
        (8, false),
        (9, true),
        (10, true),
        (11, true),
        (12, true),
        (255, true),
    ] {
        let mut datagram = recorded.clone();
        datagram[at] = state;
        let Some(Ok(Message {
            body: Body::Made(flow),
            ..
        })) = messages(&datagram).next()
        else {
            panic!("state {state} is not read")
        };
        assert_eq!(flow.tcp_state.map(|read| read.0), Some(state));
        assert_eq!(flow.is_live(), live, "state {state}");
    }
}

/// Recordings as seeds of mutation.
fn seeds() -> Vec<Vec<u8>> {
    captures().iter().flat_map(|path| datagrams(path)).collect()
}

mod mutated {
    use super::{messages, need_little_endian, oracle, seeds};
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Damage {
        Flip {
            at: prop::sample::Index,
            bits: u8,
        },
        Set {
            at: prop::sample::Index,
            value: u8,
        },
        Cut {
            at: prop::sample::Index,
        },
        Repeat {
            from: prop::sample::Index,
            to: prop::sample::Index,
        },
    }

    fn damage() -> impl Strategy<Value = Damage> {
        prop_oneof![
            (any::<prop::sample::Index>(), 1..=255_u8).prop_map(|(at, bits)| Damage::Flip { at, bits }),
            (
                any::<prop::sample::Index>(),
                prop_oneof![Just(0), Just(1), Just(4), Just(255), any::<u8>()]
            )
                .prop_map(|(at, value)| Damage::Set { at, value }),
            any::<prop::sample::Index>().prop_map(|at| Damage::Cut { at }),
            (any::<prop::sample::Index>(), any::<prop::sample::Index>())
                .prop_map(|(from, to)| Damage::Repeat { from, to }),
        ]
    }

    fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
        if bytes.is_empty() {
            return;
        }
        match damage {
            Damage::Flip { at, bits } => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Damage::Set { at, value } => {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            Damage::Cut { at } => bytes.truncate(at.index(bytes.len())),
            Damage::Repeat { from, to } => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(piece);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn damaged_recordings_never_panic_and_agree_where_both_read(
            seed in any::<prop::sample::Index>(),
            damages in prop::collection::vec(damage(), 1..6),
        ) {
            let Some(()) = need_little_endian("damaged_recordings") else { return Ok(()) };
            thread_local! {
                static SEEDS: Vec<Vec<u8>> = seeds();
            }
            let mut bytes = SEEDS.with(|seeds| seed.get(seeds).clone());
            for one in &damages {
                apply(&mut bytes, one);
            }
            oracle::agree(&bytes, oracle::Trust::WhereBothRead);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            // Each step consumes a header at least or ends the walk.
            prop_assert!(messages(&bytes).count() <= bytes.len() / 16 + 1);
        }
    }
}
