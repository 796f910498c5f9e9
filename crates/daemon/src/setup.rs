//! What `setup` changes on the host, so that it can be put back: settings of the kernel that many sleepers
//! need raised. The doctor only looks; this changes, when it is asked to.
//!
//! A note in the data directory says what was and what was made of it, and is durable before anything
//! changes. The settings themselves end with a boot: a daemon that finds the note raises them again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dormouse_model::{Fault, Kind};
use dormouse_network::NetworkError;
use dormouse_network::limits::{self, Shortfall};

/// Times that a neighbour table was full, since the host's boot, both families.
pub const NEIGHBOUR_OVERFLOWS: &str = "dormouse_network_neighbour_overflows_total";

/// Name of the note.
const NOTE: &str = "host-settings";

/// Why the host was not set up, or not put back.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The note of what was changed.
    #[error("keeping the note {path}")]
    Note {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A setting.
    #[error("changing the host's limits")]
    Limits(#[from] NetworkError),
}

impl Fault for SetupError {
    fn kind(&self) -> Kind {
        match self {
            Self::Note { .. } => Kind::Unavailable,
            Self::Limits(error) => error.kind(),
        }
    }
    fn code(&self) -> &'static str {
        match self {
            Self::Note { .. } => "SETUP_NOTE",
            Self::Limits(error) => error.code(),
        }
    }
}

/// A setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The file.
    pub path: PathBuf,
    /// What it was.
    pub before: u64,
    /// What it is.
    pub after: u64,
}

/// Raises what is too low for `sleepers` workloads; lowers nothing. Says what it changed. Blocking.
///
/// # Errors
/// When the note cannot be kept, before anything is changed; or when the kernel refuses.
pub fn raise(data: &Path, sleepers: u64) -> Result<Vec<Changed>, SetupError> {
    Note::of(data).raise(&limits::shortfalls(sleepers)?)
}

/// Puts back what [`raise`] changed, as far as nobody else changed it since. Blocking.
///
/// # Errors
/// When the kernel refuses, or the note cannot be removed; asking again goes on there.
pub fn undo(data: &Path) -> Result<Vec<Changed>, SetupError> {
    Note::of(data).undo()
}

/// What a daemon does when it starts, with so many sleepers: what was set up before a reboot is set up
/// again, and thresholds that are too low are named. Blocking.
pub fn look_at_start(data: &Path, sleepers: u64) {
    match Note::of(data).again() {
        Ok(changed) => {
            for setting in changed {
                let (path, before, after) = (setting.path.display(), setting.before, setting.after);
                tracing::info!(%path, before, after, "raised again, as set up");
            }
        }
        Err(error) => {
            let error = dormouse_model::error::chain(&error);
            tracing::warn!(error, "what was set up is not set up again");
        }
    }
    count_overflows();
    for limits in limits::too_few_neighbours(sleepers).unwrap_or_default() {
        let (family, most) = (limits.family, limits.most());
        tracing::warn!(
            family,
            most,
            sleepers,
            "the neighbour table is too small for packets to all sleepers: run dormouse setup"
        );
    }
}

/// Reads the kernel's counters of full neighbour tables into the metric; the host's number, or `None` where
/// it is not shown.
pub fn count_overflows() -> Option<u64> {
    let overflows = limits::parked_drops().ok()?.table_full;
    metrics::counter!(NEIGHBOUR_OVERFLOWS).absolute(overflows);
    Some(overflows)
}

/// What was changed, oldest values kept.
struct Note {
    path: PathBuf,
}

impl Note {
    fn of(data: &Path) -> Self {
        Self {
            path: data.join(NOTE),
        }
    }

