//! InstanceService.

use std::pin::Pin;
use std::time::Duration;

use dormouse_instance::InstanceError;
use dormouse_instance::machine::Removal;
use dormouse_instance::view::InstanceView;
use dormouse_model::{Bytes, SleepTrigger, State};
use dormouse_proto::v1;
use dormouse_proto::v1::instance_service_server::InstanceService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::convert::{
    Extras, FieldError, create_from_wire, duration_from_wire, instance_to_wire, state_from_wire,
};
use super::logs;
use super::page;
use super::status::status;
use super::{Api, names};

/// Longest wait of one WaitInstance call; a client that wants more asks again.
const WAIT_LIMIT: Duration = Duration::from_secs(3600);

type LogStream = Pin<Box<dyn Stream<Item = Result<v1::LogChunk, Status>> + Send>>;

impl Api {
    /// The view that `key` names, if its etag is the one sent.
    fn named(&self, key: &str, etag: &str) -> Result<InstanceView, Status> {
        let view = self.instances.find(key).map_err(|error| status(&error))?;
        if !etag.is_empty() && etag != view.revision.to_string() {
            let error = InstanceError::Changed {
                now: view.revision,
                sent: etag.to_owned(),
            };
            return Err(status(&error));
        }
        Ok(view)
    }

    /// An instance on the wire with everything that is asked elsewhere.
    pub(super) async fn full(&self, view: &InstanceView) -> v1::Instance {
        let standby_status = self
            .engine
            .status(view.id)
            .await
            .map(|found| self.standby_to_wire(view, &found));
        let extras = Extras {
            standby_status,
            memory_held: self.memory_held(view).await,
            accelerator: self.facts.accelerator.clone(),
        };
        instance_to_wire(view, extras)
    }

    /// Host memory that an instance holds: what its VMM holds while there is one, else its image's
    /// blocks on tmpfs or its dirty pages on disk.
    pub(super) async fn memory_held(&self, view: &InstanceView) -> Bytes {
        let (instances, view) = (self.instances.clone(), view.clone());
        tokio::task::spawn_blocking(move || instances.memory_held(&view))
            .await
            .unwrap_or_default()
    }
}

#[tonic::async_trait]
impl InstanceService for Api {
    async fn create_instance(
        &self,
        request: Request<v1::CreateInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        let api = self.clone();
        let work = async move {
            let taken = |name: &str| api.instances.find(name).is_ok();
            let create = create_from_wire(request, &names::free(api.instances.seed(), taken))
                .map_err(|e| status(&e))?;
            let view = api
                .instances
                .create(create)
                .await
                .map_err(|error| status(&error))?;
            Ok(api.full(&view).await)
        };
        self.repeats
            .once("CreateInstance", &id, work)
            .await
            .map(Response::new)
    }

    async fn get_instance(
        &self,
        request: Request<v1::GetInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let view = self.named(&request.into_inner().instance, "")?;
        Ok(Response::new(self.full(&view).await))
    }

    async fn list_instances(
        &self,
        request: Request<v1::ListInstancesRequest>,
    ) -> Result<Response<v1::ListInstancesResponse>, Status> {
        let request = request.into_inner();
        let filter = request.filter.unwrap_or_default();
        let states: Vec<State> = filter
            .states
            .iter()
            .map(|number| state_from_wire(*number))
            .collect::<Result<_, _>>()
            .map_err(|error| status(&error))?;
        let event_cursor = self.events.cursor();
        let matches = |view: &InstanceView| {
            (states.is_empty() || states.contains(&view.state))
                && view.spec.name.as_str().contains(&filter.name)
                && filter.labels.iter().all(|(key, value)| {
                    view.spec
                        .labels
                        .get(key)
                        .is_some_and(|found| value.is_empty() || found == value)
                })
        };
        let all: Vec<InstanceView> = self.instances.list().into_iter().filter(matches).collect();
        let (views, next_page_token) = page::cut(
            all,
            |view| view.id.to_string(),
            request.page_size,
            &request.page_token,
        )?;
        let mut instances = Vec::with_capacity(views.len());
        for view in &views {
            instances.push(self.full(view).await);
        }
        Ok(Response::new(v1::ListInstancesResponse {
            instances,
            next_page_token,
            event_cursor,
        }))
    }

    async fn start_instance(
        &self,
        request: Request<v1::StartInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let request = request.into_inner();
        let api = self.clone();
        let work = async move {
            let view = api.named(&request.instance, &request.etag)?;
            let view = api
                .instances
                .start(view.id)
                .await
                .map_err(|error| status(&error))?;
            Ok(api.full(&view).await)
        };
        self.repeats
            .once("StartInstance", &request.request_id, work)
            .await
            .map(Response::new)
    }

