//! SystemService.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use dormouse_instance::InstanceError;
use dormouse_model::error::chain;
use dormouse_model::{Name, State, WorkloadId};
use dormouse_proto::v1;
use dormouse_proto::v1::system_service_server::SystemService;
use dormouse_store::{Damage, RecordKind, Report, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{Extras, event_to_wire, placement_to_wire, state_to_wire, time_to_wire};
use super::refusal::{FieldError, RequestError};
use super::status::status;
use crate::events::{Entry, Found, Happening, Position};
use crate::setup;
use crate::system::{self, Check, Verdict};

/// Events that may wait for a slow client; the log keeps the rest.
const EVENTS: usize = 64;

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::Event, Status>> + Send>>;

#[tonic::async_trait]
impl SystemService for Api {
    async fn get_info(
        &self,
        _request: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::SystemInfo>, Status> {
        let facts = &self.facts;
        let instances = self.instances.clone();
        // One after the other, in one go: there may be ten thousand.
        let counted = tokio::task::spawn_blocking(move || {
            let (mut states, mut held) = (BTreeMap::<State, u32>::new(), 0_u64);
            for view in instances.views(None) {
                *states.entry(view.state).or_default() += 1;
                held = held.saturating_add(instances.memory_held(&view).0);
            }
            (states, held)
        });
        let (states, held) = counted
            .await
            .map_err(|_| Status::internal("counting the instances panicked"))?;
        let instances = states
            .into_iter()
            .map(|(state, count)| v1::StateCount {
                state: state_to_wire(state).into(),
                count,
            })
            .collect();
        let namespace = facts
            .namespace
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        Ok(Response::new(v1::SystemInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("DORMOUSE_COMMIT").unwrap_or("").to_owned(),
            hostname: facts.hostname.clone(),
            kernel: facts.kernel.clone(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpus: facts.cpus,
            memory_bytes: facts.memory.0,
            swap_bytes: facts.swap.0,
            driver: "qemu".to_owned(),
            driver_version: facts.driver_version.clone(),
            accelerator: facts.accelerator.clone(),
            accelerator_reason: facts.accelerator_reason.clone(),
            placement: placement_to_wire(facts.placement).into(),
            placement_reason: if facts.swap.0 > 0 {
                "this host has swap"
            } else {
                "this host has no swap"
            }
            .to_owned(),
            data_directory: facts.data_directory.display().to_string(),
            run_directory: facts.run_directory.display().to_string(),
            network_namespace: namespace,
            ipv4_pool: facts.ipv4_pool.clone(),
            ipv6_prefix: facts.ipv6_prefix.clone(),
            started_at: Some(time_to_wire(facts.started_at)),
            boot_id: facts.boot_id.clone(),
            instances,
            memory_held_bytes: held,
        }))
    }

    async fn doctor(
        &self,
        _request: Request<v1::DoctorRequest>,
    ) -> Result<Response<v1::DoctorResponse>, Status> {
        let facts = Arc::clone(&self.facts);
        let mut checks = tokio::task::spawn_blocking(move || system::doctor(&facts))
            .await
            .map_err(|_| status(&RequestError::Lost))?;
        checks.push(system::check_records(&self.instances.damaged()));
        checks.push(system::check_custody(&self.instances.custody()));
        let stored = store_check(self.store.check().await);
        let checks = checks
            .into_iter()
            .chain(std::iter::once(stored))
            .map(|check| v1::Check {
                name: check.name.to_owned(),
                status: match check.verdict {
                    Verdict::Ok => v1::CheckStatus::Ok,
                    Verdict::Warning => v1::CheckStatus::Warning,
                    Verdict::Failed => v1::CheckStatus::Failed,
                    Verdict::Skipped => v1::CheckStatus::Skipped,
                }
                .into(),
                detail: check.detail,
                advice: check.advice.to_owned(),
            })
            .collect();
        Ok(Response::new(v1::DoctorResponse { checks }))
    }

    async fn check_store(
        &self,
        _request: Request<v1::CheckStoreRequest>,
    ) -> Result<Response<v1::StoreReport>, Status> {
        let report = self.store.check().await.map_err(|error| status(&error))?;
        Ok(Response::new(report_to_wire(&report)))
    }

    async fn back_up_store(
        &self,
        request: Request<v1::BackUpStoreRequest>,
    ) -> Result<Response<v1::BackUpStoreResponse>, Status> {
        let path = PathBuf::from(request.into_inner().path);
        if !path.is_absolute() {
            return Err(status(&FieldError::new("path", "is not absolute")));
        }
        let tally = self.store.back_up(&path).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::BackUpStoreResponse {
            records: tally.records,
            bytes: tally.bytes,
        }))
    }

    async fn drop_quarantined(
        &self,
        request: Request<v1::DropQuarantinedRequest>,
    ) -> Result<Response<v1::DropQuarantinedResponse>, Status> {
        let request = request.into_inner();
        let kind = RecordKind::from_name(&request.kind).ok_or_else(|| {
            status(&FieldError::new(
                "kind",
                "is no kind of record; dormouse store quarantine ls says which there are",
            ))
        })?;
        if kind == RecordKind::Instance
            && let Some(name) = self.instance_of(&request.key)
        {
            let key = request.key;
            return Err(status(&RequestError::RecordNeeded { key, name }));
        }
        self.store
            .discard(kind, &request.key)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(v1::DropQuarantinedResponse {}))
    }

    async fn setup(&self, request: Request<v1::SetupRequest>) -> Result<Response<v1::SetupResponse>, Status> {
        let request = request.into_inner();
        let sleepers = match (request.undo, request.sleepers) {
            (true, _) => 0,
            (false, 0) => self.facts.sleepers,
            (false, wanted) => wanted,
        };
        let data = self.facts.data_directory.clone();
        let change = move || {
            if request.undo {
                setup::undo(&data)
            } else {
                setup::raise(&data, u64::from(sleepers))
            }
        };
        let changed = tokio::task::spawn_blocking(change)
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| status(&error))?;
        let changed = changed
            .into_iter()
            .map(|setting| v1::ChangedSetting {
                path: setting.path.display().to_string(),
                before: setting.before,
                after: setting.after,
            })
            .collect();
        Ok(Response::new(v1::SetupResponse { changed, sleepers }))
    }

    type WatchEventsStream = EventStream;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<EventStream>, Status> {
        let request = request.into_inner();
        let only = match request.instance.as_str() {
            "" => None,
            key => Some(self.instances.find(key).map_err(|error| status(&error))?.id),
        };
        let cursor = match request.after_cursor.as_str() {
            "" => self.events.cursor(),
            given => given.to_owned(),
        };
        let position = self
            .events
            .position(&cursor)
            .ok_or_else(|| status(&FieldError::new("after_cursor", "is none of ours")))?;
        let (sender, receiver) = mpsc::channel(EVENTS);
        let mut tasks = JoinSet::new();
        let api = self.clone();
        tasks.spawn(async move {
            // The client went away: nothing is left to do.
            let last = sender.clone();
            let pumped = api
                .stop
                .run_until_cancelled(api.pump_events(position, only, sender));
            if pumped.await.is_none() {
                // Without room for it the client learns it from the connection.
                drop(last.try_send(Err(status(&InstanceError::ShuttingDown))));
            }
        });
        Ok(Response::new(Box::pin(super::logs::Owned::new(
            ReceiverStream::new(receiver),
            tasks,
        ))))
    }
}

