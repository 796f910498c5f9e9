//! One sleeper: made by the code that seals a real sleep, twice, so that there is an older generation to put
//! back; and what is changed of it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use dormouse_hypervisor::{TRANSLATION, fake};
use dormouse_instance::machine::{BootId, MemoryImage, Phase, Record as Life, Settled};
use dormouse_instance::memory::{GuestRam, Home, Sharing};
use dormouse_instance::record::{InstanceRecord, Remembered};
use dormouse_instance::rooms::Layout;
use dormouse_instance::trust::check::Check;
use dormouse_instance::trust::digest;
use dormouse_instance::trust::manifest::{MANIFEST_VERSION, MonitorPart, frame};
use dormouse_instance::trust::pace::Pace;
use dormouse_instance::trust::seal::Seal;
use dormouse_instance::view::{InstanceView, SnapshotView};
use dormouse_model::policy::PolicySetting;
use dormouse_model::spec::Placement;
use dormouse_model::{Addresses, Bytes, Generation, InstanceSpec, OnLostMemory, State, WallTime, WorkloadId};
use dormouse_store::backend::Change;
use dormouse_store::record::{encode, encode_body};
use dormouse_store::{Key, RecordKind};

use super::change::{Case, Kind, Part, changed, flip};
use super::random::Random;

/// The least RAM that an instance may have; all but a few pages of it is a hole.
const RAM: Bytes = InstanceSpec::MIN_MEMORY;
const DISK: Bytes = Bytes::mib(16);
const STATE: usize = 4096;
const PAGES: usize = 12;

/// A sleeper, and what was of its sleep before.
#[derive(Debug)]
pub(super) struct Sleeper {
    pub(super) id: WorkloadId,
    layout: Layout,
    remembered: Remembered,
    image: MemoryImage,
    stale: Stale,
}

#[derive(Debug, Default)]
struct Stale {
    record: InstanceRecord,
    state: Vec<u8>,
    manifest: Vec<u8>,
    head: Vec<u8>,
    /// Numbers of pages, and what was in them.
    pages: Vec<(u64, Vec<u8>)>,
}

/// Where memory is when the recovery begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Resident,
    Spilled,
    Settled,
}

fn ram(kept: Kept) -> GuestRam {
    let fresh = GuestRam::fresh(Placement::Spill, RAM);
    match kept {
        Kept::Resident => fresh,
        Kept::Spilled | Kept::Settled => GuestRam {
            home: Home::Disk,
            sharing: Sharing::Private,
            ..fresh
        },
    }
}

fn view(number: usize, id: WorkloadId, addresses: Addresses, memory: GuestRam) -> Result<InstanceView> {
    let then = WallTime::from_unix_nanos(1);
    let spec = InstanceSpec {
        name: format!("sleeper-{number}").parse()?,
        image: "still".to_owned(),
        vcpus: 1,
        memory: RAM,
        disk: DISK,
        placement: Placement::Spill,
        entrypoint: Vec::new(),
        command: Vec::new(),
        environment: std::collections::BTreeMap::new(),
        working_directory: None,
        user: None,
        labels: std::collections::BTreeMap::new(),
        standby: PolicySetting::Missing,
        stop_timeout: InstanceSpec::DEFAULT_STOP_TIMEOUT,
        on_lost_memory: OnLostMemory::StayStopped,
    };
    Ok(InstanceView {
        id,
        spec,
        image_digest: "sha256:00".to_owned(),
        state: State::Standby,
        reason: String::new(),
        addresses,
        memory,
        generation: Generation(0),
        snapshot: Some(SnapshotView::Kept { settled: false }),
        monitor: String::new(),
        created_at: then,
        started_at: Some(then),
        state_changed_at: then,
        last_wake: None,
        last_standby: None,
        last_commit: None,
        pid: None,
        exit: None,
        agent_ready: false,
        auto_remove: false,
        standbys: 2,
        wakes: 1,
        revision: 0,
    })
}

impl Sleeper {
    /// Makes one that fell asleep in `boot`.
    pub(super) fn make(
        layout: &Layout,
        number: usize,
        addresses: Addresses,
        boot: BootId,
        kept: Kept,
        random: &mut Random,
    ) -> Result<Self> {
        let bits = (u128::from(random.next()) << 64) | u128::from(random.next());
        let id = WorkloadId::from_bits(bits);
        fs::create_dir_all(layout.instance(id)).context("making a folder")?;
        let disk = new_file(&layout.disk(id), DISK.0)?;
        let ram = ram(kept);
        let memory = new_file(&layout.images().path(id, ram.home), RAM.0)?;
        let mut sleeper = Self {
            id,
            layout: layout.clone(),
            remembered: Remembered {
                view: view(number, id, addresses, ram)?,
                uid: 60_000 + u32::try_from(number)?,
                life: Life::NEW,
            },
            image: sleep(layout, id, 1, boot, ram, &disk, &memory, random)?,
            stale: Stale::default(),
        };
        sleeper.keep_stale(&disk, &memory)?;
        sleeper.image = sleep(layout, id, 2, boot, ram, &disk, &memory, random)?;
        for old in [layout.state_file(id, 1), layout.manifest_file(id, 1)] {
            fs::remove_file(old)?;
        }
        if kept == Kept::Settled {
            let check = Check {
                layout,
                id,
                image: sleeper.image,
                boot,
            };
            sleeper.image = check.settle(&Pace::straight(&AtomicBool::new(false)))?;
        }
        sleeper.remembered.life = sleeper.life(sleeper.image);
        Ok(sleeper)
    }

