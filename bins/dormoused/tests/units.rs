//! The units of packaging/systemd: what systemd itself says of them, and what guests need of them.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::path::{Path, PathBuf};
use std::process::Command;

const UNITS: [&str; 3] = ["dormoused.service", "dormoused.socket", "dormouse-keeper.service"];

/// A key that older versions do not know, and the version that does.
const NEWER_KEY: (&str, u32) = ("FileDescriptorStorePreserve", 254);

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd")
}

/// The number in `systemd 252 (252.30-1~deb12u2)`.
fn version(text: &str) -> Option<u32> {
    text.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn systemd_accepts_the_units() {
    let told = match Command::new("systemd-analyze").arg("--version").output() {
        Ok(told) => told,
        Err(why) => {
            println!("skipped: systemd_accepts_the_units: systemd-analyze: {why}");
            return;
        }
    };
    let version = version(&String::from_utf8_lossy(&told.stdout)).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let copies = UNITS.map(|unit| {
        // It also looks whether the programs are there.
        let text = std::fs::read_to_string(packaging().join(unit))
            .unwrap()
            .replace("/usr/bin/dormoused", "/bin/true")
            .replace("/usr/bin/dormouse-keeper", "/bin/true");
        let path = scratch.path().join(unit);
        std::fs::write(&path, text).unwrap();
        path
    });
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(&copies)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let faults: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("dormouse"))
        .filter(|line| version >= NEWER_KEY.1 || !line.contains(NEWER_KEY.0))
        .collect();
    assert_eq!(faults, Vec::<&str>::new());
    assert!(verified.status.success(), "{said}");
}

#[test]
fn guests_survive_the_unit() {
    let text = std::fs::read_to_string(packaging().join("dormoused.service")).unwrap();
    for line in [
        "KillMode=process",
        "Type=notify",
        "Delegate=yes",
        "Restart=always",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    // Each of these would give the daemon a mount namespace that ends with it, or empty its directory.
    for key in [
        "PrivateTmp",
        "ProtectSystem",
        "ProtectHome",
        "PrivateDevices",
        "PrivateMounts",
        "RuntimeDirectory",
        "ReadWritePaths",
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "ProtectKernelModules",
        "ProtectKernelLogs",
    ] {
        let set = text.lines().any(|line| line.starts_with(&format!("{key}=")));
        assert!(!set, "{key}");
    }
}
