//! What is asked of the API while somebody is killed, each in a thread of its own.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_client::{Client, ClientError, v1};
use tokio::runtime::Handle;

use super::ledger::{Condition, Ledger};
use super::schedule::Act;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// The RAM of all guests: as little as is taken.
pub(crate) const RAM_MIB: u64 = 128;

/// What an act is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The name of the instance or image.
    pub name: String,
    /// The mark of the instance, when it exists.
    pub mark: Option<String>,
    /// The archive to import.
    pub archive: PathBuf,
}

impl Act {
    /// The condition of the instance after it; `None` of acts on images.
    pub(crate) const fn after(self) -> Option<Condition> {
        match self {
            Self::Import | Self::DropImage => None,
            Self::Create | Self::Stop => Some(Condition::Stopped),
            Self::Start | Self::Wake => Some(Condition::Awake),
            Self::Standby | Self::Spill => Some(Condition::Asleep),
            Self::Delete => Some(Condition::Absent),
        }
    }

    /// Enters into the ledger that it is asked for, or that it was acknowledged.
    pub(crate) fn enter(self, ledger: &mut Ledger, name: &str, acknowledged: bool) {
        match (self.after(), acknowledged) {
            (Some(after), false) => ledger.ask(name, after),
            (Some(after), true) => ledger.acknowledged(name, after),
            (None, false) => ledger.ask_image(name, self == Self::Import),
            (None, true) => ledger.image_acknowledged(name, self == Self::Import),
        }
    }
}

/// An act under way.
#[derive(Debug)]
pub(crate) struct Call {
    thread: JoinHandle<Result<()>>,
}

impl Call {
    /// Asks for `act` of `subject`.
    pub(crate) fn begin(runtime: Handle, client: Client, act: Act, subject: &Subject) -> Result<Self> {
        let subject = subject.clone();
        let work = move || {
            let asked = async { tokio::time::timeout(ANSWER, ask(&client, act, &subject)).await };
            let answered = runtime.block_on(asked);
            answered.with_context(|| format!("no answer to {} within {ANSWER:?}", act.as_str()))??;
            Ok(())
        };
        let thread = std::thread::Builder::new().name("call".to_owned()).spawn(work);
        Ok(Self {
            thread: thread.context("starting a thread")?,
        })
    }

    /// Whether the answer is there.
    pub(crate) fn is_answered(&self) -> bool {
        self.thread.is_finished()
    }

    /// The answer.
    pub(crate) fn join(self) -> Result<()> {
        match self.thread.join() {
            Ok(answer) => answer,
            Err(_) => anyhow::bail!("the calling thread panicked"),
        }
    }
}

/// A standby that yields: the last packets of a conversation that was just paused are traffic, which it says;
/// then it is asked for again, as its code says, until the caller's patience ends.
async fn spill(client: &Client, instance: String) -> Result<(), ClientError> {
    loop {
        let request = v1::StandbyInstanceRequest {
            instance: instance.clone(),
            yield_to_traffic: true,
            ..Default::default()
        };
        match client.instances().standby_instance(request).await {
            Ok(_) => return Ok(()),
            Err(status) => {
                let error = ClientError::from(status);
                if error.code() != "INSTANCE_INTERRUPTED" {
                    return Err(error);
                }
            }
        }
    }
}

async fn ask(client: &Client, act: Act, subject: &Subject) -> Result<(), ClientError> {
    let instance = subject.name.clone();
    match act {
        Act::Import => {
            let request = v1::ImportImageRequest {
                path: subject.archive.to_string_lossy().into_owned(),
                ..Default::default()
            };
            let mut stream = client.images().import_image(request).await?.into_inner();
            while stream.message().await?.is_some() {}
        }
        Act::DropImage => {
            let request = v1::DeleteImageRequest {
                image: subject.name.clone(),
                ..Default::default()
            };
            client.images().delete_image(request).await?;
        }
        Act::Create => {
            let request = v1::CreateInstanceRequest {
                name: subject.name.clone(),
                image: "bench:latest".to_owned(),
                memory_bytes: RAM_MIB << 20,
                ..Default::default()
            };
            client.instances().create_instance(request).await?;
        }
        Act::Start => {
            let request = v1::StartInstanceRequest {
                instance,
                ..Default::default()
            };
            client.instances().start_instance(request).await?;
        }
        Act::Standby => {
            let request = v1::StandbyInstanceRequest {
                instance,
                ..Default::default()
            };
            client.instances().standby_instance(request).await?;
        }
        Act::Spill => spill(client, instance).await?,
        Act::Wake => {
            let request = v1::WakeInstanceRequest {
                instance,
                ..Default::default()
            };
            client.instances().wake_instance(request).await?;
        }
        Act::Stop => {
            let request = v1::StopInstanceRequest {
                instance,
                // A guest that still boots does not hear it.
                timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                ..Default::default()
            };
            client.instances().stop_instance(request).await?;
        }
        Act::Delete => {
            let request = v1::DeleteInstanceRequest {
                instance,
                force: true,
                ..Default::default()
            };
            client.instances().delete_instance(request).await?;
        }
    }
    Ok(())
}
