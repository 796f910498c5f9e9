//! A daemon that remembers instances and runs nothing, for the tests of the command line.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use dormouse_client::{metadata, v1};
use dormouse_model::Kind;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, iter};
use tonic::{Code, Request, Response, Status};
use v1::image_service_server::{ImageService, ImageServiceServer};
use v1::instance_service_server::{InstanceService, InstanceServiceServer};
use v1::standby_service_server::{StandbyService, StandbyServiceServer};
use v1::system_service_server::{SystemService, SystemServiceServer};

type Answer<T> = Result<Response<T>, Status>;
type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the daemon remembers.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    instances: Arc<Mutex<Vec<v1::Instance>>>,
}

/// An error as the real daemon sends it.
fn refused(code: Code, stable: &'static str, kind: Kind, message: &str) -> Status {
    let mut trailers = tonic::metadata::MetadataMap::new();
    for (key, value) in [
        (metadata::CODE, stable),
        (metadata::KIND, kind.as_str()),
        (metadata::RETRY, kind.retry().as_str()),
        (metadata::REQUEST_ID, "req-1"),
    ] {
        trailers.insert(key, value.parse().unwrap());
    }
    Status::with_metadata(code, message, trailers)
}

impl Memory {
    fn find(&self, name: &str) -> Result<v1::Instance, Status> {
        let instances = self.instances.lock().unwrap();
        let found = instances
            .iter()
            .find(|instance| instance.name == name || instance.id == name);
        found.cloned().ok_or_else(|| {
            let message = format!("no instance is named {name}");
            refused(Code::NotFound, "INSTANCE_NOT_FOUND", Kind::NotFound, &message)
        })
    }

    fn set_state(&self, name: &str, state: v1::InstanceState) -> Answer<v1::Instance> {
        let id = self.find(name)?.id;
        let mut instances = self.instances.lock().unwrap();
        let found = instances.iter_mut().find(|instance| instance.id == id).unwrap();
        found.set_state(state);
        Ok(Response::new(found.clone()))
    }
}

#[tonic::async_trait]
impl InstanceService for Memory {
    /// The command is the exit code that the instance will have.
    async fn create_instance(&self, request: Request<v1::CreateInstanceRequest>) -> Answer<v1::Instance> {
        let request = request.into_inner();
        let mut instances = self.instances.lock().unwrap();
        if instances.iter().any(|instance| instance.name == request.name) {
            let message = format!("the name {} is taken", request.name);
            return Err(refused(
                Code::AlreadyExists,
                "INSTANCE_NAME_TAKEN",
                Kind::Exists,
                &message,
            ));
        }
        let exit = request
            .command
            .first()
            .and_then(|code| code.parse().ok())
            .map(|code| v1::InstanceExit {
                code: Some(code),
                ..Default::default()
            });
        let state = if request.start {
            v1::InstanceState::Running
        } else {
            v1::InstanceState::Stopped
        };
        let instance = v1::Instance {
            id: format!("01kfakefakefakefakefakefa{}", instances.len()),
            name: request.name,
            image: request.image,
            state: state.into(),
            labels: request.labels,
            standby: request.standby,
            exit,
            ..Default::default()
        };
        instances.push(instance.clone());
        Ok(Response::new(instance))
    }

    async fn get_instance(&self, request: Request<v1::GetInstanceRequest>) -> Answer<v1::Instance> {
        self.find(&request.into_inner().instance).map(Response::new)
    }

    /// Pages of one, so that turning pages is tried.
    async fn list_instances(
        &self,
        request: Request<v1::ListInstancesRequest>,
    ) -> Answer<v1::ListInstancesResponse> {
        let request = request.into_inner();
        let at: usize = request.page_token.parse().unwrap_or(0);
        let filter = request.filter.unwrap_or_default();
        let instances = self.instances.lock().unwrap();
        let wanted: Vec<_> = instances
            .iter()
            .filter(|instance| filter.states.is_empty() || filter.states.contains(&instance.state))
            .cloned()
            .collect();
        let next = if at + 1 < wanted.len() {
            (at + 1).to_string()
        } else {
            String::new()
        };
        Ok(Response::new(v1::ListInstancesResponse {
            instances: wanted.into_iter().skip(at).take(1).collect(),
            next_page_token: next,
            event_cursor: String::new(),
        }))
    }

    async fn start_instance(&self, request: Request<v1::StartInstanceRequest>) -> Answer<v1::Instance> {
        self.set_state(&request.into_inner().instance, v1::InstanceState::Running)
    }

