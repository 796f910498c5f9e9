//! Programs that are kept for the machines that they run: device state is loaded by the program that saved
//! it, and an upgrade of the host's must not strand sleepers.
//!
//! ```text
//!  <root>/<version>-<digest>/program         hard link; a copy where links cannot cross
//!                           /modules/*.so    what the program loads to execute guests, likewise
//!                           /data            directories of its firmware, one a line
//! ```
//!
//! The digest is over program and modules. Machines are always started from what is kept, so that a running
//! machine is one that can be put to sleep whatever becomes of the host's program meanwhile. Firmware stays
//! the host's: a guest that is restored has left it behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dormouse_model::{Digest, Fault, ImagePart, Kind, Lost, PartFault};
use sha2::{Digest as _, Sha256};

/// A program of the host, as a probe found it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgramSource {
    /// Its version, in its own words.
    pub version: String,
    /// Where it is.
    pub program: PathBuf,
    /// What it loads to execute guests.
    pub modules: Vec<PathBuf>,
    /// Where its firmware is.
    pub data: Vec<PathBuf>,
}

/// A kept program, opened to be started.
#[derive(Debug)]
pub struct ProgramPart {
    /// The program.
    pub program: OwnedFd,
    /// The directory of its modules.
    pub modules: OwnedFd,
    /// Where its firmware is.
    pub data: Vec<PathBuf>,
}

/// The programs kept under one directory.
#[derive(Debug)]
pub struct KeptPrograms {
    root: PathBuf,
    known: Mutex<Known>,
    /// Held by whoever makes or drops folders: two that make the same one would take it from each other.
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    /// Under what the host's program is kept.
    sources: BTreeMap<ProgramSource, String>,
    /// What kept files looked like when their digest was last right.
    sound: BTreeMap<String, Vec<Stamp>>,
}

/// What changes when a file does: a digest need not be taken again while it is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    name: String,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What everybody may do with a program: read and execute it (inode(7)).
const PROGRAM_FOR_ALL: u32 = 0o005;

/// And with a shared object: read it.
const MODULE_FOR_ALL: u32 = 0o004;

const PROGRAM: &str = "program";
const MODULES: &str = "modules";
const DATA: &str = "data";

/// What could not be kept, or not be opened for reasons that may pass.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// A file could not be read or made.
    #[error("keeping the monitor's program {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system was mounted so that no program of it runs (mount(8), `noexec`).
    #[error("{} is on a file system that is mounted noexec: no monitor can run from there", path.display())]
    NoExecution {
        /// The directory of the kept programs.
        path: PathBuf,
    },
}

impl Fault for KeepError {
    fn kind(&self) -> Kind {
        match self {
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Kind::Exhausted,
                io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::Unavailable,
            },
            Self::NoExecution { .. } => Kind::Unsupported,
        }
    }
    fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "DRIVER_KEEP",
            Self::NoExecution { .. } => "DRIVER_KEEP_NOEXEC",
        }
    }
}

