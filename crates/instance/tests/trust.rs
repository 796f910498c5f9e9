//! What was sealed passes; what was changed since does not, with the part and the fault. The random changes, and
//! the whole way through a recovery, are in `cargo xtask test corruption`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use dormouse_instance::machine::{BootId, Kept, MemoryImage, Settled};
use dormouse_instance::memory::{GuestRam, Home, Sharing};
use dormouse_instance::rooms::Layout;
use dormouse_instance::trust::TrustError;
use dormouse_instance::trust::check::Check;
use dormouse_instance::trust::manifest::{Manifest, MonitorPart};
use dormouse_instance::trust::pace::Pace;
use dormouse_instance::trust::seal::Seal;
use dormouse_model::spec::Placement;
use dormouse_model::{Bytes, Fault as _, Generation, ImagePart, PartFault, WorkloadId};

const HERE: BootId = BootId(1);
const LATER: BootId = BootId(2);
const RAM: Bytes = Bytes::mib(4);

struct Bed {
    _scratch: tempfile::TempDir,
    layout: Layout,
    id: WorkloadId,
    image: MemoryImage,
}

fn file(path: &Path, length: u64) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(path).unwrap();
    file.set_len(length).unwrap();
    file
}

/// A sleeper whose memory was written back in place.
fn asleep() -> Bed {
    let scratch = tempfile::tempdir().unwrap();
    let layout = Layout {
        data: scratch.path().join("data"),
        run: scratch.path().join("run"),
        ram: scratch.path().join("ram"),
    };
    let id = WorkloadId::from_bits(7);
    fs::create_dir_all(layout.instance(id)).unwrap();
    let disk = file(&layout.disk(id), 1 << 20);
    disk.write_all_at(b"superblock", 1024).unwrap();
    let memory = file(&layout.images().path(id, Home::Disk), RAM.0);
    memory.write_all_at(b"memory", 4096).unwrap();
    let state = file(&layout.state_file(id, 3), 0);
    state.write_all_at(b"state", 0).unwrap();
    let seal = Seal {
        layout: &layout,
        id,
        generation: Generation(3),
        boot: HERE,
        ram: GuestRam {
            home: Home::Disk,
            sharing: Sharing::Private,
            ..GuestRam::fresh(Placement::Spill, RAM)
        },
        monitor: MonitorPart {
            driver: "fake".to_owned(),
            version: "0".to_owned(),
            kept: String::new(),
            translation: 1,
        },
        state: &state,
    };
    let image = seal.make().unwrap();
    assert!(matches!(image.kept, Kept::Spilled { .. }));
    assert_eq!((image.boot, image.settled), (HERE, Settled::Open));
    Bed {
        _scratch: scratch,
        layout,
        id,
        image,
    }
}

impl Bed {
    fn memory_path(&self) -> std::path::PathBuf {
        self.layout.images().path(self.id, Home::Disk)
    }

    fn memory(&self) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(self.memory_path()).unwrap()
    }

    fn check(&self, image: MemoryImage, boot: BootId) -> Check<'_> {
        Check {
            layout: &self.layout,
            id: self.id,
            image,
            boot,
        }
    }

    fn settle(&self, image: MemoryImage, boot: BootId) -> Result<MemoryImage, TrustError> {
        self.check(image, boot)
            .settle(&Pace::straight(&AtomicBool::new(false)))
    }
}

fn lost<T: std::fmt::Debug>(outcome: Result<T, TrustError>) -> (ImagePart, PartFault) {
    match outcome.unwrap_err() {
        TrustError::Lost(lost) => (lost.part, lost.fault),
        other => panic!("{other}: {}", other.code()),
    }
}

#[test]
fn what_was_sealed_passes_and_is_handed_over_from_its_beginning() {
    let bed = asleep();
    let sound = bed.check(bed.image, HERE).parts(&bed.memory()).unwrap();
    let mut state = String::new();
    File::from(sound.state).read_to_string(&mut state).unwrap();
    assert_eq!((state.as_str(), sound.monitor.driver.as_str()), ("state", "fake"));
}

fn flip_end_of_head(bed: &Bed) {
    let mut options = OpenOptions::new();
    let disk = options.write(true).open(bed.layout.disk(bed.id)).unwrap();
    disk.write_all_at(b"X", (64 << 10) - 1).unwrap();
}

/// Another file of the same name and content.
fn replace_memory(bed: &Bed) {
    let path = bed.memory_path();
    fs::copy(&path, path.with_extension("copy")).unwrap();
    fs::rename(path.with_extension("copy"), path).unwrap();
}

