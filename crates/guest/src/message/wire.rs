//! The protobuf bodies. Numbers and types are frozen once released; see the golden files.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dormouse_model::MacAddress;

use super::{Boot as CheckedBoot, Disk as CheckedDisk, Exit, Network as CheckedNetwork};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) newest: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) oldest: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HelloAck {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(bool, tag = "2")]
    pub(crate) resumed: bool,
    #[prost(string, tag = "3")]
    pub(crate) boot_id: String,
    #[prost(string, tag = "4")]
    pub(crate) release: String,
    #[prost(uint32, tag = "5")]
    pub(crate) phase: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Boot {
    #[prost(string, tag = "1")]
    pub(crate) hostname: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) network: Option<Network>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) arguments: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) environment: Vec<Variable>,
    #[prost(string, tag = "5")]
    pub(crate) working_directory: String,
    #[prost(string, tag = "6")]
    pub(crate) user: String,
    #[prost(uint32, tag = "7")]
    pub(crate) stop_signal: u32,
    #[prost(message, optional, tag = "8")]
    pub(crate) root: Option<Disk>,
    #[prost(message, optional, tag = "9")]
    pub(crate) overlay: Option<Disk>,
    #[prost(bytes = "vec", tag = "10")]
    pub(crate) seed: Vec<u8>,
    #[prost(fixed64, tag = "11")]
    pub(crate) unix_nanos: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Variable {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

/// Exactly one field is set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Disk {
    #[prost(string, optional, tag = "1")]
    pub(crate) serial: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(crate) label: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(crate) device: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Network {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) ipv4: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) ipv6: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) gateway_ipv4: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) gateway_ipv6: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) gateway_mac: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) mac: Vec<u8>,
    #[prost(uint32, tag = "7")]
    pub(crate) mtu: u32,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub(crate) dns: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ClockSet {
    #[prost(fixed64, tag = "1")]
    pub(crate) unix_nanos: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reseed {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) seed: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Shutdown {
    #[prost(uint64, tag = "1")]
    pub(crate) grace_millis: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ping {
    #[prost(uint64, tag = "1")]
    pub(crate) nonce: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ready {
    #[prost(uint32, tag = "1")]
    pub(crate) pid: u32,
}

/// `code` or `signal` is set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Exited {
    #[prost(uint32, optional, tag = "1")]
    pub(crate) code: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    pub(crate) signal: Option<u32>,
    #[prost(bool, tag = "3")]
    pub(crate) out_of_memory: bool,
    #[prost(string, tag = "4")]
    pub(crate) problem: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BootFailed {
    #[prost(string, tag = "1")]
    pub(crate) step: String,
    #[prost(string, tag = "2")]
    pub(crate) problem: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Done {
    #[prost(uint64, tag = "1")]
    pub(crate) request: u64,
    #[prost(string, tag = "2")]
    pub(crate) problem: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pong {
    #[prost(uint64, tag = "1")]
    pub(crate) nonce: u64,
    #[prost(fixed64, tag = "2")]
    pub(crate) unix_nanos: u64,
}

/// `bytes` as an array, or what is wrong with it.
pub(crate) fn fixed<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], String> {
    <[u8; N]>::try_from(bytes).map_err(|_| format!("{field} has {} bytes, not {N}", bytes.len()))
}

impl Exited {
    pub(crate) fn new(exit: Exit, problem: &str) -> Self {
        let problem = problem.to_owned();
        match exit {
            Exit::Code(code) => Self {
                code: Some(code.into()),
                signal: None,
                out_of_memory: false,
                problem,
            },
            Exit::Signal {
                signal,
                out_of_memory,
            } => Self {
                code: None,
                signal: Some(signal.into()),
                out_of_memory,
                problem,
            },
        }
    }

    pub(crate) fn exit(&self) -> Result<Exit, String> {
        let byte = |n: u32| u8::try_from(n).map_err(|_| format!("exit status {n} is above 255"));
        match (self.code, self.signal) {
            (Some(code), None) => Ok(Exit::Code(byte(code)?)),
            (None, Some(signal)) => Ok(Exit::Signal {
                signal: byte(signal)?,
                out_of_memory: self.out_of_memory,
            }),
            (Some(_), Some(_)) | (None, None) => Err("an exit has a code or a signal".to_owned()),
        }
    }
}

impl From<&CheckedDisk> for Disk {
    fn from(disk: &CheckedDisk) -> Self {
        let mut wire = Self::default();
        match disk {
            CheckedDisk::Serial(text) => wire.serial = Some(text.clone()),
            CheckedDisk::Label(text) => wire.label = Some(text.clone()),
            CheckedDisk::Device(text) => wire.device = Some(text.clone()),
        }
        wire
    }
}

impl TryFrom<Disk> for CheckedDisk {
    type Error = String;

    fn try_from(disk: Disk) -> Result<Self, String> {
        match (disk.serial, disk.label, disk.device) {
            (Some(text), None, None) => Ok(Self::Serial(text)),
            (None, Some(text), None) => Ok(Self::Label(text)),
            (None, None, Some(text)) => Ok(Self::Device(text)),
            _ => Err("a disk has exactly one of serial, label and device".to_owned()),
        }
    }
}

impl From<&CheckedNetwork> for Network {
    fn from(network: &CheckedNetwork) -> Self {
        let bytes = |address: &IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self {
            ipv4: network.ipv4.octets().to_vec(),
            ipv6: network.ipv6.octets().to_vec(),
            gateway_ipv4: network.gateway_ipv4.octets().to_vec(),
            gateway_ipv6: network.gateway_ipv6.octets().to_vec(),
            gateway_mac: network.gateway_mac.0.to_vec(),
            mac: network.mac.0.to_vec(),
            mtu: network.mtu,
            dns: network.dns.iter().map(bytes).collect(),
        }
    }
}

impl TryFrom<Network> for CheckedNetwork {
    type Error = String;

    fn try_from(network: Network) -> Result<Self, String> {
        let dns = |bytes: &Vec<u8>| match bytes.len() {
            4 => Ok(IpAddr::V4(Ipv4Addr::from(fixed::<4>("dns", bytes)?))),
            _ => Ok(IpAddr::V6(Ipv6Addr::from(fixed::<16>("dns", bytes)?))),
        };
        Ok(Self {
            ipv4: Ipv4Addr::from(fixed::<4>("ipv4", &network.ipv4)?),
            ipv6: Ipv6Addr::from(fixed::<16>("ipv6", &network.ipv6)?),
            gateway_ipv4: Ipv4Addr::from(fixed::<4>("gateway_ipv4", &network.gateway_ipv4)?),
            gateway_ipv6: Ipv6Addr::from(fixed::<16>("gateway_ipv6", &network.gateway_ipv6)?),
            gateway_mac: MacAddress(fixed("gateway_mac", &network.gateway_mac)?),
            mac: MacAddress(fixed("mac", &network.mac)?),
            mtu: network.mtu,
            dns: network.dns.iter().map(dns).collect::<Result<_, String>>()?,
        })
    }
}

impl From<&CheckedBoot> for Boot {
    fn from(boot: &CheckedBoot) -> Self {
        let variable = |(name, value): &(String, String)| Variable {
            name: name.clone(),
            value: value.clone(),
        };
        Self {
            hostname: boot.hostname.clone(),
            network: boot.network.as_ref().map(Network::from),
            arguments: boot.arguments.clone(),
            environment: boot.environment.iter().map(variable).collect(),
            working_directory: boot.working_directory.clone(),
            user: boot.user.clone(),
            stop_signal: boot.stop_signal,
            root: Some(Disk::from(&boot.root)),
            overlay: boot.overlay.as_ref().map(Disk::from),
            seed: boot.seed.to_vec(),
            unix_nanos: boot.unix_nanos,
        }
    }
}

impl TryFrom<Boot> for CheckedBoot {
    type Error = String;

    fn try_from(boot: Boot) -> Result<Self, String> {
        if boot.arguments.is_empty() {
            return Err("arguments are empty: there is no program to start".to_owned());
        }
        Ok(Self {
            hostname: boot.hostname,
            network: boot.network.map(CheckedNetwork::try_from).transpose()?,
            arguments: boot.arguments,
            environment: boot.environment.into_iter().map(|v| (v.name, v.value)).collect(),
            working_directory: boot.working_directory,
            user: boot.user,
            stop_signal: boot.stop_signal,
            root: boot.root.ok_or("root is missing")?.try_into()?,
            overlay: boot.overlay.map(CheckedDisk::try_from).transpose()?,
            seed: fixed("seed", &boot.seed)?,
            unix_nanos: boot.unix_nanos,
        })
    }
}
