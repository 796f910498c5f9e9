//! Typed client of the daemon's API.
//!
//! ```no_run
//! # async fn example() -> Result<(), dormouse_client::ClientError> {
//! use dormouse_client::{Client, HostAddress, v1};
//!
//! let host: HostAddress = "unix:///run/dormouse/dormoused.sock".parse()?;
//! let client = Client::connect(&host).await?;
//! let request = v1::GetInstanceRequest { instance: "web".to_owned() };
//! let instance = client.instances().get_instance(request).await?.into_inner();
//! println!("{} is {}", instance.name, instance.state().as_str_name());
//! # Ok(())
//! # }
//! ```

mod address;
pub mod codes;
mod error;

use std::sync::Mutex;
use std::time::Duration;

use dormouse_proto::v1::image_service_client::ImageServiceClient;
use dormouse_proto::v1::instance_service_client::InstanceServiceClient;
use dormouse_proto::v1::standby_service_client::StandbyServiceClient;
use dormouse_proto::v1::system_service_client::SystemServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

pub use address::HostAddress;
pub use dormouse_proto::{metadata, v1};
pub use error::{ApiError, ClientError};

/// How long to wait for the daemon to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long to wait for the first answer to a request. A stream may then go on for ever. A request
/// that says less with `set_timeout` is held to that.
const REQUEST_DEADLINE: Duration = Duration::from_secs(150);

/// Largest message that is accepted; a page of instances with long environments fits.
const MESSAGE_LIMIT: usize = 16 << 20;

/// A connection to a daemon. Cheap to clone; reconnects by itself when the daemon was restarted.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the daemon at `host`, within five seconds.
    ///
    /// # Errors
    /// When nobody listens there, when this user may not connect, or when no answer comes in time.
    pub async fn connect(host: &HostAddress) -> Result<Self, ClientError> {
        let HostAddress::Unix(path) = host;
        let failed = |source: std::io::Error| ClientError::connecting(path, source);
        let slow = |_| ClientError::ConnectSlow {
            path: path.clone(),
            after: CONNECT_DEADLINE,
        };
        let first = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(path))
            .await
            .map_err(slow)?
            .map_err(failed)?;
        // The first connection is made here, where its failure can be told apart; the channel makes
        // the later ones.
        let first = Mutex::new(Some(first));
        let path = path.clone();
        let connector = tower::service_fn(move |_| {
            let ready = first.lock().ok().and_then(|mut first| first.take());
            let path = path.clone();
            async move {
                let stream = match ready {
                    Some(stream) => stream,
                    None => UnixStream::connect(&path).await?,
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        // The address is only what goes into the `:authority` header.
        let channel = Endpoint::from_static("http://dormouse.invalid")
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(REQUEST_DEADLINE)
            .connect_with_connector(connector)
            .await
            .map_err(|source| ClientError::Handshake {
                source: Box::new(source),
            })?;
        Ok(Self { channel })
    }

    /// The instances.
    #[must_use]
    pub fn instances(&self) -> InstanceServiceClient<Channel> {
        InstanceServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The standby engine.
    #[must_use]
    pub fn standby(&self) -> StandbyServiceClient<Channel> {
        StandbyServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The daemon and its host.
    #[must_use]
    pub fn system(&self) -> SystemServiceClient<Channel> {
        SystemServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}
