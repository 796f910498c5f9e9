//! What every area stands on: a private daemon over a scripted virtual machine monitor, a picture of its
//! state before and after each case, and the tally.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse_client::{ClientError, v1};

use crate::build;
use crate::lab::{Lab, Parts};

/// How many cases an area has, and how many went as they should.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Area {
    pub cases: u64,
    pub ok: u64,
}

/// All areas, and the cases that did not go as they should.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub areas: BTreeMap<&'static str, Area>,
    pub failed: Vec<String>,
    pub skipped: Vec<String>,
}

impl Tally {
    /// Counts a case; `fault` says what was wrong with it.
    pub(crate) fn note(&mut self, area: &'static str, name: &str, fault: Option<String>) {
        let counts = self.areas.entry(area).or_default();
        counts.cases += 1;
        match fault {
            None => counts.ok += 1,
            Some(fault) => {
                println!("  NOT OK {area}: {name}: {fault}");
                self.failed.push(format!("{area}: {name}: {fault}"));
            }
        }
    }

    /// Adds another one's cases.
    pub(crate) fn take(&mut self, other: Self) {
        for (area, counts) in other.areas {
            let own = self.areas.entry(area).or_default();
            own.cases += counts.cases;
            own.ok += counts.ok;
        }
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Counts what could not run, and why.
    pub(crate) fn skip(&mut self, area: &'static str, name: &str, why: &str) {
        self.areas.entry(area).or_default();
        println!("  skipped {area}: {name}: {why}");
        self.skipped.push(format!("{area}: {name}: {why}"));
    }
}

/// What the API and the disk have, to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    instances: Vec<String>,
    images: Vec<String>,
    files: Vec<String>,
}

impl Picture {
    /// Whether this is how `before` looks after a sleep whose record could not be written: its number is
    /// used up, and its files stay until the next one replaces them, as nobody knows whether the record
    /// reached the disk.
    pub(crate) fn is_after_an_unwritten_sleep(&self, before: &Self) -> bool {
        let instances = |picture: &Self| -> Vec<String> {
            let lines = picture.instances.iter();
            lines
                .map(|line| line.split(" generation ").next().unwrap_or_default().to_owned())
                .collect()
        };
        let files = |picture: &Self| -> Vec<String> {
            let kept = picture.files.iter().filter(|path| {
                let name = path.rsplit('/').next().unwrap_or_default();
                !name.starts_with("state.") && !name.starts_with("manifest.")
            });
            kept.cloned().collect()
        };
        self.instances != before.instances
            && instances(self) == instances(before)
            && self.images == before.images
            && files(self) == files(before)
    }

    /// What is in one and not in the other.
    pub(crate) fn difference(&self, other: &Self) -> String {
        let mut words = Vec::new();
        for (before, after) in [
            (&self.instances, &other.instances),
            (&self.images, &other.images),
            (&self.files, &other.files),
        ] {
            words.extend(
                before
                    .iter()
                    .filter(|line| !after.contains(line))
                    .map(|line| format!("-{line}")),
            );
            words.extend(
                after
                    .iter()
                    .filter(|line| !before.contains(line))
                    .map(|line| format!("+{line}")),
            );
        }
        words.join(" ")
    }
}

/// The directory of the scripted monitor, which every user may read.
#[derive(Debug)]
pub(crate) struct Scripts {
    directory: tempfile::TempDir,
}

impl Scripts {
    fn place() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("dormouse-hostile-")
            .tempdir_in("/var/tmp")
            .context("making a directory for the monitor")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let program = build::scripted_vmm()?;
        let place = directory.path().join("vmm");
        fs::copy(&program, &place).with_context(|| format!("copying {}", program.display()))?;
        // The daemon keeps the program and runs what it kept: its script is found from there too.
        let script = directory.path().join("script");
        let mut end = File::options().append(true).open(&place)?;
        end.write_all(&[b"\nscript=", script.as_os_str().as_bytes()].concat())?;
        drop(end);
        let scripts = Self { directory };
        scripts.write(&[])?;
        Ok(scripts)
    }

    /// The monitor.
    pub(crate) fn program(&self) -> PathBuf {
        self.directory.path().join("vmm")
    }

    /// From now on the monitor misbehaves as these lines say.
    pub(crate) fn write(&self, lines: &[(&str, &str)]) -> Result<()> {
        let text: String = lines
            .iter()
            .map(|(place, behaviour)| format!("{place} {behaviour}\n"))
            .collect();
        let (file, partial) = (
            self.directory.path().join("script"),
            self.directory.path().join("script.partial"),
        );
        fs::write(&partial, text).context("writing the script")?;
        fs::rename(&partial, &file).context("placing the script")
    }
}

