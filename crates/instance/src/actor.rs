//! One instance's task: the shell around its lifecycle machine.
//!
//! It owns everything of the instance that is not durable (process handle, link, tap, agent) and is the
//! only one to touch it. Inputs come from the inbox, from running steps, from the process and from the
//! agent; effects go to [`crate::steps`]. There is no policy here: what is allowed when, and what comes
//! next, is the machine's.

use std::sync::Arc;

use dormouse_model::{Attempt, FailReason, Generation, MonoTime, State, WakeCause};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::figures::Figures;
use self::underway::Underway;
use self::waiters::Waiters;
use crate::agent::{AgentEvent, AgentLink, Origin};
use crate::machine::{
    Answer, Asker, Effect, Exit, Input, Machine, Outcome, ProcessIdentity, Removal, Request, Step,
    StepFailure, Ticket,
};
use crate::record::Remembered;
use crate::rooms::Rooms;
use crate::steps::{Change, Parts, StepContext, StepReport};
use crate::view::{ExitInfo, InstanceEvent, InstanceView};

mod figures;
mod packed;
mod recall;
mod rest;
mod underway;
mod waiters;

pub(crate) use packed::Commons;
pub(crate) use rest::{Rested, settings};
pub(crate) use underway::Cut;

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
    /// The published view. Whoever looks has it only for a moment: when this goes, the task has ended.
    pub(crate) view: Arc<watch::Sender<InstanceView>>,
    /// Told of every change; the registry and the event bus listen.
    pub(crate) notices: mpsc::Sender<InstanceEvent>,
}

/// Why a task stopped turning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paused {
    /// The instance is gone, or the daemon detaches.
    Ended,
    /// It could rest, if its seat says so.
    Restful,
}