    fn fail(&self) -> impl Fn(io::Error) -> SetupError + '_ {
        |source| SetupError::Note {
            path: self.path.clone(),
            source,
        }
    }

    fn read(&self) -> Result<Vec<Changed>, SetupError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.fail()(error)),
        };
        let lines: Option<Vec<Changed>> = text.lines().map(parse).collect();
        lines.ok_or_else(|| self.fail()(io::ErrorKind::InvalidData.into()))
    }

    fn write(&self, settings: &[Changed]) -> Result<(), SetupError> {
        let new = self.path.with_extension("new");
        let text: String = settings
            .iter()
            .map(|it| format!("{} {} {}\n", it.before, it.after, it.path.display()))
            .collect();
        let written = File::create(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &self.path))
            .and_then(|()| self.sync_directory());
        written.map_err(self.fail())
    }

    fn remove(&self) -> Result<(), SetupError> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_directory().map_err(self.fail()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.fail()(error)),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or_else(|| Path::new("."));
        File::open(directory)?.sync_all()
    }

    fn raise(&self, short: &[Shortfall]) -> Result<Vec<Changed>, SetupError> {
        if short.is_empty() {
            return Ok(Vec::new());
        }
        let mut noted = self.read()?;
        for limit in short {
            match noted.iter_mut().find(|known| known.path == limit.path) {
                Some(known) => known.after = limit.need,
                None => noted.push(Changed {
                    path: limit.path.clone(),
                    before: limit.have,
                    after: limit.need,
                }),
            }
        }
        self.write(&noted)?;
        let mut changed = Vec::new();
        for limit in short {
            limits::write_limit(&limit.path, limit.need)?;
            changed.push(Changed {
                path: limit.path.clone(),
                before: limit.have,
                after: limit.need,
            });
        }
        Ok(changed)
    }

    /// Raises again what is lower than it was made.
    fn again(&self) -> Result<Vec<Changed>, SetupError> {
        let mut changed = Vec::new();
        for setting in self.read()? {
            let before = limits::read_limit(&setting.path)?;
            if before < setting.after {
                limits::write_limit(&setting.path, setting.after)?;
                changed.push(Changed { before, ..setting });
            }
        }
        Ok(changed)
    }

    fn undo(&self) -> Result<Vec<Changed>, SetupError> {
        let mut changed = Vec::new();
        // Last first: a second threshold is not below the first meanwhile.
        for setting in self.read()?.into_iter().rev() {
            let now = limits::read_limit(&setting.path)?;
            if now != setting.after {
                let path = setting.path.display();
                tracing::info!(%path, now, ours = setting.after, "changed by somebody else since; left");
                continue;
            }
            limits::write_limit(&setting.path, setting.before)?;
            changed.push(Changed {
                path: setting.path,
                before: now,
                after: setting.before,
            });
        }
        self.remove()?;
        Ok(changed)
    }
}

fn parse(line: &str) -> Option<Changed> {
    let mut words = line.splitn(3, ' ');
    Some(Changed {
        before: words.next()?.parse().ok()?,
        after: words.next()?.parse().ok()?,
        path: words.next().filter(|path| path.starts_with('/'))?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        scratch: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let host = Self {
                scratch: tempfile::tempdir().unwrap(),
            };
            host.set(1, 128);
            host.set(2, 512);
            host
        }

        fn limit(&self, number: u32) -> PathBuf {
            self.scratch.path().join(format!("thresh{number}"))
        }

        fn set(&self, number: u32, value: u64) {
            fs::write(self.limit(number), format!("{value}\n")).unwrap();
        }

        fn get(&self, number: u32) -> u64 {
            limits::read_limit(&self.limit(number)).unwrap()
        }

        fn short(&self, number: u32, need: u64) -> Shortfall {
            let have = self.get(number);
            let path = self.limit(number);
            Shortfall { path, have, need }
        }

        fn note(&self) -> Note {
            Note::of(self.scratch.path())
        }
    }

    #[test]
    fn what_was_raised_is_put_back_even_after_raising_twice() {
        let host = Host::new();
        let changed = host
            .note()
            .raise(&[host.short(1, 1000), host.short(2, 2000)])
            .unwrap();
        assert_eq!((changed.len(), host.get(1), host.get(2)), (2, 1000, 2000));
        host.note().raise(&[host.short(1, 4000)]).unwrap();
        assert_eq!(
            host.note().raise(&[]).unwrap(),
            [],
            "nothing is short: nothing changes"
        );
        let back = host.note().undo().unwrap();
        assert_eq!((back.len(), host.get(1), host.get(2)), (2, 128, 512));
        assert_eq!(
            host.note().undo().unwrap(),
            [],
            "there is nothing left to put back"
        );
    }

    #[test]
    fn what_somebody_else_changed_is_left() {
        let host = Host::new();
        host.note()
            .raise(&[host.short(1, 1000), host.short(2, 2000)])
            .unwrap();
        host.set(1, 7000);
        host.note().undo().unwrap();
        assert_eq!((host.get(1), host.get(2)), (7000, 512));
    }

    #[test]
    fn a_reboot_is_made_good() {
        let host = Host::new();
        host.note()
            .raise(&[host.short(1, 1000), host.short(2, 2000)])
            .unwrap();
        host.set(1, 128);
        host.set(2, 9000);
        let again = host.note().again().unwrap();
        assert_eq!((again.len(), host.get(1), host.get(2)), (1, 1000, 9000));
        assert_eq!(host.note().again().unwrap(), []);
    }

    #[test]
    fn a_note_that_cannot_be_read_changes_nothing() {
        let host = Host::new();
        fs::write(host.note().path, "nonsense").unwrap();
        assert!(host.note().raise(&[host.short(1, 1000)]).is_err());
        assert!(host.note().undo().is_err());
        assert_eq!(host.get(1), 128);
    }
}