/// The bed.
#[derive(Debug)]
pub(crate) struct Bed {
    pub lab: Lab,
    pub scripts: Scripts,
    pub tally: Tally,
    /// Where the daemon's data are.
    pub data: PathBuf,
    /// Whether only the quick cases are wanted.
    pub short: bool,
}

impl Bed {
    /// Starts a daemon whose monitor is scripted, with variables of its environment besides.
    pub(crate) fn with(short: bool, parts: Parts, environment: &[(&str, &str)]) -> Result<Self> {
        let scripts = Scripts::place()?;
        let mut parts = parts;
        parts.set("DORMOUSE_HYPERVISOR__QEMU", &scripts.program().to_string_lossy());
        parts.set("DORMOUSE_HYPERVISOR__ACCELERATOR", "emulation");
        parts.set("DORMOUSE_GUEST__BOOT_TIMEOUT", "6s");
        for (key, value) in environment {
            parts.set(key, value);
        }
        let lab = Lab::start(parts)?;
        Ok(Self {
            data: lab.disk_directory().to_owned(),
            lab,
            scripts,
            tally: Tally::default(),
            short,
        })
    }

    /// The API's and the disk's state now.
    pub(crate) fn picture(&self) -> Result<Picture> {
        let instances = self.instances()?.into_iter().map(|instance| {
            format!(
                "instance {} {} {} generation {}",
                instance.id,
                instance.name,
                instance.state().as_str_name(),
                instance.generation
            )
        });
        let listed = self.lab.call(|client| async move {
            let request = v1::ListImagesRequest::default();
            Ok(client.images().list_images(request).await?.into_inner())
        })?;
        let images = listed
            .images
            .into_iter()
            .map(|image| format!("image {} {:?} {:?}", image.digest, image.names, image.used_by));
        let mut files = Vec::new();
        for part in ["images", "instances"] {
            tree(&self.data.join(part), &mut files);
        }
        files.sort();
        Ok(Picture {
            instances: instances.collect(),
            images: images.collect(),
            files,
        })
    }

    /// Removes the image that `reference` means.
    pub(crate) fn remove_image(&self, reference: &str) -> Result<()> {
        let request = v1::DeleteImageRequest {
            image: reference.to_owned(),
            ..Default::default()
        };
        self.lab
            .call(|client| async move { Ok(client.images().delete_image(request).await?.into_inner()) })
            .map(drop)
    }

    /// All instances.
    pub(crate) fn instances(&self) -> Result<Vec<v1::Instance>> {
        let listed = self.lab.call(|client| async move {
            let request = v1::ListInstancesRequest::default();
            Ok(client.instances().list_instances(request).await?.into_inner())
        })?;
        Ok(listed.instances)
    }

    /// Runs a case: `work` must end with `want` (codes separated by `|`, or `OK`) and, when it fails, leave
    /// everything as it was; the daemon must serve afterwards.
    pub(crate) fn case<T>(
        &mut self,
        area: &'static str,
        name: &str,
        want: &str,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<()> {
        let before = self.picture()?;
        let outcome = work(self);
        let fault = match self.picture() {
            Err(error) => Some(format!(
                "the daemon does not serve: {error:#}\n{}",
                self.lab.log_tail()
            )),
            Ok(after) => check(want, &outcome).or_else(|| {
                let refused = outcome.is_err();
                (refused && before != after).then(|| format!("left behind: {}", before.difference(&after)))
            }),
        };
        self.tally.note(area, name, fault);
        Ok(())
    }
}

/// Whether an outcome has one of the wanted codes, and what is wrong when not.
pub(crate) fn check<T>(want: &str, outcome: &Result<T>) -> Option<String> {
    let (got, words) = match outcome {
        Ok(_) => ("OK".to_owned(), String::new()),
        Err(error) => (code_of(error), format!("{error:#}")),
    };
    if !want.split('|').any(|code| code == got) {
        return Some(format!("wanted {want}, got {got} {words}"));
    }
    // A code alone tells a person nothing.
    (outcome.is_err() && words.trim().len() < 8).then(|| format!("{got} without words"))
}

/// The code of the daemon's error in a chain, or a word for what it was instead.
pub(crate) fn code_of(error: &anyhow::Error) -> String {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>())
        .map_or_else(|| "(no answer)".to_owned(), |error| error.code().to_owned())
}

/// Files below `directory`. Logs grow as they like, and records have a picture of their own.
fn tree(directory: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tree(&path, out);
        }
        if path.extension().is_none_or(|extension| extension != "log") {
            out.push(path.display().to_string());
        }
    }
}

/// Fails unless root: every case takes namespaces and mounts.
pub(crate) fn need_root() -> Result<()> {
    ensure!(crate::setup::is_root(), "a private daemon takes root");
    Ok(())
}
