//! Random bytes from the kernel, without a device file.

#![allow(
    unsafe_code,
    reason = "this crate wraps system calls; every block carries its proof"
)]

use std::io;

/// Fills `bytes` with random bytes fit for keys (`getrandom(2)` without flags: waits, once after the
/// boot, until the kernel's generator is seeded).
///
/// # Errors
/// What the kernel says: a filter that refuses the call, or a kernel before 3.17. Then `bytes` must not
/// be used.
pub fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: pointer and length are of one live, exclusively borrowed slice; the kernel writes at most
        // that many bytes and keeps nothing of it.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            // Nothing for a request of something: no kernel does that, and waiting for it has no end.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = bytes.get_mut(count..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_filled_and_differ() {
        let (mut one, mut two) = ([0_u8; 32], [0_u8; 32]);
        fill(&mut one).unwrap();
        fill(&mut two).unwrap();
        assert_ne!(one, two);
        assert_ne!(one, [0; 32]);
        // More than one call of the kernel gives at once when a signal comes.
        let mut many = vec![0_u8; 70_000];
        fill(&mut many).unwrap();
        assert!(many[69_000..].iter().any(|byte| *byte != 0));
        fill(&mut []).unwrap();
    }
}
