//! A private daemon with a network of its own, for demo, benches and tests, which leaves nothing behind.
//!
//! ```text
//! namespace of the clients          namespace of the data plane
//!   c0  10.99.0.11-18/24  ───────  h0  10.99.0.1/24    taps, parking device: the daemon's
//!       fd99::11-18/64     veth        fd99::1/64
//! ```

mod copies;
mod counters;
mod footprint;
mod guest;
mod link;
mod measure;
mod memory;
mod oci;
mod parts;
mod restart;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dormouse_client::{Client, ClientError, HostAddress, v1};
use dormouse_sys::netns::Namespace;
use dormouse_sys::pidfd::PidFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::runtime::Runtime;

use crate::chaos::gather::Site;
use footprint::{Footprint, locked};

pub(crate) use counters::{Retransmits, checksum_errors, dropped_by_devices};
pub(crate) use footprint::{leave_to_interrupt, locked as locked_value, watch_interrupts};
pub(crate) use guest::{COMMAND_PORT, Guest, GuestSpec, TCP_PORT, UDP_PORT};
pub(crate) use link::Links;
pub(crate) use measure::{Answer, ask, ask_for_line, http_get};
pub(crate) use memory::{Held, cpu_ms, drop_cached, wait_given_back, zram_bytes};
pub(crate) use oci::{ImageFile, ImageRun, write_archive};
pub(crate) use parts::{Parts, Settings};
pub(crate) use restart::EndOfDaemon;

/// How long the daemon may take until its socket answers.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long one request to it may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(150);

/// The clients' addresses: so many of each family.
pub(crate) const SOURCES: u8 = 8;
/// The host's end of the clients' network.
pub(crate) const HOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
];

/// The addresses that clients send from, IPv4 and IPv6.
pub(crate) fn sources() -> [Vec<IpAddr>; 2] {
    let four = (11..11 + SOURCES).map(|last| IpAddr::V4(Ipv4Addr::new(10, 99, 0, last)));
    let six = (0x11..0x11 + u16::from(SOURCES))
        .map(|last| IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last)));
    [four.collect(), six.collect()]
}

/// Lets `time` pass.
pub(crate) fn tick(time: Duration) {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    // A signal ends it early; every caller loops.
    let _ = poll(&mut [], timeout);
}

/// Waits until a process has ended; returns when that was seen.
pub(crate) fn wait_exit(process: &PidFd, deadline: Duration) -> Result<Instant> {
    let end = Instant::now() + deadline;
    loop {
        let left =
            PollTimeout::try_from(end.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX);
        let mut wanted = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, left) {
            Ok(0) => bail!("the process did not end within {deadline:?}"),
            Ok(_) => return Ok(Instant::now()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for a process to end"),
        }
    }
}

/// Milliseconds from `from` to `to`.
pub(crate) fn ms_between(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

/// A private daemon and its network. Dropping it removes everything.
#[derive(Debug)]
pub(crate) struct Lab {
    footprint: Arc<Footprint>,
    parts: Parts,
    runtime: Runtime,
    client: Option<Client>,
    /// Where a daemon with fault points tells that it has reached one.
    fault_socket: Option<PathBuf>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        leave_to_interrupt();
        for problem in self.footprint.remove() {
            eprintln!("xtask: {problem}");
        }
    }
}

impl Lab {
    /// Makes the namespaces and starts the daemon; returns when it answers.
    pub(crate) fn start(parts: Parts) -> Result<Self> {
        Self::start_with(parts, &Settings::USUAL)
    }

    /// The same with settings of its own.
    pub(crate) fn start_with(parts: Parts, settings: &Settings) -> Result<Self> {
        let mut lab = Self::prepare(parts, settings)?;
        lab.start_daemon()?;
        Ok(lab)
    }

    /// Makes the namespaces and what the daemon needs, without starting it.
    pub(crate) fn prepare(parts: Parts, settings: &Settings) -> Result<Self> {
        let footprint = Footprint::claim(settings.uids)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let lab = Self {
            footprint,
            parts,
            runtime,
            client: None,
            fault_socket: None,
        };
        lab.make_network().context("making the lab's network")?;
        lab.place_kernel().context("placing the guest kernel")?;
        lab.write_config(settings)?;
        Ok(lab)
    }

