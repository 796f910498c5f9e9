//! Requests whose fields are wrong: names, sizes, texts, policies, prefixes, tokens.

#![allow(
    clippy::too_many_lines,
    clippy::semicolon_if_nothing_returned,
    reason = "a function is a table of cases"
)]

use std::collections::HashMap;

use anyhow::{Context, Result};
use dormouse_client::v1;
use dormouse_client::v1::CreateInstanceRequest;
use serde_json::json;

use super::archive::{Image, digest};
use super::bed::Bed;
use super::guests::{Verb, small};

const AREA: &str = "requests";

/// A field that cannot be used, by whichever of the two codes.
const FIELD: &str = "REQUEST_INVALID|NAME_INVALID|SPEC_INVALID|POLICY_INVALID|SIZE_INVALID|DURATION_INVALID";

type Twist = fn(&mut CreateInstanceRequest);

/// Requests for instances, each wrong in one field.
const CREATES: &[(&str, &str, Twist)] = &[
    ("a name in capitals", FIELD, |r| r.name = "UPPER".into()),
    ("a name with a space", FIELD, |r| r.name = "a b".into()),
    ("a name with a dash in front", FIELD, |r| r.name = "-a".into()),
    ("a name with a dash at the end", FIELD, |r| r.name = "a-".into()),
    ("a name with dots", FIELD, |r| r.name = "a..b".into()),
    ("a name that is a path", FIELD, |r| r.name = "../../etc".into()),
    ("a name with a NUL byte", FIELD, |r| r.name = "a\0b".into()),
    ("a name of other letters", FIELD, |r| {
        r.name = "m\u{e4}usle".into()
    }),
    ("a name of 64 characters", FIELD, |r| r.name = "x".repeat(64)),
    ("a name of a million characters", FIELD, |r| {
        r.name = "x".repeat(1_000_000)
    }),
    ("a name that is taken", "INSTANCE_NAME_TAKEN", |r| {
        r.name = "taken".into()
    }),
    ("no image", FIELD, |r| r.image = String::new()),
    ("an image that is not there", "IMAGE_NOT_FOUND", |r| {
        r.image = "nobody:1".into()
    }),
    (
        "an image that is a path",
        "IMAGE_REFERENCE_INVALID|IMAGE_NOT_FOUND",
        |r| r.image = "../../etc/passwd".into(),
    ),
    (
        "an image that is a digest of letters",
        "IMAGE_REFERENCE_INVALID",
        |r| r.image = "sha256:zzzz".into(),
    ),
    ("an image by too few digits", "IMAGE_REFERENCE_INVALID", |r| {
        r.image = "sha256:ab".into()
    }),
    ("17 processors", FIELD, |r| r.vcpus = 17),
    ("as many processors as a number holds", FIELD, |r| {
        r.vcpus = u32::MAX
    }),
    ("one byte of memory", FIELD, |r| r.memory_bytes = 1),
    ("memory in odd steps", FIELD, |r| r.memory_bytes = (128 << 20) + 1),
    ("as much memory as a number holds", FIELD, |r| {
        r.memory_bytes = u64::MAX
    }),
    ("memory of 16 EiB less a step", "LEDGER_MEMORY", |r| {
        r.memory_bytes = 0_u64.wrapping_sub(2 << 20)
    }),
    ("more memory than the host has", "LEDGER_MEMORY", |r| {
        r.memory_bytes = 1 << 42
    }),
    ("a disk of one byte", FIELD, |r| r.disk_bytes = 1),
    (
        "a disk of 16 EiB",
        "SPEC_INVALID|REQUEST_INVALID|LEDGER_DISK",
        |r| r.disk_bytes = u64::MAX,
    ),
    (
        "a disk of 4 EiB",
        "SPEC_INVALID|REQUEST_INVALID|LEDGER_DISK",
        |r| r.disk_bytes = 1 << 62,
    ),
    ("a placement of 99", FIELD, |r| r.placement = 99),
    ("a placement below nothing", FIELD, |r| r.placement = -1),
    ("a variable without a name", FIELD, |r| {
        drop(r.environment.insert(String::new(), "x".into()))
    }),
    ("a variable with an equals sign", FIELD, |r| {
        drop(r.environment.insert("A=B".into(), "x".into()))
    }),
    ("a variable with a NUL byte", FIELD, |r| {
        drop(r.environment.insert("A".into(), "x\0".into()))
    }),
    ("an argument with a NUL byte", FIELD, |r| {
        r.command = vec!["a\0b".into()]
    }),
    ("a user with a NUL byte", FIELD, |r| r.user = "\0".into()),
    ("a directory with a NUL byte", FIELD, |r| {
        r.working_directory = "\0".into()
    }),
    ("a variable of 300 KiB", FIELD, |r| {
        drop(r.environment.insert("A".into(), "x".repeat(300 << 10)))
    }),
    ("100,000 variables", FIELD, |r| {
        r.environment = (0..100_000).map(|n| (format!("A{n}"), String::new())).collect()
    }),
    ("100,000 arguments", FIELD, |r| {
        r.command = vec!["x".into(); 100_000]
    }),
    ("a label of 300 KiB", FIELD, |r| {
        drop(r.labels.insert("a".into(), "x".repeat(300 << 10)))
    }),
    (
        "a request of 8 MiB",
        "GRPC_OUT_OF_RANGE|GRPC_RESOURCE_EXHAUSTED|REQUEST_INVALID|REQUEST_TOO_LARGE",
        |r| r.user = "x".repeat(8 << 20),
    ),
    ("an idle timeout below nothing", FIELD, |r| {
        r.standby = policy("-5s")
    }),
    ("an idle timeout of nothing", FIELD, |r| r.standby = policy("0s")),
    ("no idle timeout", FIELD, |r| r.standby = policy("")),
    ("an idle timeout beyond all time", FIELD, |r| {
        r.standby = policy("99999999999999h")
    }),
    ("an idle timeout that is none", FIELD, |r| {
        r.standby = policy("soon")
    }),
    ("a source that is no prefix", FIELD, |r| {
        r.standby = sources(&["1.2.3.4/33"])
    }),
    ("a source that is no address", FIELD, |r| {
        r.standby = sources(&["example.org"])
    }),
    ("a port of nothing", FIELD, |r| r.standby = ports(&[0])),
    ("a port beyond all ports", FIELD, |r| r.standby = ports(&[70_000])),
    ("a grace below nothing", FIELD, |r| {
        r.stop_timeout = Some(prost_types::Duration {
            seconds: -1,
            nanos: 0,
        })
    }),
    ("a grace whose parts differ", FIELD, |r| {
        r.stop_timeout = Some(prost_types::Duration {
            seconds: -1,
            nanos: 5,
        })
    }),
    ("a request id of 65 characters", FIELD, |r| {
        r.request_id = "x".repeat(65)
    }),
];

