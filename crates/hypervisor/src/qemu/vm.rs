//! A live machine.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dormouse_model::Bytes;
use dormouse_sys::pidfd::Exit;
use serde_json::Value;
use tokio::sync::Mutex;

use super::client::{Client, ClientError};
use super::qmp::{Command, RunState, ShutdownCause};
use super::start::{Up, of_client, run_state, write_only};
use crate::error::DriverError;
use crate::metrics::{self, Step};
use crate::port::{Balloon, Deadline, DriverKind, Saved, Vm, VmStatus};
use crate::process::{ExitReason, ProcessIdentity, Watched};

/// How long a command may take that only stops or runs processors.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what writes a file, or ends a process, may take.
const LONG_PATIENCE: Duration = Duration::from_secs(10);

/// A QEMU process that is ours.
#[derive(Debug)]
pub(super) struct QemuVm {
    process: Watched,
    control: PathBuf,
    /// `None` after the connection broke: the next command connects again.
    client: Mutex<Option<Client>>,
    killed: AtomicBool,
    reason: OnceLock<ExitReason>,
}

impl QemuVm {
    pub(super) fn new(up: Up) -> Self {
        Self {
            process: up.process,
            control: up.control,
            client: Mutex::new(Some(up.client)),
            killed: AtomicBool::new(false),
            reason: OnceLock::new(),
        }
    }

    /// A process of an earlier daemon.
    pub(super) async fn adopt(
        process: Watched,
        control: PathBuf,
        deadline: Deadline,
    ) -> Result<Self, DriverError> {
        let vm = Self {
            process,
            control,
            client: Mutex::new(None),
            killed: AtomicBool::new(false),
            reason: OnceLock::new(),
        };
        vm.execute("adopt the machine", deadline, &[Command::QueryStatus], None)
            .await?;
        Ok(vm)
    }

    /// Sends all commands at once and returns their answers; the first refusal is the result of all.
    /// `descriptor` goes with the command that takes one.
    async fn execute(
        &self,
        doing: &'static str,
        deadline: Deadline,
        commands: &[Command],
        descriptor: Option<&OwnedFd>,
    ) -> Result<Vec<Value>, DriverError> {
        let talk = tokio::time::timeout_at(deadline, self.talk(commands, descriptor));
        let error = match talk.await {
            Ok(Ok(answers)) => return Ok(answers),
            Ok(Err(error)) => error,
            Err(_) => return Err(DriverError::Deadline { doing }),
        };
        if matches!(error, ClientError::Closed | ClientError::Socket(_)) {
            // The socket closes a moment before the process is gone.
            let soon = deadline.min(Deadline::now() + Duration::from_secs(1));
            if let Ok(reason) = tokio::time::timeout_at(soon, self.reason()).await {
                return Err(DriverError::Ended {
                    doing,
                    reason,
                    said: String::new(),
                });
            }
        }
        if !matches!(error, ClientError::Refused { .. }) {
            *self.client.lock().await = None;
        }
        Err(of_client(doing, error))
    }

