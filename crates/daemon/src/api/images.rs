//! ImageService.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::time::{Duration, Instant};

use dormouse_image::{Digest, ImageName, ImageRecord, Phase, Progress};
use dormouse_proto::v1;
use dormouse_proto::v1::image_service_server::ImageService;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{FieldError, time_to_wire};
use super::logs::Owned;
use super::status::status;
use super::{Api, page};
use crate::events::Happening;

/// Reports of an import that may wait for a slow client; more are left out.
const REPORTS: usize = 8;

/// Least time between two reports of one phase.
const PACE: Duration = Duration::from_millis(250);

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
            used_by,
            ..v1::Image::default()
        }
    }

    /// Digests that instances use.
    fn used_images(&self) -> BTreeSet<Digest> {
        self.instances
            .list()
            .iter()
            .filter_map(|view| view.image_digest.parse().ok())
            .collect()
    }

    fn image_happened(&self, digest: &Digest, imported: bool) {
        let what = Happening::Image {
            digest: digest.to_string(),
            imported,
        };
        self.events.push(self.instances.now(), what);
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
        let request = request.into_inner();
        let path = std::path::PathBuf::from(&request.path);
        if !path.is_absolute() {
            return Err(status(&FieldError::new(
                "path",
                "is not absolute: the daemon has another directory",
            )));
        }
        let name: Option<ImageName> = match request.name.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|error: dormouse_image::ImageError| status(&error))?,
            ),
        };
        let (sender, receiver) = mpsc::channel(REPORTS);
        let mut tasks = JoinSet::new();
        let (api, reports) = (self.clone(), sender.clone());
        tasks.spawn(async move {
            let mut last: Option<(Phase, Instant)> = None;
            let stop = api.stop.clone();
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
            let outcome = api.images.import(path, name, api.instances.now(), progress).await;
            let last = match outcome {
                Ok(record) => {
                    api.image_happened(&record.digest, true);
                    let image = api.image_to_wire(&record);
                    Ok(v1::ImportImageResponse {
                        step: Some(v1::import_image_response::Step::Image(image)),
                    })
                }
                Err(error) => Err(status(&error)),
            };
            drop(sender.send(last).await);
        });
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
        let request = request.into_inner();
        let mut all = self.images.list().await.map_err(|error| status(&error))?;
        all.retain(|record| record.name.to_string().contains(&request.name));
        all.sort_by_key(|record| record.name.to_string());
        let (page, next_page_token) = page::cut(
            all,
            |record| record.name.to_string(),
            request.page_size,
            &request.page_token,
        )?;
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
        let request = request.into_inner();
        let api = self.clone();
        let work = async move {
            let used = api.used_images();
            let (record, content_removed) = api
                .images
                .remove(request.image.clone(), used)
                .await
                .map_err(|error| status(&error))?;
            api.image_happened(&record.digest, false);
            Ok(v1::DeleteImageResponse {
                digest: record.digest.to_string(),
                content_removed,
            })
        };
        self.repeats
            .once("DeleteImage", &request.request_id, work)
            .await
            .map(Response::new)
    }
}
