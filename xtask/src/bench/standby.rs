//! `bench standby`: sleep and wake beside QEMU's own ways to do it, in one run, in turn.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use dormouse_client::v1::MemoryPlacement;

use super::nap_wake::{self, SIZES_MIB, Subject};
use super::rival::{Rival, Way, build_initrd};
use super::{awake_disk, begin};
use crate::figures::{Figures, Samples};
use crate::lab::{Lab, Parts};
use crate::setup::Need;

/// How often each rival sleeps and wakes.
const RIVAL_ROUNDS: usize = 10;

/// Runs the bench with `rounds` wakes a size.
pub(crate) fn run(rounds: usize, json: Option<&Path>) -> Result<ExitCode> {
    let parts = Parts::ready(Need::Rivals)?;
    let lab = Lab::start(parts.clone())?;
    let mut figures = begin("standby", &lab)?;
    lab.import_server()?;
    println!("booting a guest and two rivals a size");
    let mut subjects = nap_wake::make_subjects(&lab, MemoryPlacement::Unspecified)?;
    let mut rivals = make_rivals(&lab, &parts)?;
    println!("measuring, in turn with the rivals");
    let syn_retransmits = nap_wake::measure(&lab, &mut subjects, rounds, true, |round| {
        if round < RIVAL_ROUNDS {
            for rival in &mut rivals {
                rival.wake(&lab, round)?;
                rival.sleep()?;
                // What a rival copied is still on its way to the disk: it must not be billed to whoever
                // measures next.
                nix::unistd::sync();
            }
        }
        Ok(())
    })?;
    add_rows(&mut figures, &subjects, &rivals);
    nap_wake::check(&mut figures, "A.2", &subjects, syn_retransmits);
    drop(rivals);
    for subject in &subjects {
        lab.delete(&subject.guest)?;
    }
    awake_disk::measure(&lab, &mut figures)?;
    super::end(lab, &mut figures, "A.2")?;
    figures.finish(json)
}

fn make_rivals(lab: &Lab, parts: &Parts) -> Result<Vec<Rival>> {
    build_initrd(parts, &lab.disk_directory().join("rival-initrd.gz"))?;
    let mut rivals = Vec::new();
    for ram_mib in SIZES_MIB {
        for way in Way::ALL {
            // Its number is part of its address: below 255.
            let number = u8::try_from(rivals.len() + 1)?;
            rivals.push(Rival::boot(lab, parts, way, ram_mib, number)?);
        }
    }
    Ok(rivals)
}

fn add_rows(figures: &mut Figures, subjects: &[Subject], rivals: &[Rival]) {
    for subject in subjects {
        let same: Vec<(&str, &Samples, &Samples)> = rivals
            .iter()
            .filter(|rival| rival.ram_mib == subject.ram_mib)
            .map(|rival| (rival.way.name(), &rival.saved, &rival.answered))
            .collect();
        for row in subject.rows(&same) {
            figures.row(row);
        }
    }
}
