//! The text form of inputs and effects.
//!
//! A line at the margin is an input; the lines below it, indented, are what it brought. `#` comments.
//!
//! ```text
//! new [spill|cannot-sleep|cold-boot]  a fresh machine
//! recover PHASE [same|other-pid|rebooted|no-image] [cold-boot]
//! start|stop|sleep|cancel|wake|delete TICKET ARGUMENT    e and c tickets: engine, caller
//! done N [process|image|written|spilled|settled|traffic|committed|uncommitted]      a step succeeded
//! fail N [lasting|untrusted|unwritten]
//! exit [off]   ready   knock   strange
//! after DURATION                      time passes, then the deadline is handled if it is due
//! ```

use std::fmt::Write as _;
use std::time::Duration;

use dormouse_model::time::parse_duration;
use dormouse_model::workload::SleepSupport;
use dormouse_model::{
    Attempt, Bytes, Digest, Generation, ImagePart, Lost, MonoTime, OnLostMemory, PartFault, SleepTrigger,
    WakeCause,
};

use crate::adoption::{Facts, Heard, Seen};
use crate::machine::{
    Answer, Asker, BootId, CancelReason, Done, Effect, Exit, Expected, Input, Kept, Machine, MemoryImage,
    Phase, ProcessIdentity, Readiness, Record, Removal, Request, Settings, Settled, SpillPolicy, Step,
    StepFailure, Ticket,
};

const BOOT: BootId = BootId(1);
const PROCESS: ProcessIdentity = ProcessIdentity {
    pid: 100,
    start_ticks: 7,
    boot: BOOT,
};
const IMAGE: MemoryImage = MemoryImage {
    generation: Generation(1),
    boot: BOOT,
    kept: Kept::Resident { inode: 11 },
    expected: Expected {
        manifest: Digest([0; 32]),
        state: Bytes(0),
        memory: Bytes(0),
    },
    settled: Settled::Open,
};

/// Runs the inputs of a trace and returns the trace with the effects that they really brought.
pub(super) fn replay(text: &str) -> String {
    let mut machine = Machine::new(super::SETTINGS);
    let mut now = MonoTime::from_boot(Duration::from_secs(100));
    let mut got = String::new();
    for line in text.lines().filter(|line| !line.starts_with(' ')) {
        got.push_str(line);
        got.push('\n');
        let mut out = Vec::new();
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(answer) = act(&mut machine, &mut now, &words, &mut out) {
            writeln!(got, "  = {}", answer_text(answer)).unwrap();
        }
        for effect in &out {
            writeln!(got, "  {}", effect_text(effect)).unwrap();
        }
    }
    got
}

/// The failure that a script calls so.
fn failure_of(word: &str) -> StepFailure {
    let why = "broken".to_owned();
    match word {
        "lasting" => StepFailure::Lasting { why },
        "untrusted" => StepFailure::untrusted(Lost::plain(ImagePart::State, PartFault::Digest)),
        "unwritten" => StepFailure::Unwritten { why },
        _ => StepFailure::Passing { why },
    }
}