fn policy(idle_timeout: &str) -> Option<v1::StandbyPolicy> {
    Some(v1::StandbyPolicy {
        enabled: true,
        idle_timeout: idle_timeout.to_owned(),
        ..Default::default()
    })
}

fn sources(sources: &[&str]) -> Option<v1::StandbyPolicy> {
    policy("5m").map(|policy| v1::StandbyPolicy {
        ignore_sources: sources.iter().map(ToString::to_string).collect(),
        ..policy
    })
}

fn ports(ports: &[u32]) -> Option<v1::StandbyPolicy> {
    policy("5m").map(|policy| v1::StandbyPolicy {
        ignore_ports: ports.to_vec(),
        ..policy
    })
}

/// All requests.
pub(crate) fn run(bed: &mut Bed) -> Result<()> {
    bed.import_guest_image()?;
    let mut taken = small("taken");
    taken.start = false;
    bed.create(taken)?;
    for (name, want, twist) in CREATES {
        bed.case(AREA, name, want, |bed| {
            let mut request = small("wrong");
            request.start = false;
            twist(&mut request);
            let made = bed.create(request)?;
            // Only one that should have been refused gets here.
            bed.remove(&made.id)
        })?;
    }
    keys(bed)?;
    lists(bed)?;
    prefixes(bed)
}

/// What names an instance.
fn keys(bed: &mut Bed) -> Result<()> {
    for (name, key) in [
        ("an empty key", String::new()),
        ("a key that is a path", "../taken".to_owned()),
        ("a key with a NUL byte", "taken\0".to_owned()),
        ("a key of a million characters", "x".repeat(1_000_000)),
        ("a key in capitals", "TAKEN".to_owned()),
        ("a key that is a wildcard", "*".to_owned()),
    ] {
        for verb in Verb::ALL {
            let want = "INSTANCE_NOT_FOUND|REQUEST_INVALID|NAME_INVALID|ID_INVALID|INSTANCE_AMBIGUOUS";
            bed.case(AREA, &format!("{verb:?} of {name}"), want, |bed| {
                bed.ask(verb, &key, "")
            })?;
        }
    }
    Ok(())
}