/// A kept program that is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not what was kept.
    #[error("the monitor's program is lost")]
    Lost(#[source] Lost),
    /// It cannot be looked at, for reasons that may pass.
    #[error("looking at a kept program")]
    File(#[source] KeepError),
}

impl From<Lost> for OpenError {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

impl From<KeepError> for OpenError {
    fn from(error: KeepError) -> Self {
        Self::File(error)
    }
}

impl Fault for OpenError {
    fn kind(&self) -> Kind {
        match self {
            Self::Lost(lost) => lost.kind(),
            Self::File(error) => error.kind(),
        }
    }
    fn code(&self) -> &'static str {
        match self {
            Self::Lost(lost) => lost.code(),
            Self::File(error) => error.code(),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KeepError + '_ {
    move |source| KeepError::File {
        path: path.to_owned(),
        source,
    }
}

impl KeptPrograms {
    /// Those under `root`, which is made when something is kept.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            known: Mutex::default(),
            changing: Mutex::default(),
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // What a panic left half made has another name, and is made anew.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Both maps are memories of what is on disk: a panic elsewhere leaves them true.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether programs run from where they are kept, or will be: the file system must allow it. Blocks for a
    /// look.
    ///
    /// # Errors
    /// When it does not, or cannot be looked at.
    pub fn runnable(&self) -> Result<(), KeepError> {
        // Before anything is kept, that of the nearest folder above.
        for place in self.root.ancestors() {
            match nix::sys::statvfs::statvfs(place) {
                Ok(found) if found.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC) => {
                    return Err(KeepError::NoExecution {
                        path: self.root.clone(),
                    });
                }
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::ENOENT) => {}
                Err(errno) => return Err(failed(place)(errno.into())),
            }
        }
        Ok(())
    }

    /// Keeps a program, and returns under which name. Blocks: for as long as reading it takes the first time,
    /// later for a few looks. While a daemon lives it goes on with the program that it found first.
    ///
    /// # Errors
    /// When it cannot be read, there is no room, or programs do not run from there.
    pub fn keep(&self, source: &ProgramSource) -> Result<String, KeepError> {
        self.runnable()?;
        let known = self.known().sources.get(source).cloned();
        if let Some(name) = known
            && self.compare(&name).is_ok()
        {
            return Ok(name);
        }
        let digest = digest_of(&source.program, &source.modules)?;
        let name = format!("{}-{}", source.version, digest.short());
        let folder = self.root.join(&name);
        // Looked at under the lock: another may have made it meanwhile.
        let making = self.changing();
        match self.compare(&name) {
            Ok(()) => {}
            Err(OpenError::Lost(_)) => self.make(source, &folder)?,
            // Sleepers may need what is there.
            Err(OpenError::File(error)) => return Err(error),
        }
        drop(making);
        self.known().sources.insert(source.clone(), name.clone());
        Ok(name)
    }

    /// Makes the folder under another name first: one that a crash left half made is not taken for it.
    fn make(&self, source: &ProgramSource, folder: &Path) -> Result<(), KeepError> {
        let partial = folder.with_extension("partial");
        for leftover in [&partial, &folder.to_owned()] {
            match fs::remove_dir_all(leftover) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(leftover)(error)),
                Ok(()) | Err(_) => {}
            }
        }
        let modules = partial.join(MODULES);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&modules)
            .map_err(failed(&modules))?;
        // The monitors' users look up modules in it by descriptor.
        for open in [&partial, &modules] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o755)).map_err(failed(open))?;
        }
        link_or_copy(&source.program, &partial.join(PROGRAM), PROGRAM_FOR_ALL)?;
        for module in &source.modules {
            if let Some(name) = module.file_name() {
                link_or_copy(module, &modules.join(name), MODULE_FOR_ALL)?;
            }
        }
        let data: Vec<String> = source
            .data
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        fs::write(partial.join(DATA), data.join("\n")).map_err(failed(&partial))?;
        for path in [&partial.join(DATA), &modules, &partial] {
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(failed(path))?;
        }
        fs::rename(&partial, folder).map_err(failed(folder))?;
        File::open(&self.root)
            .and_then(|root| root.sync_all())
            .map_err(failed(&self.root))
    }

    /// Opens what is kept under `name`, once its digest is the one in the name. Blocks: for as long as reading
    /// it takes once a daemon, and whenever the files have changed since.
    ///
    /// # Errors
    /// What is wrong with it, or that it cannot be looked at now.
    pub fn open(&self, name: &str) -> Result<ProgramPart, OpenError> {
        self.runnable()?;
        self.compare(name)?;
        let folder = self.root.join(name);
        let open = |path: &Path| File::open(path).map_err(unopened(path));
        let data = folder.join(DATA);
        let data = fs::read_to_string(&data).map_err(unopened(&data))?;
        Ok(ProgramPart {
            program: open(&folder.join(PROGRAM))?.into(),
            modules: open(&folder.join(MODULES))?.into(),
            data: data.lines().map(PathBuf::from).collect(),
        })
    }

    fn compare(&self, name: &str) -> Result<(), OpenError> {
        const PART: ImagePart = ImagePart::Monitor;
        let lost = |fault, found: &str, wanted: &str| Lost::differs(PART, fault, found, wanted);
        // A name is one of ours, never a path to elsewhere.
        let Some((version, wanted)) = name.rsplit_once('-') else {
            return Err(lost(PartFault::Malformed, name, "").into());
        };
        if version.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(lost(PartFault::Malformed, name, "").into());
        }
        let folder = self.root.join(name);
        let (program, modules) = (folder.join(PROGRAM), folder.join(MODULES));
        let modules = files_of(&modules).map_err(unopened(&modules))?;
        let stamps = stamps(&program, &modules).map_err(unopened(&program))?;
        if self.known().sound.get(name) == Some(&stamps) {
            return Ok(());
        }
        let found = digest_of(&program, &modules).map_err(|error| match error {
            KeepError::File { path, source } => unopened(&path)(source),
            KeepError::NoExecution { .. } => error.into(),
        })?;
        if found.short() != wanted {
            return Err(lost(PartFault::Digest, &found.short(), wanted).into());
        }
        self.known().sound.insert(name.to_owned(), stamps);
        Ok(())
    }

    /// Drops all that are not in `in_use`; returns their names.
    ///
    /// # Errors
    /// When one cannot be removed; the others are.
    pub fn sweep(&self, in_use: &BTreeSet<String>) -> Result<Vec<String>, KeepError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.root)(error)),
        };
        let (mut dropped, mut outcome) = (Vec::new(), Ok(()));
        let _changing = self.changing();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if in_use.contains(&name) {
                continue;
            }
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => dropped.push(name),
                Err(error) => outcome = Err(failed(&entry.path())(error)),
            }
        }
        outcome.map(|()| dropped)
    }
}

