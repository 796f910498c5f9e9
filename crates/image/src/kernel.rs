//! The guest kernel: a directory with a kernel image and the modules that a guest needs, taken from
//! a Debian kernel package. Nothing is installed on the host.
//!
//! ```text
//! <data>/guest/<release>/vmlinuz
//!                        release         one line
//!                        modules/*.ko
//!                        modules.list    file names in the order in which they load
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::blobs::{sync_directory, temporary_beside};
use crate::error::ImageError;
use crate::modinfo::{canonical, depends};
use crate::tool::DPKG_DEB;

/// The modules that a guest needs, by their canonical names; what they depend on comes along. ext4
/// is built into the kernels that are supported.
pub const MODULES: [&str; 7] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio_rng",
    "overlay",
];

/// No kernel image or module is larger.
const MAX_FILE: u64 = 256 << 20;

/// Unpacking a package takes about two seconds a pass.
const UNPACK_LIMIT: Duration = Duration::from_secs(120);

const KERNEL_FILE: &str = "vmlinuz";
const RELEASE_FILE: &str = "release";
const MODULE_DIRECTORY: &str = "modules";
const MODULE_LIST: &str = "modules.list";

/// A guest kernel on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    release: String,
    image: PathBuf,
    modules: Vec<PathBuf>,
}

impl GuestKernel {
    /// The kernel's release, such as `6.1.0-56-cloud-amd64`; empty when its directory does not say.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The kernel image.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The modules in the order in which they load.
    #[must_use]
    pub fn modules(&self) -> &[PathBuf] {
        &self.modules
    }

    /// Finds the kernel: in `configured` when set, else the newest one unpacked below `data`.
    ///
    /// # Errors
    /// [`ImageError::KernelMissing`] when there is none.
    pub fn locate(data: &Path, configured: Option<&Path>) -> Result<Self, ImageError> {
        if let Some(directory) = configured {
            return Self::open(directory);
        }
        let parent = data.join("guest");
        let missing = || ImageError::KernelMissing { path: parent.clone() };
        let entries = fs::read_dir(&parent).map_err(|_| missing())?;
        let releases = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.join(KERNEL_FILE).is_file());
        let newest = releases.max_by_key(|path| release_order(&path.to_string_lossy()));
        Self::open(&newest.ok_or_else(missing)?)
    }

    /// Opens a directory with `vmlinuz` and, unless everything is built in, `modules/`. Without a
    /// `modules.list` the order is computed.
    ///
    /// # Errors
    /// [`ImageError::KernelMissing`] or [`ImageError::ModuleUnusable`].
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        let image = directory.join(KERNEL_FILE);
        if !image.is_file() {
            return Err(ImageError::KernelMissing {
                path: directory.to_owned(),
            });
        }
        let release = fs::read_to_string(directory.join(RELEASE_FILE))
            .unwrap_or_default()
            .trim()
            .to_owned();
        let place = directory.join(MODULE_DIRECTORY);
        let list = directory.join(MODULE_LIST);
        let names = if list.is_file() {
            let text = fs::read_to_string(&list).map_err(ImageError::io("read", &list))?;
            text.lines().map(str::to_owned).collect()
        } else if place.is_dir() {
            order_of(&place)?
        } else {
            Vec::new()
        };
        let modules: Vec<PathBuf> = names.iter().map(|name| place.join(name)).collect();
        match modules.iter().find(|module| !module.is_file()) {
            Some(module) => Err(unusable(&module.to_string_lossy(), "it is listed and not there")),
            None => Ok(Self {
                release,
                image,
                modules,
            }),
        }
    }

    /// Takes the kernel image and the modules of [`MODULES`] from a Debian kernel package into
    /// `<data>/guest/<release>`. A release that is there already is returned as it is.
    ///
    /// Blocking; takes seconds. The directory appears complete or not at all.
    ///
    /// # Errors
    /// [`ImageError::KernelUnusable`] or [`ImageError::ModuleUnusable`] when the package lacks
    /// something, or that of a file.
    pub fn unpack_package(package: &Path, data: &Path) -> Result<Self, ImageError> {
        let parent = data.join("guest");
        fs::create_dir_all(&parent).map_err(ImageError::io("make the directory", &parent))?;
        let survey = survey(package)?;
        let target = parent.join(&survey.release);
        let durable = || {
            sync_directory(&parent)?;
            sync_directory(data)
        };
        if target.join(KERNEL_FILE).is_file() {
            durable()?;
            return Self::open(&target);
        }
        let staging = temporary_beside(&target);
        let unpacked = extract(package, &survey, &staging).and_then(|()| {
            match fs::rename(&staging, &target) {
                // Somebody else was faster with the same release.
                Err(_) if target.join(KERNEL_FILE).is_file() => Ok(()),
                renamed => renamed.map_err(ImageError::io("place", &target)),
            }
        });
        // Gone after the rename; otherwise what is left of a failure.
        let _left = fs::remove_dir_all(&staging);
        unpacked?;
        durable()?;
        Self::open(&target)
    }
}