    async fn talk(
        &self,
        commands: &[Command],
        descriptor: Option<&OwnedFd>,
    ) -> Result<Vec<Value>, ClientError> {
        let mut slot = self.client.lock().await;
        if slot.is_none() {
            let mut fresh = Client::connect(&self.control)
                .await
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::ConnectionRefused => ClientError::Closed,
                    _ => ClientError::Socket(error),
                })?;
            fresh.execute(Command::Capabilities).await?;
            *slot = Some(fresh);
        }
        let Some(client) = slot.as_mut() else {
            return Err(ClientError::Closed);
        };
        let mut sent = Vec::with_capacity(commands.len());
        for &command in commands {
            let with = if command == Command::AddStateDescriptor {
                descriptor.map(AsFd::as_fd)
            } else {
                None
            };
            sent.push((client.send(command, with).await?, command));
        }
        let mut answers = Vec::with_capacity(sent.len());
        for (id, command) in sent {
            answers.push(client.answer(id, command).await);
        }
        answers.into_iter().collect()
    }

    async fn status(&self, doing: &'static str) -> Result<RunState, DriverError> {
        let deadline = Deadline::now() + PATIENCE;
        let answers = self
            .execute(doing, deadline, &[Command::QueryStatus], None)
            .await?;
        answers
            .first()
            .map_or(Ok(RunState::Ended), run_state)
            .map_err(|error| of_client(doing, error))
    }

    /// Waits for the end and finds out how it came.
    async fn reason(&self) -> ExitReason {
        let exit = self.process.ended().await;
        if let Some(known) = self.reason.get() {
            return *known;
        }
        // Whoever talks meets the closed socket and leaves.
        let mut slot = self.client.lock().await;
        let cause = slot.as_mut().and_then(|client| {
            client.drain();
            client.shutdown()
        });
        let reason = combine(exit, cause, self.killed.load(Ordering::Relaxed));
        *self.reason.get_or_init(|| {
            metrics::exit(DriverKind::Qemu, reason);
            reason
        })
    }

    async fn end_in_order(&self, grace: Duration) -> Result<ExitReason, DriverError> {
        let doing = "stop the machine";
        match self.status(doing).await {
            Ok(RunState::Running) => {
                let deadline = Deadline::now() + PATIENCE;
                self.execute(doing, deadline, &[Command::PowerDown], None).await?;
                if let Ok(reason) = tokio::time::timeout(grace, self.reason()).await {
                    return Ok(reason);
                }
            }
            Ok(RunState::Paused | RunState::Loading | RunState::Ended) => {}
            Err(DriverError::Ended { reason, .. }) => return Ok(reason),
            Err(error) => return Err(error),
        }
        let deadline = Deadline::now() + PATIENCE;
        match self.execute(doing, deadline, &[Command::Quit], None).await {
            // It answers and leaves, or leaves without an answer, or does not.
            Ok(_)
            | Err(DriverError::Ended { .. } | DriverError::Deadline { .. } | DriverError::Socket { .. }) => {}
            Err(error) => return Err(error),
        }
        match tokio::time::timeout_at(deadline, self.reason()).await {
            Ok(reason) => Ok(reason),
            Err(_) => self.end_now().await,
        }
    }

    async fn end_now(&self) -> Result<ExitReason, DriverError> {
        self.killed.store(true, Ordering::Relaxed);
        self.process.kill(Deadline::now() + LONG_PATIENCE).await?;
        Ok(self.reason().await)
    }

    async fn save(&self, into: OwnedFd) -> Result<Saved, DriverError> {
        let doing = "save the device state";
        let fail = |source| DriverError::Io { doing, source };
        // QEMU writes from where the descriptor stands, and does not truncate.
        let mut file = File::from(write_only(into.as_fd(), false).map_err(fail)?);
        drop(into);
        file.set_len(0).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let file = OwnedFd::from(file);
        let commands = [
            Command::Stop,
            Command::AddStateDescriptor,
            Command::SaveDevices,
            Command::RemoveStateDescriptor,
        ];
        let deadline = Deadline::now() + LONG_PATIENCE;
        self.execute(doing, deadline, &commands, Some(&file)).await?;
        let state = Bytes(File::from(file).metadata().map_err(fail)?.len());
        Ok(Saved { state })
    }
}

/// What the kernel says of an end and what QEMU said before. Pure.
fn combine(exit: Exit, cause: Option<ShutdownCause>, killed: bool) -> ExitReason {
    match (exit, cause) {
        (Exit::Signal(number), _) => ExitReason::Signal(number),
        (Exit::Code(code @ (i32::MIN..=-1 | 1..)), _) => ExitReason::Code(code),
        (Exit::Unknown, _) if killed => ExitReason::Signal(9),
        (Exit::Code(0) | Exit::Unknown, Some(ShutdownCause::GuestPoweredOff)) => ExitReason::GuestPoweredOff,
        (Exit::Code(0) | Exit::Unknown, Some(ShutdownCause::GuestRebooted)) => ExitReason::GuestRebooted,
        (Exit::Code(0) | Exit::Unknown, Some(ShutdownCause::GuestPanicked)) => ExitReason::GuestPanicked,
        (Exit::Code(0) | Exit::Unknown, Some(ShutdownCause::Host)) => ExitReason::Asked,
        (Exit::Code(0), None) => ExitReason::Code(0),
        (Exit::Unknown, None) => ExitReason::Unknown,
    }
}

