//! Making the data plane: the parking device, its settings, forwarding, packet rules. Everything is
//! found or made; what has a name of ours without our mark is an error, never taken over.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::Parseable;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::NetworkConfig;
use crate::error::NetworkError;
use crate::kernel::Kernel;
use crate::netlink::RequestSocket;
use crate::reaper::Reaper;
use crate::request::{self, Device, LinkSettings};
use crate::{rules, sources};

/// How long nft may take; it takes milliseconds.
const RULES_DEADLINE: Duration = Duration::from_secs(10);

impl Kernel {
    /// Finds or makes the data plane, in the namespace of the calling thread.
    pub(crate) fn set_up(config: NetworkConfig) -> Result<Self, NetworkError> {
        check_host(&config)?;
        let route = RequestSocket::open(netlink_sys::protocols::NETLINK_ROUTE)?;
        let packet = RequestSocket::open(sources::PROTOCOL)?;
        let reaper = Reaper::start()?;
        let mut kernel = Self {
            config,
            route,
            packet,
            reaper,
            parking: 0,
        };
        kernel.parking = kernel.make_parking_device()?;
        forward(&mut kernel)?;
        kernel.install_rules()?;
        // Entries that are made while nobody listens would stay silent for life with the default 2.
        set("/proc/sys/net/netfilter/nf_conntrack_events", "1")?;
        Ok(kernel)
    }

    /// Takes the data plane away: devices, rules, the pools' routes. Settings of the host stay.
    pub(crate) fn tear_down(&mut self) -> Result<(), NetworkError> {
        let pools = self.pools();
        let mut requests = vec![request::remove_link(Device::Index(self.parking))];
        requests.extend(pools.map(request::remove_unreachable));
        let links = self.route.run(&requests);
        let rules = self.uninstall_rules();
        links.and(rules)
    }

    pub(crate) fn pools(&self) -> [IpNet; 2] {
        [
            IpNet::V4(self.config.ipv4_pool.trunc()),
            IpNet::V6(self.config.ipv6_prefix.trunc()),
        ]
    }

    /// The veth pair, both ends up and set for parking. Returns the number of `p0`.
    fn make_parking_device(&mut self) -> Result<u32, NetworkError> {
        let (p0, p1) = (self.config.parking_device(), self.config.reentry_device());
        let mark = self.config.owner_mark();
        let found = [self.find_own(&p0)?, self.find_own(&p1)?];
        if found == [None, None] {
            let ends = [
                (p0.as_str(), NetworkConfig::PARKING_MAC),
                (p1.as_str(), NetworkConfig::REENTRY_MAC),
            ];
            // One system call: being killed cannot leave a pair without its mark.
            self.route.run(&[
                request::add_veth(ends, self.config.mtu_bytes),
                request::set_alias(Device::Named(&p0), &mark),
                request::set_alias(Device::Named(&p1), &mark),
            ])?;
        }
        let lookup = |name: &str, found: Option<u32>| {
            let why = "the other end of its pair is missing".to_owned();
            found.ok_or_else(|| NetworkError::DeviceInTheWay {
                name: name.to_owned(),
                why,
            })
        };
        let p0_index = lookup(&p1, self.find_own(&p0)?)?;
        let p1_index = lookup(&p0, self.find_own(&p1)?)?;
        self.set_parking(&p0)?;
        // What comes back has its way back elsewhere, and the host itself may have sent it.
        set(conf("ipv4", &p1, "rp_filter"), "0")?;
        set(conf("ipv4", &p1, "accept_local"), "1")?;
        let [gateway, _] = self.gateways();
        let [_, host_ipv6] = self.host_sources();
        let quiet = LinkSettings {
            mtu_bytes: Some(self.config.mtu_bytes),
            ..LinkSettings::default()
        };
        let mut requests = Vec::new();
        // The other end first: p0 then has its carrier when it comes up, and is fit to send at once.
        // The other way round it drops what it is given until a worker of the kernel gets to it.
        for index in [p1_index, p0_index] {
            requests.push(request::set_link(Device::Index(index), &quiet));
            requests.push(request::raise_link(Device::Index(index)));
            // On p1 too: with a loose check of sources a device without an address passes nothing.
            requests.push(request::add_address(index, gateway));
        }
        requests.push(request::add_address(p0_index, host_ipv6));
        if self.config.namespace.is_some() {
            requests.push(request::raise_link(Device::Named("lo")));
        }
        self.route.run(&requests)?;
        Ok(p0_index)
    }

