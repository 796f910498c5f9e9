//! Counting what is on the machine: processes, mounts, control groups, descriptors, files, sockets,
//! records. Looks from outside only, and never asks the daemon.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dormouse_model::WorkloadId;
use dormouse_sys::netns::Namespace;

use super::thing::{Census, Kind};

/// Where a daemon and what it makes are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// Its data directory.
    pub data: PathBuf,
    /// Its run directory.
    pub run: PathBuf,
    /// The users of its VMMs.
    pub uids: Range<u32>,
    /// The program of the daemon.
    pub daemon: PathBuf,
    /// The network namespace of its data plane.
    pub namespace: PathBuf,
    /// Its directory in the hierarchy of control groups, once it is known.
    pub cgroup: Option<PathBuf>,
}

impl Site {
    /// The mark of the site's control group directory, which bears the name of all of them.
    fn cgroup_name(&self) -> Option<String> {
        let name = self.cgroup.as_ref()?.file_name()?;
        Some(name.to_string_lossy().into_owned())
    }
}

/// Counts everything.
pub(crate) fn census(site: &Site) -> Result<Census> {
    let mut census = Census::default();
    let roles = processes(site, &mut census);
    for (pid, role) in &roles {
        if matches!(role, Role::Daemon | Role::Keeper) {
            descriptors(*pid, role.word(), &mut census);
        }
    }
    let mounted = mounts(site, &mut census)?;
    files(site, &mounted, &mut census);
    groups(site, &mut census);
    records(&site.data.join("dormouse.db"), &mut census)?;
    if site.namespace.exists() {
        let namespace = Namespace::open(&site.namespace)?;
        namespace.within(network::gather)??.into_iter().for_each(|thing| {
            census.add(thing.kind, thing.name);
        });
    }
    Ok(census)
}

/// What a process is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// The daemon.
    Daemon,
    /// The keeper of descriptors.
    Keeper,
    /// The VMM of the instance with this mark.
    Vmm(String),
    /// Anything else that bears a mark of ours.
    Other(String),
}

impl Role {
    fn word(&self) -> &str {
        match self {
            Self::Daemon => "daemon",
            Self::Keeper => "keeper",
            Self::Vmm(_) => "vmm",
            Self::Other(_) => "other",
        }
    }
}

/// One process as /proc tells it.
struct Seen {
    pid: u32,
    parent: u32,
    uid: u32,
    zombie: bool,
    name: String,
    arguments: String,
    environment: String,
    program: PathBuf,
    group: String,
}

/// Reads a process; `None` when it has ended meanwhile.
fn see(pid: u32) -> Option<Seen> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .unwrap_or_default()
    };
    let text = |file: &str| {
        let bytes = fs::read(directory.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    Some(Seen {
        pid,
        parent: field("PPid").parse().ok()?,
        uid: field("Uid").split_whitespace().next()?.parse().ok()?,
        zombie: field("State").starts_with(['Z', 'X']),
        name: field("Name").to_owned(),
        arguments: text("cmdline"),
        environment: text("environ"),
        program: fs::read_link(directory.join("exe")).unwrap_or_default(),
        group: text("cgroup"),
    })
}

/// All processes of the site by pid, entered into `census` too. Zombies are entered only.
pub(crate) fn processes(site: &Site, census: &mut Census) -> BTreeMap<u32, Role> {
    let mut seen: Vec<Seen> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| see(entry.file_name().to_string_lossy().parse().ok()?))
        .collect();
    seen.sort_by_key(|process| process.pid);
    let own = std::process::id();
    let mut found = BTreeMap::new();
    for process in &seen {
        if process.pid == own || process.zombie {
            continue;
        }
        let Some(role) = role(site, process) else { continue };
        let name = match &role {
            Role::Daemon | Role::Keeper => role.word().to_owned(),
            Role::Vmm(mark) => format!("vmm {mark}"),
            Role::Other(what) => what.clone(),
        };
        census.add(Kind::Process, name);
        found.insert(process.pid, role);
    }
    for process in seen.iter().filter(|process| process.zombie) {
        if site.uids.contains(&process.uid) || found.contains_key(&process.parent) {
            census.add(Kind::Zombie, process.name.clone());
        }
    }
    found
}

fn role(site: &Site, process: &Seen) -> Option<Role> {
    let (data, run) = (site.data.to_string_lossy(), site.run.to_string_lossy());
    let told = |text: &str| text.contains(&*data) || text.contains(&*run);
    let of_group = site.cgroup_name().and_then(|name| {
        let rest = process.group.split_once(&format!("/{name}/"))?.1;
        rest.split(['/', '\n', ' ']).next().map(str::to_owned)
    });
    if let Some(mark) = of_group {
        return Some(Role::Vmm(mark));
    }
    if site.uids.contains(&process.uid) {
        return Some(Role::Other(format!("{} of user {}", process.name, process.uid)));
    }
    if process.program == site.daemon && told(&process.arguments) {
        return Some(Role::Daemon);
    }
    let keeper = process
        .program
        .file_name()
        .is_some_and(|name| name == "dormouse-keeper");
    if keeper && told(&process.arguments) {
        return Some(Role::Keeper);
    }
    // Whoever starts us may have our paths in its arguments; only what was started by the site's own
    // processes has them in its environment as well.
    let marked =
        told(&process.environment) || (told(&process.arguments) && process.program.starts_with("/usr"));
    marked.then(|| Role::Other(process.name.clone()))
}

