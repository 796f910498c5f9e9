//! Which contents are legal after the power went. Pure: a log in, contents out by seed.
//!
//! ```text
//!   change ──apply──▶ pending ──flush of its file or directory──▶ durable
//!                        │
//!                        └──survivors(seed): any part of it, beside all that is durable──▶ Tree
//! ```
//!
//! What is assumed of a disk, and nothing more:
//! - A flush of a file makes its bytes and its size durable, not its name. A flush of a directory
//!   makes its names durable, not what they lead to. Nothing orders one before another.
//! - Of bytes not flushed, each sector of 512 bytes holds what it held durably, or what it held after
//!   any one of the writes to it since. Sectors are independent of each other and of the size, which
//!   is one of those that the file had since its flush.
//! - Of names not flushed, any may be lost while later ones are there. A rename happened whole or not
//!   at all; a flush of either of its directories makes it durable.
//! - Owner and permissions are as they were last set: no promise here rests on them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::content::Content;
use crate::log::{Change, FileId, NodeKind};
use crate::tree::{Entry, Placed, Tree};

/// Bytes that a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// The root's number.
const ROOT: FileId = 1;

/// A change of a file's content that no flush has covered.
#[derive(Debug, Clone)]
enum Pending {
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    /// The range became zeros, by a hole or by a cut.
    Zero {
        offset: u64,
        length: u64,
    },
}

impl Pending {
    fn range(&self) -> (u64, u64) {
        match self {
            Self::Write { offset, data } => (*offset, offset + data.len() as u64),
            Self::Zero { offset, length } => (*offset, offset + length),
        }
    }

    /// Writes the part of it that lies within `from..to`.
    fn apply(&self, content: &mut Content, from: u64, to: u64) {
        let (start, end) = self.range();
        let (start, end) = (start.max(from), end.min(to));
        if start >= end {
            return;
        }
        match self {
            Self::Write { offset, data } => {
                let source = index(start - offset)..index(end - offset);
                content.write(start, data.get(source).unwrap_or_default());
            }
            Self::Zero { .. } => content.zero(start, end),
        }
    }
}

/// A size or offset as an index: contents are held in memory.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[derive(Debug, Clone)]
struct Node {
    kind: NodeKind,
    mode: u32,
    owner: (u32, u32),
    durable: Content,
    pending: Vec<Pending>,
    /// Sizes since the flush, each with how many of `pending` came before it.
    sizes: Vec<(usize, u64)>,
    /// The size as programs see it.
    size: u64,
}

impl Node {
    fn new(kind: NodeKind) -> Self {
        Self {
            kind,
            mode: 0o600,
            owner: (0, 0),
            durable: Content::default(),
            pending: Vec::new(),
            sizes: Vec::new(),
            size: 0,
        }
    }

    fn write(&mut self, offset: u64, data: &Arc<[u8]>) {
        self.pending.push(Pending::Write {
            offset,
            data: Arc::clone(data),
        });
        self.resize(self.size.max(offset + data.len() as u64));
    }

    fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.pending.push(Pending::Zero {
                offset: size,
                length: self.size - size,
            });
        }
        self.resize(size);
    }

    fn resize(&mut self, size: u64) {
        if size != self.size {
            self.size = size;
            self.sizes.push((self.pending.len(), size));
        }
    }

    fn flush(&mut self) {
        let longest = self.sizes.iter().map(|(_, size)| *size).max().unwrap_or(0);
        self.durable.resize(self.durable.size().max(longest));
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable, 0, u64::MAX);
        }
        self.durable.resize(self.size);
        self.sizes.clear();
    }

    /// One content that the disk may hold.
    fn survive(&self, dice: &mut Dice) -> Content {
        let mut content = self.durable.clone();
        if self.pending.is_empty() && self.sizes.is_empty() {
            return content;
        }
        let fate = Fate::of(dice);
        let kept = fate.prefix(self.pending.len(), dice);
        let size = self.surviving_size(fate, kept, dice);
        // A cut that is followed by growth reads as zeros behind it: room for all that was there.
        let longest = self.sizes.iter().map(|(_, size)| *size).max().unwrap_or(0);
        content.resize(content.size().max(longest).max(size));
        match fate {
            Fate::Prefix => {
                for change in self.pending.iter().take(kept) {
                    change.apply(&mut content, 0, u64::MAX);
                }
            }
            Fate::Scattered(chance) => self.scatter(&mut content, chance, dice),
        }
        content.resize(size);
        content
    }

    fn surviving_size(&self, fate: Fate, kept: usize, dice: &mut Dice) -> u64 {
        let durable = self.durable.size();
        let choices = match fate {
            Fate::Prefix => {
                let reached = self.sizes.iter().rev().find(|(before, _)| *before <= kept);
                return reached.map_or(durable, |(_, size)| *size);
            }
            Fate::Scattered(_) => self.sizes.iter().map(|(_, size)| *size),
        };
        let mut choices: Vec<u64> = choices.collect();
        choices.push(durable);
        // The last one as often as all others together: a size is what a file system keeps best.
        if dice.chance(50) {
            return self.size;
        }
        choices.get(dice.below(choices.len())).copied().unwrap_or(durable)
    }

    /// Each sector on its own: as it is durably, or as it was after one of the writes to it.
    fn scatter(&self, content: &mut Content, chance: u32, dice: &mut Dice) {
        let mut touched: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, change) in self.pending.iter().enumerate() {
            let (start, end) = change.range();
            for sector in start / SECTOR..end.div_ceil(SECTOR) {
                touched.entry(sector).or_default().push(number);
            }
        }
        for (sector, changes) in touched {
            if !dice.chance(chance) {
                continue;
            }
            let last = if dice.chance(70) {
                changes.len()
            } else {
                1 + dice.below(changes.len())
            };
            for number in changes.into_iter().take(last) {
                if let Some(change) = self.pending.get(number) {
                    change.apply(content, sector * SECTOR, (sector + 1) * SECTOR);
                }
            }
        }
    }
}

