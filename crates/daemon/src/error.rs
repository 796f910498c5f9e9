//! Why the daemon could not start.

use dormouse_model::{Fault, Kind};
use dormouse_sys::netns::NamespaceError;

/// The room that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct DaemonError {
    doing: &'static str,
    kind: Kind,
    code: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl DaemonError {
    /// Could not do this because of that.
    pub fn new(doing: &'static str, cause: impl Fault) -> Self {
        Self {
            doing,
            kind: cause.kind(),
            code: cause.code(),
            source: Box::new(cause),
        }
    }
}

impl Fault for DaemonError {
    fn kind(&self) -> Kind {
        self.kind
    }
    fn code(&self) -> &'static str {
        self.code
    }
}

impl From<NamespaceError> for DaemonError {
    fn from(cause: NamespaceError) -> Self {
        Self {
            doing: "opening a network namespace",
            kind: Kind::Unavailable,
            code: "HOST_NAMESPACE",
            source: Box::new(cause),
        }
    }
}

/// One line a room: what is being done when it fails.
macro_rules! rooms {
    ($($error:ty => $doing:literal),+ $(,)?) => {$(
        impl From<$error> for DaemonError {
            fn from(cause: $error) -> Self {
                Self::new($doing, cause)
            }
        }
    )+};
}

rooms! {
    crate::host::HostError => "preparing the host",
    crate::config::ConfigError => "reading the configuration",
    dormouse_store::StoreError => "opening the store",
    dormouse_image::ImageError => "opening the images",
    dormouse_hypervisor::DriverError => "probing the hypervisor",
    dormouse_cgroup::CgroupError => "opening the control groups",
    dormouse_network::NetworkError => "opening the data plane",
    dormouse_conntrack::RequirementsError => "preparing connection tracking",
    dormouse_keeper::KeeperError => "reaching the keeper",
    dormouse_instance::InstanceError => "recovering the instances",
}
