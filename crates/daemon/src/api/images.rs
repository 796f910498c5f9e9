//! ImageService.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use dormouse_image::{Digest, ImageError, ImageName, ImageRecord, Phase, Progress};
use dormouse_proto::v1;
use dormouse_proto::v1::image_service_server::ImageService;
use dormouse_store::Batch;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::time_to_wire;
use super::logs::Owned;
use super::page::Page;
use super::refusal::FieldError;
use super::repeats::{RequestRecord, Ticket};
use super::request;
use super::status::status;
use crate::events::Happening;

/// Reports of an import that may wait for a slow client; more are left out.
const REPORTS: usize = 8;

/// Least time between two reports of one phase.
const PACE: Duration = Duration::from_millis(250);

type Reports = mpsc::Sender<Result<v1::ImportImageResponse, Status>>;
type ImportStream = Pin<Box<dyn Stream<Item = Result<v1::ImportImageResponse, Status>> + Send>>;

impl Api {
    fn image_to_wire(&self, record: &ImageRecord) -> v1::Image {
        let digest = record.digest.to_string();
        let used_by = self
            .instances
            .users_of(&digest)
            .iter()
            .map(ToString::to_string)
            .collect();
        let config = &record.config;
        v1::Image {
            digest,
            names: vec![record.name.to_string()],
            layers_bytes: record.size.0,
            rootfs_bytes: record.rootfs_size.0,
            layer_count: u32::try_from(record.blobs.len().saturating_sub(2)).unwrap_or(u32::MAX),
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            entrypoint: config.entrypoint.clone(),
            command: config.command.clone(),
            environment: config
                .environment
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            working_directory: config.working_directory.clone(),
            user: config.user.clone(),
            imported_at: Some(time_to_wire(record.imported)),
            etag: self.image_etag(record),
            used_by,
            ..v1::Image::default()
        }
    }

