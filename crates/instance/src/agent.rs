//! The connection to the agent in a guest: the I/O around the guest room's channel, one task a process.
//!
//! A task lives as long as its VMM process. It connects, greets, boots a guest that waits for it, and
//! reports readiness and exit. Every connection opens a new session: what the guest had not got through
//! is then said again, and what the host wants is asked again by whoever wants it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dormouse_guest::{Boot, Channel, Disk, Event, Exit, Message, Network, Phase, STALL_LIMIT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::machine::ProcessIdentity;
use crate::record::Remembered;
use crate::rooms::{Clock, Rooms};

/// Requests to an agent that may wait; a sender waits when full.
const REQUESTS: usize = 16;

/// Pause before connecting again to a VMM that does not listen yet or dropped us.
const RECONNECT: Duration = Duration::from_millis(200);

/// How long a guest may leave the greeting unanswered before it is greeted again: its kernel drops what
/// comes before the agent opened the port.
const GREET_AGAIN: Duration = Duration::from_secs(1);

/// How long a woken guest is left alone before its agent is spoken to: what is said in that time would
/// run on the processor that the packet it woke for needs. The clock is wrong that much longer.
const AFTER_WAKE: Duration = Duration::from_millis(250);

/// The serial of the read-only disk.
pub(crate) const ROOT_SERIAL: &str = "root";
/// The serial of the writable disk.
pub(crate) const DISK_SERIAL: &str = "disk";

/// What an agent says that concerns the instance.
#[derive(Debug)]
pub(crate) enum AgentEvent {
    /// The command was started.
    Ready {
        /// In the guest of this process.
        process: ProcessIdentity,
    },
    /// The command ended, or never began.
    Exited {
        /// In the guest of this process.
        process: ProcessIdentity,
        /// Exit code.
        code: Option<i32>,
        /// Signal.
        signal: Option<i32>,
        /// In words.
        message: String,
    },
}

/// A request to the agent.
#[derive(Debug)]
struct Ask {
    message: Message,
    done: oneshot::Sender<Result<(), String>>,
}

/// Sends requests to an agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct AgentHandle {
    requests: mpsc::Sender<Ask>,
}

impl AgentHandle {
    /// Asks and waits for the answer, at most `deadline`.
    pub(crate) async fn ask(&self, message: Message, deadline: Duration) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let asked = async {
            self.requests
                .send(Ask { message, done })
                .await
                .map_err(|_| "the agent's task has ended".to_owned())?;
            answer
                .await
                .map_err(|_| "the agent's task has ended".to_owned())?
        };
        timeout(deadline, asked)
            .await
            .map_err(|_| format!("no answer within {deadline:?}"))?
    }

    /// Sends a request that the guest answers by ending.
    pub(crate) async fn tell(&self, message: Message) {
        let (done, _) = oneshot::channel();
        drop(self.requests.send(Ask { message, done }).await);
    }
}

/// A connection to be started.
pub(crate) struct AgentLink {
    process: ProcessIdentity,
    socket: PathBuf,
    boot: Boot,
    clock: Arc<Clock>,
    session: u64,
    origin: Origin,
}

/// How the process came to be.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It boots, or ran before this daemon did.
    Running,
    /// It was woken. The stream was connected before the process was: a VMM that has a client when it
    /// loads the guest has no change to tell it, and the guest no work at the moment when it has least
    /// time for it.
    Woken(Option<std::os::unix::net::UnixStream>),
}

impl AgentLink {
    /// The connection to the guest of `process`.
    pub(crate) fn new(
        process: ProcessIdentity,
        origin: Origin,
        rooms: &Rooms,
        remembered: &Remembered,
    ) -> std::io::Result<Self> {
        Ok(Self {
            process,
            socket: rooms.layout.agent_socket(remembered.view.id),
            boot: boot_message(rooms, remembered)?,
            clock: Arc::clone(&rooms.clock),
            session: u64::from_be_bytes(rooms.random()?),
            origin,
        })
    }