/// One instance's task.
pub(crate) struct Actor {
    rooms: Arc<Rooms>,
    machine: Machine,
    remembered: Remembered,
    outlets: Outlets,
    inbox: mpsc::Receiver<Command>,
    parts: Parts,
    underway: Underway,
    exits: JoinSet<(ProcessIdentity, Exit)>,
    agent_events: mpsc::Receiver<AgentEvent>,
    agent_sender: mpsc::Sender<AgentEvent>,
    agents: JoinSet<()>,
    chores: JoinSet<()>,
    waiters: Waiters,
    caller_attempts: Attempt,
    figures: Figures,
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
            underway: Underway::default(),
            exits: JoinSet::new(),
            agent_events,
            agent_sender,
            agents: JoinSet::new(),
            chores: JoinSet::new(),
            waiters: Waiters::default(),
            caller_attempts: Attempt(0),
            figures: Figures::default(),
            gone: false,
            detaching: false,
        }
    }

    /// Begins. Told first of all is `birth`, of an instance that was just made.
    pub(crate) async fn begin(&mut self, birth: Option<InstanceEvent>, first: Vec<Effect>) {
        if let Some(birth) = birth {
            self.notice(birth).await;
        }
        self.watch_process();
        self.connect_agent(Origin::Running);
        self.perform(first).await;
    }

    /// Takes a command that did not come by the inbox.
    pub(crate) async fn tell(&mut self, command: Command) {
        let mut effects = Vec::new();
        self.command(command, &mut effects);
        self.perform(effects).await;
    }

    /// Runs until the instance is gone, or the daemon detaches, or it could rest.
    pub(crate) async fn run(&mut self) -> Paused {
        while !(self.gone || self.detaching && self.underway.is_empty()) {
            let restful = self.restful();
            if restful && self.outlets.view.receiver_count() == 0 && self.inbox.sender_strong_count() == 1 {
                return Paused::Restful;
            }
            let published = Arc::clone(&self.outlets.view);
            let deadline = self.machine.next_deadline();
            let mut effects = Vec::new();
            tokio::select! {
                // Nothing new is begun by a daemon that goes down: who still asks is told so when this ends.
                command = self.inbox.recv(), if !self.detaching => match command {
                    Some(command) => self.command(command, &mut effects),
                    // All handles are gone, which is a detach that nobody could say.
                    None => self.detach(),
                },
                Some(report) = self.underway.next(), if !self.underway.is_empty() => {
                    self.step_ended(report, &mut effects);
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
                // The last who watched it has gone, and it may rest.
                () = published.closed(), if restful && published.receiver_count() > 0 => {}
            }
            drop(published);
            self.perform(effects).await;
        }
        self.agents.shutdown().await;
        Paused::Ended
    }

    /// What was begun in the foreground runs to its end, so that no guest stays paused without a daemon;
    /// a copy of memory is as well begun again by the next one.
    fn detach(&mut self) {
        self.detaching = true;
        self.underway.cut_background();
    }

    fn command(&mut self, command: Command, effects: &mut Vec<Effect>) {
        let now = self.rooms.clock.now();
        match command {
            Command::Knock => {
                self.figures.knocked(self.machine.state(), now);
                self.machine.handle(now, Input::Knock, effects);
            }
            Command::Detach => self.detach(),
            Command::Ask {
                request,
                attempt,
                at,
                reply,
            } => {
                let ticket = self.ticket(attempt);
                let answer = self.machine.request(now, ticket, request, effects);
                if answer == Answer::Accepted {
                    self.figures.asked(request, at);
                }
                let outcome = self.waiters.enter(ticket, request, answer);
                // A caller who went away still gets what it asked for.
                drop(reply.send(Asked { answer, outcome }));
            }
        }
    }

    fn ticket(&mut self, attempt: Option<Attempt>) -> Ticket {
        if let Some(attempt) = attempt {
            return Ticket {
                asker: Asker::Engine,
                attempt,
            };
        }
        self.caller_attempts = self.caller_attempts.next();
        Ticket {
            asker: Asker::Caller,
            attempt: self.caller_attempts,
        }
    }

    /// Carries out effects, in order, but tells the ends of requests last: whoever hears that it is done
    /// looks, and finds it so.
    async fn perform(&mut self, effects: Vec<Effect>) {
        let mut ended = Vec::new();
        for effect in effects {
            match effect {
                Effect::Run {
                    number,
                    step,
                    deadline,
                } => self.begin_step(number, step, deadline),
                Effect::CutShort { number } => self.underway.cut_short(number),
                Effect::Publish { state, reason } => self.publish(state, reason).await,
                Effect::Ended { ticket, outcome } => ended.push((ticket, outcome)),
                Effect::Gone => self.gone = true,
            }
        }
        for (ticket, outcome) in ended {
            self.waiters.tell(ticket, outcome);
        }
        if self.gone {
            let last = self.remembered.view.clone();
            self.notice(InstanceEvent::Deleted(Box::new(last))).await;
        }
    }

    fn begin_step(&mut self, number: Attempt, step: Step, deadline: MonoTime) {
        if let Step::Write(record) = &step {
            self.remember(record);
        }
        let remaining = deadline.since(self.rooms.clock.now());
        let (rooms, remembered, parts) = (
            Arc::clone(&self.rooms),
            self.remembered.clone(),
            self.parts.clone(),
        );
        let acted = step.clone();
        self.underway.begin(number, step, remaining, |cut| {
            let context = StepContext {
                rooms,
                remembered,
                parts,
                cut,
            };
            context.run(acted)
        });
        if self.detaching {
            self.underway.cut_background();
        }
    }

    fn step_ended(&mut self, report: StepReport, effects: &mut Vec<Effect>) {
        let now = self.rooms.clock.now();
        let StepReport {
            number,
            step,
            outcome,
            took,
        } = report;
        let (id, name) = (self.remembered.view.id, step.name());
        metrics::histogram!(crate::metrics::STEP_SECONDS, "step" => name).record(took.as_secs_f64());
        // The machine has gone on without a late one: what it brought is not part of the instance.
        let counts = self.machine.outstanding() == Some(number);
        match outcome {
            Ok((done, change)) if counts => {
                tracing::debug!(instance_id = %id, step = name, ?took, "step done");
                self.figures
                    .step_done(&step, self.machine.state(), now, &mut self.remembered.view);
                self.apply(change);
                if step == Step::Resume {
                    self.drop_states_up_to(self.remembered.life.generation.next());
                }
                let discards = matches!(step, Step::Discard { .. });
                self.machine
                    .handle(now, Input::StepDone { number, done }, effects);
                if discards {
                    self.recall();
                }
                self.publish_update();
            }
            Ok((done, change)) => {
                tracing::info!(instance_id = %id, step = name, ?took, "step done too late");
                self.discard(change);
                self.machine
                    .handle(now, Input::StepDone { number, done }, effects);
            }
            Err(failure) => {
                let why = failure.why();
                if counts {
                    tracing::warn!(instance_id = %id, step = name, why, "step failed");
                } else {
                    // Cut short, most of the time: a wake wanted the memory that was being copied.
                    tracing::debug!(instance_id = %id, step = name, why, "step given up");
                }
                let unwritten = matches!(failure, StepFailure::Unwritten { .. });
                self.machine
                    .handle(now, Input::StepFailed { number, failure }, effects);
                if unwritten && counts {
                    self.recall();
                }
            }
        }
    }

    /// What came too late: a process that nobody will ever ask for ends. The rest is found again where it
    /// is (a link by its room), or is a descriptor that closes here.
    fn discard(&mut self, change: Change) {
        match change {
            Change::Started { vm, .. } | Change::Restored { vm, .. } => {
                self.chores.spawn(async move {
                    if let Err(error) = vm.kill().await {
                        tracing::error!(%error, "a process that came too late is not ended");
                    }
                });
            }
            Change::Nothing
            | Change::Link(_)
            | Change::Tap(_)
            | Change::Drained(_)
            | Change::LetGo
            | Change::Ram(_) => {}
        }
    }

    /// Takes over what a step made or dropped.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Nothing => {}
            Change::Link(link) => self.parts.link = link,
            Change::Tap(tap) => {
                self.parts.tap = tap.map(Arc::new);
                // A link that could not be made earlier comes with it.
                let made = || self.rooms.network.link(self.remembered.view.id);
                self.parts.link = self.parts.link.take().or_else(made);
            }
            Change::Drained(counters) => self.parts.drained = Some(counters),
            Change::Started { vm, ram, monitor } => {
                // The process has the tap now, and the link.
                self.parts.tap = None;
                self.parts.vm = Some(vm);
                self.remembered.view.memory = ram;
                self.remembered.view.monitor = monitor;
                self.remembered.view.started_at = Some(self.rooms.clock.wall());
                self.remembered.view.exit = None;
                self.watch_process();
                self.connect_agent(Origin::Running);
            }
            Change::Restored {
                vm,
                ram,
                agent,
                monitor,
            } => {
                self.parts.tap = None;
                self.parts.vm = Some(vm);
                self.remembered.view.memory = ram;
                self.remembered.view.monitor = monitor;
                self.watch_process();
                self.connect_agent(Origin::Woken(agent));
            }
            Change::LetGo => {
                self.parts.vm = None;
                self.parts.tap = None;
                self.parts.agent = None;
                self.agents.abort_all();
                self.remembered.view.pid = None;
                self.tidy_sleeper();
            }
            Change::Ram(ram) => self.remembered.view.memory = ram,
        }
    }

    /// What is left to do for a sleeper without a process, and nothing waits for: states of earlier sleeps
    /// go.
    fn tidy_sleeper(&mut self) {
        let Some(image) = self.remembered.life.phase.image() else {
            return;
        };
        self.drop_states_up_to(image.generation);
    }

    /// Removes states and manifests of generations before `kept`: an image goes once its guest runs on, so that
    /// not even a record from a backup can have it loaded over memory that has changed since.
    fn drop_states_up_to(&mut self, kept: Generation) {
        let id = self.remembered.view.id;
        let layout = self.rooms.layout.clone();
        self.chores.spawn_blocking(move || {
            if let Err(failure) = crate::steps::drop_earlier_states(&layout.instance(id), kept) {
                tracing::warn!(instance_id = %id, why = failure.why(), "earlier states are left");
            }
        });
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
        let link = match AgentLink::new(process, origin, &self.rooms, &self.remembered) {
            Ok(link) => link,
            Err(error) => {
                // Without a seed the guest must not begin; it is ended when its deadline for that passes.
                tracing::error!(instance_id = %self.remembered.view.id, %error, "no random bytes for the guest");
                return;
            }
        };
        let (handle, task) = link.start(self.agent_sender.clone());
        self.parts.agent = Some(handle);
        self.agents.abort_all();
        self.agents.spawn(task);
    }

    fn process_ended(&mut self, process: ProcessIdentity, how: Exit, effects: &mut Vec<Effect>) {
        tracing::info!(instance_id = %self.remembered.view.id, pid = process.pid, ?how, "process ended");
        self.machine.handle(
            self.rooms.clock.now(),
            Input::ProcessExited { process, how },
            effects,
        );
    }

    fn agent_said(&mut self, event: AgentEvent, effects: &mut Vec<Effect>) {
        let now = self.rooms.clock.now();
        let ours = self
            .parts
            .vm
            .as_ref()
            .map(|vm| crate::steps::identity_of(vm.process()));
        let (AgentEvent::Ready { process } | AgentEvent::Exited { process, .. }) = &event;
        if ours != Some(*process) {
            // Said by an earlier life's guest and read only now.
            return;
        }
        match event {
            AgentEvent::Ready { process } => {
                self.remembered.view.agent_ready = true;
                self.push_view();
                self.machine.handle(now, Input::GuestReady { process }, effects);
            }
            AgentEvent::Exited {
                code,
                signal,
                message,
                ..
            } => {
                let at = self.rooms.clock.wall();
                self.remembered.view.exit = Some(ExitInfo {
                    code,
                    signal,
                    message,
                    at,
                });
                self.push_view();
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
    fn publish_update(&mut self) {
        let changed = {
            let published = self.outlets.view.borrow();
            let ours = &self.remembered.view;
            published.pid != ours.pid
                || published.memory != ours.memory
                || published.snapshot != ours.snapshot
                || published.monitor != ours.monitor
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
        Request::Wake {
            cause: WakeCause::Caller | WakeCause::Knock,
        } => "wake",
        Request::Delete {
            removal: Removal::Graceful | Removal::Forced,
        } => "delete",
    }
}
