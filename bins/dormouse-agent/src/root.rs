//! The root file system: the image's read-only disk, a writable disk over it, and moving into the
//! two. The initial file system cannot be unmounted, so it is emptied and covered.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_guest::Disk;
use nix::mount::{MsFlags, mount};

use crate::early::mount_new;
use crate::uevent::Uevents;

const BLOCK_DEVICES: &str = "/sys/block";
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Where things are until the move: the image, the writable disk, and both together.
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
const JOINED: &str = "/joined";

/// Mounts the root file system and makes it `/`. File systems of the kernel move along.
pub(crate) fn enter(root: &Disk, overlay: Option<&Disk>, uevents: &Uevents) -> Result<()> {
    let image = uevents.wait_for("the image's disk", APPEARS_WITHIN, || find(root))?;
    fs::create_dir_all(LOWER).context("make the image's mount point")?;
    mount(
        Some(&image),
        LOWER,
        Some("ext4"),
        MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .with_context(|| format!("mount the image {}", image.display()))?;
    match overlay {
        Some(disk) => {
            let writable = uevents.wait_for("the writable disk", APPEARS_WITHIN, || find(disk))?;
            fs::create_dir_all(UPPER).context("make the writable disk's mount point")?;
            // The inode tables are left as they are: zeroing them in the background would fill the
            // sparse file that this disk is.
            mount(
                Some(&writable),
                UPPER,
                Some("ext4"),
                MsFlags::empty(),
                Some("noinit_itable"),
            )
            .with_context(|| format!("mount the writable disk {}", writable.display()))?;
        }
        None => mount_new("tmpfs", UPPER, MsFlags::empty(), "mode=0755")?,
    }
    let (changes, work) = (format!("{UPPER}/changes"), format!("{UPPER}/work"));
    for directory in [changes.as_str(), work.as_str(), JOINED] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
    }
    let layers = format!("lowerdir={LOWER},upperdir={changes},workdir={work}");
    mount(
        Some("overlay"),
        JOINED,
        Some("overlay"),
        MsFlags::empty(),
        Some(layers.as_str()),
    )
    .context("join the image and the writable disk")?;
    move_into_joined()
}

fn move_into_joined() -> Result<()> {
    for kept in ["/proc", "/sys", "/dev"] {
        let target = format!("{JOINED}{kept}");
        make_directory(Path::new(&target))?;
        mount(
            Some(kept),
            target.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .with_context(|| format!("move {kept}"))?;
    }
    std::env::set_current_dir(JOINED).context("enter the root file system")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("cover the initial root")?;
    nix::unistd::chroot(".").context("change the root")?;
    std::env::set_current_dir("/").context("enter the new root")?;
    Ok(())
}

/// Mounts what a program expects beside the kernel's three, once inside.
pub(crate) fn furnish() -> Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let no_programs = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_new(
        "devpts",
        "/dev/pts",
        no_programs,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    mount_new("tmpfs", "/dev/shm", plain, "mode=1777")?;
    mount_new("mqueue", "/dev/mqueue", no_programs | MsFlags::MS_NODEV, "")
        .unwrap_or_else(|error| crate::say(format_args!("{error:#}")));
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        // The kernel makes a device node at /dev/ptmx; the link to our own instance replaces it.
        let _absent = fs::remove_file(link);
        symlink(target, link).with_context(|| format!("make {link}"))?;
    }
    mount_new("cgroup2", "/sys/fs/cgroup", no_programs | MsFlags::MS_NODEV, "")?;
    // An image that ships files below /run needs them; only an empty one is covered.
    let run_is_empty = fs::read_dir("/run").map_or(true, |mut entries| entries.next().is_none());
    if run_is_empty {
        make_directory(Path::new("/run"))?;
        mount_new("tmpfs", "/run", plain, "mode=0755")?;
    }
    make_directory(Path::new("/tmp"))
}

/// Makes a directory unless something stands there already.
fn make_directory(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}

/// The device node of `disk`, once there is one.
fn find(disk: &Disk) -> Result<Option<PathBuf>> {
    let is_it: Box<dyn Fn(&str) -> bool> = match disk {
        Disk::Device(path) => return Ok(Path::new(path).exists().then(|| PathBuf::from(path))),
        Disk::Serial(serial) => Box::new(move |name| {
            let path = format!("{BLOCK_DEVICES}/{name}/serial");
            fs::read_to_string(path).is_ok_and(|found| found.trim_end() == serial)
        }),
        Disk::Label(label) => Box::new(move |name| {
            label_of(&PathBuf::from("/dev").join(name)).is_some_and(|found| found == *label)
        }),
    };
    let devices = fs::read_dir(BLOCK_DEVICES).context("list block devices")?;
    let names = devices
        .flatten()
        .map(|device| device.file_name().to_string_lossy().into_owned());
    let mut found: Vec<String> = names.filter(|name| is_it(name)).collect();
    found.sort();
    Ok(found
        .first()
        .map(|name| PathBuf::from("/dev").join(name))
        .filter(|node| node.exists()))
}

/// The volume label of the ext4 file system on a device (fs/ext4/ext4.h, `struct ext4_super_block`:
/// the magic at 0x38, the label at 0x78, the whole 1,024 bytes into the disk).
fn label_of(device: &Path) -> Option<String> {
    let mut file = File::open(device).ok()?;
    file.seek(SeekFrom::Start(1024)).ok()?;
    let mut block = [0_u8; 1024];
    file.read_exact(&mut block).ok()?;
    label_in(&block)
}

fn label_in(super_block: &[u8; 1024]) -> Option<String> {
    let magic = super_block.get(0x38..0x3a)?;
    let label = super_block.get(0x78..0x88)?;
    let text = label.split(|&byte| byte == 0).next()?;
    (magic == [0x53, 0xef]).then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_from_ext4_only() {
        let mut block = [0_u8; 1024];
        block[0x78..0x85].copy_from_slice(b"dormouse-data");
        assert_eq!(label_in(&block), None);
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(label_in(&block).as_deref(), Some("dormouse-data"));
        block[0x78..0x88].copy_from_slice(b"sixteen-letters!");
        assert_eq!(label_in(&block).as_deref(), Some("sixteen-letters!"));
    }
}
