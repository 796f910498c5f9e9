//! 51 and 52: on a real guest. They need the whole daemon, which this crate must not know; whoever has
//! it names a program in `DORMOUSE_TEST_E2E`, which is run with the scenario's number and must succeed.

use std::process::Command;

/// Runs the scenario `number` by the program of `DORMOUSE_TEST_E2E`, or says why not.
fn on_a_real_guest(name: &str, number: u32) {
    let Some(program) = std::env::var_os("DORMOUSE_TEST_E2E") else {
        println!("skipped: {name}: needs a real guest; DORMOUSE_TEST_E2E names no program that has one");
        return;
    };
    let status = Command::new(program)
        .arg(number.to_string())
        .status()
        .expect("the program can be run");
    assert!(status.success(), "scenario {number}: {status}");
}

#[test]
fn scenario_51_open_tcp_keeps_a_real_guest_awake() {
    on_a_real_guest("scenario_51_open_tcp_keeps_a_real_guest_awake", 51);
}

#[test]
fn scenario_52_half_open_keeps_a_real_guest_awake() {
    on_a_real_guest("scenario_52_half_open_keeps_a_real_guest_awake", 52);
}
