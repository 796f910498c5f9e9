//! The new process between its birth and its program.
//!
//! It shares this process's memory and borrows one thread's stack-sized piece of it, so it may only make
//! system calls: no allocation, no lock, no formatting, and no wrapper of the C library that tells other
//! threads about a change of user (all of which would act on the parent).

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::{CgroupEntrance, Identity, Program};

/// What the new process was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Step {
    /// Resetting signal handlers, session, umask, directory or limits.
    Reset = 1,
    /// Writing itself into a `cgroup.procs` file.
    JoinCgroup = 2,
    /// Entering a namespace.
    EnterNamespace = 3,
    /// Placing descriptors and closing all others.
    PlaceDescriptors = 4,
    /// Giving up capabilities, groups and user.
    DropRights = 5,
    /// Installing the filter of system calls.
    Filter = 6,
    /// Loading the program.
    Execute = 7,
}

impl Step {
    /// The step with this number; the last one for a number that is none.
    pub(super) const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Reset,
            2 => Self::JoinCgroup,
            3 => Self::EnterNamespace,
            4 => Self::PlaceDescriptors,
            5 => Self::DropRights,
            6 => Self::Filter,
            _ => Self::Execute,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "reset signals and session",
            Self::JoinCgroup => "join the cgroup",
            Self::EnterNamespace => "enter a namespace",
            Self::PlaceDescriptors => "place descriptors",
            Self::DropRights => "drop rights",
            Self::Filter => "install the system call filter",
            Self::Execute => "execute the program",
        })
    }
}

/// Everything that the child needs, made before it exists.
pub(super) struct Plan<'a> {
    path: *const c_char,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// From the parent's numbers: /dev/null, output, output, then the program's own.
    sources: Vec<RawFd>,
    cgroups: Vec<RawFd>,
    namespaces: Vec<RawFd>,
    report: RawFd,
    identity: Option<Identity>,
    groups: &'a [u32],
    filter: Option<libc::sock_fprog>,
    /// Keeps what the pointers point at.
    program: &'a Program<'a>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(program: &'a Program<'a>, null: RawFd, report: RawFd) -> Self {
        let terminated = |texts: &[CString]| {
            texts
                .iter()
                .map(|text| text.as_ptr())
                .chain([std::ptr::null()])
                .collect::<Vec<_>>()
        };
        let output = program.output.as_raw_fd();
        let own = program.descriptors.iter().map(AsRawFd::as_raw_fd);
        Self {
            path: program.path.as_ptr(),
            arguments: terminated(program.arguments),
            environment: terminated(program.environment),
            sources: [null, output, output].into_iter().chain(own).collect(),
            cgroups: (program.cgroups.iter())
                .filter_map(|entrance| match entrance {
                    CgroupEntrance::Members(procs) => Some(procs.as_raw_fd()),
                    CgroupEntrance::Directory(_) => None,
                })
                .collect(),
            namespaces: program.namespaces.iter().map(AsRawFd::as_raw_fd).collect(),
            report,
            identity: program.identity,
            groups: program.groups,
            filter: program.refuse_fallocate.then(|| libc::sock_fprog {
                len: 8,
                filter: REFUSE_FALLOCATE.as_ptr().cast_mut(),
            }),
            program,
        }
    }

    /// Where the child is to be born, if that can be said.
    pub(super) fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.program.cgroups.iter().find_map(|entrance| match entrance {
            CgroupEntrance::Directory(directory) => Some(directory.as_fd()),
            CgroupEntrance::Members(_) => None,
        })
    }
}

/// The first function of the child; `plan` is the parent's [`Plan`].
pub(super) extern "C" fn run(plan: *mut c_void) -> c_int {
    // SAFETY: `start` passes a pointer to a Plan that lives until the child has executed or exited.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let (step, errno) = prepare_and_execute(plan);
    let mut message = [0_u8; 8];
    {
        let [a, b, c, d, said, ..] = &mut message;
        [*a, *b, *c, *d] = errno.to_ne_bytes();
        *said = step as u8;
    }
    // SAFETY: the message is 8 bytes and the descriptor was given for this.
    let _ = unsafe {
        system_call(
            libc::SYS_write,
            [fd(plan.report), message.as_ptr() as usize, 8, 0, 0],
        )
    };
    // SAFETY: ends this process alone, without running the parent's exit handlers.
    let _ = unsafe { system_call(libc::SYS_exit_group, [127, 0, 0, 0, 0]) };
    127
}

