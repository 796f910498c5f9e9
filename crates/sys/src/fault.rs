//! Fault points: named places between two journalled steps, where a harness stops this process, or
//! another one, to see what is left.
//!
//! Only with the cargo feature `plant`, which no release binary has (tidy checks). A point writes its
//! name to the Unix socket that [`SOCKET_VARIABLE`] names, one line such as `save/before 01J…`, and
//! waits for one byte: until it comes the step has not gone on. Without the variable, and when nobody
//! listens any more, a point is passed at once.

use std::fmt::Display;

/// The environment variable with the path of the harness's socket.
pub const SOCKET_VARIABLE: &str = "DORMOUSE_FAULT_SOCKET";

/// Which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// It has not begun.
    Before,
    /// It is done, and nothing that follows has begun.
    After,
}

impl Side {
    /// The word in a point's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

#[cfg(feature = "plant")]
mod switch {
    use super::{Display, SOCKET_VARIABLE, Side};
    use std::ffi::OsString;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::sync::OnceLock;
    use std::time::Duration;

    /// A harness that holds a point for longer has forgotten it.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// Tells the harness that `step` of `whose` is about to begin or is done, and waits until it lets
    /// go. Blocking.
    pub fn reach(step: &str, side: Side, whose: &dyn Display) {
        static SOCKET: OnceLock<Option<OsString>> = OnceLock::new();
        let Some(path) = SOCKET.get_or_init(|| std::env::var_os(SOCKET_VARIABLE)) else {
            return;
        };
        let exchange = || -> std::io::Result<()> {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(format!("{step}/{} {whose}\n", side.as_str()).as_bytes())?;
            stream.read_exact(&mut [0])
        };
        // Without a harness there is nobody to wait for.
        let _ = exchange();
    }
}

#[cfg(not(feature = "plant"))]
mod switch {
    use super::{Display, Side};

    /// A fault point: nothing, in this build.
    #[inline(always)]
    pub fn reach(_step: &str, _side: Side, _whose: &dyn Display) {}
}

pub use switch::reach;

#[cfg(all(test, feature = "plant"))]
mod tests {
    use super::*;

    #[test]
    fn nobody_listens_and_the_point_is_passed() {
        reach("save", Side::Before, &"nobody");
    }
}