/// Runs a call and counts it.
async fn timed<T>(step: Step, call: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
    let begun = std::time::Instant::now();
    let result = call.await;
    metrics::step(DriverKind::Qemu, step, begun.elapsed(), result.is_ok());
    result
}

#[async_trait]
impl Vm for QemuVm {
    fn process(&self) -> &ProcessIdentity {
        self.process.identity()
    }

    async fn pause(&self) -> Result<(), DriverError> {
        let deadline = Deadline::now() + PATIENCE;
        let call = self.execute("pause the machine", deadline, &[Command::Stop], None);
        timed(Step::Pause, call).await.map(drop)
    }

    async fn resume(&self) -> Result<(), DriverError> {
        let deadline = Deadline::now() + PATIENCE;
        let call = self.execute("resume the machine", deadline, &[Command::Cont], None);
        timed(Step::Resume, call).await.map(drop)
    }

    async fn snapshot(&self, into: OwnedFd) -> Result<Saved, DriverError> {
        timed(Step::Snapshot, self.save(into)).await
    }

    async fn stop(&self, grace: Duration) -> Result<ExitReason, DriverError> {
        timed(Step::Stop, self.end_in_order(grace)).await
    }

    async fn kill(&self) -> Result<ExitReason, DriverError> {
        timed(Step::Kill, self.end_now()).await
    }

    async fn inspect(&self) -> Result<VmStatus, DriverError> {
        match self.status("inspect the machine").await {
            Ok(RunState::Running) => Ok(VmStatus::Running),
            Ok(RunState::Paused | RunState::Loading) => Ok(VmStatus::Paused),
            Ok(RunState::Ended) => Ok(VmStatus::Ending),
            Err(DriverError::Ended { reason, .. }) => Ok(VmStatus::Exited(reason)),
            Err(error) => Err(error),
        }
    }

    async fn exited(&self) -> ExitReason {
        self.reason().await
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        Some(self)
    }
}

#[async_trait]
impl Balloon for QemuVm {
    async fn set_target(&self, target: Bytes) -> Result<(), DriverError> {
        let deadline = Deadline::now() + PATIENCE;
        let command = [Command::Balloon { target: target.0 }];
        self.execute("set the balloon", deadline, &command, None)
            .await
            .map(drop)
    }

    async fn actual(&self) -> Result<Bytes, DriverError> {
        let doing = "read the balloon";
        let deadline = Deadline::now() + PATIENCE;
        let answers = self
            .execute(doing, deadline, &[Command::QueryBalloon], None)
            .await?;
        let actual = answers
            .first()
            .and_then(|answer| answer.get("actual"))
            .and_then(Value::as_u64);
        actual.map(Bytes).ok_or_else(|| DriverError::Protocol {
            doing,
            what: "no size in the answer".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        use ShutdownCause::{GuestPanicked, GuestPoweredOff, GuestRebooted, Host};
        for (exit, cause, killed, want) in [
            (
                Exit::Code(0),
                Some(GuestPoweredOff),
                false,
                ExitReason::GuestPoweredOff,
            ),
            (
                Exit::Code(0),
                Some(GuestRebooted),
                false,
                ExitReason::GuestRebooted,
            ),
            (
                Exit::Unknown,
                Some(GuestPanicked),
                false,
                ExitReason::GuestPanicked,
            ),
            (Exit::Code(0), Some(Host), false, ExitReason::Asked),
            (Exit::Code(0), None, false, ExitReason::Code(0)),
            (Exit::Code(1), Some(GuestPoweredOff), false, ExitReason::Code(1)),
            (Exit::Signal(9), Some(Host), true, ExitReason::Signal(9)),
            (Exit::Signal(7), None, false, ExitReason::Signal(7)),
            (Exit::Unknown, None, true, ExitReason::Signal(9)),
            (Exit::Unknown, None, false, ExitReason::Unknown),
        ] {
            assert_eq!(combine(exit, cause, killed), want, "{exit:?} {cause:?}");
        }
    }
}
