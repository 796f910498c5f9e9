//! Version and accelerator.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_sys::spawn::{FIRST_DESCRIPTOR, Program, spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use super::start::Newborn;
use crate::accelerator::{
    Accelerator, FIRST_BEAT_DEADLINE, ITERATIONS_PER_BEAT, MEASURE_FOR, Observed, is_proven, judge,
};
use crate::error::DriverError;
use crate::parts::Identity;
use crate::payload;
use crate::port::Deadline;

/// Asks the program for its version.
pub(super) async fn version(program: &Path) -> Result<String, DriverError> {
    let text = said(program, &["--version"]).await?;
    parse_version(&text).ok_or_else(|| unusable(program, "it did not tell its version".into()))
}

/// Asks the program where it looks for firmware. It looks beside itself: what is kept elsewhere must be told.
pub(super) async fn data_directories(program: &Path) -> Result<Vec<PathBuf>, DriverError> {
    let text = said(program, &["-L", "help"]).await?;
    let real = |line: &str| std::fs::canonicalize(line).ok();
    Ok(text.lines().filter_map(real).collect())
}

/// The modules that execute guests, where the program was built with such: `accel-*.so` in the directory of
/// its modules. Of those elsewhere none is found, and a program that needs one does not start from where it
/// is kept.
pub(super) fn modules(program: &Path) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let Some(prefix) = real.parent().and_then(Path::parent) else {
        return Vec::new();
    };
    let triplet = "lib/x86_64-linux-gnu/qemu";
    let found = [triplet, "lib/qemu", "lib64/qemu"]
        .iter()
        .map(|folder| prefix.join(folder))
        .find(|folder| folder.is_dir());
    let Some(Ok(entries)) = found.map(std::fs::read_dir) else {
        return Vec::new();
    };
    let mut modules: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("accel-") && name.ends_with("x86_64.so")
        })
        .map(|entry| entry.path())
        .collect();
    modules.sort();
    modules
}

fn unusable(program: &Path, why: String) -> DriverError {
    DriverError::Program {
        program: program.to_owned(),
        why,
    }
}

/// What the program prints.
async fn said(program: &Path, arguments: &[&str]) -> Result<String, DriverError> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(5), output)
        .await
        .map_err(|_| unusable(program, "it said nothing within 5 s".into()))?
        .map_err(|error| unusable(program, error.to_string()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `QEMU emulator version 7.2.22 (Debian …)` on the first line.
fn parse_version(text: &str) -> Option<String> {
    let words = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let version = words.split_ascii_whitespace().next()?;
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| version.to_owned())
}

/// The group that may open `/dev/kvm`, when it is by group that it opens.
pub(super) fn kvm_group() -> Option<u32> {
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060).then_some(device.gid())
}

/// Runs the tiny guest under KVM and judges.
pub(super) async fn accelerator(program: &Path, identity: Option<Identity>) -> Accelerator {
    if !Path::new("/dev/kvm").exists() {
        return judge(&Observed::CouldNotRun {
            why: "/dev/kvm does not exist".into(),
        });
    }
    let observed = match observe(program, identity).await {
        Ok(observed) => observed,
        Err(error) => Observed::CouldNotRun {
            why: dormouse_model::error::chain(&error),
        },
    };
    judge(&observed)
}

async fn observe(program: &Path, identity: Option<Identity>) -> Result<Observed, DriverError> {
    let fail = |source| DriverError::Io {
        doing: "probe KVM",
        source,
    };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail)?;
    ours.set_nonblocking(true).map_err(fail)?;
    let mut serial = UnixStream::from_std(ours).map_err(fail)?;
    let kernel = kernel(identity).map_err(fail)?;
    let mut log =
        File::from(memfd_create(c"dormouse-probe-log", MFdFlags::MFD_CLOEXEC).map_err(|e| fail(e.into()))?);
    let words = arguments(program);
    let groups: Vec<u32> = kvm_group().into_iter().collect();
    // Killed in the end, or when this probe is dropped.
    let newborn = Newborn::new(spawn(&Program {
        path: words.first().map(CString::as_c_str).unwrap_or_default(),
        arguments: &words,
        environment: &[],
        descriptors: &[kernel.as_fd(), theirs.as_fd()],
        output: log.as_fd(),
        identity,
        groups: &groups,
        cgroups: &[],
        namespaces: &[],
        refuse_fallocate: false,
    }))?;
    drop(theirs);
    let process = newborn.watch().map_err(fail)?;
    let beats = listen(&mut serial).await;
    let ended_itself = process.exit().is_some() || (beats.is_empty() && is_closed(&mut serial).await);
    process.kill(Deadline::now() + Duration::from_secs(5)).await?;
    if !beats.is_empty() || !ended_itself {
        return Ok(Observed::Beats(beats));
    }
    let mut said = String::new();
    log.seek(SeekFrom::Start(0)).map_err(fail)?;
    // Text of a foreign program: what is not UTF-8 is not shown.
    let _ = log.take(2000).read_to_string(&mut said);
    let last = said
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing")
        .to_owned();
    Ok(Observed::CouldNotRun {
        why: format!("the monitor does not start with KVM: {last}"),
    })
}

/// Whether the other end is closed.
async fn is_closed(serial: &mut UnixStream) -> bool {
    let read = serial.read_u8();
    matches!(
        tokio::time::timeout(Duration::from_millis(100), read).await,
        Ok(Err(_))
    )
}

/// The guest in a file that `identity` may open again.
fn kernel(identity: Option<Identity>) -> std::io::Result<OwnedFd> {
    let mut kernel = File::from(memfd_create(c"dormouse-probe", MFdFlags::MFD_CLOEXEC)?);
    kernel.write_all(&payload::guest(ITERATIONS_PER_BEAT))?;
    if let Some(Identity { uid, gid }) = identity {
        fchown(&kernel, Some(uid), Some(gid))?;
    }
    Ok(kernel.into())
}

fn arguments(program: &Path) -> Vec<CString> {
    let (kernel, serial) = (FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 1);
    let text = format!(
        "-nodefaults -no-user-config -display none -machine microvm -accel kvm \
         -cpu host,arch-capabilities=off -m 16M -kernel /proc/self/fd/{kernel} \
         -chardev socket,id=serial,fd={serial} -serial chardev:serial"
    );
    let words = text.split_ascii_whitespace().map(str::as_bytes);
    // Constants and a path, which has no NUL.
    std::iter::once(program.as_os_str().as_bytes())
        .chain(words)
        .flat_map(CString::new)
        .collect()
}

/// When each beat arrived, until they prove enough, or too late.
async fn listen(serial: &mut UnixStream) -> Vec<Duration> {
    let begun = Deadline::now();
    let mut deadline = begun + FIRST_BEAT_DEADLINE;
    let mut beats = Vec::new();
    let mut buffer = [0; 64];
    while let Ok(Ok(read @ 1..)) = tokio::time::timeout_at(deadline, serial.read(&mut buffer)).await {
        if beats.is_empty() {
            deadline = Deadline::now() + MEASURE_FOR;
        }
        beats.extend(std::iter::repeat_n(begun.elapsed(), read));
        if is_proven(&beats) {
            break;
        }
    }
    beats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, want) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright",
                Some("7.2.22"),
            ),
            ("QEMU emulator version 10.0.0\n", Some("10.0.0")),
            ("QEMU emulator version unknown", None),
            ("busybox", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text).as_deref(), want, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_told() {
        let error = version(Path::new("/nonexistent/qemu")).await.unwrap_err();
        assert!(
            error.to_string().starts_with("could not use /nonexistent/qemu: "),
            "{error}"
        );
    }
}
