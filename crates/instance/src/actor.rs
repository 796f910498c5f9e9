//! One instance's task: the shell around its lifecycle machine.
//!
//! It owns everything of the instance that is not durable (process handle, link, tap, agent) and is the
//! only one to touch it. Inputs come from the inbox, from running steps, from the process and from the
//! agent; effects go to [`crate::steps`]. There is no policy here: what is allowed when, and what comes
//! next, is the machine's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_model::{Attempt, FailReason, MonoTime, State, WakeCause};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::agent::{AgentEvent, AgentLink, Origin};
use crate::machine::{
    Answer, Asker, Effect, Exit, Input, Kept, Machine, Outcome, Phase, ProcessIdentity, Removal, Request, Step,
    StepFailure, Ticket,
};
use crate::memory::Home;
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::steps::{Change, Parts, StepContext, StepReport};
use crate::view::{ExitInfo, InstanceEvent, InstanceView};

/// What may wait in an instance's inbox; a sender waits when it is full.
pub(crate) const INBOX: usize = 64;

/// Events of the agent that may wait; the agent's task waits when full, its socket buffers.
const AGENT_EVENTS: usize = 16;

/// A message to an instance's task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Something is wanted.
    Ask {
        /// What.
        request: Request,
        /// By the engine, under its attempt; else by a caller.
        attempt: Option<Attempt>,
        /// When it was asked for, by the clock of deadlines.
        at: MonoTime,
        /// The answer now, and the outcome later.
        reply: oneshot::Sender<Asked>,
    },
    /// A packet waits.
    Knock,
    /// The daemon goes down: finish the outstanding step and let go of everything.
    Detach,
}

/// What became of a request: the answer, and where its outcome will come.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The machine's answer.
    pub(crate) answer: Answer,
    /// Resolves when the request has ended; closed when it never will.
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// What the rest of the house hears from an instance's task.
#[derive(Debug)]
pub(crate) struct Outlets {
    /// The published view.
    pub(crate) view: watch::Sender<InstanceView>,
    /// Told of every change; the registry and the event bus listen.
    pub(crate) notices: mpsc::Sender<InstanceEvent>,
}

/// One instance's task.
pub(crate) struct Actor {
    rooms: Arc<Rooms>,
    machine: Machine,
    remembered: Remembered,
    outlets: Outlets,
    inbox: mpsc::Receiver<Command>,
    parts: Parts,
    steps: JoinSet<StepReport>,
    cuts: HashMap<Attempt, Arc<AtomicBool>>,
    exits: JoinSet<(ProcessIdentity, Exit)>,
    agent_events: mpsc::Receiver<AgentEvent>,
    agent_sender: mpsc::Sender<AgentEvent>,
    agents: JoinSet<()>,
    chores: JoinSet<()>,
    waiters: HashMap<Ticket, oneshot::Sender<Outcome>>,
    caller_attempts: Attempt,
    sleep_asked: Option<MonoTime>,
    wake_asked: Option<MonoTime>,
    gone: bool,
    detaching: bool,
}

impl Actor {
    /// The task of an instance whose machine was just made or recovered, with the effects that this
    /// brought.
    pub(crate) fn new(
        rooms: Arc<Rooms>,
        machine: Machine,
        remembered: Remembered,
        parts: Parts,
        outlets: Outlets,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        let (agent_sender, agent_events) = mpsc::channel(AGENT_EVENTS);
        Self {
            rooms,
            machine,
            remembered,
            outlets,
            inbox,
            parts,
            steps: JoinSet::new(),
            cuts: HashMap::new(),
            exits: JoinSet::new(),
            agent_events,
            agent_sender,
            agents: JoinSet::new(),
            chores: JoinSet::new(),
            waiters: HashMap::new(),
            caller_attempts: Attempt(0),
            sleep_asked: None,
            wake_asked: None,
            gone: false,
            detaching: false,
        }
    }

