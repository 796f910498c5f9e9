//! A virtual machine monitor without a machine, that says what a script tells it to: for harnesses that
//! want every wrong answer, and many guests at no cost.
//!
//! It takes QEMU's arguments and reads of them what it needs: the descriptors of the control socket and of
//! the agent's port, and whether it loads a state. The script has a line `WHERE BEHAVIOUR` for each place
//! where it shall misbehave; it is read again at every such place. Which file that is stands behind the
//! program's own bytes, as `script=PATH`: a daemon keeps a copy of the program elsewhere and runs that.
//!
//! | where | behaviours |
//! |---|---|
//! | `start` | `good`, `exit`, `silent` (lives and never answers) |
//! | `greeting` or the name of a command | [`control::Behaviour`] |
//! | `agent` | [`agent::Behaviour`] |
//! | `shutdown` | `good` (powers off), `ignore` |

mod agent;
mod control;

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::mpsc;

use dormouse_sys::descriptor::take_passed;
use dormouse_sys::spawn::FIRST_DESCRIPTOR;

/// More than a path is long (include/uapi/linux/limits.h), with its mark.
const PATH_MAX: u64 = 4096 + 16;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "dormouse-scripted-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "--version") {
        // As the driver's probe reads it.
        writeln!(io::stdout(), "QEMU emulator version 7.2.0 (scripted)")?;
        return Ok(ExitCode::SUCCESS);
    }
    if env::var_os("LISTEN_FDS").is_none() {
        return Err(again(&arguments)?);
    }
    let mut passed: HashMap<i32, OwnedFd> = (FIRST_DESCRIPTOR..).zip(take_passed()?).collect();
    let script = Script::of_program()?;
    match script.at("start").as_str() {
        "exit" => {
            writeln!(io::stderr(), "scripted: could not set up the machine")?;
            return Ok(ExitCode::from(3));
        }
        "silent" => silence(),
        _ => {}
    }
    let mut listener = |id: &str| {
        let number = socket_of(&arguments, id).ok_or_else(|| io::Error::other(format!("no {id} socket")))?;
        let socket = passed
            .remove(&number)
            .ok_or_else(|| io::Error::other("not passed"))?;
        Ok::<_, io::Error>(UnixListener::from(socket))
    };
    let (control, port) = (listener("control")?, listener("agent")?);
    let restored = arguments.iter().any(|word| word == "-incoming");
    let (ending, ended) = mpsc::sync_channel(1);
    let (guest, quit) = (ending.clone(), ending);
    let agents_script = script.clone();
    // The descriptors of disk, RAM and tap stay open, as a machine's would.
    let _devices = passed;
    std::thread::spawn(move || agent::serve(&port, &agents_script, restored, &guest));
    std::thread::spawn(move || control::serve(&control, &script, restored, &quit));
    Ok(ended.recv().unwrap_or(ExitCode::SUCCESS))
}

/// Starts itself again with the variables by which a program is told which descriptors are its own.
fn again(arguments: &[String]) -> io::Result<io::Error> {
    let open = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|number| *number >= FIRST_DESCRIPTOR)
        // The directory being read is one of them; it is the last.
        .count()
        .saturating_sub(1);
    // Not by its path: a daemon that keeps it starts it by a descriptor, and its user has no way to the place.
    Ok(Command::new("/proc/self/exe")
        .args(arguments)
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", open.to_string())
        .exec())
}

/// The number in `socket,id=ID,fd=NUMBER,…`.
fn socket_of(arguments: &[String], id: &str) -> Option<i32> {
    let wanted = format!("socket,id={id},fd=");
    arguments
        .iter()
        .find_map(|word| word.strip_prefix(&wanted)?.split(',').next()?.parse().ok())
}

/// Lives until it is killed.
fn silence() -> ! {
    loop {
        std::thread::park();
    }
}

/// The script.
#[derive(Debug, Clone)]
struct Script {
    file: PathBuf,
}

impl Script {
    /// The one that stands behind the program's bytes.
    fn of_program() -> io::Result<Self> {
        let mut program = File::open("/proc/self/exe")?;
        let length = program.metadata()?.len();
        program.seek(SeekFrom::Start(length.saturating_sub(PATH_MAX)))?;
        let mut end = Vec::new();
        program.read_to_end(&mut end)?;
        named_behind(&end)
            .map(|file| Self { file })
            .ok_or_else(|| io::Error::other("no script stands behind the program"))
    }

    /// What to do at `place` now; `good` where the script says nothing.
    fn at(&self, place: &str) -> String {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(wanted, _)| *wanted == place)
            .map_or_else(|| "good".to_owned(), |(_, behaviour)| behaviour.trim().to_owned())
    }
}

/// The path in the last `script=PATH` of these bytes.
fn named_behind(end: &[u8]) -> Option<PathBuf> {
    const MARK: &[u8] = b"\nscript=";
    let at = end.windows(MARK.len()).rposition(|window| window == MARK)?;
    let path = end.get(at + MARK.len()..)?;
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_what_stands_last() {
        let end = b"bytes\nscript=/not/this\nscript=/tmp/script";
        assert_eq!(named_behind(end), Some(PathBuf::from("/tmp/script")));
        assert_eq!(named_behind(b"bytes"), None);
    }

    #[test]
    fn the_numbers_of_sockets_are_found() {
        let arguments = ["-chardev", "socket,id=control,fd=4,server=on,wait=off"].map(str::to_owned);
        assert_eq!(socket_of(&arguments, "control"), Some(4));
        assert_eq!(socket_of(&arguments, "agent"), None);
    }
}
