//! What a file holds: pages, and nothing where there are only zeros. Copies share their pages.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page.
const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;

type Page = [u8; PAGE_BYTES];

/// The content of a file. Two are equal when their bytes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    size: u64,
    /// By number; never one of zeros alone.
    pages: BTreeMap<u64, Arc<Page>>,
}

/// A size or offset as an index.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl Content {
    /// How many bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// All bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; index(self.size)];
        for (offset, page) in self.pages() {
            let length = page.len();
            if let Some(target) = bytes.get_mut(index(offset)..index(offset) + length) {
                target.copy_from_slice(page);
            }
        }
        bytes
    }

    /// The pages that are not zeros alone, each with its offset; the last is cut at the end.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(number, page)| {
            let offset = number * PAGE;
            let length = index(self.size.saturating_sub(offset).min(PAGE));
            (offset, page.get(..length).unwrap_or_default())
        })
    }

    /// Makes it longer or shorter; what is added is zeros.
    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size);
        }
        self.size = size;
    }

    /// Puts `data` at `offset`, as far as there is room.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = (offset + data.len() as u64).min(self.size);
        self.change(offset, end, |page, at| {
            let source = index(at - offset)..index(at - offset) + page.len();
            if let Some(source) = data.get(source) {
                page.copy_from_slice(source);
            }
        });
    }

    /// Makes the bytes from `start` to `end` zeros.
    pub(crate) fn zero(&mut self, start: u64, end: u64) {
        let end = end.min(self.size);
        let whole = start.div_ceil(PAGE)..end / PAGE;
        if !whole.is_empty() {
            let gone: Vec<u64> = self.pages.range(whole).map(|(number, _)| *number).collect();
            for number in gone {
                self.pages.remove(&number);
            }
        }
        let numbers = [start / PAGE, end.saturating_sub(1) / PAGE];
        for number in numbers {
            if self.pages.contains_key(&number) {
                let (from, to) = (start.max(number * PAGE), end.min((number + 1) * PAGE));
                self.change(from, to, |page, _| page.fill(0));
            }
        }
    }

    /// Hands the bytes from `start` to `end` to `act`, page by page, with the offset of each piece.
    fn change(&mut self, start: u64, end: u64, mut act: impl FnMut(&mut [u8], u64)) {
        let mut at = start;
        while at < end {
            let number = at / PAGE;
            let until = end.min((number + 1) * PAGE);
            let page = self
                .pages
                .entry(number)
                .or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            let inside = index(at - number * PAGE)..index(until - number * PAGE);
            if let Some(piece) = Arc::make_mut(page).get_mut(inside) {
                act(piece, at);
            }
            if page.iter().all(|byte| *byte == 0) {
                self.pages.remove(&number);
            }
            at = until;
        }
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.resize(bytes.len() as u64);
        content.write(0, bytes);
        content
    }
}
