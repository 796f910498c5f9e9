//! What the harness asks of the daemon's API.

use std::path::Path;

use anyhow::{Context, Result};
use dormouse_client::{Client, ClientError, v1};
use serde_json::Value;

use super::expect::{ImageFact, InstanceFact, Listing};
use crate::lab::Lab;

/// Everything that the API lists.
pub(crate) fn listing(lab: &Lab) -> Result<Listing> {
    let (instances, images) = lab
        .call(|client| async move { Ok((instances(&client).await?, images(&client).await?)) })
        .context("listing")?;
    let blobs = lab.site().data.join("images/blobs/sha256");
    Ok(Listing {
        instances: instances.into_iter().map(instance_fact).collect(),
        images: images
            .into_iter()
            .map(|image| ImageFact {
                blobs: parts_of(&blobs, &image.digest),
                digest: image.digest,
                names: image.names,
            })
            .collect(),
    })
}

async fn instances(client: &Client) -> Result<Vec<v1::Instance>, ClientError> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListInstancesRequest {
            page_token,
            ..Default::default()
        };
        let page = client.instances().list_instances(request).await?.into_inner();
        all.extend(page.instances);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

async fn images(client: &Client) -> Result<Vec<v1::Image>, ClientError> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListImagesRequest {
            page_token,
            ..Default::default()
        };
        let page = client.images().list_images(request).await?.into_inner();
        all.extend(page.images);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

fn instance_fact(instance: v1::Instance) -> InstanceFact {
    let state = instance.state();
    let addresses = instance.addresses.unwrap_or_default();
    InstanceFact {
        id: instance.id,
        name: instance.name,
        state,
        reason: instance.state_reason,
        addresses: [addresses.ipv4, addresses.ipv6],
        pid: instance.pid,
        generation: instance.generation,
        digest: instance.image_digest,
        monitor: instance.monitor,
    }
}

/// The digests of an image's parts by its manifest (OCI image manifest); itself is one. A manifest that
/// cannot be read explains nothing else, which the census then tells.
fn parts_of(blobs: &Path, digest: &str) -> Vec<String> {
    let hex = digest.trim_start_matches("sha256:");
    let manifest: Value = std::fs::read(blobs.join(hex))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let layers = manifest["layers"].as_array().into_iter().flatten();
    layers
        .chain(std::iter::once(&manifest["config"]))
        .filter_map(|part| part["digest"].as_str().map(str::to_owned))
        .chain(std::iter::once(digest.to_owned()))
        .collect()
}

/// Makes an instance of the benches' server that is not started; returns its id.
pub(crate) fn create(lab: &Lab, name: &str) -> Result<String> {
    let request = v1::CreateInstanceRequest {
        name: name.to_owned(),
        image: "bench:latest".to_owned(),
        memory_bytes: 128 << 20,
        ..Default::default()
    };
    lab.call(|client| async move { Ok(client.instances().create_instance(request).await?.into_inner().id) })
        .with_context(|| format!("creating {name}"))
}
