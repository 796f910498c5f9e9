//! Starts a program with exactly the descriptors and rights that it is given, in its own session and
//! cgroups. Nothing else of this process reaches it: no environment, no groups, no capabilities, no open
//! file, no blocked signal. It outlives this process.

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::pidfd::PidFd;

mod birth;
mod child;

pub use child::Step;

/// The number that the first descriptor of [`Program::descriptors`] has in the new process; the others
/// follow. 0 is /dev/null, 1 and 2 are [`Program::output`].
pub const FIRST_DESCRIPTOR: RawFd = 3;

/// Whom the program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
}

/// A way into a control group.
#[derive(Debug)]
pub enum CgroupEntrance {
    /// The open directory of a group of cgroup v2: the process is born there.
    Directory(OwnedFd),
    /// The open `cgroup.procs` of a group of cgroup v1: the process moves there, which takes milliseconds.
    Members(OwnedFd),
}

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Path of the executable.
    pub path: &'a CStr,
    /// Arguments, the name of the program first.
    pub arguments: &'a [CString],
    /// The whole environment, `NAME=value` each.
    pub environment: &'a [CString],
    /// Get the numbers from [`FIRST_DESCRIPTOR`] on, in this order.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Standard output and standard error.
    pub output: BorrowedFd<'a>,
    /// `None`: as this process. Otherwise all capabilities go too, from the bounding set on.
    pub identity: Option<Identity>,
    /// Supplementary groups, for `identity` only: a group that may open a device the program cannot be
    /// handed. Usually none.
    pub groups: &'a [u32],
    /// The groups to be in before the program starts, so that all that it ever uses is counted there; at
    /// most one is of cgroup v2.
    pub cgroups: &'a [CgroupEntrance],
    /// Open namespaces to enter (setns(2)): an empty network namespace keeps the program off the network
    /// and leaves it the sockets and taps that it is handed.
    pub namespaces: &'a [BorrowedFd<'a>],
    /// Answer `fallocate` with `EOPNOTSUPP` for ever: a program that maps a file privately must not be
    /// able to punch holes into it.
    pub refuse_fallocate: bool,
}

/// A process that was started.
#[derive(Debug)]
pub struct Started {
    /// Its pid, valid until the pidfd has been seen to end.
    pub pid: u32,
    /// The process itself.
    pub pidfd: PidFd,
}

