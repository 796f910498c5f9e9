//! `image import`, `ls`, `inspect` and `rm`.

use std::process::ExitCode;

use dormouse_client::v1;
use serde_json::{Value, json};

use super::{PAGE_SIZE, each, list, now};
use crate::arguments::{ImageListArguments, ImageNames, ImportArguments};
use crate::failure::Failure;
use crate::session::{Session, request_id};
use crate::{json, table, text};

/// Imports and prints the digest.
pub(crate) async fn import(session: &Session, arguments: ImportArguments) -> Result<(), Failure> {
    // The daemon has another working directory.
    let path = std::path::absolute(&arguments.path).map_err(|error| {
        Failure::new("CLI_PATH", format!("finding {}", arguments.path.display())).because(&error)
    })?;
    let Some(path) = path.to_str() else {
        return Err(Failure::new(
            "CLI_PATH",
            format!("{} is not UTF-8", path.display()),
        ));
    };
    let client = session.connect().await?;
    let request = v1::ImportImageRequest {
        path: path.to_owned(),
        name: arguments.name.unwrap_or_default(),
        request_id: request_id()?,
    };
    let mut phases = session.progress.phases();
    let mut steps = client.images().import_image(request).await?.into_inner();
    while let Some(message) = steps.message().await? {
        match message.step {
            Some(v1::import_image_response::Step::Progress(progress)) => {
                let label = text::word(progress.phase().as_str_name(), "IMPORT_PHASE_");
                phases.update(&label, progress.done_bytes, progress.total_bytes);
            }
            Some(v1::import_image_response::Step::Image(image)) => {
                phases.end();
                let names = if image.names.is_empty() {
                    "no name".to_owned()
                } else {
                    image.names.join(", ")
                };
                session.note(&format!("imported {names}, {}", text::size(image.rootfs_bytes)));
                return if session.json {
                    session.document(&json::image(&image))
                } else {
                    session.line(&image.digest)
                };
            }
            // A step of a newer daemon.
            None => {}
        }
    }
    Err(Failure::new(
        "CLI_IMPORT_CUT",
        "the daemon ended the import without saying how it went",
    )
    .advise("dormouse image ls"))
}

pub(crate) async fn ls(session: &Session, arguments: ImageListArguments) -> Result<(), Failure> {
    let client = session.connect().await?;
    let name = arguments.name.unwrap_or_default();
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListImagesRequest {
            name: name.clone(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.images().list_images(request).await?.into_inner();
        found.extend(page.images);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    if arguments.quiet {
        return found.iter().try_for_each(|image| session.line(&image.digest));
    }
    if session.json {
        return session.document(&Value::Array(found.iter().map(json::image).collect()));
    }
    session.line(&table::images(&found, now()))
}

pub(crate) async fn inspect(session: &Session, names: ImageNames) -> Result<(), Failure> {
    let client = session.connect().await?;
    for image in names.images {
        let found = client
            .images()
            .get_image(v1::GetImageRequest { image })
            .await?
            .into_inner();
        list::print(session, &json::image(&found))?;
    }
    Ok(())
}

pub(crate) async fn rm(session: &Session, names: ImageNames) -> Result<ExitCode, Failure> {
    let client = session.connect().await?;
    let act = |image: String| {
        let mut images = client.images();
        async move {
            let name = image.clone();
            let request = v1::DeleteImageRequest {
                image,
                request_id: request_id()?,
                etag: String::new(),
            };
            let deleted = images.delete_image(request).await?.into_inner();
            if session.json {
                let document = json!({"digest": deleted.digest, "content_removed": deleted.content_removed});
                return session.document(&document);
            }
            session.line(&name)
        }
    };
    Ok(each(session, names.images, act).await)
}
