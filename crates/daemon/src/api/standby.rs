//! StandbyService.

use std::time::Duration;

use dormouse_instance::view::InstanceView;
use dormouse_proto::v1;
use dormouse_proto::v1::standby_service_server::StandbyService;
use dormouse_standby::{LONGEST_HOLD, Reason, StatusSnapshot};
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{duration_from_wire, duration_to_wire, time_to_wire};
use super::page::Page;
use super::refusal::FieldError;
use super::repeats::Ticket;
use super::status::status;

impl Api {
    /// The engine's view on the wire.
    pub(super) fn standby_to_wire(&self, view: &InstanceView, found: &StatusSnapshot) -> v1::StandbyStatus {
        v1::StandbyStatus {
            instance_id: view.id.to_string(),
            instance_name: view.spec.name.to_string(),
            supported: found.supported,
            configured: found.configured,
            enabled: found.enabled,
            eligible: found.eligible,
            status: found.status.as_str().to_owned(),
            reason: found.reason.as_str().to_owned(),
            explanation: explain(found),
            active_inbound_count: found.active_inbound_count as u64,
            idle_timeout: found.idle_timeout.map(duration_to_wire),
            idle_since: found.idle_since.map(time_to_wire),
            last_inbound_at: found.last_inbound_activity_at.map(time_to_wire),
            next_standby_at: found.next_standby_at.map(time_to_wire),
            countdown_remaining: found.countdown_remaining.map(duration_to_wire),
            hold_until: found.hold_until.map(time_to_wire),
            tracking_mode: found.tracking_mode.to_owned(),
            last_error: found.last_failure.clone().unwrap_or_default(),
        }
    }
}

/// The reason as a sentence.
fn explain(found: &StatusSnapshot) -> String {
    let left = found.countdown_remaining.map_or(0, |left| left.as_secs());
    match found.reason {
        Reason::UnsupportedPlatform => "this host has no engine".to_owned(),
        Reason::PolicyMissing => "no standby policy was given: it sleeps only when asked to".to_owned(),
        Reason::PolicyDisabled => "its standby policy is off: it sleeps only when asked to".to_owned(),
        Reason::NotRunning => "it does not run, or is not ready yet".to_owned(),
        Reason::NetworkDisabled => "it has no network, so no packet could wake it".to_owned(),
        Reason::DriverCannotSleep => "its hypervisor cannot save the state of its devices".to_owned(),
        Reason::DevicePassedThrough => "a passed-through device cannot be saved".to_owned(),
        Reason::ObserverError => "connections cannot be observed: see the daemon's log".to_owned(),
        Reason::Blind => "connections are being listed anew; it stays awake until that is done".to_owned(),
        Reason::ActiveInbound => match found.active_inbound_count {
            1 => "1 inbound connection keeps it awake".to_owned(),
            count => format!("{count} inbound connections keep it awake"),
        },
        Reason::IdleTimeoutNotElapsed => format!("nobody is connected; it sleeps in {left} s"),
        Reason::Holding => format!("a caller holds it awake; it may sleep in {left} s"),
        Reason::ReplyBackoff => format!("an answer for it interrupted its last sleep; next try in {left} s"),
        Reason::ShuttingDown => "the daemon is shutting down".to_owned(),
        Reason::ReadyForStandby => "its time has come".to_owned(),
        Reason::WaitingForSlot => "its time has come; it waits for others to be asleep".to_owned(),
        Reason::Confirming => "the kernel is asked whether it is idle for certain".to_owned(),
        Reason::Sleeping => "it is being put to sleep".to_owned(),
        Reason::Interrupting => "it was being put to sleep and is called back".to_owned(),
        Reason::Asleep => "it sleeps; the next packet wakes it".to_owned(),
        Reason::Dozing => "it dozes; the next packet wakes it".to_owned(),
        Reason::WakeGaveUp => "waking it failed too often; the next packet tries again".to_owned(),
        Reason::WaitingToWake => "it is to be woken and waits its turn".to_owned(),
        Reason::Waking => "it is being woken".to_owned(),
        Reason::WakeRetrying => "waking it failed; it will be tried again".to_owned(),
    }
}

#[tonic::async_trait]
impl StandbyService for Api {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::StandbyStatus>, Status> {
        let view = self
            .instances
            .find(&request.into_inner().instance)
            .map_err(|error| status(&error))?;
        let found = self.engine.status(view.id).await.ok_or_else(stopping)?;
        Ok(Response::new(self.standby_to_wire(&view, &found)))
    }

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Result<Response<v1::StandbyStatus>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let duration = hold_from_wire(request.duration).map_err(|error| status(&error))?;
        let asked = self.asked("Hold", id, &request)?;
        let api = self.clone();
        let work = move |ticket: Ticket| async move {
            let done = ticket.past().filter(|past| past.done);
            let view = match done {
                Some(past) => api
                    .instances
                    .find(&past.target)
                    .map_err(|_| ticket.gone(&past.target))?,
                None => api.named(&request.instance, &request.etag)?,
            };
            if done.is_none() {
                let held = api.engine.hold(view.id, duration).await;
                held.map_err(|error| status(&error))?;
            }
            let found = api.engine.status(view.id).await.ok_or_else(stopping)?;
            let done = ticket.done(&view.id.to_string(), Vec::new());
            Ok((api.standby_to_wire(&view, &found), done))
        };
        self.repeats.once(asked, work).await.map(Response::new)
    }

    async fn list_statuses(
        &self,
        request: Request<v1::ListStatusesRequest>,
    ) -> Result<Response<v1::ListStatusesResponse>, Status> {
        let request = request.into_inner();
        let query = v1::ListStatusesRequest::default();
        let page = Page::new("ListStatuses", &query, request.page_size, &request.page_token)?;
        let all = self.instances.views(page.after());
        let (views, next_page_token) = page.cut(all, |view| view.id.to_string());
        let mut statuses = Vec::with_capacity(views.len());
        for view in &views {
            if let Some(found) = self.engine.status(view.id).await {
                statuses.push(self.standby_to_wire(view, &found));
            }
        }
        self.memory.long_answer(statuses.len());
        Ok(Response::new(v1::ListStatusesResponse {
            statuses,
            next_page_token,
        }))
    }
}

fn stopping() -> Status {
    status(&dormouse_instance::InstanceError::ShuttingDown)
}

/// How long a hold is asked for.
fn hold_from_wire(duration: Option<prost_types::Duration>) -> Result<Option<Duration>, FieldError> {
    let asked = duration_from_wire("duration", duration)?;
    if asked.is_some_and(|asked| asked > LONGEST_HOLD) {
        return Err(FieldError::new("duration", "is longer than 24 hours"));
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_has_its_duration_and_a_limit() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        for (asked, want) in [
            (None, Ok(None)),
            (seconds(0), Ok(Some(Duration::ZERO))),
            (seconds(600), Ok(Some(Duration::from_secs(600)))),
            (seconds(86_400), Ok(Some(LONGEST_HOLD))),
            (seconds(86_401), Err(())),
            (seconds(-1), Err(())),
        ] {
            assert_eq!(hold_from_wire(asked).map_err(drop), want, "{asked:?}");
        }
    }
}
