//! The codes of this client and of the command line, which is one.

use dormouse_model::Kind;
use dormouse_model::code::{Code, Section};

/// Every code, with what it means and what to do.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "Client",
        intro: "Of the Rust client. A `GRPC_` code stands for a status that came without our trailers: from a proxy, or from the transport.",
        codes: &[
            Code::new(
                "CLIENT_ADDRESS_INVALID",
                &[Kind::Invalid],
                "not the address of a daemon",
                "write unix:///PATH",
            ),
            Code::new(
                "CLIENT_DAEMON_ABSENT",
                &[Kind::Unavailable],
                "nobody listens there",
                "start the daemon, or use `--host`",
            ),
            Code::new(
                "CLIENT_NOT_ALLOWED",
                &[Kind::Denied],
                "this user may not connect; the socket is of mode 0660",
                "as root, or as a member of its group",
            ),
            Code::new(
                "CLIENT_CONNECT_SLOW",
                &[Kind::Timeout],
                "the daemon did not accept in time",
                "look at the load of the host",
            ),
            Code::new(
                "CLIENT_HANDSHAKE_FAILED",
                &[Kind::Unavailable],
                "what listens there is no daemon of ours",
                "use the daemon's own socket",
            ),
            Code::new(
                "CLIENT_CONNECTION_LOST",
                &[Kind::Unavailable],
                "the connection broke",
                "repeat; whether it is safe depends on the request",
            ),
            Code::new(
                "GRPC_OK",
                &[Kind::Bug],
                "an error with the status of success",
                "report it",
            ),
            Code::new("GRPC_CANCELLED", &[Kind::Cancelled], "the call was cancelled", ""),
            Code::new("GRPC_UNKNOWN", &[Kind::Bug], "unknown", "report it"),
            Code::new(
                "GRPC_INVALID_ARGUMENT",
                &[Kind::Invalid],
                "the request cannot be used",
                "read the message",
            ),
            Code::new(
                "GRPC_DEADLINE_EXCEEDED",
                &[Kind::Timeout],
                "the caller's deadline passed",
                "",
            ),
            Code::new("GRPC_NOT_FOUND", &[Kind::NotFound], "there is no such thing", ""),
            Code::new("GRPC_ALREADY_EXISTS", &[Kind::Exists], "it exists", ""),
            Code::new("GRPC_PERMISSION_DENIED", &[Kind::Denied], "not allowed", ""),
            Code::new(
                "GRPC_RESOURCE_EXHAUSTED",
                &[Kind::Exhausted],
                "a limit was met, such as the size of a message",
                "",
            ),
            Code::new(
                "GRPC_FAILED_PRECONDITION",
                &[Kind::WrongState],
                "not in this state",
                "",
            ),
            Code::new(
                "GRPC_ABORTED",
                &[Kind::Conflict],
                "it changed meanwhile",
                "read it again",
            ),
            Code::new("GRPC_OUT_OF_RANGE", &[Kind::Invalid], "out of range", ""),
            Code::new(
                "GRPC_UNIMPLEMENTED",
                &[Kind::Unsupported],
                "the daemon has no such method",
                "use a client of its version",
            ),
            Code::new(
                "GRPC_INTERNAL",
                &[Kind::Bug],
                "a defect of the daemon or the transport",
                "the daemon's log",
            ),
            Code::new(
                "GRPC_UNAVAILABLE",
                &[Kind::Unavailable],
                "the daemon does not answer, or a log cannot be read",
                "repeat after a pause",
            ),
            Code::new("GRPC_DATA_LOSS", &[Kind::Corrupt], "stored bytes are damaged", ""),
            Code::new("GRPC_UNAUTHENTICATED", &[Kind::Denied], "not known", ""),
        ],
    },
    Section {
        title: "Command line",
        intro: "Of `dormouse` itself; they have no kind.",
        codes: &[
            Code::new(
                "CLI_USAGE",
                &[],
                "an option or argument cannot be used",
                "`dormouse VERB --help`",
            ),
            Code::new(
                "CLI_ENV_FILE",
                &[],
                "the file of `--env-file` cannot be read",
                "look at the file",
            ),
            Code::new(
                "CLI_PATH",
                &[],
                "the path to import cannot be found or is not text",
                "look at the path",
            ),
            Code::new(
                "CLI_IMPORT_CUT",
                &[],
                "the daemon ended an import without an image",
                "the daemon's log; import it again",
            ),
            Code::new(
                "CLI_EVENTS_CUT",
                &[],
                "the daemon ended the stream of events",
                "go on with `--after CURSOR`",
            ),
            Code::new(
                "CLI_WAIT_TIMEOUT",
                &[],
                "the wanted state was not reached within `--timeout`",
                "wait again",
            ),
            Code::new(
                "CLI_OUTPUT",
                &[],
                "the output could not be written",
                "141 without words when its reader is gone",
            ),
            Code::new("CLI_SIGNALS", &[], "signals cannot be listened for", "report it"),
            Code::new(
                "CLI_RANDOM",
                &[],
                "/dev/urandom cannot be read",
                "look at the mounts",
            ),
            Code::new(
                "CLI_RUNTIME",
                &[],
                "the program's runtime cannot be started",
                "look at the limits of the shell",
            ),
        ],
    },
];