/// How a file fares.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// What was written first is there, up to a point, which may be nothing or all.
    Prefix,
    /// Each sector is there with this chance of a hundred.
    Scattered(u32),
}

impl Fate {
    fn of(dice: &mut Dice) -> Self {
        match dice.below(6) {
            0 | 1 => Self::Prefix,
            2 => Self::Scattered(10),
            3 => Self::Scattered(50),
            4 => Self::Scattered(90),
            _ => Self::Scattered(100),
        }
    }

    fn prefix(self, changes: usize, dice: &mut Dice) -> usize {
        match (self, dice.below(4)) {
            (Self::Scattered(_), _) => changes,
            (Self::Prefix, 0) => 0,
            (Self::Prefix, 1) => changes,
            (Self::Prefix, _) => dice.below(changes + 1),
        }
    }
}

/// A change of names that no flush has covered.
#[derive(Debug, Clone)]
enum Naming {
    Set {
        place: (FileId, OsString),
        file: FileId,
    },
    Clear {
        place: (FileId, OsString),
    },
    Move {
        from: (FileId, OsString),
        to: (FileId, OsString),
        file: FileId,
    },
}

impl Naming {
    fn touches(&self, directory: FileId) -> bool {
        match self {
            Self::Set { place, .. } | Self::Clear { place } => place.0 == directory,
            Self::Move { from, to, .. } => from.0 == directory || to.0 == directory,
        }
    }
}

/// What names lead to, each with the number of the change that said so last.
type Names = BTreeMap<(FileId, OsString), (Option<FileId>, u64)>;

/// Applies a change of names unless a later one has already decided.
fn settle(names: &mut Names, number: u64, naming: &Naming) {
    let mut set = |place: &(FileId, OsString), value: Option<FileId>| {
        let slot = names.entry(place.clone()).or_insert((None, 0));
        if slot.1 <= number {
            *slot = (value, number);
        }
    };
    match naming {
        Naming::Set { place, file } => set(place, Some(*file)),
        Naming::Clear { place } => set(place, None),
        Naming::Move { from, to, file } => {
            set(to, Some(*file));
            set(from, None);
        }
    }
}

/// A disk as the log makes it: what is durable, and what is not yet.
#[derive(Debug, Clone, Default)]
pub struct Platter {
    nodes: BTreeMap<FileId, Node>,
    names: Names,
    namings: Vec<(u64, Naming)>,
    changes: u64,
}

