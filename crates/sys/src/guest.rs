//! What the init process of a guest needs: kernel modules, random state, clock, power, and the
//! rights of the process that it starts.

#![allow(
    unsafe_code,
    reason = "finit_module, random ioctls and pre_exec; each block has its proof"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::reboot::RebootMode;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use nix::unistd::{Gid, Uid};

/// Bytes of one seed.
pub const SEED_LENGTH: usize = 32;

/// Loads the kernel module in `file` with `parameters`. A module that is loaded already, or built
/// in, is fine.
///
/// # Errors
/// What `finit_module(2)` says: `ENOENT` for a missing symbol (a module that it depends on is not
/// loaded), `ENOEXEC` for a module of another kernel.
pub fn load_module(file: impl AsFd, parameters: &CStr) -> io::Result<()> {
    let flags: libc::c_int = 0;
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the whole call because `file` is borrowed, and the kernel
    // reads `parameters` up to its NUL byte, which `CStr` guarantees. No memory of ours is written.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, descriptor, parameters.as_ptr(), flags) };
    match nix::errno::Errno::result(result) {
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// `struct rand_pool_info` of include/uapi/linux/random.h with room for one seed.
#[repr(C)]
struct RandPoolInfo {
    /// Bits of entropy credited.
    entropy_count: libc::c_int,
    /// Bytes in `buf`.
    buf_size: libc::c_int,
    buf: [u8; SEED_LENGTH],
}

nix::ioctl_write_ptr_bad!(
    /// `RNDADDENTROPY`.
    rnd_add_entropy,
    // The kernel's number counts the two integers only; the buffer behind them has its own length.
    nix::request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>()),
    RandPoolInfo
);
nix::ioctl_none!(
    /// `RNDRESEEDCRNG`.
    rnd_reseed_crng,
    b'R',
    0x07
);

/// Mixes `seed` into the kernel's random state, credited in full, and rekeys every generator at
/// once: without the second step each processor goes on with the key that a copy of this memory
/// has too. `random` is `/dev/urandom`.
///
/// # Errors
/// What the two ioctls say; `EPERM` without `CAP_SYS_ADMIN`.
pub fn reseed(random: impl AsFd, seed: &[u8; SEED_LENGTH]) -> io::Result<()> {
    let info = RandPoolInfo {
        entropy_count: 8 * 32,
        buf_size: 32,
        buf: *seed,
    };
    let descriptor = random.as_fd().as_raw_fd();
    // SAFETY: `RandPoolInfo` has the layout of the kernel's struct, whose flexible array is `buf`,
    // and `buf_size` is the size of `buf`, so the kernel reads inside `info`, which outlives the
    // call. The descriptor is open because `random` is borrowed.
    unsafe { rnd_add_entropy(descriptor, &raw const info) }?;
    // SAFETY: the ioctl takes no argument; the descriptor is open because `random` is borrowed.
    unsafe { rnd_reseed_crng(descriptor) }?;
    Ok(())
}

/// Sets the wall clock to `unix_nanos` nanoseconds since 1970 UTC.
///
/// # Errors
/// What `clock_settime(2)` says; `EINVAL` for a time before the last boot's start or beyond the
/// kernel's range.
pub fn set_wall_clock(unix_nanos: u64) -> io::Result<()> {
    let seconds = i64::try_from(unix_nanos / 1_000_000_000).map_err(|_| io::ErrorKind::InvalidInput)?;
    let nanos = i64::try_from(unix_nanos % 1_000_000_000).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(nix::time::clock_settime(
        ClockId::CLOCK_REALTIME,
        TimeSpec::new(seconds, nanos),
    )?)
}

/// The wall clock, in nanoseconds since 1970 UTC; 0 before that.
///
/// # Errors
/// None on Linux; kept because the call has a result.
pub fn wall_clock() -> io::Result<u64> {
    let now = nix::time::clock_gettime(ClockId::CLOCK_REALTIME)?;
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    Ok(seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(now.tv_nsec()).unwrap_or(0)))
}

/// Sets the kernel's host name.
///
/// # Errors
/// What `sethostname(2)` says; `EINVAL` beyond 64 bytes.
pub fn set_host_name(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// Sends signal `number` to process `pid`, real-time signals included.
///
/// # Errors
/// `ESRCH` when there is no such process, `EINVAL` when there is no such signal or `pid` does not name
/// one process.
pub fn send_signal(pid: u32, number: u32) -> io::Result<()> {
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (pid, number) = (
        i32::try_from(pid).map_err(wrong)?,
        i32::try_from(number).map_err(wrong)?,
    );
    if pid == 0 {
        // That would be every process of the caller's group.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let result = unsafe { libc::kill(pid, number) };
    Ok(nix::errno::Errno::result(result).map(drop)?)
}

/// Powers the machine off. File systems are not synchronised: call `sync` before.
///
/// # Errors
/// `EPERM` without `CAP_SYS_BOOT`. Does not return otherwise.
pub fn power_off() -> io::Result<std::convert::Infallible> {
    Ok(nix::sys::reboot::reboot(RebootMode::RB_POWER_OFF)?)
}

/// Whose rights a process gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Further groups; replaces those of the caller.
    pub groups: Vec<u32>,
}

/// Makes `command` start as leader of its own session with `credentials` and nothing of ours.
pub fn start_as(command: &mut Command, credentials: &Credentials) {
    let groups: Vec<Gid> = credentials.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(credentials.uid), Gid::from_raw(credentials.gid));
    let setup = move || {
        nix::unistd::setsid()?;
        // Groups first: after the user is gone there is no right to change them.
        nix::unistd::setgroups(&groups)?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and makes four system calls through wrappers
    // that neither allocate nor lock: `setgroups` passes a slice made before the fork, the others
    // pass numbers. Errors are made from an errno without allocation.
    unsafe { command.pre_exec(setup) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn reseeding_needs_privilege_or_works() {
        let random = std::fs::File::open("/dev/urandom").unwrap();
        match reseed(&random, &[1; SEED_LENGTH]) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = load_module(&file, c"").unwrap_err();
        let expected = [libc::EPERM, libc::ENOEXEC, libc::ENOSYS, libc::EINVAL];
        assert!(
            error
                .raw_os_error()
                .is_some_and(|errno| expected.contains(&errno)),
            "{error}"
        );
    }

    #[test]
    fn a_process_gets_exactly_its_credentials() {
        if !Uid::effective().is_root() {
            println!("skipped: a_process_gets_exactly_its_credentials: needs root");
            return;
        }
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "id -u; id -g; id -G; test $$ = $(ps -o sid= -p $$ 2>/dev/null || echo $$)",
        ]);
        start_as(
            &mut command,
            &Credentials {
                uid: 60_123,
                gid: 60_124,
                groups: vec![60_124, 60_125],
            },
        );
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "60123\n60124\n60124 60125\n"
        );
        assert!(output.status.success());
    }

    #[test]
    fn signals_go_to_one_process() {
        assert_eq!(send_signal(0, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(send_signal(std::process::id(), 0).is_ok());
        assert_eq!(
            send_signal(std::process::id(), 65).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }

    #[test]
    fn the_wall_clock_is_after_2024() {
        assert!(wall_clock().unwrap() > 1_704_067_200_000_000_000);
    }
}
