//! The real program, with the tiny guest. Skipped where there is no QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_hypervisor::conformance::{self, Stand};
use dormouse_hypervisor::qemu::{AcceleratorChoice, QemuConfig, QemuDriver};
use dormouse_hypervisor::{Accelerator, Driver};
use dormouse_sys::spawn::Identity;

const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// The program, or why not.
fn need_qemu(name: &str) -> bool {
    let there = Path::new(PROGRAM).exists();
    if !there {
        println!("skipped: {name}: {PROGRAM} does not exist");
    }
    there
}

/// A user without rights, where we may change to one.
fn identity() -> Option<Identity> {
    nix::unistd::geteuid().is_root().then_some(Identity {
        uid: 61_234,
        gid: 61_234,
    })
}

fn driver(accelerator: AcceleratorChoice) -> QemuDriver {
    QemuDriver::new(QemuConfig {
        accelerator,
        probe_identity: identity(),
        ..QemuConfig::default()
    })
}

fn stand(directory: &Path, driver: QemuDriver) -> Stand {
    Stand {
        driver: Box::new(driver),
        directory: directory.to_owned(),
        identity: identity(),
        iterations: 50_000,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_conforms() {
    if !need_qemu("qemu_conforms") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let stand = stand(directory.path(), driver(AcceleratorChoice::Emulation));
    let mut failed = Vec::new();
    for check in conformance::Check::ALL {
        let begun = Instant::now();
        let verdict = check.run(&stand).await;
        println!("{:>6} ms  {}", begun.elapsed().as_millis(), check.name());
        if let Err(violation) = verdict {
            failed.push(format!(
                "{}: {}",
                check.name(),
                dormouse_model::error::chain(&violation)
            ));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn the_probe_answers() {
    if !need_qemu("the_probe_answers") {
        return;
    }
    let begun = Instant::now();
    let driver = driver(AcceleratorChoice::Auto);
    let probe = driver.probe().await.unwrap();
    println!(
        "{} by {} after {:?}",
        probe.version,
        probe.accelerator,
        begun.elapsed()
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(driver.probe().await.unwrap(), probe, "the first answer is kept");
    if let Accelerator::Emulation { why } = probe.accelerator {
        assert!(!why.is_empty());
    }
}
