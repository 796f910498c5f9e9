//! Instances of a lab: made, put to sleep, looked at, removed.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::{self, InstanceState, MemoryPlacement};
use dormouse_sys::pidfd::PidFd;

use super::measure::{ask, ask_for_line};
use super::{Lab, ms_between, tick, wait_exit};

/// How long a guest may take to boot where it is emulated.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// How long its server may take to listen after that.
const SERVE_DEADLINE: Duration = Duration::from_secs(20);
/// How long a process may take to go after its standby was asked for.
const SLEEP_DEADLINE: Duration = Duration::from_secs(30);

/// The benches' server: echo over TCP.
pub(crate) const TCP_PORT: u16 = 7000;
/// Echo over UDP.
pub(crate) const UDP_PORT: u16 = 7001;
/// Commands: a line in, a line (or lines up to the end of the stream) out.
pub(crate) const COMMAND_PORT: u16 = 7002;

/// What to make.
#[derive(Debug, Clone)]
pub(crate) struct GuestSpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its image.
    pub image: &'a str,
    /// Its RAM.
    pub ram_mib: u64,
    /// Where its RAM lives.
    pub placement: MemoryPlacement,
    /// Sleeps by itself after this long.
    pub idle: Option<Duration>,
}

/// An instance of the lab.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its addresses, IPv4 and IPv6.
    pub addresses: [IpAddr; 2],
}

impl Guest {
    /// Where it serves `port`, over IPv4 or IPv6 by the parity of `turn`.
    pub(crate) fn at(&self, turn: usize, port: u16) -> SocketAddr {
        let [four, six] = self.addresses;
        SocketAddr::new(if turn.is_multiple_of(2) { four } else { six }, port)
    }
}

/// One standby that was asked for through the API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nap {
    /// When it was asked for.
    pub asked: Instant,
    /// Milliseconds until the VMM's process was gone, by its pidfd.
    pub gone_ms: f64,
    /// Milliseconds until the answer, which comes after the commit.
    pub answered_ms: f64,
    /// The daemon's own figure for the process gone.
    pub daemon_gone_ms: f64,
    /// The daemon's own figure for the commit.
    pub committed_ms: f64,
    /// CPU time of the daemon and the VMM.
    pub cpu_ms: f64,
}

impl Lab {
    /// Makes and starts an instance; returns when its agent says that it is ready.
    pub(crate) fn run(&self, spec: &GuestSpec<'_>) -> Result<Guest> {
        let standby = spec.idle.map(|idle| v1::StandbyPolicy {
            enabled: true,
            idle_timeout: format!("{}ms", idle.as_millis()),
            ..Default::default()
        });
        let request = v1::CreateInstanceRequest {
            name: spec.name.to_owned(),
            image: spec.image.to_owned(),
            memory_bytes: spec.ram_mib << 20,
            placement: spec.placement.into(),
            standby,
            start: true,
            ..Default::default()
        };
        let made = self
            .call(|client| async move { Ok(client.instances().create_instance(request).await?.into_inner()) })
            .with_context(|| format!("creating {}\n{}", spec.name, self.log_tail()))?;
        let addresses = made.addresses.context("an instance without addresses")?;
        let guest = Guest {
            id: made.id,
            name: made.name,
            addresses: [
                addresses
                    .ipv4
                    .parse()
                    .with_context(|| format!("the address {:?}", addresses.ipv4))?,
                addresses
                    .ipv6
                    .parse()
                    .with_context(|| format!("the address {:?}", addresses.ipv6))?,
            ],
        };
        self.wait_for(&guest, InstanceState::Running, BOOT_DEADLINE)
            .with_context(|| format!("waiting for {} to boot\n{}", spec.name, self.log_tail()))?;
        Ok(guest)
    }

    /// Makes an instance of the benches' server; returns when it answers, which may be some milliseconds
    /// after its agent says that it is ready.
    pub(crate) fn run_server(&self, spec: &GuestSpec<'_>) -> Result<Guest> {
        let guest = self.run(spec)?;
        let (begun, to) = (Instant::now(), guest.at(0, TCP_PORT));
        while let Err(error) = self.as_client(|| ask(to, b"there?", SERVE_DEADLINE))? {
            if begun.elapsed() > SERVE_DEADLINE {
                return Err(error).with_context(|| format!("the server in {}", guest.name));
            }
            tick(Duration::from_millis(20));
        }
        Ok(guest)
    }

