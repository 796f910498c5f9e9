//! What the write-ahead log beside a database holds, read without SQLite.
//!
//! SQLite takes a log up to the first frame that does not fit and says nothing of the rest. After a
//! power loss that is right: what does not fit is the one transaction that was under way. After damage
//! it is not: acknowledged transactions behind the damage would be gone in silence. The two differ:
//! a commit is flushed before the next one is written, and a new header before its first frame, so that
//! behind the first frame that does not fit there is at most one end of a transaction, and nothing of
//! the same header after it.
//!
//! ```text
//!  header  magic, format, page size, sequence, salt 1, salt 2, sum 1, sum 2            32 bytes
//!  frame   page, size after commit or 0, salt 1, salt 2, sum 1, sum 2                  24 bytes
//!          page                                                                        page size
//! ```
//!
//! All numbers are big-endian 32-bit words. A sum runs over all before it: see "WAL File Format" in
//! SQLite's file format description. Pure.

/// Bytes of the header.
const HEADER: usize = 32;
/// Bytes of a frame before its page.
const FRAME: usize = 24;
/// The magic of logs whose sums are of little-endian words; plus one: of big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// What a log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// Nothing that counts.
    Empty,
    /// Whole transactions, and perhaps a part of one that was never acknowledged.
    Sound {
        /// Where the last whole transaction ends, in bytes. At most the length of the log.
        end: usize,
    },
    /// Transactions behind bytes that are not what was written.
    Damaged(LogDamage),
}

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogDamage {
    /// The header is not one.
    Header,
    /// A frame does not fit, and acknowledged ones follow. Counted from 1.
    Frame(usize),
}

impl std::fmt::Display for LogDamage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("the header of its log is not what was written"),
            Self::Frame(number) => write!(
                f,
                "frame {number} of its log is not what was written, and acknowledged changes follow it"
            ),
        }
    }
}

/// The running sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum {
    first: u32,
    second: u32,
    big_endian: bool,
}

impl Sum {
    /// Goes on over `bytes`, whole pairs of words.
    fn over(mut self, bytes: &[u8]) -> Self {
        let (pairs, _) = bytes.as_chunks::<8>();
        for [a, b, c, d, e, f, g, h] in pairs {
            let words = ([*a, *b, *c, *d], [*e, *f, *g, *h]);
            let (one, two) = if self.big_endian {
                (u32::from_be_bytes(words.0), u32::from_be_bytes(words.1))
            } else {
                (u32::from_le_bytes(words.0), u32::from_le_bytes(words.1))
            };
            self.first = self.first.wrapping_add(one).wrapping_add(self.second);
            self.second = self.second.wrapping_add(two).wrapping_add(self.first);
        }
        self
    }

    fn is(self, words: [u32; 2]) -> bool {
        [self.first, self.second] == words
    }
}

/// The big-endian words at the front of `bytes`; zeros where there are none.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (chunks, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|number| chunks.get(number).copied().map_or(0, u32::from_be_bytes))
}