impl Platter {
    /// Takes the next change of the log. Total: a change of a file that was never made counts for a
    /// file that was there before the log began and was empty.
    pub fn apply(&mut self, change: &Change) {
        self.changes += 1;
        match change {
            Change::Made { file, kind } => {
                self.nodes.insert(*file, Node::new(kind.clone()));
            }
            Change::Attributes { file, mode, uid, gid } => {
                let node = self.node(*file);
                node.mode = *mode;
                node.owner = (*uid, *gid);
            }
            Change::Write { file, offset, data } => self.node(*file).write(*offset, data),
            Change::Truncate { file, size } => self.node(*file).truncate(*size),
            Change::Zero { file, offset, length } => self.node(*file).pending.push(Pending::Zero {
                offset: *offset,
                length: *length,
            }),
            Change::Name {
                directory,
                name,
                file,
            } => self.naming(Naming::Set {
                place: (*directory, name.clone()),
                file: *file,
            }),
            Change::Unname { directory, name } => self.naming(Naming::Clear {
                place: (*directory, name.clone()),
            }),
            Change::Rename {
                from,
                old,
                to,
                new,
                file,
            } => self.naming(Naming::Move {
                from: (*from, old.clone()),
                to: (*to, new.clone()),
                file: *file,
            }),
            Change::Flush { file } => self.node(*file).flush(),
            Change::FlushDirectory { directory } => self.settle_names(|naming| naming.touches(*directory)),
            Change::FlushAll => {
                self.nodes.values_mut().for_each(Node::flush);
                self.settle_names(|_| true);
            }
            Change::Mark(_) => {}
        }
    }

    fn node(&mut self, file: FileId) -> &mut Node {
        self.nodes
            .entry(file)
            .or_insert_with(|| Node::new(NodeKind::File))
    }

    fn naming(&mut self, naming: Naming) {
        self.namings.push((self.changes, naming));
    }

    fn settle_names(&mut self, covered: impl Fn(&Naming) -> bool) {
        let names = &mut self.names;
        self.namings.retain(|(number, naming)| {
            let covered = covered(naming);
            if covered {
                settle(names, *number, naming);
            }
            !covered
        });
    }

    /// What programs see now: everything, flushed or not.
    #[must_use]
    pub fn current(&self) -> Tree {
        let mut whole = self.clone();
        whole.apply(&Change::FlushAll);
        whole.survivors(0)
    }

    /// One content that the disk may hold when the power goes now. The same seed, the same content.
    #[must_use]
    pub fn survivors(&self, seed: u64) -> Tree {
        let mut dice = Dice(seed);
        let mut names = self.names.clone();
        // None, all, and in between: each is a disk of its own.
        let chance = [0, 100, 50, 80, 20].get(dice.below(5)).copied().unwrap_or(50);
        for (number, naming) in &self.namings {
            if dice.chance(chance) {
                settle(&mut names, *number, naming);
            }
        }
        let mut tree = Tree::default();
        self.place(ROOT, Path::new(""), &names, &mut BTreeSet::new(), &mut tree);
        // Two names of one file have one content.
        let mut contents: BTreeMap<FileId, Content> = BTreeMap::new();
        for placed in tree.entries.values_mut() {
            let (Entry::File(held), Some(node)) = (&mut placed.entry, self.nodes.get(&placed.file)) else {
                continue;
            };
            let content = contents
                .entry(placed.file)
                .or_insert_with(|| node.survive(&mut dice));
            held.clone_from(content);
        }
        tree
    }

    /// Puts what is beneath a directory into the tree. A directory that lost renames left in two places
    /// is walked once.
    fn place(
        &self,
        directory: FileId,
        at: &Path,
        names: &Names,
        seen: &mut BTreeSet<FileId>,
        tree: &mut Tree,
    ) {
        if !seen.insert(directory) {
            return;
        }
        let first = (directory, OsString::new());
        let beneath = names
            .range(first..)
            .take_while(|((parent, _), _)| *parent == directory);
        for ((_, name), (file, _)) in beneath {
            let Some((file, node)) = file.and_then(|file| Some((file, self.nodes.get(&file)?))) else {
                continue;
            };
            let path: PathBuf = at.join::<&OsStr>(name);
            let entry = match &node.kind {
                NodeKind::File => Entry::File(Content::default()),
                NodeKind::Directory if seen.contains(&file) => continue,
                NodeKind::Directory => Entry::Directory,
                NodeKind::Symlink(target) => Entry::Symlink(target.clone()),
                NodeKind::Other => continue,
            };
            let (mode, owner) = (node.mode, node.owner);
            let directory = entry == Entry::Directory;
            tree.entries.insert(
                path.clone(),
                Placed {
                    file,
                    mode,
                    owner,
                    entry,
                },
            );
            if directory {
                self.place(file, &path, names, seen, tree);
            }
        }
    }
}

/// Numbers from a seed (SplitMix64): a harness needs them equal on every machine, not good.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(1);
        index(self.roll() % bound)
    }

    /// True `percent` times of a hundred.
    fn chance(&mut self, percent: u32) -> bool {
        self.roll() % 100 < u64::from(percent)
    }
}
