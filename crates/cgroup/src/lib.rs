//! Control groups: one group a workload, in one hierarchy, bearing our mark.
//!
//! cgroup v2 is used wherever it is mounted, with or without controllers: it is the hierarchy that
//! `cgroup.kill` and per-group pressure live in. A host that has only v1 gives the `memory` hierarchy.
//! Where nothing is mounted (a chroot whose /sys was bound without its submounts), v2 is mounted in a
//! directory of ours; the mount bears the source name [`MOUNT_SOURCE`] and is swept with the rest.

pub mod codes;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_model::{Fault, Kind};
use nix::mount::{MsFlags, mount, umount};

/// The source name of a hierarchy that we mounted: how a sweep knows it is ours.
pub const MOUNT_SOURCE: &str = "dormouse-cgroup";

/// Which interface a hierarchy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A v1 hierarchy, here always that of the memory controller.
    V1Memory,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy and our directory in it.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    version: Version,
    root: PathBuf,
    /// Where we mounted it, when nobody else had.
    mounted: Option<PathBuf>,
}

/// One line of `/proc/self/mountinfo` that is a cgroup hierarchy (proc(5), fields 5 and after the dash).
#[derive(Debug, PartialEq, Eq)]
struct CgroupMount {
    at: PathBuf,
    version: Version,
}

/// Finds the hierarchies in the text of a `mountinfo`; lines that are none or unreadable are passed over.
fn parse_mountinfo(text: &str) -> Vec<CgroupMount> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut tail = after.split(' ');
        let (kind, _source, options) = (tail.next(), tail.next(), tail.next().unwrap_or(""));
        let Some(at) = before.split(' ').nth(4) else {
            continue;
        };
        let version = match kind {
            Some("cgroup2") => Version::V2,
            Some("cgroup") if options.split(',').any(|o| o == "memory") => Version::V1Memory,
            _ => continue,
        };
        found.push(CgroupMount {
            at: PathBuf::from(at.replace("\\040", " ")),
            version,
        });
    }
    found
}

impl Hierarchy {
    /// Finds the hierarchy to use and makes our directory `name` in it. Mounts v2 at
    /// `fallback_mount` when the mount namespace shows no hierarchy at all.
    ///
    /// # Errors
    /// When no hierarchy can be had or written to.
    pub fn open(name: &str, fallback_mount: &Path) -> Result<Self, CgroupError> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(|source| CgroupError::Read {
            path: PathBuf::from("/proc/self/mountinfo"),
            source,
        })?;
        let mut mounts = parse_mountinfo(&text);
        mounts.sort_by_key(|m| m.version != Version::V2);
        let (chosen, mounted) = match mounts.into_iter().next() {
            Some(found) => (found, None),
            None => (mount_v2(fallback_mount)?, Some(fallback_mount.to_owned())),
        };
        let root = chosen.at.join(name);
        make_directory(&root)?;
        Ok(Self {
            version: chosen.version,
            root,
            mounted,
        })
    }

    /// Which interface the hierarchy speaks.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Our directory in it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes, or finds again, the group `name`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn group(&self, name: &str) -> Result<Group, CgroupError> {
        let path = self.root.join(name);
        make_directory(&path)?;
        Ok(Group {
            version: self.version,
            path,
        })
    }

    /// The names of all groups that exist under our directory.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, CgroupError> {
        let fail = |source| CgroupError::Read {
            path: self.root.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_type().map_err(fail)?.is_dir() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// Removes our directory when no group is left in it, and the mount if it is ours.
    ///
    /// # Errors
    /// When a group is left.
    pub fn remove(self) -> Result<(), CgroupError> {
        remove_directory(&self.root)?;
        match &self.mounted {
            Some(at) => umount(at).map_err(|errno| CgroupError::Write {
                path: at.clone(),
                source: errno.into(),
            }),
            None => Ok(()),
        }
    }
}