    /// Changes with every change of an image that a client can see: its record, and who uses it.
    fn image_etag(&self, record: &ImageRecord) -> String {
        let mut hash = Sha256::new_with_prefix(record.encode());
        for id in self.instances.users_of(&record.digest.to_string()) {
            hash.update(id.bits().to_be_bytes());
        }
        let hash = hash.finalize();
        hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The image that an earlier run of the request has imported.
    async fn imported(&self, past: &RequestRecord) -> Option<ImageRecord> {
        let digest = String::from_utf8(past.answer.clone()).ok()?;
        let named = self.images.find(past.target.clone()).await.ok();
        match named.filter(|record| record.digest.to_string() == digest) {
            Some(record) => Some(record),
            None => self.images.find(digest).await.ok(),
        }
    }

    fn image_happened(&self, digest: &Digest, imported: bool) {
        let what = Happening::Image {
            digest: digest.to_string(),
            imported,
        };
        self.events.push(self.instances.now(), what);
    }
}

impl Api {
    /// Imports an image, reporting to a client; taken back when the client goes away or the daemon ends.
    async fn import_once(
        &self,
        path: PathBuf,
        name: Option<ImageName>,
        ticket: Ticket,
        reports: Reports,
    ) -> Result<v1::ImportImageResponse, Status> {
        let mut last: Option<(Phase, Instant)> = None;
        let stop = self.stop.clone();
        let progress = move |progress: Progress| {
            if stop.is_cancelled() {
                return ControlFlow::Break(());
            }
            let due = last.is_none_or(|(phase, at)| phase != progress.phase || at.elapsed() >= PACE);
            if due {
                last = Some((progress.phase, Instant::now()));
                // A client that reads slowly misses reports; one that went away takes the import back.
                if let Err(mpsc::error::TrySendError::Closed(_)) =
                    reports.try_send(Ok(progress_to_wire(progress)))
                {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        };
        let along = move |record: &ImageRecord| {
            ticket.done(&record.name.to_string(), record.digest.to_string().into_bytes())
        };
        let record = self
            .images
            .import(path, name, self.instances.now(), progress, along)
            .await
            .map_err(|error| status(&error))?;
        self.image_happened(&record.digest, true);
        Ok(self.imported_to_wire(&record))
    }

    fn imported_to_wire(&self, record: &ImageRecord) -> v1::ImportImageResponse {
        let image = self.image_to_wire(record);
        v1::ImportImageResponse {
            step: Some(v1::import_image_response::Step::Image(image)),
        }
    }

    /// Removes an image.
    async fn delete_image_once(
        self,
        request: v1::DeleteImageRequest,
        ticket: Ticket,
    ) -> Result<(v1::DeleteImageResponse, Batch), Status> {
        if let Some(past) = ticket.past() {
            // Ours, and its checksum was right.
            let answer = v1::DeleteImageResponse::decode(past.answer.as_slice());
            return Ok((answer.unwrap_or_default(), Batch::new()));
        }
        let api = self.clone();
        // Asked at the last moment: an instance that is being made has its lease by then, or finds that the
        // image is gone.
        let free = move |record: &ImageRecord| {
            let now = api.image_etag(record);
            if !request.etag.is_empty() && request.etag != now {
                return Err(ImageError::Changed {
                    reference: record.name.to_string(),
                    now,
                    sent: request.etag.clone(),
                });
            }
            Ok(api.instances.users_of(&record.digest.to_string()).is_empty())
        };
        let answer = |record: &ImageRecord, content_removed| v1::DeleteImageResponse {
            digest: record.digest.to_string(),
            content_removed,
        };
        let along = move |record: &ImageRecord, gone: bool| {
            let answer = answer(record, gone).encode_to_vec();
            ticket.done(&record.name.to_string(), answer)
        };
        let (record, content_removed) = self
            .images
            .remove(request.image, free, along)
            .await
            .map_err(|error| status(&error))?;
        self.image_happened(&record.digest, false);
        Ok((answer(&record, content_removed), Batch::new()))
    }
}

fn progress_to_wire(progress: Progress) -> v1::ImportImageResponse {
    let phase = match progress.phase {
        Phase::Copying => v1::ImportPhase::Reading,
        Phase::Unpacking => v1::ImportPhase::Unpacking,
        Phase::Building => v1::ImportPhase::Building,
    };
    let report = v1::ImportProgress {
        phase: phase.into(),
        done_bytes: progress.done,
        total_bytes: progress.total,
    };
    v1::ImportImageResponse {
        step: Some(v1::import_image_response::Step::Progress(report)),
    }
}

#[tonic::async_trait]
impl ImageService for Api {
    type ImportImageStream = ImportStream;

    async fn import_image(
        &self,
        request: Request<v1::ImportImageRequest>,
    ) -> Result<Response<ImportStream>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("ImportImage", id, &request)?;
        let path = PathBuf::from(&request.path);
        if !path.is_absolute() {
            return Err(status(&FieldError::new(
                "path",
                "is not absolute: the daemon has another directory",
            )));
        }
        let name: Option<ImageName> = match request.name.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error: ImageError| status(&error))?),
        };
        let (ticket, streaming) = self.repeats.streaming(asked).await?;
        let (sender, receiver) = mpsc::channel(REPORTS);
        let mut tasks = JoinSet::new();
        let api = self.clone();
        tasks.spawn(request::carried(async move {
            let _streaming = streaming;
            let last = match ticket.past() {
                Some(past) => match api.imported(past).await {
                    Some(record) => Ok(api.imported_to_wire(&record)),
                    None => Err(ticket.gone(&past.target)),
                },
                None => api.import_once(path, name, ticket, sender.clone()).await,
            };
            drop(sender.send(last).await);
        }));
        Ok(Response::new(Box::pin(Owned::new(
            ReceiverStream::new(receiver),
            tasks,
        ))))
    }

    async fn get_image(&self, request: Request<v1::GetImageRequest>) -> Result<Response<v1::Image>, Status> {
        let record = self
            .images
            .find(request.into_inner().image)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(self.image_to_wire(&record)))
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let mut request = request.into_inner();
        let (size, token) = (
            std::mem::take(&mut request.page_size),
            std::mem::take(&mut request.page_token),
        );
        let page = Page::new("ListImages", &request, size, &token)?;
        let mut all = self.images.list().await.map_err(|error| status(&error))?;
        all.retain(|record| record.name.to_string().contains(&request.name));
        all.sort_by_key(|record| record.name.to_string());
        let (page, next_page_token) = page.cut(all, |record| record.name.to_string());
        let images = page.iter().map(|record| self.image_to_wire(record)).collect();
        Ok(Response::new(v1::ListImagesResponse {
            images,
            next_page_token,
        }))
    }

    async fn delete_image(
        &self,
        request: Request<v1::DeleteImageRequest>,
    ) -> Result<Response<v1::DeleteImageResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let asked = self.asked("DeleteImage", id, &request)?;
        let api = self.clone();
        let work = move |ticket| api.delete_image_once(request, ticket);
        self.repeats.once(asked, work).await.map(Response::new)
    }
}
