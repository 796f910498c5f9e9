//! `chaos --plant-leak`: makes one leak of a kind for real, and the census must find it and nothing else.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dormouse_keeper::{HeldKind, Holder, KeeperClient};
use dormouse_sys::netns::Namespace;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::gather::Site;
use super::thing::{Kind, Thing};
use crate::lab::Lab;

/// The device of a leaked tap.
const TAP: &str = "dmtleft";
/// Addresses of the pool that no instance of a short run gets.
const ROUTED: &str = "10.78.200.1";
const NEIGHBOUR: &str = "10.78.200.2";
const SOURCE: &str = "10.78.200.3";
/// What the keeper is given.
const HELD: &str = "left/behind";

/// A leak that was made, until it is taken back.
#[derive(Debug)]
pub(crate) struct Leak {
    kind: Kind,
    /// What the census must find.
    pub thing: Thing,
    process: Option<Child>,
    socket: Option<UnixListener>,
}

/// What makes a leak in the data plane, and what takes it back.
struct Order {
    program: &'static str,
    make: Vec<String>,
    undo: Vec<String>,
    name: String,
}

/// The order of a kind that the data plane has; `None` of the others.
fn order(kind: Kind) -> Option<Order> {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let ip = |make: String, undo: String, name: String| Order {
        program: "ip",
        make: words(make),
        undo: words(undo),
        name,
    };
    Some(match kind {
        Kind::Link => ip(
            format!("tuntap add dev {TAP} mode tap"),
            format!("link del {TAP}"),
            TAP.to_owned(),
        ),
        Kind::Route => ip(
            format!("route add {ROUTED} dev dmp0 proto 109"),
            format!("route del {ROUTED} dev dmp0"),
            format!("{ROUTED} dev dmp0"),
        ),
        Kind::Neighbour => ip(
            format!("neigh add {NEIGHBOUR} lladdr 02:d0:00:00:00:fe dev dmp0 nud permanent"),
            format!("neigh del {NEIGHBOUR} dev dmp0"),
            format!("{NEIGHBOUR} dev dmp0 permanent"),
        ),
        Kind::Rule => {
            let element = |verb: &str| {
                let set = format!("{verb} element inet dormouse_dm sources_ipv4");
                [words(set), vec![format!("{{ \"{TAP}\" . {SOURCE} }}")]].concat()
            };
            Order {
                program: "nft",
                make: element("add"),
                undo: element("delete"),
                name: format!("sources_ipv4 {TAP} {SOURCE}"),
            }
        }
        Kind::Process
        | Kind::Zombie
        | Kind::Mount
        | Kind::Namespace
        | Kind::Cgroup
        | Kind::Descriptor
        | Kind::File
        | Kind::Socket
        | Kind::Record => return None,
    })
}

/// Makes a leak of `kind` in the run of `lab`.
pub(crate) fn plant(kind: Kind, lab: &mut Lab, site: &Site) -> Result<Leak> {
    let mut leak = Leak {
        kind,
        thing: Thing::new(kind, ""),
        process: None,
        socket: None,
    };
    leak.thing.name = match order(kind) {
        Some(order) => {
            inside(lab, order.program, &order.make)?;
            order.name
        }
        None => leak.make(lab, site)?,
    };
    Ok(leak)
}

impl Leak {
    /// Makes a leak outside of the data plane; returns its name.
    fn make(&mut self, lab: &mut Lab, site: &Site) -> Result<String> {
        let uid = site.uids.end.saturating_sub(2);
        Ok(match self.kind {
            Kind::Process => {
                self.process = Some(start("sleep", &["600"], uid)?);
                format!("sleep of user {uid}")
            }
            Kind::Zombie => {
                let child = start("true", &[], uid)?;
                let pid = Pid::from_raw(child.id().cast_signed());
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                    .context("waiting for a zombie")?;
                self.process = Some(child);
                "true".to_owned()
            }
            Kind::Descriptor => {
                let path = site.data.join("config.toml");
                let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
                keep(lab, site, file.into())?;
                format!("keeper {}", path.display())
            }
            Kind::Record => {
                let statement = "INSERT INTO records VALUES (5, CAST('left' AS BLOB), x'00')";
                change_records(lab, site, statement)?;
                "intent left".to_owned()
            }
            Kind::Cgroup => {
                fs::create_dir(group(site)?).context("making a control group")?;
                "left".to_owned()
            }
            Kind::Mount | Kind::Namespace | Kind::File | Kind::Socket => {
                let path = self.make_at_a_path(site)?;
                path.to_string_lossy().into_owned()
            }
            Kind::Link | Kind::Route | Kind::Neighbour | Kind::Rule => bail!("not outside of the data plane"),
        })
    }

