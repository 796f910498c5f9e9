//! The system call that makes the child. `clone(2)` of the C library cannot put a child into a control group;
//! moving one afterwards waits for every processor to pass through the kernel (`cgroup_threadgroup_rwsem`,
//! 5 to 15 ms), which is a tenth of a wake.

use std::arch::asm;
use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::pidfd::PidFd;

/// What the child runs on its own stack; it must not return.
pub(super) type Entry = extern "C" fn(*mut c_void) -> c_int;

/// The child borrows our memory instead of copying its page tables, 0.2 ms instead of 1.5 ms. The price:
/// when the child changes its user, the kernel makes this process undumpable (`prctl(2)`,
/// `PR_SET_DUMPABLE`), which also keeps that user from tracing the child while it can see our memory.
/// Nobody may set it back.
const FLAGS: u64 = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD).cast_unsigned() as u64;

/// Born in the group of `clone_args.cgroup` (include/uapi/linux/sched.h, Linux 5.7).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` up to version 2 (include/uapi/linux/sched.h).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a child that runs `entry(argument)` on `stack`, within the group whose v2 directory is `cgroup`.
/// Returns when the child has executed a program or exited.
///
/// # Safety
/// `entry` ends the process instead of returning, and touches nothing but `argument` and the stack in ways
/// that a child which shares this thread's memory and thread-local storage may; both live until this returns.
pub(super) unsafe fn give_birth(
    stack: &mut [u128],
    cgroup: Option<BorrowedFd<'_>>,
    entry: Entry,
    argument: *mut c_void,
) -> io::Result<(u32, PidFd)> {
    let mut raw_pidfd: RawFd = -1;
    let arguments = CloneArguments {
        flags: FLAGS | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: (&raw mut raw_pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: stack.as_mut_ptr() as u64,
        stack_size: size_of_val(stack) as u64,
        cgroup: cgroup.map_or(0, |directory| u64::from(directory.as_raw_fd().cast_unsigned())),
        ..CloneArguments::default()
    };
    // SAFETY: the structure is whole, the stack is ours for the child alone, and the rest is the caller's.
    let got = unsafe { clone3(&arguments, entry, argument) };
    let pid = u32::try_from(got).map_err(|_| {
        let errno = i32::try_from(-got).unwrap_or(libc::EIO);
        io::Error::from_raw_os_error(errno)
    })?;
    // SAFETY: CLONE_PIDFD just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw_pidfd) };
    Ok((pid, PidFd::from_descriptor(pidfd)))
}

/// The raw call: in the parent the child's pid or a negative errno; the child never comes back.
///
/// # Safety
/// As [`give_birth`]; `arguments.stack` is unused memory of `stack_size` bytes, its end 16-byte aligned.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(arguments: &CloneArguments, entry: Entry, argument: *mut c_void) -> c_long {
    let got: c_long;
    // SAFETY: the kernel starts the child behind the call on its own stack, its end aligned as the calling
    // convention wants before a call; it calls `entry` and never reaches the parent's part. The parent goes
    // on with its registers as they were, but for those that the call itself spends.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => got,
            in("rdi") arguments,
            in("rsi") size_of::<CloneArguments>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    got
}

/// The raw call: in the parent the child's pid or a negative errno; the child never comes back.
///
/// # Safety
/// As [`give_birth`]; `arguments.stack` is unused memory of `stack_size` bytes, its end 16-byte aligned.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(arguments: &CloneArguments, entry: Entry, argument: *mut c_void) -> c_long {
    let got: c_long;
    // SAFETY: as on the other architecture; the call spends only its result's register.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 0",
            "2:",
            inlateout("x0") arguments => got,
            in("x1") size_of::<CloneArguments>(),
            in("x8") libc::SYS_clone3,
            in("x20") argument,
            in("x21") entry,
        );
    }
    got
}