    async fn stop_instance(
        &self,
        request: Request<v1::StopInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let request = request.into_inner();
        let grace = duration_from_wire("timeout", request.timeout).map_err(|error| status(&error))?;
        let api = self.clone();
        let work = async move {
            let view = api.named(&request.instance, &request.etag)?;
            let view = api
                .instances
                .stop(view.id, grace)
                .await
                .map_err(|error| status(&error))?;
            Ok(api.full(&view).await)
        };
        self.repeats
            .once("StopInstance", &request.request_id, work)
            .await
            .map(Response::new)
    }

    async fn standby_instance(
        &self,
        request: Request<v1::StandbyInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let request = request.into_inner();
        let trigger = if request.yield_to_traffic {
            SleepTrigger::CallerYielding
        } else {
            SleepTrigger::Caller
        };
        let api = self.clone();
        let work = async move {
            let view = api.named(&request.instance, &request.etag)?;
            let view = api
                .instances
                .standby(view.id, trigger)
                .await
                .map_err(|error| status(&error))?;
            Ok(api.full(&view).await)
        };
        self.repeats
            .once("StandbyInstance", &request.request_id, work)
            .await
            .map(Response::new)
    }

    async fn wake_instance(
        &self,
        request: Request<v1::WakeInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let request = request.into_inner();
        let api = self.clone();
        let work = async move {
            let view = api.named(&request.instance, &request.etag)?;
            let view = api
                .instances
                .wake(view.id)
                .await
                .map_err(|error| status(&error))?;
            Ok(api.full(&view).await)
        };
        self.repeats
            .once("WakeInstance", &request.request_id, work)
            .await
            .map(Response::new)
    }

    async fn delete_instance(
        &self,
        request: Request<v1::DeleteInstanceRequest>,
    ) -> Result<Response<v1::DeleteInstanceResponse>, Status> {
        let request = request.into_inner();
        let api = self.clone();
        let work = async move {
            let view = api.named(&request.instance, &request.etag)?;
            let quiet = matches!(view.state, State::Stopped | State::Failed | State::Deleting);
            if !request.force && !quiet {
                let error = InstanceError::NotStopped {
                    name: view.spec.name.clone(),
                    state: view.state,
                };
                return Err(status(&error));
            }
            let removal = if request.force {
                Removal::Forced
            } else {
                Removal::Graceful
            };
            api.instances
                .delete(view.id, removal)
                .await
                .map_err(|error| status(&error))?;
            Ok(v1::DeleteInstanceResponse {
                id: view.id.to_string(),
            })
        };
        self.repeats
            .once("DeleteInstance", &request.request_id, work)
            .await
            .map(Response::new)
    }

    async fn wait_instance(
        &self,
        request: Request<v1::WaitInstanceRequest>,
    ) -> Result<Response<v1::WaitInstanceResponse>, Status> {
        let request = request.into_inner();
        let states: Vec<State> = request
            .states
            .iter()
            .map(|number| state_from_wire(*number))
            .collect::<Result<_, _>>()
            .map_err(|error| status(&error))?;
        if states.is_empty() && !request.deleted {
            return Err(status(&FieldError::new(
                "states",
                "is empty: say what to wait for",
            )));
        }
        let limit = duration_from_wire("timeout", request.timeout)
            .map_err(|error| status(&error))?
            .unwrap_or(WAIT_LIMIT)
            .min(WAIT_LIMIT);
        let found = match self.instances.find(&request.instance) {
            Err(InstanceError::NotFound { .. }) if request.deleted => None,
            Err(error) => return Err(status(&error)),
            Ok(view) => Some(view.id),
        };
        let Some(id) = found else {
            return Ok(Response::new(v1::WaitInstanceResponse { instance: None }));
        };
        let wait = self.instances.wait(id, &states, request.deleted, limit);
        let waited = self.stop.run_until_cancelled(wait).await;
        let view = waited
            .unwrap_or(Err(InstanceError::ShuttingDown))
            .map_err(|error| status(&error))?;
        let instance = match view {
            Some(view) => Some(self.full(&view).await),
            None => None,
        };
        Ok(Response::new(v1::WaitInstanceResponse { instance }))
    }

    type StreamLogsStream = LogStream;

    async fn stream_logs(
        &self,
        request: Request<v1::StreamLogsRequest>,
    ) -> Result<Response<LogStream>, Status> {
        let request = request.into_inner();
        let view = self.named(&request.instance, "")?;
        let path = match request.source() {
            v1::LogSource::Unspecified | v1::LogSource::App | v1::LogSource::Console => {
                self.instances.layout().console_log(view.id)
            }
            v1::LogSource::Vmm => self.instances.layout().vmm_log(view.id),
        };
        let ended = self.instances.watch(view.id).map_err(|error| status(&error))?;
        let tail = request
            .tail
            .map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
        let stream = logs::stream(path, tail, request.follow.then_some(ended), self.stop.clone());
        Ok(Response::new(Box::pin(stream)))
    }
}
