//! What must be on the machine for what the API lists. Pure.
//!
//! | state | process, tap, routes to it | routes to the parking device | memory | saved state |
//! |---|---|---|---|---|
//! | running, initializing | one each | one a family | one file | perhaps, of the last wake |
//! | standby | none | one a family | one file | one, of its generation |
//! | stopped, failed | none | none | none | none |
//!
//! In every state: one record; a disk, logs, folders and a control group once it was started. A census is
//! taken when nothing is under way, so other states are none of a quiet daemon.

use std::collections::BTreeSet;

use dormouse_client::v1::InstanceState;

use super::gather::Site;
use super::thing::{Census, Expected, Kind};

/// How many more nameless descriptors a daemon may have than when it was idle: connections of its API.
const NAMELESS: u32 = 12;

/// What the API says of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceFact {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: InstanceState,
    /// Why it has failed.
    pub reason: String,
    /// Its addresses.
    pub addresses: [String; 2],
    /// The process of its VMM; 0 without one.
    pub pid: u32,
    /// The number of its memory image.
    pub generation: u64,
    /// The image that it was made from.
    pub digest: String,
    /// The kept program that it is of; empty before its first start.
    pub monitor: String,
}

impl InstanceFact {
    /// The mark that everything made for it bears.
    pub(crate) fn mark(&self) -> &str {
        self.id
            .get(self.id.len().saturating_sub(10)..)
            .unwrap_or_default()
    }
}

/// What the API says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFact {
    /// The digest of its manifest.
    pub digest: String,
    /// Its names.
    pub names: Vec<String>,
    /// Digests of everything that it consists of, read from its manifest.
    pub blobs: Vec<String>,
}

/// What the API lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// All instances.
    pub instances: Vec<InstanceFact>,
    /// All images.
    pub images: Vec<ImageFact>,
}

/// How alive an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It has a process and its packets.
    Awake,
    /// Its memory waits.
    Asleep,
    /// Nothing of it runs or waits.
    Resting,
    /// Something is under way.
    Moving,
}

/// What a state means for what must be there.
pub(crate) const fn life(state: InstanceState) -> Life {
    match state {
        InstanceState::Running | InstanceState::Initializing => Life::Awake,
        InstanceState::Standby => Life::Asleep,
        InstanceState::Stopped | InstanceState::Failed => Life::Resting,
        InstanceState::Unspecified
        | InstanceState::Starting
        | InstanceState::Dozing
        | InstanceState::Sleeping
        | InstanceState::Waking
        | InstanceState::Stopping
        | InstanceState::Deleting => Life::Moving,
    }
}

/// What must be there over `house`, which is what an idle daemon without images and instances had.
pub(crate) fn expected(site: &Site, house: &Census, listing: &Listing) -> Expected {
    let mut expected = Expected::default();
    for (thing, count) in house.iter() {
        let (least, most) = match thing.kind {
            Kind::Descriptor if !thing.name.contains('/') => (0, count + NAMELESS),
            // The store's log and its index come and go, and descriptors of files with them.
            Kind::Descriptor => (0, count + 2),
            _ => (count, count),
        };
        expected.between(thing.kind, &thing.name, least, most);
    }
    let (data, run) = (site.data.display(), site.run.display());
    for ending in ["-wal", "-shm"] {
        expected.may(Kind::File, format!("{data}/dormouse.db{ending}"));
        expected.between(
            Kind::Descriptor,
            &format!("daemon {data}/dormouse.db{ending}"),
            0,
            2,
        );
    }
    // A daemon that found the namespace of the VMMs has it by its path, one that made it has not.
    expected.may(Kind::Descriptor, format!("daemon {run}/vmm.netns"));
    for nameless in ["socket", "pipe", "anon_inode"] {
        expected.between(Kind::Descriptor, &format!("daemon {nameless}"), 0, NAMELESS);
        expected.between(Kind::Descriptor, &format!("keeper {nameless}"), 0, NAMELESS);
    }
    expected.may(Kind::File, format!("{run}/i/"));
    // The program that starts use, and those that saved what sleeps.
    let monitors: BTreeSet<&str> = (listing.instances.iter())
        .map(|instance| instance.monitor.as_str())
        .filter(|name| !name.is_empty())
        .collect();
    expected.may(Kind::File, format!("{data}/vmm/"));
    let most = u32::try_from(monitors.len()).unwrap_or(u32::MAX).max(1);
    expected.between(Kind::File, "kept monitor", 0, most);
    // A start reads it through in the background.
    expected.between(Kind::Descriptor, "daemon kept monitor", 0, 2);
    images(site, listing, &mut expected);
    for instance in &listing.instances {
        one(site, instance, &mut expected);
    }
    expected
}