/// Why a program was not started. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Before there was a process.
    #[error("could not prepare to start {program:?}")]
    Prepare {
        /// The executable.
        program: CString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// In the new process, before it was the program.
    #[error("could not {step} to start {program:?}")]
    Child {
        /// The executable.
        program: CString,
        /// What was being done.
        step: Step,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Starts `program`. Returns when the kernel has loaded it, typically after one millisecond; joining a
/// group of cgroup v1 can take tens, so call it where blocking is allowed.
///
/// # Errors
/// Says which step failed; no process is left.
pub fn spawn(program: &Program<'_>) -> Result<Started, SpawnError> {
    let fail = |source: io::Error| SpawnError::Prepare {
        program: program.path.to_owned(),
        source,
    };
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(fail)?;
    let (report, report_writer) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| fail(e.into()))?;
    if program.descriptors.len() > child::MAX_DESCRIPTORS {
        return Err(fail(io::Error::from_raw_os_error(libc::EMFILE)));
    }
    let births = |entrance: &&CgroupEntrance| matches!(entrance, CgroupEntrance::Directory(_));
    if program.cgroups.iter().filter(births).count() > 1 {
        // A process is in one group of a hierarchy.
        return Err(fail(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    // Above every number that the program gets, so that it can speak until the very end.
    let report_writer = above(report_writer, program.descriptors.len()).map_err(fail)?;
    let plan = child::Plan::new(program, null.as_raw_fd(), report_writer.as_raw_fd());
    let (pid, pidfd) = start(&plan).map_err(fail)?;
    drop(report_writer);
    let mut said = [0_u8; 8];
    let length = File::from(report).read(&mut said).map_err(fail)?;
    if length == 0 {
        return Ok(Started { pid, pidfd });
    }
    // It has said why and exits at once; reap it, whatever that says.
    let _ = nix::sys::wait::waitid(
        nix::sys::wait::Id::PIDFd(std::os::fd::AsFd::as_fd(&pidfd)),
        nix::sys::wait::WaitPidFlag::WEXITED,
    );
    let [a, b, c, d, step, ..] = said;
    Err(SpawnError::Child {
        program: program.path.to_owned(),
        step: Step::from_number(step),
        source: io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])),
    })
}

/// The same open file on a number that no descriptor of the program gets.
fn above(file: OwnedFd, count: usize) -> io::Result<OwnedFd> {
    let least = FIRST_DESCRIPTOR.saturating_add(RawFd::try_from(count).unwrap_or(RawFd::MAX));
    let raw = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Bytes of stack for the child: it calls a dozen shallow functions.
const STACK: usize = 64 << 10;

/// Makes the process. All signals are blocked from before until the child has reset its handlers: a
/// handler of ours that ran in the child would write into pipes that it shares with us.
fn start(plan: &child::Plan<'_>) -> io::Result<(u32, PidFd)> {
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let mut before = nix::sys::signal::SigSet::empty();
    let all = nix::sys::signal::SigSet::all();
    nix::sys::signal::pthread_sigmask(
        nix::sys::signal::SigmaskHow::SIG_SETMASK,
        Some(&all),
        Some(&mut before),
    )?;
    let argument = std::ptr::from_ref(plan).cast_mut().cast();
    // SAFETY: `run` makes only system calls on the plan and its own stack and ends the process; this thread
    // sleeps until the child has executed or exited, so both outlive it.
    let born = unsafe { birth::give_birth(&mut stack, plan.birthplace(), child::run, argument) };
    before.thread_set_mask()?;
    born
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pidfd::Exit;
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;

    struct Ran {
        exit: Exit,
        output: String,
    }

    /// Runs a shell script and returns what it said.
    fn run(script: &str, change: impl Fn(&mut Program<'_>), descriptors: &[BorrowedFd<'_>]) -> Ran {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let arguments = [CString::from(c"sh"), c"-c".into(), CString::new(script).unwrap()];
        let environment = [CString::from(c"ONLY=this")];
        let mut program = Program {
            path: c"/bin/sh",
            arguments: &arguments,
            environment: &environment,
            descriptors,
            output: writer.as_fd(),
            identity: None,
            groups: &[],
            cgroups: &[],
            namespaces: &[],
            refuse_fallocate: false,
        };
        change(&mut program);
        let started = spawn(&program).unwrap();
        drop(writer);
        let output = io::read_to_string(File::from(reader)).unwrap();
        let mut wanted = [PollFd::new(started.pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut wanted, 10_000_u16).unwrap(), 1);
        Ran {
            exit: started.pidfd.exit().unwrap().unwrap(),
            output,
        }
    }

    fn is_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            println!("skipped: spawn: changing user needs root");
        }
        root
    }

    #[test]
    fn exactly_the_given_descriptors_in_order() {
        let dir = std::env::temp_dir();
        let files: Vec<File> = (0..3)
            .map(|n| {
                let path = dir.join(format!("dormouse-spawn-{}-{n}", std::process::id()));
                std::fs::write(&path, format!("file {n}\n")).unwrap();
                let file = File::open(&path).unwrap();
                std::fs::remove_file(path).unwrap();
                file
            })
            .collect();
        // Neither in the order of their numbers, nor closed on execution.
        let given = [files[2].as_fd(), files[0].as_fd(), files[1].as_fd()];
        nix::fcntl::fcntl(
            files[1].as_fd(),
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .unwrap();
        let ran = run(
            "cat <&3; cat <&4; cat <&5; for f in /proc/$$/fd/*; do echo ${f##*/}; done",
            |_| {},
            &given,
        );
        // 6 is the directory that the shell lists.
        assert_eq!(ran.output, "file 2\nfile 0\nfile 1\n0\n1\n2\n3\n4\n5\n6\n");
        assert_eq!(ran.exit, Exit::Code(0));
    }

    #[test]
    fn nothing_is_inherited() {
        let ran = run(
            "cat /proc/$$/environ | tr '\\0' '\\n'; pwd; umask; ulimit -c; cat /proc/$$/stat",
            |_| {},
            &[],
        );
        let lines: Vec<&str> = ran.output.lines().collect();
        assert_eq!(lines[..4], ["ONLY=this", "/", "0077", "0"]);
        let fields: Vec<&str> = lines[4].split(' ').collect();
        assert_eq!(fields[0], fields[5], "it leads its session");
        // By the shell itself: while it starts another program it has every signal blocked.
        let script = "while read -r name value; do case $name in SigBlk:|SigIgn:|NoNewPrivs:)
            echo $name $value ;; esac done </proc/$$/status";
        let ran = run(script, |_| {}, &[]);
        assert_eq!(
            ran.output.split_whitespace().collect::<Vec<_>>(),
            [
                "SigBlk:",
                "0000000000000000",
                "SigIgn:",
                "0000000000000000",
                "NoNewPrivs:",
                "1"
            ]
        );
    }

    #[test]
    fn rights_are_gone() {
        if !is_root() {
            return;
        }
        let script = "grep -E '^(Uid|Gid|Groups|Cap)' /proc/$$/status";
        let identity = Identity {
            uid: 60_123,
            gid: 60_124,
        };
        let ran = run(script, |program| program.identity = Some(identity), &[]);
        for line in ran.output.lines() {
            let (name, values) = line.split_once(':').unwrap();
            let want = match name {
                "Uid" => "60123 60123 60123 60123",
                "Gid" => "60124 60124 60124 60124",
                "Groups" => "",
                _ => "0000000000000000",
            };
            assert_eq!(
                values.split_whitespace().collect::<Vec<_>>().join(" "),
                want,
                "{name}"
            );
        }
        assert_eq!(ran.output.lines().count(), 8);
    }

    #[test]
    fn fallocate_is_refused_when_asked() {
        let path = std::env::temp_dir().join(format!("dormouse-fallocate-{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        let script = format!("fallocate -l 4096 {}", path.display());
        let free = run(&script, |_| {}, &[]);
        let refused = run(&script, |program| program.refuse_fallocate = true, &[]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(free.exit, Exit::Code(0), "{}", free.output);
        assert_eq!(file.metadata().unwrap().len(), 4096);
        assert!(
            matches!(refused.exit, Exit::Code(1)) && refused.output.contains("not supported"),
            "{}",
            refused.output
        );
    }

    #[test]
    fn cgroups_are_joined_before_the_program() {
        // Any file shows what would reach a cgroup.procs file.
        let path = std::env::temp_dir().join(format!("dormouse-procs-{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        let groups = [CgroupEntrance::Members(file.into())];
        let (_, writer) = nix::unistd::pipe().unwrap();
        let program = Program {
            path: c"/bin/true",
            arguments: &[c"true".into()],
            environment: &[],
            descriptors: &[],
            output: writer.as_fd(),
            identity: None,
            groups: &[],
            cgroups: &groups,
            namespaces: &[],
            refuse_fallocate: false,
        };
        spawn(&program).unwrap();
        let said = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(said, "0");
    }

    #[test]
    fn a_process_is_born_in_its_group() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4));
        let (Some(unified), true) = (unified, nix::unistd::geteuid().is_root()) else {
            println!("skipped: a_process_is_born_in_its_group: needs root and a mounted cgroup2");
            return;
        };
        let name = format!("dormouse-spawn-{}", std::process::id());
        let directory = std::path::Path::new(unified).join(&name);
        std::fs::create_dir(&directory).unwrap();
        let groups = [CgroupEntrance::Directory(File::open(&directory).unwrap().into())];
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let program = Program {
            path: c"/bin/cat",
            arguments: &[c"cat".into(), c"/proc/self/cgroup".into()],
            environment: &[],
            descriptors: &[],
            output: writer.as_fd(),
            identity: None,
            groups: &[],
            cgroups: &groups,
            namespaces: &[],
            refuse_fallocate: false,
        };
        let started = spawn(&program).unwrap();
        drop(writer);
        let said = std::io::read_to_string(File::from(reader)).unwrap();
        let mut ended = [PollFd::new(started.pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ended, 5_000_u16), Ok(1));
        started.pidfd.exit().unwrap();
        std::fs::remove_dir(&directory).unwrap();
        assert!(said.contains(&name), "{said}");
    }

    #[test]
    fn namespaces_are_entered() {
        // Our own, which needs no other but the right to enter it.
        let own = File::open("/proc/self/ns/net").unwrap();
        let null = File::open("/dev/null").unwrap();
        let (good, bad) = ([own.as_fd()], [null.as_fd()]);
        if is_root() {
            let ran = run("readlink /proc/$$/ns/net", |_| {}, &[]);
            let script = "readlink /proc/$$/ns/net";
            let (_, writer) = nix::unistd::pipe().unwrap();
            let arguments = [CString::from(c"sh"), c"-c".into(), CString::new(script).unwrap()];
            let mut program = Program {
                path: c"/bin/sh",
                arguments: &arguments,
                environment: &[],
                descriptors: &[],
                output: writer.as_fd(),
                identity: None,
                groups: &[],
                cgroups: &[],
                namespaces: &good,
                refuse_fallocate: false,
            };
            assert!(ran.output.starts_with("net:["), "{}", ran.output);
            spawn(&program).unwrap();
            program.namespaces = &bad;
            let Err(SpawnError::Child { step, .. }) = spawn(&program) else {
                panic!("must fail")
            };
            assert_eq!(step, Step::EnterNamespace);
        }
    }

    #[test]
    fn a_failure_names_its_step_and_leaves_nothing() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut program = Program {
            path: c"/nonexistent/program",
            arguments: &[],
            environment: &[],
            descriptors: &[],
            output: writer.as_fd(),
            identity: None,
            groups: &[],
            cgroups: &[],
            namespaces: &[],
            refuse_fallocate: false,
        };
        let Err(SpawnError::Child { step, source, .. }) = spawn(&program) else {
            panic!("must fail")
        };
        assert_eq!((step, source.raw_os_error()), (Step::Execute, Some(libc::ENOENT)));
        let groups = [CgroupEntrance::Members(reader.try_clone().unwrap())];
        program.cgroups = &groups;
        let Err(SpawnError::Child { step, .. }) = spawn(&program) else {
            panic!("must fail")
        };
        assert_eq!(step, Step::JoinCgroup);
        // Not a directory of a hierarchy.
        let groups = [CgroupEntrance::Directory(File::open("/").unwrap().into())];
        program.cgroups = &groups;
        assert!(matches!(spawn(&program), Err(SpawnError::Prepare { .. })));
        let many = [reader.as_fd(); 65];
        program.descriptors = &many;
        assert!(matches!(spawn(&program), Err(SpawnError::Prepare { .. })));
    }
}
