//! The benches, one file each, and what they share.

mod awake_disk;
pub(crate) mod connections;
pub(crate) mod nap_wake;
mod qmp;
pub(crate) mod restarts;
mod rival;
pub(crate) mod sleepers;
pub(crate) mod standby;
pub(crate) mod storm;
pub(crate) mod wake_storm;

use anyhow::Result;

use crate::figures::Figures;
use crate::lab::Lab;

/// What is judged: a test looks at what no busy machine can change, a bench at times too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    /// Nothing is lost.
    Losses,
    /// Nothing is lost, and nothing was late.
    LossesAndTimes,
}

/// Begins the figures of a bench that runs guests in `lab`.
pub(crate) fn begin(bench: &str, lab: &Lab) -> Result<Figures> {
    let info = lab.info()?;
    println!(
        "{} {} by {} ({}), memory on {} ({})",
        info.driver,
        info.driver_version,
        info.accelerator,
        info.accelerator_reason,
        nap_wake::placement_word(info.placement()),
        info.placement_reason,
    );
    // The word of QEMU, as in every figure: software emulation is its "tcg".
    let accelerator = if info.accelerator == "kvm" { "kvm" } else { "tcg" };
    Ok(Figures::begin(bench, accelerator))
}

/// Removes the lab and checks that nothing of it is left.
pub(crate) fn end(lab: Lab, figures: &mut Figures, line: &str) -> Result<()> {
    let left = lab.end()?;
    for what in &left {
        println!("left behind: {what}");
    }
    figures.count("left_behind", left.len() as u64);
    figures.check_count(line, "left_behind", 0);
    Ok(())
}
