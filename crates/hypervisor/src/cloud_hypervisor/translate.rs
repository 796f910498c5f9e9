//! From the port's nouns to Cloud Hypervisor's requests, and from its answers to outcomes. Pure; the golden
//! files in tests/golden show whole sequences.

use serde_json::{Map, Value, json};

use crate::http::{Answer, Method, Request};
use crate::layout::{Layout, Purpose};
use crate::parts::{LaunchSpec, Sharing};
use crate::port::VmStatus;

/// Where a machine's files are that this program takes by path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Where the vsock device listens.
    pub agent: String,
    /// The directory of the snapshot: written by one, read by a restore.
    pub snapshot: String,
}

/// The steps of a machine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Describe the machine.
    Create,
    /// Give it its network card.
    AddNet,
    /// Run it.
    Boot,
    /// Load it, paused.
    Restore,
    /// Stop its processors.
    Pause,
    /// Run its processors.
    Resume,
    /// Write its device state.
    Snapshot,
    /// Press its power button.
    PowerButton,
    /// End the program.
    Shutdown,
    /// Ask for its state.
    Inspect,
}

fn put(call: &str) -> Request {
    Request::new(Method::Put, format!("/api/v1/{call}"))
}

/// The requests that launch or restore a machine, in order.
#[must_use]
pub fn begin(spec: &LaunchSpec, layout: &Layout, paths: &Paths) -> Vec<(Act, Request)> {
    match &layout.purpose {
        Purpose::Boot {
            kernel,
            initrd,
            command_line,
        } => {
            let mut payload = Map::new();
            payload.insert("kernel".into(), Layout::path(*kernel).into());
            if let Some(initrd) = initrd {
                payload.insert("initramfs".into(), Layout::path(*initrd).into());
            }
            payload.insert("cmdline".into(), command_line.as_str().into());
            let mut requests = vec![(
                Act::Create,
                put("vm.create").with(config(spec, layout, paths, payload)),
            )];
            requests.extend(network(spec, layout).map(|request| (Act::AddNet, request)));
            requests.push((Act::Boot, put("vm.boot")));
            requests
        }
        Purpose::Restore { .. } => {
            let mut body = json!({
                "source_url": format!("file://{}", paths.snapshot),
                "prefault": false,
            });
            let carries_tap = layout.tap.is_some();
            if let (Some(object), true) = (body.as_object_mut(), carries_tap) {
                object.insert("net_fds".into(), json!([{"id": "net", "num_fds": 1}]));
            }
            vec![(
                Act::Restore,
                Request {
                    carries_tap,
                    ..put("vm.restore").with(body)
                },
            )]
        }
    }
}

fn config(spec: &LaunchSpec, layout: &Layout, paths: &Paths, payload: Map<String, Value>) -> Value {
    let disks: Vec<Value> = (layout.disks.iter().enumerate())
        .map(|(place, disk)| {
            json!({
                "id": format!("disk{place}"),
                "path": Layout::path(disk.number),
                "readonly": disk.readonly,
                "serial": disk.serial,
            })
        })
        .collect();
    json!({
        "payload": payload,
        "cpus": {"boot_vcpus": spec.vcpus, "max_vcpus": spec.vcpus},
        // A zone, because only zones are backed by a file of ours.
        "memory": {"size": 0, "zones": [{
            "id": "ram",
            "size": layout.ram_size.0,
            "file": Layout::path(layout.ram),
            "shared": layout.sharing == Sharing::Shared,
        }]},
        "disks": disks,
        "rng": {"src": "/dev/urandom"},
        "balloon": {"size": 0, "deflate_on_oom": true, "free_page_reporting": true},
        "serial": {"mode": "File", "file": Layout::path(layout.console)},
        "console": {"mode": "Off"},
        "vsock": {"cid": 3, "socket": paths.agent},
    })
}

fn network(spec: &LaunchSpec, layout: &Layout) -> Option<Request> {
    let mac = spec.mac.filter(|_| layout.tap.is_some())?;
    let body = json!({"id": "net", "mac": mac.to_string()});
    Some(Request {
        carries_tap: true,
        ..put("vm.add-net").with(body)
    })
}

