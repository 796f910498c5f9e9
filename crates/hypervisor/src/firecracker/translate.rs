//! From the port's nouns to Firecracker's requests, and from its answers to outcomes. Pure; the golden
//! files in tests/golden show whole sequences.

use serde_json::{Map, Value, json};

use crate::http::{Answer, Method, Request};
use crate::layout::{Layout, Purpose};
use crate::parts::LaunchSpec;
use crate::port::VmStatus;

/// What this program takes by path or name alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Where the vsock device listens; unlinked before a restore.
    pub agent: String,
    /// The name of the tap, when there is one.
    pub tap: Option<String>,
    /// The file of the device state.
    pub state: String,
    /// The file of the memory.
    pub memory: String,
}

/// The steps of a machine that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Stop its processors.
    Pause,
    /// Run its processors.
    Resume,
    /// Write device state and memory; refused unless paused.
    Snapshot,
    /// Ask the guest to end: Ctrl-Alt-Del, the only button there is.
    PowerButton,
    /// Ask for its state.
    Inspect,
}

fn put(path: impl Into<String>, body: Value) -> Request {
    Request::new(Method::Put, path).with(body)
}

/// The requests that launch or restore a machine, in order.
#[must_use]
pub fn begin(spec: &LaunchSpec, layout: &Layout, paths: &Paths) -> Vec<Request> {
    match &layout.purpose {
        Purpose::Boot {
            kernel,
            initrd,
            command_line,
        } => {
            let mut source = Map::new();
            source.insert("kernel_image_path".into(), Layout::path(*kernel).into());
            if let Some(initrd) = initrd {
                source.insert("initrd_path".into(), Layout::path(*initrd).into());
            }
            source.insert("boot_args".into(), command_line.as_str().into());
            let mut requests = vec![put("/boot-source", source.into()), machine(spec, layout)];
            requests.extend(disks(layout));
            requests.extend(network(spec, paths));
            requests.push(put("/vsock", json!({"guest_cid": 3, "uds_path": paths.agent})));
            let balloon = json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 0});
            requests.push(put("/balloon", balloon));
            requests.push(put("/entropy", json!({})));
            requests.push(put("/actions", json!({"action_type": "InstanceStart"})));
            requests
        }
        Purpose::Restore { .. } => {
            let mut body = Map::new();
            body.insert("snapshot_path".into(), paths.state.as_str().into());
            let backend = json!({"backend_type": "File", "backend_path": paths.memory});
            body.insert("mem_backend".into(), backend);
            body.insert("resume_vm".into(), false.into());
            if let Some(tap) = &paths.tap {
                let card = json!([{"iface_id": "net", "host_dev_name": tap}]);
                body.insert("network_overrides".into(), card);
            }
            vec![put("/snapshot/load", body.into())]
        }
    }
}

fn machine(spec: &LaunchSpec, layout: &Layout) -> Request {
    let body = json!({"vcpu_count": spec.vcpus, "mem_size_mib": layout.ram_size.as_mib(), "smt": false});
    put("/machine-config", body)
}

fn disks(layout: &Layout) -> impl Iterator<Item = Request> {
    layout.disks.iter().enumerate().map(|(place, disk)| {
        let id = format!("disk{place}");
        let body = json!({
            "drive_id": id,
            "path_on_host": Layout::path(disk.number),
            // The caller's command line names the root.
            "is_root_device": false,
            "is_read_only": disk.readonly,
        });
        put(format!("/drives/{id}"), body)
    })
}

fn network(spec: &LaunchSpec, paths: &Paths) -> Option<Request> {
    let (mac, tap) = (spec.mac?, paths.tap.as_ref()?);
    let body = json!({"iface_id": "net", "guest_mac": mac.to_string(), "host_dev_name": tap});
    Some(put("/network-interfaces/net", body))
}

/// The request of a step.
#[must_use]
pub fn request(act: Act, paths: &Paths) -> Request {
    match act {
        Act::Pause => Request::new(Method::Patch, "/vm").with(json!({"state": "Paused"})),
        Act::Resume => Request::new(Method::Patch, "/vm").with(json!({"state": "Resumed"})),
        Act::Snapshot => {
            let (state, memory) = (&paths.state, &paths.memory);
            let body = json!({"snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory});
            put("/snapshot/create", body)
        }
        Act::PowerButton => put("/actions", json!({"action_type": "SendCtrlAltDel"})),
        Act::Inspect => Request::new(Method::Get, "/"),
    }
}

/// What an answer means. `Err` is for people.
///
/// # Errors
/// When the program refused.
pub fn outcome(answer: &Answer) -> Result<(), String> {
    if matches!(answer.status, 200 | 204) {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    let fault = body.get("fault_message").and_then(Value::as_str);
    Err(fault.map_or_else(|| format!("HTTP status {}", answer.status), str::to_owned))
}

/// Reads the answer to [`Act::Inspect`].
///
/// # Errors
/// A state that our machines cannot be in, or none.
pub fn status(answer: &Answer) -> Result<VmStatus, String> {
    outcome(answer)?;
    let body: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    match body.get("state").and_then(Value::as_str).unwrap_or("(none)") {
        "Running" => Ok(VmStatus::Running),
        "Paused" => Ok(VmStatus::Paused),
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
            tap: Some("dt0".into()),
            state: "/run/x/state".into(),
            memory: "/run/x/memory".into(),
        }
    }

    #[test]
    fn sequences() {
        let launch = begin(&spec(), &layout(boot()), &paths());
        crate::golden::check("firecracker-launch.http", &show(&launch));
        let restore = begin(&spec(), &layout(Purpose::Restore { state: 12 }), &paths());
        crate::golden::check("firecracker-restore.http", &show(&restore));
        let acts = [
            Act::Pause,
            Act::Snapshot,
            Act::Resume,
            Act::PowerButton,
            Act::Inspect,
        ];
        crate::golden::check(
            "firecracker-life.http",
            &show(&acts.map(|act| request(act, &paths()))),
        );
    }

    #[test]
    fn outcomes_and_states() {
        let answer = |status, body: &str| Answer {
            status,
            body: body.into(),
        };
        assert_eq!(outcome(&answer(204, "")), Ok(()));
        let refused = answer(400, r#"{"fault_message":"Operation not allowed"}"#);
        assert_eq!(outcome(&refused), Err("Operation not allowed".into()));
        assert_eq!(outcome(&answer(500, "x")), Err("HTTP status 500".into()));
        for (state, want) in [
            ("Running", Ok(VmStatus::Running)),
            ("Paused", Ok(VmStatus::Paused)),
            ("Not started", Err("its state is Not started".to_owned())),
        ] {
            assert_eq!(status(&answer(200, &format!("{{\"state\":\"{state}\"}}"))), want);
        }
    }
}