/// The doctor's check of the records.
fn store_check(report: Result<Report, StoreError>) -> Check {
    let (verdict, detail, advice) = match report {
        Err(error) => (
            Verdict::Failed,
            chain(&error),
            "look at the disk under the data directory",
        ),
        Ok(report) if report.is_sound() => (Verdict::Ok, format!("{} records, all sound", report.sound), ""),
        Ok(report) if report.layout_faults.is_empty() => (
            Verdict::Warning,
            format!(
                "{} sound records, {} damaged, {} quarantined, {} of a newer version",
                report.sound,
                report.damaged.len(),
                report.set_aside.len(),
                report.newer.len() + report.unknown_kinds.len(),
            ),
            "dormouse store check says which; dormouse store quarantine rm KIND KEY forgets one of no instance",
        ),
        Ok(report) => (
            Verdict::Failed,
            format!("the database is damaged: {}", report.layout_faults.join("; ")),
            "end the daemon, keep the files and restore a backup: see the runbook",
        ),
    };
    Check {
        name: "store",
        verdict,
        detail,
        advice,
    }
}

fn report_to_wire(report: &Report) -> v1::StoreReport {
    v1::StoreReport {
        sound: report.is_sound(),
        records: report
            .kinds
            .iter()
            .map(|(kind, count)| v1::RecordCount {
                kind: kind.to_string(),
                count: *count,
            })
            .collect(),
        damaged: report.damaged.iter().map(damage_to_wire).collect(),
        quarantined: report.set_aside.iter().map(damage_to_wire).collect(),
        newer: report
            .newer
            .iter()
            .map(|newer| v1::NewerRecord {
                kind: newer.kind.to_string(),
                key: newer.key.to_string(),
                found: newer.found.into(),
                known: newer.known.into(),
            })
            .collect(),
        unknown_kinds: report.unknown_kinds.iter().copied().map(u32::from).collect(),
        layout_faults: report.layout_faults.clone(),
    }
}

