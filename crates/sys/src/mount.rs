//! Which mount a file was reached through.

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The number of the mount through which `file` was opened, of which no two in one boot of the host have the
/// same: `STATX_MNT_ID_UNIQUE` (statx(2), Linux 6.8). `None` where the kernel counts no such numbers; the
/// older `STATX_MNT_ID` is no substitute, since it is given again after an unmount.
///
/// # Errors
/// As `statx(2)`.
pub fn unique_number(file: impl AsFd) -> io::Result<Option<u64>> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (descriptor, mask) = (file.as_fd().as_raw_fd(), libc::STATX_MNT_ID_UNIQUE);
    // SAFETY: the path is an empty string with its end, which with AT_EMPTY_PATH means the descriptor, open
    // for as long as `file` is borrowed; the kernel writes one `struct statx` into `found`, which is one.
    let outcome = unsafe {
        libc::statx(
            descriptor,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            found.as_mut_ptr(),
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all bytes were zeroed, and every field is a number, of which all zeros are a value.
    let found = unsafe { found.assume_init() };
    Ok((found.stx_mask & mask != 0).then_some(found.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn files_of_one_mount_have_one_number_and_of_another_another() {
        let here = |path: &str| unique_number(File::open(path).unwrap()).unwrap();
        let Some(root) = here("/") else {
            println!(
                "skipped: files_of_one_mount_have_one_number_and_of_another_another: a kernel before 6.8"
            );
            return;
        };
        assert_eq!(here("/"), Some(root));
        assert!(here("/proc").is_some_and(|proc| proc != root));
        assert_eq!(here("/proc/self/stat"), here("/proc"));
    }
}
