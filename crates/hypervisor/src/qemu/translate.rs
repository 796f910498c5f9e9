//! From a specification and the numbers that its descriptors have in the new process to QEMU's arguments.
//! Pure; the golden files in tests/golden show whole command lines.
//!
//! A restore takes the same machine line as the launch: every device, in the same order, with the same
//! features, or the device state does not load. Only what boots is left out, and what loads is added.

use crate::layout::{DiskLayout, Layout, Purpose};
use crate::parts::{LaunchSpec, Sharing};

/// What executes the guest, with what its kernel must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// KVM.
    Kvm,
    /// Translation. The guest sees the host's time stamp counter and cannot calibrate it when the host
    /// is busy: it would hang at boot for ever, so it is told the frequency.
    Emulation {
        /// The host's frequency.
        tsc_khz: u64,
    },
}

/// The name of the agent's port as the guest sees it in `/sys/class/virtio-ports/*/name`.
pub const AGENT_PORT: &str = "dormouse.agent";

/// The arguments, without the program's name.
#[must_use]
pub fn arguments(spec: &LaunchSpec, layout: &Layout, execution: Execution, sandbox: bool) -> Vec<String> {
    let mut line = Line::default();
    machine(&mut line, spec, layout, execution);
    if sandbox {
        line.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
    }
    control(&mut line, layout);
    for (place, disk) in layout.disks.iter().enumerate() {
        one_disk(&mut line, place, disk);
    }
    devices(&mut line, spec, layout);
    purpose(&mut line, &layout.purpose, execution);
    line.0
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }
}

fn machine(line: &mut Line, spec: &LaunchSpec, layout: &Layout, execution: Execution) {
    line.option("-name", spec.id.mark());
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        line.flag(flag);
    }
    line.option("-display", "none");
    // ACPI, because common kernels find virtio-mmio devices in no other way. Guest RAM stays out of core
    // dumps and page merging, which spares two passes over it.
    line.option(
        "-machine",
        "microvm,acpi=on,memory-backend=ram,mem-merge=off,dump-guest-core=off",
    );
    match execution {
        Execution::Kvm => {
            line.option("-accel", "kvm");
            // Some hosts have no MSR 0x10a (IA32_ARCH_CAPABILITIES); without the feature none is set.
            line.option("-cpu", "host,arch-capabilities=off");
        }
        Execution::Emulation { .. } => {
            line.option("-accel", "tcg");
            line.option("-cpu", "max");
        }
    }
    line.option("-smp", spec.vcpus.to_string());
    let size = layout.ram_size.0;
    line.option("-m", format!("{size}B"));
    let share = match layout.sharing {
        Sharing::Shared => "on",
        Sharing::Private => "off",
    };
    let ram = Layout::path(layout.ram);
    line.option(
        "-object",
        format!("memory-backend-file,id=ram,size={size}B,mem-path={ram},share={share}"),
    );
    // The current virtio layout, not the one of 2008.
    line.option("-global", "virtio-mmio.force-legacy=false");
}

fn control(line: &mut Line, layout: &Layout) {
    let (control, console) = (layout.control, layout.console);
    line.option(
        "-chardev",
        format!("socket,id=control,fd={control},server=on,wait=off"),
    );
    line.option("-mon", "chardev=control,mode=control");
    line.option("-add-fd", format!("fd={console},set={console}"));
    line.option(
        "-chardev",
        format!("file,id=console,path=/dev/fdset/{console},append=on"),
    );
    line.option("-serial", "chardev:console");
}

fn one_disk(line: &mut Line, place: usize, disk: &DiskLayout) {
    let number = disk.number;
    let readonly = if disk.readonly { "on" } else { "off" };
    line.option("-add-fd", format!("fd={number},set={number}"));
    // Locks belong to whoever holds the descriptor: the owner of the file takes them, not the monitor.
    line.option(
        "-blockdev",
        format!(
            "driver=raw,node-name=disk{place},read-only={readonly},discard=unmap,file.driver=file,\
             file.filename=/dev/fdset/{number},file.locking=off"
        ),
    );
    line.option(
        "-device",
        format!("virtio-blk-device,drive=disk{place},serial={}", disk.serial),
    );
}

fn devices(line: &mut Line, spec: &LaunchSpec, layout: &Layout) {
    let agent = layout.agent;
    line.option("-device", "virtio-serial-device");
    line.option(
        "-chardev",
        format!("socket,id=agent,fd={agent},server=on,wait=off"),
    );
    line.option(
        "-device",
        format!("virtserialport,chardev=agent,name={AGENT_PORT}"),
    );
    if let (Some(tap), Some(mac)) = (layout.tap, spec.mac) {
        line.option("-netdev", format!("tap,id=net,fd={tap}"));
        // The longest receive ring that there is: what waited for a sleeper arrives at once. The other
        // way 256 is the most for a tap.
        line.option(
            "-device",
            format!("virtio-net-device,netdev=net,mac={mac},rx_queue_size=1024,guest_announce=off"),
        );
    }
    line.option("-object", "rng-builtin,id=rng");
    line.option("-device", "virtio-rng-device,rng=rng");
    // Reporting is a feature that the guest has negotiated: it is there for private RAM too, or state
    // that was saved with shared RAM would not load. What it would do to the file, the filter refuses.
    line.option(
        "-device",
        "virtio-balloon-device,deflate-on-oom=on,free-page-reporting=on",
    );
}

fn purpose(line: &mut Line, purpose: &Purpose, execution: Execution) {
    match purpose {
        Purpose::Boot {
            kernel,
            initrd,
            command_line,
        } => {
            line.option("-kernel", Layout::path(*kernel));
            if let Some(initrd) = initrd {
                line.option("-initrd", Layout::path(*initrd));
            }
            line.option("-append", kernel_command_line(command_line, execution));
        }
        Purpose::Restore { state } => {
            // The stream says that the guest was running; it must not run before it is told.
            line.flag("-S");
            // The state carries no section that describes the machine's configuration.
            line.option("-global", "migration.send-configuration=off");
            line.option("-incoming", format!("fd:{state}"));
        }
    }
}

/// The caller's line and what the accelerator needs.
fn kernel_command_line(own: &str, execution: Execution) -> String {
    match execution {
        Execution::Kvm => own.to_owned(),
        Execution::Emulation { tsc_khz } => {
            let own = own.trim_end();
            let blank = if own.is_empty() { "" } else { " " };
            format!(
                "{own}{blank}tsc_early_khz={tsc_khz} tsc=reliable no_timer_check random.trust_cpu=on mitigations=off"
            )
        }
    }
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
