//! Random inputs against a model of the host: whatever comes in whatever order, the rules hold.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_model::{
    Attempt, Digest, FailReason, Generation, ImagePart, Lost, MonoTime, OnLostMemory, PartFault,
    SleepTrigger, State, WakeCause,
};
use proptest::prelude::*;

use crate::machine::{
    Answer, Asker, BootId, CancelReason, Done, Effect, Exit, Expected, Input, Kept, Machine, MemoryImage,
    Phase, ProcessIdentity, Readiness, Record, Removal, Request, Settled, Step, StepFailure, Ticket,
};

const BOOT: BootId = BootId(1);

/// What one random number does.
#[derive(Debug, Clone, Copy)]
enum Act {
    Request(u8),
    Succeed,
    Fail,
    Distrust,
    Late,
    Exit(bool),
    Ready,
    Knock,
    Wait(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..12_u8).prop_map(Act::Request),
        16 => Just(Act::Succeed),
        2 => Just(Act::Fail),
        1 => Just(Act::Distrust),
        1 => Just(Act::Late),
        1 => any::<bool>().prop_map(Act::Exit),
        2 => Just(Act::Ready),
        1 => Just(Act::Knock),
        2 => any::<u8>().prop_map(Act::Wait),
    ];
    prop::collection::vec(act, 0..300)
}

/// The host as the executor would have changed it.
struct Host {
    machine: Machine,
    now: MonoTime,
    outstanding: Option<(Attempt, Step)>,
    last_number: Attempt,
    published: State,
    tickets: BTreeMap<u64, bool>,
    next_ticket: u64,
    live: Option<ProcessIdentity>,
    next_pid: u32,
    /// What the store may say: one record, or two after a write of unknown outcome.
    durable: Vec<Record>,
    /// The newest generation whose guest has run again.
    consumed: Generation,
    in_memory: Generation,
    /// The newest generation whose files were discarded: nobody can load it, whatever names it.
    discarded: Generation,
    gone: bool,
    /// Whether it was a sleeper when it was last at rest.
    asleep: bool,
}

impl Host {
    fn new(spill: bool, on_lost: OnLostMemory) -> Self {
        let mut settings = super::SETTINGS;
        if spill {
            settings.spill = crate::machine::SpillPolicy::Spill;
        }
        settings.on_lost = on_lost;
        Self {
            machine: Machine::new(settings),
            now: MonoTime::from_boot(Duration::from_secs(1)),
            outstanding: None,
            last_number: Attempt(0),
            published: State::Stopped,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            live: None,
            next_pid: 1,
            durable: vec![Record::NEW],
            consumed: Generation(0),
            in_memory: Generation(0),
            discarded: Generation(0),
            gone: false,
            asleep: false,
        }
    }

    fn act(&mut self, act: Act) {
        let mut out = Vec::new();
        match act {
            Act::Request(which) => self.request(which, &mut out),
            Act::Succeed => self.finish_step(true, &mut out),
            Act::Fail => self.finish_step(false, &mut out),
            Act::Distrust => self.distrust(&mut out),
            Act::Late => {
                let number = Attempt(self.last_number.0.saturating_sub(1));
                let before = self.machine.late_outcomes();
                self.machine.handle(
                    self.now,
                    Input::StepDone {
                        number,
                        done: Done::Plain,
                    },
                    &mut out,
                );
                assert_eq!(self.machine.late_outcomes(), before + 1);
                assert!(out.is_empty(), "a late outcome does nothing: {out:?}");
            }
            Act::Exit(off) => {
                if let Some(process) = self.live.take() {
                    let how = if off {
                        Exit::PoweredOff
                    } else {
                        Exit::Ended {
                            how: "signal 9".to_owned(),
                        }
                    };
                    self.machine
                        .handle(self.now, Input::ProcessExited { process, how }, &mut out);
                }
            }
            Act::Ready => {
                if let Some(process) = self.live {
                    self.machine
                        .handle(self.now, Input::GuestReady { process }, &mut out);
                }
            }
            Act::Knock => self.machine.handle(self.now, Input::Knock, &mut out),
            Act::Wait(seconds) => {
                self.now = self.now.plus(Duration::from_secs(u64::from(seconds)));
                let due = self
                    .machine
                    .next_deadline()
                    .is_some_and(|deadline| deadline <= self.now);
                if due {
                    // The executor gives a step up before the machine does.
                    self.outstanding = None;
                }
                self.machine.handle(self.now, Input::Deadline, &mut out);
            }
        }
        self.take(&out);
    }

