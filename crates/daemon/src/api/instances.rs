//! InstanceService.

use std::pin::Pin;
use std::time::Duration;

use dormouse_instance::machine::Removal;
use dormouse_instance::view::InstanceView;
use dormouse_instance::{InstanceError, Instances};
use dormouse_model::{Bytes, SleepTrigger, State, WorkloadId};
use dormouse_proto::v1;
use dormouse_proto::v1::instance_service_server::InstanceService;
use dormouse_store::Batch;
use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::convert::{Extras, create_from_wire, duration_from_wire, instance_to_wire, state_from_wire};
use super::logs;
use super::page::Page;
use super::refusal::FieldError;
use super::repeats::{Asked, Ticket};
use super::request;
use super::status::status;
use super::{Api, names};
use crate::causes::UnderWay;

/// Longest wait of one WaitInstance call; a client that wants more asks again.
const WAIT_LIMIT: Duration = Duration::from_secs(3600);

type LogStream = Pin<Box<dyn Stream<Item = Result<v1::LogChunk, Status>> + Send>>;

impl Api {
    /// The view that `key` names, if its etag is the one sent.
    pub(super) fn named(&self, key: &str, etag: &str) -> Result<InstanceView, Status> {
        let view = self.instances.find(key).map_err(|error| status(&error))?;
        let now = view.etag();
        if !etag.is_empty() && etag != now {
            let sent = etag.to_owned();
            return Err(status(&InstanceError::Changed { now, sent }));
        }
        Ok(view)
    }

    /// The request `id` of `method`, for [`Repeats::once`](super::Repeats::once).
    pub(super) fn asked(
        &self,
        method: &'static str,
        id: String,
        body: &impl Message,
    ) -> Result<Option<Asked>, Status> {
        Asked::new(method, id, body, self.instances.now())
    }

    /// The request being served begins to change an instance.
    fn under_way(&self, id: WorkloadId, revision: u64) -> UnderWay {
        tracing::info!(instance_id = %id, "a change is asked for");
        self.events.causes().begin(request::current(), id, revision)
    }

    /// The instance that an earlier run of the request has made or changed; `None` when it is gone.
    fn target(&self, target: &str) -> Option<InstanceView> {
        let id: WorkloadId = target.parse().ok()?;
        self.instances.view(id).ok()
    }

    /// One change of one instance, done once under its request id. A repetition is answered with the
    /// instance as it is then.
    async fn change<F>(
        &self,
        asked: Option<Asked>,
        instance: String,
        etag: String,
        act: impl FnOnce(Instances, WorkloadId) -> F + Send + 'static,
    ) -> Result<Response<v1::Instance>, Status>
    where
        F: Future<Output = Result<InstanceView, InstanceError>> + Send + 'static,
    {
        let api = self.clone();
        let work = move |ticket: Ticket| async move {
            if let Some(past) = ticket.past().filter(|past| past.done) {
                let view = api
                    .target(&past.target)
                    .ok_or_else(|| ticket.gone(&past.target))?;
                return Ok((api.full(&view).await, Batch::new()));
            }
            let view = api.named(&instance, &etag)?;
            let cause = api.under_way(view.id, view.revision);
            let acted = act(api.instances.clone(), view.id).await;
            cause.end(api.instances.view(view.id).ok());
            let view = acted.map_err(|error| status(&error))?;
            let done = ticket.done(&view.id.to_string(), Vec::new());
            Ok((api.full(&view).await, done))
        };
        self.repeats.once(asked, work).await.map(Response::new)
    }

    /// Makes an instance, or finishes what an earlier run of the request has begun: never a second one.
    async fn create_once(
        self,
        request: v1::CreateInstanceRequest,
        ticket: Ticket,
    ) -> Result<(v1::Instance, Batch), Status> {
        if let Some(past) = ticket.past() {
            let mut view = self
                .target(&past.target)
                .ok_or_else(|| ticket.gone(&past.target))?;
            // The first run made it and ended, with its daemon or with an error, before it ran.
            if !past.done && matches!(view.state, State::Stopped | State::Failed) {
                let started = self.instances.start(view.id).await;
                view = started.map_err(|error| status(&error))?;
            }
            let done = ticket.done(&past.target, Vec::new());
            return Ok((self.full(&view).await, done));
        }
        let fail = |error: InstanceError| status(&error);
        let taken = |name: &str| self.instances.find(name).is_ok();
        let name = names::free(self.instances.seed().map_err(fail)?, taken);
        let mut create = create_from_wire(request, &name).map_err(|error| status(&error))?;
        let (id, start) = (self.instances.new_id().map_err(fail)?, create.start);
        let target = id.to_string();
        create.id = Some(id);
        // Durable with the record of the instance: from then on a repetition finds it.
        create.along = if start {
            ticket.begun(&target)
        } else {
            ticket.done(&target, Vec::new())
        };
        let cause = self.under_way(id, 0);
        let made = self.instances.create(create).await;
        cause.end(self.instances.view(id).ok());
        match made {
            Ok(view) => {
                let done = if start {
                    ticket.done(&target, Vec::new())
                } else {
                    Batch::new()
                };
                Ok((self.full(&view).await, done))
            }
            Err(error) => {
                // Whether the commit happened is not known, and the instance is not there.
                if self.instances.view(id).is_err() && matches!(error, InstanceError::Store { .. }) {
                    ticket.forget().await;
                }
                Err(fail(error))
            }
        }
    }

