//! A writer of "newc" cpio archives, the format of the kernel's initial file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The same entries give the same
//! bytes: times are 0, owners root, inodes counted.

/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

impl Archive {
    /// Appends a directory, mode 0755.
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Appends a file with permissions `mode`.
    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, REGULAR | (mode & 0o7777), (0, 0), contents);
    }

    /// Appends a character device, mode 0600.
    pub(crate) fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The archive's bytes, its end marked.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inodes = u32::MAX;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// Names and files of 4 GiB do not occur: a size that does not fit is cut by the format itself,
    /// so it saturates here and the kernel refuses the archive.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.inodes = self.inodes.wrapping_add(1);
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let links = if mode & DIRECTORY == 0 { 1 } else { 2 };
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, time, size, device, special device, name's length, no sum
        for field in [
            self.inodes,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
