//! The fuzzer of the poor: seeds, mutated at random, without a look at coverage. For machines without a
//! nightly compiler; a crash it finds is one that the other finds sooner.
//!
//! `mutate TARGET SECONDS [NUMBER]` prints `TARGET: RUNS runs, CRASHES crashes`; the same number gives the
//! same inputs. Inputs that crash are left in `artifacts/TARGET`.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dormouse_fuzz::{TARGETS, seeds};

/// The longest input.
const LONGEST: usize = 16 << 10;
/// Inputs that led somewhere new cannot be told without coverage: a few mutated ones are kept to go on from.
const KEPT: usize = 256;
/// Crashes after which it ends.
const ENOUGH: u64 = 10;

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % end.max(1)
    }
}

/// Numbers at which readers go wrong.
const EDGES: [u32; 10] = [0, 1, 3, 4, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];

fn mutate(random: &mut Random, from: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = from.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.insert(at.min(bytes.len()), random.next() as u8),
            3 if !bytes.is_empty() => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            5 if bytes.len() >= at + 4 => {
                let edge = EDGES[random.below(EDGES.len())];
                let edge = if random.below(2) == 0 {
                    edge.to_le_bytes()
                } else {
                    edge.to_be_bytes()
                };
                let width = [1, 2, 4][random.below(3)];
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            6 if !other.is_empty() => {
                let start = random.below(other.len());
                let part = &other[start..(start + 1 + random.below(200)).min(other.len())];
                let at = at.min(bytes.len());
                bytes.splice(at..at, part.iter().copied());
            }
            _ => bytes.extend_from_slice(&random.next().to_le_bytes()),
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let target = words
        .first()
        .and_then(|name| TARGETS.iter().find(|(known, _)| known == name));
    let (Some((name, run)), Some(seconds)) = (target, words.get(1).and_then(|text| text.parse().ok())) else {
        eprintln!("usage: mutate TARGET SECONDS [NUMBER]");
        return ExitCode::from(64);
    };
    let number: u64 = words.get(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut pool = seeds::of(name);
    pool.push(Vec::new());
    let seeded = pool.len();
    // A panic is told once, below.
    std::panic::set_hook(Box::new(|_| {}));
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut runs, mut crashes) = (0_u64, 0_u64);
    while Instant::now() < end && crashes < ENOUGH {
        for _ in 0..64 {
            let (from, other) = (random.below(pool.len()), random.below(pool.len()));
            let bytes = if runs < seeded as u64 {
                pool[usize::try_from(runs).unwrap_or(0)].clone()
            } else {
                mutate(&mut random, &pool[from], &pool[other])
            };
            runs += 1;
            if catch_unwind(AssertUnwindSafe(|| run(&bytes))).is_err() {
                crashes += 1;
                let _lost = keep(name, crashes, &bytes);
            }
            if random.below(64) == 0 {
                if pool.len() < seeded + KEPT {
                    pool.push(bytes);
                } else {
                    let place = seeded + random.below(KEPT);
                    pool[place] = bytes;
                }
            }
        }
    }
    println!("{name}: {runs} runs, {crashes} crashes");
    if crashes == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn keep(name: &str, number: u64, bytes: &[u8]) -> io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(name);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("mutate-{number}"));
    std::fs::write(&path, bytes)?;
    writeln!(io::stderr(), "crash: {}", path.display())
}