    /// No answer is ever sought on the wire, only from user space, for longer than any host runs;
    /// and what waits meanwhile may take the configured memory (Documentation/networking/ip-sysctl).
    fn set_parking(&self, p0: &str) -> Result<(), NetworkError> {
        let bytes = self.config.parked_bytes_per_sleeper.0.to_string();
        for family in ["ipv4", "ipv6"] {
            for (name, value) in [
                ("ucast_solicit", "0"),
                ("mcast_solicit", "0"),
                ("mcast_resolicit", "0"),
                ("app_solicit", "1000000000"),
                ("retrans_time_ms", "1000"),
                ("unres_qlen_bytes", bytes.as_str()),
            ] {
                set(format!("/proc/sys/net/{family}/neigh/{p0}/{name}"), value)?;
            }
        }
        // No detection of duplicates, no routers: this link has no other end.
        for (name, value) in [
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("router_solicitations", "0"),
        ] {
            set(conf("ipv6", p0, name), value)?;
        }
        Ok(())
    }

    /// The number of the device `name` when it is ours, `None` when there is none.
    pub(crate) fn find_own(&mut self, name: &str) -> Result<Option<u32>, NetworkError> {
        let Some((_, body)) = self.route.get(&request::get_link(name))? else {
            return Ok(None);
        };
        let link = OwnLink::read(&body).ok_or_else(|| unreadable("looking up the device", name))?;
        let mark = self.config.owner_mark();
        if link.alias.as_deref() == Some(mark.as_str()) {
            return Ok(Some(link.index));
        }
        let why = match link.alias {
            Some(alias) => format!("its alias is {alias:?}, not {mark:?}"),
            None => format!("it has no alias, ours have {mark:?}"),
        };
        Err(NetworkError::DeviceInTheWay {
            name: name.to_owned(),
            why,
        })
    }

    fn install_rules(&mut self) -> Result<(), NetworkError> {
        let name = self.config.table_name();
        if let Some((_, table)) = self.packet.get(&sources::table(&name))? {
            let mark = self.config.owner_mark();
            if !sources::has_comment(&table, &mark) {
                return Err(NetworkError::TableInTheWay { name, mark });
            }
        }
        let (success, text) = nft(&["-f", "-"], &rules::install(&self.config))?;
        if success {
            Ok(())
        } else {
            Err(NetworkError::Rules { text })
        }
    }

    fn uninstall_rules(&mut self) -> Result<(), NetworkError> {
        let table = sources::table(&self.config.table_name());
        if self.packet.get(&table)?.is_none() {
            return Ok(());
        }
        let (success, text) = nft(&["-f", "-"], &rules::uninstall(&self.config))?;
        if success {
            Ok(())
        } else {
            Err(NetworkError::Rules { text })
        }
    }
}

/// What we read of a device.
#[derive(Debug, Clone)]
pub(crate) struct OwnLink {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
}

impl OwnLink {
    /// From the body of an `RTM_NEWLINK`; `None` when it cannot be read.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let message = LinkMessage::parse(body).ok()?;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
        };
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name = name;
            } else if let LinkAttribute::IfAlias(alias) = attribute {
                link.alias = Some(alias);
            }
        }
        Some(link)
    }
}

/// An answer of the kernel that is not what it should be.
pub(crate) fn unreadable(doing: &'static str, about: impl std::fmt::Display) -> NetworkError {
    let source = io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer cannot be read");
    NetworkError::Kernel {
        doing,
        about: about.to_string(),
        source,
    }
}

