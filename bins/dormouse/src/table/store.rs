//! Tables of the store's records.

use dormouse_client::v1;

use super::plain;

/// `store check`.
pub(crate) fn store_report(report: &v1::StoreReport) -> String {
    let mut rows = Vec::new();
    for count in &report.records {
        rows.push(vec![
            count.kind.clone(),
            "-".to_owned(),
            format!("{} sound", count.count),
        ]);
    }
    for (records, word) in [(&report.damaged, "damaged"), (&report.quarantined, "quarantined")] {
        for record in records {
            let found = format!("{word}: {}", record.reason);
            rows.push(vec![record.kind.clone(), record.key.clone(), found]);
        }
    }
    for record in &report.newer {
        let found = format!("version {}, known is {}", record.found, record.known);
        rows.push(vec![record.kind.clone(), record.key.clone(), found]);
    }
    for kind in &report.unknown_kinds {
        let found = "of a newer daemon".to_owned();
        rows.push(vec![format!("kind {kind}"), "-".to_owned(), found]);
    }
    for fault in &report.layout_faults {
        rows.push(vec!["database".to_owned(), "-".to_owned(), fault.clone()]);
    }
    let verdict = if report.sound { "sound" } else { "not sound" };
    format!("{}\n{verdict}", plain(vec!["KIND", "KEY", "FOUND"], rows))
}

/// `store quarantine ls`.
pub(crate) fn damaged_records(records: &[v1::DamagedRecord]) -> String {
    let row =
        |record: &v1::DamagedRecord| vec![record.kind.clone(), record.key.clone(), record.reason.clone()];
    plain(vec!["KIND", "KEY", "DAMAGE"], records.iter().map(row).collect())
}
