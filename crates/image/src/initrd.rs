//! The initial file system of guests: the agent, the kernel modules that it loads, and nothing else.
//!
//! ```text
//! /init              the agent, a static program
//! /modules.list      module file names, one a line, in the order in which they load
//! /modules/*.ko
//! /dev/console       so that the first process has somewhere to speak before it mounts anything
//! /proc /sys /dev    mount points
//! ```
//!
//! Not compressed: unpacking in an emulated guest costs more than reading two megabytes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::kernel::GuestKernel;

/// Builds the initial file system for `kernel` with the agent at `agent`, unless it is there
/// already, and returns its path in `directory`. The name holds the contents' digest, so an agent or
/// kernel of another release gets another file and a running guest's is never rewritten.
///
/// Blocking; takes a few milliseconds.
///
/// # Errors
/// [`ImageError::Io`] when a file cannot be read or written.
pub fn build(kernel: &GuestKernel, agent: &Path, directory: &Path) -> Result<PathBuf, ImageError> {
    let bytes = archive(kernel, agent)?;
    let path = directory.join(format!("initrd-{}.cpio", &Digest::of(&bytes).hex()[..16]));
    // A file of that name was renamed into place complete.
    if path.is_file() {
        return Ok(path);
    }
    fs::create_dir_all(directory).map_err(ImageError::io("make the directory", directory))?;
    write_whole(&path, &bytes)?;
    Ok(path)
}

fn archive(kernel: &GuestKernel, agent: &Path) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "modules"] {
        archive.directory(directory);
    }
    archive.character_device("dev/console", 5, 1);
    let read = |path: &Path| fs::read(path).map_err(ImageError::io("read", path));
    archive.file("init", 0o755, &read(agent)?);
    let mut list = String::new();
    for module in kernel.modules() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &read(module)?);
        list.push_str(&name);
        list.push('\n');
    }
    archive.file("modules.list", 0o644, list.as_bytes());
    Ok(archive.finish())
}

/// Writes a file under a temporary name, synchronises and renames it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = crate::blobs::temporary_beside(path);
    let written = fs::File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _left = fs::remove_file(&temporary);
    }
    written.map_err(ImageError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_same_contents_give_the_same_file_and_cpio_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        fs::write(&agent, b"#!agent").unwrap();
        let modules = directory.path().join("guest/modules");
        fs::create_dir_all(&modules).unwrap();
        fs::write(directory.path().join("guest/vmlinuz"), b"kernel").unwrap();
        fs::write(directory.path().join("guest/release"), b"6.1.0\n").unwrap();
        fs::write(modules.join("b.ko"), b"second").unwrap();
        fs::write(modules.join("a.ko"), b"first").unwrap();
        fs::write(directory.path().join("guest/modules.list"), b"b.ko\na.ko\n").unwrap();
        let kernel = GuestKernel::open(&directory.path().join("guest")).unwrap();
        let path = build(&kernel, &agent, directory.path()).unwrap();
        assert_eq!(build(&kernel, &agent, directory.path()).unwrap(), path);
        fs::write(&agent, b"#!agent 2").unwrap();
        assert_ne!(build(&kernel, &agent, directory.path()).unwrap(), path);
        let listed = Command::new("cpio")
            .args(["-itv", "--quiet", "-F"])
            .arg(&path)
            .stderr(Stdio::inherit())
            .output();
        let Ok(listed) = listed else {
            println!("skipped: the_same_contents_give_the_same_file_and_cpio_reads_it: no cpio");
            return;
        };
        let text = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.status.success());
        for line in [
            "-rwxr-xr-x",
            "init",
            "modules/b.ko",
            "modules.list",
            "dev/console",
            "5,   1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let list = Command::new("cpio")
            .args(["-i", "--to-stdout", "--quiet", "-F"])
            .arg(&path)
            .arg("modules.list")
            .output();
        assert_eq!(
            String::from_utf8(list.unwrap().stdout).unwrap(),
            "b.ko\na.ko\n",
            "the order of loading"
        );
    }
}