fn act(machine: &mut Machine, now: &mut MonoTime, words: &[&str], out: &mut Vec<Effect>) -> Option<Answer> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    match word(0) {
        "new" => {
            let mut settings: Settings = super::SETTINGS;
            match word(1) {
                "spill" => settings.spill = SpillPolicy::Spill,
                "cold-boot" => settings.on_lost = OnLostMemory::ColdBoot,
                "cannot-sleep" => settings.sleep_support = SleepSupport::DriverCannot,
                _ => {}
            }
            *machine = Machine::new(settings);
        }
        "recover" => {
            let (record, facts) = recovery(word(1), word(2));
            let mut settings: Settings = super::SETTINGS;
            if words.contains(&"cold-boot") {
                settings.on_lost = OnLostMemory::ColdBoot;
            }
            if word(2) == "rebooted" {
                settings.boot = BootId(2);
            }
            *machine = Machine::recover(settings, record, &facts, *now, out);
        }
        "done" => {
            let done = brought(word(2), machine.record().generation, machine);
            machine.handle(
                *now,
                Input::StepDone {
                    number: number(word(1)),
                    done,
                },
                out,
            );
        }
        "fail" => {
            let failure = failure_of(word(2));
            machine.handle(
                *now,
                Input::StepFailed {
                    number: number(word(1)),
                    failure,
                },
                out,
            );
        }
        "exit" | "strange" => {
            let pid = if word(0) == "strange" { 101 } else { PROCESS.pid };
            let how = match word(1) {
                "off" => Exit::PoweredOff,
                _ => Exit::Ended {
                    how: "signal 9".to_owned(),
                },
            };
            let process = ProcessIdentity { pid, ..PROCESS };
            machine.handle(*now, Input::ProcessExited { process, how }, out);
        }
        "ready" => machine.handle(*now, Input::GuestReady { process: PROCESS }, out),
        "knock" => machine.handle(*now, Input::Knock, out),
        "after" => {
            *now = now.plus(parse_duration(word(1)).unwrap());
            machine.handle(*now, Input::Deadline, out);
        }
        _ => return Some(machine.request(*now, ticket(word(1)), request(words), out)),
    }
    None
}

fn brought(what: &str, generation: Generation, machine: &Machine) -> Done {
    let image = MemoryImage { generation, ..IMAGE };
    match what {
        "process" => Done::Process(PROCESS),
        "image" => Done::Image(image),
        "written" => Done::Image(MemoryImage {
            kept: Kept::Spilled { inode: 12 },
            ..image
        }),
        "spilled" | "settled" => Done::Image(MemoryImage {
            kept: Kept::Spilled { inode: 12 },
            settled: Settled::At(Digest::default()),
            boot: machine.settings.boot,
            ..image
        }),
        "traffic" => Done::Traffic,
        "committed" => recorded(Phase::Standby { image }, generation),
        "uncommitted" => recorded(Phase::Stopped, generation),
        _ => Done::Plain,
    }
}

fn recorded(phase: Phase, generation: Generation) -> Done {
    Done::Recorded(Box::new(Record { phase, generation }))
}

fn number(text: &str) -> Attempt {
    Attempt(text.parse().unwrap())
}

fn ticket(text: &str) -> Ticket {
    let (asker, attempt) = text.split_at(1);
    let asker = match asker {
        "e" => Asker::Engine,
        "c" => Asker::Caller,
        other => panic!("{other:?} asks nothing"),
    };
    Ticket {
        asker,
        attempt: number(attempt),
    }
}

fn request(words: &[&str]) -> Request {
    match words {
        ["start", _] => Request::Start,
        ["stop", _, grace] => Request::Stop {
            grace: parse_duration(grace).unwrap(),
        },
        ["sleep", _, "engine"] => Request::Sleep {
            trigger: SleepTrigger::Engine,
        },
        ["sleep", _, "caller"] => Request::Sleep {
            trigger: SleepTrigger::Caller,
        },
        ["sleep", _, "yielding"] => Request::Sleep {
            trigger: SleepTrigger::CallerYielding,
        },
        ["cancel", _, "traffic"] => Request::CancelSleep {
            why: CancelReason::Traffic,
        },
        ["cancel", _, "held"] => Request::CancelSleep {
            why: CancelReason::Held,
        },
        ["cancel", _, "blind"] => Request::CancelSleep {
            why: CancelReason::Blind,
        },
        ["wake", _, "knock"] => Request::Wake {
            cause: WakeCause::Knock,
        },
        ["wake", _, "caller"] => Request::Wake {
            cause: WakeCause::Caller,
        },
        ["delete", _, "graceful"] => Request::Delete {
            removal: Removal::Graceful,
        },
        ["delete", _, "forced"] => Request::Delete {
            removal: Removal::Forced,
        },
        other => panic!("no such request: {other:?}"),
    }
}