fn damage_to_wire(damage: &Damage) -> v1::DamagedRecord {
    v1::DamagedRecord {
        kind: damage.kind.to_string(),
        key: damage.key.to_string(),
        reason: damage.reason.as_str().to_owned(),
    }
}

impl Api {
    /// The instance whose damaged record has this key; it is listed until it is removed.
    fn instance_of(&self, key: &str) -> Option<Name> {
        let damaged = self.instances.damaged();
        let (id, _) = damaged.into_iter().find(|(id, _)| id.to_string() == key)?;
        Some(self.instances.view(id).ok()?.spec.name)
    }
}

type Sent = Result<(), mpsc::error::SendError<Result<v1::Event, Status>>>;

impl Api {
    async fn pump_events(
        &self,
        from: Position,
        only: Option<WorkloadId>,
        out: mpsc::Sender<Result<v1::Event, Status>>,
    ) -> Sent {
        let mut newest = self.events.newest();
        let mut position = match from {
            Position::After(position) => position,
            Position::Foreign => {
                let gap = v1::EventGap { missed: 0 };
                out.send(Ok(self.event(0, None, v1::event::What::Gap(gap))))
                    .await?;
                0
            }
        };
        loop {
            newest.borrow_and_update();
            match self.events.after(position) {
                Found::Gap { missed, resume_after } => {
                    position = resume_after;
                    let gap = v1::EventGap { missed };
                    out.send(Ok(self.event(position, None, v1::event::What::Gap(gap))))
                        .await?;
                    continue;
                }
                Found::Entries(entries) => {
                    for entry in entries {
                        position = entry.number;
                        if let Some(event) = self.entry_to_wire(&entry, only) {
                            out.send(Ok(event)).await?;
                        }
                    }
                }
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return Ok(()) },
                () = out.closed() => return Ok(()),
            }
        }
    }

    fn event(&self, number: u64, entry: Option<&Entry>, what: v1::event::What) -> v1::Event {
        v1::Event {
            cursor: self.events.cursor_of(number),
            at: entry.map(|entry| time_to_wire(entry.at)),
            request_id: entry.map_or_else(String::new, |entry| entry.request_id.clone()),
            what: Some(what),
        }
    }

    fn entry_to_wire(&self, entry: &Entry, only: Option<WorkloadId>) -> Option<v1::Event> {
        let what = match &entry.what {
            Happening::SetAside(damage) => {
                if only.is_some() {
                    return None;
                }
                v1::event::What::Quarantined(damage_to_wire(damage))
            }
            Happening::Instance(event) => {
                if only.is_some_and(|id| id != event.view().id) {
                    return None;
                }
                let extras = Extras {
                    accelerator: self.facts.accelerator.clone(),
                    ..Extras::default()
                };
                v1::event::What::Instance(event_to_wire(event, extras))
            }
            Happening::Image { digest, imported } => {
                if only.is_some() {
                    return None;
                }
                let change = if *imported {
                    v1::ImageChange::Imported
                } else {
                    v1::ImageChange::Deleted
                };
                let image = v1::Image {
                    digest: digest.clone(),
                    ..Default::default()
                };
                v1::event::What::Image(v1::ImageEvent {
                    change: change.into(),
                    image: Some(image),
                })
            }
        };
        Some(self.event(entry.number, Some(entry), what))
    }
}