    async fn stop_instance(&self, request: Request<v1::StopInstanceRequest>) -> Answer<v1::Instance> {
        self.set_state(&request.into_inner().instance, v1::InstanceState::Stopped)
    }

    async fn standby_instance(&self, request: Request<v1::StandbyInstanceRequest>) -> Answer<v1::Instance> {
        self.set_state(&request.into_inner().instance, v1::InstanceState::Standby)
    }

    async fn wake_instance(&self, request: Request<v1::WakeInstanceRequest>) -> Answer<v1::Instance> {
        self.set_state(&request.into_inner().instance, v1::InstanceState::Running)
    }

    async fn delete_instance(
        &self,
        request: Request<v1::DeleteInstanceRequest>,
    ) -> Answer<v1::DeleteInstanceResponse> {
        let request = request.into_inner();
        let found = self.find(&request.instance)?;
        if !request.force && found.state() != v1::InstanceState::Stopped {
            let message = format!("{} is not stopped", found.name);
            return Err(refused(
                Code::FailedPrecondition,
                "INSTANCE_NOT_STOPPED",
                Kind::WrongState,
                &message,
            ));
        }
        self.instances
            .lock()
            .unwrap()
            .retain(|instance| instance.id != found.id);
        Ok(Response::new(v1::DeleteInstanceResponse { id: found.id }))
    }

    async fn wait_instance(
        &self,
        request: Request<v1::WaitInstanceRequest>,
    ) -> Answer<v1::WaitInstanceResponse> {
        let request = request.into_inner();
        let found = self.find(&request.instance);
        if request.deleted && found.is_err() {
            return Ok(Response::new(v1::WaitInstanceResponse { instance: None }));
        }
        let found = found?;
        if request.states.contains(&found.state) {
            return Ok(Response::new(v1::WaitInstanceResponse {
                instance: Some(found),
            }));
        }
        Err(refused(
            Code::DeadlineExceeded,
            "INSTANCE_WAIT_TIMEOUT",
            Kind::Timeout,
            "not yet",
        ))
    }

    type StreamLogsStream = Items<v1::LogChunk>;

    async fn stream_logs(&self, request: Request<v1::StreamLogsRequest>) -> Answer<Self::StreamLogsStream> {
        self.find(&request.into_inner().instance)?;
        let chunk = |data: &[u8], stream: v1::LogStream| {
            Ok(v1::LogChunk {
                data: data.to_vec(),
                stream: stream.into(),
                at: None,
            })
        };
        let chunks = vec![
            chunk(b"hello\xff\n", v1::LogStream::Stdout),
            chunk(b"trouble\n", v1::LogStream::Stderr),
        ];
        Ok(Response::new(Box::pin(iter(chunks))))
    }
}

#[tonic::async_trait]
impl ImageService for Memory {
    type ImportImageStream = Items<v1::ImportImageResponse>;

    async fn import_image(
        &self,
        request: Request<v1::ImportImageRequest>,
    ) -> Answer<Self::ImportImageStream> {
        use v1::import_image_response::Step;
        let path = request.into_inner().path;
        if !Path::new(&path).is_absolute() {
            return Err(Status::invalid_argument("the path is not absolute"));
        }
        let step = |step| Ok(v1::ImportImageResponse { step: Some(step) });
        let progress = |phase: v1::ImportPhase| {
            step(Step::Progress(v1::ImportProgress {
                phase: phase.into(),
                done_bytes: 1,
                total_bytes: 2,
            }))
        };
        let image = v1::Image {
            digest: "sha256:abc".to_owned(),
            names: vec!["web:latest".to_owned()],
            ..Default::default()
        };
        let steps = vec![
            progress(v1::ImportPhase::Reading),
            progress(v1::ImportPhase::Unpacking),
            step(Step::Image(image)),
        ];
        Ok(Response::new(Box::pin(iter(steps))))
    }

    async fn get_image(&self, _: Request<v1::GetImageRequest>) -> Answer<v1::Image> {
        Err(refused(
            Code::NotFound,
            "IMAGE_NOT_FOUND",
            Kind::NotFound,
            "no such image",
        ))
    }

    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse::default()))
    }

    async fn delete_image(&self, _: Request<v1::DeleteImageRequest>) -> Answer<v1::DeleteImageResponse> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl StandbyService for Memory {
    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Answer<v1::StandbyStatus> {
        let instance_name = self.find(&request.into_inner().instance)?.name;
        let status = v1::StandbyStatus {
            instance_name,
            status: "active".to_owned(),
            ..Default::default()
        };
        Ok(Response::new(status))
    }

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Answer<v1::StandbyStatus> {
        let instance_name = self.find(&request.into_inner().instance)?.name;
        Ok(Response::new(v1::StandbyStatus {
            instance_name,
            status: "held".to_owned(),
            ..Default::default()
        }))
    }

    async fn list_statuses(&self, _: Request<v1::ListStatusesRequest>) -> Answer<v1::ListStatusesResponse> {
        Ok(Response::new(v1::ListStatusesResponse::default()))
    }
}