/// What an error of a kept file means: one that is not there, and one that the disk cannot give back, will not
/// get better. Anything else, a limit on open files for instance, says nothing of what is kept, and no image is
/// given up for it.
fn unopened(path: &Path) -> impl FnOnce(io::Error) -> OpenError + '_ {
    const PART: ImagePart = ImagePart::Monitor;
    move |source| match (source.kind(), source.raw_os_error()) {
        (io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory, _) => {
            Lost::plain(PART, PartFault::Missing).into()
        }
        (io::ErrorKind::InvalidData, _) | (_, Some(nix::libc::EIO | nix::libc::EUCLEAN)) => {
            Lost::differs(PART, PartFault::Unreadable, source, "").into()
        }
        (_, _) => failed(path)(source).into(),
    }
}

/// The files of a folder in the order of their names.
fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?;
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn stamps(program: &Path, modules: &[PathBuf]) -> io::Result<Vec<Stamp>> {
    let stamp = |path: &Path| {
        let meta = fs::metadata(path)?;
        Ok(Stamp {
            name: path.display().to_string(),
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    };
    std::iter::once(program)
        .chain(modules.iter().map(PathBuf::as_path))
        .map(stamp)
        .collect()
}

/// Of a program and its modules, each by the name of its file.
fn digest_of(program: &Path, modules: &[PathBuf]) -> Result<Digest, KeepError> {
    let mut all = Sha256::new();
    all.update(file_digest(program).map_err(failed(program))?);
    let mut modules: Vec<_> = modules.iter().collect();
    modules.sort_by_key(|path| path.file_name());
    for module in modules {
        let name = module
            .file_name()
            .map(std::ffi::OsStr::as_encoded_bytes)
            .unwrap_or_default();
        all.update((name.len() as u64).to_le_bytes());
        all.update(name);
        all.update(file_digest(module).map_err(failed(module))?);
    }
    Ok(Digest(all.finalize().into()))
}

fn file_digest(path: &Path) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().into())
}