    fn life(&self, image: MemoryImage) -> Life {
        Life {
            generation: image.generation,
            phase: Phase::Standby { image },
        }
    }

    fn keep_stale(&mut self, disk: &File, memory: &File) -> Result<()> {
        let mut old = self.remembered.clone();
        old.life = self.life(self.image);
        let mut head = vec![0; usize::try_from(digest::HEAD)?];
        disk.read_exact_at(&mut head, 0)?;
        let mut pages = Vec::new();
        digest::read_data(
            memory,
            &Pace::straight(&AtomicBool::new(false)),
            |offset, chunk| {
                let first = offset / digest::PAGE as u64;
                for (number, page) in (first..).zip(chunk.chunks(digest::PAGE)) {
                    pages.push((number, page.to_vec()));
                }
                Ok(())
            },
        )?;
        self.stale = Stale {
            record: old.to_record(),
            state: fs::read(self.layout.state_file(self.id, 1))?,
            manifest: fs::read(self.layout.manifest_file(self.id, 1))?,
            head,
            pages,
        };
        Ok(())
    }

    pub(super) fn key(&self) -> Key {
        Key::from(self.id)
    }

    /// The record as the store keeps it.
    pub(super) fn record(&self) -> Vec<u8> {
        encode(&self.key(), &self.remembered.to_record())
    }

    /// What is compared before a wake, without one.
    pub(super) fn check(&self) -> Result<()> {
        let file = File::open(self.memory_path())?;
        let check = Check {
            layout: &self.layout,
            id: self.id,
            image: self.image,
            boot: self.image.boot,
        };
        check.parts(&file)?;
        Ok(())
    }

    pub(super) fn memory_path(&self) -> PathBuf {
        let home = self.remembered.view.memory.home;
        self.layout.images().path(self.id, home)
    }

    fn write(&self, value: Vec<u8>) -> Change {
        Change {
            kind: RecordKind::Instance,
            key: self.key(),
            value: Some(value),
        }
    }

    /// Changes it; what is to be changed of the records comes back.
    pub(super) fn change(&self, case: Case, other: &Self, random: &mut Random) -> Result<Option<Change>> {
        let generation = self.image.generation.0;
        match case.part {
            Part::Record => Ok(Some(self.write(self.other_record(case.kind, other, random)))),
            // In the file of the database, once that is closed.
            Part::RecordFile => Ok(None),
            Part::Manifest => {
                let path = self.layout.manifest_file(self.id, generation);
                let others = fs::read(other.layout.manifest_file(other.id, generation))?;
                let stale = &self.stale.manifest;
                self.change_file(&path, case.kind, &others, stale, random)
                    .map(|_| None)
            }
            Part::ManifestAndRecord => {
                let path = self.layout.manifest_file(self.id, generation);
                let others = fs::read(other.layout.manifest_file(other.id, generation))?;
                let stale = &self.stale.manifest;
                let bytes = self.change_file(&path, case.kind, &others, stale, random)?;
                let mut image = self.image;
                image.expected.manifest = digest::of_bytes(&bytes);
                let mut remembered = self.remembered.clone();
                remembered.life = self.life(image);
                Ok(Some(self.write(encode(&self.key(), &remembered.to_record()))))
            }
            Part::State => {
                let path = self.layout.state_file(self.id, generation);
                let others = fs::read(other.layout.state_file(other.id, generation))?;
                let stale = &self.stale.state;
                self.change_file(&path, case.kind, &others, stale, random)
                    .map(|_| None)
            }
            Part::Disk => self.change_disk(case.kind, other, random).map(|()| None),
            Part::Memory => self.change_memory(case.kind, other, random).map(|()| None),
        }
    }

    fn other_record(&self, kind: Kind, other: &Self, random: &mut Random) -> Vec<u8> {
        let bytes = self.record();
        if kind == Kind::Newer {
            return newer_record(&self.key(), &self.remembered.to_record());
        }
        let stale = encode(&self.key(), &self.stale.record);
        changed(kind, &bytes, &other.record(), &stale, random)
    }

    fn change_file(
        &self,
        path: &Path,
        kind: Kind,
        others: &[u8],
        stale: &[u8],
        random: &mut Random,
    ) -> Result<Vec<u8>> {
        let bytes = fs::read(path)?;
        let new = match kind {
            Kind::Missing => {
                fs::remove_file(path)?;
                return Ok(Vec::new());
            }
            Kind::Newer => {
                let body = bytes.get(1..bytes.len().saturating_sub(4)).unwrap_or_default();
                frame(MANIFEST_VERSION + 1, body)
            }
            Kind::Flip
            | Kind::Truncate
            | Kind::Extend
            | Kind::Swap
            | Kind::Stale
            | Kind::Zero
            | Kind::Replaced
            | Kind::Unsettled => changed(kind, &bytes, others, stale, random),
        };
        fs::write(path, &new)?;
        Ok(new)
    }