    /// The handle, and the task to run.
    pub(crate) fn start(
        self,
        events: mpsc::Sender<AgentEvent>,
    ) -> (AgentHandle, impl Future<Output = ()> + Send + 'static) {
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let talk = Talk {
            channel: Channel::host(self.session),
            waiting: HashMap::new(),
            unsent: Vec::new(),
            link: self,
            requests: receiver,
            events,
            open: false,
            partial_since: None,
            problems: 0,
        };
        (AgentHandle { requests }, talk.run())
    }
}

/// What the guest needs to start its command.
fn boot_message(rooms: &Rooms, remembered: &Remembered) -> std::io::Result<Boot> {
    let view = &remembered.view;
    let image = rooms.images.command_of(&view.image_digest, &view.spec);
    Ok(Boot {
        hostname: view.spec.name.to_string(),
        network: Some(Network {
            ipv4: view.addresses.ipv4,
            ipv6: view.addresses.ipv6,
            gateway_ipv4: rooms.gateways.ipv4,
            gateway_ipv6: rooms.gateways.ipv6,
            gateway_mac: rooms.gateways.mac,
            mac: view.addresses.mac,
            mtu: 0,
            dns: rooms.name_servers.clone(),
        }),
        arguments: image.arguments,
        environment: image.environment,
        working_directory: image.working_directory,
        user: image.user,
        stop_signal: image.stop_signal,
        root: Disk::Serial(ROOT_SERIAL.to_owned()),
        overlay: Some(Disk::Serial(DISK_SERIAL.to_owned())),
        seed: rooms.random()?,
        unix_nanos: rooms.clock.wall().unix_nanos(),
    })
}

/// A running conversation.
struct Talk {
    link: AgentLink,
    channel: Channel,
    requests: mpsc::Receiver<Ask>,
    events: mpsc::Sender<AgentEvent>,
    waiting: HashMap<u64, oneshot::Sender<Result<(), String>>>,
    /// Asked while the stream was down.
    unsent: Vec<Ask>,
    open: bool,
    partial_since: Option<Instant>,
    /// Wrong things that came through the port so far.
    problems: u64,
}

impl Talk {
    async fn run(mut self) {
        let mut early = match std::mem::replace(&mut self.link.origin, Origin::Running) {
            Origin::Running => None,
            Origin::Woken(stream) => {
                tokio::time::sleep(AFTER_WAKE).await;
                stream.and_then(|stream| UnixStream::from_std(stream).ok())
            }
        };
        loop {
            let stream = match early.take() {
                Some(stream) => Ok(stream),
                None => UnixStream::connect(&self.link.socket).await,
            };
            if let Ok(stream) = stream {
                self.converse(stream).await;
                self.channel.disconnected();
                self.open = false;
            }
            // The owner ends this task with the process; until then the VMM may come back.
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Speaks on one stream until it ends.
    async fn converse(&mut self, mut stream: UnixStream) {
        self.channel.connected();
        for ask in std::mem::take(&mut self.unsent) {
            self.send(ask);
        }
        let (mut reader, mut writer) = stream.split();
        let mut buffer = vec![0_u8; 16 * 1024];
        let mut greeted = Instant::now();
        loop {
            let outgoing = self.channel.outgoing();
            let waits_to_write = !outgoing.is_empty();
            tokio::select! {
                read = reader.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        let mut events = Vec::new();
                        self.channel.receive(buffer.get(..count).unwrap_or_default(), &mut events);
                        // Counted from the frame's first byte: behind half a frame of a sender that
                        // died, a living one goes on talking.
                        let since = self.partial_since.filter(|_| events.is_empty());
                        self.partial_since = self.channel.is_partial().then(|| since.unwrap_or_else(Instant::now));
                        self.take(events).await;
                    }
                },
                wrote = writer.write(outgoing), if waits_to_write => match wrote {
                    Ok(count) => self.channel.wrote(count),
                    Err(_) => return,
                },
                Some(ask) = self.requests.recv() => self.send(ask),
                () = tokio::time::sleep_until(greeted + GREET_AGAIN), if !self.open => {
                    greeted = Instant::now();
                    self.channel.connected();
                }
                () = stalled(self.partial_since) => {
                    let mut events = Vec::new();
                    self.partial_since = None;
                    self.channel.abandon_partial(&mut events);
                    self.take(events).await;
                }
            }
        }
    }