#[tonic::async_trait]
impl SystemService for Memory {
    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Answer<v1::SystemInfo> {
        Ok(Response::new(v1::SystemInfo {
            version: "9.9".to_owned(),
            ..Default::default()
        }))
    }

    async fn doctor(&self, _: Request<v1::DoctorRequest>) -> Answer<v1::DoctorResponse> {
        let check = |name: &str, status: v1::CheckStatus| v1::Check {
            name: name.to_owned(),
            status: status.into(),
            detail: "as it is".to_owned(),
            advice: String::new(),
        };
        let checks = vec![
            check("qemu", v1::CheckStatus::Ok),
            check("kvm", v1::CheckStatus::Warning),
        ];
        Ok(Response::new(v1::DoctorResponse { checks }))
    }

    async fn check_store(&self, _: Request<v1::CheckStoreRequest>) -> Answer<v1::StoreReport> {
        let record = |key: &str| v1::DamagedRecord {
            kind: "instance".to_owned(),
            key: key.to_owned(),
            reason: "wrong checksum".to_owned(),
        };
        Ok(Response::new(v1::StoreReport {
            records: vec![v1::RecordCount {
                kind: "image".to_owned(),
                count: 3,
            }],
            quarantined: vec![record("k1")],
            ..v1::StoreReport::default()
        }))
    }

    async fn back_up_store(
        &self,
        request: Request<v1::BackUpStoreRequest>,
    ) -> Answer<v1::BackUpStoreResponse> {
        assert!(request.into_inner().path.starts_with('/'));
        Ok(Response::new(v1::BackUpStoreResponse {
            records: 3,
            bytes: 8192,
        }))
    }

    async fn drop_quarantined(
        &self,
        request: Request<v1::DropQuarantinedRequest>,
    ) -> Answer<v1::DropQuarantinedResponse> {
        match request.into_inner().key.as_str() {
            "k1" => Ok(Response::new(v1::DropQuarantinedResponse {})),
            _ => Err(Status::not_found("no such record was set aside")),
        }
    }

    async fn setup(&self, request: Request<v1::SetupRequest>) -> Answer<v1::SetupResponse> {
        let sleepers = request.into_inner().sleepers;
        let changed = v1::ChangedSetting {
            path: "/proc/sys/net/ipv4/neigh/default/gc_thresh3".to_owned(),
            before: 1024,
            after: 44_096,
        };
        Ok(Response::new(v1::SetupResponse {
            // One sleeper needs nothing raised.
            changed: if sleepers == 1 { vec![] } else { vec![changed] },
            sleepers,
        }))
    }

    type WatchEventsStream = Items<v1::Event>;

    async fn watch_events(&self, _: Request<v1::WatchEventsRequest>) -> Answer<Self::WatchEventsStream> {
        let gap = v1::event::What::Gap(v1::EventGap { missed: 2 });
        let event = v1::Event {
            cursor: "c7".to_owned(),
            at: None,
            what: Some(gap),
            request_id: String::new(),
        };
        Ok(Response::new(Box::pin(iter(vec![Ok(event)]))))
    }
}

/// A running daemon with its socket.
#[derive(Debug)]
pub struct Daemon {
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    /// Starts one that knows nothing yet.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(async { UnixListener::bind(socket(&directory)) })
            .unwrap();
        let memory = Memory::default();
        drop(runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(InstanceServiceServer::new(memory.clone()))
                .add_service(ImageServiceServer::new(memory.clone()))
                .add_service(StandbyServiceServer::new(memory.clone()))
                .add_service(SystemServiceServer::new(memory))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        }));
        Self {
            directory,
            _runtime: runtime,
        }
    }

    /// Runs the command line against it.
    pub fn dormouse(&self, line: &str) -> Outcome {
        let host = format!("unix://{}", socket(&self.directory).display());
        dormouse(&host, line)
    }
}

fn socket(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("d.sock")
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Fails unless it ended with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// Runs the command line against `host`.
pub fn dormouse(host: &str, line: &str) -> Outcome {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_dormouse"))
        .args(line.split_whitespace())
        .env("DORMOUSE_HOST", host)
        .output()
        .unwrap();
    Outcome {
        code: status.code().unwrap(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}