    fn request(&mut self, which: u8, out: &mut Vec<Effect>) {
        let request = match which {
            0 | 1 => Request::Start,
            2 => Request::Stop {
                grace: Duration::from_secs(1),
            },
            3 | 4 => Request::Sleep {
                trigger: SleepTrigger::Engine,
            },
            5 => Request::Sleep {
                trigger: SleepTrigger::Caller,
            },
            6 => Request::CancelSleep {
                why: CancelReason::Traffic,
            },
            7 => Request::CancelSleep {
                why: CancelReason::Blind,
            },
            8 | 9 => Request::Wake {
                cause: WakeCause::Knock,
            },
            10 => Request::Wake {
                cause: WakeCause::Caller,
            },
            _ => Request::Delete {
                removal: Removal::Graceful,
            },
        };
        let cancel = matches!(request, Request::CancelSleep { .. });
        let number = if cancel {
            self.next_ticket
        } else {
            self.next_ticket + 1
        };
        let ticket = Ticket {
            asker: Asker::Engine,
            attempt: Attempt(number),
        };
        let answer = self.machine.request(self.now, ticket, request, out);
        if !cancel {
            self.next_ticket = number;
            if !matches!(answer, Answer::Refused(_)) {
                assert_eq!(self.tickets.insert(number, false), None);
            }
        }
    }

    fn finish_step(&mut self, well: bool, out: &mut Vec<Effect>) {
        let Some((number, step)) = self.outstanding.take() else {
            return;
        };
        if !well {
            let why = "broken".to_owned();
            let failure = match &step {
                Step::Write(_) if number.0.is_multiple_of(2) => StepFailure::Unwritten { why },
                Step::Write(record) => {
                    self.durable.push(record.clone());
                    StepFailure::Passing { why }
                }
                _ => StepFailure::Passing { why },
            };
            self.machine
                .handle(self.now, Input::StepFailed { number, failure }, out);
            return;
        }
        let done = self.perform(step);
        self.machine
            .handle(self.now, Input::StepDone { number, done }, out);
    }

    /// A step that looks at an image finds that it is lost; from then on that image is never loaded.
    fn distrust(&mut self, out: &mut Vec<Effect>) {
        let looks = |step: &Step| match step {
            Step::Restore { image } | Step::Settle { image } | Step::Verify { image } => Some(*image),
            _ => None,
        };
        let Some((number, image)) = self
            .outstanding
            .as_ref()
            .and_then(|(number, step)| Some((*number, looks(step)?)))
        else {
            return;
        };
        self.outstanding = None;
        self.consumed = image.generation;
        let failure = StepFailure::untrusted(Lost::plain(ImagePart::Memory, PartFault::Digest));
        self.machine
            .handle(self.now, Input::StepFailed { number, failure }, out);
    }