    fn change_disk(&self, kind: Kind, other: &Self, random: &mut Random) -> Result<()> {
        let path = self.layout.disk(self.id);
        if kind == Kind::Missing {
            return fs::remove_file(path).context("removing a disk");
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut head = vec![0; usize::try_from(digest::HEAD)?];
        file.read_exact_at(&mut head, 0)?;
        let mut others = head.clone();
        File::open(other.layout.disk(other.id))?.read_exact_at(&mut others, 0)?;
        match kind {
            Kind::Truncate => file.set_len(random.next() % DISK.0)?,
            Kind::Extend => file.set_len(DISK.0 + 1 + random.next() % DISK.0)?,
            Kind::Flip
            | Kind::Swap
            | Kind::Stale
            | Kind::Newer
            | Kind::Missing
            | Kind::Zero
            | Kind::Replaced
            | Kind::Unsettled => {
                let new = changed(kind, &head, &others, &self.stale.head, random);
                file.write_all_at(&new, 0)?;
            }
        }
        Ok(())
    }

    fn change_memory(&self, kind: Kind, other: &Self, random: &mut Random) -> Result<()> {
        let path = self.memory_path();
        let open = || OpenOptions::new().read(true).write(true).open(&path);
        match kind {
            Kind::Missing => fs::remove_file(&path)?,
            Kind::Replaced => copy_over(&path, &path)?,
            Kind::Swap => copy_over(&other.memory_path(), &path)?,
            Kind::Truncate => open()?.set_len(random.next() % RAM.0)?,
            Kind::Extend => open()?.set_len(RAM.0 + 1 + random.next() % RAM.0)?,
            Kind::Stale => {
                let file = open()?;
                file.set_len(0)?;
                file.set_len(RAM.0)?;
                for (number, page) in &self.stale.pages {
                    file.write_all_at(page, number * digest::PAGE as u64)?;
                }
            }
            Kind::Zero => {
                let mut data = Vec::new();
                digest::read_data(&open()?, &Pace::straight(&AtomicBool::new(false)), |offset, _| {
                    data.push(offset);
                    Ok(())
                })?;
                let at = random.pick(&data, 0);
                open()?.write_all_at(&[0; digest::PAGE], at)?;
            }
            Kind::Flip => {
                // Anywhere: a hole is memory too.
                let at = random.next() % (RAM.0 - 64);
                let mut bytes = [0; 64];
                let file = open()?;
                file.read_exact_at(&mut bytes, at)?;
                flip(&mut bytes, random);
                file.write_all_at(&bytes, at)?;
            }
            // It was made so.
            Kind::Unsettled | Kind::Newer => {}
        }
        Ok(())
    }
}

/// The same record by a program that is one version ahead.
fn newer_record(key: &Key, record: &InstanceRecord) -> Vec<u8> {
    use prost::Message as _;

    let version = <InstanceRecord as dormouse_store::Record>::VERSION + 1;
    encode_body(RecordKind::Instance, key, version, &record.encode_to_vec())
}

fn new_file(path: &Path, length: u64) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("making {}", path.display()))?;
    file.set_len(length)?;
    Ok(file)
}

/// A new file in the place of `to` with what is in `from`; holes stay holes.
pub(super) fn copy_over(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from)?;
    let partial = to.with_extension("copy");
    let sink = new_file(&partial, source.metadata()?.len())?;
    digest::read_data(
        &source,
        &Pace::straight(&AtomicBool::new(false)),
        |offset, chunk| sink.write_all_at(chunk, offset),
    )?;
    fs::rename(partial, to).context("putting a copy in its place")
}

/// The guest runs, and is put to sleep: disk and memory are other than before.
#[allow(clippy::too_many_arguments, reason = "everything that a sleep works on, once")]
fn sleep(
    layout: &Layout,
    id: WorkloadId,
    generation: u64,
    boot: BootId,
    ram: GuestRam,
    disk: &File,
    memory: &File,
    random: &mut Random,
) -> Result<MemoryImage> {
    disk.write_all_at(&random.bytes(usize::try_from(digest::HEAD)?), 0)?;
    for _ in 0..PAGES {
        let page = random.next() % (RAM.0 / digest::PAGE as u64);
        let bytes = random.bytes(digest::PAGE);
        memory.write_all_at(&bytes, page * digest::PAGE as u64)?;
    }
    let mut state = new_file(&layout.state_file(id, generation), 0)?;
    state.write_all(fake::MAGIC)?;
    state.write_all(&random.bytes(STATE))?;
    let seal = Seal {
        layout,
        id,
        generation: Generation(generation),
        boot,
        ram,
        monitor: MonitorPart {
            driver: "fake".to_owned(),
            version: "0.0.0".to_owned(),
            kept: String::new(),
            translation: TRANSLATION,
        },
        state: &state,
    };
    let image = seal.make()?;
    debug_assert_eq!(image.settled, Settled::Open);
    Ok(image)
}