/// The descriptors of one process. Those that name something are told apart; the others are counted by
/// what they are.
pub(crate) fn descriptors(pid: u32, whose: &str, census: &mut Census) {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    for entry in fs::read_dir(directory.join("fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        let info = fs::read_to_string(directory.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|text| text.trim().to_owned())
        };
        let what = if target.contains("/net/tun") {
            format!("tap {}", field("iff:").unwrap_or_default())
        } else if let Some(process) = field("Pid:") {
            // A keeper that was restarted is another process, and the same thing.
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            let keeper = name.trim_end() == "dormouse-keeper";
            format!("process {}", if keeper { "keeper" } else { &process })
        } else if let Some((kind, _)) = target.split_once(":[") {
            kind.to_owned()
        } else if target.contains("/vmm/") && target.ends_with("/program") {
            "kept monitor".to_owned()
        } else {
            target
        };
        census.add(Kind::Descriptor, format!("{whose} {what}"));
    }
}

/// Mounts below our directories; namespaces are counted as such.
fn mounts(site: &Site, census: &mut Census) -> Result<BTreeSet<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let mut at = BTreeSet::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(path) = before.split(' ').nth(4) else {
            continue;
        };
        let path = PathBuf::from(path.replace("\\040", " "));
        if !path.starts_with(&site.run) && !path.starts_with(&site.data) {
            continue;
        }
        let kind = if after.starts_with("nsfs ") {
            Kind::Namespace
        } else {
            Kind::Mount
        };
        census.add(kind, path.to_string_lossy());
        at.insert(path);
    }
    Ok(at)
}

/// Files, directories and links below our directories, mounts of ours included; sockets are counted as
/// such. What a namespace is mounted on is counted there.
fn files(site: &Site, mounted: &BTreeSet<PathBuf>, census: &mut Census) {
    let mut open = vec![site.data.clone(), site.run.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            if directory == site.data.join("vmm") {
                // One thing, however many files a program has.
                census.add(Kind::File, "kept monitor");
                continue;
            }
            let name = memory_of(site, &path).unwrap_or_else(|| path.to_string_lossy().into_owned());
            let kind = meta.file_type();
            if kind.is_socket() {
                census.add(Kind::Socket, name);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap_or_default();
                census.add(Kind::File, format!("{name} -> {}", target.display()));
            } else if kind.is_dir() {
                if !is_group_mount(&path) {
                    open.push(path);
                }
                census.add(Kind::File, name + "/");
            } else if !(mounted.contains(&path) && meta.nlink() == 1) {
                census.add(Kind::File, name);
            }
        }
    }
}

/// The name of a guest's memory, which is in one place or the other.
fn memory_of(site: &Site, path: &Path) -> Option<String> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    let id = if folder == site.run.join("ram") {
        name.strip_suffix(".ram")?
    } else if name == "memory.ram" && folder.parent()? == site.data.join("instances") {
        folder.file_name()?.to_str()?
    } else {
        return None;
    };
    Some(format!("memory {id}"))
}

/// A hierarchy of control groups that the daemon mounted has its own count.
fn is_group_mount(path: &Path) -> bool {
    path.join("cgroup.procs").exists()
}

fn groups(site: &Site, census: &mut Census) {
    let Some(root) = &site.cgroup else { return };
    let mut open = vec![root.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                census.add(Kind::Cgroup, name);
                open.push(path);
            }
        }
    }
}

/// Records as they lie in the database, with those that were set aside. The daemon has the database for
/// itself, so this reads a copy of it and of its log, taken while nothing is under way.
fn records(database: &Path, census: &mut Census) -> Result<()> {
    if !database.exists() {
        return Ok(());
    }
    let scratch = tempfile::tempdir().context("making a place for a copy of the store")?;
    let copy = scratch.path().join("copy.db");
    for ending in ["", "-wal"] {
        let from = database.with_file_name(format!("dormouse.db{ending}"));
        match fs::copy(&from, copy.with_file_name(format!("copy.db{ending}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("copying {}", from.display()));
            }
            Ok(_) | Err(_) => {}
        }
    }
    let connection = rusqlite::Connection::open(&copy).context("opening a copy of the store")?;
    for table in ["records", "aside"] {
        let mut query = connection
            .prepare(&format!("SELECT kind, key FROM {table}"))
            .with_context(|| format!("reading {table}"))?;
        let rows = query
            .query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))
            .with_context(|| format!("reading {table}"))?;
        for row in rows {
            let (kind, key) = row.with_context(|| format!("reading {table}"))?;
            // Answers of requests expire by themselves; what is known of the host stays.
            if matches!(kind, 6 | 7) {
                continue;
            }
            let place = if table == "aside" { "aside " } else { "" };
            census.add(
                Kind::Record,
                format!("{place}{} {}", record_kind(kind), key_text(&key)),
            );
        }
    }
    Ok(())
}

/// The words for the store's kinds of records, by their numbers on disk.
fn record_kind(number: i64) -> String {
    match number {
        1 => "instance".to_owned(),
        2 => "image".to_owned(),
        3 => "image_name".to_owned(),
        4 => "idle".to_owned(),
        5 => "intent".to_owned(),
        6 => "request".to_owned(),
        7 => "host".to_owned(),
        other => format!("kind {other}"),
    }
}

/// A key as the store shows it.
fn key_text(key: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(key)
        && text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return text.to_owned();
    }
    match <[u8; 16]>::try_from(key) {
        Ok(bytes) => WorkloadId::from_bits(u128::from_be_bytes(bytes)).to_string(),
        Err(_) => format!("{key:02x?}"),
    }
}
