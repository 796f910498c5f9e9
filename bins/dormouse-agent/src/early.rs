//! The first mounts and the kernel modules.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::say;

/// One module a line in the order in which they load, written when the initial file system is made.
const MODULE_LIST: &str = "/modules.list";
const MODULE_DIRECTORY: &str = "/modules";

/// Mounts the kernel's file systems where nothing is mounted yet.
pub(crate) fn mount_kernel_file_systems() -> Result<()> {
    let no_programs = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", no_programs | MsFlags::MS_NODEV, "")?;
    mount_new("sysfs", "/sys", no_programs | MsFlags::MS_NODEV, "")?;
    mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")
}

/// Mounts a file system of type `kind` on `target`, which is made when missing. A target where the
/// kernel has mounted it already is fine.
pub(crate) fn mount_new(kind: &str, target: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
    match mount(Some(kind), target, Some(kind), flags, Some(options)) {
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("mount {kind} on {target}")),
    }
}

/// Loads every module of the list. One that does not load is said and skipped: what needs it fails
/// later with a better reason, and what does not need it works.
pub(crate) fn load_modules() {
    let list = match fs::read_to_string(MODULE_LIST) {
        Ok(list) => list,
        // A kernel with everything built in has no list.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return say(format_args!("cannot read {MODULE_LIST}: {error}")),
    };
    for name in list.lines().filter(|line| !line.is_empty()) {
        let path = Path::new(MODULE_DIRECTORY).join(name);
        let loaded = File::open(&path).and_then(|file| dormouse_sys::guest::load_module(&file, c""));
        if let Err(error) = loaded {
            say(format_args!("cannot load {}: {error}", path.display()));
        }
    }
}

/// Gives the memory of the initial file system back: it holds the modules and this program, all
/// loaded by now.
pub(crate) fn free_initial_files() {
    // Nothing depends on it, and a file that stays costs memory only.
    let _kept = fs::remove_dir_all(MODULE_DIRECTORY);
    let _kept = fs::remove_file(MODULE_LIST);
    let _kept = fs::remove_file("/init");
}
