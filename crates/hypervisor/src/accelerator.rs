//! Whether KVM really executes guests here. A `/dev/kvm` that opens proves nothing: some hosts offer one
//! that interprets every instruction, a hundred times slower than software emulation by translation. So
//! a guest is run and timed. The judgement is pure; the driver that runs the guest feeds it.

use std::fmt;
use std::time::Duration;

/// What executes guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, through KVM.
    Kvm,
    /// Software, and why not KVM.
    Emulation {
        /// For people: `/dev/kvm does not exist`.
        why: String,
    },
}

impl Accelerator {
    /// The name on the API and in snapshots: state of one does not load under the other.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation { .. } => "emulation",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => f.write_str("kvm"),
            Self::Emulation { why } => write!(f, "emulation ({why})"),
        }
    }
}

/// Turns of the probe's loop between two beats.
pub const ITERATIONS_PER_BEAT: u32 = 20_000_000;

/// The fewest turns a second that count as executing. A processor of any age does a thousand million;
/// translated code about 15 million; an interpreter one million.
pub const MIN_ITERATIONS_PER_SECOND: u64 = 200_000_000;

/// How long the probe may take until the first beat: the start of the program and its firmware.
pub const FIRST_BEAT_DEADLINE: Duration = Duration::from_secs(4);

/// How long after that it goes on. One undisturbed beat is enough, so a busy host gets many tries.
pub const MEASURE_FOR: Duration = Duration::from_millis(1500);

/// What was seen of the probe's guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// There was nothing to run it with.
    CouldNotRun {
        /// For people.
        why: String,
    },
    /// Beats arrived after these times since the start; perhaps none.
    Beats(Vec<Duration>),
}

/// Beats whose time is taken together: one alone looks short when its predecessor was read late.
const TOGETHER: usize = 3;

/// Turns a second over each `together` successive beats, the best of them; `None` with fewer.
fn best_speed(beats: &[Duration], together: usize) -> Option<u64> {
    let times = beats
        .windows(together + 1)
        .filter_map(|beats| beats.last()?.checked_sub(*beats.first()?));
    let nanos = times.min()?.as_nanos().max(1);
    let turns = u128::from(ITERATIONS_PER_BEAT) * together as u128;
    Some(u64::try_from(turns * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
}

/// Whether the beats so far already show enough.
#[must_use]
pub fn is_proven(beats: &[Duration]) -> bool {
    best_speed(beats, TOGETHER).is_some_and(|speed| speed >= MIN_ITERATIONS_PER_SECOND)
}

/// The judgement. Pure.
#[must_use]
pub fn judge(observed: &Observed) -> Accelerator {
    let why = match observed {
        Observed::CouldNotRun { why } => why.clone(),
        Observed::Beats(beats) if is_proven(beats) => return Accelerator::Kvm,
        Observed::Beats(beats) => match (best_speed(beats, 1), beats.first()) {
            (Some(speed), _) => format!(
                "KVM executes only {} million loop turns a second, {} are required",
                speed / 1_000_000,
                MIN_ITERATIONS_PER_SECOND / 1_000_000
            ),
            (None, Some(_)) => format!(
                "KVM did not finish {ITERATIONS_PER_BEAT} loop turns in {} ms",
                MEASURE_FOR.as_millis()
            ),
            (None, None) => format!(
                "a guest under KVM did not speak within {} s: it does not execute, or far too slowly",
                FIRST_BEAT_DEADLINE.as_secs()
            ),
        },
    };
    Accelerator::Emulation { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(millis: &[u64]) -> Observed {
        Observed::Beats(millis.iter().copied().map(Duration::from_millis).collect())
    }

    fn check(observed: &Observed, want: &str) {
        assert_eq!(judge(observed).to_string(), want, "{observed:?}");
    }

    #[test]
    fn judgements() {
        check(&beats(&[30, 40, 50, 60]), "kvm");
        // Disturbed by other work, but once not.
        check(&beats(&[30, 900, 915, 925, 950, 1500]), "kvm");
        check(
            &beats(&[30, 1430]),
            "emulation (KVM executes only 14 million loop turns a second, 200 are required)",
        );
        check(
            &beats(&[30]),
            "emulation (KVM did not finish 20000000 loop turns in 1500 ms)",
        );
        check(
            &beats(&[]),
            "emulation (a guest under KVM did not speak within 4 s: it does not execute, or far too slowly)",
        );
        let missing = Observed::CouldNotRun {
            why: "/dev/kvm does not exist".into(),
        };
        check(&missing, "emulation (/dev/kvm does not exist)");
    }

    #[test]
    fn beats_at_the_same_time_do_not_divide_by_zero() {
        assert_eq!(judge(&beats(&[30, 30, 30, 30])), Accelerator::Kvm);
    }
}
