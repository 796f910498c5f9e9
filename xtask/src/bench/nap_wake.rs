//! Sleep and wake of idle guests of several sizes, interleaved: the rows of the demo and of
//! `bench standby`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dormouse_client::v1::{InstanceState, MemoryPlacement};

use crate::figures::{Figures, Row, Samples};
use crate::lab::{
    Answer, Guest, GuestSpec, Lab, Retransmits, ask, cpu_ms, drop_cached, ms_between, tick, wait_given_back,
};

/// The sizes of RAM, in MiB; a third of each is in use.
pub(crate) const SIZES_MIB: [u64; 3] = [256, 1024, 4096];

/// How long giving the memory of a sleeper back may take.
const GIVE_BACK_DEADLINE: Duration = Duration::from_secs(90);
/// How long a client waits for its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// How long a guest is left awake after its answer.
const AWAKE: Duration = Duration::from_millis(100);

/// How far the daemon's own figures may be from what is seen outside: a request's way to the daemon.
const FIGURES_APART_MS: f64 = 5.0;

/// One guest and all that was measured on it.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The guest.
    pub guest: Guest,
    /// Its RAM.
    pub ram_mib: u64,
    placement: &'static str,
    standby: Samples,
    committed: Samples,
    spill: Samples,
    wake: Samples,
    wake_cold: Samples,
    apart: Samples,
    standby_cpu_ms: f64,
    wake_cpu_ms: f64,
}

/// How a wake finds the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// As the sleep left it.
    Kept,
    /// Without the guest's files.
    Dropped,
}

/// The word for a placement in figures.
pub(crate) fn placement_word(placement: MemoryPlacement) -> &'static str {
    match placement {
        MemoryPlacement::Unspecified => "auto",
        MemoryPlacement::Tmpfs => "tmpfs",
        MemoryPlacement::Spill => "spill",
        MemoryPlacement::Disk => "disk",
    }
}

/// Makes one guest a size, fills a third of its RAM, and leaves it asleep with its memory given back.
pub(crate) fn make_subjects(lab: &Lab, placement: MemoryPlacement) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for ram_mib in SIZES_MIB {
        let name = format!("bench-{ram_mib}");
        let spec = GuestSpec {
            name: &name,
            image: "bench:latest",
            ram_mib,
            placement,
            idle: None,
        };
        let guest = lab.run_server(&spec)?;
        lab.command(&guest, &format!("fill {}", ram_mib / 3), Duration::from_secs(120))?;
        let lives = lab.view(&guest)?.placement();
        let mut subject = Subject {
            guest,
            ram_mib,
            placement: placement_word(lives),
            standby: Samples::default(),
            committed: Samples::default(),
            spill: Samples::default(),
            wake: Samples::default(),
            wake_cold: Samples::default(),
            apart: Samples::default(),
            standby_cpu_ms: 0.0,
            wake_cpu_ms: 0.0,
        };
        // The first sleep counts like any other.
        subject.sleep(lab)?;
        subjects.push(subject);
    }
    Ok(subjects)
}

impl Subject {
    /// Wakes the guest by a packet and puts it to sleep again; returns when its memory is given back.
    pub(crate) fn cycle(&mut self, lab: &Lab, cache: Cache, turn: usize) -> Result<()> {
        match cache {
            Cache::Kept => {}
            Cache::Dropped => drop_cached(&lab.directories(), &self.guest.id)?,
        }
        let answer = self.wake(lab, turn)?;
        match cache {
            Cache::Kept => self.wake.push(answer.first_byte_ms),
            Cache::Dropped => self.wake_cold.push(answer.first_byte_ms),
        }
        tick(AWAKE);
        self.sleep(lab)
    }

    fn wake(&mut self, lab: &Lab, turn: usize) -> Result<Answer> {
        let view = lab.view(&self.guest)?;
        ensure!(
            view.state() == InstanceState::Standby,
            "{} is awake before its wake",
            self.guest.name
        );
        let daemon = cpu_ms(lab.daemon_pid(), false);
        let to = self.guest.at(turn, crate::lab::TCP_PORT);
        let answer = lab
            .as_client(|| ask(to, &(turn as u64).to_be_bytes(), ANSWER_DEADLINE))?
            .with_context(|| format!("waking {}\n{}", self.guest.name, lab.log_tail()))?;
        let daemon = cpu_ms(lab.daemon_pid(), false) - daemon;
        self.wake_cpu_ms += daemon + cpu_ms(lab.view(&self.guest)?.pid, false);
        Ok(answer)
    }

    fn sleep(&mut self, lab: &Lab) -> Result<()> {
        let nap = lab.nap(&self.guest)?;
        self.standby.push(nap.gone_ms);
        self.apart.push((nap.gone_ms - nap.daemon_gone_ms).abs());
        self.committed.push(nap.committed_ms);
        self.standby_cpu_ms += nap.cpu_ms;
        ensure!(
            nap.committed_ms <= nap.answered_ms + 1.0,
            "the daemon says that the commit took {} ms, its answer came after {} ms",
            nap.committed_ms,
            nap.answered_ms
        );
        if self.placement != "tmpfs" {
            let given_back = wait_given_back(&lab.directories(), &self.guest.id, GIVE_BACK_DEADLINE)?;
            self.spill.push(ms_between(nap.asked, given_back));
        }
        Ok(())
    }