fn images(site: &Site, listing: &Listing, expected: &mut Expected) {
    let folder = site.data.join("images");
    let folder = folder.display();
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let mut blobs = BTreeSet::new();
    for image in &listing.images {
        blobs.extend(image.blobs.iter().map(|digest| hex(digest)));
        expected.must(Kind::File, format!("{folder}/rootfs/{}.ext4", hex(&image.digest)));
        for name in &image.names {
            expected.must(Kind::Record, format!("image {name}"));
        }
    }
    for blob in blobs {
        expected.must(Kind::File, format!("{folder}/blobs/sha256/{blob}"));
    }
}

fn one(site: &Site, instance: &InstanceFact, expected: &mut Expected) {
    let (id, mark) = (&instance.id, instance.mark());
    let folder = format!("{}/instances/{id}", site.data.display());
    let sockets = format!("{}/i/{mark}", site.run.display());
    let life = life(instance.state);
    let awake = u32::from(life == Life::Awake);
    let link = u32::from(matches!(life, Life::Awake | Life::Asleep));
    expected.must(Kind::Record, format!("instance {id}"));
    expected.may(Kind::Record, format!("idle {id}"));
    expected.between(Kind::File, &format!("{folder}/"), link, 1);
    for name in ["disk.ext4", "console.log", "vmm.log"] {
        expected.between(Kind::File, &format!("{folder}/{name}"), link, 1);
    }
    expected.between(Kind::File, &format!("memory {id}"), link, link);
    match life {
        Life::Asleep => {
            for part in ["state", "manifest"] {
                expected.must(Kind::File, format!("{folder}/{part}.{}", instance.generation));
            }
        }
        Life::Awake => {
            // Of the sleep that it woke from, and of one that was taken back.
            for generation in instance.generation..=instance.generation + 1 {
                for part in ["state", "manifest"] {
                    expected.may(Kind::File, format!("{folder}/{part}.{generation}"));
                }
            }
        }
        Life::Resting | Life::Moving => {}
    }
    expected.between(Kind::File, &format!("{sockets}/"), awake, 1);
    for name in ["qmp.sock", "agent.sock"] {
        expected.between(Kind::Socket, &format!("{sockets}/{name}"), awake, 1);
    }
    expected.between(Kind::Cgroup, mark, awake, 1);
    expected.between(Kind::Process, &format!("vmm {mark}"), awake, awake);
    let tap = format!("dmt{mark}");
    expected.between(Kind::Link, &tap, awake, awake);
    for (address, set) in instance.addresses.iter().zip(["sources_ipv4", "sources_ipv6"]) {
        expected.between(Kind::Route, &format!("{address} dev dmp0"), link, link);
        expected.between(Kind::Route, &format!("{address} dev {tap}"), awake, awake);
        expected.between(Kind::Neighbour, &format!("{address} dev dmp0 waiting"), 0, link);
        expected.between(
            Kind::Neighbour,
            &format!("{address} dev {tap} permanent"),
            awake,
            awake,
        );
        // A sleeper keeps its permission to send: no device bears the name meanwhile.
        expected.between(Kind::Rule, &format!("{set} {tap} {address}"), awake, link);
    }
    for whose in ["daemon", "keeper"] {
        // The daemon has its own, and a copy for the next keeper.
        expected.between(Kind::Descriptor, &format!("{whose} tap {tap}"), 0, awake * 2);
        let process = format!("{whose} process {}", instance.pid);
        expected.between(Kind::Descriptor, &process, 0, awake * 4);
    }
}

impl Listing {
    /// Whether nothing is under way.
    pub(crate) fn is_calm(&self) -> bool {
        self.instances
            .iter()
            .all(|instance| life(instance.state) != Life::Moving)
    }
}