    fn send(&mut self, ask: Ask) {
        // The clock is read when the message goes out, not when it was wished for.
        let message = match ask.message {
            Message::ClockSet { .. } => Message::ClockSet {
                unix_nanos: self.link.clock.wall().unix_nanos(),
            },
            other => other,
        };
        match self.channel.send(&message) {
            Ok(sequence) => {
                self.waiting.insert(sequence, ask.done);
            }
            Err(error) => drop(ask.done.send(Err(error.to_string()))),
        }
    }

    async fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Opened {
                    phase,
                    release,
                    resumed,
                    ..
                } => {
                    tracing::debug!(
                        pid = self.link.process.pid,
                        ?phase,
                        release,
                        resumed,
                        "agent answered"
                    );
                    self.open = true;
                    self.opened(phase).await;
                }
                Event::Message { message, .. } => self.heard(message).await,
                Event::Problem(error) => {
                    self.problems = self.problems.saturating_add(1);
                    // A guest can say as much nonsense as it likes; the log tells of it ever more rarely.
                    if self.problems.is_power_of_two() {
                        tracing::warn!(pid = self.link.process.pid, %error, so_far = self.problems, "agent channel");
                    }
                }
                Event::Refused(error) => {
                    tracing::error!(pid = self.link.process.pid, %error, "agent refused");
                }
                // Said to guests only.
                Event::Greeted { .. } => {}
            }
        }
    }

    async fn opened(&mut self, phase: Phase) {
        match phase {
            Phase::Waiting => {
                let mut boot = self.link.boot.clone();
                boot.unix_nanos = self.link.clock.wall().unix_nanos();
                if let Err(error) = self.channel.send(&Message::Boot(Box::new(boot))) {
                    tracing::error!(pid = self.link.process.pid, %error, "boot message not sent");
                }
            }
            Phase::Running => {
                self.report(AgentEvent::Ready {
                    process: self.link.process,
                })
                .await;
            }
            // Ready, or the exit, will be said.
            Phase::Booting | Phase::Ending => {}
        }
    }

    async fn heard(&mut self, message: Message) {
        match message {
            Message::Ready { .. } => {
                self.report(AgentEvent::Ready {
                    process: self.link.process,
                })
                .await;
            }
            Message::Exited { exit, problem } => {
                let (code, signal, words) = match exit {
                    Exit::Code(code) => (Some(i32::from(code)), None, format!("exit code {code}")),
                    Exit::Signal {
                        signal,
                        out_of_memory,
                    } => {
                        let why = if out_of_memory { " (out of memory)" } else { "" };
                        (None, Some(i32::from(signal)), format!("signal {signal}{why}"))
                    }
                };
                let message = if problem.is_empty() {
                    words
                } else {
                    format!("{words}: {problem}")
                };
                self.report(AgentEvent::Exited {
                    process: self.link.process,
                    code,
                    signal,
                    message,
                })
                .await;
            }
            Message::BootFailed { step, problem } => {
                let message = format!("the guest could not set up its {step}: {problem}");
                self.report(AgentEvent::Exited {
                    process: self.link.process,
                    code: None,
                    signal: None,
                    message,
                })
                .await;
            }
            Message::Done { request, problem } => {
                if let Some(done) = self.waiting.remove(&request) {
                    let answer = if problem.is_empty() { Ok(()) } else { Err(problem) };
                    // Whoever asked may have given up.
                    drop(done.send(answer));
                }
            }
            Message::Pong { .. } => {}
            // The channel refuses what only a host may say.
            Message::Boot(_)
            | Message::ClockSet { .. }
            | Message::Reseed { .. }
            | Message::Shutdown { .. }
            | Message::Ping { .. } => {}
        }
    }

    async fn report(&self, event: AgentEvent) {
        // The instance's task owns this one: its inbox closes only when both end.
        drop(self.events.send(event).await);
    }
}

/// Resolves when a frame has been half read for too long; never when none is.
async fn stalled(since: Option<Instant>) {
    match since {
        Some(since) => tokio::time::sleep_until(since + STALL_LIMIT).await,
        None => std::future::pending().await,
    }
}
