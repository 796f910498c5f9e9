//! A record is damaged while no daemon runs: its guest must run on and serve, nobody may be given what is
//! its, and removing it must leave nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use dormouse_client::v1::{self, InstanceState, MemoryPlacement};
use dormouse_model::WorkloadId;
use dormouse_store::backend::{Backend as _, Change};
use dormouse_store::sqlite::{Options, SqliteBackend};
use dormouse_store::{Key, RecordKind};

use crate::figures::Figures;
use crate::lab::{EndOfDaemon, Guest, GuestSpec, Lab, TCP_PORT, ask};

const DEADLINE: Duration = Duration::from_secs(20);

/// Damages the record of a guest that is awake, starts a daemon over it, and looks.
pub(super) fn run(lab: &mut Lab, guest: &Guest, figures: &mut Figures) -> Result<()> {
    let before = lab.view(guest)?;
    lab.end_daemon(EndOfDaemon::Asked)?;
    damage(lab, guest)?;
    lab.start_daemon().context("starting over a damaged record")?;
    let after = lab.view(guest)?;
    let told = after.state() == InstanceState::Failed && after.state_reason.contains("record is damaged");
    println!("  {}: {}", guest.name, after.state_reason);
    let same = after.name == before.name && after.addresses == before.addresses && after.pid == before.pid;
    let serves = lab.as_client(|| ask(guest.at(0, TCP_PORT), b"still there?", DEADLINE))?;
    let again = GuestSpec {
        name: &guest.name,
        image: "bench:latest",
        ram_mib: 128,
        placement: MemoryPlacement::Unspecified,
        idle: None,
    };
    let taken = lab.run(&again).is_err();
    let request = v1::DoctorRequest {};
    let doctor = lab.call(|client| async move { Ok(client.system().doctor(request).await?.into_inner()) })?;
    let listed = doctor
        .checks
        .iter()
        .any(|check| check.name == "records" && check.detail.contains(&guest.id));
    lab.delete(guest)?;
    let gone = lab.view(guest).is_err();
    for (name, ok) in [
        ("damaged_not_told", told),
        ("damaged_not_recognised", same),
        ("damaged_not_serving", serves.is_ok()),
        ("damaged_name_given_away", taken),
        ("damaged_not_in_doctor", listed),
        ("damaged_not_removed", gone),
    ] {
        figures.count(name, u64::from(!ok));
        figures.check_count("B.2", name, 0);
    }
    Ok(())
}

/// Flips a byte of the guest's record.
fn damage(lab: &Lab, guest: &Guest) -> Result<()> {
    let id: WorkloadId = guest.id.parse().context("reading an id")?;
    let key = Key::from(id);
    let path = lab.directories()[0].join("dormouse.db");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(async {
        let store = SqliteBackend::open(&path, Options::default()).await?;
        let kind = RecordKind::Instance;
        let mut value = store
            .read(kind, key.clone())
            .await?
            .context("no record to damage")?;
        // In the checksum, at the end: the body tells what it told.
        if let Some(last) = value.last_mut() {
            *last ^= 1;
        }
        let change = Change {
            kind,
            key,
            value: Some(value),
        };
        store.commit(vec![change]).await?;
        anyhow::Ok(())
    })
}