/// What an idle daemon has made that is none of the things which it is known to make: the house of the
/// comparisons is taken from it, so its first start must not be believed blindly.
pub(crate) fn strangers(site: &Site, before: &Census, house: &Census) -> Vec<String> {
    let (data, run) = (site.data.display(), site.run.display());
    let files = [
        format!("{data}/dormouse.db"),
        format!("{data}/dormoused.log"),
        format!("{data}/guest/initrd-"),
        format!("{data}/images/"),
        format!("{data}/instances/"),
        format!("{run}/keeper.log"),
        format!("{run}/ram/"),
    ];
    let known = |kind: Kind, name: &str| match kind {
        Kind::Process => matches!(name, "daemon" | "keeper"),
        Kind::Link => matches!(name, "dmp0" | "dmp1"),
        // The pools, unreachable where no route is longer.
        Kind::Route => name.ends_with(" dev ") || name.ends_with(" dev lo"),
        Kind::Rule => name.contains("inet dormouse_dm"),
        Kind::Mount => name == format!("{run}/ram"),
        Kind::Namespace => name == format!("{run}/vmm.netns"),
        Kind::Descriptor => !name.contains("tap ") && !name.contains("(deleted)"),
        Kind::File => files.iter().any(|file| name.starts_with(file)),
        Kind::Socket => name.ends_with("/dormoused.sock") || name.ends_with("/keeper.sock"),
        Kind::Zombie | Kind::Neighbour | Kind::Cgroup | Kind::Record => false,
    };
    house
        .iter()
        .filter(|(thing, count)| {
            *count > before.of(thing) && !(known(thing.kind, &thing.name) && *count <= 16)
        })
        .map(|(thing, count)| format!("{thing} ({count} times)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::thing::compare;
    use super::*;
    use std::path::PathBuf;

    const ID: &str = "01m7wpbyq2cne74ve78esc5tz5";
    const MARK: &str = "e78esc5tz5";

    fn site() -> Site {
        Site {
            data: PathBuf::from("/d"),
            run: PathBuf::from("/r"),
            uids: 0..1,
            daemon: PathBuf::from("/bin/dormoused"),
            namespace: PathBuf::from("/r/ns"),
            cgroup: None,
        }
    }

    fn listing(state: InstanceState) -> Listing {
        Listing {
            instances: vec![InstanceFact {
                id: ID.to_owned(),
                name: "a".to_owned(),
                state,
                reason: String::new(),
                addresses: ["10.78.0.2".to_owned(), "fd78::2".to_owned()],
                pid: 7,
                generation: 3,
                digest: "sha256:m".to_owned(),
                monitor: "7.2-0123".to_owned(),
            }],
            images: Vec::new(),
        }
    }

    /// What every instance has that was started once.
    fn rest() -> Census {
        let mut found = Census::default();
        found.add(Kind::Record, format!("instance {ID}"));
        found.add(Kind::File, format!("/d/instances/{ID}/"));
        for name in ["disk.ext4", "console.log", "vmm.log"] {
            found.add(Kind::File, format!("/d/instances/{ID}/{name}"));
        }
        found
    }

    fn asleep() -> Census {
        let mut found = rest();
        found.add(Kind::File, format!("memory {ID}"));
        for part in ["state", "manifest"] {
            found.add(Kind::File, format!("/d/instances/{ID}/{part}.3"));
        }
        found.add(Kind::File, "/d/vmm/");
        found.add(Kind::File, "kept monitor");
        for address in ["10.78.0.2", "fd78::2"] {
            found.add(Kind::Route, format!("{address} dev dmp0"));
        }
        found
    }

    fn awake() -> Census {
        let mut found = asleep();
        found.add(Kind::Process, format!("vmm {MARK}"));
        found.add(Kind::Cgroup, MARK);
        found.add(Kind::Link, format!("dmt{MARK}"));
        found.add(Kind::File, format!("/r/i/{MARK}/"));
        for name in ["qmp.sock", "agent.sock"] {
            found.add(Kind::Socket, format!("/r/i/{MARK}/{name}"));
        }
        for (address, set) in [("10.78.0.2", "sources_ipv4"), ("fd78::2", "sources_ipv6")] {
            found.add(Kind::Route, format!("{address} dev dmt{MARK}"));
            found.add(Kind::Neighbour, format!("{address} dev dmt{MARK} permanent"));
            found.add(Kind::Rule, format!("{set} dmt{MARK} {address}"));
        }
        found
    }

    fn difference(state: InstanceState, found: &Census) -> Vec<String> {
        compare(&expected(&site(), &Census::default(), &listing(state)), found).lines()
    }

    #[test]
    fn each_state_explains_exactly_its_own() {
        for (state, found) in [
            (InstanceState::Running, awake()),
            (InstanceState::Initializing, awake()),
            (InstanceState::Standby, asleep()),
            (InstanceState::Stopped, rest()),
            (InstanceState::Failed, rest()),
        ] {
            assert_eq!(difference(state, &found), Vec::<String>::new(), "{state:?}");
        }
        assert!(
            difference(InstanceState::Standby, &awake()).contains(&format!("leaked: process vmm {MARK}"))
        );
        assert!(difference(InstanceState::Stopped, &asleep()).contains(&format!("leaked: file memory {ID}")));
        assert!(
            difference(InstanceState::Running, &asleep()).contains(&format!("missing: process vmm {MARK}"))
        );
    }

    #[test]
    fn a_second_copy_of_memory_or_a_second_process_is_doubled() {
        let mut found = awake();
        found.add(Kind::File, format!("memory {ID}"));
        found.add(Kind::Process, format!("vmm {MARK}"));
        let want = [
            format!("doubled: process vmm {MARK}"),
            format!("doubled: file memory {ID}"),
        ];
        assert_eq!(difference(InstanceState::Running, &found), want);
    }

    #[test]
    fn a_strange_thing_of_an_idle_daemon_is_told() {
        let mut house = Census::default();
        house.add(Kind::Process, "daemon");
        assert_eq!(
            strangers(&site(), &Census::default(), &house),
            Vec::<String>::new()
        );
        house.add(Kind::Link, "dmt0");
        assert_eq!(strangers(&site(), &Census::default(), &house).len(), 1);
    }
}
