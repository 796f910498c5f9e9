//! Tests of the translation to command lines.

use super::*;
use crate::layout::examples::{boot, layout, spec};

/// One option and its value a line.
fn check(name: &str, layout: &Layout, execution: Execution, sandbox: bool) {
    let mut text = String::new();
    for argument in arguments(&spec(), layout, execution, sandbox) {
        match argument.strip_prefix('-') {
            Some(_) if text.is_empty() => {}
            Some(_) => text.push('\n'),
            None => text.push(' '),
        }
        text.push_str(&argument);
    }
    text.push('\n');
    crate::golden::check(name, &text);
}

const EMULATION: Execution = Execution::Emulation { tsc_khz: 2_596_096 };

#[test]
fn launch_under_emulation() {
    check("qemu-launch-emulation.args", &layout(boot()), EMULATION, true);
}

#[test]
fn launch_under_kvm_without_anything_optional() {
    let mut layout = layout(Purpose::Boot {
        kernel: 10,
        initrd: None,
        command_line: String::new(),
    });
    layout.tap = None;
    layout.disks.clear();
    check("qemu-launch-kvm-bare.args", &layout, Execution::Kvm, false);
}

#[test]
fn restore_over_private_ram() {
    let mut layout = layout(Purpose::Restore { state: 12 });
    layout.sharing = Sharing::Private;
    check("qemu-restore-private.args", &layout, EMULATION, true);
}

#[test]
fn a_restore_has_the_devices_of_the_launch() {
    let devices = |purpose, sharing| {
        let mut layout = layout(purpose);
        layout.sharing = sharing;
        let line = arguments(&spec(), &layout, EMULATION, true);
        let pairs: Vec<_> = line
            .windows(2)
            .filter(|pair| pair[0] == "-device")
            .map(<[_]>::to_vec)
            .collect();
        pairs
    };
    let launched = devices(boot(), Sharing::Shared);
    for sharing in [Sharing::Shared, Sharing::Private] {
        assert_eq!(devices(Purpose::Restore { state: 12 }, sharing), launched);
    }
}

#[test]
fn the_command_line_is_completed() {
    assert_eq!(kernel_command_line("a b ", Execution::Kvm), "a b ");
    let tail = "tsc_early_khz=2596096 tsc=reliable no_timer_check random.trust_cpu=on mitigations=off";
    assert_eq!(kernel_command_line("a b ", EMULATION), format!("a b {tail}"));
    assert_eq!(kernel_command_line("", EMULATION), tail);
}
