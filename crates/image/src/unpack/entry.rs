//! One entry of a layer's archive, checked. Extended headers (pax, POSIX.1-2017 `pax`; the long
//! names of GNU tar) are read here and not by the archive library, whose reader would keep as much
//! of one in memory as a hostile archive likes to give.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use tar::{EntryType, Header, PaxExtensions};

use crate::error::EntryFault;
use crate::unpack::tree::{Attributes, Trouble};

/// The largest extended header.
const MAX_EXTENSION: u64 = 1 << 20;

/// The longest path and link target (`PATH_MAX`), and component (`NAME_MAX`).
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;

/// The deepest path.
pub(super) const MAX_DEPTH: usize = 256;

/// An entry whose path is relative and has no `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Empty for the root.
    pub(super) path: Vec<OsString>,
    pub(super) kind: Kind,
    pub(super) attributes: Attributes,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64 },
    Directory,
    Symlink { target: OsString },
    HardLink { target: Vec<OsString> },
    Fifo,
    Device,
}

/// Extended headers that wait for the entry that they describe.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    sparse: bool,
}

impl Extensions {
    /// Reads an item of the archive: `None` when it was an extended header.
    pub(super) fn read<R: Read>(&mut self, item: &mut tar::Entry<'_, R>) -> Result<Option<Entry>, Trouble> {
        match item.header().entry_type() {
            EntryType::XHeader => {
                let bytes = bounded(item)?;
                self.take_pax(&bytes)?;
            }
            EntryType::GNULongName => self.path = Some(without_nul(bounded(item)?)),
            EntryType::GNULongLink => self.link = Some(without_nul(bounded(item)?)),
            // Defaults for all that follows; nothing that builders put there concerns us.
            EntryType::XGlobalHeader => drop(bounded(item)?),
            _ => return std::mem::take(self).entry(item).map(Some).map_err(Trouble::Fault),
        }
        Ok(None)
    }

    fn take_pax(&mut self, bytes: &[u8]) -> Result<(), EntryFault> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(|_| EntryFault::Extension)?;
            let number = || {
                let text = record.value().map_err(|_| EntryFault::Extension)?;
                text.parse::<u64>().map(Some).map_err(|_| EntryFault::Extension)
            };
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"uid" => self.uid = number()?,
                b"gid" => self.gid = number()?,
                b"size" => self.size = number()?,
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn entry<R: Read>(self, item: &tar::Entry<'_, R>) -> Result<Entry, EntryFault> {
        let header = item.header();
        let size = header.entry_size().map_err(|_| EntryFault::Header)?;
        if self.sparse {
            return Err(EntryFault::Kind);
        }
        // The archive's reader skips by the header's size: another one would shift all that follows.
        if self.size.is_some_and(|said| said != size) {
            return Err(EntryFault::Extension);
        }
        let path = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = self
            .link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let kind = kind(header, size, &path, link)?;
        let attributes = attributes(header, self.uid, self.gid)?;
        Ok(Entry {
            path: components(&path)?,
            kind,
            attributes,
        })
    }
}

fn kind(header: &Header, size: u64, path: &[u8], link: Option<Vec<u8>>) -> Result<Kind, EntryFault> {
    let link = link.unwrap_or_default();
    Ok(match header.entry_type() {
        // The oldest archives mark a directory by its slash only.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File { size },
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            if link.is_empty() || link.len() >= MAX_PATH || link.contains(&0) {
                return Err(EntryFault::SymlinkTarget);
            }
            Kind::Symlink {
                target: OsString::from_vec(link),
            }
        }
        EntryType::Link => {
            let target = components(&link).map_err(|_| EntryFault::LinkTarget)?;
            if target.is_empty() {
                return Err(EntryFault::LinkTarget);
            }
            Kind::HardLink { target }
        }
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        _ => return Err(EntryFault::Kind),
    })
}

fn attributes(header: &Header, uid: Option<u64>, gid: Option<u64>) -> Result<Attributes, EntryFault> {
    let number = |value: std::io::Result<u64>| value.map_err(|_| EntryFault::Header);
    // The last number means "no change" to the kernel.
    let owner = |value: u64| {
        u32::try_from(value)
            .ok()
            .filter(|&id| id != u32::MAX)
            .ok_or(EntryFault::Header)
    };
    let uid = uid.map_or_else(|| number(header.uid()), Ok)?;
    let gid = gid.map_or_else(|| number(header.gid()), Ok)?;
    let modified = i64::try_from(number(header.mtime())?).map_err(|_| EntryFault::Header)?;
    let mode = header.mode().map_err(|_| EntryFault::Header)? & 0o7777;
    Ok(Attributes {
        uid: owner(uid)?,
        gid: owner(gid)?,
        mode,
        modified,
    })
}

/// The parts of a relative path, `.` and empty ones dropped.
fn components(path: &[u8]) -> Result<Vec<OsString>, EntryFault> {
    if path.starts_with(b"/") {
        return Err(EntryFault::Absolute);
    }
    if path.is_empty() || path.len() >= MAX_PATH || path.contains(&0) {
        return Err(EntryFault::Name);
    }
    let mut parts = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(EntryFault::Escapes),
            part if part.len() > MAX_NAME || parts.len() >= MAX_DEPTH => return Err(EntryFault::Name),
            part => parts.push(OsString::from_vec(part.to_vec())),
        }
    }
    Ok(parts)
}

/// The contents of an extended header.
fn bounded<R: Read>(item: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, Trouble> {
    let size = item.size();
    if size > MAX_EXTENSION {
        return Err(EntryFault::Extension.into());
    }
    let mut bytes = Vec::new();
    item.read_to_end(&mut bytes).map_err(Trouble::Archive)?;
    if bytes.len() as u64 != size {
        return Err(Trouble::Archive(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

/// GNU's long names end with a NUL byte.
fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, want) in [
            ("a/b", Ok(vec!["a", "b"])),
            ("./a//b/", Ok(vec!["a", "b"])),
            ("./", Ok(vec![])),
            ("", Err(EntryFault::Name)),
            ("/etc/passwd", Err(EntryFault::Absolute)),
            ("../x", Err(EntryFault::Escapes)),
            ("a/../../x", Err(EntryFault::Escapes)),
            ("a\0b", Err(EntryFault::Name)),
        ] {
            let want = want.map(|parts| parts.into_iter().map(OsString::from).collect());
            assert_eq!(components(path.as_bytes()), want, "{path:?}");
        }
        assert_eq!(components("a/".repeat(257).as_bytes()), Err(EntryFault::Name));
        assert_eq!(components("x".repeat(256).as_bytes()), Err(EntryFault::Name));
    }
}
