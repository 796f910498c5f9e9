//! A guest whose record is damaged behind the daemon's back: it is listed, everything but its removal is
//! refused, and what is left of its record stays until then.

use anyhow::{Context, Result, ensure};
use dormouse_client::v1;
use dormouse_client::v1::InstanceState as State;

use super::bed::Bed;
use super::guests::Verb;
use crate::lab::EndOfDaemon;

const AREA: &str = "damaged";

/// All of it.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    let guest = bed.running("damaged")?;
    cut_records(bed)?;
    let listed = bed.instance(&guest.id)?;
    ensure!(
        listed.state() == State::Failed,
        "it is {}",
        listed.state().as_str_name()
    );
    for verb in [Verb::Start, Verb::Stop, Verb::Standby, Verb::Wake] {
        bed.case(
            AREA,
            &format!("{verb:?} of one whose record is damaged"),
            "INSTANCE_WRONG_STATE",
            |bed| bed.ask(verb, &guest.id, ""),
        )?;
    }
    bed.case(
        AREA,
        "removal while its process runs",
        "INSTANCE_WRONG_STATE|INSTANCE_NOT_STOPPED",
        |bed| bed.ask(Verb::Delete, &guest.id, ""),
    )?;
    for (name, kind, key, want) in [
        (
            "its record forgotten",
            "instance",
            guest.id.as_str(),
            "RECORD_NEEDED",
        ),
        (
            "another record forgotten",
            "instance",
            "nobody",
            "STORE_NOT_SET_ASIDE",
        ),
        (
            "that key of another kind forgotten",
            "image",
            guest.id.as_str(),
            "STORE_NOT_SET_ASIDE",
        ),
        (
            "a record of no kind forgotten",
            "workload",
            guest.id.as_str(),
            "REQUEST_INVALID",
        ),
        (
            "a key with a NUL byte forgotten",
            "instance",
            "\0",
            "STORE_NOT_SET_ASIDE",
        ),
    ] {
        bed.case(AREA, name, want, |bed| forget(bed, kind, key))?;
    }
    bed.case(AREA, "its forced removal", "OK", |bed| {
        ensure!(quarantined(bed)? == 1, "its record is not set aside");
        bed.remove(&guest.id)?;
        ensure!(quarantined(bed)? == 0, "its record is set aside still");
        Ok(())
    })
}

/// Takes the last byte of every instance's record while no daemon has the store.
fn cut_records(bed: &mut Bed) -> Result<()> {
    bed.lab.end_daemon(EndOfDaemon::Asked)?;
    let kind = dormouse_store::RecordKind::Instance.number();
    let store = rusqlite::Connection::open(bed.data.join("dormouse.db")).context("opening the store")?;
    let cut = "UPDATE records SET value = substr(value, 1, length(value) - 1) WHERE kind = ?1";
    let changed = store.execute(cut, [kind]).context("changing the store")?;
    store
        .close()
        .map_err(|(_, error)| error)
        .context("closing the store")?;
    ensure!(changed == 1, "{changed} records of instances");
    bed.lab.start_daemon()
}

fn forget(bed: &Bed, kind: &str, key: &str) -> Result<()> {
    let (kind, key) = (kind.to_owned(), key.to_owned());
    bed.lab.call(|client| async move {
        let request = v1::DropQuarantinedRequest { kind, key };
        client.system().drop_quarantined(request).await?;
        Ok(())
    })
}

/// How many records are set aside.
fn quarantined(bed: &Bed) -> Result<usize> {
    let report = bed.lab.call(|client| async move {
        let request = v1::CheckStoreRequest {};
        Ok(client.system().check_store(request).await?.into_inner())
    })?;
    Ok(report.quarantined.len())
}