/// Pages, filters, waits and cursors.
fn lists(bed: &mut Bed) -> Result<()> {
    let list = |bed: &Bed, request: v1::ListInstancesRequest| {
        bed.lab
            .call(|client| async move { Ok(client.instances().list_instances(request).await?.into_inner()) })
    };
    for (name, token) in [
        ("a page of nothing known", "nonsense".to_owned()),
        ("a page with a NUL byte", "\0".to_owned()),
        ("a page of a million characters", "x".repeat(1_000_000)),
    ] {
        bed.case(AREA, name, "REQUEST_INVALID", |bed| {
            list(
                bed,
                v1::ListInstancesRequest {
                    page_token: token,
                    ..Default::default()
                },
            )
        })?;
    }
    bed.case(AREA, "as large a page as a number holds", "OK", |bed| {
        list(
            bed,
            v1::ListInstancesRequest {
                page_size: u32::MAX,
                ..Default::default()
            },
        )
    })?;
    for state in [0, 99, -1, i32::MAX] {
        bed.case(
            AREA,
            &format!("a filter for state {state}"),
            "REQUEST_INVALID",
            |bed| {
                let filter = Some(v1::InstanceFilter {
                    states: vec![state],
                    ..Default::default()
                });
                list(
                    bed,
                    v1::ListInstancesRequest {
                        filter,
                        ..Default::default()
                    },
                )
            },
        )?;
    }
    for (name, states, seconds, want) in [
        ("a wait for nothing", vec![], 1, "REQUEST_INVALID"),
        ("a wait for no state", vec![0], 1, "REQUEST_INVALID"),
        ("a wait for state 99", vec![99], 1, "REQUEST_INVALID"),
        ("a wait below nothing", vec![1], -1, "REQUEST_INVALID"),
        (
            "a wait that elapses",
            vec![4],
            0,
            "INSTANCE_WAIT_ELAPSED|REQUEST_INVALID",
        ),
    ] {
        bed.case(AREA, name, want, |bed| {
            let request = v1::WaitInstanceRequest {
                instance: "taken".to_owned(),
                states,
                deleted: false,
                timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            };
            bed.lab.call(
                |client| async move { Ok(client.instances().wait_instance(request).await?.into_inner()) },
            )
        })?;
    }
    bed.case(
        AREA,
        "events after a cursor of nobody",
        "REQUEST_INVALID",
        |bed| {
            let request = v1::WatchEventsRequest {
                after_cursor: "nonsense".to_owned(),
                ..Default::default()
            };
            bed.lab.call(|client| async move {
                client.system().watch_events(request).await?;
                Ok(())
            })
        },
    )
}

/// Beginnings that several have.
fn prefixes(bed: &mut Bed) -> Result<()> {
    let (first, second) = (bed.instance("taken")?, {
        let mut request = small("other");
        request.start = false;
        bed.create(request)?
    });
    let shared: String = first
        .id
        .chars()
        .zip(second.id.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a)
        .collect();
    for verb in Verb::ALL {
        bed.case(
            AREA,
            &format!("{verb:?} of the beginning of two ids"),
            "INSTANCE_AMBIGUOUS",
            |bed| bed.ask(verb, &shared, ""),
        )?;
    }
    bed.case(AREA, "a name beats the beginning of two ids", "OK", |bed| {
        let mut request = small(&shared);
        request.start = false;
        let made = bed.create(request)?;
        let found = bed.instance(&shared)?;
        bed.remove(&made.id)?;
        anyhow::ensure!(found.id == made.id, "it means {}", found.name);
        Ok(())
    })?;
    let digits = import_twins(bed)?;
    for (name, reference) in [
        ("digits", digits.clone()),
        ("a digest's beginning", format!("sha256:{digits}")),
    ] {
        bed.case(AREA, &format!("{name} of two images"), "IMAGE_AMBIGUOUS", |bed| {
            let mut request = small("wrong");
            request.image = reference.clone();
            bed.create(request)
        })?;
        bed.case(
            AREA,
            &format!("removal by {name} of two images"),
            "IMAGE_AMBIGUOUS",
            |bed| bed.remove_image(&reference),
        )?;
    }
    bed.case(AREA, "removal of an image that is used", "IMAGE_IN_USE", |bed| {
        bed.remove_image(super::guests::IMAGE)
    })
}

/// Imports two images whose digests begin alike; returns the four digits that they share.
fn import_twins(bed: &Bed) -> Result<String> {
    let numbered = |number: u32| Image {
        config: Box::new(move |config| config["config"]["Env"] = json!([format!("NUMBER={number}")])),
        index: Box::new(move |index| {
            index["manifests"][0]["annotations"] =
                json!({ "org.opencontainers.image.ref.name": format!("twin:{number}") });
        }),
        ..Image::default()
    };
    let mut seen: HashMap<String, u32> = HashMap::new();
    // Of 400 numbers below 65,536 two are alike in seven cases of ten; of 2,000 always.
    for number in 0..2000 {
        let text = digest(&numbered(number).manifest_bytes());
        let digits = text.get(7..11).context("a short digest")?.to_owned();
        if let Some(twin) = seen.insert(digits.clone(), number) {
            for number in [twin, number] {
                let place = bed.lab.disk_directory().join("twin.tar");
                std::fs::write(&place, numbered(number).build())?;
                bed.lab.import(&place)?;
                std::fs::remove_file(&place)?;
            }
            return Ok(digits);
        }
    }
    anyhow::bail!("no two of 2,000 digests begin alike")
}
