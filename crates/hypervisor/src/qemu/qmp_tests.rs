//! Tests of the QMP codec.

use super::*;
use serde_json::json;

fn decode(bytes: &[u8]) -> Vec<Result<Message, WireError>> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next_message().transpose())
        .take(100)
        .collect()
}

const TRANSCRIPT: &[u8] = include_bytes!("../../tests/golden/qmp-7.2.transcript");

#[test]
fn a_real_transcript() {
    let messages: Vec<_> = decode(TRANSCRIPT).into_iter().map(Result::unwrap).collect();
    let want = [
        Message::Greeting {
            version: "7.2.22".into(),
        },
        Message::Return {
            id: Some(1),
            value: json!({}),
        },
        Message::Event(Event::Stop),
        Message::Return {
            id: Some(2),
            value: json!({}),
        },
        Message::Return {
            id: Some(3),
            value: json!({"fdset-id": 100, "fd": 21}),
        },
        Message::Event(Event::Other),
        Message::Error {
            id: Some(4),
            description: "The command frob has not been found".into(),
        },
        Message::Event(Event::Resume),
        Message::Event(Event::Shutdown(ShutdownCause::GuestPoweredOff)),
        Message::Event(Event::Shutdown(ShutdownCause::Host)),
    ];
    assert_eq!(messages, want);
}

#[test]
fn any_cut_gives_the_same_messages() {
    let whole = decode(TRANSCRIPT);
    for size in 1..40 {
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for piece in TRANSCRIPT.chunks(size) {
            decoder.push(piece);
            while let Some(message) = decoder.next_message().transpose() {
                got.push(message);
            }
        }
        assert_eq!(got, whole, "pieces of {size}");
    }
}

#[test]
fn what_is_no_message_is_an_error() {
    for line in [
        "x",
        "[]",
        "7",
        "{}",
        "{\"QMP\":{}}",
        "{\"error\":{}}",
        "{\"event\":7}",
        "{\"a\":1",
        "\u{7f}",
    ] {
        let got = decode(format!("{line}\n").as_bytes());
        assert!(
            matches!(got[0], Err(WireError::NotAMessage { .. })),
            "{line:?} gave {got:?}"
        );
    }
    assert_eq!(decode(b"\r\n\n"), []);
}

#[test]
fn a_line_without_end_is_refused() {
    let mut decoder = Decoder::default();
    for _ in 0..16 {
        decoder.push(&vec![b'x'; 64 << 10]);
        assert_eq!(decoder.next_message(), Ok(None));
    }
    decoder.push(b"x");
    assert_eq!(decoder.next_message(), Err(WireError::LongLine));
}

#[test]
fn commands_on_the_wire() {
    for (command, want) in [
        (Command::Stop, r#"{"execute":"stop","id":7}"#),
        (
            Command::SaveDevices,
            r#"{"arguments":{"filename":"/dev/fdset/100","live":false},"execute":"xen-save-devices-state","id":7}"#,
        ),
        (
            Command::AddStateDescriptor,
            r#"{"arguments":{"fdset-id":100},"execute":"add-fd","id":7}"#,
        ),
        (
            Command::Balloon { target: 1 << 20 },
            r#"{"arguments":{"value":1048576},"execute":"balloon","id":7}"#,
        ),
    ] {
        assert_eq!(command.line(7), format!("{want}\n"));
    }
}

#[test]
fn run_states() {
    for (name, want) in [
        ("running", Ok(RunState::Running)),
        ("paused", Ok(RunState::Paused)),
        ("io-error", Ok(RunState::Paused)),
        ("inmigrate", Ok(RunState::Loading)),
        ("shutdown", Ok(RunState::Ended)),
        ("colo", Err("colo".to_owned())),
    ] {
        assert_eq!(RunState::parse(&json!({"status": name})), want);
    }
    assert!(RunState::parse(&json!({})).is_err());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(pieces in proptest::collection::vec(proptest::collection::vec(0_u8.., 0..80), 0..8)) {
        let mut decoder = Decoder::default();
        for piece in pieces {
            decoder.push(&piece);
            for _ in 0..100 {
                if !matches!(decoder.next_message(), Ok(Some(_))) {
                    break;
                }
            }
        }
    }
}