    /// Runs until the instance is gone or the daemon detaches.
    pub(crate) async fn run(mut self, first: Vec<Effect>) {
        self.watch_process();
        self.connect_agent(Origin::Running);
        self.perform(first).await;
        while !self.gone && !(self.detaching && self.steps.is_empty()) {
            let deadline = self.machine.next_deadline();
            let mut effects = Vec::new();
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command, &mut effects),
                    // All handles are gone, which is a detach that nobody could say.
                    None => self.detaching = true,
                },
                Some(report) = self.steps.join_next(), if !self.steps.is_empty() => {
                    self.step_ended(report, &mut effects).await;
                }
                Some(exit) = self.exits.join_next(), if !self.exits.is_empty() => {
                    if let Ok((process, how)) = exit {
                        self.process_ended(process, how, &mut effects);
                    }
                }
                Some(event) = self.agent_events.recv() => self.agent_said(event, &mut effects),
                Some(_) = self.agents.join_next(), if !self.agents.is_empty() => {}
                Some(_) = self.chores.join_next(), if !self.chores.is_empty() => {}
                () = self.rooms.clock.sleep_until(deadline), if deadline.is_some() => {
                    self.machine.handle(self.rooms.clock.now(), Input::Deadline, &mut effects);
                }
            }
            self.perform(effects).await;
        }
        self.agents.shutdown().await;
    }

    fn command(&mut self, command: Command, effects: &mut Vec<Effect>) {
        let now = self.rooms.clock.now();
        match command {
            Command::Knock => self.machine.handle(now, Input::Knock, effects),
            Command::Detach => self.detaching = true,
            Command::Ask { request, attempt, at, reply } => {
                let ticket = match attempt {
                    Some(attempt) => Ticket { asker: Asker::Engine, attempt },
                    None => {
                        self.caller_attempts = self.caller_attempts.next();
                        Ticket { asker: Asker::Caller, attempt: self.caller_attempts }
                    }
                };
                let (sender, outcome) = oneshot::channel();
                let answer = self.machine.request(now, ticket, request, effects);
                match answer {
                    Answer::Accepted | Answer::AlreadySo => {
                        self.waiters.insert(ticket, sender);
                        self.note_time(request, at);
                    }
                    Answer::Refused(_) => {}
                }
                // A caller who went away still gets what it asked for.
                drop(reply.send(Asked { answer, outcome }));
            }
        }
    }

    /// Remembers when a sleep or wake was asked for, for the figures of how long it took.
    fn note_time(&mut self, request: Request, at: MonoTime) {
        match request {
            Request::Sleep { .. } => self.sleep_asked = Some(at),
            Request::Wake { .. } => self.wake_asked = Some(at),
            Request::Start | Request::Stop { .. } | Request::CancelSleep { .. } | Request::Delete { .. } => {}
        }
    }

    /// Carries out effects, in order. A step's task is made here and its report comes to the loop.
    async fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Run { number, step, deadline } => self.begin_step(number, step, deadline),
                Effect::CutShort { number } => {
                    if let Some(cut) = self.cuts.get(&number) {
                        cut.store(true, Ordering::Release);
                    }
                }
                Effect::Publish { state, reason } => self.publish(state, reason).await,
                Effect::Ended { ticket, outcome } => {
                    if let Some(waiter) = self.waiters.remove(&ticket) {
                        // Nobody may be waiting any more.
                        drop(waiter.send(outcome));
                    }
                }
                Effect::Gone => {
                    self.gone = true;
                    let last = self.remembered.view.clone();
                    self.notice(InstanceEvent::Deleted(Box::new(last))).await;
                }
            }
        }
    }

    fn begin_step(&mut self, number: Attempt, step: Step, deadline: MonoTime) {
        if let Step::Write(record) = &step {
            self.remembered.life = record.clone();
            self.remembered.view.generation = record.generation;
            if let Phase::Standby { image } = &record.phase {
                self.remembered.view.memory.home = match image.kept {
                    Kept::Resident { .. } => Home::Tmpfs,
                    Kept::Spilled => Home::Disk,
                };
            }
        }
        let cut = Arc::new(AtomicBool::new(false));
        self.cuts.insert(number, Arc::clone(&cut));
        let context = StepContext {
            rooms: Arc::clone(&self.rooms),
            remembered: self.remembered.clone(),
            parts: self.parts.clone(),
            cut,
        };
        let remaining = deadline.since(self.rooms.clock.now());
        self.steps.spawn(async move {
            let began = tokio::time::Instant::now();
            let name = step.name();
            // The step's own waits are shorter; this one is for what nobody foresaw.
            let outcome = match tokio::time::timeout(remaining, context.run(step.clone())).await {
                Ok(outcome) => outcome,
                Err(_) => Err(StepFailure::Passing { why: format!("{name} took longer than {remaining:?}") }),
            };
            StepReport { number, step, outcome, took: began.elapsed() }
        });
    }

    async fn step_ended(
        &mut self,
        report: Result<StepReport, tokio::task::JoinError>,
        effects: &mut Vec<Effect>,
    ) {
        let now = self.rooms.clock.now();
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                // A panic in a step: which one is lost, so its deadline will tell the machine.
                tracing::error!(instance_id = %self.remembered.view.id, %error, "a step panicked");
                return;
            }
        };
        self.cuts.remove(&report.number);
        let name = report.step.name();
        metrics::histogram!(crate::metrics::STEP_SECONDS, "step" => name).record(report.took.as_secs_f64());
        let number = report.number;
        match report.outcome {
            Ok((done, change)) => {
                tracing::debug!(instance_id = %self.remembered.view.id, step = name, took = ?report.took, "step done");
                self.apply(change);
                self.time_step(&report.step, now);
                self.machine.handle(now, Input::StepDone { number, done }, effects);
                self.publish_update().await;
            }
            Err(failure) => {
                tracing::warn!(
                    instance_id = %self.remembered.view.id, step = name, why = failure.why(), "step failed"
                );
                self.machine.handle(now, Input::StepFailed { number, failure }, effects);
            }
        }
    }

    /// Takes over what a step made or dropped.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Nothing => {}
            Change::Link(link) => self.parts.link = link,
            Change::Tap(tap) => self.parts.tap = tap.map(Arc::new),
            Change::Drained(counters) => self.parts.drained = Some(counters),
            Change::Started { vm, ram } => {
                self.parts.vm = Some(vm);
                self.remembered.view.memory = ram;
                self.remembered.view.started_at = Some(self.rooms.clock.wall());
                self.remembered.view.exit = None;
                self.watch_process();
                self.connect_agent(Origin::Running);
            }
            Change::Restored { vm, ram } => {
                self.parts.vm = Some(vm);
                self.remembered.view.memory = ram;
                self.watch_process();
                self.connect_agent(Origin::Woken);
            }
            Change::Saved { state_sha256 } => self.remembered.state_sha256 = state_sha256,
            Change::LetGo => {
                self.parts.vm = None;
                self.parts.tap = None;
                self.parts.agent = None;
                self.agents.abort_all();
                self.remembered.view.pid = None;
                self.flush_memory();
            }
            Change::Ram(ram) => self.remembered.view.memory = ram,
        }
    }

    /// The figures of sleeps and wakes, taken where they end.
    fn time_step(&mut self, step: &Step, now: MonoTime) {
        let view = &mut self.remembered.view;
        match step {
            Step::Write(record) if matches!(record.phase, Phase::Standby { .. }) => {
                if let Some(asked) = self.sleep_asked {
                    view.last_commit = Some(now.since(asked));
                    view.standbys += 1;
                }
            }
            Step::LetGo => {
                if let Some(asked) = self.sleep_asked.take() {
                    view.last_standby = Some(now.since(asked));
                }
            }
            Step::Open => {
                if let Some(asked) = self.wake_asked.take() {
                    view.last_wake = Some(now.since(asked));
                    view.wakes += 1;
                }
            }
            _ => {}
        }
    }

    /// Has the dirty pages of a sleeper's memory on disk written out, so that the kernel can take them
    /// back whenever it wants; nothing waits for it.
    fn flush_memory(&mut self) {
        let (ram, id) = (self.remembered.view.memory, self.remembered.view.id);
        if ram.home == Home::Disk && matches!(self.remembered.life.phase, Phase::Standby { .. }) {
            let files = self.rooms.layout.images();
            self.chores.spawn_blocking(move || {
                if let Err(error) = files.flush(id) {
                    tracing::warn!(instance_id = %id, %error, "memory not flushed");
                }
            });
        }
    }

    /// Waits for the end of the process in a task of its own.
    fn watch_process(&mut self) {
        let Some(vm) = self.parts.vm.clone() else { return };
        let identity = crate::steps::identity_of(vm.process());
        self.remembered.view.pid = Some(identity.pid);
        self.exits.spawn(async move {
            let reason = vm.exited().await;
            (identity, crate::steps::exit_of(&reason))
        });
    }

    /// Talks to the agent in a task of its own, for as long as the process lives.
    fn connect_agent(&mut self, origin: Origin) {
        let Some(vm) = self.parts.vm.clone() else { return };
        let process = crate::steps::identity_of(vm.process());
        let link = AgentLink::new(process, origin, &self.rooms, &self.remembered);
        let (handle, task) = link.start(self.agent_sender.clone());
        self.parts.agent = Some(handle);
        self.agents.abort_all();
        self.agents.spawn(task);
    }

    fn process_ended(&mut self, process: ProcessIdentity, how: Exit, effects: &mut Vec<Effect>) {
        tracing::info!(instance_id = %self.remembered.view.id, pid = process.pid, ?how, "process ended");
        self.machine.handle(self.rooms.clock.now(), Input::ProcessExited { process, how }, effects);
    }

    fn agent_said(&mut self, event: AgentEvent, effects: &mut Vec<Effect>) {
        let now = self.rooms.clock.now();
        match event {
            AgentEvent::Ready { process } => {
                self.remembered.view.agent_ready = true;
                self.push_view();
                self.machine.handle(now, Input::GuestReady { process }, effects);
            }
            AgentEvent::Exited { code, signal, message } => {
                let at = self.rooms.clock.wall();
                self.remembered.view.exit = Some(ExitInfo { code, signal, message, at });
            }
        }
    }

    async fn publish(&mut self, state: State, reason: Option<FailReason>) {
        let previous = self.remembered.view.state;
        let view = &mut self.remembered.view;
        view.state = state;
        view.reason = reason.map_or_else(String::new, |reason| reason.to_string());
        if !state.has_process() {
            view.agent_ready = false;
        }
        if previous != state {
            view.state_changed_at = self.rooms.clock.wall();
            tracing::info!(instance_id = %view.id, %previous, %state, reason = view.reason, "state");
        }
        self.push_view();
        let now = Box::new(self.remembered.view.clone());
        if previous == state {
            self.notice(InstanceEvent::Updated(now)).await;
        } else {
            self.notice(InstanceEvent::StateChanged { previous, now }).await;
        }
    }

    /// Publishes what a step changed beside the state; no event, because every sleep would make several.
    async fn publish_update(&mut self) {
        let changed = {
            let published = self.outlets.view.borrow();
            let ours = &self.remembered.view;
            published.pid != ours.pid
                || published.memory != ours.memory
                || published.last_wake != ours.last_wake
                || published.last_standby != ours.last_standby
                || published.last_commit != ours.last_commit
        };
        if changed {
            self.push_view();
        }
    }

    fn push_view(&mut self) {
        self.remembered.view.revision += 1;
        self.outlets.view.send_replace(self.remembered.view.clone());
    }

    async fn notice(&self, event: InstanceEvent) {
        // The receiver outlives every instance's task; it is gone only while the daemon goes down.
        drop(self.outlets.notices.send(event).await);
    }
}

/// The sort of request that a caller's verb makes, for error messages.
pub(crate) const fn verb(request: &Request) -> &'static str {
    match request {
        Request::Start => "start",
        Request::Stop { .. } => "stop",
        Request::Sleep { .. } => "standby",
        Request::CancelSleep { .. } => "cancel",
        Request::Wake { cause: WakeCause::Caller | WakeCause::Knock } => "wake",
        Request::Delete { removal: Removal::Graceful | Removal::Forced } => "delete",
    }
}
