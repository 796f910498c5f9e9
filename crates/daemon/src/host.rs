//! What the daemon makes on its host before anything runs: directories, and a tmpfs of its own for the
//! memory of running guests. All of it bears our mark and outlives the daemon: guests do.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dormouse_model::{Bytes, Fault, Kind};
use dormouse_sys::netns::{Namespace, NamespaceError};
use nix::mount::{MsFlags, mount};

use crate::config::Config;

/// The source name of the tmpfs: how a sweep, and a person, know whose it is.
pub const RAM_MOUNT_SOURCE: &str = "dormouse-ram";

/// What could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A directory.
    #[error("making the directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tmpfs.
    #[error("mounting a tmpfs for guest memory at {path}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's name for this boot.
    #[error("reading this boot's id")]
    BootId {
        /// Why.
        source: io::Error,
    },
    /// The API's socket.
    #[error("binding the API's socket {path}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Fault for HostError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }
    fn code(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "HOST_DIRECTORY",
            Self::Mount { .. } => "HOST_MOUNT",
            Self::BootId { .. } => "HOST_BOOT_ID",
            Self::Socket { .. } => "HOST_SOCKET",
        }
    }
}

/// A short name that no other daemon of this host has: 8 hexadecimal digits of its data directory.
#[must_use]
pub fn mark(data: &Path) -> String {
    // FNV-1a, 32 bits: any hash that never changes would do.
    let hash = data
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    format!("{hash:08x}")
}

/// The kernel's name for this boot.
///
/// # Errors
/// Without /proc.
pub fn boot_id() -> Result<String, HostError> {
    dormouse_sys::clock::boot_id().map_err(|source| HostError::BootId { source })
}

/// Makes the directories and the tmpfs; returns where the tmpfs is.
///
/// # Errors
/// When one cannot be made; those made stay.
pub fn prepare(config: &Config) -> Result<PathBuf, HostError> {
    prepare_data(config)?;
    directory(&config.run_directory, 0o755)?;
    let ram = ram(config);
    directory(&ram, 0o700)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !is_mounted(&mounts, &ram) {
        mount_ram(&ram, config.tmpfs_size)?;
    }
    Ok(ram)
}

/// Where the tmpfs for guest memory is mounted.
#[must_use]
pub fn ram(config: &Config) -> PathBuf {
    config.run_directory.join("ram")
}

/// Makes the data directory. The VMMs' users do not pass through: everything reaches them as a descriptor.
///
/// # Errors
/// When it cannot be made.
pub fn prepare_data(config: &Config) -> Result<(), HostError> {
    let data = &config.data_directory;
    directory(data, 0o700)?;
    directory(&data.join("instances"), 0o700)?;
    // Or a power loss takes all that is beneath. Of folders above, whoever made them took care.
    for path in [Some(data.as_path()), data.parent()].into_iter().flatten() {
        sync_directory(path)?;
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<(), HostError> {
    let synced = fs::File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|source| HostError::Directory {
        path: path.to_owned(),
        source,
    })
}

fn directory(path: &Path, mode: u32) -> Result<(), HostError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| HostError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// The empty network namespace of the VMMs, made once a boot: it outlives the daemon as they do.
///
/// # Errors
/// When it can neither be found nor made.
pub fn vmm_namespace(run: &Path) -> Result<Namespace, NamespaceError> {
    let path = run.join("vmm.netns");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if is_mounted(&mounts, &path) {
        return Namespace::open(&path);
    }
    // A file without a mount on it is what a boot left.
    drop(fs::remove_file(&path));
    Namespace::create_at(&path)
}

/// Whether the text of a mountinfo names `path` as a mount point (proc_pid_mountinfo(5), field 5).
fn is_mounted(mountinfo: &str, path: &Path) -> bool {
    let Some(wanted) = path.to_str().map(|text| text.replace(' ', "\\040")) else {
        return false;
    };
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
}

fn mount_ram(at: &Path, size: Option<Bytes>) -> Result<(), HostError> {
    // Without a size the kernel would take half of the memory. Files are sparse: the ledger admits no more of
    // them than fit here when every page is written, so no guest meets a full file system.
    let size = size.map_or_else(|| "100%".to_owned(), |size| size.0.to_string());
    let options = format!("size={size},mode=0700,nr_inodes=100000");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some(RAM_MOUNT_SOURCE),
        at,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(|errno| HostError::Mount {
        path: at.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_their_whole_path() {
        let text = "31 23 0:27 / /run/dormouse/ram rw - tmpfs dormouse-ram rw\n40 1 0:1 / /with\\040space rw - tmpfs x rw";
        assert!(is_mounted(text, Path::new("/run/dormouse/ram")));
        assert!(is_mounted(text, Path::new("/with space")));
        assert!(!is_mounted(text, Path::new("/run/dormouse")));
    }

    #[test]
    fn marks_differ_and_stay() {
        assert_eq!(
            mark(Path::new("/var/lib/dormouse")),
            mark(Path::new("/var/lib/dormouse"))
        );
        assert_ne!(
            mark(Path::new("/var/lib/dormouse")),
            mark(Path::new("/var/lib/dormousf"))
        );
        assert_eq!(mark(Path::new("/x")).len(), 8);
    }
}