    /// The instance now.
    pub(crate) fn view(&self, guest: &Guest) -> Result<v1::Instance> {
        let request = v1::GetInstanceRequest {
            instance: guest.id.clone(),
        };
        self.call(|client| async move { Ok(client.instances().get_instance(request).await?.into_inner()) })
            .with_context(|| format!("looking at {}", guest.name))
    }

    /// Waits until the instance is in `state`.
    pub(crate) fn wait_for(
        &self,
        guest: &Guest,
        state: InstanceState,
        deadline: Duration,
    ) -> Result<v1::Instance> {
        let request = v1::WaitInstanceRequest {
            instance: guest.id.clone(),
            states: vec![state.into()],
            deleted: false,
            timeout: Some(prost_types::Duration {
                seconds: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(deadline.subsec_nanos()).unwrap_or(0),
            }),
        };
        let waited = self
            .call(|client| async move { Ok(client.instances().wait_instance(request).await?.into_inner()) });
        waited
            .with_context(|| format!("waiting for {} to be {}", guest.name, state.as_str_name()))?
            .instance
            .with_context(|| format!("{} is gone", guest.name))
    }

    /// Puts the instance to sleep, seen from outside: the process by its pidfd.
    pub(crate) fn nap(&self, guest: &Guest) -> Result<Nap> {
        let before = self.view(guest)?;
        ensure!(before.pid != 0, "{} has no process to go", guest.name);
        let process =
            PidFd::open(before.pid).with_context(|| format!("opening the process of {}", guest.name))?;
        let cpu_before = super::cpu_ms(self.daemon_pid(), true) + super::cpu_ms(before.pid, false);
        let request = v1::StandbyInstanceRequest {
            instance: guest.id.clone(),
            ..Default::default()
        };
        let (asked, answered, gone) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| wait_exit(&process, SLEEP_DEADLINE));
            let asked = Instant::now();
            let outcome = self.call(|client| async move {
                Ok(client.instances().standby_instance(request).await?.into_inner())
            });
            let answered = Instant::now();
            let gone = match watch.join() {
                Ok(gone) => gone,
                Err(_) => Err(anyhow::anyhow!("the watching thread panicked")),
            };
            (asked, outcome.map(|instance| (instance, answered)), gone)
        });
        let (_, answered) =
            answered.with_context(|| format!("putting {} to sleep\n{}", guest.name, self.log_tail()))?;
        let gone = gone.with_context(|| format!("{} asleep", guest.name))?;
        let after = self.view(guest)?;
        ensure!(
            after.state() == InstanceState::Standby,
            "{} is {}",
            guest.name,
            after.state().as_str_name()
        );
        // The daemon has reaped the VMM: its children's time holds all that the VMM ever used.
        let cpu_after = super::cpu_ms(self.daemon_pid(), true);
        Ok(Nap {
            asked,
            gone_ms: ms_between(asked, gone),
            answered_ms: ms_between(asked, answered),
            daemon_gone_ms: after
                .last_standby_ms
                .with_context(|| format!("{} has no standby", guest.name))?,
            committed_ms: after
                .last_commit_ms
                .with_context(|| format!("{} has no committed standby", guest.name))?,
            cpu_ms: (cpu_after - cpu_before).max(0.0),
        })
    }

    /// Wakes the instance through the API.
    pub(crate) fn wake(&self, guest: &Guest) -> Result<v1::Instance> {
        let request = v1::WakeInstanceRequest {
            instance: guest.id.clone(),
            ..Default::default()
        };
        self.call(|client| async move { Ok(client.instances().wake_instance(request).await?.into_inner()) })
            .with_context(|| format!("waking {}\n{}", guest.name, self.log_tail()))
    }

    /// Removes the instance in whatever state.
    pub(crate) fn delete(&self, guest: &Guest) -> Result<()> {
        let request = v1::DeleteInstanceRequest {
            instance: guest.id.clone(),
            force: true,
            ..Default::default()
        };
        self.call(|client| async move { Ok(client.instances().delete_instance(request).await?.into_inner()) })
            .with_context(|| format!("removing {}", guest.name))
            .map(drop)
    }

    /// Gives the benches' server in the guest a command and returns its answer.
    pub(crate) fn command(&self, guest: &Guest, line: &str, deadline: Duration) -> Result<String> {
        let to = guest.at(0, COMMAND_PORT);
        self.as_client(|| ask_for_line(to, line, deadline))?
            .with_context(|| format!("the command {line:?} to {}", guest.name))
    }
}