    /// The guest's rows, with what `rivals` measured on theirs of the same size.
    pub(crate) fn rows(&self, rivals: &[(&str, &Samples, &Samples)]) -> Vec<Row> {
        let row = |case: &str, samples: &Samples| {
            let row = if samples.len() == 0 {
                Row::skipped(case, "ms", "not measured in this placement")
            } else {
                Row::new(case, "ms", samples)
            };
            row.param("placement", self.placement)
                .param("ram_mib", self.ram_mib)
                .param("used_mib", self.ram_mib / 3)
        };
        let per = |total: f64, n: usize| if n == 0 { 0.0 } else { total / n as f64 };
        let wakes = self.wake.len() + self.wake_cold.len();
        let mut standby = row("standby", &self.standby).cpu_ms(per(self.standby_cpu_ms, self.standby.len()));
        let mut wake = row("wake_first_byte", &self.wake).cpu_ms(per(self.wake_cpu_ms, wakes));
        for (name, saved, answered) in rivals {
            standby = standby.rival(name, saved);
            wake = wake.rival(name, answered);
        }
        vec![
            standby,
            row("standby_committed", &self.committed),
            row("spill", &self.spill),
            wake,
            row("wake_cold", &self.wake_cold),
        ]
    }
}

/// The milliseconds that one GiB more costs: the slope of the least squares line through all samples.
fn slope_per_gib(points: &[(f64, &Samples)]) -> f64 {
    let all: Vec<(f64, f64)> = points
        .iter()
        .flat_map(|(gib, samples)| samples.values().iter().map(|value| (*gib, *value)))
        .collect();
    let count = all.len() as f64;
    let mean_x = all.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = all.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = all.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = all.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    covariance / variance
}

/// Measures `rounds` warm wakes a size, and as many cold ones when `cold` is set, the sizes in turn;
/// `between` runs after each round. Returns the SYNs that the clients' kernel sent again.
pub(crate) fn measure(
    lab: &Lab,
    subjects: &mut [Subject],
    rounds: usize,
    cold: bool,
    mut between: impl FnMut(usize) -> Result<()>,
) -> Result<u64> {
    let before = lab.as_client(Retransmits::now)??;
    let begun = Instant::now();
    for round in 0..rounds {
        for cache in [Cache::Kept, Cache::Dropped] {
            if cache == Cache::Dropped && !cold {
                continue;
            }
            for subject in subjects.iter_mut() {
                subject.cycle(lab, cache, round)?;
            }
        }
        between(round)?;
        if (round + 1).is_multiple_of(5) {
            println!(
                "  {} of {rounds} rounds, {:.0} s",
                round + 1,
                begun.elapsed().as_secs_f64()
            );
        }
    }
    Ok(lab.as_client(Retransmits::now)??.since(before).syn)
}

/// The checks of issue line A.2.
pub(crate) fn check(figures: &mut Figures, line: &str, subjects: &[Subject], syn_retransmits: u64) {
    for subject in subjects {
        let mut at_most = |what: &str, got: f64, most: f64| {
            figures.check_at_most(
                line,
                &format!("{what} at {} MiB", subject.ram_mib),
                got,
                most,
                "ms",
            );
        };
        at_most("standby p50", subject.standby.quantile(0.5), 60.0);
        at_most("standby_committed p50", subject.committed.quantile(0.5), 60.0);
        at_most("wake_first_byte p50", subject.wake.quantile(0.5), 120.0);
        at_most("wake_first_byte p99", subject.wake.quantile(0.99), 250.0);
    }
    let gib = |subject: &Subject| subject.ram_mib as f64 / 1024.0;
    let standby: Vec<_> = subjects
        .iter()
        .map(|subject| (gib(subject), &subject.standby))
        .collect();
    figures.check_at_most(line, "slope of standby", slope_per_gib(&standby), 8.0, "ms/GiB");
    let wake: Vec<_> = subjects
        .iter()
        .map(|subject| (gib(subject), &subject.wake))
        .collect();
    figures.check_at_most(
        line,
        "slope of wake_first_byte",
        slope_per_gib(&wake),
        8.0,
        "ms/GiB",
    );
    let mut apart = Samples::default();
    for subject in subjects {
        apart.extend(&subject.apart);
    }
    let what = "p50 of standby by its pidfd less by the daemon's figure";
    figures.check_at_most(line, what, apart.quantile(0.5), FIGURES_APART_MS, "ms");
    let least = subjects
        .iter()
        .map(|subject| subject.wake.len().min(subject.standby.len()))
        .min()
        .unwrap_or(0);
    figures.check(line, "samples a size", ">= 30", least.into(), least >= 30);
    figures.count("syn_retransmits", syn_retransmits);
    figures.check_count(line, "syn_retransmits", 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        let mut samples = Samples::default();
        for value in values {
            samples.push(*value);
        }
        samples
    }

    #[test]
    fn the_slope_is_that_of_the_least_squares_line() {
        let (a, b, c) = (samples(&[10.0, 12.0]), samples(&[14.0]), samples(&[26.0, 24.0]));
        let got = slope_per_gib(&[(0.0, &a), (1.0, &b), (4.0, &c)]);
        // By hand: mean x 1.8, mean y 17.2; sum of products 59.2, of squares 16.8.
        assert!((got - 59.2 / 16.8).abs() < 1e-9, "{got}");
        assert!(slope_per_gib(&[]).is_nan());
    }
}
