//! `chaos --plant-leak`: makes one leak of a kind for real, and the census must find it and nothing else.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
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

/// Makes a leak of `kind` in the run of `lab`.
pub(crate) fn plant(kind: Kind, lab: &mut Lab, site: &Site) -> Result<Leak> {
    let mut leak = Leak {
        kind,
        thing: Thing::new(kind, ""),
        process: None,
        socket: None,
    };
    let uid = site.uids.end.saturating_sub(2);
    leak.thing.name = match kind {
        Kind::Process => {
            leak.process = Some(start("sleep", &["600"], uid)?);
            format!("sleep of user {uid}")
        }
        Kind::Zombie => {
            let child = start("true", &[], uid)?;
            let pid = Pid::from_raw(child.id().cast_signed());
            waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
                .context("waiting for a zombie")?;
            leak.process = Some(child);
            "true".to_owned()
        }
        Kind::Link => {
            inside(lab, "ip", &["tuntap", "add", "dev", TAP, "mode", "tap"])?;
            TAP.to_owned()
        }
        Kind::Route => {
            inside(
                lab,
                "ip",
                &["route", "add", ROUTED, "dev", "dmp0", "proto", "109"],
            )?;
            format!("{ROUTED} dev dmp0")
        }
        Kind::Neighbour => {
            let mac = "02:d0:00:00:00:fe";
            inside(
                lab,
                "ip",
                &[
                    "neigh",
                    "add",
                    NEIGHBOUR,
                    "lladdr",
                    mac,
                    "dev",
                    "dmp0",
                    "nud",
                    "permanent",
                ],
            )?;
            format!("{NEIGHBOUR} dev dmp0 permanent")
        }
        Kind::Rule => {
            inside(lab, "nft", &element("add").each_ref().map(String::as_str))?;
            format!("sources_ipv4 {TAP} {SOURCE}")
        }
        Kind::Mount => {
            let at = staging(site);
            mount(Some(&at), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context("binding a directory")?;
            at.to_string_lossy().into_owned()
        }
        Kind::Namespace => {
            let at = site.run.join("left.netns");
            drop(Namespace::create_at(&at)?);
            at.to_string_lossy().into_owned()
        }
        Kind::Cgroup => {
            fs::create_dir(group(site)?).context("making a control group")?;
            "left".to_owned()
        }
        Kind::Descriptor => {
            let path = site.data.join("config.toml");
            let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            keep(lab, site, file.into())?;
            format!("keeper {}", path.display())
        }
        Kind::File => {
            let path = staging(site).join("left.ext4");
            fs::write(&path, b"left").with_context(|| format!("writing {}", path.display()))?;
            path.to_string_lossy().into_owned()
        }
        Kind::Socket => {
            let path = site.run.join("left.sock");
            leak.socket =
                Some(UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?);
            path.to_string_lossy().into_owned()
        }
        Kind::Record => {
            change_records(
                lab,
                site,
                "INSERT INTO records VALUES (5, CAST('left' AS BLOB), x'00')",
            )?;
            "intent left".to_owned()
        }
    };
    Ok(leak)
}

impl Leak {
    /// Takes the leak back.
    pub(crate) fn take_back(mut self, lab: &mut Lab, site: &Site) -> Result<()> {
        if let Some(child) = &mut self.process {
            // A zombie cannot be killed; it is only reaped.
            let _ = child.kill();
            child.wait().context("reaping a planted process")?;
        }
        let path = PathBuf::from(&self.thing.name);
        match self.kind {
            Kind::Process | Kind::Zombie => Ok(()),
            Kind::Link => inside(lab, "ip", &["link", "del", TAP]),
            Kind::Route => inside(lab, "ip", &["route", "del", ROUTED, "dev", "dmp0"]),
            Kind::Neighbour => inside(lab, "ip", &["neigh", "del", NEIGHBOUR, "dev", "dmp0"]),
            Kind::Rule => inside(lab, "nft", &element("delete").each_ref().map(String::as_str)),
            Kind::Mount => umount2(&path, MntFlags::MNT_DETACH).context("unmounting"),
            Kind::Namespace => Ok(Namespace::remove(&path)?),
            Kind::Cgroup => fs::remove_dir(group(site)?).context("removing a control group"),
            Kind::Descriptor => {
                let (keeper, name) = (keeper(site), HELD.parse()?);
                lab.runtime()
                    .block_on(keeper.remove(&name))
                    .map(drop)
                    .context("asking the keeper")
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
fn inside(lab: &Lab, program: &str, arguments: &[&str]) -> Result<()> {
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

fn element(verb: &str) -> [String; 6] {
    let element = format!("{{ \"{TAP}\" . {SOURCE} }}");
    [verb, "element", "inet", "dormouse_dm", "sources_ipv4", &element].map(str::to_owned)
}

fn staging(site: &Site) -> PathBuf {
    site.data.join("images/staging")
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