    /// Removes everything and says what is left, which should be nothing.
    pub(crate) fn end(self) -> Result<Vec<String>> {
        let footprint = Arc::clone(&self.footprint);
        let mut left = footprint.remove();
        drop(self);
        left.extend(footprint.census()?);
        Ok(left)
    }

    fn make_network(&self) -> Result<()> {
        let (host_path, client_path) = (
            self.footprint.namespace("host"),
            self.footprint.namespace("client"),
        );
        let host = Namespace::create_at(&host_path)?;
        let client = Namespace::create_at(&client_path)?;
        join_namespaces(&host, &client)
    }

    /// Where the daemon looks for what `dormoused --unpack-kernel` unpacked.
    fn place_kernel(&self) -> Result<()> {
        let kernel = &self.parts.kernel;
        let place = self.footprint.data.join("guest").join(&kernel.release);
        fs::create_dir_all(place.join("modules"))?;
        for name in ["vmlinuz", "release"] {
            fs::copy(kernel.directory.join(name), place.join(name))?;
        }
        for entry in fs::read_dir(kernel.modules())? {
            let entry = entry?;
            fs::copy(entry.path(), place.join("modules").join(entry.file_name()))?;
        }
        Ok(())
    }

    fn write_config(&self, settings: &Settings) -> Result<()> {
        let footprint = &self.footprint;
        let pool = settings.ipv4_pool.as_ref();
        let pool = pool.map_or_else(String::new, |pool| format!("ipv4_pool = {pool:?}\n"));
        let monitor = settings.monitor.as_ref();
        let monitor = monitor.map_or_else(String::new, |program| {
            format!("qemu = {program:?}\naccelerator = \"emulation\"\n")
        });
        let text = format!(
            "data_directory = {:?}\nrun_directory = {:?}\n\
             [network]\nnamespace = {:?}\n{pool}\
             [hypervisor]\nfirst_uid = {}\nuid_count = {}\n{monitor}\
             [guest]\nagent = {:?}\n",
            footprint.data,
            footprint.run,
            footprint.namespace("host"),
            footprint.uids.start,
            footprint.uids.len(),
            self.parts.agent,
        );
        let path = self.config();
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn config(&self) -> PathBuf {
        self.footprint.data.join("config.toml")
    }

    fn log(&self) -> PathBuf {
        self.footprint.data.join("dormoused.log")
    }

    /// Starts the daemon, also again after it was killed; returns when it answers.
    pub(crate) fn start_daemon(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.spawn_daemon()?;
        while self.client.is_none() {
            self.connect()?;
            ensure!(
                begun.elapsed() < START_DEADLINE,
                "no answer within {START_DEADLINE:?}\n{}",
                self.log_tail()
            );
            if self.client.is_none() {
                tick(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Starts the daemon without waiting for it.
    pub(crate) fn spawn_daemon(&mut self) -> Result<()> {
        self.client = None;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .context("opening the daemon's log")?;
        let mut command = Command::new(&self.parts.daemon);
        if let Some(socket) = &self.fault_socket {
            command.env(dormouse_sys::fault::SOCKET_VARIABLE, socket);
        }
        let child = command
            .arg("--config")
            .arg(self.config())
            .envs(self.parts.environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing the daemon's log")?)
            .stderr(log)
            // Ctrl-C is ours to hear: the daemon must live to remove its instances.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.parts.daemon.display()))?;
        *locked(&self.footprint.daemon) = Some(child);
        Ok(())
    }

    /// One try to reach the daemon; an error when it has ended.
    fn connect(&mut self) -> Result<()> {
        if let Some(child) = locked(&self.footprint.daemon).as_mut()
            && let Some(status) = child.try_wait().context("looking at the daemon")?
        {
            bail!("the daemon ended with {status}\n{}", self.log_tail());
        }
        if !self.footprint.socket().exists() {
            return Ok(());
        }
        let host = HostAddress::Unix(self.footprint.socket());
        self.client = self.runtime.block_on(async {
            let client = Client::connect(&host).await.ok()?;
            let nobody = v1::GetInstanceRequest {
                instance: "nobody".to_owned(),
            };
            // Whatever it says, it answers.
            let answer = client.instances().get_instance(nobody).await;
            let error = ClientError::from(answer.err()?);
            let answered =
                matches!(&error, ClientError::Api(api) if api.kind == dormouse_model::Kind::NotFound);
            answered.then_some(client)
        });
        Ok(())
    }

    /// Has daemons that are started from now on tell their fault points to `socket`.
    pub(crate) fn listen_for_faults(&mut self, socket: &Path) {
        self.fault_socket = Some(socket.to_owned());
    }

    /// A connection to the daemon, for calls of other threads.
    pub(crate) fn client(&self) -> Result<Client> {
        self.client.clone().context("the daemon is not running")
    }

    /// The runtime of calls.
    pub(crate) fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.handle().clone()
    }

    /// Where its things are looked for; complete once the daemon has run.
    pub(crate) fn site(&self) -> Site {
        Site {
            data: self.footprint.data.clone(),
            run: self.footprint.run.clone(),
            uids: self.footprint.uids.clone(),
            daemon: self.parts.daemon.clone(),
            namespace: self.footprint.namespace("host"),
            // The shallowest is the daemon's own.
            cgroup: self.footprint.groups().unwrap_or_default().pop(),
        }
    }

    /// Sets a key of the configuration of daemons that are started from now on, by its variable.
    pub(crate) fn set(&mut self, variable: &str, value: &str) {
        self.parts.set(variable, value);
    }

    /// Asks the daemon to end, which leaves its guests as they are.
    pub(crate) fn stop_daemon(&mut self) -> Result<()> {
        self.client = None;
        self.footprint.stop_daemon()
    }

    /// Kills the daemon with SIGKILL.
    pub(crate) fn kill_daemon(&mut self) -> Result<()> {
        self.client = None;
        self.footprint.kill_daemon()
    }

    /// The end of the daemon's log, for errors.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(30)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Runs `work` against the daemon's API.
    pub(crate) fn call<T, F>(&self, work: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let client = self.client.clone().context("the daemon is not running")?;
        let outcome = self
            .runtime
            .block_on(async { tokio::time::timeout(REQUEST_DEADLINE, work(client)).await });
        outcome
            .with_context(|| format!("no answer of the daemon within {REQUEST_DEADLINE:?}"))?
            .map_err(Into::into)
    }

    /// What the daemon says of itself.
    pub(crate) fn info(&self) -> Result<v1::SystemInfo> {
        self.call(|client| async move {
            let info = client.system().get_info(v1::GetInfoRequest {}).await?;
            Ok(info.into_inner())
        })
    }

    /// Has these settings of the host put back when the lab is removed, last first.
    pub(crate) fn put_back_later(&self, settings: impl Iterator<Item = (PathBuf, String)>) {
        locked(&self.footprint.settings).splice(0..0, settings);
    }

    /// Where the daemon's records and files are.
    pub(crate) fn data(&self) -> &Path {
        &self.footprint.data
    }

    /// Where its sockets and the memory of running guests are.
    pub(crate) fn run_directory(&self) -> &Path {
        &self.footprint.run
    }

    /// The first user id of its VMMs.
    pub(crate) fn first_uid(&self) -> u32 {
        self.footprint.uids.start
    }

    /// The daemon's process id, 0 without one.
    pub(crate) fn daemon_pid(&self) -> u32 {
        locked(&self.footprint.daemon)
            .as_ref()
            .map_or(0, std::process::Child::id)
    }

    /// Imports the archive at `path`.
    pub(crate) fn import(&self, path: &Path) -> Result<()> {
        let request = v1::ImportImageRequest {
            path: path.to_string_lossy().into_owned(),
            ..Default::default()
        };
        self.call(|client| async move {
            let mut stream = client.images().import_image(request).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok(())
        })
        .with_context(|| format!("importing {}", path.display()))
    }

    /// Writes an archive with `files` and imports it under `run.name`.
    pub(crate) fn import_made(&self, run: &ImageRun<'_>, files: &[ImageFile]) -> Result<()> {
        let archive = self.footprint.data.join("import.tar");
        write_archive(&archive, run, files)?;
        self.import(&archive)?;
        fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
    }

    /// Imports the benches' server as `bench:latest`.
    pub(crate) fn import_server(&self) -> Result<()> {
        let server = &self.parts.server;
        let bytes = fs::read(server).with_context(|| format!("reading {}", server.display()))?;
        let run = ImageRun {
            name: "bench:latest",
            entrypoint: &["/bin/testserver"],
            ports: &["7000/tcp"],
        };
        self.import_made(
            &run,
            &[ImageFile {
                path: "bin/testserver",
                mode: 0o755,
                bytes,
            }],
        )
    }

    /// The namespace of the clients.
    pub(crate) fn clients(&self) -> Result<Namespace> {
        Ok(Namespace::open(&self.footprint.namespace("client"))?)
    }

    /// Runs `work` where the clients are.
    pub(crate) fn as_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.clients()?.within(work)?)
    }

    /// Runs `work` in the data plane.
    pub(crate) fn in_data_plane<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(Namespace::open(&self.footprint.namespace("host"))?.within(work)?)
    }

    /// The directories where files of guests may be.
    pub(crate) fn directories(&self) -> [&Path; 2] {
        [&self.footprint.data, &self.footprint.run]
    }

    /// What the lab is made of.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// A directory on disk for files of the bench's own.
    pub(crate) fn disk_directory(&self) -> &Path {
        &self.footprint.data
    }
}

/// Joins two namespaces as the picture above shows. Neighbours are permanent: who answers when is the
/// guest's matter alone.
pub(crate) fn join_namespaces(host: &Namespace, client: &Namespace) -> Result<()> {
    const HOST_MAC: [u8; 6] = [0x02, 0xd2, 0, 0, 0, 1];
    const CLIENT_MAC: [u8; 6] = [0x02, 0xd2, 0, 0, 0, 2];
    host.within(|| {
        let links = Links::open()?;
        links.up("lo")?;
        links.add_veth(("h0", HOST_MAC), ("c0", CLIENT_MAC), client)?;
        for (address, prefix) in HOST.into_iter().zip([24, 64]) {
            links.add_address("h0", address, prefix)?;
        }
        links.up("h0")?;
        for address in sources().into_iter().flatten() {
            links.add_neighbour("h0", address, CLIENT_MAC)?;
        }
        set_in_namespace("net/ipv4/ip_forward", "1")?;
        set_in_namespace("net/ipv6/conf/all/forwarding", "1")
    })??;
    client.within(|| {
        let links = Links::open()?;
        links.up("lo")?;
        for (addresses, prefix) in sources().into_iter().zip([24, 64]) {
            for address in addresses {
                links.add_address("c0", address, prefix)?;
            }
        }
        links.up("c0")?;
        for gateway in HOST {
            links.add_neighbour("c0", gateway, HOST_MAC)?;
            links.add_route(None, Some(gateway), "c0")?;
        }
        // Echo requests without raw sockets, for group 0.
        set_in_namespace("net/ipv4/ping_group_range", "0 0")?;
        HOST.into_iter().try_for_each(wait_reachable)
    })?
}

/// Waits until packets pass: the kernel may take a second to see that a new pair has carrier, and drops
/// IPv6 until then. A datagram to a port that nobody has is refused by a host that hears it.
fn wait_reachable(host: IpAddr) -> Result<()> {
    const DISCARD: u16 = 9;
    let any: IpAddr = if host.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let socket = UdpSocket::bind((any, 0)).context("opening a socket")?;
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context("setting a deadline")?;
        let refused = socket
            .connect((host, DISCARD))
            .and_then(|()| socket.send(b"there?"))
            .and_then(|_| socket.recv(&mut [0; 8]));
        if refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            return Ok(());
        }
    }
    bail!("{host} cannot be reached from the clients' namespace")
}

/// Writes a sysctl of the calling thread's namespace.
fn set_in_namespace(key: &str, value: &str) -> Result<()> {
    fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("setting {key} to {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_addresses_are_distinct_and_half_of_each_family() {
        let [four, six] = sources();
        assert_eq!(
            (four.len(), six.len()),
            (usize::from(SOURCES), usize::from(SOURCES))
        );
        assert!(four.iter().all(IpAddr::is_ipv4) && six.iter().all(IpAddr::is_ipv6));
        assert!(!four.contains(&HOST[0]) && !six.contains(&HOST[1]));
    }

    #[test]
    fn a_tick_passes_time() {
        let begun = Instant::now();
        tick(Duration::from_millis(3));
        assert!(begun.elapsed() >= Duration::from_millis(2));
    }
}
