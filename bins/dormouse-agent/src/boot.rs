//! The boot steps in their order: identity first, network after, then the root file system, then
//! the workload.

use std::fs::{self, File};
use std::io::ErrorKind;

use anyhow::{Context, Result};
use dormouse_guest::{Boot, Network};

use crate::account::{self, Account};
use crate::life::Input;
use crate::uevent::Uevents;
use crate::{early, network, root, say, workload};

/// Carries out a boot and says how it went.
pub(crate) fn carry_out(boot: &Boot, uevents: &Uevents) -> Input {
    match prepare(boot, uevents) {
        Ok(account) => match workload::start(boot, &account) {
            Ok(pid) => Input::Started { pid },
            Err(workload::NotStarted { code, problem }) => {
                say(format_args!("{problem}"));
                Input::NotStarted { code, problem }
            }
        },
        Err((step, error)) => {
            let problem = format!("{error:#}");
            say(format_args!("boot step {step} failed: {problem}"));
            Input::BootFailed { step, problem }
        }
    }
}

fn prepare(boot: &Boot, uevents: &Uevents) -> Result<Account, (&'static str, anyhow::Error)> {
    let at = |step| move |error| (step, error);
    reseed(&boot.seed).map_err(at("seed"))?;
    dormouse_sys::guest::set_wall_clock(boot.unix_nanos)
        .context("set the clock")
        .map_err(at("clock"))?;
    if !boot.hostname.is_empty() {
        dormouse_sys::guest::set_host_name(&boot.hostname)
            .context("set the host name")
            .map_err(at("hostname"))?;
    }
    network::set_up(boot.network.as_ref(), uevents).map_err(at("network"))?;
    root::enter(&boot.root, boot.overlay.as_ref(), uevents).map_err(at("root"))?;
    root::furnish().map_err(at("mounts"))?;
    write_names(boot).map_err(at("names"))?;
    let read = |path: &str| match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(("user", anyhow::Error::from(error).context(format!("read {path}")))),
    };
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    account::resolve(&boot.user, &passwd, &group).map_err(|what| ("user", anyhow::Error::msg(what)))
}

/// Mixes the seed into the kernel's random state and rekeys it.
pub(crate) fn reseed(seed: &[u8; dormouse_sys::guest::SEED_LENGTH]) -> Result<()> {
    let random = File::open("/dev/urandom").context("open /dev/urandom")?;
    dormouse_sys::guest::reseed(&random, seed).context("reseed the kernel's random state")
}

/// The guest's names for itself, its peers and its resolvers, as a container runtime writes them.
fn write_names(boot: &Boot) -> Result<()> {
    if boot.hostname.is_empty() {
        return Ok(());
    }
    fs::create_dir_all("/etc").context("make /etc")?;
    write_file("/etc/hostname", &format!("{}\n", boot.hostname))?;
    write_file("/etc/hosts", &hosts(&boot.hostname, boot.network.as_ref()))?;
    let servers = boot.network.iter().flat_map(|network| &network.dns);
    let resolvers: String = servers.map(|server| format!("nameserver {server}\n")).collect();
    if resolvers.is_empty() {
        Ok(())
    } else {
        write_file("/etc/resolv.conf", &resolvers)
    }
}

/// Replaces a file; a link that an image left there is not followed.
fn write_file(path: &str, text: &str) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("replace {path}")),
    }
    fs::write(path, text).with_context(|| format!("write {path}"))
}

fn hosts(hostname: &str, network: Option<&Network>) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    match network {
        Some(network) => {
            text.push_str(&format!(
                "{} {hostname}\n{} {hostname}\n",
                network.ipv4, network.ipv6
            ));
        }
        None => text.push_str(&format!("127.0.1.1 {hostname}\n")),
    }
    text
}

/// Everything before the daemon can be heard.
pub(crate) fn come_up() -> Result<Uevents> {
    early::mount_kernel_file_systems()?;
    let uevents = Uevents::listen()?;
    early::load_modules();
    early::free_initial_files();
    Ok(uevents)
}