/// One step of the child; the error is the errno.
type Act = fn(&Plan<'_>) -> Result<(), i32>;

/// Returns only when a step failed.
fn prepare_and_execute(plan: &Plan<'_>) -> (Step, i32) {
    let steps: [(Step, Act); 7] = [
        (Step::Reset, reset),
        (Step::JoinCgroup, join_cgroups),
        (Step::EnterNamespace, enter_namespaces),
        (Step::PlaceDescriptors, place_descriptors),
        (Step::DropRights, drop_rights),
        (Step::Filter, install_filter),
        (Step::Execute, execute),
    ];
    for (step, act) in steps {
        if let Err(errno) = act(plan) {
            return (step, errno);
        }
    }
    (Step::Execute, libc::EIO)
}

/// A raw system call; the error is the errno.
///
/// # Safety
/// As the call's manual page demands for these arguments.
unsafe fn system_call(number: c_long, arguments: [usize; 5]) -> Result<c_long, i32> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: passed on to the caller.
    let got = unsafe { libc::syscall(number, a, b, c, d, e) };
    if got >= 0 {
        return Ok(got);
    }
    // SAFETY: the address of this thread's errno; the parent's thread that shares it is suspended.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: valid for reads as long as the thread exists.
    Err(unsafe { *place })
}

/// A descriptor, or another `int`, as an argument.
const fn fd(raw: c_int) -> usize {
    raw.cast_unsigned() as usize
}

/// Signals to their defaults (the filled masks would be inherited), then what `execve` would keep.
fn reset(_: &Plan<'_>) -> Result<(), i32> {
    // `struct kernel_sigaction` with SIG_DFL, no flags, no restorer, empty mask is all zeros.
    let default = [0_u64; 4];
    for signal in 1..=64_usize {
        // SAFETY: an action is read from an array of its size; SIGKILL and SIGSTOP are refused, harmlessly.
        let _ = unsafe {
            system_call(
                libc::SYS_rt_sigaction,
                [signal, default.as_ptr() as usize, 0, 8, 0],
            )
        };
    }
    let none = [0_u64; 1];
    let set_mask = fd(libc::SIG_SETMASK);
    // SAFETY: a mask of eight bytes is read.
    unsafe {
        system_call(
            libc::SYS_rt_sigprocmask,
            [set_mask, none.as_ptr() as usize, 0, 8, 0],
        )
    }?;
    // SAFETY: no arguments.
    unsafe { system_call(libc::SYS_setsid, [0; 5]) }?;
    // SAFETY: an integer.
    unsafe { system_call(libc::SYS_umask, [0o077, 0, 0, 0, 0]) }?;
    // SAFETY: a terminated path.
    unsafe { system_call(libc::SYS_chdir, [c"/".as_ptr() as usize, 0, 0, 0, 0]) }?;
    // A dump of a machine monitor would put its guest's memory on disk.
    let no_core = [0_u64; 2];
    let resource = libc::RLIMIT_CORE as usize;
    // SAFETY: a limit of sixteen bytes is read, and none written.
    unsafe {
        system_call(
            libc::SYS_prlimit64,
            [0, resource, no_core.as_ptr() as usize, 0, 0],
        )
    }?;
    Ok(())
}

/// "0" in `cgroup.procs` is the writer.
fn join_cgroups(plan: &Plan<'_>) -> Result<(), i32> {
    for &group in &plan.cgroups {
        // SAFETY: one byte of a constant is read.
        unsafe { system_call(libc::SYS_write, [fd(group), c"0".as_ptr() as usize, 1, 0, 0]) }?;
    }
    Ok(())
}

fn enter_namespaces(plan: &Plan<'_>) -> Result<(), i32> {
    for &namespace in &plan.namespaces {
        // SAFETY: integers; the descriptor says which kind of namespace it is.
        unsafe { system_call(libc::SYS_setns, [fd(namespace), 0, 0, 0, 0]) }?;
    }
    Ok(())
}

/// The most descriptors that a program is given.
pub(super) const MAX_DESCRIPTORS: usize = 64;

/// Moves every source out of the way of every target, then to its target, and marks all else for
/// closing by the execution. The report's number is above the targets.
fn place_descriptors(plan: &Plan<'_>) -> Result<(), i32> {
    let targets = plan.sources.len();
    let mut copies = [0_usize; MAX_DESCRIPTORS + 3];
    for (copy, &source) in copies.iter_mut().zip(&plan.sources) {
        // SAFETY: integers.
        let got = unsafe {
            system_call(
                libc::SYS_fcntl,
                [fd(source), fd(libc::F_DUPFD_CLOEXEC), targets, 0, 0],
            )
        }?;
        *copy = usize::try_from(got).map_err(|_| libc::EBADF)?;
    }
    for (target, &copy) in copies.iter().take(targets).enumerate() {
        // SAFETY: integers; the descriptor at the target stays open across execution.
        unsafe { system_call(libc::SYS_dup3, [copy, target, 0, 0, 0]) }?;
    }
    let (all, close_on_exec) = (u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize);
    // SAFETY: integers.
    unsafe { system_call(libc::SYS_close_range, [targets, all, close_on_exec, 0, 0]) }?;
    Ok(())
}