/// The same file under another name, or its bytes where a link cannot be made: on another file system, or
/// when the file has been unlinked. And where the monitors' users could not run what is linked.
fn link_or_copy(from: &Path, to: &Path, for_all: u32) -> Result<(), KeepError> {
    let real = fs::canonicalize(from).map_err(failed(from))?;
    let mode = fs::metadata(&real).map_err(failed(&real))?.permissions().mode();
    if mode & for_all == for_all && fs::hard_link(&real, to).is_ok() {
        return Ok(());
    }
    fs::copy(&real, to).map_err(failed(to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(failed(to))?;
    File::open(to)
        .and_then(|copy| copy.sync_all())
        .map_err(failed(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(folder: &Path, text: &str) -> ProgramSource {
        let (program, module) = (folder.join("monitor"), folder.join("accel.so"));
        // As a package does it: another file takes the name.
        drop(fs::remove_file(&program));
        fs::write(&program, text).unwrap();
        fs::write(&module, "module").unwrap();
        ProgramSource {
            version: "7.2".to_owned(),
            program,
            modules: vec![module],
            data: vec![PathBuf::from("/usr/share/firmware")],
        }
    }

    fn fault(kept: &KeptPrograms, name: &str) -> PartFault {
        match kept.open(name).unwrap_err() {
            OpenError::Lost(lost) => lost.fault,
            OpenError::File(error) => panic!("{error}"),
        }
    }

    #[test]
    fn only_what_will_not_get_better_is_lost() {
        let passes = |errno| {
            let error = unopened(Path::new("program"))(io::Error::from_raw_os_error(errno));
            matches!(error, OpenError::File(_))
        };
        use nix::libc::{EACCES, EINTR, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR, EUCLEAN};
        for errno in [EMFILE, ENFILE, ENOMEM, EACCES, EINTR] {
            assert!(passes(errno), "{errno}");
        }
        for errno in [ENOENT, ENOTDIR, EIO, EUCLEAN] {
            assert!(!passes(errno), "{errno}");
        }
    }

    #[test]
    fn what_others_may_not_run_is_copied_for_them() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = KeptPrograms::new(scratch.path().join("data/vmm"));
        kept.runnable().unwrap();
        let source = source(scratch.path(), "program");
        fs::set_permissions(&source.program, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&source.modules[0], fs::Permissions::from_mode(0o644)).unwrap();
        let name = kept.keep(&source).unwrap();
        let folder = scratch.path().join("data/vmm").join(&name);
        let program = fs::metadata(folder.join(PROGRAM)).unwrap();
        assert_eq!((program.mode() & 0o777, program.nlink()), (0o755, 1));
        let module = folder.join(MODULES).join("accel.so");
        assert_eq!(fs::metadata(module).unwrap().nlink(), 2);
    }

    #[test]
    fn nothing_is_kept_where_no_program_runs() {
        // /proc is mounted so on every host; nothing of it is written here.
        let kept = KeptPrograms::new(PathBuf::from("/proc/dormouse/vmm"));
        let found = nix::sys::statvfs::statvfs("/proc").unwrap();
        if !found.flags().contains(nix::sys::statvfs::FsFlags::ST_NOEXEC) {
            println!("skipped: nothing_is_kept_where_no_program_runs: /proc is not mounted noexec");
            return;
        }
        let error = kept.runnable().unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (Kind::Unsupported, "DRIVER_KEEP_NOEXEC")
        );
    }

    #[test]
    fn many_who_keep_one_program_at_once_get_it_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = KeptPrograms::new(scratch.path().join("vmm"));
        let source = source(scratch.path(), &"program".repeat(10_000));
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let name = kept.keep(&source).unwrap();
                    assert!(kept.sweep(&BTreeSet::from([name.clone()])).unwrap().is_empty());
                    assert!(kept.open(&name).is_ok());
                });
            }
        });
    }

    #[test]
    fn what_is_kept_outlives_an_upgrade_and_goes_when_nobody_names_it() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = KeptPrograms::new(scratch.path().join("vmm"));
        let old = kept.keep(&source(scratch.path(), "old")).unwrap();
        let source = source(scratch.path(), "new");
        let later = KeptPrograms::new(scratch.path().join("vmm"));
        let new = later.keep(&source).unwrap();
        assert_ne!(old, new);
        assert_eq!(later.keep(&source).unwrap(), new);
        let part = later.open(&old).unwrap();
        assert_eq!(io::read_to_string(File::from(part.program)).unwrap(), "old");
        assert_eq!(part.data, [PathBuf::from("/usr/share/firmware")]);
        assert_eq!(
            later.sweep(&BTreeSet::from([new.clone()])).unwrap(),
            std::slice::from_ref(&old)
        );
        assert_eq!(fault(&later, &old), PartFault::Missing);
        assert!(later.open(&new).is_ok());
    }

    #[test]
    fn a_damaged_one_is_refused_and_made_anew() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = KeptPrograms::new(scratch.path().join("vmm"));
        let source = source(scratch.path(), "program");
        let name = kept.keep(&source).unwrap();
        let program = scratch.path().join("vmm").join(&name).join(PROGRAM);
        fs::remove_file(&program).unwrap();
        fs::write(&program, "prOgram").unwrap();
        assert_eq!(fault(&kept, &name), PartFault::Digest);
        let module = scratch
            .path()
            .join("vmm")
            .join(&name)
            .join(MODULES)
            .join("accel.so");
        fs::remove_file(module).unwrap();
        assert_eq!(fault(&kept, &name), PartFault::Digest);
        // A daemon that starts has the sound one of the host.
        let later = KeptPrograms::new(scratch.path().join("vmm"));
        assert_eq!(later.keep(&source).unwrap(), name);
        assert!(later.open(&name).is_ok());
    }

    #[test]
    fn a_name_is_no_path() {
        let scratch = tempfile::tempdir().unwrap();
        let kept = KeptPrograms::new(scratch.path().to_owned());
        for name in ["", "x", "../x-1", "-1", ".-1", "a/b-1"] {
            assert_eq!(fault(&kept, name), PartFault::Malformed, "{name}");
        }
    }
}