    /// Removes an instance, or finishes a removal that an earlier run of the request has begun.
    async fn delete_once(
        self,
        request: v1::DeleteInstanceRequest,
        ticket: Ticket,
    ) -> Result<(v1::DeleteInstanceResponse, Batch), Status> {
        let view = match ticket.past() {
            // Ids are never used again: what is not there has been removed.
            Some(past) => match self.target(&past.target).filter(|_| !past.done) {
                Some(view) => view,
                None => {
                    let id = past.target.clone();
                    let done = ticket.done(&id, Vec::new());
                    return Ok((v1::DeleteInstanceResponse { id }, done));
                }
            },
            None => {
                let view = self.named(&request.instance, &request.etag)?;
                let quiet = matches!(view.state, State::Stopped | State::Failed | State::Deleting);
                if !request.force && !quiet {
                    let (name, state) = (view.spec.name, view.state);
                    return Err(status(&InstanceError::NotStopped { name, state }));
                }
                ticket.keep(ticket.begun(&view.id.to_string())).await?;
                view
            }
        };
        let removal = if request.force {
            Removal::Forced
        } else {
            Removal::Graceful
        };
        let cause = self.under_way(view.id, view.revision);
        let deleted = self.instances.delete(view.id, removal).await;
        cause.end(self.instances.view(view.id).ok());
        deleted.map_err(|error| status(&error))?;
        let id = view.id.to_string();
        let done = ticket.done(&id, Vec::new());
        Ok((v1::DeleteInstanceResponse { id }, done))
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
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("CreateInstance", id, &request)?;
        let api = self.clone();
        let work = move |ticket| api.create_once(request, ticket);
        self.repeats.once(asked, work).await.map(Response::new)
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
        let mut request = request.into_inner();
        let (size, token) = (
            std::mem::take(&mut request.page_size),
            std::mem::take(&mut request.page_token),
        );
        let page = Page::new("ListInstances", &request, size, &token)?;
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
        let all = self.instances.views(page.after()).filter(matches);
        let (views, next_page_token) = page.cut(all, |view| view.id.to_string());
        let mut instances = Vec::with_capacity(views.len());
        for view in &views {
            instances.push(self.full(view).await);
        }
        self.memory.long_answer(instances.len());
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
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("StartInstance", id, &request)?;
        let act = |instances: Instances, id| async move { instances.start(id).await };
        self.change(asked, request.instance, request.etag, act).await
    }

    async fn stop_instance(
        &self,
        request: Request<v1::StopInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("StopInstance", id, &request)?;
        let grace = duration_from_wire("timeout", request.timeout).map_err(|error| status(&error))?;
        let act = move |instances: Instances, id| async move { instances.stop(id, grace).await };
        self.change(asked, request.instance, request.etag, act).await
    }

    async fn standby_instance(
        &self,
        request: Request<v1::StandbyInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("StandbyInstance", id, &request)?;
        let trigger = if request.yield_to_traffic {
            SleepTrigger::CallerYielding
        } else {
            SleepTrigger::Caller
        };
        let act = move |instances: Instances, id| async move { instances.standby(id, trigger).await };
        self.change(asked, request.instance, request.etag, act).await
    }

    async fn wake_instance(
        &self,
        request: Request<v1::WakeInstanceRequest>,
    ) -> Result<Response<v1::Instance>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("WakeInstance", id, &request)?;
        let act = |instances: Instances, id| async move { instances.wake(id).await };
        self.change(asked, request.instance, request.etag, act).await
    }

    async fn delete_instance(
        &self,
        request: Request<v1::DeleteInstanceRequest>,
    ) -> Result<Response<v1::DeleteInstanceResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("DeleteInstance", id, &request)?;
        let api = self.clone();
        let work = move |ticket| api.delete_once(request, ticket);
        self.repeats.once(asked, work).await.map(Response::new)
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