/// Capabilities, groups and user, in the order in which the right to drop the next is kept longest.
fn drop_rights(plan: &Plan<'_>) -> Result<(), i32> {
    if let Some(identity) = plan.identity {
        for capability in 0..64 {
            // SAFETY: integers. `EINVAL`: the kernel knows no capability of that number.
            match unsafe { prctl(libc::PR_CAPBSET_DROP, capability) } {
                Err(libc::EINVAL) => break,
                other => other?,
            };
        }
        let (uid, gid) = (identity.uid as usize, identity.gid as usize);
        let groups = plan.groups;
        // SAFETY: an array of the length given is read.
        unsafe {
            system_call(
                libc::SYS_setgroups,
                [groups.len(), groups.as_ptr() as usize, 0, 0, 0],
            )
        }?;
        // SAFETY: integers.
        unsafe { system_call(libc::SYS_setresgid, [gid, gid, gid, 0, 0]) }?;
        // SAFETY: integers. The call itself, not the C library's, which would change the parent's threads.
        unsafe { system_call(libc::SYS_setresuid, [uid, uid, uid, 0, 0]) }?;
        // _LINUX_CAPABILITY_VERSION_3 for this thread; effective, permitted and inheritable twice 32 bits.
        let header = [0x2008_0522_u32, 0];
        let none = [0_u32; 6];
        // SAFETY: both arrays have the sizes that version 3 demands.
        unsafe {
            system_call(
                libc::SYS_capset,
                [header.as_ptr() as usize, none.as_ptr() as usize, 0, 0, 0],
            )
        }?;
        // SAFETY: integers.
        unsafe { prctl(libc::PR_CAP_AMBIENT, fd(libc::PR_CAP_AMBIENT_CLEAR_ALL)) }?;
    }
    // SAFETY: integers.
    unsafe { prctl(libc::PR_SET_NO_NEW_PRIVS, 1) }?;
    Ok(())
}

/// # Safety
/// As prctl(2) demands for this option.
unsafe fn prctl(option: c_int, argument: usize) -> Result<c_long, i32> {
    // SAFETY: passed on to the caller; unused arguments are zero as the kernel demands.
    unsafe { system_call(libc::SYS_prctl, [fd(option), argument, 0, 0, 0]) }
}

fn install_filter(plan: &Plan<'_>) -> Result<(), i32> {
    let Some(filter) = &plan.filter else { return Ok(()) };
    let mode = libc::SECCOMP_MODE_FILTER as usize;
    // SAFETY: a program of constants with its true length, copied by the kernel.
    unsafe {
        system_call(
            libc::SYS_prctl,
            [
                fd(libc::PR_SET_SECCOMP),
                mode,
                std::ptr::from_ref(filter) as usize,
                0,
                0,
            ],
        )
    }?;
    Ok(())
}

fn execute(plan: &Plan<'_>) -> Result<(), i32> {
    let (arguments, environment) = (
        plan.arguments.as_ptr() as usize,
        plan.environment.as_ptr() as usize,
    );
    // SAFETY: a terminated path and two arrays of terminated texts that end with null.
    unsafe {
        system_call(
            libc::SYS_execve,
            [plan.path as usize, arguments, environment, 0, 0],
        )
    }?;
    Ok(())
}

/// One instruction of classic BPF.
const fn instruction(code: u32, jump_true: u8, jump_false: u8, operand: u32) -> libc::sock_filter {
    // Every code fits: they are sums of the constants of linux/bpf_common.h.
    #[allow(clippy::cast_possible_truncation, reason = "BPF codes have eight bits")]
    let code = code as u16;
    libc::sock_filter {
        code,
        jt: jump_true,
        jf: jump_false,
        k: operand,
    }
}

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` of include/uapi/linux/audit.h.
const NATIVE: u32 = if cfg!(target_arch = "x86_64") {
    0xC000_003E
} else {
    0xC000_00B7
};

/// The number of fallocate(2) on this architecture.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of calls are small"
)]
const FALLOCATE: u32 = libc::SYS_fallocate as u32;

/// Native calls but fallocate are allowed; those of another architecture, and x32, do not exist.
static REFUSE_FALLOCATE: [libc::sock_filter; 8] = [
    // seccomp_data.arch
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 4),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 4, NATIVE),
    // seccomp_data.nr
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 2, 0, 0x4000_0000),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 2, 0, FALLOCATE),
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    instruction(
        libc::BPF_RET | libc::BPF_K,
        0,
        0,
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
    ),
    instruction(
        libc::BPF_RET | libc::BPF_K,
        0,
        0,
        libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32,
    ),
];
