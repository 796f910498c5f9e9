//! Traces (text scripts with the expected effects inline) and properties of the lifecycle machine.

mod properties;
mod script;

use super::{BootId, Limits, Settings, SpillPolicy};
use dormouse_model::OnLostMemory;
use dormouse_model::workload::SleepSupport;

const SETTINGS: Settings = Settings {
    limits: Limits::DEFAULT,
    sleep_support: SleepSupport::Able,
    spill: SpillPolicy::Stay,
    on_lost: OnLostMemory::StayStopped,
    boot: BootId(1),
};

/// Checks one trace. With `UPDATE=1` in the environment the file is rewritten with what happens.
fn check(name: &str, text: &str) {
    let got = script::replay(text);
    if std::env::var_os("UPDATE").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/machine/tests/traces");
        std::fs::write(format!("{folder}/{name}.trace"), &got).unwrap();
        return;
    }
    for (at, (got, want)) in got.lines().zip(text.lines()).enumerate() {
        assert_eq!(got, want, "line {} of {name}", at + 1);
    }
    assert_eq!(
        got.lines().count(),
        text.lines().count(),
        "{name}: one ends early"
    );
}

macro_rules! traces {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(stringify!($name), include_str!(concat!("traces/", stringify!($name), ".trace")));
        })*
    };
}

traces! {
    start_and_stop,
    start_fails,
    sleep_and_wake,
    sleep_interrupted,
    sleep_of_a_caller,
    commit_of_unknown_outcome,
    interrupted_commit,
    record_not_written,
    stop_in_doubt,
    wake_fails,
    let_go_fails,
    chores,
    process_ends,
    delete_anywhere,
    recovery,
    late_and_slow,
    spill,
    settle,
    lost_image,
    cold_boot,
}