    /// Does what the step says, and checks that it may be done.
    fn perform(&mut self, step: Step) -> Done {
        match step {
            Step::Write(record) => self.durable = vec![record],
            Step::Launch => return Done::Process(self.spawn()),
            Step::Restore { image } => {
                assert!(image.generation > self.consumed, "an image is loaded once");
                self.in_memory = image.generation;
                return Done::Process(self.spawn());
            }
            Step::Save { generation } => {
                self.in_memory = generation;
                let kept = Kept::Resident { inode: 1 };
                return Done::Image(MemoryImage {
                    generation,
                    boot: BOOT,
                    kept,
                    expected: Expected::default(),
                    settled: Settled::Open,
                });
            }
            Step::Spill { image } => {
                // It replaces an earlier copy, which whoever comes after a crash must not be told to load.
                assert!(!self.durable.iter().any(names_a_copy), "{:?}", self.durable);
                return Done::Image(MemoryImage {
                    kept: Kept::Spilled { inode: 2 },
                    // Settled later, now and then.
                    settled: if image.generation.0 % 2 == 0 {
                        Settled::Open
                    } else {
                        Settled::At(Digest::default())
                    },
                    ..image
                });
            }
            Step::Settle { image } | Step::Verify { image } => {
                return Done::Image(MemoryImage {
                    settled: Settled::At(Digest::default()),
                    boot: BOOT,
                    ..image
                });
            }
            Step::Resume => {
                self.may_run();
                self.consumed = self.in_memory;
            }
            Step::ReadBack => return self.read_back(),
            Step::Discard { generation } => self.discarded = generation,
            Step::DropMemory => self.drop_memory(),
            Step::LetGo | Step::EndProcess => self.live = None,
            Step::PrepareDisks
            | Step::AttachLink
            | Step::MakeTap
            | Step::Open
            | Step::Shut
            | Step::Drain
            | Step::Prove
            | Step::Pause
            | Step::DropResident
            | Step::Greet
            | Step::Shutdown { .. }
            | Step::ReleaseLink
            | Step::RemoveFiles
            | Step::RemoveRecord
            | Step::FreeAddresses => {}
        }
        Done::Plain
    }

    /// Nothing that the store may say can be believed beside a guest that runs.
    fn may_run(&self) {
        let harmless = |record: &Record| match record.phase {
            Phase::Running { .. } => true,
            Phase::Standby { image } => image.generation <= self.discarded,
            _ => false,
        };
        assert!(
            self.durable.iter().all(harmless),
            "it runs and the record says {:?}",
            self.durable
        );
    }

    /// What is read is durable; what is not may come back.
    fn read_back(&mut self) -> Done {
        let at = usize::try_from(self.now.since_boot().as_secs()).unwrap() % self.durable.len();
        let read = self.durable[at].clone();
        if self.durable.last() == Some(&read) {
            self.durable = vec![read.clone()];
        }
        Done::Recorded(Box::new(read))
    }

    /// Committed means kept: only an image that is lost, or that is wanted no more, goes.
    fn drop_memory(&self) {
        let given_up = matches!(self.machine.fail_reason(), Some(FailReason::Inconsistent { .. }));
        assert!(
            !(self.asleep && given_up),
            "a committed image is dropped: {:?}",
            self.machine
        );
    }

    /// Whether the next daemon would find what is, of a workload that runs or sleeps.
    fn says_what_is(&self, record: &Record) -> bool {
        match (&record.phase, self.published) {
            (Phase::Running { process, readiness }, State::Running) => {
                self.live == Some(*process) && *readiness == Readiness::Ready
            }
            (Phase::Standby { image }, State::Standby) => self.machine.image() == Some(*image),
            (Phase::Cold { .. }, State::Standby) => self.machine.lost().is_some(),
            (_, State::Running | State::Standby) => false,
            (_, _) => true,
        }
    }

    fn spawn(&mut self) -> ProcessIdentity {
        assert_eq!(self.live, None, "never two copies");
        let process = ProcessIdentity {
            pid: self.next_pid,
            start_ticks: 1,
            boot: BOOT,
        };
        self.next_pid += 1;
        self.live = Some(process);
        process
    }

