//! From an index to what is to be unpacked: the manifest for this machine, its configuration, its
//! layers. Reads documents and decides; whoever calls it fetches and verifies their bytes.

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex as OciIndex, ImageManifest, MediaType, Os,
};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::record::ImageConfig;

/// Most layers of an image; the kernel's overlay and other runtimes stop near here too.
pub(crate) const MAX_LAYERS: usize = 128;

/// Most bytes of text in an image's configuration: a guest is told all of it in one message.
pub(crate) const MAX_TEXT: u64 = 512 << 10;

/// Indexes inside of indexes that are followed.
const MAX_DEPTH: u32 = 4;

const REFERENCE_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// A blob as a descriptor names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobName {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
}

/// A layer: the packed blob and the digest of its unpacked archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) blob: BlobName,
    pub(crate) packing: Packing,
    pub(crate) unpacked: Digest,
}

/// An image, resolved.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) manifest: BlobName,
    pub(crate) configuration: BlobName,
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: ImageConfig,
    /// What the layout calls it.
    pub(crate) reference: Option<String>,
}

/// Resolves the image called `wanted` (or the only one) of an index. `fetch` returns the verified
/// bytes of a small blob.
pub(crate) fn resolve(
    index: &[u8],
    wanted: Option<&str>,
    fetch: &mut dyn FnMut(BlobName) -> Result<Vec<u8>, ImageError>,
) -> Result<Resolved, ImageError> {
    let (descriptor, reference) = choose(index, wanted, fetch)?;
    let manifest_name = name_of(&descriptor)?;
    let bytes = fetch(manifest_name)?;
    let manifest = ImageManifest::from_reader(bytes.as_slice()).map_err(unreadable("the manifest"))?;
    let configuration_name = name_of(manifest.config())?;
    let bytes = fetch(configuration_name)?;
    let configuration =
        ImageConfiguration::from_reader(bytes.as_slice()).map_err(unreadable("the configuration"))?;
    check_platform(&configuration)?;
    let layers = layers(&manifest, &configuration)?;
    let config = config(&configuration)?;
    Ok(Resolved {
        manifest: manifest_name,
        configuration: configuration_name,
        layers,
        config,
        reference,
    })
}

fn unreadable<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> ImageError {
    move |error| ImageError::DocumentUnreadable {
        what: what.to_owned(),
        why: error.to_string(),
    }
}

fn inconsistent(what: &str, why: String) -> ImageError {
    ImageError::DocumentUnreadable {
        what: what.to_owned(),
        why,
    }
}

fn name_of(descriptor: &Descriptor) -> Result<BlobName, ImageError> {
    let text = descriptor.digest().to_string();
    let digest = text
        .parse()
        .map_err(|error| inconsistent("a descriptor", format!("{text:?}: {error}")))?;
    Ok(BlobName {
        digest,
        size: descriptor.size(),
    })
}

/// The manifest's descriptor and what the layout calls the image.
fn choose(
    index: &[u8],
    wanted: Option<&str>,
    fetch: &mut dyn FnMut(BlobName) -> Result<Vec<u8>, ImageError>,
) -> Result<(Descriptor, Option<String>), ImageError> {
    let top = OciIndex::from_reader(index).map_err(unreadable("index.json"))?;
    let named: Vec<(&Descriptor, Option<String>)> = top
        .manifests()
        .iter()
        .filter(|descriptor| is_image(descriptor))
        .map(|d| (d, reference(d)))
        .collect();
    let fits = |name: &Option<String>| wanted.is_none() || name.as_deref() == wanted;
    let mut candidates: Vec<_> = named.iter().filter(|(_, name)| fits(name)).collect();
    // One image with several names, or for several machines, is one image.
    if candidates.len() > 1 {
        let ours: Vec<_> = candidates.iter().copied().filter(|(d, _)| is_ours(d)).collect();
        candidates = if ours.is_empty() { candidates } else { ours };
    }
    let Some((first, name)) = candidates.first().copied() else {
        let names = named.into_iter().filter_map(|(_, name)| name).collect::<Vec<_>>();
        return Err(match wanted {
            Some(wanted) if !names.is_empty() => inconsistent(
                "index.json",
                format!("it has no {wanted:?}, only {}", names.join(", ")),
            ),
            Some(_) | None => inconsistent("index.json", "it lists no image".to_owned()),
        });
    };
    if candidates
        .iter()
        .any(|(descriptor, _)| descriptor.digest() != first.digest())
    {
        let names = candidates
            .iter()
            .map(|(d, name)| name.clone().unwrap_or_else(|| d.digest().to_string()));
        return Err(ImageError::ChoiceNeeded {
            names: names.collect(),
        });
    }
    Ok((descend((*first).clone(), fetch)?, name.clone()))
}