/// Refuses a namespace in which the data plane cannot work.
fn check_host(config: &NetworkConfig) -> Result<(), NetworkError> {
    // In a namespace of our own the setting is ours; in the host's it protects other devices.
    let strict = Path::new("/proc/sys/net/ipv4/conf/all/rp_filter");
    if get(strict).is_ok_and(|value| value == "1") {
        if config.namespace.is_none() {
            return Err(NetworkError::SourceCheckStrict);
        }
        set(strict, "0")?;
    }
    match get(Path::new("/proc/sys/net/ipv6/conf/default/disable_ipv6")) {
        Ok(value) if value == "0" => Ok(()),
        Ok(_) | Err(_) => Err(NetworkError::Ipv6Off),
    }
}

/// Switches forwarding on, and answers for the addresses that nobody has.
fn forward(kernel: &mut Kernel) -> Result<(), NetworkError> {
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    let ipv6 = Path::new("/proc/sys/net/ipv6/conf/all/forwarding");
    if get(ipv6).ok().as_deref() != Some("1") {
        // A router ignores other routers' advertisements unless told otherwise: a host that has its
        // default route from one would lose it in the next moment.
        for device in fs::read_dir("/proc/sys/net/ipv6/conf")
            .into_iter()
            .flatten()
            .flatten()
        {
            // What devices to come begin with stays: taps must not listen to their guests.
            if device.file_name() == "all" || device.file_name() == "default" {
                continue;
            }
            let accept = device.path().join("accept_ra");
            if get(&accept).is_ok_and(|value| value == "1") {
                set(accept, "2")?;
            }
        }
        set(ipv6, "1")?;
    }
    let pools = kernel.pools();
    kernel.route.run(&pools.map(request::add_unreachable))
}

fn conf(family: &str, device: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{device}/{name}"))
}

fn get(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}

/// Writes a setting of the calling thread's namespace, unless it is so already: a read-only /proc
/// that has what we need is good enough.
pub(crate) fn set(path: impl Into<PathBuf>, value: &str) -> Result<(), NetworkError> {
    let path = path.into();
    if get(&path).is_ok_and(|current| current == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| NetworkError::Setting {
        path,
        value: value.to_owned(),
        source,
    })
}

/// Runs nft in the calling thread's namespace. Returns whether it succeeded and what it printed.
fn nft(arguments: &[&str], input: &str) -> Result<(bool, String), NetworkError> {
    let (mut reader, writer) = io::pipe().map_err(NetworkError::RulesProgram)?;
    let errors = writer.try_clone().map_err(NetworkError::RulesProgram)?;
    // The command keeps its copies of the pipe's end as long as it lives: here no longer than needed.
    let mut child = Command::new("nft")
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .map_err(NetworkError::RulesProgram)?;
    let fed = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let read = read_until_closed(&mut reader, Instant::now() + RULES_DEADLINE);
    if read.is_err() {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
    }
    let status = child.wait().map_err(NetworkError::RulesProgram)?;
    let text = read.map_err(NetworkError::RulesProgram)?;
    // An nft that refuses early closes its input; what it printed says more than that.
    if status.success() {
        fed.map_err(NetworkError::RulesProgram)?;
    }
    Ok((status.success(), text))
}

/// Reads until the last writer has closed its end.
fn read_until_closed(reader: &mut io::PipeReader, deadline: Instant) -> io::Result<String> {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], wait)?;
        if ready == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no end within {RULES_DEADLINE:?}"),
            ));
        }
        match reader.read(&mut part)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            count => bytes.extend_from_slice(part.get(..count).unwrap_or_default()),
        }
    }
}

impl Kernel {
    /// The host as guests see it, by family.
    pub(crate) fn gateways(&self) -> [IpAddr; 2] {
        [
            IpAddr::V4(self.config.gateway_ipv4),
            IpAddr::V6(self.config.gateway_ipv6),
        ]
    }

    /// Where the host's own packets to guests come from, by family: always the same, awake or
    /// asleep, whatever other addresses the host has.
    pub(crate) fn host_sources(&self) -> [IpAddr; 2] {
        [
            IpAddr::V4(self.config.gateway_ipv4),
            IpAddr::V6(self.config.host_ipv6()),
        ]
    }
}