/// Mounts the unified hierarchy where nobody else did.
fn mount_v2(at: &Path) -> Result<CgroupMount, CgroupError> {
    fs::create_dir_all(at).map_err(|source| CgroupError::Write {
        path: at.to_owned(),
        source,
    })?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(MOUNT_SOURCE), at, Some("cgroup2"), flags, None::<&str>).map_err(|errno| {
        CgroupError::Mount {
            path: at.to_owned(),
            source: errno.into(),
        }
    })?;
    Ok(CgroupMount {
        at: at.to_owned(),
        version: Version::V2,
    })
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(CgroupError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

fn remove_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(CgroupError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A way into a group, for a process that is being started.
#[derive(Debug)]
pub enum Entrance {
    /// The directory of a group of v2, where a process can be born (`clone3(2)`, `CLONE_INTO_CGROUP`).
    Directory(File),
    /// The `cgroup.procs` of a group of v1, to which the process writes `0` before its exec.
    Members(File),
}

/// One workload's group.
#[derive(Debug, Clone)]
pub struct Group {
    version: Version,
    path: PathBuf,
}

impl Group {
    /// The way in for a process that is being started.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn entrance(&self) -> Result<Entrance, CgroupError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            |source| CgroupError::Write { path, source }
        };
        match self.version {
            Version::V2 => {
                let directory = File::open(&self.path).map_err(fail(&self.path))?;
                Ok(Entrance::Directory(directory))
            }
            Version::V1Memory => {
                let path = self.path.join("cgroup.procs");
                let members = OpenOptions::new().write(true).open(&path).map_err(fail(&path))?;
                Ok(Entrance::Members(members))
            }
        }
    }

    /// The pids in the group.
    ///
    /// # Errors
    /// When the group is gone or unreadable.
    pub fn members(&self) -> Result<Vec<i32>, CgroupError> {
        let path = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
        Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the group; removing one that is gone succeeds. The kernel keeps a group busy for a
    /// moment after its last process is reaped, so a busy group is tried again, each time after a pause
    /// that the caller's `wait` makes, at most `tries` times.
    ///
    /// # Errors
    /// When it still has members after the last try.
    pub fn remove(&self, tries: u32, mut wait: impl FnMut(Duration)) -> Result<(), CgroupError> {
        let mut pause = Duration::from_millis(1);
        for _ in 1..tries {
            match remove_directory(&self.path) {
                Ok(()) => return Ok(()),
                Err(_) => wait(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        remove_directory(&self.path)
    }
}

/// What went wrong with a group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the hierarchy could not be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory of the hierarchy could not be written, made or removed.
    #[error("changing {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The unified hierarchy could not be mounted.
    #[error("mounting cgroup2 at {path}, because no hierarchy is mounted on this host")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Fault for CgroupError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }
    fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "CGROUP_READ",
            Self::Write { .. } => "CGROUP_WRITE",
            Self::Mount { .. } => "CGROUP_MOUNT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_gives_the_hierarchies() {
        let hybrid = "31 23 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      40 23 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      garbage\n1 2 3 - \n";
        let found = parse_mountinfo(hybrid);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].version, Version::V1Memory);
        assert_eq!(
            found[1],
            CgroupMount {
                at: "/sys/fs/cgroup/unified".into(),
                version: Version::V2
            }
        );
        assert!(parse_mountinfo("").is_empty());
    }

    #[test]
    fn a_group_is_made_listed_and_removed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a_group_is_made_listed_and_removed: needs root");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let name = format!("dormouse-test-{}", std::process::id());
        let hierarchy = Hierarchy::open(&name, &scratch.path().join("cgroup")).unwrap();
        let group = hierarchy.group("a").unwrap();
        assert!(group.members().unwrap().is_empty());
        assert!(group.entrance().is_ok());
        assert_eq!(hierarchy.names().unwrap(), ["a"]);
        group.remove(3, |_| ()).unwrap();
        group.remove(1, |_| ()).unwrap();
        hierarchy.remove().unwrap();
    }
}