    fn take(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Run {
                    number,
                    step,
                    deadline,
                } => {
                    assert_eq!(self.outstanding, None, "one step at a time");
                    assert!(*number > self.last_number && *deadline >= self.now);
                    self.last_number = *number;
                    self.outstanding = Some((*number, step.clone()));
                }
                // Both kinds: one that is awaited still answers, by failing; one that is not does not.
                Effect::CutShort { number } => {
                    let background = matches!(
                        self.outstanding,
                        Some((
                            _,
                            Step::Spill { .. } | Step::Settle { .. } | Step::Greet | Step::DropResident
                        ))
                    );
                    let noted = matches!(&self.outstanding, Some((_, Step::Write(record)))
                        if matches!(record.phase, Phase::Running { .. } | Phase::Standby { .. }));
                    if (background || noted) && self.machine.outstanding() != Some(*number) {
                        // A write that is no longer awaited is still made, before those that follow.
                        if let Some((_, Step::Write(record))) = self.outstanding.take() {
                            self.durable = vec![record];
                        }
                    }
                }
                Effect::Publish { state, reason } => {
                    assert!(self.published.may_become(*state), "{} to {state}", self.published);
                    assert_eq!(reason.is_some(), *state == State::Failed);
                    self.published = *state;
                    match state {
                        State::Standby => self.asleep = true,
                        State::Running | State::Stopped | State::Initializing | State::Starting => {
                            self.asleep = false;
                        }
                        _ => {}
                    }
                }
                Effect::Ended { ticket, outcome: _ } => {
                    let ended = self.tickets.entry(ticket.attempt.0).or_insert(false);
                    assert!(!*ended, "{ticket:?} ends once");
                    *ended = true;
                }
                Effect::Gone => self.gone = true,
            }
        }
        if !self.gone {
            assert_eq!(
                self.machine.state(),
                self.published,
                "what is published is what is"
            );
        }
    }

    /// From here on everything succeeds: the machine comes to rest and every ticket ends.
    fn settle(&mut self) {
        for _ in 0..200 {
            if self.outstanding.is_some() {
                self.act(Act::Succeed);
            } else if self.published == State::Initializing {
                self.act(Act::Ready);
            } else if self.machine.next_deadline().is_some() {
                self.act(Act::Wait(60));
            }
        }
        assert_eq!(self.machine.next_deadline(), None);
        assert!(
            self.durable.iter().all(|record| self.says_what_is(record)),
            "{} and the record says {:?}",
            self.published,
            self.durable
        );
        let open: Vec<_> = self.tickets.iter().filter(|(_, ended)| !**ended).collect();
        assert!(open.is_empty(), "still open: {open:?} in {:?}", self.machine);
        let runs = matches!(self.published, State::Running | State::Initializing);
        assert_eq!(
            self.live.is_some(),
            runs,
            "a process exactly when {}",
            self.published
        );
    }
}

fn names_a_copy(record: &Record) -> bool {
    match record.phase {
        Phase::Standby { image } => matches!(image.kept, Kept::Spilled { .. }),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_rules_hold_whatever_comes(acts in acts(), spill in any::<bool>(), cold in any::<bool>()) {
        let on_lost = if cold { OnLostMemory::ColdBoot } else { OnLostMemory::StayStopped };
        let mut host = Host::new(spill, on_lost);
        host.act(Act::Request(0));
        for act in acts {
            host.act(act);
        }
        host.settle();
    }
}

/// An ordinary life leaves nothing behind that record and settings do not say.
#[test]
fn what_rests_after_an_ordinary_life_is_said_by_its_record() {
    for spill in [false, true] {
        let mut host = Host::new(spill, OnLostMemory::StayStopped);
        assert!(host.machine.residue().is_some());
        for (act, state) in [
            (Act::Request(0), State::Running),
            (Act::Request(3), State::Standby),
            (Act::Request(8), State::Running),
            (Act::Request(5), State::Standby),
            (Act::Request(10), State::Running),
            (Act::Request(2), State::Stopped),
            (Act::Request(0), State::Running),
            (Act::Exit(false), State::Failed),
            (Act::Request(2), State::Stopped),
        ] {
            host.act(act);
            host.settle();
            assert_eq!(host.published, state, "after {act:?}");
            // How a process ended is remembered until the next sleep.
            let rests = matches!(state, State::Standby | State::Stopped);
            let ended = host.machine.exit.is_some();
            assert_eq!(host.machine.residue().is_some(), rests && !ended, "after {act:?}");
        }
    }
}
