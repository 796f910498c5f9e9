//! What a durable commit costs: `cargo run --release -p dormouse-store --example commit_latency [DIR]`.
//!
//! One caller alone, then 64 at once; milliseconds, nearest rank.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dormouse_store::{Record, RecordKind, Store};

#[derive(Clone, PartialEq, prost::Message)]
struct Blob {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

impl Record for Blob {
    const KIND: RecordKind = RecordKind::Test;
    const VERSION: u8 = 1;
}

/// About the size of an instance's record.
const RECORD_BYTES: usize = 1024;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let path = directory.join(format!("commit-latency-{}.db", std::process::id()));
    let store = Store::open(&path).await?;
    for callers in [1_usize, 64] {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..callers {
            let store = store.clone();
            tasks.spawn(async move {
                let mut samples = Vec::new();
                for step in 0..1000 / callers.min(10) {
                    // SQLite writes nothing when nothing changes, so every record differs.
                    let mut bytes = vec![0x5a; RECORD_BYTES];
                    bytes.splice(..8, (step as u64).to_le_bytes());
                    let record = Blob { bytes };
                    let began = Instant::now();
                    store
                        .put(format!("{caller}/{}", step % 50).as_str(), &record)
                        .await?;
                    samples.push(began.elapsed());
                }
                Ok::<_, dormouse_store::StoreError>(samples)
            });
        }
        let mut samples = Vec::new();
        for outcome in tasks.join_all().await {
            samples.extend(outcome?);
        }
        report(callers, samples, began.elapsed());
    }
    drop(store);
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        // Some of them need not exist.
        let _ = std::fs::remove_file(PathBuf::from(name));
    }
    Ok(())
}

fn report(callers: usize, mut samples: Vec<Duration>, elapsed: Duration) {
    samples.sort_unstable();
    let at = |share: usize| {
        let index = (samples.len() * share).div_ceil(100).saturating_sub(1);
        samples
            .get(index)
            .map_or(0.0, |sample| sample.as_secs_f64() * 1000.0)
    };
    println!(
        "callers {callers:>2}  commits {:>5}  p50 {:.3} ms  p90 {:.3} ms  p99 {:.3} ms  max {:.3} ms  {:.0} commits/s",
        samples.len(),
        at(50),
        at(90),
        at(99),
        at(100),
        samples.len() as f64 / elapsed.as_secs_f64(),
    );
}
