//! A daemon that is killed in the middle of an import or a removal: what the next one finds.
//!
//! The kill is a panic out of the store, which cleans up as little as a kill does: what a process would have
//! taken back on an error is left where it is. The next daemon is a store opened anew on the same directory
//! and index.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use bench::{Bench, NOW, archive, dir, file, tar_of};
use dormouse_image::{
    ContentStore, ImageError, ImageIndex, ImageName, ImageRecord, ImportOptions, IndexError, Limits,
    MemoryIndex,
};
use dormouse_model::Fault;

/// What a kill throws.
struct Killed;

fn kill() -> ! {
    panic_any(Killed)
}

/// Runs `work` until it is done or killed.
fn until_killed<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(thrown) if thrown.is::<Killed>() => None,
        Err(thrown) => std::panic::resume_unwind(thrown),
    }
}

fn open(directory: &Path, index: &Arc<MemoryIndex>) -> ContentStore {
    ContentStore::open(
        directory,
        Arc::clone(index) as Arc<dyn ImageIndex>,
        Limits::default(),
    )
    .unwrap()
}

fn two_images(bench: &Bench) -> [std::path::PathBuf; 2] {
    let shared = tar_of(&[dir("etc"), file("etc/shared")]);
    let image = |name: &'static str| archive(&[shared.clone(), tar_of(&[file(name)])]);
    [
        bench.file("one.tar", &image("one")),
        bench.file("two.tar", &image("two")),
    ]
}

fn named(name: &str) -> ImportOptions {
    ImportOptions {
        name: Some(name.parse().unwrap()),
        choose: None,
    }
}

#[test]
fn an_import_killed_anywhere_is_undone_or_whole() {
    let Some(bench) = Bench::new("an_import_killed_anywhere_is_undone_or_whole") else {
        return;
    };
    // The panics of this test are not worth a line each.
    std::panic::set_hook(Box::new(|_| {}));
    let [one, two] = two_images(&bench);
    let index = Arc::new(MemoryIndex::default());
    let directory = bench.directory.path();
    let go_on = &mut |_| ControlFlow::Continue(());
    open(directory, &index)
        .import(&one, &named("one"), NOW, go_on)
        .unwrap();
    let before = bench.contents();
    // Every report of progress is a point; the last ones are before and after the record.
    for point in 0.. {
        let store = open(directory, &index);
        let mut reports = 0;
        let mut tick = |_| {
            if reports == point {
                kill();
            }
            reports += 1;
            ControlFlow::Continue(())
        };
        let ended = until_killed(|| store.import(&two, &named("two"), NOW, &mut tick));
        drop(store);
        let store = open(directory, &index);
        if ended.is_some() {
            assert!(point > 4, "{point} points only");
            assert_eq!(store.list().unwrap().len(), 2);
            break;
        }
        assert_eq!(bench.contents(), before, "killed at report {point}");
        assert_eq!(store.list().unwrap().len(), 1);
    }
    open(directory, &index).remove("two", &BTreeSet::new()).unwrap();
    assert_eq!(bench.contents(), before);
    for written in [false, true] {
        let store = open(directory, &index);
        let commit = |record: &ImageRecord| -> Result<(), IndexError> {
            if written {
                index.put(record)?;
            }
            kill()
        };
        assert!(until_killed(|| store.import_by(&two, &named("two"), NOW, go_on, &commit)).is_none());
        drop(store);
        let store = open(directory, &index);
        assert_eq!(store.list().unwrap().len(), 1 + usize::from(written));
        assert_eq!(bench.contents() == before, !written);
        // Again, as somebody would.
        store.import(&two, &named("two"), NOW, go_on).unwrap();
        store.remove("two", &BTreeSet::new()).unwrap();
        assert_eq!(bench.contents(), before);
    }
}

