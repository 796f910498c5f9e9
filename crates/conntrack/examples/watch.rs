//! The observer on the real kernel, as a library of its own. Needs root.
//!
//! ```text
//! watch check              what the kernel must have switched on, and what it has
//! watch list [ADDRESS]     the tracked flows, or those that ADDRESS answers
//! watch stream             what happens, gaps included, until interrupted
//! watch confirm [COUNT]    barriers one after another, and how long they took
//! ```

use std::error::Error;
use std::io::Write as _;
use std::time::{Duration, Instant};

use dormouse_conntrack::{BARRIER_PATIENCE, ListFilter, Observer, ObserverConfig, Requirements, list};
use dormouse_model::{Flow, FlowKey, Observation};

const PATIENCE: Duration = Duration::from_secs(60);

type Outcome = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["check"] => check(),
        ["list"] => print_list(&ListFilter::All),
        ["list", address] => print_list(&ListFilter::Responder(address.parse()?)),
        ["stream"] => stream().await,
        ["confirm"] => confirm(1_000).await,
        ["confirm", count] => confirm(count.parse()?).await,
        _ => Err("usage: watch check | list [ADDRESS] | stream | confirm [COUNT]".into()),
    }
}

fn check() -> Outcome {
    let found = Requirements::check(None)?;
    say(&format!("{found:#?}\nmet: {}", found.is_met()))
}

fn print_list(filter: &ListFilter) -> Outcome {
    let began = Instant::now();
    let flows = list(None, filter, PATIENCE)?;
    for flow in &flows {
        say(&text(flow))?;
    }
    say(&format!("{} flows in {:?}", flows.len(), began.elapsed()))
}

async fn stream() -> Outcome {
    let (observer, _handle, mut observations) = Observer::new(ObserverConfig::standard(None));
    let print = async {
        while let Some(batch) = observations.next().await {
            for observation in batch {
                match observation {
                    Observation::SyncBegan { epoch } => say(&format!("-- listing, epoch {epoch}"))?,
                    Observation::SyncDone { epoch } => say(&format!("-- in sync, epoch {epoch}"))?,
                    Observation::SightLost { reason } => say(&format!("-- sight lost: {}", reason.as_str()))?,
                    Observation::FlowListed(flow) => say(&format!("listed  {}", text(&flow)))?,
                    Observation::FlowOpened(flow) => say(&format!("opened  {}", text(&flow)))?,
                    Observation::FlowChanged(flow) => say(&format!("changed {}", text(&flow)))?,
                    Observation::FlowClosed(key) => say(&format!("closed  {}", key_text(&key)))?,
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        () = observer.run() => Ok(()),
        outcome = print => outcome,
    }
}

async fn confirm(count: usize) -> Outcome {
    let (observer, handle, mut observations) = Observer::new(ObserverConfig::standard(None));
    let drain = async { while observations.next().await.is_some() {} };
    let measure = async {
        let epoch = handle.synced().await.ok_or("the observer ended")?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            handle.barrier(BARRIER_PATIENCE).await?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        let share = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100);
        say(&format!(
            "epoch {epoch}: {count} barriers, p50 {:?}, p99 {:?}",
            share(50),
            share(99)
        ))
    };
    tokio::select! {
        () = observer.run() => Ok(()),
        () = drain => Ok(()),
        outcome = measure => outcome,
    }
}

fn text(flow: &Flow) -> String {
    let state = flow
        .tcp_state
        .map_or(String::new(), |state| format!(" state {}", state.0));
    format!(
        "{} answered by {}:{}{state}",
        key_text(&flow.key),
        flow.responder,
        flow.responder_port
    )
}

fn key_text(key: &FlowKey) -> String {
    format!(
        "{:?} zone {} {}:{} -> {}:{}",
        key.protocol, key.zone, key.source, key.source_port, key.destination, key.destination_port
    )
}

fn say(line: &str) -> Outcome {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
