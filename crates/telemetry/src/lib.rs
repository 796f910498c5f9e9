//! Logs of the binaries: `tracing` events on standard error, as text or as JSON lines.
//!
//! Libraries only emit events; a binary calls [`init`] once, before anything that it wants to see.

use std::fmt;
use std::io;
use std::str::FromStr;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::FormatUnknown {
                text: text.to_owned(),
            }),
        }
    }
}

/// What is logged, such as `info` or `warn,dormouse_standby=debug`
/// (`tracing_subscriber::EnvFilter` without spans' fields). Read once, so that a wrong one is found when the
/// configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

impl FromStr for Filter {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        let unreadable = || TelemetryError::FilterUnreadable {
            text: text.to_owned(),
        };
        if text.trim().is_empty() {
            return Err(unreadable());
        }
        // A bare word that is no level would be taken for a target and silence everything.
        let bare = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.contains(['=', ':', '_', '[']));
        for word in bare {
            word.parse::<tracing_subscriber::filter::LevelFilter>()
                .map_err(|_| unreadable())?;
        }
        EnvFilter::try_new(text).map_err(|_| unreadable())?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Filter {
    /// Cannot fail for a text that [`Filter::from_str`] took.
    fn build(&self) -> Result<EnvFilter, TelemetryError> {
        EnvFilter::try_new(&self.0).map_err(|_| TelemetryError::FilterUnreadable { text: self.0.clone() })
    }
}

/// Changes what is logged while the program runs.
#[derive(Debug, Clone)]
pub struct FilterHandle {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl FilterHandle {
    /// Logs by `filter` from now on.
    ///
    /// # Errors
    /// When the subscriber is gone, which it is only while the process ends.
    pub fn set(&self, filter: &Filter) -> Result<(), TelemetryError> {
        self.handle
            .reload(filter.build()?)
            .map_err(|_| TelemetryError::Gone)
    }
}

/// Logs the events of this process on standard error from now on.
///
/// # Errors
/// When the process logs already.
pub fn init(filter: &Filter, format: Format) -> Result<FilterHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::new(filter.build()?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let started = match format {
        Format::Text => registry.with(lines).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    started.map_err(|_| TelemetryError::Running)?;
    Ok(FilterHandle { handle })
}

/// What can go wrong with logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TelemetryError {
    /// Not a format.
    #[error("{text:?} is not a format of logs: use text or json")]
    FormatUnknown {
        /// What was given.
        text: String,
    },
    /// Not a filter.
    #[error("{text:?} does not say what to log: write info, or warn,dormouse_standby=debug")]
    FilterUnreadable {
        /// What was given.
        text: String,
    },
    /// The process has a subscriber.
    #[error("this process logs already")]
    Running,
    /// The subscriber is gone.
    #[error("this process does not log any more")]
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        for (text, good) in [
            ("info", true),
            ("warn,dormouse_standby=debug", true),
            ("off", true),
            ("dormouse_store", true),
            ("", false),
            (" ", false),
            ("loud", false),
            ("info,dormouse_standby=loud", false),
        ] {
            assert_eq!(text.parse::<Filter>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn formats() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("text".parse(), Ok(Format::Text));
        assert!("xml".parse::<Format>().is_err());
    }
}
