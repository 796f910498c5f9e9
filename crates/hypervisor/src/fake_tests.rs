//! Tests of the fake driver.

use super::*;
use crate::parts::{BootPart, RamPart, Sharing, SocketPart};
use dormouse_model::WorkloadId;

fn null() -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

fn parts() -> Parts {
    Parts {
        program: None,
        ram: RamPart {
            file: null(),
            size: Bytes::mib(256),
            sharing: Sharing::Shared,
        },
        boot: Some(BootPart {
            kernel: null(),
            initrd: None,
            command_line: String::new(),
        }),
        disks: Vec::new(),
        tap: None,
        control: SocketPart {
            listener: null(),
            path: "/dev/null".into(),
        },
        agent: SocketPart {
            listener: null(),
            path: "/dev/null".into(),
        },
        console: null(),
        log: null(),
        identity: None,
        cgroups: Vec::new(),
        namespaces: Vec::new(),
    }
}

async fn launch(driver: &FakeDriver) -> Result<Box<dyn Vm>, DriverError> {
    let spec = LaunchSpec {
        id: WorkloadId::from_bits(1),
        vcpus: 1,
        mac: None,
    };
    driver.launch(&spec, parts(), Deadline::now() + PATIENCE).await
}

#[tokio::test(start_paused = true)]
async fn planted_faults_strike_once_and_in_order() {
    let driver = FakeDriver::new();
    driver.plant(Call::Launch, Trouble::Fail);
    driver.plant(Call::Launch, Trouble::Hang);
    driver.plant(Call::Pause, Trouble::Crash);
    assert!(matches!(launch(&driver).await, Err(DriverError::Refused { .. })));
    let begun = Deadline::now();
    assert!(matches!(launch(&driver).await, Err(DriverError::Deadline { .. })));
    assert_eq!(begun.elapsed(), PATIENCE);
    assert!(driver.living().is_empty());
    let vm = launch(&driver).await.unwrap();
    assert_eq!(driver.living().len(), 1);
    assert!(matches!(
        vm.pause().await,
        Err(DriverError::Ended {
            reason: ExitReason::Signal(6),
            ..
        })
    ));
    assert_eq!(vm.exited().await, ExitReason::Signal(6));
    assert!(driver.living().is_empty());
}

#[tokio::test]
async fn an_end_from_outside_is_seen_and_a_reboot_ends_all() {
    let driver = FakeDriver::new();
    let vm = launch(&driver).await.unwrap();
    driver.end(vm.process().pid, ExitReason::GuestPoweredOff);
    assert_eq!(vm.exited().await, ExitReason::GuestPoweredOff);
    let second = launch(&driver).await.unwrap();
    let record = ProcessRecord {
        identity: second.process().clone(),
        control: "/dev/null".into(),
    };
    driver.reboot();
    let adopted = driver.adopt(&record, Deadline::now() + PATIENCE).await.unwrap();
    assert!(matches!(adopted, Adopted::Gone(Gone::Rebooted)));
}

#[tokio::test]
async fn the_balloon_is_an_object() {
    let vm = launch(&FakeDriver::new()).await.unwrap();
    let balloon = vm.balloon().unwrap();
    assert_eq!(balloon.actual().await.unwrap(), Bytes::mib(256));
    balloon.set_target(Bytes::mib(128)).await.unwrap();
    assert_eq!(balloon.actual().await.unwrap(), Bytes::mib(128));
}