/// Reads a log. Total on any bytes.
pub(super) fn survey(log: &[u8]) -> Log {
    // A new log grows from nothing, or from zeros where a size was kept and the bytes were not.
    if log.len() < HEADER || log.iter().take(HEADER).all(|byte| *byte == 0) {
        return Log::Empty;
    }
    let [magic, _, page, _, salt_1, salt_2, sum_1, sum_2] = words::<8>(log);
    let fresh = Sum {
        first: 0,
        second: 0,
        big_endian: magic & 1 == 1,
    };
    let mut sum = fresh.over(log.get(..24).unwrap_or_default());
    let size = usize::try_from(page).unwrap_or(0);
    if magic & !1 != MAGIC || !sum.is([sum_1, sum_2]) || !(512..=65536).contains(&size) {
        return Log::Damaged(LogDamage::Header);
    }
    let (mut end, mut broken, mut ends_behind) = (HEADER, None, 0);
    for (number, frame) in log
        .get(HEADER..)
        .unwrap_or_default()
        .chunks_exact(FRAME + size)
        .enumerate()
    {
        let [page, commit, one, two, sum_1, sum_2] = words::<6>(frame);
        let ours = [one, two] == [salt_1, salt_2];
        if broken.is_none() {
            let next = sum
                .over(frame.get(..8).unwrap_or_default())
                .over(frame.get(FRAME..).unwrap_or_default());
            if ours && page != 0 && next.is([sum_1, sum_2]) {
                sum = next;
                if commit != 0 {
                    end = HEADER + (number + 1) * (FRAME + size);
                }
                continue;
            }
            broken = Some(number + 1);
        }
        if ours && ends_behind > 0 {
            return Log::Damaged(LogDamage::Frame(broken.unwrap_or(number + 1)));
        }
        ends_behind += usize::from(ours && commit != 0);
    }
    Log::Sound { end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = 512;

    /// A log of transactions with so many frames each, as SQLite writes it.
    fn log(transactions: &[usize], salts: [u32; 2]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [MAGIC + 1, 3_007_000, 512, 0, salts[0], salts[1]] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        let fresh = Sum {
            first: 0,
            second: 0,
            big_endian: true,
        };
        let mut sum = fresh.over(&bytes);
        bytes.extend_from_slice(&sum.first.to_be_bytes());
        bytes.extend_from_slice(&sum.second.to_be_bytes());
        for frames in transactions {
            for number in 1..=*frames {
                let head = [u32::try_from(number).unwrap(), u32::from(number == *frames) * 9];
                let head: Vec<u8> = head.iter().flat_map(|word| word.to_be_bytes()).collect();
                let page = [u8::try_from(number).unwrap(); PAGE];
                sum = sum.over(&head).over(&page);
                bytes.extend_from_slice(&head);
                for word in [salts[0], salts[1], sum.first, sum.second] {
                    bytes.extend_from_slice(&word.to_be_bytes());
                }
                bytes.extend_from_slice(&page);
            }
        }
        bytes
    }

    const fn at(frame: usize) -> usize {
        HEADER + frame * (FRAME + PAGE)
    }

    #[test]
    fn whole_logs_and_their_tails() {
        let whole = log(&[2, 1, 3], [5, 6]);
        assert_eq!(survey(&whole), Log::Sound { end: at(6) });
        assert_eq!(survey(&whole[..at(5)]), Log::Sound { end: at(3) });
        assert_eq!(survey(&whole[..at(5) + 77]), Log::Sound { end: at(3) });
        assert_eq!(survey(&whole[..HEADER]), Log::Sound { end: HEADER });
        assert_eq!(survey(&whole[..HEADER - 1]), Log::Empty);
        assert_eq!(survey(&[0; 4096]), Log::Empty);
        // The last transaction torn: its first frame lost, its end kept.
        let mut torn = whole.clone();
        torn[at(3)..at(4)].fill(0);
        assert_eq!(survey(&torn), Log::Sound { end: at(3) });
        // A log begun anew over a longer old one.
        let mut anew = log(&[2], [6, 9]);
        anew.extend_from_slice(&whole[at(2)..]);
        assert_eq!(survey(&anew), Log::Sound { end: at(2) });
    }

    #[test]
    fn damage_before_acknowledged_transactions_is_found() {
        let whole = log(&[2, 1, 3, 1], [5, 6]);
        for frame in 0..5 {
            for offset in [0, 9, 17, FRAME + 100] {
                let mut bytes = whole.clone();
                bytes[at(frame) + offset] ^= 4;
                assert_eq!(
                    survey(&bytes),
                    Log::Damaged(LogDamage::Frame(frame + 1)),
                    "{frame} {offset}"
                );
            }
        }
        let mut bytes = whole.clone();
        bytes[13] ^= 1;
        assert_eq!(survey(&bytes), Log::Damaged(LogDamage::Header));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let _ = survey(&bytes);
        }
    }
}