/// The request of a step of a machine that exists.
#[must_use]
pub fn request(act: Act, paths: &Paths) -> Option<Request> {
    match act {
        Act::Pause => Some(put("vm.pause")),
        Act::Resume => Some(put("vm.resume")),
        Act::Snapshot => {
            let body = json!({"destination_url": format!("file://{}", paths.snapshot)});
            Some(put("vm.snapshot").with(body))
        }
        Act::PowerButton => Some(put("vm.power-button")),
        Act::Shutdown => Some(put("vmm.shutdown")),
        Act::Inspect => Some(Request::new(Method::Get, "/api/v1/vm.info")),
        // Parts of the beginning.
        Act::Create | Act::AddNet | Act::Boot | Act::Restore => None,
    }
}

/// What an answer means. `Err` is for people: the program's chain of errors.
///
/// # Errors
/// When the program refused.
pub fn outcome(act: Act, answer: &Answer) -> Result<(), String> {
    if matches!(answer.status, 200 | 204) {
        return Ok(());
    }
    let chain: Vec<String> = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = if chain.is_empty() {
        format!("HTTP status {}", answer.status)
    } else {
        chain.join(": ")
    };
    // Refused by the program because it is so already; the port's calls are idempotent.
    let already = match act {
        Act::Pause => text.contains("InvalidStateTransition(Paused, Paused)"),
        Act::Resume => text.contains("InvalidStateTransition(Running, Running)"),
        Act::Create
        | Act::AddNet
        | Act::Boot
        | Act::Restore
        | Act::Snapshot
        | Act::PowerButton
        | Act::Shutdown
        | Act::Inspect => false,
    };
    if already { Ok(()) } else { Err(text) }
}

/// Reads the answer to [`Act::Inspect`].
///
/// # Errors
/// A state that our machines cannot be in, or none.
pub fn status(answer: &Answer) -> Result<VmStatus, String> {
    outcome(Act::Inspect, answer)?;
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    match body.get("state").and_then(Value::as_str).unwrap_or("(none)") {
        "Running" => Ok(VmStatus::Running),
        "Paused" => Ok(VmStatus::Paused),
        // After a guest's own shutdown, until the program ends.
        "Created" | "Shutdown" => Ok(VmStatus::Ending),
        other => Err(format!("its state is {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::show;
    use crate::layout::examples::{boot, layout, spec};

    fn paths() -> Paths {
        Paths {
            agent: "/run/x/agent.sock".into(),
            snapshot: "/run/x/snapshot".into(),
        }
    }

    fn begun(layout: &Layout) -> String {
        show(
            &begin(&spec(), layout, &paths())
                .into_iter()
                .map(|(_, request)| request)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn sequences() {
        crate::golden::check("cloud-hypervisor-launch.http", &begun(&layout(boot())));
        let restore = begun(&layout(Purpose::Restore { state: 12 }));
        crate::golden::check("cloud-hypervisor-restore.http", &restore);
        let acts = [
            Act::Pause,
            Act::Snapshot,
            Act::Resume,
            Act::PowerButton,
            Act::Shutdown,
            Act::Inspect,
        ];
        let requests: Vec<_> = acts
            .into_iter()
            .filter_map(|act| request(act, &paths()))
            .collect();
        assert_eq!(requests.len(), acts.len());
        crate::golden::check("cloud-hypervisor-life.http", &show(&requests));
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            body: body.into(),
        }
    }

    #[test]
    fn outcomes() {
        let twice = answer(
            500,
            r#"["Error from API","Invalid transition: InvalidStateTransition(Paused, Paused)"]"#,
        );
        assert_eq!(outcome(Act::Pause, &twice), Ok(()));
        assert!(outcome(Act::Resume, &twice).is_err());
        let missing = answer(
            404,
            r#"["Error from API","The VM info is not available","VM is not created"]"#,
        );
        let want = "Error from API: The VM info is not available: VM is not created";
        assert_eq!(outcome(Act::Inspect, &missing), Err(want.into()));
        assert_eq!(
            outcome(Act::Boot, &answer(500, "<html>")),
            Err("HTTP status 500".into())
        );
        for (act, status) in [(Act::Boot, 204), (Act::Shutdown, 200)] {
            assert_eq!(outcome(act, &answer(status, "")), Ok(()));
        }
    }

    #[test]
    fn states() {
        for (state, want) in [
            ("Running", Ok(VmStatus::Running)),
            ("Paused", Ok(VmStatus::Paused)),
            ("Created", Ok(VmStatus::Ending)),
            ("BreakPoint", Err("its state is BreakPoint".to_owned())),
        ] {
            assert_eq!(status(&answer(200, &format!("{{\"state\":\"{state}\"}}"))), want);
        }
        assert!(status(&answer(200, "")).is_err());
    }
}