/// Follows nested indexes to the manifest for this machine.
fn descend(
    mut descriptor: Descriptor,
    fetch: &mut dyn FnMut(BlobName) -> Result<Vec<u8>, ImageError>,
) -> Result<Descriptor, ImageError> {
    for _ in 0..MAX_DEPTH {
        if !is_index(descriptor.media_type()) {
            return Ok(descriptor);
        }
        let bytes = fetch(name_of(&descriptor)?)?;
        let index = OciIndex::from_reader(bytes.as_slice()).map_err(unreadable("an image index"))?;
        let images: Vec<&Descriptor> = index.manifests().iter().filter(|d| is_image(d)).collect();
        let ours = images.iter().find(|d| is_ours(d));
        descriptor = match ours {
            Some(found) => (**found).clone(),
            None => return Err(foreign(images.iter().map(|d| platform_text(d)).collect())),
        };
    }
    Err(ImageError::LimitExceeded {
        what: "indexes inside of indexes",
        limit: MAX_DEPTH.into(),
    })
}

fn is_index(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageIndex => true,
        MediaType::Other(text) => text == "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => false,
    }
}

/// Whether a descriptor is an image, not a statement about one that a builder put beside it.
fn is_image(descriptor: &Descriptor) -> bool {
    let annotations = descriptor.annotations().as_ref();
    !annotations.is_some_and(|all| all.contains_key("vnd.docker.reference.type"))
}

/// A descriptor without a platform may be ours; its configuration decides.
fn is_ours(descriptor: &Descriptor) -> bool {
    descriptor
        .platform()
        .as_ref()
        .is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == our_architecture())
}

fn reference(descriptor: &Descriptor) -> Option<String> {
    let annotations = descriptor.annotations().as_ref()?;
    REFERENCE_ANNOTATIONS
        .iter()
        .find_map(|key| annotations.get(*key))
        .cloned()
}

fn our_architecture() -> Arch {
    match std::env::consts::ARCH {
        "aarch64" => Arch::ARM64,
        _ => Arch::Amd64,
    }
}

fn platform_text(descriptor: &Descriptor) -> String {
    descriptor.platform().as_ref().map_or_else(
        || "an unknown platform".to_owned(),
        |platform| format!("{}/{}", platform.os(), platform.architecture()),
    )
}

fn foreign(offered: Vec<String>) -> ImageError {
    let offered = if offered.is_empty() {
        "nothing".to_owned()
    } else {
        offered.join(", ")
    };
    ImageError::PlatformForeign {
        wanted: format!("linux/{}", our_architecture()),
        offered,
    }
}

fn check_platform(configuration: &ImageConfiguration) -> Result<(), ImageError> {
    if *configuration.os() == Os::Linux && *configuration.architecture() == our_architecture() {
        return Ok(());
    }
    Err(foreign(vec![format!(
        "{}/{}",
        configuration.os(),
        configuration.architecture()
    )]))
}

fn layers(manifest: &ImageManifest, configuration: &ImageConfiguration) -> Result<Vec<Layer>, ImageError> {
    let unpacked = configuration.rootfs().diff_ids();
    if manifest.layers().len() > MAX_LAYERS {
        return Err(ImageError::LimitExceeded {
            what: "layers",
            limit: MAX_LAYERS as u64,
        });
    }
    if unpacked.len() != manifest.layers().len() {
        let (layers, ids) = (manifest.layers().len(), unpacked.len());
        let why = format!("the manifest has {layers} layers and the configuration {ids}");
        return Err(inconsistent("the manifest", why));
    }
    let pairs = manifest.layers().iter().zip(unpacked);
    pairs
        .map(|(descriptor, unpacked)| {
            let blob = name_of(descriptor)?;
            let unpacked = unpacked
                .parse()
                .map_err(|error| inconsistent("the configuration", format!("{unpacked:?}: {error}")))?;
            Ok(Layer {
                blob,
                packing: packing(descriptor.media_type(), &blob)?,
                unpacked,
            })
        })
        .collect()
}