    /// Makes what has a path for its name.
    fn make_at_a_path(&mut self, site: &Site) -> Result<PathBuf> {
        let staging = site.data.join("images/staging");
        Ok(match self.kind {
            Kind::Mount => {
                mount(
                    Some(&staging),
                    &staging,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .context("binding a directory")?;
                staging
            }
            Kind::Namespace => {
                let path = site.run.join("left.netns");
                drop(Namespace::create_at(&path)?);
                path
            }
            Kind::Socket => {
                let path = site.run.join("left.sock");
                let socket = UnixListener::bind(&path);
                self.socket = Some(socket.with_context(|| format!("binding {}", path.display()))?);
                path
            }
            Kind::File
            | Kind::Process
            | Kind::Zombie
            | Kind::Link
            | Kind::Route
            | Kind::Neighbour
            | Kind::Rule
            | Kind::Cgroup
            | Kind::Descriptor
            | Kind::Record => {
                let path = staging.join("left.ext4");
                fs::write(&path, b"left").with_context(|| format!("writing {}", path.display()))?;
                path
            }
        })
    }

    /// Takes the leak back.
    pub(crate) fn take_back(mut self, lab: &mut Lab, site: &Site) -> Result<()> {
        if let Some(order) = order(self.kind) {
            return inside(lab, order.program, &order.undo);
        }
        if let Some(child) = &mut self.process {
            // A zombie cannot be killed; it is only reaped.
            let _ = child.kill();
            child.wait().context("reaping a planted process")?;
        }
        let path = PathBuf::from(&self.thing.name);
        match self.kind {
            Kind::Process | Kind::Zombie | Kind::Link | Kind::Route | Kind::Neighbour | Kind::Rule => Ok(()),
            Kind::Mount => umount2(&path, MntFlags::MNT_DETACH).context("unmounting"),
            Kind::Namespace => Ok(Namespace::remove(&path)?),
            Kind::Cgroup => fs::remove_dir(group(site)?).context("removing a control group"),
            Kind::Descriptor => {
                let (keeper, name) = (keeper(site), HELD.parse()?);
                let removed = lab.runtime().block_on(keeper.remove(&name));
                removed.map(drop).context("asking the keeper")
            }
            Kind::File | Kind::Socket => {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
            }
            Kind::Record => change_records(lab, site, "DELETE FROM records WHERE kind = 5"),
        }
    }
}

fn start(program: &str, arguments: &[&str], uid: u32) -> Result<Child> {
    Command::new(program)
        .args(arguments)
        .uid(uid)
        .gid(uid)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program}"))
}

/// Runs a program in the data plane.
fn inside(lab: &Lab, program: &str, arguments: &[String]) -> Result<()> {
    let output = lab
        .in_data_plane(|| Command::new(program).args(arguments).output())?
        .with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "{program} {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}

fn group(site: &Site) -> Result<PathBuf> {
    let root = site
        .cgroup
        .as_ref()
        .context("the daemon's control groups are not known")?;
    Ok(root.join("left"))
}

fn keeper(site: &Site) -> KeeperClient {
    KeeperClient::new(&site.run.join("keeper.sock"), Duration::from_secs(2))
}

fn keep(lab: &Lab, site: &Site, descriptor: OwnedFd) -> Result<()> {
    let (keeper, name) = (keeper(site), HELD.parse()?);
    let put = keeper.put(&name, HeldKind::Tap, vec![descriptor]);
    lab.runtime()
        .block_on(put)
        .context("asking the keeper to hold a descriptor")
}

/// Changes the store behind the daemon's back, which has it for itself while it runs.
fn change_records(lab: &mut Lab, site: &Site, statement: &str) -> Result<()> {
    lab.kill_daemon()?;
    let path = site.data.join("dormouse.db");
    let connection = rusqlite::Connection::open(&path).context("opening the store")?;
    connection.execute(statement, []).context("changing the store")?;
    connection
        .close()
        .map_err(|(_, error)| error)
        .context("closing the store")?;
    lab.start_daemon()
}
