//! Running the few programs that this room needs, with a deadline.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::ImageError;

/// Where programs of the system lie besides `PATH`, which a service's may lack.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// How much of what a program says is kept.
const KEPT_MESSAGE: usize = 4096;

/// A program and the package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// Makes ext4 file systems.
pub(crate) const MKE2FS: Tool = Tool {
    program: "mke2fs",
    package: "e2fsprogs",
};
/// Reads Debian packages.
pub(crate) const DPKG_DEB: Tool = Tool {
    program: "dpkg-deb",
    package: "dpkg",
};

impl Tool {
    /// A command for the program, found on `PATH` or where systems keep it.
    pub(crate) fn command(self) -> Result<Command, ImageError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(SYSTEM_DIRECTORIES.map(PathBuf::from));
        let found = places
            .map(|place| place.join(self.program))
            .find(|program| program.is_file());
        let program = found.ok_or(ImageError::ToolMissing {
            program: self.program,
            package: self.package,
        })?;
        let mut command = Command::new(program);
        // Messages are shown to people and never parsed, but they are shown in one language.
        command.env("LC_ALL", "C").stdin(Stdio::null());
        Ok(command)
    }
}

/// Runs `command` to its end. Its standard error is kept for the message, its output is dropped.
pub(crate) fn run(mut command: Command, limit: Duration) -> Result<(), ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |what: String| ImageError::ToolFailed {
        program: program.clone(),
        status: "no status".to_owned(),
        message: what,
    };
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| failed(error.to_string()))?;
    let said = read_until_end(&mut child, Instant::now() + limit);
    if said.is_none() {
        // Ends the wait below at once; a program that is gone already needs none.
        let _gone = child.kill();
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    match said {
        None => Err(ImageError::ToolTimeout {
            program,
            limit_secs: limit.as_secs(),
        }),
        Some(_) if status.success() => Ok(()),
        Some(message) => Err(ImageError::ToolFailed {
            program,
            status: status.to_string(),
            message,
        }),
    }
}

/// The end of what `child` says until it closes its standard error, that is until it ends; `None`
/// when the deadline came first.
fn read_until_end(child: &mut Child, deadline: Instant) -> Option<String> {
    let mut pipe = child.stderr.take()?;
    let (mut said, mut buffer) = (Vec::new(), [0_u8; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if Instant::now() >= deadline => return None,
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => break,
        }
        match pipe.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => said.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
        let excess = said.len().saturating_sub(KEPT_MESSAGE);
        said.drain(..excess);
    }
    Some(String::from_utf8_lossy(&said).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<(), ImageError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, limit)
    }

    #[test]
    fn ends_are_told_apart() {
        let minute = Duration::from_secs(60);
        assert!(shell("exit 0", minute).is_ok());
        let error = shell("echo no room >&2; exit 3", minute).unwrap_err();
        assert!(
            matches!(&error, ImageError::ToolFailed { message, .. } if message == "no room"),
            "{error}"
        );
        let error = shell("exec sleep 600", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, ImageError::ToolTimeout { .. }), "{error}");
        let none = Tool {
            program: "no-such-program",
            package: "none",
        }
        .command()
        .unwrap_err();
        assert!(matches!(none, ImageError::ToolMissing { .. }));
    }
}