/// The numbers in a release, for comparing: 6.1.0-9 comes before 6.1.0-56.
fn release_order(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn unusable(module: &str, why: &str) -> ImageError {
    ImageError::ModuleUnusable {
        module: module.to_owned(),
        why: why.to_owned(),
    }
}

/// What a package has: its release, and of each module the file name and what it needs.
struct Survey {
    release: String,
    modules: BTreeMap<String, Module>,
}

struct Module {
    file_name: String,
    depends: Vec<String>,
}

/// The wanted modules and all that they need, each after what it needs.
fn loading_order(modules: &BTreeMap<String, Module>, wanted: &[&str]) -> Result<Vec<String>, ImageError> {
    /// Depth first; a name that is being visited already closes a circle and is left to its caller,
    /// so this ends on any graph.
    fn visit(
        name: &str,
        modules: &BTreeMap<String, Module>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ImageError> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let module = modules
            .get(name)
            .ok_or_else(|| unusable(name, "the kernel does not have it as a module"))?;
        for needed in &module.depends {
            visit(needed, modules, seen, order)?;
        }
        order.push(module.file_name.clone());
        Ok(())
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(name, modules, &mut seen, &mut order)?;
    }
    Ok(order)
}

/// The order of the modules in a directory that came without a list: of those of [`MODULES`] that
/// are there, because the others may be built in.
fn order_of(place: &Path) -> Result<Vec<String>, ImageError> {
    let mut modules = BTreeMap::new();
    for entry in fs::read_dir(place)
        .map_err(ImageError::io("list", place))?
        .flatten()
    {
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = file_name.strip_suffix(".ko") else {
            continue;
        };
        let bytes = fs::read(entry.path()).map_err(ImageError::io("read", &entry.path()))?;
        let depends = depends(&bytes).map_err(|why| unusable(name, why))?;
        modules.insert(
            canonical(name),
            Module {
                file_name: file_name.clone(),
                depends,
            },
        );
    }
    let wanted: Vec<&str> = MODULES
        .into_iter()
        .filter(|name| modules.contains_key(*name))
        .collect();
    loading_order(&modules, &wanted)
}

/// What an entry of the package is to us.
enum Part<'a> {
    Image { release: &'a str },
    Module { file_name: &'a str },
    Other,
}

fn part(path: &str) -> Part<'_> {
    let path = path.trim_start_matches("./");
    let is_plain = |text: &str| !text.is_empty() && !text.contains('/') && text != "..";
    if let Some(release) = path
        .strip_prefix("boot/vmlinuz-")
        .filter(|release| is_plain(release))
    {
        return Part::Image { release };
    }
    let in_modules = path.contains("lib/modules/");
    match path.rsplit('/').next() {
        Some(file_name) if in_modules && file_name.ends_with(".ko") => Part::Module { file_name },
        Some(_) | None => Part::Other,
    }
}

fn survey(package: &Path) -> Result<Survey, ImageError> {
    let (mut release, mut modules, mut compressed) = (None, BTreeMap::new(), false);
    walk(package, |path, contents| {
        match part(path) {
            Part::Image { release: found } => release = Some(found.to_owned()),
            Part::Module { file_name } => {
                let name = canonical(file_name.trim_end_matches(".ko"));
                let bytes = read_limited(contents)?;
                let depends =
                    depends(&bytes).map_err(|why| io::Error::other(format!("{file_name}: {why}")))?;
                modules.insert(
                    name,
                    Module {
                        file_name: file_name.to_owned(),
                        depends,
                    },
                );
            }
            Part::Other => compressed |= path.ends_with(".ko.xz") || path.ends_with(".ko.zst"),
        }
        Ok(())
    })?;
    let wrong = |why: &str| ImageError::KernelUnusable {
        path: package.to_owned(),
        why: why.to_owned(),
    };
    if compressed && modules.is_empty() {
        return Err(wrong(
            "its modules are compressed; use a kernel of Debian 12, or unpack them and set the path",
        ));
    }
    let release = release.ok_or_else(|| wrong("it has no boot/vmlinuz-RELEASE"))?;
    Ok(Survey { release, modules })
}

fn extract(package: &Path, survey: &Survey, staging: &Path) -> Result<(), ImageError> {
    let order = loading_order(&survey.modules, &MODULES)?;
    let place = staging.join(MODULE_DIRECTORY);
    fs::create_dir_all(&place).map_err(ImageError::io("make the directory", &place))?;
    walk(package, |path, contents| match part(path) {
        Part::Image { .. } => write_synced(&staging.join(KERNEL_FILE), &read_limited(contents)?),
        Part::Module { file_name } if order.iter().any(|wanted| wanted == file_name) => {
            write_synced(&place.join(file_name), &read_limited(contents)?)
        }
        Part::Module { .. } | Part::Other => Ok(()),
    })?;
    let write = |name: &str, text: String| {
        let path = staging.join(name);
        write_synced(&path, text.as_bytes()).map_err(ImageError::io("write", &path))
    };
    write(MODULE_LIST, order.join("\n") + "\n")?;
    write(RELEASE_FILE, format!("{}\n", survey.release))?;
    // The names too, before the one that makes all of it count.
    sync_directory(&place)?;
    sync_directory(staging)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::File::open(path)?.sync_all()
}

fn read_limited(contents: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    contents.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Calls `visit` with each regular file of a Debian package.
fn walk(
    package: &Path,
    mut visit: impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> Result<(), ImageError> {
    let wrong = |error: &dyn std::fmt::Display| ImageError::KernelUnusable {
        path: package.to_owned(),
        why: error.to_string(),
    };
    let mut command = DPKG_DEB.command()?;
    command
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|error| wrong(&error))?;
    let pipe = child
        .stdout
        .take()
        .ok_or_else(|| wrong(&"dpkg-deb has no output"))?;
    let mut archive = tar::Archive::new(Deadline {
        pipe,
        at: Instant::now() + UNPACK_LIMIT,
    });
    let walked = archive.entries().and_then(|entries| {
        for entry in entries {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                let path = entry.path()?.to_string_lossy().into_owned();
                visit(&path, &mut entry)?;
            }
        }
        Ok(())
    });
    // The rest of the archive is padding; a reader that leaves ends the writer.
    drop(archive);
    if walked.is_err() {
        let _gone = child.kill();
    }
    let status = child.wait().map_err(|error| wrong(&error))?;
    walked.map_err(|error| wrong(&error))?;
    // A writer that we left behind its last entry may die of the closed pipe: all was read.
    let cut_off = std::os::unix::process::ExitStatusExt::signal(&status) == Some(nix::libc::SIGPIPE);
    if status.success() || cut_off {
        Ok(())
    } else {
        Err(wrong(&format!("dpkg-deb failed with {status}")))
    }
}

/// A pipe whose reader does not wait for ever.
struct Deadline {
    pipe: ChildStdout,
    at: Instant,
}

impl Read for Deadline {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.at.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], timeout)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => self.pipe.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &[&str]) -> (String, Module) {
        let depends = depends.iter().map(|&name| name.to_owned()).collect();
        (
            name.to_owned(),
            Module {
                file_name: format!("{name}.ko"),
                depends,
            },
        )
    }

    #[test]
    fn modules_load_after_what_they_need() {
        let modules = BTreeMap::from([
            module("net", &["failover", "ring"]),
            module("failover", &[]),
            module("ring", &["core"]),
            module("core", &[]),
            module("a", &["b"]),
            module("b", &["a"]),
        ]);
        let order = loading_order(&modules, &["ring", "net"]).unwrap();
        assert_eq!(order, ["core.ko", "ring.ko", "failover.ko", "net.ko"]);
        assert_eq!(
            loading_order(&modules, &["a"]).unwrap(),
            ["b.ko", "a.ko"],
            "a circle ends"
        );
        assert!(matches!(
            loading_order(&modules, &["gone"]),
            Err(ImageError::ModuleUnusable { .. })
        ));
    }

    #[test]
    fn newer_releases_compare_greater() {
        assert!(release_order("6.1.0-56-cloud") > release_order("6.1.0-9-cloud"));
        assert!(release_order("6.10.0-1") > release_order("6.9.0-99"));
    }

    #[test]
    fn entries_are_told_apart() {
        assert!(matches!(
            part("./boot/vmlinuz-6.1"),
            Part::Image { release: "6.1" }
        ));
        assert!(matches!(part("./boot/vmlinuz-../../x"), Part::Other));
        assert!(matches!(
            part("./lib/modules/6.1/kernel/a/b-c.ko"),
            Part::Module { file_name: "b-c.ko" }
        ));
        assert!(matches!(part("./boot/config-6.1"), Part::Other));
    }

    #[test]
    fn a_directory_without_a_kernel_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let error = GuestKernel::locate(directory.path(), None).unwrap_err();
        assert!(matches!(error, ImageError::KernelMissing { .. }), "{error}");
        let junk = directory.path().join("junk.deb");
        fs::write(&junk, b"not a package").unwrap();
        if DPKG_DEB.command().is_err() {
            println!("skipped: a_directory_without_a_kernel_is_said: no dpkg-deb");
            return;
        }
        let error = GuestKernel::unpack_package(&junk, directory.path()).unwrap_err();
        assert!(matches!(error, ImageError::KernelUnusable { .. }), "{error}");
        assert_eq!(fs::read_dir(directory.path().join("guest")).unwrap().count(), 0);
    }
}
