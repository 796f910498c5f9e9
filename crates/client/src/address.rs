//! Where a daemon is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::ClientError;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostAddress {
    /// On a Unix socket of this host, at an absolute path.
    Unix(PathBuf),
}

impl HostAddress {
    /// Where the daemon listens unless its configuration says otherwise.
    pub const DEFAULT: &'static str = "unix:///run/dormouse/dormoused.sock";
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl FromStr for HostAddress {
    type Err = ClientError;

    /// Reads `unix:///absolute/path`.
    fn from_str(text: &str) -> Result<Self, ClientError> {
        let path = text
            .strip_prefix("unix://")
            .filter(|path| path.starts_with('/') && !path.contains('\0'));
        path.map(|path| Self::Unix(PathBuf::from(path)))
            .ok_or_else(|| ClientError::AddressUnreadable {
                text: text.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, good) in [
            (HostAddress::DEFAULT, true),
            ("unix:///a", true),
            ("unix://a", false),
            ("unix:/a", false),
            ("/a", false),
            ("", false),
            ("tcp://127.0.0.1:1", false),
        ] {
            let got = text.parse::<HostAddress>();
            assert_eq!(got.is_ok(), good, "{text:?}");
            if let Ok(address) = got {
                assert_eq!(address.to_string(), text);
            }
        }
    }
}