fn recovery(phase: &str, found: &str) -> (Record, Facts) {
    let phase = match phase {
        "stopped" => Phase::Stopped,
        "starting" => Phase::Starting,
        "booting" => Phase::Running {
            process: PROCESS,
            readiness: Readiness::Booting,
        },
        "running" => Phase::Running {
            process: PROCESS,
            readiness: Readiness::Ready,
        },
        "standby" => Phase::Standby { image: IMAGE },
        "settled" => Phase::Standby {
            image: MemoryImage {
                kept: Kept::Spilled { inode: 12 },
                settled: Settled::At(Digest::default()),
                ..IMAGE
            },
        },
        "cold" => Phase::Cold {
            lost: Lost::plain(ImagePart::State, PartFault::Digest),
        },
        "stopping" => Phase::Stopping,
        "failed" => Phase::Failed {
            reason: dormouse_model::FailReason::HostRebooted,
        },
        "deleting" => Phase::Deleting,
        other => panic!("no such phase: {other:?}"),
    };
    let seen = |inode| {
        let length = Bytes(0);
        Some(Seen { inode, length })
    };
    let same = Facts {
        boot: BOOT,
        start_ticks_at_pid: Some(7),
        heard: Heard::Answers,
        resident: seen(11),
        spilled: seen(12),
        state: seen(13),
        manifest: seen(14),
        unsure: false,
    };
    let facts = match found {
        "" | "same" => same,
        "other-pid" => Facts {
            start_ticks_at_pid: Some(8),
            ..same
        },
        "rebooted" => Facts {
            boot: BootId(2),
            resident: None,
            start_ticks_at_pid: None,
            ..same
        },
        "no-image" => Facts {
            resident: None,
            spilled: None,
            ..same
        },
        other => panic!("no such find: {other:?}"),
    };
    (
        Record {
            phase,
            generation: Generation(1),
        },
        facts,
    )
}

fn answer_text(answer: Answer) -> String {
    match answer {
        Answer::Accepted => "accepted".to_owned(),
        Answer::AlreadySo => "already so".to_owned(),
        Answer::Refused(refusal) => format!("refused: {refusal}"),
    }
}

fn ticket_text(ticket: Ticket) -> String {
    match ticket.asker {
        Asker::Engine => format!("e{}", ticket.attempt),
        Asker::Caller => format!("c{}", ticket.attempt),
    }
}

fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::Run { number, step, .. } => format!("run {number} {}", step_text(step)),
        Effect::CutShort { number } => format!("cut short {number}"),
        Effect::Publish { state, reason: None } => format!("publish {state}"),
        Effect::Publish {
            state,
            reason: Some(reason),
        } => format!("publish {state}: {reason}"),
        Effect::Ended { ticket, outcome } => format!("ended {} {outcome:?}", ticket_text(*ticket)),
        Effect::Gone => "gone".to_owned(),
    }
}

fn step_text(step: &Step) -> String {
    match step {
        Step::Write(record) => match &record.phase {
            Phase::Running { readiness, .. } => format!("write running {readiness:?}").to_lowercase(),
            Phase::Standby { image } => {
                let settled = match image.settled {
                    Settled::Open => "",
                    Settled::At(_) => " settled",
                };
                format!(
                    "write standby generation {} {:?}{settled}",
                    image.generation, image.kept
                )
            }
            Phase::Failed { reason } => format!("write failed: {reason}"),
            Phase::Cold { lost } => format!("write cold: {lost}"),
            Phase::Stopped => "write stopped".to_owned(),
            Phase::Starting => "write starting".to_owned(),
            Phase::Stopping => "write stopping".to_owned(),
            Phase::Deleting => "write deleting".to_owned(),
        },
        Step::Save { generation } => format!("save generation {generation}"),
        Step::Discard { generation } => format!("discard generation {generation}"),
        Step::Restore { image } => format!("restore generation {}", image.generation),
        Step::Shutdown { grace } => format!("shutdown {grace:?}"),
        other => other.name().to_owned(),
    }
}