fn packing(media_type: &MediaType, blob: &BlobName) -> Result<Packing, ImageError> {
    let text = media_type.to_string();
    let unsupported = |advice| ImageError::MediaUnsupported {
        digest: blob.digest.to_string(),
        media_type: text.clone(),
        advice,
    };
    match text.as_str() {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Packing::Plain)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        text if text.ends_with("zstd") => Err(unsupported("pack its layers with gzip")),
        text if text.contains("nondistributable") || text.contains("foreign") => {
            Err(unsupported("its contents are elsewhere; pack the layer itself"))
        }
        _ => Err(unsupported("layers are tar archives, plain or gzip")),
    }
}

fn config(configuration: &ImageConfiguration) -> Result<ImageConfig, ImageError> {
    let Some(config) = configuration.config() else {
        return Ok(ImageConfig::default());
    };
    let wrong = |why: String| inconsistent("the configuration", why);
    let variables = config.env().iter().flatten().map(|variable| {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        if name.is_empty() {
            return Err(wrong(format!("the variable {variable:?} has no name")));
        }
        Ok((name.to_owned(), value.to_owned()))
    });
    let found = ImageConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
        environment: variables.collect::<Result<_, _>>()?,
        working_directory: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config
            .stop_signal()
            .as_deref()
            .map_or(Ok(0), stop_signal)
            .map_err(wrong)?,
    };
    let texts = found
        .entrypoint
        .iter()
        .chain(&found.command)
        .chain([&found.working_directory, &found.user]);
    let mut texts = texts.chain(found.environment.iter().flat_map(|(name, value)| [name, value]));
    if let Some(text) = texts.find(|text| text.contains('\0')) {
        return Err(wrong(format!("{text:?} has a NUL byte")));
    }
    drop(texts);
    if text_bytes(&found) > MAX_TEXT {
        return Err(ImageError::LimitExceeded {
            what: "bytes of arguments and variables",
            limit: MAX_TEXT,
        });
    }
    Ok(found)
}

/// All text of a configuration; each text counts a few bytes more, which is what it takes on the way.
fn text_bytes(config: &ImageConfig) -> u64 {
    const EACH: u64 = 8;
    let arguments = config.entrypoint.iter().chain(&config.command);
    let variables = config.environment.iter().flat_map(|(name, value)| [name, value]);
    arguments
        .chain(variables)
        .chain([&config.working_directory, &config.user])
        .map(|text| EACH + text.len() as u64)
        .sum()
}

/// A signal's number from its name, with or without `SIG`, or its number; real-time ones as
/// `SIGRTMIN+n`, counted from 34 as glibc does.
fn stop_signal(text: &str) -> Result<u32, String> {
    let wrong = || format!("the stop signal {text:?} is no signal");
    if text.is_empty() {
        return Ok(0);
    }
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(wrong())
        };
    }
    let name = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        let above = rest
            .strip_prefix('+')
            .map_or(Ok(0), str::parse::<u32>)
            .map_err(|_| wrong())?;
        return if above <= 30 && (rest.is_empty() || rest.starts_with('+')) {
            Ok(34 + above)
        } else {
            Err(wrong())
        };
    }
    let signal: nix::sys::signal::Signal = name.parse().map_err(|_| wrong())?;
    u32::try_from(signal as i32).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals() {
        for (text, want) in [
            ("", Some(0)),
            ("SIGQUIT", Some(3)),
            ("TERM", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMIN", Some(34)),
            ("0", None),
            ("65", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMINX", None),
            ("SIGNOTHING", None),
        ] {
            assert_eq!(stop_signal(text).ok(), want, "{text:?}");
        }
    }
}