#[test]
fn each_part_is_compared() {
    use ImagePart::{Disk, Manifest, Memory, State};
    type Change = fn(&Bed);
    let cases: [(Change, ImagePart, PartFault); 9] = [
        (
            |bed| fs::remove_file(bed.layout.manifest_file(bed.id, 3)).unwrap(),
            Manifest,
            PartFault::Missing,
        ),
        (
            |bed| fs::write(bed.layout.manifest_file(bed.id, 3), "other").unwrap(),
            Manifest,
            PartFault::Digest,
        ),
        (
            |bed| fs::remove_file(bed.layout.state_file(bed.id, 3)).unwrap(),
            State,
            PartFault::Missing,
        ),
        (
            |bed| fs::write(bed.layout.state_file(bed.id, 3), "State").unwrap(),
            State,
            PartFault::Digest,
        ),
        (
            |bed| fs::write(bed.layout.state_file(bed.id, 3), "state ").unwrap(),
            State,
            PartFault::Size,
        ),
        (
            |bed| fs::remove_file(bed.layout.disk(bed.id)).unwrap(),
            Disk,
            PartFault::Missing,
        ),
        (flip_end_of_head, Disk, PartFault::Digest),
        (|bed| bed.memory().set_len(1).unwrap(), Memory, PartFault::Size),
        (replace_memory, Memory, PartFault::Inode),
    ];
    for (change, part, fault) in cases {
        let bed = asleep();
        change(&bed);
        assert_eq!(
            lost(bed.check(bed.image, HERE).parts(&bed.memory())),
            (part, fault)
        );
    }
}

#[test]
fn memory_outlives_its_boot_once_it_was_settled() {
    let bed = asleep();
    let unsettled = (ImagePart::Memory, PartFault::Unsettled);
    assert_eq!(lost(bed.settle(bed.image, LATER)), unsettled);
    let settled = bed.settle(bed.image, HERE).unwrap();
    assert!(matches!(settled.settled, Settled::At(_)));
    // Settled and not yet compared in this boot: not loaded.
    let early = bed.check(settled, LATER).parts(&bed.memory());
    assert_eq!(lost(early), unsettled);
    let compared = bed.settle(settled, LATER).unwrap();
    assert_eq!((compared.boot, compared.settled), (LATER, settled.settled));
    assert!(bed.check(compared, LATER).parts(&bed.memory()).is_ok());
    // Once a boot: what was compared is not read again.
    bed.memory().write_all_at(b"Memory", 4096).unwrap();
    assert_eq!(bed.settle(compared, LATER).unwrap(), compared);
    assert_eq!(
        lost(bed.settle(settled, LATER)),
        (ImagePart::Memory, PartFault::Digest)
    );
}

#[test]
fn a_comparison_can_be_cut_short() {
    let bed = asleep();
    let cut = AtomicBool::new(true);
    let error = bed
        .check(bed.image, HERE)
        .settle(&Pace::straight(&cut))
        .unwrap_err();
    assert_eq!(error.code(), "SNAPSHOT_CUT_SHORT");
}

/// The image with its manifest saying that its memory was left on another mount.
fn left_elsewhere(bed: &Bed) -> MemoryImage {
    let path = bed.layout.manifest_file(bed.id, 3);
    let mut manifest = Manifest::decode(&fs::read(&path).unwrap()).unwrap();
    let here = manifest.memory.unflushed_on.unwrap_or(1);
    manifest.memory.unflushed_on = Some(here + 1);
    let bytes = manifest.encode();
    fs::write(&path, &bytes).unwrap();
    let mut image = bed.image;
    image.expected.manifest = dormouse_instance::trust::digest::of_bytes(&bytes);
    image
}

#[test]
fn unsettled_memory_is_of_the_mount_where_it_was_left() {
    let bed = asleep();
    let elsewhere = left_elsewhere(&bed);
    let unsettled = (ImagePart::Memory, PartFault::Unsettled);
    let parts = |image| bed.check(image, HERE).parts(&bed.memory());
    assert_eq!(lost(parts(elsewhere)), unsettled);
    // Nor is it settled there: its digest would be that of what the disk has.
    assert_eq!(lost(bed.settle(elsewhere, HERE)), unsettled);
    // What was settled is on the disk, whichever mount shows it.
    let settled = MemoryImage {
        settled: Settled::At(dormouse_model::Digest::default()),
        ..elsewhere
    };
    assert!(parts(settled).is_ok());
}