#[test]
fn a_removal_killed_before_its_record_is_none_and_after_it_is_finished() {
    let Some(bench) = Bench::new("a_removal_killed_before_its_record_is_none_and_after_it_is_finished")
    else {
        return;
    };
    let [one, two] = two_images(&bench);
    let index = Arc::new(MemoryIndex::default());
    let directory = bench.directory.path();
    let go_on = &mut |_| ControlFlow::Continue(());
    open(directory, &index)
        .import(&one, &named("one"), NOW, go_on)
        .unwrap();
    let without = bench.contents();
    open(directory, &index)
        .import(&two, &named("two"), NOW, go_on)
        .unwrap();
    let with = bench.contents();
    for (written, want) in [(false, &with), (true, &without)] {
        let store = open(directory, &index);
        let commit = |record: &ImageRecord, gone: bool| -> Result<(), IndexError> {
            assert!(gone);
            if written {
                index.remove(&record.name)?;
            }
            kill()
        };
        let killed = until_killed(|| store.remove_by("two", &|_| Ok(true), &commit));
        assert!(killed.is_none());
        drop(store);
        open(directory, &index);
        assert_eq!(bench.contents(), *want);
    }
}

#[test]
fn who_leases_an_image_during_its_removal_finds_it_gone_and_who_did_before_keeps_it() {
    let Some(bench) =
        Bench::new("who_leases_an_image_during_its_removal_finds_it_gone_and_who_did_before_keeps_it")
    else {
        return;
    };
    let [one, _] = two_images(&bench);
    let index = Arc::new(MemoryIndex::default());
    let store = open(bench.directory.path(), &index);
    let go_on = &mut |_| ControlFlow::Continue(());
    let digest = store.import(&one, &named("one"), NOW, go_on).unwrap().digest;
    let leased = AtomicBool::new(true);
    let free = |_: &ImageRecord| Ok(!leased.load(Ordering::SeqCst));
    let refused = store.remove_by("one", &free, &|_, _| panic!("not reached"));
    assert_eq!(refused.unwrap_err().code(), "IMAGE_IN_USE");
    leased.store(false, Ordering::SeqCst);
    let (begin, begun) = mpsc::channel::<()>();
    let (looking, looks) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (store, leased, index) = (&store, &leased, &index);
        // A create whose lease comes right after the removal has looked for leases.
        let create = scope.spawn(move || {
            begun.recv().unwrap();
            leased.store(true, Ordering::SeqCst);
            looking.send(()).unwrap();
            store.get(&digest.to_string())
        });
        let free = |_: &ImageRecord| -> Result<bool, ImageError> {
            let free = !leased.load(Ordering::SeqCst);
            begin.send(()).unwrap();
            looks.recv().unwrap();
            Ok(free)
        };
        let commit = |record: &ImageRecord, _: bool| index.remove(&record.name);
        assert!(store.remove_by("one", &free, &commit).unwrap().1);
        assert_eq!(create.join().unwrap().unwrap_err().code(), "IMAGE_NOT_FOUND");
    });
}

/// An index with a record that cannot be read.
#[derive(Debug)]
struct Damaged;

impl ImageIndex for Damaged {
    fn put(&self, _: &ImageRecord) -> Result<(), IndexError> {
        Ok(())
    }
    fn get(&self, _: &ImageName) -> Result<Option<ImageRecord>, IndexError> {
        Ok(None)
    }
    fn list(&self) -> Result<Vec<ImageRecord>, IndexError> {
        Ok(Vec::new())
    }
    fn is_whole(&self) -> Result<bool, IndexError> {
        Ok(false)
    }
    fn remove(&self, _: &ImageName) -> Result<(), IndexError> {
        Ok(())
    }
}

#[test]
fn content_of_an_image_whose_record_is_damaged_is_kept() {
    let Some(bench) = Bench::new("content_of_an_image_whose_record_is_damaged_is_kept") else {
        return;
    };
    bench.import_layers(&[tar_of(&[file("x")])]).unwrap();
    let before = bench.contents();
    ContentStore::open(bench.directory.path(), Arc::new(Damaged), Limits::default()).unwrap();
    assert_eq!(bench.contents(), before);
}
